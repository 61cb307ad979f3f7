"""Small textures, procedural and photographic, that a ray caster can look up at any distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from streamvggt.types import ByteArray

SIDE = 128
"""Side of every texture, texels."""

_NUM_PROCEDURAL = 192
_COLUMNS = 16  # textures in one row of the atlas
_LEVELS = int(math.log2(SIDE)) + 1
_SEED = 20  # the procedural textures are part of the generator, the same in every run


class TextureBank:
    """Hold square textures with their mip levels in one image, so that one call looks up any of them for any pixel.

    Every texture is as likely on a surface as any other, procedural or photographic. They repeat
    mirrored, so none has to be tileable. Each level of each texture has a border of one repeated texel: bilinear
    look-up never reaches into a neighbour.

    Args:
        photos: RGB uint8 ``[h, w, 3]``, any sizes; their central square is resized to ``SIDE``. They come after the
            procedural textures.
        device: where the look-up happens.

    Raises:
        ValueError: a photo is not uint8 ``[h, w, 3]``.
    """

    def __init__(self, photos: Sequence[ByteArray] = (), device: torch.device | str = "cpu") -> None:
        textures = torch.cat([_procedural_textures(), *(_photo_texture(photo) for photo in photos)])
        self.num_textures = len(textures)
        rows = -(-self.num_textures // _COLUMNS)
        levels = []
        for level in range(_LEVELS):
            tiles = F.pad(F.avg_pool2d(textures, 2**level), (1, 1, 1, 1), mode="replicate")
            tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, rows * _COLUMNS - self.num_textures))
            tiles = tiles.unflatten(0, (rows, _COLUMNS)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
            levels.append(F.pad(tiles, (0, _COLUMNS * (SIDE + 2) - tiles.shape[-1])))
        self._atlas = torch.cat(levels, dim=1)[None].to(device)
        tops = torch.tensor([0] + [level.shape[1] for level in levels[:-1]]).cumsum(0)
        self._level_top = tops.to(device, torch.float32)

    def sample(self, texture: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
        """Look up colours, bilinear in the mip level that fits the footprint.

        Args:
            texture: int64 ``[...]``, number of the texture.
            u: ``[...]``, in repeats of the texture.
            v: ``[...]``, in repeats of the texture.
            footprint: ``[...]``, width of a pixel in repeats of the texture.

        Returns:
            RGB ``[3, ...]`` in [0, 1].
        """
        level = torch.log2((footprint * SIDE).clamp_(1, SIDE)).round_()
        side = torch.exp2(-level).mul_(SIDE)
        x = (u.remainder(2).sub_(1).abs_() + (texture % _COLUMNS)) * side
        x.addcmul_((texture % _COLUMNS).to(x), torch.full_like(x, 2.0)).add_(0.5)
        row = texture // _COLUMNS
        y = (v.remainder(2).sub_(1).abs_() + row) * side
        y.addcmul_(row.to(y), torch.full_like(y, 2.0)).add_(self._level_top[level.long()] + 0.5)
        height, width = self._atlas.shape[-2:]
        grid = torch.stack([x.mul_(2 / (width - 1)).sub_(1), y.mul_(2 / (height - 1)).sub_(1)], -1)
        colors = F.grid_sample(self._atlas, grid.view(1, 1, -1, 2), padding_mode="border", align_corners=True)
        return colors.view(3, *texture.shape)


@lru_cache(maxsize=2)
def procedural_bank(device: torch.device) -> TextureBank:
    """Return the bank without photographs, built once a device (about a second)."""
    return TextureBank(device=device)


def _photo_texture(photo: ByteArray) -> Tensor:
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != "uint8":
        raise ValueError(f"a photo must be RGB uint8 [h, w, 3], got {photo.dtype} {list(photo.shape)}")
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


@lru_cache(maxsize=1)
def _procedural_textures() -> Tensor:
    """Make ``[_NUM_PROCEDURAL, 3, SIDE, SIDE]`` float32 in [0, 1]: a pattern in two colours under stains and grain."""
    generator = torch.Generator().manual_seed(_SEED)
    per_kind = _NUM_PROCEDURAL // len(_PATTERNS)
    n = per_kind * len(_PATTERNS)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    axis = torch.arange(SIDE) / SIDE
    angle = (uniform(1, 1) - 0.5) * (uniform(1, 1) < 0.3)
    coarse, fine = _fractal_noise(n, generator), _fractal_noise(n, generator)
    warp = 0.08 * uniform(1, 1) * (uniform(1, 1) < 0.4)
    x = axis * angle.cos() - axis[:, None] * angle.sin() + warp * (coarse - 0.5)
    y = axis * angle.sin() + axis[:, None] * angle.cos() + warp * (fine - 0.5)
    patterns = [
        pattern(x[rows], y[rows], coarse[rows], generator)
        for pattern, rows in zip(_PATTERNS, torch.arange(n).split(per_kind), strict=True)
    ]
    pattern = 0.8 * torch.cat(patterns) + 0.2 * fine

    colors = torch.rand(n, 3, 3, 1, 1, generator=generator).pow(0.8)  # ground, figure, stain
    # Most things are far from pure colours: paint, plaster and paper near grey, wood and stone from grey to brown.
    brown = torch.tensor([1.15, 1.0, 0.8])[:, None, None].pow(3 * uniform(1, 1, 1, 1)) * (uniform(1, 1, 1, 1) < 0.6)
    drab = 1 - 0.9 * uniform(1, 1, 1, 1).square()
    colors = colors + drab * (colors.mean(2, keepdim=True) * torch.where(brown > 0, brown, 1) - colors)
    ground, figure, stain = colors.unbind(1)
    figure = ground + (0.3 + 0.7 * uniform(1, 1, 1)) * (figure - ground)
    stained = ((coarse - 0.6) * 6).sigmoid() * (uniform(1, 1) < 0.35) * 0.7
    image = ground + (figure - ground) * pattern[:, None]
    image = image + (stain - image) * stained[:, None]
    return (image * (0.85 + 0.3 * fine[:, None])).clamp(0, 1)


def _fractal_noise(n: int, generator: torch.Generator) -> Tensor:
    """Add noise of halving cell sizes with random weights: ``[n, SIDE, SIDE]``, each from 0 to 1."""
    total = torch.zeros(n, 1, SIDE, SIDE)
    roughness = 0.45 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
    for octave in range(1, 7):
        grid = torch.rand(n, 1, 2**octave + 1, 2**octave + 1, generator=generator)
        layer = F.interpolate(grid, (SIDE, SIDE), mode="bicubic", align_corners=True)
        total += layer * roughness**octave
    total = total[:, 0]
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return (total - low) / (high - low)


def _counts(low: int, high: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, (len(like), 1, 1), generator=generator).float()


def _random_by_cell(i: Tensor, j: Tensor) -> Tensor:
    """Turn cell numbers into values in [0, 1) that look random: the classic hash of one-line shaders."""
    return (torch.sin(i * 12.9898 + j * 78.233) * 43758.5453).remainder(1)


def _clouds(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    return noise


def _marble(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + 0.5 * torch.sin(math.tau * (x + y) * _counts(1, 4, x, generator) + 9 * noise)


def _checks(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    count = _counts(2, 12, x, generator)
    return (torch.floor(x * count) + torch.floor(y * count)).remainder(2)


def _planks(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    count = _counts(3, 12, x, generator)
    plank = torch.floor(x * count)
    joint = ((x * count).remainder(1) > 0.06).float()
    return joint * (
        0.3 + 0.5 * _random_by_cell(plank, torch.floor(y + 7 * _random_by_cell(plank, plank))) + 0.2 * noise
    )


def _bricks(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = 2 * _counts(2, 8, x, generator), _counts(2, 8, x, generator)
    row = torch.floor(y * rows)
    along = x * columns + 0.5 * row.remainder(2)
    body = (along.remainder(1) > 0.08) & ((y * rows).remainder(1) > 0.12)
    return body * (0.4 + 0.3 * noise + 0.3 * _random_by_cell(torch.floor(along), row))


def _mosaic(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _counts(3, 20, x, generator), _counts(3, 20, x, generator)
    return _random_by_cell(torch.floor(x * columns), torch.floor(y * rows))


def _print(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Lines of dark blocks of uneven length, as of print on a page or a label."""
    lines = _counts(6, 20, x, generator)
    line = torch.floor(y * lines)
    word = _random_by_cell(torch.floor(x * (12 + 8 * _random_by_cell(line, line))), line) < 0.7
    inside = (y * lines).remainder(1) < 0.55
    margin = (x > 0.1) & (x < 0.5 + 0.5 * _random_by_cell(line, line + 3))
    return 1 - (word & inside & margin).float()


def _cells(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    return (_distances(x, y, 24, generator).amin(1) * 5).clamp(0, 1)


def _spots(x: Tensor, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    radius = 0.02 + 0.1 * torch.rand(len(x), 24, 1, 1, generator=generator)
    return (_distances(x, y, 24, generator) < radius).any(1).float()


def _distances(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Measure how far each texel is from ``count`` random points: ``[n, count, SIDE, SIDE]``."""
    points = torch.rand(2, len(x), count, 1, 1, generator=generator)
    return torch.hypot(x[:, None] - points[0], y[:, None] - points[1])


_Pattern = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
_PATTERNS: tuple[_Pattern, ...] = (
    _clouds, _clouds, _marble, _checks, _planks, _planks, _bricks, _mosaic, _print, _print, _cells, _spots,
)  # fmt: skip
