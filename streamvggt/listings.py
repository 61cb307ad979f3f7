"""What a folder of a posed or RGB-D data set boils down to, and the small readers that every layout needs.

A :class:`Listing` is the same for all layouts (:mod:`streamvggt.layouts`): camera-to-world poses with OpenCV axes (x
right, y down, z forward), intrinsics whose integer coordinates are pixel centres, metres where the data set has them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .types import FloatArray

Matrix = NDArray[np.float64]
Split = Literal["train", "test"]

_log = logging.getLogger(__name__)

_MAX_GAP_S = 0.02  # time between pictures that count as one, as in TUM's associate.py
_MAX_STRETCH = 0.02  # singular values of a pose's rotation may be off one by this much, for poses of few digits
_SINTEL_TAG = 202021.25


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
        image_hw: size of the picture that the intrinsics are for, where it is known.
        depth_intrinsics: ``[3, 3]``, pixels of the depth map, where it comes from a camera of its own at (nearly) the
            same place; None for a map that covers the picture, whatever its size.
    """

    image: Path
    depth: Path | None
    camera_to_world: Matrix
    intrinsics: Matrix
    time_s: float
    image_hw: tuple[int, int] | None = None
    depth_intrinsics: Matrix | None = None


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader returns.

    Attributes:
        frames: in the order of time; those without a finite pose are left out, unless none has one.
        read_depth: from a depth file to float32 ``[h, w]``, metres; 0, negative or not finite where unknown.
        split: the part of the data set that the sequence belongs to, where there is such a thing.
    """

    frames: list[FrameFiles]
    read_depth: Callable[[Path], FloatArray]
    split: Literal["train", "test"] | None = None


def make_listing(
    folder: Path,
    images: ListOf[Path],
    depths: ListOf[Path] | None,
    camera_to_world: Matrix,
    intrinsics: Matrix,
    times: NDArray[np.float64],
    read_depth: Callable[[Path], FloatArray],
    *,
    sizes: ListOf[tuple[int, int]] | None = None,
    depth_intrinsics: Matrix | None = None,
    split: Split | None = None,
) -> Listing:
    """Put frames together: those with a pose, rotations made exact, time counted from the first.

    Args:
        folder: what messages call the sequence.
        images: N pictures; ``depths``, ``times`` and ``sizes`` (height and width) are as many.
        depths: their depth maps, or None.
        camera_to_world: ``[N, 3, 4]`` or ``[N, 4, 4]``, OpenCV axes.
        intrinsics: ``[3, 3]`` for all, or ``[N, 3, 3]``.
        times: ``[N]`` seconds, from any beginning.
        read_depth, depth_intrinsics, split: as in :class:`Listing` and :class:`FrameFiles`.

    Raises:
        SequenceError: the lists differ in length, or a pose is no rigid motion.
    """
    lengths = [len(images), len(camera_to_world), len(times), len(images if depths is None else depths)]
    if len(set(lengths)) > 1:
        raise SequenceError(f"{folder}: pictures, poses, times and depth maps are {lengths}, not as many each")
    tracked = np.isfinite(camera_to_world[:, :3]).all((1, 2)) & np.isfinite(times)
    if not tracked.all():
        _log.info("%s: %d of %d frames have no pose and are left out", folder, (~tracked).sum(), len(tracked))
    keep = np.flatnonzero(tracked).tolist()
    poses = _rigid(camera_to_world[keep, :3], folder) if len(keep) else np.empty((0, 3, 4))
    every_intrinsics = np.broadcast_to(intrinsics, (len(images), 3, 3))
    frames = [
        FrameFiles(
            images[i],
            None if depths is None else depths[i],
            pose,
            every_intrinsics[i].copy(),
            float(times[i] - times[keep[0]]),
            None if sizes is None else sizes[i],
            depth_intrinsics,
        )
        for i, pose in zip(keep, poses, strict=True)
    ]
    return Listing(frames, read_depth, split)


def make_listing_without_poses(
    images: ListOf[Path], depths: ListOf[Path], read_depth: Callable[[Path], FloatArray], fps: float
) -> Listing:
    """Put frames together whose cameras nobody knows: poses and intrinsics are NaN.

    Raises:
        SequenceError: there are not as many depth maps as pictures.
    """
    if len(images) != len(depths):
        raise SequenceError(f"{len(images)} pictures like {images[:1]} but {len(depths)} depth maps like {depths[:1]}")
    unknown = np.full((3, 4), np.nan)
    return Listing(
        [
            FrameFiles(image, depth, unknown, unknown[:, :3], i / fps)
            for i, (image, depth) in enumerate(zip(images, depths, strict=True))
        ],
        read_depth,
    )


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    """Build intrinsics ``[3, 3]``, pixels."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def nearest(times: Matrix, others: Matrix) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Find for each time the nearest of the others (in rising order), and whether it is within 20 ms."""
    after = np.searchsorted(others, times).clip(1, max(1, len(others) - 1))
    before = np.minimum(after - 1, len(others) - 1)
    after = np.minimum(after, len(others) - 1)
    closest = np.where(times - others[before] <= others[after] - times, before, after)
    return closest, np.abs(others[closest] - times) <= _MAX_GAP_S


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        SequenceError: it is missing, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SequenceError(f"{path}: cannot be read ({error})") from error


def read_numbers(path: Path, num_columns: int) -> Matrix:
    """Read a table of numbers ``[rows, num_columns]``; ``#`` starts a comment.

    Raises:
        SequenceError: it is missing, empty, or something else.
    """
    rows = [line.split("#")[0].split() for line in read_text(path).splitlines()]
    try:
        table = np.array([[float(value) for value in row] for row in rows if row], np.float64)
    except ValueError as error:
        raise SequenceError(f"{path}: {num_columns} numbers a line are needed ({error})") from error
    if table.ndim != 2 or table.shape[1] != num_columns:
        raise SequenceError(f"{path}: {num_columns} numbers a line are needed, got a table of {list(table.shape)}")
    return table


def read_matrices(paths: Iterable[Path]) -> Matrix:
    """Read files of one 4 x 4 matrix each as ``[N, 4, 4]``.

    Raises:
        SequenceError: one is missing, or something else.
    """
    matrices = []
    for path in paths:
        matrices.append(read_numbers(path, 4))
        if len(matrices[-1]) != 4:
            raise SequenceError(f"{path}: a 4 x 4 matrix is needed, got {len(matrices[-1])} lines")
    return np.array(matrices).reshape(-1, 4, 4)


def read_timed_names(path: Path) -> tuple[Matrix, list[str]]:
    """Read lines of a time in seconds and a file name, sorted by time.

    Raises:
        SequenceError: it is missing, empty, or something else.
    """
    lines = (line.split(maxsplit=1) for line in read_text(path).splitlines() if not line.lstrip().startswith("#"))
    try:
        rows = sorted((float(fields[0]), fields[1].strip()) for fields in lines if fields)
    except (ValueError, IndexError) as error:
        raise SequenceError(f"{path}: a time and a file name a line are needed ({error})") from error
    if not rows:
        raise SequenceError(f"{path}: it lists no file")
    return np.array([time_s for time_s, _ in rows]), [name for _, name in rows]


def png_depth(path: Path, *, per_metre: float, invalid: int = 0) -> FloatArray:
    """Read a PNG of 16-bit integers as metres ``[h, w]``; 0 and ``invalid`` are unknown."""
    from PIL import Image

    with Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize < 2:
        raise SequenceError(f"{path}: a depth map is a grey picture of 16 bits, got {values.dtype} {values.shape}")
    depth = values.astype(np.float32) / np.float32(per_metre)
    depth[(values <= 0) | (values == invalid)] = 0
    return depth


def sintel_depth(path: Path) -> FloatArray:
    """Read a ``.dpt`` file as ``[h, w]``: tag, width and height (int32), then float32 row by row, little endian."""
    payload = _sintel_payload(path)
    width, height = payload[:8].view("<i4").tolist()
    if min(width, height) < 1 or len(payload) < 8 + 4 * width * height:
        raise SequenceError(f"{path}: too short for a depth map of {height} x {width}")
    return payload[8 : 8 + 4 * width * height].view("<f4").reshape(height, width).astype(np.float32)


def npy_depth(path: Path) -> FloatArray:
    """Read an ``.npy`` file of metres ``[h, w]``."""
    depth = np.load(path, allow_pickle=False)
    if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype.kind != "f":
        raise SequenceError(f"{path}: a depth map is an array of floats [h, w]")
    return depth.astype(np.float32)


def image_hw(path: Path) -> tuple[int, int]:
    """Read the height and width of a picture out of its header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise SequenceError(f"{path}: cannot be read ({error})") from error


def read_sintel_camera(path: Path) -> tuple[Matrix, Matrix]:
    """Read a ``.cam`` file: tag, intrinsics ``[3, 3]`` and world-to-camera ``[3, 4]`` as float64, little endian.

    Raises:
        SequenceError: it is missing, too short, or has another tag.
    """
    try:
        values = _sintel_payload(path, num_bytes=21 * 8).view("<f8").astype(np.float64)
    except OSError as error:
        raise SequenceError(f"{path}: cannot be read ({error})") from error
    return values[:9].reshape(3, 3), values[9:].reshape(3, 4)


def _sintel_payload(path: Path, num_bytes: int | None = None) -> NDArray[np.uint8]:
    data = np.fromfile(path, np.uint8)
    if len(data) < 12 or data[:4].view("<f4")[0] != np.float32(_SINTEL_TAG):
        raise SequenceError(f"{path}: does not start with the tag {_SINTEL_TAG} of Sintel's files")
    payload = data[4:] if num_bytes is None else data[4 : 4 + num_bytes]
    if num_bytes is not None and len(payload) < num_bytes:
        raise SequenceError(f"{path}: {num_bytes} bytes are needed after the tag, got {len(payload)}")
    return payload


def _rigid(poses: Matrix, folder: Path) -> Matrix:
    """Replace the rotations of ``[N, 3, 4]`` by the closest exact ones."""
    u, stretch, vt = np.linalg.svd(poses[..., :3])
    bad = (np.abs(stretch - 1).max(-1) > _MAX_STRETCH) | (np.linalg.det(poses[..., :3]) < 0)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise SequenceError(f"{folder}: the pose of frame {i} is no rotation and translation: {poses[i].tolist()}")
    return np.concatenate([u @ vt, poses[..., 3:]], axis=-1)
