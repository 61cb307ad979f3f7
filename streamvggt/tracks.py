"""What is remembered of point tracks in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .config import StreamVGGTConfig


@dataclass(frozen=True, eq=False)
class TrackQuery:
    """Points to follow, with the features of the frame on which they were named.

    Attributes:
        frame: number of that frame in the stream.
        points: ``[B, N, 2]``, xy in pixels.
        features: feature pyramid of that frame, one ``[B, C, h, w]`` a level.
    """

    frame: int
    points: Tensor
    features: Sequence[Tensor]


@dataclass
class TrackMemory:
    """What point tracking in a stream remembers: the queries and the feature pyramids of held frames by number."""

    queries: list[TrackQuery] = field(default_factory=list)
    features: dict[int, Sequence[Tensor]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all feature pyramids."""
        pyramids = {id(level): level.nbytes for q in self.queries for level in q.features}
        pyramids |= {id(level): level.nbytes for levels in self.features.values() for level in levels}
        return sum(pyramids.values())


def pyramid_bytes(config: StreamVGGTConfig, height: int, width: int, head_bytes: int) -> int:
    """Bytes of the feature pyramid of one frame; 0 for a network without a track head."""
    track = config.track
    if track is None:
        return 0
    h, w = height // track.stride, width // track.stride
    pixels = sum((h >> level) * (w >> level) for level in range(track.correlation_levels))
    return track.features * pixels * head_bytes
