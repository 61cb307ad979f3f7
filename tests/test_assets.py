"""The example clips and runs: they open, they are small, the truth is true and the runs are whole."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pygltflib
import pytest
from PIL import Image

from streamvggt import read_frames
from streamvggt.geometry import project, unproject

ASSETS = Path(__file__).parents[1] / "assets"
CLIPS = sorted(path.stem for path in ASSETS.glob("*.mp4"))
MEGABYTE = 1_000_000


@cache
def load_images(name):
    return [frame.image for frame in read_frames(ASSETS / f"{name}.mp4")]


def load_truth(name):
    """Read a clip's truth; intrinsics come with a second set for the pixels of the smaller depth maps."""
    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as file:
        truth = {key: file[key] for key in file.files}
    stride = load_images(name)[0].shape[1] / truth["depth"].shape[2]
    small = truth["intrinsics"] / stride
    small[:2, 2] = (truth["intrinsics"][:2, 2] + 0.5) / stride - 0.5
    small[2, 2] = 1
    return truth, small, stride


def warp(truth, small, source, target):
    """Carry the depth map of one frame to another by the cameras alone.

    Returns the pixels of the second frame, xy, where the points of the first come to lie, their depth there and the
    depth that the second frame's truth has at the nearest pixel; only points that it can see at all.
    """
    depth = truth["depth"].astype(np.float64)
    points = unproject(depth[source], truth["extrinsics"][source], small)[depth[source] > 0]
    xy, predicted = project(points, truth["extrinsics"][target], small)
    nearest = np.rint(xy).astype(int)
    height, width = depth.shape[1:]
    inside = (predicted > 0) & (nearest >= 0).all(-1) & (nearest < [width, height]).all(-1)
    found = depth[target][nearest[inside, 1], nearest[inside, 0]]
    return np.flatnonzero(inside), xy[inside], predicted[inside], found


def test_there_are_clips_with_truth_and_all_are_small():
    assert len(CLIPS) >= 4
    assert sorted(path.stem for path in ASSETS.glob("*.npz")) == CLIPS
    for name in CLIPS:
        assert sum((ASSETS / f"{name}{suffix}").stat().st_size for suffix in (".mp4", ".npz")) < 1.5 * MEGABYTE
    assert sum(path.stat().st_size for path in ASSETS.iterdir() if path.is_file()) < 6 * MEGABYTE


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_a_pose_a_depth_map_and_a_credit_for_every_frame(name):
    frames = list(read_frames(ASSETS / f"{name}.mp4"))
    truth, _, stride = load_truth(name)
    assert 36 <= len(frames) <= 60
    assert len(truth["extrinsics"]) == len(truth["depth"]) == len(truth["time_s"]) == len(frames)
    assert truth["depth"].dtype == np.float16 and truth["depth"].shape[1] * stride == frames[0].image.shape[0]
    np.testing.assert_allclose([frame.time_s for frame in frames], truth["time_s"], atol=1e-3)
    rotations = truth["extrinsics"][:, :, :3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    assert "Apache-2.0" in str(truth["credit"])
    assert f"`{name}`" in (ASSETS / "CREDITS.md").read_text()


@pytest.mark.parametrize("name", CLIPS)
def test_depth_carried_five_frames_on_meets_the_depth_there(name):
    truth, small, _ = load_truth(name)
    assert (truth["depth"] > 0).mean() > 0.85
    for source in range(0, len(truth["depth"]) - 5, 5):
        for a, b in ((source, source + 5), (source + 5, source)):
            _, _, predicted, found = warp(truth, small, a, b)
            assert len(found) > 0.3 * truth["depth"][0].size
            seen = found > 0
            assert np.median(np.abs(predicted[seen] / found[seen] - 1)) < 0.01


@pytest.mark.parametrize("name", CLIPS)
def test_colours_follow_the_cameras_better_than_they_stay_in_place(name):
    truth, small, stride = load_truth(name)
    frames = load_images(name)
    height, width = truth["depth"].shape[1:]
    blocks = [
        image.reshape(height, int(stride), width, int(stride), 3).mean((1, 3)) for image in frames
    ]  # a depth pixel stands for the middle of a block
    followed, stayed = [], []
    for source in range(0, len(frames) - 5, 5):
        rows, xy, predicted, found = warp(truth, small, source, source + 5)
        visible = np.abs(predicted / np.maximum(found, 1e-6) - 1) < 0.02
        colors = blocks[source][truth["depth"][source] > 0][rows[visible]]
        x, y = np.rint(xy[visible]).astype(int).T
        followed.append(np.median(np.abs(blocks[source + 5][y, x] - colors)))
        stayed.append(np.median(np.abs(blocks[source + 5] - blocks[source])))
    assert np.mean(followed) < 0.6 * np.mean(stayed)


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_has_a_finished_run_that_is_small_and_whole(name):
    folder = ASSETS / "examples" / name
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = json.loads((folder / "manifest.json").read_text())
    chunks = [f"chunks/{index:06d}.glb" for index in range(manifest["count"])]
    assert 8 <= manifest["count"] <= 12
    assert files == sorted([*chunks, "manifest.json", "picture.jpg"])
    assert sum((folder / file).stat().st_size for file in files) < 1.4 * MEGABYTE
    assert (manifest["run"], manifest["status"], manifest["total"]) == (f"example-{name}", "done", manifest["count"])
    assert len(manifest["title"]) > 5
    with Image.open(folder / "picture.jpg") as picture:
        assert picture.format == "JPEG" and picture.width >= 400


@pytest.mark.parametrize("name", CLIPS)
def test_a_run_holds_the_frames_of_its_clip_and_its_points_lie_ahead_of_the_first_camera(name):
    manifest = json.loads((ASSETS / "examples" / name / "manifest.json").read_text())
    clip = {round(frame.time_s, 4): frame.image for frame in read_frames(ASSETS / f"{name}.mp4")}
    num_points, times = [], []
    for index in range(manifest["count"]):
        gltf = pygltflib.GLTF2.load(ASSETS / "examples" / name / "chunks" / f"{index:06d}.glb")
        camera = next(node for node in gltf.nodes if node.name == f"frame_{index:06d}")
        times.append(round(camera.extras["time_s"], 4))
        view = gltf.bufferViews[next(image.bufferView for image in gltf.images if image.name == "image")]
        jpeg = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
        shown = Image.open(io.BytesIO(jpeg))
        source = np.asarray(Image.fromarray(clip[times[-1]]).resize(shown.size), float)
        assert np.abs(np.asarray(shown, float) - source).mean() < 8
        num_points.append(0)
        for mesh in gltf.meshes:
            positions = gltf.accessors[mesh.primitives[0].attributes.POSITION]
            num_points[-1] += positions.count
            # In front of the first camera, which looks along -z.
            assert positions.max[2] < 0
    assert times == sorted(set(times)) and times[0] == 0
    assert sum(num_points) == manifest["stats"]["points"]
    assert num_points[0] > 20_000


def test_pictures_for_links_and_the_readme_have_their_sizes():
    sizes = {"social.jpg": (1280, 640), "thumbnail.jpg": (640, 360), "growing.webp": (880, 360)}
    for name, size in sizes.items():
        with Image.open(ASSETS / name) as picture:
            assert picture.size == size
            assert getattr(picture, "n_frames", 1) > 10 if name.endswith("webp") else picture.format == "JPEG"
        assert (ASSETS / name).stat().st_size < MEGABYTE
    readme = (ASSETS.parent / "README.md").read_text()
    for name in ("thumbnail: assets/social.jpg", "(assets/growing.webp)", "(assets/small.jpg)"):
        assert name in readme
