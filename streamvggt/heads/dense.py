"""Dense heads: from tokens to maps of the size of the image (DPT, Ranftl et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from ..config import StreamVGGTConfig

CHUNK = 8  # frames decoded at a time without gradients


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around a skip connection.

    The skip carries ``relu(x)``, not ``x``: the networks whose weights are loaded here were trained with an activation
    that works in place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, h, w]`` to ``[N, C, h, w]``."""
        x = relu(x)
        # In place where no gradient needs what was there: fresh memory costs more than the sums.
        return self.conv2(self.conv1(x).relu_()).add_(x)


class Fusion(nn.Module):
    """Add a finer level to the coarser ones and enlarge.

    Args:
        channels: width of the feature maps.
        has_skip: whether a finer level comes in; not so for the coarsest.
    """

    def __init__(self, channels: int, *, has_skip: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualUnit(channels) if has_skip else None
        self.unit = ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size_hw: tuple[int, int]) -> Tensor:
        """Map ``[N, C, h, w]`` and the finer ``[N, C, h', w']`` to ``[N, C, *size_hw]``."""
        if self.skip_unit is not None and skip is not None:
            x = x + self.skip_unit(skip)
        # Published the other way round; both steps are linear, and so the convolution sees a quarter of the cells.
        x = self.out_conv(self.unit(x))
        return interpolate(x, size=size_hw, mode="bilinear", align_corners=True)


class FeaturePyramid(nn.Module):
    """Reassemble the tokens of four layers into one feature map at half the patch size, then enlarge it.

    Args:
        config: sizes of the network.
        features: width of the fusion.
        out_features: channels of the result.
        position_scale: weight of the position maps that are added; 0 for none.
    """

    def __init__(self, config: StreamVGGTConfig, features: int, out_features: int, *, position_scale: float) -> None:
        super().__init__()
        self.layers = config.dense_layers
        self.num_special = config.special_tokens
        self.patch_size = config.patch_size
        self.position_scale = position_scale
        channels = config.dense_channels
        self.norm = nn.LayerNorm(2 * config.embed_dim)
        self.projections = nn.ModuleList(nn.Conv2d(2 * config.embed_dim, c, 1) for c in channels)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.narrow = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels)
        self.fusions = nn.ModuleList(Fusion(features, has_skip=i < 3) for i in range(4))
        self.out_conv = nn.Conv2d(features, out_features, 3, padding=1)

    def forward(self, tokens: Mapping[int, Tensor], image_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Map tokens ``[N, P, 2 C]`` of the four layers to features ``[N, out_features, *size_hw]``."""
        grid_hw = (image_hw[0] // self.patch_size, image_hw[1] // self.patch_size)
        levels = []
        for layer, project, resize, narrow in zip(self.layers, self.projections, self.resize, self.narrow, strict=True):
            x = self.norm(tokens[layer][:, self.num_special :]).transpose(1, 2).unflatten(2, grid_hw)
            level = narrow(resize(self._add_positions(project(x), image_hw)))
            # Enlarging and convolving are faster with the channels of a pixel side by side.
            levels.append(level.contiguous(memory_format=torch.channels_last))
        x = levels[3]
        for i in (3, 2, 1, 0):
            finer_hw = levels[i - 1].shape[-2:] if i else (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
            x = self.fusions[i](x, levels[i] if i < 3 else None, tuple(finer_hw))
        x = interpolate(self.out_conv(x), size=size_hw, mode="bilinear", align_corners=True)
        return self._add_positions(x, image_hw)

    def _add_positions(self, x: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """Add a sine map of the position in the image, half of the channels for x and half for y."""
        if not self.position_scale:
            return x
        half = x.shape[1] // 2
        along_x, along_y = _sine_positions(tuple(x.shape[-2:]), image_hw, half, self.position_scale, x.device)
        x[:, :half].add_(along_x[:, None, :])
        x[:, half:].add_(along_y[:, :, None])
        return x


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # see rope.rotary_table
def _sine_positions(
    grid_hw: tuple[int, int], image_hw: tuple[int, int], channels: int, scale: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sine and cosine of cell centres, ``[channels, w]`` along x and ``[channels, h]`` along y.

    The centres are those of an image scaled to a diagonal of 2, with the origin in its middle.
    """
    h, w = grid_hw
    diagonal = (image_hw[0] ** 2 + image_hw[1] ** 2) ** 0.5
    frequencies = 100.0 ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
    maps = []
    for cells, side in ((w, image_hw[1] / diagonal), (h, image_hw[0] / diagonal)):
        edge = side * (cells - 1) / cells
        angles = frequencies[:, None] * torch.linspace(-edge, edge, cells, dtype=torch.float64)
        maps.append((scale * torch.cat([angles.sin(), angles.cos()])).float().to(device))
    return maps[0], maps[1]


class DenseHead(nn.Module):
    """Predict a map of values and one of confidences, of the size of the image.

    Args:
        config: sizes of the network.
        out_channels: values a pixel.
    """

    def __init__(self, config: StreamVGGTConfig, out_channels: int) -> None:
        super().__init__()
        features = config.dense_features
        self.pyramid = FeaturePyramid(config, features, features // 2, position_scale=0.1)
        self.out = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, out_channels + 1, 1)
        )

    def forward(self, tokens: Mapping[int, Tensor], image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Map tokens ``[B, S, P, 2 C]`` to raw values ``[B, S, H, W, out_channels]`` and confidences ``[B, S, H, W]``.

        Confidences are ``1 + exp(.)``, so > 1. The values are not activated.
        """
        maps = by_chunks(tokens, lambda chunk: self.out(self.pyramid(chunk, image_hw, image_hw)))
        return maps[:, :, :-1].movedim(2, -1), 1 + maps[:, :, -1].exp()


def by_chunks(tokens: Mapping[int, Tensor], decode: Callable[[Mapping[int, Tensor]], Tensor]) -> Tensor:
    """Decode frames a few at a time where no gradients are wanted, which bounds the memory of full-size maps.

    Args:
        tokens: ``[B, S, P, 2 C]`` by layer.
        decode: maps tokens ``[N, P, 2 C]`` to ``[N, ...]``.

    Returns:
        ``[B, S, ...]``.
    """
    streams_frames = next(iter(tokens.values())).shape[:2]
    flat = {layer: x.flatten(0, 1) for layer, x in tokens.items()}
    count = streams_frames.numel()
    step = count if torch.is_grad_enabled() else CHUNK
    parts = [decode({layer: x[i : i + step] for layer, x in flat.items()}) for i in range(0, count, step)]
    return torch.cat(parts).unflatten(0, streams_frames)


def signed_expm1(y: Tensor) -> Tensor:
    """Map R to R, linear near 0 and exponential far out: ``sign(y) (e^|y| - 1)``."""
    return y.sign() * y.abs().expm1()
