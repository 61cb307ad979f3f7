"""The HTTP side of runs, asked as a browser asks it, without a page."""

import asyncio
import errno
import io
import json
import threading

import pytest
from PIL import Image
from runs import TINY, Still, Work, make_runs, never, run_async, wait_for, wait_for_end
from starlette.applications import Starlette
from starlette.testclient import TestClient

from demo.live import LiveCamera
from demo.routes import run_routes
from demo.run import chunk_path
from demo.settings import Limits

LIMITS = Limits(live_jpeg_bytes=20_000)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def runs(tmp_path, work):
    runs = make_runs(tmp_path, work, LIMITS)
    yield runs
    for run_id in list(runs._runs):
        work.nod(run_id, "end")
    runs.close()


@pytest.fixture
def web(runs):
    with TestClient(Starlette(routes=run_routes(runs))) as client:
        yield client


def finished(runs, work):
    run_id = runs.start(Still(), TINY)
    work.nod(run_id)
    work.nod(run_id, "end")
    wait_for_end(runs, run_id)
    chunk = runs.find(run_id) / "chunks" / "000000.glb"
    chunk.parent.mkdir()
    chunk.write_bytes(b"glTF and so on")
    return run_id


def test_a_poll_answers_at_once_when_there_is_news_and_waits_when_there_is_none(runs, work, web):
    run_id = runs.start(Still(), TINY)
    version = wait_for(runs, run_id, lambda m: m["status"] == "running")["version"]
    answer = web.get(f"/runs/{run_id}/manifest?version={version - 1}")
    assert answer.json()["version"] == version
    assert answer.headers["cache-control"] == "no-store"
    answers = []
    poll = threading.Thread(target=lambda: answers.append(web.get(f"/runs/{run_id}/manifest?version={version}")))
    poll.start()
    assert not answers
    work.nod(run_id)
    poll.join(timeout=15)
    assert answers[0].json()["count"] == 1


def test_a_poll_without_news_ends_with_the_manifest_as_it_is(runs, web, monkeypatch):
    monkeypatch.setattr("demo.jobs._POLL_S", 0.01)
    run_id = runs.start(Still(), TINY)
    version = wait_for(runs, run_id, lambda m: m["status"] == "running")["version"]
    assert web.get(f"/runs/{run_id}/manifest?version={version}").json()["version"] == version


def test_who_goes_away_in_mid_poll_does_not_watch_any_more(runs):
    run_id = runs.start(Still(), TINY)
    version = wait_for(runs, run_id, lambda m: m["status"] == "running")["version"]
    scope = {
        "type": "http", "method": "GET", "path": f"/runs/{run_id}/manifest", "headers": [], "client": ("1.2.3.4", 5),
        "query_string": f"version={version}".encode(),
    }  # fmt: skip
    sent = []

    async def visit():
        cut = asyncio.Event()
        first = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            for message in first:
                return message
            await cut.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        visit = asyncio.ensure_future(Starlette(routes=run_routes(runs))(scope, receive, send))
        while not runs._runs[run_id].watchers.others("somebody else", 0):
            await asyncio.sleep(0)
        cut.set()
        await visit

    run_async(visit())
    assert sent[0]["status"] == 499
    runs._clock.pass_s(1)
    assert runs._runs[run_id].watchers.idle_s == 1


def test_a_chunk_may_be_kept_for_ever(runs, work, web):
    answer = web.get(f"/runs/{finished(runs, work)}/chunks/0.glb")
    assert answer.content == b"glTF and so on"
    assert answer.headers["content-type"] == "model/gltf-binary"
    assert "immutable" in answer.headers["cache-control"]


def test_a_chunk_is_that_of_the_edition_that_was_asked_for(runs, work, web):
    run_id = finished(runs, work)
    newer = chunk_path(runs.find(run_id), 0, edition=1)
    newer.parent.mkdir()
    newer.write_bytes(b"glTF at its corrected place")
    path = f"/runs/{run_id}/chunks/0.glb"
    assert [web.get(path + query).content for query in ("", "?edition=0")] == [b"glTF and so on"] * 2
    assert web.get(f"{path}?edition=1").content == b"glTF at its corrected place"
    assert [web.get(f"{path}?edition={edition}").status_code for edition in ("2", "-1", "new")] == [404, 404, 400]


@pytest.mark.parametrize(
    "path",
    [
        "manifest",
        "chunks/0.glb",
        "download/glb",
        "picture",
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd/manifest",
    ],
)
@pytest.mark.parametrize("run_id", ["x" * 22, "..", "%2e%2e", "example-nothing", "example-..%2f..", "a" * 500])
def test_what_is_no_run_is_not_found(web, run_id, path):
    assert web.get(f"/runs/{run_id}/{path}").status_code == 404


def test_a_run_that_is_not_found_says_so_in_json(web):
    for answer in (web.get(f"/runs/{'x' * 22}/manifest"), web.post(f"/runs/{'x' * 22}/stop")):
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("There is no such run")


@pytest.mark.parametrize(
    "path",
    [
        "chunks/1.glb",
        "chunks/-1.glb",
        "chunks/0",
        "chunks/..%2fmanifest.json",
        "download/exe",
        "download/..%2fmanifest",
    ],
)
def test_only_what_a_run_has_is_served(runs, work, web, path):
    assert web.get(f"/runs/{finished(runs, work)}/{path}").status_code == 404


def test_a_bad_version_is_refused(runs, web):
    assert web.get(f"/runs/{runs.start(Still(), TINY)}/manifest?version=new").status_code == 400


def test_downloads_of_a_running_run_and_of_one_without_predictions_conflict(runs, work, web):
    run_id = runs.start(Still(), TINY)
    assert web.get(f"/runs/{run_id}/download/glb").status_code == 409
    assert "goes on" in web.get(f"/runs/{run_id}/download/glb").json()["error"]
    work.nod(run_id, "end")
    assert web.get(f"/runs/{finished(runs, work)}/download/ply").status_code == 409


def test_a_run_that_is_swept_while_its_file_is_made_is_not_found(runs, work, web, monkeypatch):
    def swept(folder, manifest, result):
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr("demo.routes.result_path", swept)
    answer = web.get(f"/runs/{finished(runs, work)}/download/glb")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "There is no such file: the run was deleted meanwhile.",
    )


def test_a_full_disk_is_told(runs, work, web, monkeypatch):
    def full(folder, manifest, result):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("demo.routes.result_path", full)
    assert web.get(f"/runs/{finished(runs, work)}/download/glb").status_code == 507


def test_stop_ends_the_run(runs, work, web):
    run_id = runs.start(Still(), TINY)
    assert work.begun.get(timeout=10) == run_id
    assert web.post(f"/runs/{run_id}/stop").status_code == 200
    work.nod(run_id, "look")
    assert wait_for_end(runs, run_id)["status"] == "stopped"
    assert web.get(f"/runs/{run_id}/stop").status_code == 405


def jpeg(size_wh=(64, 48)):
    buffer = io.BytesIO()
    Image.new("RGB", size_wh, (200, 120, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_newest_live_frame_wins_and_the_others_are_counted(runs, web):
    camera = LiveCamera(LIMITS)
    run_id = runs.start(camera, TINY)
    dropped = [web.post(f"/runs/{run_id}/frames", content=jpeg((64, 40 + i))).json()["dropped"] for i in range(3)]
    assert dropped == [0, 1, 2]
    camera.close()
    assert [frame.image.shape[0] for frame in camera.frames(TINY, LIMITS, never)] == [42]


def test_a_camera_that_sends_damaged_frames_only_does_not_hold_its_worker():
    camera, looks, buffer = LiveCamera(LIMITS), [], io.BytesIO()
    Image.effect_noise((64, 48), 60).save(buffer, "JPEG")
    damaged = buffer.getvalue()[:-500]  # the header is whole

    def at_the_third():
        looks.append(len(looks))
        camera.put(damaged)
        return len(looks) == 3

    camera.put(damaged)
    assert list(camera.frames(TINY, LIMITS, at_the_third)) == []
    assert len(looks) == 3


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"no jpeg", 400), (bytes(20_001), 413)])
def test_bad_live_frames_are_refused(runs, web, body, status):
    run_id = runs.start(LiveCamera(LIMITS), TINY)
    answer = web.post(f"/runs/{run_id}/frames", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_frames_for_a_run_without_a_camera_or_after_its_end_conflict(runs, work, web):
    still, live = runs.start(Still(), TINY), runs.start(LiveCamera(LIMITS), TINY)
    assert web.post(f"/runs/{still}/frames", content=jpeg()).status_code == 409
    runs.stop(live)
    assert web.post(f"/runs/{live}/frames", content=jpeg()).status_code == 409


def test_an_example_is_served_like_a_run(runs, web):
    folder = runs.examples / "street"
    (folder / "chunks").mkdir(parents=True)
    (folder / "chunks" / "000000.glb").write_bytes(b"glTF")
    (folder / "picture.jpg").write_bytes(b"JPEG")
    (folder / "manifest.json").write_text(json.dumps({"status": "done", "count": 1, "version": 1, "title": "street"}))
    assert web.get("/runs/example-street/manifest").json()["run"] == "example-street"
    chunk = web.get("/runs/example-street/chunks/0.glb")
    assert chunk.content == b"glTF"
    assert chunk.headers["cache-control"] == "no-cache"  # another example may come under this id
    assert web.get("/runs/example-street/picture").headers["content-type"] == "image/jpeg"


def test_the_viewer_is_served_and_asked_for_anew_by_its_tag(web):
    answer = web.get("/runs/viewer.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["etag"]
    assert "StreamVGGT" in answer.text
