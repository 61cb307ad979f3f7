"""The page as a server: it starts, offers one endpoint, and serves runs beside Gradio."""

import runpy
from pathlib import Path

import httpx
import pytest
import uvicorn
from gradio_client import Client, handle_file
from runs import TINY, free_port, run_async, write_video
from starlette.requests import HTTPConnection

from demo.engine import Engine
from demo.folders import uploads_of
from demo.handlers import open_runs
from demo.inputs import check_video
from demo.routes import address_of
from demo.ui import build_demo, launch_options
from streamvggt import write_atomically


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMVGGT_RUNS", str(folder / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        engine = Engine()
        runs = open_runs(engine)
        demo = build_demo(runs, engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **launch_options(runs))
        yield url.rstrip("/"), runs
        demo.close()
        runs.close()


def test_the_page_answers(page):
    url, _ = page
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert "StreamVGGT" in answer.text


def test_a_program_gets_a_manifest_for_each_frame_and_the_files(page, tmp_path):
    url, _ = page
    video = write_video(tmp_path / "clip.mp4", num_frames=3)
    client = Client(url, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/reconstruct"]
    chosen = {"fps": 10, "width_px": 112, "memory": "tokens", "compress": True, "long": True}
    job = client.submit(video=handle_file(video), **chosen, formats=["glb", "tum"], api_name="/reconstruct")
    updates = list(job)
    assert {manifest["count"] for manifest, _ in updates} >= {1, 2, 3}
    manifest, files = updates[-1]
    assert (manifest["status"], manifest["count"], manifest["total"]) == ("done", 3, 3)
    assert manifest["settings"].items() >= chosen.items()
    assert [name.rsplit("/", 1)[-1] for name in files] == ["scene.glb", "trajectory.txt"]
    chunk = httpx.get(f"{url}/runs/{manifest['run']}/chunks/2.glb")
    assert (chunk.status_code, chunk.headers["content-type"], chunk.content[:4]) == (200, "model/gltf-binary", b"glTF")


def test_gradio_serves_the_files_of_runs_and_neither_what_visitors_sent_nor_the_lock(page, tmp_path):
    url, runs = page
    video = check_video(str(write_video(tmp_path / "clip.mp4")), TINY, runs.limits)
    video.kept_in(uploads_of(runs.folder) / "x")
    result = runs.folder / "x" / "results" / "scene.glb"
    write_atomically(result, b"glTF")
    (upload,) = uploads_of(runs.folder).rglob("clip.mp4")
    statuses = {
        path: httpx.get(f"{url}/gradio_api/file={path}").status_code
        for path in (result, upload, *runs.folder.parent.rglob("*.lock"))
    }
    assert len(statuses) == 3
    assert statuses.pop(result) == 200
    assert set(statuses.values()) == {403}


def test_on_a_space_visitors_are_told_apart_by_what_its_proxies_say_and_not_by_what_they_say_themselves(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("SPACE_ID", "someone/streamvggt")
    monkeypatch.setenv("STREAMVGGT_RUNS", str(tmp_path))
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")  # so that it is unset again afterwards
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    runpy.run_path(str(Path(__file__).parents[1] / "app.py"))["runs"].close()
    seen = []

    async def page(scope, receive, send):
        seen.append(address_of(HTTPConnection(scope)))

    server = uvicorn.Config(page)  # as Gradio makes it
    server.load()
    chain = [(b"x-forwarded-for", b"1.2.3.4, 203.0.113.7, 10.20.0.9")]
    for peer in ("10.16.3.80", "198.51.100.3"):
        scope = {"type": "http", "client": (peer, 1234), "headers": chain, "scheme": "http"}
        run_async(server.loaded_app(scope, None, None))
    assert seen == ["203.0.113.7", "198.51.100.3"]
