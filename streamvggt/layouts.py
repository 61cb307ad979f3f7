"""How posed and RGB-D data sets lie on disk: one reader per layout, from a folder to a list of frames.

A reader looks at lists, poses and calibrations only; pictures are opened by :mod:`streamvggt.sequences`, frame by frame.
Whatever the data set's own conventions, a :class:`FrameFiles` has camera-to-world poses with OpenCV axes (x right,
y down, z forward) and intrinsics whose integer coordinates are pixel centres. Lens distortion is not modelled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import FloatArray

Matrix = NDArray[np.float64]


class SequenceError(ValueError):
    """A sequence folder or one of its frames cannot be read; the message names the file and what was looked for."""


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """Where one frame lies, and its camera.

    Attributes:
        image: the colour picture.
        depth: the depth map, or None.
        camera_to_world: ``[3, 4]``, OpenCV axes, units of the sequence; NaN where the data set has no poses.
        intrinsics: ``[3, 3]``, pixels of the picture; NaN where the data set has none.
        time_s: seconds since the first frame.
        depth_intrinsics: ``[3, 3]``, pixels of the depth map, where it comes from a camera of its own at (nearly) the
            same place; None for a map that covers the picture, whatever its size.
    """

    image: Path
    depth: Path | None
    camera_to_world: Matrix
    intrinsics: Matrix
    time_s: float
    depth_intrinsics: Matrix | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader returns: the frames in their order, and how to read a depth map (metres, 0 where unknown)."""

    frames: list[FrameFiles]
    read_depth: Callable[[Path], FloatArray]


def png_depth(path: Path, *, per_metre: float, invalid: int = 0) -> FloatArray:
    """Read a PNG of integers as metres ``[h, w]``; 0 and ``invalid`` are unknown."""
    from PIL import Image

    with Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise SequenceError(f"{path}: a depth map is a picture of integers [h, w], got {values.dtype} {values.shape}")
    depth = values.astype(np.float32) / np.float32(per_metre)
    depth[(values <= 0) | (values == invalid)] = 0
    return depth


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    """Build intrinsics ``[3, 3]``."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def numbers(path: Path, num_columns: int | None = None) -> Matrix:
    """Read a table of numbers, ``#`` starting a comment, as ``[rows, columns]``."""
    try:
        rows = [line.split("#")[0].split() for line in path.read_text().splitlines()]
        table = np.array([[float(value) for value in row] for row in rows if row], np.float64)
    except (OSError, ValueError) as error:
        raise SequenceError(f"{path}: not a readable table of numbers ({error})") from error
    if table.ndim != 2 or (num_columns is not None and table.shape[1] != num_columns):
        raise SequenceError(f"{path}: {num_columns or 'some'} numbers a line are needed, got {list(table.shape)}")
    return table


def read_generic(folder: Path) -> Listing:
    """Read ``rgb/NNNNNN.jpg``, ``depth/NNNNNN.png``, ``poses.txt`` (camera-to-world 3 x 4 a line) and ``meta.json``.

    ``meta.json`` holds ``K`` (fx, fy, cx, cy of the picture), ``depth_scale`` (units a metre, where there is depth) and
    ``fps`` or null (then a frame lasts one second); ``timestamps.txt`` with seconds a line is used where it exists.
    """
    poses = numbers(folder / "poses.txt", 12).reshape(-1, 3, 4)
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        intrinsics = pinhole(*meta["K"])
        per_metre = float(meta.get("depth_scale", 1000))
        times = np.arange(len(poses)) / float(meta.get("fps") or 1)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SequenceError(f'{folder / "meta.json"}: needs "K": [fx, fy, cx, cy] ({error!r})') from error
    if (folder / "timestamps.txt").is_file():
        times = numbers(folder / "timestamps.txt", 1)[:, 0]
        times = times - times[0]
    if len(times) != len(poses):
        raise SequenceError(f"{folder}: {len(poses)} poses but {len(times)} time stamps")
    has_depth = (folder / "depth").is_dir()
    suffix = "png" if (folder / "rgb" / "000000.png").is_file() else "jpg"
    frames = [
        FrameFiles(
            folder / "rgb" / f"{i:06d}.{suffix}",
            folder / "depth" / f"{i:06d}.png" if has_depth else None,
            pose,
            intrinsics,
            float(time_s),
        )
        for i, (pose, time_s) in enumerate(zip(poses, times, strict=True))
    ]
    return Listing(frames, partial(png_depth, per_metre=per_metre))


@dataclass(frozen=True)
class Layout:
    """A layout: how to know a folder of it, and how to read one."""

    matches: Callable[[Path], bool]
    read: Callable[[Path], Listing]


LAYOUTS = {
    "generic": Layout(
        lambda folder: (folder / "meta.json").is_file() and (folder / "poses.txt").is_file(), read_generic
    ),
}
