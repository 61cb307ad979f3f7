"""Soft matching: a small network is told where its patches were, which a large one finds out by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .config import StreamVGGTConfig

_PLACE_NUMBERS = 8  # own x, y; for each of two references dx, dy, certainty


@dataclass(frozen=True, eq=False)
class MatchMemory:
    """Descriptors that the next frame of a stream is compared with; None before the first.

    Attributes:
        first: of frame 0, ``[B, N, D]``.
        previous: of the newest frame, ``[B, N, D]``.
    """

    first: Tensor | None = None
    previous: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(x.nbytes for x in (self.first, self.previous) if x is not None)


class SoftMatch(nn.Module):
    """Tell each patch where it was in the first frame and in the previous one.

    Patches are described by a few numbers, read off an early layer of the encoder. The softmax of their similarity to
    all patches of the reference gives an expected position (a soft argmax, as in the cost volumes of optical flow:
    Sun et al. 2018, PWC-Net, section 3), and its largest value how certain that is. Both references lie in the past, so
    a stream equals a batch whatever its cache keeps.
    """

    def __init__(self, config: StreamVGGTConfig) -> None:
        super().__init__()
        self.descriptor = nn.Linear(config.encoder_width, config.match_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(14.0)))
        self.embed = nn.Linear(config.match_dim + _PLACE_NUMBERS, config.embed_dim)

    def describe(self, patches: Tensor) -> Tensor:
        """Map patch tokens of the encoder's early layer ``[..., N, C]`` to descriptors of length 1, ``[..., N, D]``."""
        return normalize(self.descriptor(patches.to(self.descriptor.weight.dtype)).float(), dim=-1)

    def forward(self, descriptors: Tensor, memory: MatchMemory, grid_hw: tuple[int, int]) -> tuple[Tensor, MatchMemory]:
        """Compare S frames with the first and the previous one of their stream.

        Args:
            descriptors: ``[B, S, N, D]`` of the coming frames.
            memory: of the frames before them; an empty one at the start of a stream.
            grid_hw: rows and columns of patches.

        Returns:
            What to add to the patch tokens, ``[B, S, N, C]``, and the memory for the frames to come.
        """
        first = descriptors[:, 0] if memory.first is None else memory.first
        earlier = first if memory.previous is None else memory.previous
        previous = torch.cat([earlier[:, None], descriptors[:, :-1]], dim=1)
        place = _positions(grid_hw, descriptors.device)
        seen = [place.expand(*descriptors.shape[:3], 2)]
        for reference in (first[:, None].expand_as(descriptors), previous):
            similarity = descriptors @ reference.transpose(-1, -2)
            match = (similarity * self.log_temperature.exp()).softmax(-1)
            seen += [match @ place - place, match.amax(-1, keepdim=True)]
        found = self.embed(torch.cat([descriptors, *seen], dim=-1).to(self.embed.weight.dtype))
        return found, MatchMemory(first.clone(), descriptors[:, -1].clone())  # views would keep a whole chunk


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # see rope.rotary_table
def _positions(grid_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Centres of the patches ``[rows * columns, 2]``, xy from the middle of the image, its longer side 2 units."""
    rows, columns = grid_hw
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device) + (0.5 - rows / 2),
        torch.arange(columns, dtype=torch.float32, device=device) + (0.5 - columns / 2),
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1) * (2 / max(grid_hw))
