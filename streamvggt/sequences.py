"""Real sequences from folders: pictures with camera poses and, mostly, depth, read frame by frame.

:func:`open_sequence` and :func:`find_sequences` know the usual layouts by their files (:mod:`streamvggt.layouts`);
:func:`load_frames` cuts frames to what the network takes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import invert_pose
from .layouts import LAYOUTS, Layout
from .listings import FrameFiles, SequenceError, image_hw
from .types import ByteArray, FloatArray

__all__ = ["PosedFrame", "Sequence", "SequenceError", "find_sequences", "load_frames", "natural_hw", "open_sequence"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_told: set[Path] = set()  # folders of which it has been said how much of a picture is left

_MIN_KEPT = 0.75  # centring the principal point may cost a quarter of the covering crop's width, and no more


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """A picture with its camera.

    Attributes:
        image: RGB, uint8 ``[h, w, 3]``.
        depth: float32 ``[h, w]``, z in the camera, metres, 0 where unknown; None if the sequence has no depth.
        extrinsics: float64 ``[3, 4]``, world-to-camera, OpenCV axes, in the world of the sequence; NaN if it has no
            poses.
        intrinsics: float64 ``[3, 3]``, pixels of ``image``; integer coordinates are pixel centres.
        time_s: seconds since the first frame.
    """

    image: ByteArray
    depth: FloatArray | None
    extrinsics: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    time_s: float


class Sequence:
    """Frames of one folder, each read when it is asked for: ``len(sequence)``, ``sequence[i] -> PosedFrame``.

    Attributes:
        name: what tables and messages call it.
        layout: a name out of :data:`streamvggt.layouts.LAYOUTS`.
        has_depth, has_poses: whether its frames have depth, and camera poses with intrinsics.
        split: "train" or "test" where the data set says so, else None.
        frames: files, pose and intrinsics of each frame.
    """

    def __init__(self, folder: Path, layout: str, name: str) -> None:
        listing = _read(folder, LAYOUTS[layout].read)
        if not listing.frames:
            raise SequenceError(f"{folder} has no frame of the layout {layout!r}")
        self.name, self.layout, self.folder, self.frames = name, layout, folder, listing.frames
        self.split = listing.split
        self._read_depth = listing.read_depth
        self.has_depth = any(frame.depth is not None for frame in self.frames)
        self.has_poses = bool(np.isfinite(self.frames[0].camera_to_world).all())

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"<Sequence {self.name!r}, {self.layout}, {len(self)} frames>"

    def __getitem__(self, index: int) -> PosedFrame:
        """Read one frame.

        Raises:
            SequenceError: a file is missing or damaged, or sizes do not fit.
            IndexError: there is no such frame.
        """
        files = self.frames[index]
        image = _read(files.image, _read_rgb)
        if files.image_hw not in (None, image.shape[:2]):
            got, needed = (" x ".join(map(str, size)) for size in (image.shape[:2], files.image_hw))
            raise SequenceError(f"{files.image}: {got} (h x w), but the intrinsics are for {needed}")
        depth = None if files.depth is None else _read(files.depth, self._read_depth)
        if depth is not None:
            known = np.isfinite(depth) & (depth > 0)
            depth = _depth_on_image(np.where(known, depth, np.float32(0)), image.shape[:2], files)
        return PosedFrame(image, depth, invert_pose(files.camera_to_world), files.intrinsics.copy(), files.time_s)


def open_sequence(folder: str | Path, layout: str | None = None, *, name: str | None = None) -> Sequence:
    """Open a folder as a sequence; its lists and poses are read now, its pictures later.

    Args:
        folder: of one sequence.
        layout: a name out of :data:`streamvggt.layouts.LAYOUTS`; None finds it out by the files.
        name: what to call the sequence; None takes the folder's name.

    Raises:
        SequenceError: the folder does not exist, is of no known layout, or its lists are damaged.
        ValueError: there is no such layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SequenceError(f"{folder} is not a folder")
    found = layout or _detect(folder, _choose(None))
    if found is None:
        raise SequenceError(f"{folder} is of no known layout ({', '.join(LAYOUTS)}); find_sequences looks below it")
    _choose(found)
    return Sequence(folder, found, name or folder.resolve().name)


def find_sequences(root: str | Path, layout: str | None = None) -> list[Sequence]:
    """Open every sequence in a folder and below it, sorted by path and named after it.

    A folder that looks like a sequence but cannot be read is left out with a warning. Links are followed; a folder that
    can be reached in several ways is opened once.

    Raises:
        SequenceError: there is none.
        ValueError: there is no such layout.
    """
    root = Path(root)
    if not root.is_dir():
        raise SequenceError(f"{root} is not a folder")
    layouts = _choose(layout)
    found, seen = [], set()
    for folder, subfolders, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may lead back to where they lie
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        kind = _detect(Path(folder), layouts)
        if kind is None:
            continue
        subfolders.clear()
        name = Path(folder).relative_to(root).as_posix()
        try:
            found.append(open_sequence(folder, kind, name=None if name == "." else name))
        except SequenceError as error:
            _log.warning("left out: %s", error)
    if not found:
        raise SequenceError(f"no sequence in {root} or below it; looked for the layouts {', '.join(layouts)}")
    return sorted(found, key=lambda sequence: sequence.folder)


def natural_hw(sequence: Sequence, width: int = 224, multiple: int = 14) -> tuple[int, int]:
    """Give the size ``(H, W)`` that keeps a sequence's aspect ratio: W = ``width``, H the nearest ``multiple``.

    The first picture that can be opened counts.

    Raises:
        SequenceError: no picture can be opened.
    """
    for number, frame in enumerate(sequence.frames, 1):
        try:
            height, source_width = image_hw(frame.image)
            break
        except SequenceError:
            if number == len(sequence):
                raise
    return max(1, round(height / source_width * width / multiple)) * multiple, width


def load_frames(
    sequence: Sequence, indices: Iterable[int], image_hw: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read frames and cut them to one size.

    The frame is scaled to cover ``image_hw`` and cropped around its principal point, which the network takes to be at
    ``(W / 2, H / 2)``. Where the principal point is off the middle, the crop shrinks until it fits, to no less than
    three quarters of its width; beyond, the principal point stays off. How much of the picture is left is logged, once
    a sequence. Colour is resampled with antialias (bicubic, as
    :func:`streamvggt.preprocess` does), depth takes the nearest pixel, so that no value mixes two surfaces.

    Args:
        sequence: of :func:`open_sequence`.
        indices: S frames, in any order.
        image_hw: height and width wanted, pixels.

    Returns:
        float32 tensors: images ``[S, 3, H, W]`` RGB in [0, 1]; depth ``[S, H, W]`` metres, 0 where unknown; valid, bool
        ``[S, H, W]``, where depth is known; extrinsics ``[S, 3, 4]`` world-to-camera in the world of the sequence, in
        float64, as that may begin far from the cameras, where float32 has steps of decimetres; intrinsics
        ``[S, 3, 3]``, pixels of the images.

    Raises:
        SequenceError: a frame cannot be read.
    """
    sources = [sequence[index] for index in indices]
    source_hw = sources[0].image.shape[:2]
    pixels_per = _crop_box(sources[0].intrinsics, source_hw, image_hw)[2]
    kept = pixels_per**2 * image_hw[0] * image_hw[1] / (source_hw[0] * source_hw[1])
    _say_once(sequence.folder, f"{sequence.name}: {image_hw} (h x w) keeps {kept:.0%} of the picture's area")
    frames = [_cut(frame, image_hw) for frame in sources]
    images = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(np.stack([np.zeros(image_hw, np.float32) if f.depth is None else f.depth for f in frames]))
    extrinsics = torch.from_numpy(np.stack([frame.extrinsics for frame in frames]))
    intrinsics = torch.from_numpy(np.stack([frame.intrinsics for frame in frames])).float()
    return images, depth, depth > 0, extrinsics, intrinsics


def _say_once(folder: Path, message: str) -> None:
    if folder not in _told:
        _told.add(folder)
        _log.info(message)


def _cut(frame: PosedFrame, image_hw: tuple[int, int]) -> PosedFrame:
    from PIL import Image

    height, width = image_hw
    left, top, pixels_per = _crop_box(frame.intrinsics, frame.image.shape[:2], image_hw)
    box = (left, top, left + width * pixels_per, top + height * pixels_per)
    image = Image.fromarray(frame.image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    depth = frame.depth
    if depth is not None:
        rows = np.floor((np.arange(height) + 0.5) * pixels_per + top).astype(np.intp).clip(0, depth.shape[0] - 1)
        columns = np.floor((np.arange(width) + 0.5) * pixels_per + left).astype(np.intp).clip(0, depth.shape[1] - 1)
        depth = depth[rows[:, None], columns]
    intrinsics = frame.intrinsics.copy()
    intrinsics[:2] /= pixels_per
    intrinsics[:2, 2] = (frame.intrinsics[:2, 2] + 0.5 - [left, top]) / pixels_per - 0.5
    return PosedFrame(np.asarray(image), depth, frame.extrinsics, intrinsics, frame.time_s)


def _crop_box(
    intrinsics: NDArray[np.float64], source_hw: tuple[int, ...], image_hw: tuple[int, int]
) -> tuple[float, float, float]:
    """Left and top edge of the crop, and source pixels per pixel of the result; the source spans [0, w] x [0, h]."""
    size, wanted = np.array(source_hw[::-1], np.float64), np.array(image_hw[::-1], np.float64)
    # In pixels whose edges are at integers, the network's (W / 2, H / 2) between centres is half a pixel further.
    center = intrinsics[:2, 2] + 0.5 if np.isfinite(intrinsics).all() else size / 2
    covering = (size / wanted).min()
    # Space from the principal point to the nearer border, in pixels of the result from there to its border.
    fitting = min((center / (wanted / 2 + 0.5)).min(), ((size - center) / (wanted / 2 - 0.5)).min())
    pixels_per = float(np.clip(fitting, _MIN_KEPT * covering, covering))
    corner = np.clip(center - (wanted / 2 + 0.5) * pixels_per, 0, size - wanted * pixels_per)
    return float(corner[0]), float(corner[1]), pixels_per


def _depth_on_image(depth: FloatArray, image_hw: tuple[int, ...], files: FrameFiles) -> FloatArray:
    """Take each pixel's depth from the nearest pixel of the depth map that looks along the same ray."""
    if depth.shape == image_hw and files.depth_intrinsics is None:
        return depth
    source, inside = [], []
    for axis, (count, available) in enumerate(zip(image_hw, depth.shape, strict=True)):
        at = (np.arange(count) + 0.5) * (available / count) - 0.5
        if files.depth_intrinsics is not None:
            k, k_depth = files.intrinsics[1 - axis], files.depth_intrinsics[1 - axis]
            at = (np.arange(count) - k[2]) / k[1 - axis] * k_depth[1 - axis] + k_depth[2]
        nearest = np.floor(at + 0.5).astype(np.intp)
        source.append(nearest.clip(0, available - 1))
        inside.append((nearest >= 0) & (nearest < available))
    taken = depth[source[0][:, None], source[1]]
    return np.where(inside[0][:, None] & inside[1], taken, np.float32(0))


def _read(path: Path, reader: Callable[[Path], _T]) -> _T:
    """Call a reader of a file or folder, naming it in what goes wrong."""
    try:
        return reader(path)
    except SequenceError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise SequenceError(f"{path}: cannot be read ({error})") from error


def _read_rgb(path: Path) -> ByteArray:
    from PIL import Image

    # The EXIF orientation is left alone: calibrations count in pixels as stored.
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _choose(layout: str | None) -> dict[str, Layout]:
    if layout is None:
        return LAYOUTS
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return {layout: LAYOUTS[layout]}


def _detect(folder: Path, layouts: dict[str, Layout]) -> str | None:
    return next((name for name, layout in layouts.items() if layout.matches(folder)), None)
