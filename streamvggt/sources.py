"""Real pictures to learn from: clips of posed sequences, and photographs for the surfaces of made-up scenes."""

from __future__ import annotations

import logging
from collections.abc import Sequence as ListOf
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import ClipBatch, clip_order
from .geometry import compose, invert_pose
from .sequences import Sequence, SequenceError, load_frames
from .types import ByteArray

_log = logging.getLogger(__name__)

_MOST_FAILURES = 100  # clips of a seed that cannot be read, one after the other
_STEP = 0.03  # from one frame to the next, over the distance of what is seen: 0.007 to 0.09 in sequences with depth
_PHOTO_SIDE = 256  # shorter side that is kept of a photograph, pixels; textures are half of that
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class SequenceSource:
    """Clips of real sequences, one a seed; see :class:`streamvggt.data.ClipSource`.

    A sequence is chosen as often as it has frames. Frames are cut around the principal point, with a zoom that is drawn
    once a clip. Without depth ``valid`` is False everywhere: such clips teach cameras only.

    A clip whose first frame shows no known depth has no scale of its own, and :meth:`ClipBatch.normalized` leaves it
    alone; so it is brought to the usual size here. Its lengths are divided by the mean distance of what its other
    frames know or, without any depth, such that neighbouring frames of the sequence are 0.03 apart on average (the
    length of a clip's own path would tell nothing of it, and be 0 for a camera that stands still).

    Args:
        sequences: with camera poses; lengths in metres, or at least in one unit.
        zoom: clips are enlarged by a factor from 1 to this.

    Attributes:
        skipped: clips left out so far because a frame could not be read. Worker processes count their own.

    Raises:
        ValueError: there are no sequences, one of them has no poses, or the zoom is below 1.
    """

    def __init__(self, sequences: ListOf[Sequence], *, zoom: float = 1.3) -> None:
        without = [sequence.name for sequence in sequences if not sequence.has_poses]
        if not sequences or without:
            raise ValueError(f"clips need at least one sequence, and poses in each; without poses: {without}")
        if not zoom >= 1:
            raise ValueError(f"zoom must be at least 1, got {zoom}")
        self.skipped = 0
        self._sequences, self._zoom = tuple(sequences), zoom
        self._units = [_mean_step(sequence) / _STEP or 1.0 for sequence in sequences]
        self._warned: set[str] = set()

    def clips_per_seed(self, num_frames: int) -> int:
        """See :class:`streamvggt.data.ClipSource`."""
        return 1

    def clips(
        self, seeds: ListOf[int], num_frames: int, stride: tuple[int, int], image_hw: tuple[int, int]
    ) -> ClipBatch:
        """See :class:`streamvggt.data.ClipSource`. Clips that cannot be read are replaced, counted and warned of once.

        Raises:
            ValueError: no sequence is long enough.
            SequenceError: a hundred clips in a row cannot be read.
        """
        clips = [self._clip(seed, num_frames, stride, image_hw) for seed in seeds]
        return ClipBatch(*(torch.cat([getattr(clip, part.name) for clip in clips]) for part in fields(ClipBatch)))

    def _clip(self, seed: int, num_frames: int, stride: tuple[int, int], image_hw: tuple[int, int]) -> ClipBatch:
        rng = torch.Generator().manual_seed(seed)
        needed = 1 + stride[0] * (num_frames - 1)
        lengths = [len(sequence) for sequence in self._sequences]
        if max(lengths) < needed:
            raise ValueError(
                f"clips of {num_frames} frames with stride {stride[0]} need sequences of {needed}, the longest has "
                f"{max(lengths)}; take shorter clips or a smaller stride"
            )
        failure = None
        weights = torch.tensor([length if length >= needed else 0 for length in lengths], dtype=torch.float64)
        for _ in range(_MOST_FAILURES):
            number = int(torch.multinomial(weights, 1, generator=rng))
            order = clip_order(lengths[number], num_frames, stride, rng).tolist()
            zoom = 1 + (self._zoom - 1) * float(torch.rand((), generator=rng))
            try:
                return _with_scale(_read_clip(self._sequences[number], order, image_hw, zoom), self._units[number])
            except SequenceError as error:
                self.skipped += 1
                failure = error
                if str(error) not in self._warned:
                    self._warned.add(str(error))
                    _log.warning("a clip is left out, %d so far: %s", self.skipped, error)
        raise SequenceError(f"{_MOST_FAILURES} clips in a row cannot be read; the last: {failure}") from failure


def load_photos(folder: str | Path, limit: int = 500) -> list[ByteArray]:
    """Read photographs for :class:`streamvggt.synthetic.TextureBank` from a folder and those below it.

    Args:
        folder: of JPEG, PNG, WebP or BMP files; others are left alone.
        limit: most photographs; of more files, evenly many from all over their sorted list.

    Returns:
        RGB uint8 ``[h, w, 3]``, reduced to a shorter side of 256 pixels where it is longer, transparency over white.
        Files that cannot be read are left out, with a warning that counts them.

    Raises:
        ValueError: the limit is below 1, there is no such folder, or no photograph in it that can be read.
    """
    from PIL import Image

    from .images import to_rgb

    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _PHOTO_SUFFIXES)
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    photos, failures = [], []
    for path in chosen:
        try:
            with Image.open(path) as image:
                image.draft(None, (_PHOTO_SIDE, _PHOTO_SIDE))  # JPEG is decoded at about the size that is needed
                photo = Image.fromarray(to_rgb(image))
            shrink = _PHOTO_SIDE / min(photo.size)
            if shrink < 1:
                photo = photo.resize((round(photo.width * shrink), round(photo.height * shrink)))
            photos.append(np.asarray(photo))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            failures.append(f"{path}: {error}")
    if failures:
        _log.warning("%d of %d photographs cannot be read, such as %s", len(failures), len(chosen), failures[0])
    if not photos:
        raise ValueError(f"{folder} has no photograph that can be read ({', '.join(_PHOTO_SUFFIXES)})")
    return photos


def _read_clip(sequence: Sequence, order: list[int], image_hw: tuple[int, int], zoom: float) -> ClipBatch:
    """Read one clip ``[1, S, ...]``; it is seen larger by ``zoom``, up to a pixel."""
    # Twice the same number of pixels: the principal point stays in the middle.
    margins = [round(side * (zoom - 1) / 2) for side in image_hw]
    top, left = margins
    covering = (image_hw[0] + 2 * top, image_hw[1] + 2 * left)
    images, depth, valid, extrinsics, intrinsics = load_frames(sequence, order, covering)
    rows, columns = slice(top, top + image_hw[0]), slice(left, left + image_hw[1])
    intrinsics = intrinsics - intrinsics.new_tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])
    extrinsics = compose(extrinsics, invert_pose(extrinsics[:1])).float()
    parts = (images[..., rows, columns], depth[:, rows, columns], valid[:, rows, columns], extrinsics, intrinsics)
    return ClipBatch(*(part[None].contiguous() for part in parts))


def _with_scale(clip: ClipBatch, unit: float) -> ClipBatch:
    """Bring a clip ``[1, S, ...]`` that knows nothing in frame 0 to the usual size; see :class:`SequenceSource`."""
    if clip.valid[:, 0].any():
        return clip
    scale: float | Tensor = unit
    if clip.valid.any():
        scale = clip.world_points[clip.valid].square().sum(-1).sqrt().mean()
    return clip.shrunk(scale)


def _mean_step(sequence: Sequence) -> float:
    """Mean distance between the cameras of neighbouring frames, units of the sequence."""
    centres = np.stack([frame.camera_to_world[:, 3] for frame in sequence.frames])
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()) if len(centres) > 1 else 0.0
