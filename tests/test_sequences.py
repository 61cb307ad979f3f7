"""Tiny folders in every layout against cameras and points worked out by hand, and the real ones where they are."""

import json
import logging
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamvggt import Camera, PointCloud, colmap_files, project, unproject
from streamvggt.sequences import SequenceError, find_sequences, load_frames, natural_hw, open_sequence

REAL = Path(__file__).parent.parent.parent / "shared" / "data"

# A camera at (1, 2, 3) that looks along the world's x, its right the world's -y, its down the world's -z.
LOOKING_ALONG_X = np.array([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]])
LOOKING_ALONG_X_XYZW = (-0.5, 0.5, -0.5, 0.5)
AT_HEIGHT_4 = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]])
RED = (255, 0, 0)


def seen_point(u, v, depth, fx, fy, cx, cy):
    """The world point that the camera LOOKING_ALONG_X sees at a pixel."""
    right, down = (u - cx) / fx * depth, (v - cy) / fy * depth
    return np.array([1 + depth, 2 - right, 3 - down])


def write_picture(path, hw, marked_xy=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*hw, 3), 40, np.uint8)
    if marked_xy is not None:
        u, v = marked_xy
        pixels[max(0, v - 8) : v + 9, max(0, u - 8) : u + 9] = RED  # JPEG must not wash it out
    Image.fromarray(pixels).save(path, quality=95)


def write_depth(path, hw, values_at_xy, background=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(hw, background, np.uint16)
    for (u, v), value in values_at_xy.items():
        values[v, u] = value
    Image.fromarray(values).save(path)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(str(value) for value in row) for row in rows) + "\n")


def generic(root, num_frames=2, k=(100, 110, 31.5, 23.5), hw=(48, 64), suffix="jpg"):
    for i in range(num_frames):
        write_picture(root / "rgb" / f"{i:06d}.{suffix}", hw, (50, 10) if i == 0 else None)
        write_depth(root / "depth" / f"{i:06d}.png", hw, {(50, 10): 1500} if i == 0 else {})
    poses = [LOOKING_ALONG_X if i == 0 else AT_HEIGHT_4 for i in range(num_frames)]
    write_rows(root / "poses.txt", [pose[:3].reshape(-1) for pose in poses])
    meta = {"K": k, "rgb_size": hw[::-1], "depth_scale": 500, "fps": 4}
    (root / "meta.json").write_text(json.dumps(meta))
    return (50, 10), 3.0, k, 0.25


def tum(root, name="rgbd_dataset_freiburg3_desk", camera=(535.4, 539.2, 320.1, 247.6)):
    write_picture(root / "rgb" / "a.png", (480, 640), (400, 300))
    write_picture(root / "rgb" / "b.png", (480, 640))
    write_depth(root / "depth" / "a.png", (480, 640), {(400, 300): 10000})
    write_depth(root / "depth" / "b.png", (480, 640), {})
    # The third picture is 25 ms from the next depth map, the fourth as far from the next pose.
    write_rows(
        root / "rgb.txt",
        [("# time", "name"), (10.0, "rgb/a.png"), (10.5, "rgb/b.png"), (11.0, "rgb/c.png"), (12.0, "rgb/d.png")],
    )
    write_rows(root / "depth.txt", [(9.99, "depth/a.png"), (10.515, "depth/b.png"), (11.025, "x"), (12.0, "x")])
    write_rows(
        root / "groundtruth.txt",
        [
            ("# time tx ty tz qx qy qz qw",),
            (9.995, 1, 2, 3, *LOOKING_ALONG_X_XYZW),
            (10.007, 9, 9, 9, 0, 0, 0, 1),
            (10.49, 0, 0, 4, 0, 0, 0, 2),
            (11.0, 9, 9, 9, 0, 0, 0, 1),
            (11.975, 9, 9, 9, 0, 0, 0, 1),
        ],
    )
    return (400, 300), 2.0, camera, 0.5


def seven_scenes(root):
    for i, pose in enumerate((LOOKING_ALONG_X, AT_HEIGHT_4)):
        write_picture(root / f"frame-{i:06d}.color.png", (480, 640), (425, 205) if i == 0 else None)
        # 105 right and 35 up of the middle at a focal length of 525 is 117 and 39 at 585.
        depths = {(437, 201): 2500, (10, 10): 65535}
        write_depth(root / f"frame-{i:06d}.depth.png", (480, 640), depths if i == 0 else {}, 1000)
        write_rows(root / f"frame-{i:06d}.pose.txt", pose)
    return (425, 205), 2.5, (525, 525, 320, 240), 1 / 30


def nrgbd(root):
    for i in range(3):
        write_picture(root / "images" / f"img{i}.png", (48, 64), (50, 10) if i == 0 else None)
        write_depth(root / "depth" / f"depth{i}.png", (48, 64), {(50, 10): 2000} if i == 0 else {})
    # OpenGL: the second column is up, the third back. The frame in the middle has no pose.
    looking_along_x = LOOKING_ALONG_X * [1, -1, -1, 1]
    write_rows(root / "poses.txt", [*looking_along_x, *np.full((4, 4), np.nan), *(AT_HEIGHT_4 * [1, -1, -1, 1])])
    write_rows(root / "focal.txt", [(80.0,)])
    return (50, 10), 2.0, (80, 80, 32, 24), 2 / 30


def scannet(root):
    for i, pose in ((0, LOOKING_ALONG_X), (2, np.full((4, 4), -np.inf)), (10, AT_HEIGHT_4)):
        write_picture(root / "color" / f"{i}.jpg", (96, 128), (84, 22) if i == 0 else None)
        write_depth(root / "depth" / f"{i}.png", (48, 64), {(42, 11): 2000} if i == 0 else {})
        write_rows(root / "pose" / f"{i}.txt", pose)
    for name, k in (("color", (200, 200, 64, 48)), ("depth", (100, 100, 32, 24))):
        write_rows(root / "intrinsic" / f"intrinsic_{name}.txt", camera_matrix(*k))
    return (84, 22), 2.0, (200, 200, 64, 48), 1 / 3


def kitti(root):
    sequence = root / "sequences" / "07"
    for i in range(2):
        write_picture(sequence / "image_2" / f"{i:06d}.png", (37, 122), (100, 10) if i == 0 else None)
    # x2 = x0 + 0.06: camera 2 is 6 cm to the left of camera 0, whose poses the file has.
    p2 = np.array([[70, 0, 60, 70 * 0.06], [0, 70, 18, 0], [0, 0, 1, 0]])
    write_rows(sequence / "calib.txt", [("P0:", *np.eye(3, 4).reshape(-1)), ("P2:", *p2.reshape(-1))])
    write_rows(sequence / "times.txt", [(5.0,), (5.125,)])
    camera_0 = LOOKING_ALONG_X.copy()
    camera_0[:3, 3] += [0, -0.06, 0]
    write_rows(root / "poses" / "07.txt", [camera_0[:3].reshape(-1), AT_HEIGHT_4[:3].reshape(-1)])
    return (100, 10), None, (70, 70, 60, 18), 0.125


def sintel(root):
    for i, pose in enumerate((LOOKING_ALONG_X, AT_HEIGHT_4), 1):
        write_picture(root / "training" / "final" / "alley_1" / f"frame_{i:04d}.png", (20, 50), (40, 5))
        camera = root / "training" / "camdata_left" / "alley_1" / f"frame_{i:04d}.cam"
        camera.parent.mkdir(parents=True, exist_ok=True)
        k, world_to_camera = camera_matrix(60, 60, 24.5, 9.5)[:3, :3], np.linalg.inv(pose)[:3]
        camera.write_bytes(struct.pack("<f21d", 202021.25, *k.reshape(-1), *world_to_camera.reshape(-1)))
        depth = root / "training" / "depth" / "alley_1" / f"frame_{i:04d}.dpt"
        depth.parent.mkdir(parents=True, exist_ok=True)
        values = np.full((20, 50), 7, "<f4")
        values[5, 40], values[0, :4] = 2.25, (np.nan, np.inf, -1, 0)
        depth.write_bytes(struct.pack("<fii", 202021.25, 50, 20) + values.tobytes())
    return (40, 5), 2.25, (60, 60, 24.5, 9.5), 1 / 24


def colmap(root):
    for name in ("a.jpg", "b.jpg"):
        write_picture(root / "images" / "left" / name, (48, 64), (50, 10))
    model = root / "sparse" / "0"
    write_rows(
        model / "cameras.txt",
        [("# id",), (3, "PINHOLE", 64, 48, 100, 110, 32, 24), (1, "SIMPLE_PINHOLE", 64, 48, 90, 32, 24)],
    )
    x, y, z, w = LOOKING_ALONG_X_XYZW
    # World-to-camera: the inverse of LOOKING_ALONG_X turns the other way and puts (1, 2, 3) at the origin.
    lines = ["# id", "1 1 0 0 0 0 0 -4 1 left/b.jpg", "", f"2 {w} {-x} {-y} {-z} 2 3 -1 3 left/a.jpg", "3.5 4 -1"]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return (50, 10), None, (100, 110, 31.5, 23.5), 1.0


def camera_matrix(fx, fy, cx, cy):
    return np.array([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)


LAYOUTS = {
    "generic": (generic, "scene"),
    "tum": (tum, "rgbd_dataset_freiburg3_desk"),
    "7scenes": (seven_scenes, "chess/seq-03"),
    "nrgbd": (nrgbd, "kitchen"),
    "scannet": (scannet, "scene0000_00"),
    "kitti": (kitti, "dataset"),
    "sintel": (sintel, "sintel"),
    "colmap": (colmap, "scan"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_point_of_the_world_is_seen_at_the_marked_pixel_and_depth(layout, tmp_path):
    write, name = LAYOUTS[layout]
    (u, v), depth, k, step_s = write(tmp_path / name)
    (sequence,) = find_sequences(tmp_path)
    assert sequence.layout == layout and len(sequence) == 2
    assert sequence.has_depth == (depth is not None) and sequence.has_poses
    first, second = sequence
    assert first.image.dtype == np.uint8 and first.image[v, u].tolist() == pytest.approx(RED, abs=6)
    if depth is not None:
        assert first.depth.dtype == np.float32 and first.depth.shape == first.image.shape[:2]
        assert first.depth[v, u] == pytest.approx(depth)
    assert first.extrinsics.shape == (3, 4) and first.extrinsics.dtype == np.float64
    xy, z = project(seen_point(u, v, depth or 2.0, *k), first.extrinsics, first.intrinsics)
    np.testing.assert_allclose(xy, (u, v), atol=1e-9)
    assert z == pytest.approx(depth or 2.0)
    assert (first.time_s, second.time_s) == pytest.approx((0, step_s))
    if layout != "kitti":  # there it is camera 0 that is at this height
        np.testing.assert_allclose(second.extrinsics, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -4]], atol=1e-12)


def test_sequences_are_found_below_a_folder_sorted_and_named_by_their_path(tmp_path, caplog):
    generic(tmp_path / "b")
    seven_scenes(tmp_path / "a" / "chess" / "seq-02")
    seven_scenes(tmp_path / "a" / "chess" / "seq-10")
    (tmp_path / "a" / "chess" / "TrainSplit.txt").write_text("sequence2\nsequence12\n")
    (tmp_path / "a" / "chess" / "TestSplit.txt").write_text("sequence10\n")
    generic(tmp_path / "c")
    (tmp_path / "c" / "poses.txt").write_text("1 0 0\n")
    found = find_sequences(tmp_path)
    assert [sequence.name for sequence in found] == ["a/chess/seq-02", "a/chess/seq-10", "b"]
    assert [sequence.split for sequence in found] == ["train", "test", None]
    assert "poses.txt: 12 numbers a line" in caplog.text
    assert [sequence.name for sequence in find_sequences(tmp_path, "7scenes")] == ["a/chess/seq-02", "a/chess/seq-10"]
    assert open_sequence(tmp_path / "b").name == "b"
    assert open_sequence(tmp_path / "b", "generic", name="mine").name == "mine"


def test_links_are_followed_but_not_in_circles(tmp_path):
    generic(tmp_path / "elsewhere" / "a")
    root = tmp_path / "root"
    for number in range(4):  # every path through these would be followed forty links deep
        (root / f"loop{number}").mkdir(parents=True)
        (root / f"loop{number}" / "up").symlink_to(root)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "twin").symlink_to(tmp_path / "elsewhere" / "a")
    assert [sequence.name for sequence in find_sequences(root)] == ["link/a"]


def test_what_is_no_sequence_says_what_was_looked_for(tmp_path):
    with pytest.raises(SequenceError, match=r"no known layout .generic, bonn, tum"):
        open_sequence(tmp_path)
    with pytest.raises(SequenceError, match="is not a folder"):
        open_sequence(tmp_path / "none")
    with pytest.raises(SequenceError, match=r"looked for the layouts tum$"):
        find_sequences(tmp_path, "tum")
    with pytest.raises(ValueError, match="layout must be one of generic"):
        open_sequence(tmp_path, "imagenet")
    with pytest.raises(SequenceError, match=r"rgb\.txt"):
        open_sequence(tmp_path, "tum")
    with pytest.raises(SequenceError, match="model_converter"):
        open_sequence(tmp_path, "colmap")
    with pytest.raises(SequenceError, match="has no frame"):
        open_sequence(tmp_path, "sintel")


def test_a_damaged_frame_names_its_file_and_leaves_the_others_readable(tmp_path):
    generic(tmp_path, num_frames=6)
    sequence = open_sequence(tmp_path)
    picture = (tmp_path / "rgb" / "000000.jpg").read_bytes()
    (tmp_path / "rgb" / "000000.jpg").write_bytes(picture[: len(picture) // 2])
    (tmp_path / "rgb" / "000001.jpg").unlink()
    (tmp_path / "rgb" / "000002.jpg").write_bytes(b"not a picture")
    write_picture(tmp_path / "rgb" / "000003.jpg", (48, 65))
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "depth" / "000004.png")
    reasons = ["000000.jpg: .*[Tt]runcated", "000001.jpg: .*No such file", "000002.jpg: .*cannot identify"]
    reasons += ["000003.jpg: 48 x 65 .* for 48 x 64", "000004.png: .* 16 bits, got uint8"]
    for i, reason in enumerate(reasons):
        with pytest.raises(SequenceError, match=reason):
            sequence[i]
    assert sequence[5].image.shape == (48, 64, 3)
    with pytest.raises(IndexError):
        sequence[6]


def test_lists_that_do_not_fit_are_refused_when_a_folder_is_opened(tmp_path):
    generic(tmp_path)
    write_rows(tmp_path / "timestamps.txt", [(1.0,)])
    with pytest.raises(SequenceError, match="not as many"):
        open_sequence(tmp_path)
    (tmp_path / "timestamps.txt").unlink()
    write_rows(tmp_path / "poses.txt", [2 * np.eye(3, 4).reshape(-1)] * 2)
    with pytest.raises(SequenceError, match="frame 0 is no rotation"):
        open_sequence(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"depth_scale": 0}))
    with pytest.raises(SequenceError, match="depth_scale must be above 0"):
        open_sequence(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(SequenceError, match=r"meta.json: needs K"):
        open_sequence(tmp_path)


def test_a_folder_with_a_stray_file_does_not_keep_the_others_from_being_found(tmp_path, caplog):
    generic(tmp_path / "good")
    scannet(tmp_path / "scene0000_00")
    write_picture(tmp_path / "scene0000_00" / "color" / "thumbnail.jpg", (96, 128))
    kitti(tmp_path / "kitti")
    (tmp_path / "kitti" / "sequences" / "07" / "calib.txt").write_text("P2:" + " x" * 12 + "\n")
    assert [sequence.name for sequence in find_sequences(tmp_path)] == ["good"]
    assert "scene0000_00: cannot be read" in caplog.text and "thumbnail" in caplog.text
    assert "sequences/07: cannot be read" in caplog.text


def test_tum_takes_the_camera_of_the_folder_name_and_drops_pictures_without_partner(tmp_path, caplog):
    tum(tmp_path / "rgbd_dataset_freiburg1_xyz")
    tum(tmp_path / "some")
    one, other = find_sequences(tmp_path)
    np.testing.assert_array_equal(one[0].intrinsics, [[517.3, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]])
    np.testing.assert_array_equal(other[0].intrinsics, [[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]])
    assert "some: no freiburg1, 2 or 3" in caplog.text
    assert [files.image.name for files in one.frames] == ["a.png", "b.png"]
    (tmp_path / "some" / "depth.txt").unlink()
    without_depth = open_sequence(tmp_path / "some")
    assert not without_depth.has_depth and len(without_depth) == 3 and without_depth[0].depth is None


def test_bonn_puts_points_where_its_page_does(tmp_path):
    folder = tmp_path / "rgbd_bonn_balloon"
    tum(folder)
    sequence = open_sequence(folder)
    assert sequence.layout == "bonn"
    frame = sequence[0]
    # The page: T = T_ROS^-1 T_i T_ROS T_m takes points of the camera, of depths value / 5000, to the world.
    t_ros = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    t_m = np.array(
        [
            [1.0157, 0.1828, -0.2389, 0.0113],
            [0.0009, -0.8431, -0.6413, -0.0098],
            [-0.3009, 0.6147, -0.8085, 0.0111],
            [0, 0, 0, 1],
        ]
    )
    in_camera = [(400 - 315.593520) / 542.822841 * 2, (300 - 237.756098) / 542.576870 * 2, 2, 1]
    expected = (np.linalg.inv(t_ros) @ LOOKING_ALONG_X @ t_ros @ t_m @ in_camera)[:3]
    points = unproject(frame.depth.astype(np.float64), frame.extrinsics, frame.intrinsics)
    np.testing.assert_allclose(points[300, 400], expected, atol=2e-3)  # the page's matrix has four digits
    np.testing.assert_allclose(frame.extrinsics[:, :3] @ frame.extrinsics[:, :3].T, np.eye(3), atol=1e-12)


def test_7scenes_depth_comes_along_the_rays_or_from_the_projected_files(tmp_path):
    folder = tmp_path / "seq-01"
    seven_scenes(folder)
    depth = open_sequence(folder)[0].depth
    assert depth[240, 320] == 1.0
    assert (depth[:, :33] == 0).all() and (depth[100:400, 33] == 1).all()  # (33 - 320) / 525 * 585 + 320 = 0.2
    for i in range(2):
        write_depth(folder / f"frame-{i:06d}.depth.proj.png", (480, 640), {(7, 5): 3000, (8, 5): 65535})
    depth = open_sequence(folder)[0].depth
    assert depth[5, 7] == 3.0 and depth[5, 8] == 0 and np.count_nonzero(depth) == 1


def test_depth_that_is_no_positive_number_is_unknown(tmp_path):
    sintel(tmp_path)
    (sequence,) = find_sequences(tmp_path)
    assert (sequence[0].depth[0, :4] == 0).all() and np.count_nonzero(sequence[0].depth) == 20 * 50 - 4


def test_depth_of_half_the_size_is_spread_to_the_nearest_pixels(tmp_path):
    generic(tmp_path, num_frames=1)
    write_depth(tmp_path / "depth" / "000000.png", (24, 32), {(3, 2): 500})
    depth = open_sequence(tmp_path)[0].depth
    assert sorted(zip(*np.nonzero(depth), strict=True)) == [(4, 6), (4, 7), (5, 6), (5, 7)]


def test_kitti_and_nyu_depth_come_without_poses(tmp_path):
    drive = "2011_09_26_drive_0002_sync_02"
    write_picture(tmp_path / "kitti" / "image_gathered" / drive / "0000000005.png", (37, 122))
    depth = tmp_path / "kitti" / "groundtruth_depth_gathered" / drive / "0000000005.png"
    write_depth(depth, (37, 122), {(100, 10): 640})
    write_picture(tmp_path / "nyu" / "val" / "nyu_images" / "00000.png", (48, 64))
    (tmp_path / "nyu" / "val" / "nyu_depths").mkdir()
    np.save(tmp_path / "nyu" / "val" / "nyu_depths" / "00000.npy", np.full((48, 64), 1.75))
    kitti_depth, nyu = find_sequences(tmp_path)
    assert (kitti_depth.layout, nyu.layout) == ("kitti_depth", "nyu")
    assert kitti_depth[0].depth[10, 100] == 2.5 and np.count_nonzero(kitti_depth[0].depth) == 1
    assert (nyu[0].depth == 1.75).all()
    for sequence in (kitti_depth, nyu):
        assert not sequence.has_poses
        assert np.isnan(sequence[0].extrinsics).all() and np.isnan(sequence[0].intrinsics).all()
    images, depth, valid, extrinsics, _ = load_frames(nyu, [0], (14, 28))
    assert images.shape == (1, 3, 14, 28) and valid.all() and (depth == 1.75).all() and extrinsics.isnan().all()


def test_colmap_distortion_is_ignored_with_one_warning_and_unknown_cameras_are_refused(tmp_path, caplog):
    colmap(tmp_path)
    cameras = tmp_path / "sparse" / "0" / "cameras.txt"
    write_rows(
        cameras, [(1, "SIMPLE_RADIAL", 64, 48, 90, 32, 24, 0.1), (3, "OPENCV", 64, 48, 80, 81, 30, 20, 0.1, 0, 0, 0)]
    )
    a, b = open_sequence(tmp_path)
    np.testing.assert_array_equal(a.intrinsics, [[80, 0, 29.5], [0, 81, 19.5], [0, 0, 1]])
    np.testing.assert_array_equal(b.intrinsics, [[90, 0, 31.5], [0, 90, 23.5], [0, 0, 1]])
    assert [record.message.count("distortion of OPENCV, SIMPLE_RADIAL") for record in caplog.records] == [1]
    write_rows(cameras, [(1, "FOV", 64, 48, 90, 90, 32, 24, 0.1)])
    with pytest.raises(SequenceError, match="cannot use the camera '1 FOV"):
        open_sequence(tmp_path)


def test_a_binary_colmap_model_is_left_out_with_the_way_to_write_text(tmp_path, caplog):
    for name in ("cameras.bin", "images.bin"):
        (tmp_path / "scan" / "sparse" / "0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "scan" / "sparse" / "0" / name).write_bytes(b"")
    with pytest.raises(SequenceError, match="no sequence"):
        find_sequences(tmp_path)
    assert "scan: needs cameras.txt" in caplog.text and "model_converter --output_type TXT" in caplog.text


def test_our_own_colmap_export_reads_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    rotations = np.linalg.qr(rng.normal(size=(4, 3, 3)))[0]
    rotations *= np.linalg.det(rotations)[:, None, None]
    extrinsics = np.concatenate([rotations, rng.normal(size=(4, 3, 1))], axis=-1).astype(np.float32)
    intrinsics = camera_matrix(70.25, 71.5, 31.25, 24)[:3, :3].astype(np.float32)
    cameras = [Camera(i, i / 2, pose, intrinsics, (48, 64)) for i, pose in enumerate(extrinsics)]
    nothing = PointCloud(
        np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32), np.zeros(0, np.int32)
    )
    for name, data in colmap_files(nothing, cameras).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for i in range(4):
        write_picture(tmp_path / "images" / f"frame_{i:06d}.png", (48, 64))
    sequence = open_sequence(tmp_path)
    assert sequence.layout == "colmap"
    np.testing.assert_allclose([frame.extrinsics for frame in sequence], extrinsics, atol=2e-6)
    np.testing.assert_allclose([frame.intrinsics for frame in sequence], [intrinsics] * 4, atol=1e-5)


def plane_sequence(root, k, hw=(120, 160)):
    """Frames before the plane z = 2 + x / 4 + y / 4 of the camera: red grows with x, green with y, blue alternates."""
    fx, fy, cx, cy = k
    x, y = np.meshgrid(np.arange(hw[1]), np.arange(hw[0]))
    depth = 2 / (1 - (x - cx) / fx / 4 - (y - cy) / fy / 4)
    generic(root, 1, k, hw, "png")
    Image.fromarray(np.stack([x, y, (x + y) % 2 * 255], axis=-1).astype(np.uint8)).save(root / "rgb" / "000000.png")
    Image.fromarray((depth * 10000).round().astype(np.uint16)).save(root / "depth" / "000000.png")
    meta = json.loads((root / "meta.json").read_text()) | {"depth_scale": 10000}
    (root / "meta.json").write_text(json.dumps(meta))
    return open_sequence(root)


@pytest.mark.parametrize("image_hw", [(56, 70), (42, 84), (112, 56), (168, 224)])
def test_cut_frames_keep_points_colours_and_cameras_together(image_hw, tmp_path):
    k = (140.0, 143.0, 75.2, 66.9)
    sequence = plane_sequence(tmp_path, k)
    images, depth, valid, extrinsics, intrinsics = load_frames(sequence, [0, -1], image_hw)
    height, width = image_hw
    assert images.shape == (2, 3, *image_hw) and images.dtype == torch.float32
    assert depth.shape == valid.shape == (2, *image_hw) and valid.all()
    np.testing.assert_array_equal(extrinsics[0], sequence[0].extrinsics.astype(np.float32))
    # The principal point lies where the network has it, and pixels stay as square as they were.
    np.testing.assert_allclose(intrinsics[0, :2, 2], (width / 2, height / 2), atol=1e-4)
    assert intrinsics[0, 0, 0] / intrinsics[0, 1, 1] == pytest.approx(140 / 143)

    # A pixel's ray, through the old intrinsics, leads to the place whose colour it has.
    new = intrinsics[0].double().numpy()
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ray_x, ray_y = (x - new[0, 2]) / new[0, 0], (y - new[1, 2]) / new[1, 1]
    source_x, source_y = ray_x * k[0] + k[2], ray_y * k[1] + k[3]
    assert source_x.min() >= -0.5 and source_x.max() <= 159.5 and source_y.min() >= -0.5 and source_y.max() <= 119.5
    inner = np.s_[4:-4, 4:-4]  # the filter runs over the border
    np.testing.assert_allclose(255 * images[0, 0].numpy()[inner], source_x[inner], atol=0.6)
    np.testing.assert_allclose(255 * images[0, 1].numpy()[inner], source_y[inner], atol=0.6)

    if k[0] / new[0, 0] > 1.5:  # squares of a pixel blend to grey
        np.testing.assert_allclose(255 * images[0, 2].numpy()[inner], 127.5, atol=25)

    # Depth is that of a pixel half a pixel away at most in both directions: the nearest one, unmixed.
    exact, half_a_pixel = 2 / (1 - ray_x / 4 - ray_y / 4), 0.5 / 140 / 4 + 0.5 / 143 / 4
    assert (np.abs(depth[0].numpy() / exact - 1) < half_a_pixel * exact / 2 + 1e-4).all()
    values = np.unique(np.asarray(Image.open(tmp_path / "depth" / "000000.png"))).astype(np.float32) / 10000
    assert np.isin(depth[0].numpy(), values).all()


def test_the_crop_around_the_principal_point_keeps_three_quarters_at_least(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        sequence = plane_sequence(tmp_path / "near", (100.0, 100.0, 69.5, 59.5))
        intrinsics = load_frames(sequence, [0], (60, 80))[4][0]
        load_frames(sequence, [0], (60, 80))
        load_frames(sequence, [0], (66, 88))  # clips of training are zoomed, each to its own size
    assert caplog.text.count("of the picture's area") == 1
    # 70 of 160 pixels are left of the principal point, for half of 80 pixels and half of one: 1.728 to a pixel, not 2.
    np.testing.assert_allclose(intrinsics.diagonal()[:2], 100 / (70 / 40.5), atol=1e-4)
    assert caplog.text.count("near: (60, 80) (h x w) keeps 75% of the picture's area") == 1
    intrinsics = load_frames(plane_sequence(tmp_path / "far", (100.0, 100.0, 19.5, 59.5)), [0], (60, 80))[4][0]
    np.testing.assert_allclose(intrinsics, [[100 / 1.5, 0, 20 / 1.5 - 0.5], [0, 100 / 1.5, 30], [0, 0, 1]], atol=1e-4)


def test_frames_without_depth_are_nowhere_valid(tmp_path):
    colmap(tmp_path)
    images, depth, valid, extrinsics, intrinsics = load_frames(open_sequence(tmp_path), (1, 0, 1), (28, 42))
    assert images.shape == (3, 3, 28, 42) and not valid.any() and not depth.any()
    assert extrinsics[:, 2, 3].tolist() == [-4, -1, -4] and intrinsics.shape == (3, 3, 3)


def test_the_natural_size_keeps_the_aspect_ratio(tmp_path):
    for name, hw, expected in (
        ("vga", (48, 64), (168, 224)),
        ("car", (37, 122), (70, 224)),
        ("tall", (64, 52), (280, 224)),
    ):
        generic(tmp_path / name, 1, hw=hw)
        assert natural_hw(open_sequence(tmp_path / name)) == expected
    assert natural_hw(open_sequence(tmp_path / "car"), 518) == (154, 518)
    assert natural_hw(open_sequence(tmp_path / "car"), 32, multiple=16) == (16, 32)


def test_a_sequence_travels_to_worker_processes(tmp_path):
    generic(tmp_path)
    sequence = pickle.loads(pickle.dumps(open_sequence(tmp_path)))
    assert sequence[0].depth[10, 50] == 3


def median_difference_of_warped_depth(sequence, source, target, image_hw):
    _, depth, valid, extrinsics, intrinsics = (x.numpy() for x in load_frames(sequence, [source, target], image_hw))
    points = unproject(depth[0], extrinsics[0], intrinsics[0])[valid[0]]
    xy, z = project(points, extrinsics[1], intrinsics[1])
    column, row = np.rint(xy).astype(int).T
    inside = (z > 0) & (column >= 0) & (column < image_hw[1]) & (row >= 0) & (row < image_hw[0])
    seen, z = depth[1][row[inside], column[inside]], z[inside]
    return np.median(np.abs(z[seen > 0] / seen[seen > 0] - 1)), np.mean(seen > 0)


@pytest.mark.parametrize(
    ("name", "step", "limit"), [("tum_fr1_rpy", 4, 0.03), ("tum_fr3_cabinet", 1, 0.02), ("kitti_odo_a", 4, 0.05)]
)
def test_real_depth_warped_into_another_frame_agrees(name, step, limit):
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not here; it lies in shared/data beside the repository")
    sequence = open_sequence(REAL / name)
    image_hw = natural_hw(sequence)
    starts = range(0, len(sequence) - step, len(sequence) // 6)
    results = [median_difference_of_warped_depth(sequence, i, i + step, image_hw) for i in starts]
    assert np.median([difference for difference, _ in results]) < limit
    assert np.median([overlap for _, overlap in results]) > 0.3


def test_every_real_folder_opens():
    if not REAL.is_dir():
        pytest.skip("shared/data is not beside the repository")
    lengths = {sequence.name: len(sequence) for sequence in find_sequences(REAL)}
    known = {"tum_fr1_rpy": 179, "tum_fr3_cabinet": 58, "kitti_odo_a": 51}
    known |= {"strecha_fountain_p11": 11, "strecha_herzjesus_p25": 25}
    assert lengths.items() >= known.items()
