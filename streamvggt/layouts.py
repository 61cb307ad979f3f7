"""How posed and RGB-D data sets lie on disk: one reader per layout, from a folder to a :class:`Listing`.

Readers look at lists, poses and calibrations only; :mod:`streamvggt.sequences` opens the pictures, frame by frame. Lens
distortion is ignored: that of TUM's freiburg1 and freiburg2 and of Bonn moves points by a few pixels at the border.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .colmap import colmap_model, read_colmap
from .geometry import invert_pose, quaternion_to_matrix
from .listings import (
    Listing,
    Matrix,
    SequenceError,
    Split,
    image_hw,
    make_listing,
    make_listing_without_poses,
    nearest,
    npy_depth,
    pinhole,
    png_depth,
    read_matrices,
    read_numbers,
    read_sintel_camera,
    read_text,
    read_timed_names,
    sintel_depth,
)

_log = logging.getLogger(__name__)

_KINECT_HW = (480, 640)
_FLIP_Y_Z = np.array([1.0, -1, -1, 1])  # columns of a camera-to-world pose, from OpenGL to OpenCV axes

# fx, fy, cx, cy: TUM RGB-D benchmark, "Intrinsic Camera Calibration of the Kinect"; the colour cameras.
_TUM_CAMERAS = {
    "1": (517.3, 516.5, 318.6, 255.3),
    "2": (520.9, 521.0, 325.1, 249.7),
    "3": (535.4, 539.2, 320.1, 247.6),
    None: (525.0, 525.0, 319.5, 239.5),
}
_BONN_CAMERA = (542.822841, 542.576870, 315.593520, 237.756098)
# Bonn: pose of the sensor = ros^-1 @ (motion capture's pose) @ ros @ sensor. The sensor's matrix has a scale, by which
# depths grow to the metres of the motion capture.
_BONN_ROS = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_BONN_SENSOR = np.array(
    [
        [1.0157, 0.1828, -0.2389, 0.0113],
        [0.0009, -0.8431, -0.6413, -0.0098],
        [-0.3009, 0.6147, -0.8085, 0.0111],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclass(frozen=True)
class Layout:
    """A layout: how to know a folder of it, and how to read one."""

    matches: Callable[[Path], bool]
    read: Callable[[Path], Listing]


def read_generic(folder: Path) -> Listing:
    """Read ``rgb/NNNNNN.jpg`` (or png), ``depth/NNNNNN.png``, ``poses.txt`` and ``meta.json``.

    ``poses.txt`` has one camera-to-world matrix 3 x 4 a line, row by row. ``meta.json`` holds ``K`` (fx, fy, cx, cy of
    the picture), ``depth_scale`` (depth units a metre, where there is depth) and may hold ``rgb_size`` (the width and
    height that the pictures must have) and ``fps``; without it, or with null, a frame lasts one second.
    ``timestamps.txt``, seconds a line, goes before ``fps``.
    """
    poses = read_numbers(folder / "poses.txt", 12).reshape(-1, 3, 4)
    has_depth = (folder / "depth").is_dir()
    try:
        meta: dict[str, Any] = json.loads(read_text(folder / "meta.json"))
        intrinsics = pinhole(*meta["K"])
        per_metre = float(meta["depth_scale"]) if has_depth else 1.0
        if not per_metre > 0:
            raise ValueError(f"depth_scale must be above 0, got {per_metre}")
        times = np.arange(len(poses)) / float(meta.get("fps") or 1)
        width, height = meta.get("rgb_size", (None, None))
    except (ValueError, TypeError, KeyError) as error:
        needs = "needs K: [fx, fy, cx, cy] and, with depth, depth_scale"
        raise SequenceError(f"{folder / 'meta.json'}: {needs} ({error!r})") from error
    if (folder / "timestamps.txt").is_file():
        times = read_numbers(folder / "timestamps.txt", 1)[:, 0]
    names = [f"{i:06d}" for i in range(len(poses))]
    suffix = "png" if (folder / "rgb" / "000000.png").is_file() else "jpg"
    return make_listing(
        folder,
        [folder / "rgb" / f"{name}.{suffix}" for name in names],
        [folder / "depth" / f"{name}.png" for name in names] if has_depth else None,
        poses,
        intrinsics,
        times,
        partial(png_depth, per_metre=per_metre),
        sizes=[(height, width)] * len(poses) if height else None,
    )


def read_tum(folder: Path) -> Listing:
    """Read a sequence of the TUM RGB-D benchmark: ``rgb.txt``, ``depth.txt``, ``groundtruth.txt``.

    A picture takes the depth map and the pose that are nearest in time; pictures without both within 20 ms are left
    out. The intrinsics are the published ones of freiburg1, 2 or 3, found in the folder's name, else the default.
    Source: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012; web page "File Formats".
    """
    number = re.search(r"(?:freiburg|fr)_?([123])", folder.resolve().name)
    if number is None:
        _log.warning("%s: no freiburg1, 2 or 3 in the name, so the default intrinsics (525) are used", folder)
    return _read_tum_files(folder, _TUM_CAMERAS[number[1] if number else None], np.eye(4), np.eye(4), 5000)


def read_bonn(folder: Path) -> Listing:
    """Read a sequence of the Bonn RGB-D dynamic data set: the files of TUM, another camera, poses of markers.

    ``groundtruth.txt`` has the pose of the markers on the sensor. The data set's page gives the way to the camera, by a
    matrix with a scale of 1.059: the poses here are rigid and the depth takes that scale, so that both are metres of
    the motion capture. Evaluations that take the file's poses for the camera's have another trajectory by centimetres.
    Source: Palazzolo et al., "ReFusion", IROS 2019; web page of the data set.
    """
    scale = float(np.cbrt(np.linalg.det(_BONN_SENSOR[:3, :3])))
    sensor = _BONN_SENSOR / [scale, scale, scale, 1]
    return _read_tum_files(folder, _BONN_CAMERA, np.linalg.inv(_BONN_ROS), _BONN_ROS @ sensor, 5000 / scale)


def _read_tum_files(
    folder: Path, camera: tuple[float, float, float, float], before: Matrix, after: Matrix, per_metre: float
) -> Listing:
    times, images = read_timed_names(folder / "rgb.txt")
    track = read_numbers(folder / "groundtruth.txt", 8)
    track = track[np.argsort(track[:, 0], kind="stable")]
    at, keep = nearest(times, track[:, 0])
    depths = None
    if (folder / "depth.txt").is_file():
        depth_times, depth_files = read_timed_names(folder / "depth.txt")
        depth_at, has_depth = nearest(times, depth_times)
        depths, keep = [folder / depth_files[i] for i in depth_at], keep & has_depth
        depths = [depth for depth, kept in zip(depths, keep, strict=True) if kept]
    if not keep.any():
        raise SequenceError(f"{folder}: no picture of rgb.txt has depth and pose within 20 ms")
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, :3, :3] = quaternion_to_matrix(torch.from_numpy(track[at, 4:])).numpy()
    poses[:, :3, 3] = track[at, 1:4]
    return make_listing(
        folder,
        [folder / name for name, kept in zip(images, keep, strict=True) if kept],
        depths,
        (before @ poses @ after)[keep],
        pinhole(*camera),
        times[keep],
        partial(png_depth, per_metre=per_metre),
        sizes=[_KINECT_HW] * int(keep.sum()),
    )


def read_7scenes(folder: Path) -> Listing:
    """Read a ``seq-NN`` of 7-Scenes: ``frame-NNNNNN.color.png``, ``.depth.png`` (mm, 65535 invalid), ``.pose.txt``.

    The colour camera's focal length is 525; depth comes from a camera with 585 (the figure on the data set's page) and
    is brought to the colour picture along the rays, leaving out the 2.5 cm and half a degree between the two. Where
    there is ``.depth.proj.png``, depth already projected into the colour camera, it is used instead: the published
    tables are computed with these files. ``TrainSplit.txt`` and ``TestSplit.txt`` above the folder give the split.
    Source: Shotton et al., "Scene Coordinate Regression Forests", CVPR 2013; Brachmann et al., "On the Limits of Pseudo
    Ground Truth", ICCV 2021 (525 for colour); projected depth: SimpleRecon's preparation, used by Spann3R and CUT3R.
    """
    images = sorted(folder.glob("frame-*.color.png"))
    stems = [image.name.removesuffix(".color.png") for image in images]
    projected = bool(stems) and (folder / f"{stems[0]}.depth.proj.png").is_file()
    kind = "depth.proj.png" if projected else "depth.png"
    return make_listing(
        folder,
        images,
        [folder / f"{stem}.{kind}" for stem in stems],
        read_matrices(folder / f"{stem}.pose.txt" for stem in stems),
        pinhole(525, 525, 320, 240),
        np.arange(len(images)) / 30,
        partial(png_depth, per_metre=1000, invalid=65535),
        sizes=[_KINECT_HW] * len(images),
        depth_intrinsics=None if projected else pinhole(585, 585, 320, 240),
        split=_split_of(folder),
    )


def _split_of(folder: Path) -> Split | None:
    number = re.search(r"\d+$", folder.resolve().name)
    splits: tuple[Split, Split] = ("train", "test")
    for split in splits:
        path = folder.resolve().parent / f"{split.title()}Split.txt"
        if number and path.is_file() and int(number[0]) in map(int, re.findall(r"sequence\s*(\d+)", read_text(path))):
            return split
    return None


def read_nrgbd(folder: Path) -> Listing:
    """Read a scene of Neural RGB-D: ``images/img0.png``, ``depth/depth0.png`` (mm), ``poses.txt``, ``focal.txt``.

    ``poses.txt`` has four lines a frame, camera-to-world with OpenGL axes (y up, z back), NaN where there is none.
    Source: Azinović et al., "Neural RGB-D Surface Reconstruction", CVPR 2022, and its loader.
    """
    poses = read_numbers(folder / "poses.txt", 4)
    images = [folder / "images" / f"img{i}.png" for i in range(len(poses) // 4)]
    focal = float(read_numbers(folder / "focal.txt", 1)[0, 0])
    size = image_hw(images[0]) if images else _KINECT_HW
    return make_listing(
        folder,
        images,
        [folder / "depth" / f"depth{i}.png" for i in range(len(images))],
        poses[: 4 * len(images)].reshape(-1, 4, 4) * _FLIP_Y_Z,
        pinhole(focal, focal, size[1] / 2, size[0] / 2),
        np.arange(len(images)) / 30,
        partial(png_depth, per_metre=1000),
        sizes=[size] * len(images),
    )


def read_scannet(folder: Path) -> Listing:
    """Read an unpacked scene of ScanNet: ``color/N.jpg``, ``depth/N.png`` (mm), ``pose/N.txt``, ``intrinsic/``.

    Depth is smaller than colour and has intrinsics of its own; both cameras are at the same place. Frames that were not
    tracked have infinite poses and are left out. Source: Dai et al., "ScanNet", CVPR 2017; its SensReader; issues 2 and
    92 of its repository (colour and depth are aligned).
    """
    images = sorted((folder / "color").glob("*.jpg"), key=lambda path: int(path.stem))
    depth_camera = folder / "intrinsic" / "intrinsic_depth.txt"
    return make_listing(
        folder,
        images,
        [folder / "depth" / f"{image.stem}.png" for image in images] if (folder / "depth").is_dir() else None,
        read_matrices(folder / "pose" / f"{image.stem}.txt" for image in images),
        read_numbers(folder / "intrinsic" / "intrinsic_color.txt", 4)[:3, :3],
        np.array([int(image.stem) for image in images]) / 30,
        partial(png_depth, per_metre=1000),
        depth_intrinsics=read_numbers(depth_camera, 4)[:3, :3] if depth_camera.is_file() else None,
    )


def read_kitti(folder: Path) -> Listing:
    """Read a sequence of KITTI odometry, ``sequences/NN`` with ``image_2``, ``calib.txt``, ``times.txt``; no depth.

    ``poses/NN.txt``, beside ``sequences``, has the poses of camera 0; ``P2`` of the calibration leads to the colour
    camera 2, 6 cm beside it. Source: Geiger et al., "Are we ready for Autonomous Driving?", CVPR 2012; its readme.
    """
    folder = folder.resolve()
    poses = read_numbers(folder.parent.parent / "poses" / f"{folder.name}.txt", 12).reshape(-1, 3, 4)
    projection = re.search(r"^P2:(.*)$", read_text(folder / "calib.txt"), re.MULTILINE)
    if projection is None or len(projection[1].split()) != 12:
        raise SequenceError(f"{folder / 'calib.txt'}: needs a line P2: with 12 numbers")
    p2 = np.array(projection[1].split(), np.float64).reshape(3, 4)
    camera_2 = np.concatenate([np.eye(3), np.linalg.solve(p2[:, :3], p2[:, 3:])], axis=1)
    camera_2_to_0 = np.vstack([invert_pose(camera_2), [0, 0, 0, 1]])
    times = np.arange(len(poses)) / 10
    if (folder / "times.txt").is_file():
        times = read_numbers(folder / "times.txt", 1)[:, 0]
    images = [folder / "image_2" / f"{i:06d}.png" for i in range(len(poses))]
    return make_listing(folder, images, None, poses @ camera_2_to_0, p2[:, :3], times, npy_depth)


def read_kitti_depth(folder: Path) -> Listing:
    """Read a drive of ``image_gathered``, with ``groundtruth_depth_gathered`` beside it: depth without poses.

    The layout into which the video-depth evaluations since MonST3R gather KITTI's validation drives, below
    ``depth_selection/val_selection_cropped``. Files go together by their order; depth is value / 256, 0 unknown. There
    are neither poses nor intrinsics. Source: Uhrig et al., "Sparsity Invariant CNNs", 3DV 2017; MonST3R's preparation.
    """
    folder = folder.resolve()
    beside = folder.parent.parent / folder.parent.name.replace("image", "groundtruth_depth", 1) / folder.name
    return make_listing_without_poses(
        sorted(folder.glob("*.png")), sorted(beside.glob("*.png")), partial(png_depth, per_metre=256), 10
    )


def read_nyu(folder: Path) -> Listing:
    """Read ``nyu_images/*.png`` and ``nyu_depths/*.npy`` (metres): single pictures with depth, without poses.

    The layout into which evaluations since MonST3R and CUT3R unpack the 654 test pictures of NYU Depth v2 (Silberman et
    al., ECCV 2012), which is published as one MATLAB file. It has no intrinsics.
    """
    images, depths = sorted((folder / "nyu_images").glob("*.png")), sorted((folder / "nyu_depths").glob("*.npy"))
    return make_listing_without_poses(images, depths, npy_depth, 1)


def read_sintel(folder: Path) -> Listing:
    """Read ``training/final/NAME/frame_NNNN.png`` of MPI Sintel, with depth and cameras of its depth extension.

    Depth ``training/depth/NAME/frame_NNNN.dpt``, cameras ``training/camdata_left/NAME/frame_NNNN.cam``: tag, intrinsics
    3 x 3, world-to-camera 3 x 4, float64. Source: Butler et al., ECCV 2012; readme of "MPI Sintel depth training data".
    """
    folder = folder.resolve()
    training, images = folder.parent.parent, sorted(folder.glob("frame_*.png"))
    cameras = [read_sintel_camera(training / "camdata_left" / folder.name / f"{image.stem}.cam") for image in images]
    depth = training / "depth" / folder.name
    return make_listing(
        folder,
        images,
        [depth / f"{image.stem}.dpt" for image in images] if depth.is_dir() else None,
        invert_pose(np.array([pose for _, pose in cameras]).reshape(-1, 3, 4)),
        np.array([intrinsics for intrinsics, _ in cameras]).reshape(-1, 3, 3),
        np.arange(len(images)) / 24,
        sintel_depth,
    )


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).exists() for name in names)


# The first that matches a folder is taken.
LAYOUTS = {
    "generic": Layout(_has("meta.json", "poses.txt", "rgb"), read_generic),
    "bonn": Layout(
        lambda folder: "rgbd_bonn" in folder.resolve().name and _has("rgb.txt", "groundtruth.txt")(folder), read_bonn
    ),
    "tum": Layout(_has("rgb.txt", "groundtruth.txt"), read_tum),
    "7scenes": Layout(_has("frame-000000.color.png"), read_7scenes),
    "nrgbd": Layout(_has("images", "poses.txt", "focal.txt"), read_nrgbd),
    "scannet": Layout(_has("color", "pose", "intrinsic"), read_scannet),
    "kitti": Layout(_has("image_2", "calib.txt"), read_kitti),
    "kitti_depth": Layout(lambda folder: folder.resolve().parent.name.startswith("image_gathered"), read_kitti_depth),
    "nyu": Layout(_has("nyu_images", "nyu_depths"), read_nyu),
    "sintel": Layout(
        lambda folder: folder.resolve().parent.name == "final" and _has("frame_0001.png")(folder), read_sintel
    ),
    # Binary models are taken for what they are, so that the reader can say how to write text.
    "colmap": Layout(lambda folder: any(colmap_model(folder, suffix) for suffix in ("txt", "bin")), read_colmap),
}
"""Readers by the name of their layout."""
