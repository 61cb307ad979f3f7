"""Turn points and cameras into the bytes of files that other programs read: PLY, COLMAP, TUM, NPZ.

The scale of every file is relative: the first frame sets it. The world is the first camera's frame in OpenCV axes
(x right, y down, z forward). GLB has a module of its own.
"""

from __future__ import annotations

import io
import math
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from streamvggt.geometry import invert_pose, matrix_to_quaternion
from streamvggt.types import FramePrediction, PointCloud, PosedCamera, required

SCALE_NOTE = "The scale is relative: the first frame sets it."
"""What every file says about its unit."""

_WORLD_NOTE = "The world is the first camera's frame in OpenCV axes: x right, y down, z forward."

_PLY_PROPERTIES = {
    "x": ("float", "<f4"),
    "y": ("float", "<f4"),
    "z": ("float", "<f4"),
    "red": ("uchar", "u1"),
    "green": ("uchar", "u1"),
    "blue": ("uchar", "u1"),
    "confidence": ("float", "<f4"),
    "frame": ("int", "<i4"),
}

_NPZ_NAMES = (
    "index",
    "time_s",
    "depth",
    "depth_conf",
    "world_points",
    "world_points_conf",
    "extrinsics",
    "intrinsics",
)

_COLMAP_PINHOLE = 1
_COLMAP_CAMERA = np.dtype([("id", "<u4"), ("model", "<i4"), ("size_wh", "<u8", 2), ("fx_fy_cx_cy", "<f8", 4)])
# The last field is the length of the track, which no point has.
_COLMAP_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])


def ply_bytes(cloud: PointCloud) -> bytes:
    """Write points as a binary little endian PLY file.

    A vertex has ``x y z`` (float), ``red green blue`` (uchar, sRGB), ``confidence`` (float) and ``frame`` (int).

    Raises:
        ValueError: a point is not finite.
    """
    require_finite_points(cloud)
    vertices = np.empty(len(cloud), [(name, dtype) for name, (_, dtype) in _PLY_PROPERTIES.items()])
    columns = (*cloud.points.T, *cloud.colors.T, cloud.confidence, cloud.frame_index)
    for name, values in zip(_PLY_PROPERTIES, columns, strict=True):
        vertices[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"comment {SCALE_NOTE}", f"comment {_WORLD_NOTE}"]
    header += [f"element vertex {len(cloud)}"]
    header += [f"property {kind} {name}" for name, (kind, _) in _PLY_PROPERTIES.items()]
    return "\n".join([*header, "end_header\n"]).encode() + vertices.tobytes()


def colmap_files(
    cloud: PointCloud, cameras: Sequence[PosedCamera], *, names: Sequence[str] | None = None
) -> dict[str, bytes]:
    """Write points and cameras as a COLMAP sparse model, in its binary and in its text format.

    Every frame is one image with its own PINHOLE camera. Points have neither error (-1) nor track: none is linked to a
    pixel, so COLMAP's viewer shows them only with a minimum track length of 0. COLMAP puts the centre of the first
    pixel at (0.5, 0.5), so the principal point moves by half a pixel. A million points make 51 MB of binary and some
    60 MB of text; ``PointFilter.max_points`` limits them.

    Args:
        cloud: the points; ids count from 1 in their order.
        cameras: one per frame; image and camera ids count from 1 in their order.
        names: names of the image files, which must be the processed images (of ``image_hw``); None takes
            ``frame_000000.png`` and so on, by the frame's number.

    Returns:
        File contents by path: ``sparse/0/`` with ``cameras``, ``images`` and ``points3D``, each ``.bin`` and ``.txt``.

    Raises:
        ValueError: there is no camera; a point or camera is not finite; names are not one per camera, repeat, or
            contain white space, which the text format cannot hold.

    Source: COLMAP documentation, "Output Format".
    """
    require_finite_points(cloud)
    extrinsics, intrinsics = camera_arrays(cameras)
    names = [f"frame_{camera.index:06d}.png" for camera in cameras] if names is None else list(names)
    if len(names) != len(cameras) or len(set(names)) != len(names) or any(name.split() != [name] for name in names):
        raise ValueError(
            f"names must be {len(cameras)} different file names without white space, one per camera, got {len(names)}: "
            f"{names[:5]}; rename the images, or leave names out"
        )
    ids = range(1, len(cameras) + 1)
    lenses = np.zeros(len(cameras), _COLMAP_CAMERA)
    lenses["id"], lenses["model"] = ids, _COLMAP_PINHOLE
    lenses["size_wh"] = [camera.image_hw[::-1] for camera in cameras]
    lenses["fx_fy_cx_cy"] = intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] + [0, 0, 0.5, 0.5]
    poses = np.concatenate([_quaternions_xyzw(extrinsics)[:, [3, 0, 1, 2]], extrinsics[..., 3]], axis=-1).tolist()
    images = list(zip(ids, poses, names, strict=True))
    points = np.zeros(len(cloud), _COLMAP_POINT)
    points["id"] = np.arange(1, len(cloud) + 1)
    points["xyz"], points["rgb"], points["error"] = cloud.points, cloud.colors, -1
    files = _colmap_binary(lenses, images, points) | _colmap_text(lenses, images, points)
    return {f"sparse/0/{name}": data for name, data in files.items()}


def _colmap_binary(
    lenses: NDArray[np.void], images: list[tuple[int, list[float], str]], points: NDArray[np.void]
) -> dict[str, bytes]:
    num_frames = struct.pack("<Q", len(lenses))
    # The last eight bytes count the image's points.
    records = [struct.pack("<I7dI", i, *pose, i) + name.encode() + b"\0" + bytes(8) for i, pose, name in images]
    return {
        "cameras.bin": num_frames + lenses.tobytes(),
        "images.bin": num_frames + b"".join(records),
        "points3D.bin": struct.pack("<Q", len(points)) + points.tobytes(),
    }


def _colmap_text(
    lenses: NDArray[np.void], images: list[tuple[int, list[float], str]], points: NDArray[np.void]
) -> dict[str, bytes]:
    sizes_and_params = zip(lenses["size_wh"].tolist(), lenses["fx_fy_cx_cy"].tolist(), strict=True)
    columns = (points["id"], *points["xyz"].T, *points["rgb"].T)
    lines = {
        "cameras.txt": ["# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"],
        "images.txt": ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME; the line after it is for 2D points, here none"],
        "points3D.txt": ["# POINT3D_ID X Y Z R G B ERROR; no track"],
    }
    for (i, pose, name), (size_wh, params) in zip(images, sizes_and_params, strict=True):
        lines["cameras.txt"].append(f"{i} PINHOLE {' '.join(map(str, size_wh + params))}")
        lines["images.txt"].append(f"{i} {' '.join(map(str, pose))} {i} {name}\n")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    # Nine digits hold a float32 exactly.
    lines["points3D.txt"] += [f"{i} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} -1" for i, x, y, z, r, g, b in rows]
    notes = [f"# {SCALE_NOTE}", f"# {_WORLD_NOTE}"]
    return {name: ("\n".join(notes + content) + "\n").encode() for name, content in lines.items()}


def tum_trajectory(cameras: Sequence[PosedCamera]) -> str:
    """Write the camera path as text in the format of the TUM RGB-D benchmark.

    One line a frame: ``timestamp tx ty tz qx qy qz qw``, time in seconds, camera-to-world; lines of ``#`` say so.

    Raises:
        ValueError: there is no camera, or one is not finite.
    """
    camera_to_world = invert_pose(camera_arrays(cameras)[0])
    numbers = np.concatenate([camera_to_world[..., 3], _quaternions_xyzw(camera_to_world)], axis=-1).tolist()
    lines = [f"# {SCALE_NOTE}", f"# {_WORLD_NOTE}", "# camera-to-world: timestamp tx ty tz qx qy qz qw"]
    for camera, row in zip(cameras, numbers, strict=True):
        lines.append(" ".join([f"{camera.time_s:.6f}", *(f"{number:.9g}" for number in row)]))
    return "\n".join(lines) + "\n"


def npz_bytes(predictions: Sequence[FramePrediction]) -> bytes:
    """Write raw predictions as a NumPy archive, one array per quantity with the frames along its first axis.

    The names are those of :class:`FramePrediction`, but ``images`` for ``image``; ``tracks`` ``[S, N, 2]`` and
    ``track_visibility`` ``[S, N]`` are there where a frame has them, NaN before a query came up; what no frame has is
    left out. ``readme`` tells the conventions. ``np.load(file, allow_pickle=False)`` opens it. It is not compressed:
    float noise hardly shrinks.

    Raises:
        ValueError: there is no prediction, the images differ in size, or some frames lack what others have.
    """
    if not predictions:
        raise ValueError("an archive needs at least one prediction, got none")
    sizes = {prediction.image_hw for prediction in predictions}
    if len(sizes) > 1:
        raise ValueError(f"predictions must share one height and width, got {sorted(sizes)}; write one file per size")
    arrays = {}
    for name in _NPZ_NAMES:
        values = [getattr(prediction, name) for prediction in predictions]
        lacking = sum(value is None for value in values)
        if lacking == 0:
            arrays[name] = np.stack(values)
        elif lacking < len(values):
            raise ValueError(
                f"{lacking} of {len(values)} predictions have no {name}; write them to a file of their own"
            )
    arrays["images"] = np.stack([prediction.image for prediction in predictions])
    for name, tail in (("tracks", (2,)), ("track_visibility", ())):
        values = [getattr(prediction, name) for prediction in predictions]
        if any(value is not None for value in values):
            num_points = max(len(value) for value in values if value is not None)
            arrays[name] = np.full((len(values), num_points, *tail), np.nan, np.float32)
            for row, value in zip(arrays[name], values, strict=True):
                if value is not None:
                    row[: len(value)] = value
    arrays["readme"] = np.array(
        [
            SCALE_NOTE,
            _WORLD_NOTE,
            "extrinsics: world-to-camera [3, 4]; intrinsics: pixels, integer coordinates are pixel centres.",
            "depth: z in the camera; world_points: world; confidence >= 1; images: sRGB; tracks: xy in pixels.",
        ]
    )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one and never a part.

    Missing folders are made. The data goes to a temporary file beside ``path``, which takes its place at the end and is
    removed if anything fails.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are private to the user, and this one would stay so.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_finite_points(cloud: PointCloud) -> None:
    """Raise ValueError for a cloud with a position or confidence that no file can hold."""
    finite = np.isfinite(cloud.points).all(axis=-1) & np.isfinite(cloud.confidence)
    if not finite.all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {len(cloud)} points have a position or confidence that is not finite; "
            "drop them, as Scene.point_cloud does"
        )


def camera_arrays(cameras: Sequence[PosedCamera]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Stack the cameras' extrinsics ``[S, 3, 4]`` and intrinsics ``[S, 3, 3]``; ValueError where one is not finite."""
    if not cameras:
        raise ValueError("cameras must have at least one camera, got none")
    for camera in cameras:
        required(camera.extrinsics, "camera")  # a FramePrediction may be without
        if not (np.isfinite(camera.extrinsics).all() and np.isfinite(camera.intrinsics).all()):
            raise ValueError(f"the camera of frame {camera.index} is not finite; leave this frame out")
        if not (camera.intrinsics[0, 0] > 0 and camera.intrinsics[1, 1] > 0 and math.isfinite(camera.time_s)):
            raise ValueError(
                f"the camera of frame {camera.index} needs positive focal lengths and a finite time, "
                f"got {camera.intrinsics[0, 0]}, {camera.intrinsics[1, 1]} pixels and {camera.time_s} s; leave it out"
            )
    extrinsics = np.stack([camera.extrinsics for camera in cameras]).astype(np.float64)
    return extrinsics, np.stack([camera.intrinsics for camera in cameras]).astype(np.float64)


def _quaternions_xyzw(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix_to_quaternion(torch.from_numpy(poses[..., :3])).numpy()
