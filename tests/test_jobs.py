"""The life of a run, from the queue to the sweep, with a clock that is turned by hand."""

import asyncio
import errno
import json
import os
import shutil
import stat
import threading
from types import SimpleNamespace

import pytest
from runs import TINY, Clock, Still, Work, files_in, make_runs, run_async, wait_for, wait_for_end, write_video

from demo.folders import uploads_of
from demo.inputs import InputError, check_video
from demo.jobs import BusyError, RunNotFoundError, Runs
from demo.live import LiveCamera
from demo.settings import Limits
from streamvggt import write_atomically

LIMITS = Limits(grace_s=60, run_s=600, waiting=3, upload_bytes=10 * 2**20, keep_s=1000, keep_bytes=10_000)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def runs(tmp_path, work, clock):
    runs = make_runs(tmp_path, work, LIMITS, clock=clock)
    yield runs
    for run_id in list(runs._runs):
        work.nod(run_id, "end")
    runs.close()


def start(runs, **options):
    return runs.start(Still(), TINY, **options)


def count_is(count):
    return lambda manifest: manifest["count"] == count


def test_a_run_is_queued_then_runs_then_is_done(runs, work):
    run_id = start(runs)
    assert work.begun.get(timeout=10) == run_id
    assert wait_for(runs, run_id, lambda m: m["status"] == "running")["count"] == 0
    work.nod(run_id)
    assert wait_for(runs, run_id, count_is(1))["downloads"] == []
    work.nod(run_id, "end")
    manifest = wait_for_end(runs, run_id)
    assert manifest["status"] == "done"
    assert (manifest["count"], manifest["total"], manifest["queue_position"]) == (1, 1, None)
    assert {entry["format"] for entry in manifest["downloads"]} >= {"glb", "ply", "colmap", "tum", "npz"}
    assert json.loads((runs.find(run_id) / "manifest.json").read_text()) == manifest


def test_an_upload_is_kept_until_its_run_ends(runs, work, tmp_path):
    first, video = start(runs), write_video(tmp_path / "clip.mp4")
    waiting = runs.start(check_video(str(video), TINY, LIMITS), TINY)
    dropped = runs.start(check_video(str(video), TINY, LIMITS), TINY)
    video.unlink()
    assert work.begun.get(timeout=10) == first
    assert len(files_in(uploads_of(runs.folder))) == 2
    runs.stop(dropped)
    assert files_in(uploads_of(runs.folder)) == [f"{waiting}/0/clip.mp4"]
    work.nod(first, "end")
    assert work.begun.get(timeout=10) == waiting
    frames = runs._runs[waiting].source.frames(TINY, LIMITS, lambda: False)
    assert len(list(frames)) == 4
    work.nod(waiting, "end")
    wait_for_end(runs, waiting)
    assert files_in(uploads_of(runs.folder)) == []


def test_uploads_together_are_limited_and_the_one_that_is_refused_leaves_nothing(runs, work, tmp_path):
    large = runs.start(Still(nbytes=6 * 2**20), TINY)
    with pytest.raises(BusyError, match="already have 6 MB"):
        runs.start(Still(nbytes=5 * 2**20), TINY)
    assert runs.start(Still(nbytes=4 * 2**20), TINY)
    with pytest.raises(BusyError, match="already have 10 MB"):
        runs.start(check_video(str(write_video(tmp_path / "clip.mp4")), TINY, LIMITS), TINY)
    assert files_in(uploads_of(runs.folder)) == []
    work.nod(large, "end")
    wait_for_end(runs, large)
    assert runs.start(Still(nbytes=6 * 2**20), TINY)


def test_uploads_that_a_killed_server_left_go_when_the_next_one_starts(tmp_path, work):
    left = uploads_of(tmp_path / "runs") / "x" / "0" / "clip.mp4"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left")
    make_runs(tmp_path, work, LIMITS).close()
    assert not left.exists()


def test_every_change_raises_the_version(runs, work):
    run_id = start(runs)
    versions = [wait_for(runs, run_id, lambda m: m["status"] == "running")["version"]]
    for count in (1, 2, 3):
        work.nod(run_id)
        versions.append(wait_for(runs, run_id, count_is(count))["version"])
    assert versions == sorted(set(versions))


def test_run_ids_are_long_and_never_the_same(runs):
    ids = {start(runs, owner="x") for _ in range(3)}
    assert len(ids) == 3
    assert all(len(run_id) == 22 for run_id in ids)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "../etc",
        "a/b",
        "a" * 22,
        "example-../x",
        "example-",
        "example-%2e%2e",
        "A" * 21 + "\n",
        "\0" * 22,
    ],
)
def test_ids_that_are_no_runs_are_not_found(runs, bad):
    for look in (runs.find, runs.manifest, runs.stop, runs.camera):
        with pytest.raises(RunNotFoundError):
            look(bad)


def test_those_who_wait_see_their_place_and_move_up(runs, work):
    first, second, third = (start(runs, owner=str(number)) for number in range(3))
    wait_for(runs, first, lambda m: m["status"] == "running")
    assert wait_for(runs, second, lambda m: m["queue_position"] == 0)["status"] == "queued"
    assert wait_for(runs, third, lambda m: m["queue_position"] == 1)["status"] == "queued"
    work.nod(first, "end")
    wait_for(runs, second, lambda m: m["status"] == "running")
    assert wait_for(runs, third, lambda m: m["queue_position"] == 0)["status"] == "queued"


def test_owners_take_turns(runs, work):
    greedy = [start(runs, owner="greedy") for _ in range(3)]
    other = start(runs, owner="other")
    order = []
    for _ in range(4):
        order.append(work.begun.get(timeout=10))
        work.nod(order[-1], "end")
    assert order == [greedy[0], other, greedy[1], greedy[2]]


def test_a_full_queue_refuses_and_says_so(runs, work):
    start(runs)
    work.begun.get(timeout=10)
    for _ in range(LIMITS.waiting):
        start(runs)
    with pytest.raises(BusyError, match="3 visitors wait"):
        start(runs)


def test_who_is_refused_keeps_the_former_run_and_one_that_waited_makes_room(runs, work):
    at_work = start(runs)
    work.begun.get(timeout=10)
    waiting = [start(runs) for _ in range(LIMITS.waiting)][-1]
    with pytest.raises(BusyError):
        start(runs, former=at_work, viewer="one")
    assert runs._runs[at_work].ending is None
    start(runs, former=waiting, viewer="one")
    assert runs.manifest(waiting)["status"] == "stopped"


def test_two_workers_work_on_two_runs_at_once(tmp_path, work):
    runs = make_runs(tmp_path, work, LIMITS, workers=2)
    ids = {start(runs), start(runs)}
    assert {work.begun.get(timeout=10), work.begun.get(timeout=10)} == ids
    for run_id in ids:
        work.nod(run_id, "end")
    runs.close()


def test_stop_ends_a_run_with_what_it_has(runs, work):
    run_id = start(runs)
    work.nod(run_id)
    wait_for(runs, run_id, count_is(1))
    runs.stop(run_id)
    work.nod(run_id, "look")
    manifest = wait_for_end(runs, run_id)
    assert (manifest["status"], manifest["message"], manifest["count"]) == ("stopped", "Stopped after one frame.", 1)
    assert manifest["downloads"]


def test_stop_takes_a_run_out_of_the_queue_and_leaves_no_file(runs, work):
    first, second = start(runs), start(runs)
    assert work.begun.get(timeout=10) == first
    runs.stop(second)
    assert wait_for_end(runs, second)["status"] == "stopped"
    assert not (runs.folder / second).exists()


def test_a_run_that_ends_while_its_manifest_is_written_leaves_no_file(runs, work, monkeypatch):
    start(runs)
    work.begun.get(timeout=10)
    run = runs._runs[start(runs)]
    writing, removed = threading.Event(), threading.Event()

    def write(path, content):
        writing.set()
        removed.wait(0.2)  # whoever waits for this write is let go on after a while
        write_atomically(path, content)

    def remove(folder, **options):
        shutil.rmtree(folder, **options)
        removed.set()

    monkeypatch.setattr("demo.run.write_atomically", write)
    monkeypatch.setattr("demo.run.shutil", SimpleNamespace(rmtree=remove))
    writer = threading.Thread(target=run.waits_behind, args=(7,))
    writer.start()
    assert writing.wait(10)
    runs.stop(run.id)
    writer.join()
    assert run.manifest["status"] == "stopped"
    assert not run.folder.exists()


def test_a_manifest_with_a_number_that_is_none_reaches_nobody(runs, work):
    run_id = start(runs)
    assert work.begun.get(timeout=10) == run_id
    with pytest.raises(ValueError, match="JSON"):
        runs._runs[run_id].update(stats={"points": float("nan")})
    json.dumps(runs.manifest(run_id), allow_nan=False)


def test_stop_closes_the_source_so_that_nothing_waits_for_frames(runs):
    source = Still()
    run_id = runs.start(source, TINY)
    runs.stop(run_id)
    assert source.closed


def test_a_run_that_nobody_watches_ends_after_the_grace_period(runs, work, clock):
    run_id = start(runs)
    wait_for(runs, run_id, lambda m: m["status"] == "running")
    clock.pass_s(LIMITS.grace_s - 1)
    work.nod(run_id)
    work.settle(run_id)
    clock.pass_s(LIMITS.grace_s + 1)
    assert work.begun.get(timeout=10) == run_id
    work.nod(run_id, "look")
    start(runs)
    work.begun.get(timeout=10)  # the only worker is done with the run
    assert runs.manifest(run_id)["message"] == "Stopped after one frame, for nobody was watching."


def test_an_open_poll_counts_as_watching(runs, work, clock):
    run_id = start(runs)

    async def watch():
        manifest = await runs.newer_manifest(run_id, 0)
        while manifest["status"] != "running":
            manifest = await runs.newer_manifest(run_id, manifest["version"])
        poll = asyncio.create_task(runs.newer_manifest(run_id, manifest["version"]))
        await asyncio.sleep(0)
        clock.pass_s(10 * LIMITS.grace_s - 1)
        assert runs._runs[run_id].ending is None
        work.nod(run_id)
        return await poll

    assert run_async(watch())["count"] == 1


def test_a_watcher_that_vanishes_in_mid_poll_is_gone(runs, clock):
    run_id = start(runs)

    async def vanish():
        poll = asyncio.create_task(runs.newer_manifest(run_id, 1000))
        await asyncio.sleep(0)
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)

    run_async(vanish())
    clock.pass_s(LIMITS.grace_s + 1)
    assert "nobody was watching" in runs._runs[run_id].ending
    assert runs._runs[run_id]._waiters == []


def test_a_queued_run_that_nobody_waits_for_leaves_the_queue(runs, work, clock):
    first, second, third = (start(runs) for _ in range(3))
    assert work.begun.get(timeout=10) == first
    clock.pass_s(LIMITS.grace_s + 1)
    assert run_async(runs.newer_manifest(third, 0))["status"] == "queued"
    runs.tidy()
    assert runs.manifest(second)["status"] == "stopped"
    assert runs.manifest(third)["queue_position"] == 0


def test_the_time_limit_ends_a_run_with_what_it_has_and_says_so(runs, work, clock):
    run_id = runs.start(Still(total=9), TINY)
    work.nod(run_id)
    work.settle(run_id)
    with runs._runs[run_id].watchers.watching("somebody"):
        clock.pass_s(LIMITS.run_s + 1)
        work.nod(run_id)
        manifest = wait_for_end(runs, run_id)
    assert manifest["status"] == "stopped"
    assert manifest["message"] == "The time limit of 10 minutes came after 2 frames of 9; this is what there is."
    assert manifest["total"] == 2


def test_a_new_start_stops_the_visitors_former_run(runs, work):
    former = start(runs)
    wait_for(runs, former, lambda m: m["status"] == "running", viewer="me")
    following = start(runs, former=former, viewer="me")
    work.nod(former, "look")
    assert wait_for_end(runs, former)["status"] == "stopped"
    assert wait_for(runs, following, lambda m: m["status"] == "running")


def test_a_new_start_leaves_the_former_run_to_others_who_watch_it(runs, work):
    former = start(runs)
    wait_for(runs, former, lambda m: m["status"] == "running", viewer="me")
    wait_for(runs, former, lambda m: m["status"] == "running", viewer="somebody else")
    start(runs, former=former, viewer="me")
    assert runs._runs[former].ending is None


def test_a_second_window_of_the_same_browser_counts_as_another_watcher(runs):
    former = start(runs)
    watchers = runs._runs[former].watchers
    with watchers.watching("me"), watchers.watching("me"):
        start(runs, former=former, viewer="me")
    assert runs._runs[former].ending is None
    start(runs, former=former, viewer="me")
    assert "Stopped" in runs._runs[former].ending


def test_an_unknown_former_run_does_no_harm(runs):
    assert start(runs, former="../../etc/passwd", viewer="me")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("clip.mp4 is no video"), "clip.mp4 is no video"),
        (OSError(errno.ENOSPC, "No space left"), "The disk of the server is full. Try again later, with fewer frames."),
        (KeyError("secret of the server"), "Something went wrong on the server; its log tells more."),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_no_file(runs, work, error, message):
    run_id = start(runs)
    work.nod(run_id, error)
    manifest = wait_for_end(runs, run_id)
    assert (manifest["status"], manifest["message"], manifest["downloads"]) == ("failed", message, [])
    assert files_in(runs.folder) == []


def test_a_failure_after_some_frames_keeps_them(runs, work):
    run_id = start(runs)
    work.nod(run_id)
    work.nod(run_id, ValueError("frame 2 is damaged"))
    manifest = wait_for_end(runs, run_id)
    assert (manifest["status"], manifest["message"], manifest["count"]) == ("stopped", "frame 2 is damaged", 1)


def test_a_full_disk_gives_up_the_predictions_and_goes_on_with_the_next_run(runs, work):
    run_id, following = start(runs), start(runs)
    work.nod(run_id)
    wait_for(runs, run_id, count_is(1))
    predictions = runs.find(run_id) / "predictions"
    predictions.mkdir()
    (predictions / "000000.npz").write_bytes(b"x" * 100)
    work.nod(run_id, OSError(errno.ENOSPC, "No space left"))
    assert "disk" in wait_for_end(runs, run_id)["message"]
    wait_for(runs, following, lambda m: m["status"] == "running")
    assert runs.manifest(run_id)["downloads"] == []
    assert not predictions.exists()


def test_a_manifest_that_cannot_be_written_still_reaches_who_waits(runs, work, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left")

    run_id = start(runs)
    wait_for(runs, run_id, lambda m: m["status"] == "running")
    monkeypatch.setattr("demo.run.write_atomically", full)
    work.nod(run_id)
    manifest = wait_for_end(runs, run_id)
    assert manifest["status"] in ("stopped", "failed")
    assert "disk" in manifest["message"]


def finished(runs, work):
    run_id = start(runs)
    work.nod(run_id)
    work.nod(run_id, "end")
    wait_for_end(runs, run_id)
    return run_id


def test_finished_runs_are_forgotten_but_found_on_disk(runs, work):
    run_id = finished(runs, work)
    before = runs.manifest(run_id)
    assert runs._runs
    runs._clock.pass_s(1)
    runs.tidy()
    assert not runs._runs
    assert runs.manifest(run_id) == before
    assert run_async(runs.newer_manifest(run_id, 0)) == before


def test_another_process_reads_finished_runs_and_calls_unfinished_ones_stopped(runs, work, tmp_path):
    done, cut = finished(runs, work), start(runs)
    work.nod(cut)
    wait_for(runs, cut, count_is(1))
    after = make_runs(tmp_path, work, LIMITS)
    after.close()
    assert after.manifest(done) == runs.manifest(done)
    manifest = after.manifest(cut)
    assert manifest["status"] == "stopped"
    assert "started anew" in manifest["message"]
    assert manifest["version"] > runs.manifest(cut)["version"]
    assert manifest["downloads"]


def test_the_sweep_deletes_old_folders(runs, work, clock):
    old, young = finished(runs, work), finished(runs, work)
    os.utime(runs.folder / old, (clock.now - 1001, clock.now - 1001))
    os.utime(runs.folder / young, (clock.now - 999, clock.now - 999))
    clock.pass_s(0.5)
    runs.tidy()
    assert not (runs.folder / old).exists()
    assert (runs.folder / young).exists()
    with pytest.raises(RunNotFoundError):
        runs.manifest(old)


def test_the_sweep_deletes_the_oldest_until_all_are_small_enough(runs, work, clock):
    ids = [finished(runs, work) for _ in range(4)]
    for age, run_id in enumerate(reversed(ids)):
        (runs.folder / run_id / "big").write_bytes(bytes(3000))
        os.utime(runs.folder / run_id, (clock.now - age, clock.now - age))
    clock.pass_s(0.5)
    runs.tidy()
    assert [(runs.folder / run_id).exists() for run_id in ids] == [False, False, True, True]


def test_a_server_that_nobody_visits_tidies_as_well(tmp_path, work, monkeypatch):
    tidied = threading.Event()
    monkeypatch.setattr("demo.jobs._TIDY_EVERY_S", 0.01)
    monkeypatch.setattr(Runs, "tidy", lambda runs: tidied.set())
    runs = make_runs(tmp_path, work, LIMITS, tidy_in_background=True)
    assert tidied.wait(timeout=20)
    runs.close()


def test_the_sweep_leaves_running_runs_and_strangers_alone(runs, work, clock, tmp_path):
    run_id = start(runs)
    work.nod(run_id)
    wait_for(runs, run_id, count_is(1))
    (runs.folder / "notes").mkdir()
    for path in (runs.folder / run_id, runs.folder / "notes"):
        os.utime(path, (0, 0))
    with runs._runs[run_id].watchers.watching("somebody"):
        runs.tidy()
    assert (runs.folder / run_id).exists()
    assert (runs.folder / "notes").exists()


def test_examples_are_finished_runs_under_their_names(runs):
    folder = runs.examples / "living-room"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"run": "?", "version": 3, "status": "done", "count": 2}))
    assert runs.find("example-living-room") == folder
    assert runs.manifest("example-living-room")["run"] == "example-living-room"
    runs.stop("example-living-room")
    runs.tidy()
    assert folder.exists()


def test_only_live_runs_have_a_camera(runs, work):
    still, live = start(runs), runs.start(LiveCamera(LIMITS), TINY)
    assert runs.camera(still) is None
    assert isinstance(runs.camera(live), LiveCamera)
    runs.stop(live)
    assert runs.camera(live) is None


def test_manifests_can_be_read_by_the_server_of_files(runs, work):
    run_id = finished(runs, work)
    mode = (runs.folder / run_id / "manifest.json").stat().st_mode
    assert mode & stat.S_IRUSR
    assert [name for name in files_in(runs.folder / run_id) if "tmp" in name] == []
