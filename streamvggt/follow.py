"""Patches of one frame found in another: nearest descriptors, then their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from .types import ByteArray, FloatArray

Float64 = NDArray[np.float64]

FOLLOWED, GUESSED = 1.0, 0.05
"""Weights of matches that were followed to a pixel, and of those that are known to a part of a patch."""

_SHARPNESS = 30.0  # of the softmax that finds a match between patches
_WINDOW = 6  # pixels on each side of a point that is followed
_STEPS = 6  # at each of two scales
_ALIKE = 0.8  # normalised correlation of two windows that show the same
_TEXTURE = 1.0  # mean square of the weaker gradient (of 255) that a window needs


@dataclass(frozen=True, eq=False)
class Look:
    """What a frame is compared by.

    Attributes:
        descriptors: of its patches, row by row, ``[N, D]``, of length 1.
        image: its brightness, uint8 ``[H, W]``.
    """

    descriptors: FloatArray
    image: ByteArray


class Matches(NamedTuple):
    """Points of a reference, found in another frame; xy in pixels.

    Attributes:
        patches: their patches in the reference, ``[M]``.
        at: their places there, ``[M, 2]``.
        found: their places in the other, ``[M, 2]``.
        weight: ``[M]``.
    """

    patches: NDArray[np.intp]
    at: Float64
    found: Float64
    weight: Float64


def match(reference: Look, other: Look, places: Float64, patch_size: int) -> Matches:
    """Find patches of a reference in another frame: nearest to each other, then followed by their pixels.

    Args:
        reference, other: of one size.
        places: centres of the patches, ``[N, 2]``, xy in pixels.
        patch_size: pixels.
    """
    rows = reference.image.shape[0] // patch_size
    columns = len(places) // rows
    # By torch: threads of NumPy's that wait for more would take the cores from torch's, at three times the time.
    likeness = (torch.from_numpy(reference.descriptors) @ torch.from_numpy(other.descriptors).T).numpy()
    there, back = likeness.argmax(1), likeness.argmax(0)
    patches = np.flatnonzero(back[there] == np.arange(len(places)))
    near = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    y, x = np.divmod(there[patches], columns)
    padded = np.pad(likeness[patches].reshape(-1, rows, columns), ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    around = padded[np.arange(len(patches))[:, None], y[:, None] + 1 + near[:, 0], x[:, None] + 1 + near[:, 1]]
    share = np.exp(_SHARPNESS * (around - around.max(1, keepdims=True, initial=-1)))
    share /= share.sum(1, keepdims=True)
    at = places[patches]
    guess = places[there[patches]] + patch_size * (share @ near)[:, ::-1]
    found, followed = follow(reference.image, other.image, at, guess)
    followed &= np.linalg.norm(found - guess, axis=1) < patch_size
    weight = np.where(followed, FOLLOWED, GUESSED)
    return Matches(patches, at, np.where(followed[:, None], found, guess), weight)


def follow(image: ByteArray, other: ByteArray, at: Float64, guess: Float64) -> tuple[Float64, NDArray[np.bool_]]:
    """Find small windows of one image in another, from a guess, to a fraction of a pixel.

    Args:
        image, other: brightness, uint8 ``[H, W]``.
        at: middles of the windows in ``image``, ``[M, 2]``, xy in pixels.
        guess: roughly their places in ``other``, ``[M, 2]``.

    Returns:
        Their places in ``other``, ``[M, 2]``, and for which of them the windows there look alike, ``[M]``.

    Source: Lucas and Kanade 1981, at two scales (Bouguet 2000), each window less its mean and of one contrast.
    """
    pair = torch.from_numpy(np.stack([image, other])).float()[:, None]
    side = torch.arange(-_WINDOW, _WINDOW + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
    start, place = (torch.from_numpy(xy).float() for xy in (at, guess))
    for level, scaled in ((1, avg_pool2d(pair, 2)), (0, pair)):
        scale = 2**level
        here, there = ((xy + 0.5) / scale - 0.5 for xy in (start, place))
        image_slopes = torch.gradient(scaled[0, 0], dim=(1, 0))
        window = _sample(torch.stack([scaled[0, 0], *image_slopes]), here[:, None] + offsets)
        wanted, *slopes = (part - part.mean(1, keepdim=True) for part in window)
        gradient = torch.stack(slopes, -1)
        square = gradient.transpose(1, 2) @ gradient
        solve = torch.linalg.inv(square + 1e-3 * len(offsets) * torch.eye(2))
        for _ in range(_STEPS):
            seen = _centred(scaled[1], there[:, None] + offsets)
            contrast = (wanted.square().sum(1) / seen.square().sum(1).clamp_min(1e-6)).sqrt().clamp(0.5, 2)
            missing = (wanted - contrast[:, None] * seen)[:, None] @ gradient
            step = (missing @ solve)[:, 0]
            there = there + step * (2 / step.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
        place = (there + 0.5) * scale - 0.5
    seen = _centred(pair[1], place[:, None] + offsets)
    alike = (wanted * seen).sum(1) / (wanted.square().sum(1) * seen.square().sum(1) + 1e-6).sqrt()
    texture = torch.linalg.eigvalsh(square)[:, 0] / len(offsets)
    good = (alike > _ALIKE) & (texture > _TEXTURE)
    return place.double().numpy(), good.numpy()


def patch_centres(image_hw: tuple[int, int], patch_size: int) -> Float64:
    """Middles of the patches, row by row, ``[N, 2]``, xy in pixels."""
    y, x = np.mgrid[: image_hw[0] // patch_size, : image_hw[1] // patch_size]
    return np.stack([x, y], -1).reshape(-1, 2) * float(patch_size) + (patch_size - 1) / 2


def _sample(image: Tensor, xy: Tensor) -> Tensor:
    """Read an image ``[C, H, W]`` between its pixels at ``[M, P, 2]``, ``[C, M, P]``; outside, its border goes on."""
    size = torch.tensor([image.shape[-1], image.shape[-2]])
    grid = (2 * xy + 1) / size - 1
    return grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]


def _centred(image: Tensor, xy: Tensor) -> Tensor:
    """Windows of an image ``[1, H, W]``, each less its mean, ``[M, P]``."""
    seen = _sample(image, xy)[0]
    return seen - seen.mean(1, keepdim=True)
