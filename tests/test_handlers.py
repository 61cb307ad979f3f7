"""Runs with a network, started as the page's buttons do: every control changes what it says it changes."""

import errno
import io
import json
import os
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import av
import numpy as np
import plyfile
import pycolmap
import pygltflib
import pytest
from drifting import Drift, KnowsTheTruth, picture, true_pose
from evo.tools import file_interface
from PIL import Image
from runs import TINY, Clock, Still, files_in, make_runs, run_async, wait_for, wait_for_end, write_video

from demo import handlers, reconstruction
from demo.engine import Engine, Moved, Step
from demo.folders import uploads_of
from demo.inputs import InputError
from demo.reconstruction import read_prediction, reconstruct
from demo.results import MOST_POINTS, NotReadyError, result_path
from demo.run import chunk_path
from demo.settings import MEMORIES, MODELS, WIDTHS, Limits, RunSettings, SettingsError
from streamvggt import (
    Frame,
    LongSession,
    Similarity,
    StreamSession,
    StreamVGGT,
    StreamVGGTConfig,
    invert_pose,
    load_model,
    move_prediction,
    npz_bytes,
    write_atomically,
)
from streamvggt.metrics import trajectory_metrics

TINY_VALUES = TINY.to_json()


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture
def runs(tmp_path, engine):
    runs = make_runs(tmp_path, lambda run: reconstruct(run, engine))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("video") / "clip.mp4", num_frames=6))


def run_video(runs, video, **changes):
    run_id = handlers.start_video(runs, video, RunSettings(**TINY_VALUES | changes))
    manifest = wait_for_end(runs, run_id)
    assert manifest["status"] == "done", manifest
    return manifest, runs.find(run_id)


def predictions(folder):
    return [read_prediction(path) for path in sorted((folder / "predictions").iterdir())]


def gltf(path):
    return pygltflib.GLTF2().load(path)


def num_points(path):
    scene = gltf(path)
    return sum(
        scene.accessors[mesh.primitives[0].attributes.POSITION].count for mesh in scene.meshes if mesh.name == "points"
    )


def positions(path):
    scene = gltf(path)
    accessor = scene.accessors[scene.meshes[0].primitives[0].attributes.POSITION]
    view = scene.bufferViews[accessor.bufferView]
    data = np.frombuffer(scene.binary_blob(), np.uint8)[view.byteOffset :][: view.byteStride * accessor.count]
    return data.reshape(accessor.count, view.byteStride)[:, :12].copy().view("<f4")


def test_a_video_becomes_a_chunk_and_a_prediction_for_each_frame(runs, video):
    manifest, folder = run_video(runs, video)
    assert (manifest["count"], manifest["total"], manifest["title"]) == (6, 6, "clip.mp4")
    chunks = [f"chunks/{i:06d}.glb" for i in range(6)]
    assert files_in(folder) == [*chunks, "manifest.json", *(f"predictions/{i:06d}.npz" for i in range(6))]
    assert manifest["stats"]["points"] == sum(num_points(folder / chunk) for chunk in chunks)
    levels = manifest["stats"]["conf_percentiles"]
    assert len(levels) == 21
    assert levels == sorted(levels)
    assert manifest["stats"]["cache_bytes"] > 0
    assert [node.extras["frame"] for c in chunks for node in gltf(folder / c).nodes if node.camera is not None] == [
        *range(6)
    ]


def test_frames_a_second_and_frames_at_most_are_kept(runs, video):
    assert run_video(runs, video, fps=5)[0]["count"] == 3
    assert run_video(runs, video, max_frames=2)[0]["count"] == 2


def test_the_time_limit_ends_a_run_also_while_its_source_gives_nothing(tmp_path, engine):
    class Barren(Still):
        def frames(self, settings, limits, has_ended):
            yield Frame(np.zeros((42, 56, 3), np.uint8), 0, 0.0)
            while not has_ended():
                clock.pass_s(400)

    clock = Clock()
    runs = make_runs(tmp_path, lambda run: reconstruct(run, engine), Limits(run_s=900, grace_s=1e9), clock=clock)
    manifest = wait_for_end(runs, runs.start(Barren(), TINY))
    runs.close()
    assert (manifest["status"], manifest["count"]) == ("stopped", 1)
    assert "The time limit of 15 minutes came after one frame" in manifest["message"]


@pytest.mark.parametrize("long", [False, True])
def test_a_run_that_is_stopped_takes_no_more_frames_than_go_through_the_network_at_once(tmp_path, engine, long):
    """The source sees that the run has ended while the second frame of a chunk is read."""

    class Endless(Still):
        def frames(self, settings, limits, has_ended):
            for i in count():
                taken.append(i)
                if i == 6:
                    runs.stop(run_id)
                yield Frame(np.full((42, 56, 3), 20 * i, np.uint8), i, i / 2)

    taken = []
    runs = make_runs(tmp_path, lambda run: begun.wait(20) and reconstruct(run, engine))
    begun = threading.Event()
    run_id = runs.start(Endless(), RunSettings(**TINY_VALUES | {"long": long}))
    begun.set()
    manifest = wait_for_end(runs, run_id)
    runs.close()
    assert manifest["status"] == "stopped" and taken == list(range(7))
    # Frames 0, 1 to 4, and 5, which was read before: all of a long run follow the corrections.
    assert manifest["count"] == 6


def test_the_smallest_frames_on_offer_are_large_enough_to_refine_cameras_by(tmp_path, monkeypatch):
    """Down to three times as wide as high; what is smaller still is told."""
    config = replace(StreamVGGTConfig.tiny(), encoder_dim=64, match_layer=1, track=None)
    monkeypatch.setattr("demo.engine.load_model", lambda *_, **__: StreamVGGT(config).eval())
    runs = make_runs(tmp_path, lambda run: reconstruct(run, Engine()))
    for width, size_wh, status in ((min(WIDTHS), (240, 80), "done"), (56, (112, 84), "failed")):
        video = write_video(tmp_path / f"{width}.mp4", num_frames=2, size_wh=size_wh)
        settings = RunSettings(**TINY_VALUES | {"width_px": width})
        manifest = wait_for_end(runs, handlers.start_video(runs, str(video), settings))
        assert manifest["status"] == status
    assert "42x56 pixels have 12 patches" in manifest["message"] and "take larger ones" in manifest["message"]
    runs.close()


def test_servers_that_run_at_once_have_folders_of_their_own_and_the_next_one_finds_the_old_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMVGGT_RUNS", str(tmp_path))
    first, second = handlers.open_runs(None), handlers.open_runs(None)
    assert first.folder != second.folder
    first.close()
    third = handlers.open_runs(None)
    assert third.folder == first.folder
    second.close()
    third.close()


def test_what_a_server_that_is_gone_left_is_deleted_by_another_and_what_one_that_runs_has_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMVGGT_RUNS", str(tmp_path))
    monkeypatch.setattr("demo.jobs._TIDY_EVERY_S", 1e6)
    limits = Limits(keep_s=1000, keep_bytes=10_000)
    first, gone, running = (handlers.open_runs(None, limits) for _ in range(3))
    now = time.time()
    ages_s = {"old": 2000, "young": 20, "oldest": 30}
    for runs in (first, gone, running):
        write_atomically(uploads_of(runs.folder) / "x" / "0" / "clip.mp4", b"sent")
        for name, age_s in ages_s.items():
            folder = runs.folder / name.ljust(22, "-")
            write_atomically(folder / "chunks" / "000000.glb", bytes(3000))
            os.utime(folder, (now - age_s, now - age_s))
    gone.close()
    first.tidy()
    first.close()
    running.close()
    left = {runs: sorted(path.name.strip("-") for path in runs.folder.iterdir()) for runs in (first, gone, running)}
    # Four young ones of 3,000 bytes are too many: the oldest of one folder goes.
    assert sorted([left[first], left[gone]], key=len) == [["young"], ["oldest", "young"]]
    assert left[running] == ["old", "oldest", "young"]
    assert not uploads_of(gone.folder).exists()
    assert files_in(uploads_of(first.folder)) == files_in(uploads_of(running.folder)) == ["x/0/clip.mp4"]


def test_a_place_where_runs_cannot_be_kept_says_what_to_set(monkeypatch, tmp_path):
    def belongs_to_another(folder):
        raise PermissionError(errno.EACCES, "Permission denied", f"{folder}.lock")

    place = tmp_path / "place"
    monkeypatch.setenv("STREAMVGGT_RUNS", str(place))
    with monkeypatch.context() as patch:
        patch.setattr("demo.handlers.lock_folder", belongs_to_another)
        with pytest.raises(OSError, match=r"place: .*Permission denied.* Set STREAMVGGT_RUNS to a folder"):
            handlers.open_runs(None)
    place.joinpath("1").rmdir()
    place.rmdir()
    place.write_text("a file")
    with pytest.raises(OSError, match="Set STREAMVGGT_RUNS to a folder"):
        handlers.open_runs(None)


def test_the_width_is_that_of_the_frames(runs, video):
    widths = [predictions(run_video(runs, video, max_frames=1, width_px=width)[1])[0].image_hw[1] for width in (56, 84)]
    assert widths == [56, 84]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Paths of 30 images of 56x42 pixels, each unlike the others."""
    folder, rng = tmp_path_factory.mktemp("walk"), np.random.default_rng(0)
    paths = [str(folder / f"{index:02d}.png") for index in range(30)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (42, 56, 3), np.uint8)).save(path)
    return paths


def held_bytes(runs, paths, **changes):
    """Bytes that a stream holds at the end of a run on images, as its manifest says."""
    settings = RunSettings(**TINY_VALUES | changes)
    manifest = wait_for_end(runs, handlers.start_images(runs, paths, settings))
    assert (manifest["status"], manifest["settings"]) == ("done", settings.to_json())
    return manifest["stats"]["cache_bytes"]


FRAME_BYTES = 32_448  # of one frame of 56x42 pixels that "tiny" remembers


@pytest.mark.parametrize(("memory", "frames"), [("window", 16), ("keyframes", 24), ("tokens", 24), ("all", 30)])
def test_the_rule_for_the_memory_says_how_much_is_held(runs, walk, memory, frames):
    # Where parts of frames are held, now or once the memory is full, each says whose it is.
    # With "tokens" the camera head remembers all 30, too.
    extra = held_bytes(runs, walk, memory=memory) / FRAME_BYTES - frames
    assert 0 < extra < 2 if memory in ("tokens", "all") else extra == 0


def test_memory_in_8_bits_takes_less_than_half_of_it_in_float32(runs, walk):
    assert held_bytes(runs, walk[:3], compress=True) < 3 * FRAME_BYTES / 2


def test_points_lie_where_the_chosen_geometry_says(runs, video):
    for geometry in ("depth", "points"):
        _, folder = run_video(runs, video, max_frames=1, geometry=geometry, confidence=0)
        (prediction,) = predictions(folder)
        points = positions(folder / "chunks" / "000000.glb") * (1, -1, -1)
        assert (prediction.world_points is None) == (geometry == "depth")  # what is not shown is not computed
        if geometry == "points":
            every = prediction.world_points.reshape(-1, 3)
        else:
            height, width = prediction.image_hw
            y, x = np.mgrid[:height, :width]
            rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(prediction.intrinsics).T
            in_camera = (rays * prediction.depth[..., None]).reshape(-1, 3)
            rotation, translation = prediction.extrinsics[:, :3], prediction.extrinsics[:, 3]
            every = (in_camera - translation) @ rotation
        nearest = np.abs(points[:, None] - every[None]).max(-1).min(1)
        assert nearest.max() < 1e-4 * np.abs(every).max()


def test_the_least_certain_points_are_left_out(runs, video):
    counts = []
    for confidence in (0, 50, 90):
        _, folder = run_video(runs, video, max_frames=1, confidence=confidence)
        counts.append(num_points(folder / "chunks" / "000000.glb"))
    assert counts[0] > counts[1] > counts[2] > 0
    _, folder = run_video(runs, video, max_frames=1, confidence=50)
    (prediction,) = predictions(folder)
    assert json.loads((folder / "manifest.json").read_text())["stats"]["conf_percentiles"][0] >= round(
        float(np.median(prediction.depth_conf)), 4
    )


def test_masks_leave_out_what_they_name(runs, tmp_path):
    pixels = np.full((56, 112, 3), 128, np.uint8)
    pixels[:, :40], pixels[:, 72:] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "bands.png")
    reds = {}
    for name, masks in {"none": {}, "black": {"mask_black": True}, "white": {"mask_white": True}}.items():
        settings = RunSettings(**TINY_VALUES | {"confidence": 0, "width_px": 112} | masks)
        run_id = handlers.start_images(runs, [str(tmp_path / "bands.png")], settings)
        manifest = wait_for_end(runs, run_id)
        colors = plyfile.PlyData.read(result_path(runs.find(run_id), manifest, "ply"))["vertex"]["red"]
        reds[name] = {"dark": int((colors < 16).sum()), "bright": int((colors > 240).sum())}
    assert min(reds["none"].values()) > 100
    assert reds["black"]["dark"] == 0 < reds["black"]["bright"]
    assert reds["white"]["bright"] == 0 < reds["white"]["dark"]


def test_the_sky_mask_reaches_the_filter():
    assert RunSettings(mask_sky=True).point_filter.mask_sky
    assert not RunSettings().point_filter.mask_sky


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": 0}, "Frames a second must be from 0.2 to 30, got 0"),
        ({"fps": float("nan")}, "Frames a second"),
        ({"max_frames": 301}, "Frames at most must be from 1 to 300"),
        ({"width_px": 100}, "multiple of 14"),
        ({"width_px": 1400}, "from 56 to 518"),
        ({"model": "../../secret"}, "There is no model '../../secret'"),
        ({"memory": "short"}, "There is no memory 'short'; choose one of window, keyframes, tokens, all"),
        ({"geometry": "mesh"}, "choose one of depth, points"),
        ({"confidence": 100}, "from 0 to 90"),
        ({"max_frames": "many"}, "no number"),
        ({"max_frames": float("inf")}, "no number"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        RunSettings.from_values(**values)


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_rule_for_the_memory_is_bounded_and_goes_with_long_and_compressed_streams(memory):
    model, frame = load_model("tiny"), np.zeros((42, 56, 3), np.uint8)
    for long in (False, True):
        session = RunSettings(memory=memory, width_px=56, long=long, compress=True).session(model)
        assert isinstance(session, LongSession if long else StreamSession)
        session.step(frame)
    with patch_memory("256KiB"):
        session = RunSettings(memory=memory, width_px=56).session(model)
        for _ in range(12):
            session.step(frame)
            assert session.nbytes <= 256 * 2**10


@contextmanager
def patch_memory(memory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demo.settings.MEMORY", memory)
        yield


def test_every_network_has_its_licence():
    assert "Not for commercial use" in handlers.model_note("released")
    assert {RunSettings(model=name).source for name in MODELS} == {"small", "lch01/StreamVGGT"}


def test_a_bad_input_starts_no_run_and_leaves_no_trace(runs, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(InputError):
        handlers.start_video(runs, str(tmp_path / "bad.mp4"), TINY)
    with pytest.raises(InputError):
        handlers.start_images(runs, [str(tmp_path / "bad.mp4")], TINY)
    assert runs._runs == {}
    assert files_in(tmp_path) == ["bad.mp4"]


def test_following_a_run_yields_every_change_and_ends_with_it(runs, video):
    run_id = handlers.start_video(runs, video, TINY)

    async def follow():
        return [manifest async for manifest in handlers.follow(runs, run_id)]

    news = run_async(follow())
    versions = [manifest["version"] for manifest in news]
    assert versions == sorted(set(versions))
    assert (news[-1]["status"], news[-1]["count"]) == ("done", 6)


def test_live_frames_become_a_scene_until_the_camera_is_stopped(runs):
    run_id = handlers.start_camera(runs, TINY)
    camera = runs.camera(run_id)
    for shade in (50, 150):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (shade, 80, 80)).save(buffer, "JPEG")
        camera.put(buffer.getvalue())
        count = 1 if shade == 50 else 2
        wait_for(runs, run_id, lambda m, count=count: m["count"] == count)
    runs.stop(run_id)
    manifest = wait_for_end(runs, run_id)
    assert (manifest["status"], manifest["count"], manifest["live"]) == ("stopped", 2, True)
    first, second = predictions(runs.find(run_id))
    assert first.image[0, 0, 0] < second.image[0, 0, 0]


def test_a_full_disk_ends_the_run_with_a_message_and_nothing_half_written(runs, video, monkeypatch):
    real, writes = reconstruction.write_atomically, []

    def filling_up(path, data):
        writes.append(path)
        if len(writes) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(reconstruction, "write_atomically", filling_up)
    run_id = handlers.start_video(runs, video, TINY)
    manifest = wait_for_end(runs, run_id)
    assert (manifest["status"], manifest["count"]) == ("stopped", 1)
    assert "The disk of the server is full" in manifest["message"]
    runs.close()
    assert files_in(runs.folder / run_id) == ["chunks/000000.glb", "manifest.json"]


def test_a_video_that_breaks_in_its_middle_keeps_what_came_before(runs, tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", num_frames=6)
    real = reconstruction.frame_cloud

    def breaks(prediction, settings):
        if prediction.index == 2:
            raise ValueError("frame 2 is damaged")
        return real(prediction, settings)

    monkeypatch.setattr(reconstruction, "frame_cloud", breaks)
    manifest = wait_for_end(runs, handlers.start_video(runs, str(path), TINY))
    assert (manifest["status"], manifest["count"], manifest["message"]) == ("stopped", 2, "frame 2 is damaged")


@pytest.fixture(scope="module")
def done(tmp_path_factory, engine, video):
    runs = make_runs(tmp_path_factory.mktemp("done"), lambda run: reconstruct(run, engine))
    yield run_video(runs, video)
    runs.close()


def result(done, name):
    manifest, folder = done
    return result_path(folder, manifest, name)


def test_the_glb_holds_the_points_that_the_page_shows_and_all_cameras(done):
    scene = gltf(result(done, "glb"))
    assert sum(node.camera is not None for node in scene.nodes) == 6
    assert num_points(result(done, "glb")) == done[0]["stats"]["points"]


def test_the_ply_has_as_many_points_as_the_glb(done):
    assert plyfile.PlyData.read(result(done, "ply"))["vertex"].count == num_points(result(done, "glb"))


def test_colmap_reads_the_model_and_finds_its_images(done, tmp_path):
    with zipfile.ZipFile(result(done, "colmap")) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert len(model.images) == 6
    for image in model.images.values():
        with Image.open(tmp_path / "images" / image.name) as picture:
            camera = model.cameras[image.camera_id]
            assert picture.size == (camera.width, camera.height)


def test_evo_reads_the_trajectory(done):
    assert file_interface.read_tum_trajectory_file(result(done, "tum")).num_poses == 6


def test_the_npz_is_the_one_of_the_library_though_written_frame_by_frame(done):
    expected = np.load(io.BytesIO(npz_bytes(predictions(done[1]))))
    with np.load(result(done, "npz"), allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(archive[name], expected[name])
            assert archive[name].dtype == expected[name].dtype


def test_the_film_plays(done, monkeypatch):
    monkeypatch.setattr("demo.results.FILM_HW", (48, 64))
    with av.open(str(result(done, "mp4"))) as container:
        assert sum(1 for _ in container.decode(video=0)) > 20


def test_a_scene_without_points_has_every_file_but_the_film(runs, tmp_path):
    path = tmp_path / "white.png"
    Image.new("RGB", (56, 42), (255, 255, 255)).save(path)
    run_id = handlers.start_images(runs, [str(path)], RunSettings(**TINY_VALUES | {"mask_white": True}))
    done = wait_for_end(runs, run_id), runs.find(run_id)
    assert done[0]["stats"]["points"] == 0
    assert all(result(done, name).stat().st_size for name in ("glb", "ply", "colmap", "tum", "npz"))
    with pytest.raises(NotReadyError, match="no points to film"):
        result(done, "mp4")


def test_a_file_is_made_once(done):
    first = result(done, "ply").stat().st_mtime_ns
    assert result(done, "ply").stat().st_mtime_ns == first


def test_a_file_that_cannot_be_written_leaves_no_part(done, monkeypatch):
    manifest, folder = done
    (folder / "results" / "scene.ply").unlink(missing_ok=True)

    def fails(cloud):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("demo.results.ply_bytes", fails)
    with pytest.raises(OSError, match="No space"):
        result_path(folder, manifest, "ply")
    assert not [name for name in files_in(folder) if "ply" in name]


def test_points_of_a_file_are_limited(done, monkeypatch):
    manifest, folder = done
    (folder / "results" / "scene.ply").unlink(missing_ok=True)
    monkeypatch.setitem(MOST_POINTS, "ply", 60)
    assert plyfile.PlyData.read(result_path(folder, manifest, "ply"))["vertex"].count == 60
    (folder / "results" / "scene.ply").unlink()


def test_a_run_without_frames_has_no_files(tmp_path):
    manifest = {"status": "stopped", "count": 0, "settings": TINY_VALUES}
    with pytest.raises(NotReadyError, match="no predictions"):
        result_path(tmp_path, manifest, "glb")


LONG_WALK = 130  # a lap of a room and a third
LONG = RunSettings(model="tiny", long=True, max_frames=300, confidence=0)


class Walk(Still):
    """A walk round a room; at its end ``then`` is called, and other frames follow."""

    def __init__(self, then=lambda: None):
        super().__init__()
        self.then = then

    def frames(self, settings, limits, has_ended):
        for index in range(LONG_WALK):
            yield Frame(picture(index), index, index / 5)
        self.then()
        if has_ended():
            yield from (Frame(picture(index), index, index / 5) for index in range(LONG_WALK, LONG_WALK + 9))


def walked(tmp_path, monkeypatch, settings=LONG, stop=False):
    """Make a run of a network that knows the truth and drifts; returns its manifest and folder."""
    monkeypatch.setattr("demo.engine.load_model", lambda source, **options: KnowsTheTruth(Drift()))
    engine = Engine()
    runs = make_runs(tmp_path, lambda run: reconstruct(run, engine))
    source = Walk()
    run_id = []
    source.then = lambda: stop and runs.stop(run_id[0])
    run_id.append(runs.start(source, settings))
    manifest = wait_for_end(runs, run_id[0])
    runs.close()
    return manifest, runs.find(run_id[0])


def error_of(poses):
    truth = np.stack([true_pose(index) for index in range(LONG_WALK)])
    return trajectory_metrics(np.asarray(poses, np.float64), truth).ate_rmse


@pytest.mark.parametrize("stop", [False, True])
def test_scene_and_files_of_a_long_run_follow_the_corrected_poses_also_of_one_that_was_stopped(
    tmp_path, monkeypatch, stop
):
    manifest, folder = walked(tmp_path, monkeypatch, stop=stop)
    assert (manifest["status"], manifest["count"]) == ("stopped" if stop else "done", LONG_WALK)
    assert manifest["edition"] == 1
    assert "follow the corrected path" in manifest["message"]
    came = [prediction.extrinsics for prediction in predictions(folder)]
    with np.load(result((manifest, folder), "npz")) as archive:
        poses, depth = archive["extrinsics"], archive["depth"]
    assert error_of(poses) < error_of(came) / 2
    corrections = reconstruction.read_corrections(folder, edition=1)
    moved = [move_prediction(said, move) for said, move in zip(predictions(folder), corrections, strict=True)]
    np.testing.assert_array_equal(depth, [said.depth for said in moved])
    trajectory = file_interface.read_tum_trajectory_file(result((manifest, folder), "tum"))
    np.testing.assert_allclose(trajectory.positions_xyz, invert_pose(poses.astype(np.float64))[..., 3], atol=1e-4)
    cameras = [node for node in gltf(chunk_path(folder, LONG_WALK - 1, edition=1)).nodes if node.camera is not None]
    (matrix,) = (np.array(node.matrix).reshape(4, 4).T for node in cameras)
    centre = invert_pose(poses[-1].astype(np.float64))[:, 3]
    np.testing.assert_allclose(matrix[:3, 3], centre * (1, -1, -1), atol=1e-4)
    assert manifest["stats"]["points"] == num_points(result((manifest, folder), "glb"))
    assert not chunk_path(folder, 0).parent.exists()  # those of the former edition


class Corrects:
    """An engine of six frames whose scene doubles at the end; ``at_end`` is called before it does."""

    def __init__(self, at_end):
        self.at_end = at_end

    def stream(self, frames, settings, notice, *, live):
        session = StreamSession(load_model("tiny"), size=56)
        for frame in np.random.default_rng(0).integers(0, 256, (6, 56, 56, 3), np.uint8):
            yield Step(session.step(frame), 1)
        self.at_end()
        yield Moved([Similarity(2.0, np.eye(3), np.ones(3))] * 6)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_correction_that_fails_half_way_leaves_scene_and_files_as_they_were(tmp_path, monkeypatch, error):
    before = {}

    def fails_at_the_third(path, data):
        write_atomically(path, data)
        if path.suffix == ".glb":
            rewritten.append(path)
        if len(rewritten) == 3:
            raise OSError(error, "broken")

    def at_end():
        before.update({name: (folder / name).read_bytes() for name in files_in(folder) if name.startswith("chunks")})
        monkeypatch.setattr("demo.reconstruction.write_atomically", fails_at_the_third)

    rewritten = []
    runs = make_runs(tmp_path, lambda run: reconstruct(run, Corrects(at_end)))
    folder = runs.folder
    run_id = runs.start(Still(), LONG)
    folder /= run_id
    manifest = wait_for_end(runs, run_id)
    runs.close()
    assert (manifest["status"], manifest["count"], manifest["edition"], len(rewritten)) == ("stopped", 6, 0, 3)
    assert {name: (folder / name).read_bytes() for name in files_in(folder) if name.startswith("chunks")} == before
    assert sorted(path.name for path in folder.iterdir()) == ["chunks", "manifest.json"] + ["predictions"] * (
        error != errno.ENOSPC
    )
    if error == errno.ENOSPC:  # the files are given up for the room
        assert runs.manifest(run_id)["downloads"] == []
        return
    trajectory = file_interface.read_tum_trajectory_file(result((manifest, folder), "tum"))
    shown = invert_pose(np.stack([said.extrinsics for said in predictions(folder)]).astype(np.float64))[..., 3]
    np.testing.assert_allclose(trajectory.positions_xyz, shown, atol=1e-5)


def test_without_a_place_that_is_seen_again_a_long_run_stays_as_it_came(runs, walk):
    settings = RunSettings(**TINY_VALUES | {"long": True})
    manifest = wait_for_end(runs, handlers.start_images(runs, walk, settings))
    assert (manifest["status"], manifest["edition"]) == ("done", 0)
    assert not [name for name in files_in(runs.find(manifest["run"])) if "corrections" in name]
