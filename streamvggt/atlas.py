"""The sub-maps of a long stream as one map: how they lie, which loops join them, and where frames belong by now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .geometry import Similarity
from .posegraph import Edge, optimise_pose_graph, strain
from .submaps import Arrays, Keyframe, SubMap, camera_pose, pack_keyframes, unpack_keyframes
from .types import FloatArray

_APART = 2  # sub-maps, at least, between two views of a loop
_ALIKE = 0.5  # cosine of descriptors, less their mean, from which two frames may show one place
_MOST_STRAIN = 0.25  # by which a loop may bend one edge that is known
_GUESS = 0.01  # weight of one that is not
_POSES = ("chained", "emitted", "placed")  # of a sub-map


@dataclass(frozen=True, eq=False)
class Loop:
    """A place that was seen again.

    Attributes:
        earlier, later: numbers of the two frames in the stream.
        likeness: cosine of their descriptors, less the mean of all.
        overlap: share of the one that the other shows too.
    """

    earlier: int
    later: int
    likeness: float
    overlap: float


class Candidate(NamedTuple):
    """Two keyframes that may show one place: ``first`` and ``second`` are their numbers in their sub-maps."""

    likeness: float
    earlier: int
    later: int
    first: int
    second: int


class Atlas:
    """Sub-maps in the order in which they came, what is known of pairs of them, and the loops that were closed."""

    def __init__(self) -> None:
        here = Similarity.identity()
        self.submaps = [SubMap(0, 0, here, here, here)]
        self.edges: list[Edge] = []
        self.loops: list[Loop] = []

    @property
    def newest(self) -> SubMap:
        """The sub-map that is being made."""
        return self.submaps[-1]

    def append(
        self, start: int, given_from: int, between: Similarity, keyframes: list[Keyframe], *, sure: bool
    ) -> None:
        """Begin the next sub-map.

        Args:
            start, given_from: as :class:`~streamvggt.submaps.SubMap` has them.
            between: from its world to that of the newest one.
            keyframes: that it has already.
            sure: whether that is known; if it is a guess, loops may bend it at next to no cost.
        """
        last, number = self.newest, len(self.submaps)
        chained, placed = (pose.compose(between) for pose in (last.chained, last.placed))
        self.submaps.append(SubMap(start, given_from, chained, placed, placed, keyframes))
        self.edges.append(Edge(number - 1, number, between, 1.0 if sure else _GUESS))

    def candidates(self, number: int) -> list[Candidate]:
        """Return the likest pair of keyframes of a sub-map and each earlier one that may show one place; likest first.

        Pairs of sub-maps that are joined already are left out.
        """
        descriptors = {
            i: np.stack([keyframe.descriptor for keyframe in submap.keyframes])
            for i, submap in enumerate(self.submaps[: number + 1])
            if submap.keyframes
        }
        if number not in descriptors:
            return []
        # What all frames of a stream have in common tells no places apart.
        centre = np.concatenate(list(descriptors.values())).mean(0)
        unit = {i: (d - centre) / np.maximum(_lengths(d - centre), 1e-9) for i, d in descriptors.items()}
        known = {(edge.first, edge.second) for edge in self.edges}
        found = []
        for earlier in unit:
            if earlier > number - _APART or (earlier, number) in known:
                continue
            likeness = unit[earlier] @ unit[number].T
            first, second = np.unravel_index(likeness.argmax(), likeness.shape)
            if likeness[first, second] >= _ALIKE:
                found.append(Candidate(float(likeness[first, second]), earlier, number, int(first), int(second)))
        return sorted(found, reverse=True)

    def close(self, found: Candidate, transform: Similarity, overlap: float) -> None:
        """Move all sub-maps so that a loop closes, unless it contradicts the others.

        Args:
            found: the two keyframes.
            transform: from the later sub-map's world to the earlier one's.
            overlap: as :class:`Loop` has it.
        """
        edges = [*self.edges, Edge(found.earlier, found.later, transform)]
        placed = optimise_pose_graph([submap.placed for submap in self.submaps], edges)
        if strain(placed, [edge for edge in edges if edge.weight > _GUESS]).max() > _MOST_STRAIN:
            return
        self.edges = edges
        for submap, pose in zip(self.submaps, placed, strict=True):
            submap.placed = pose
        before = self.submaps[found.earlier].keyframes[found.first].index
        after = self.submaps[found.later].keyframes[found.second].index
        self.loops.append(Loop(before, after, found.likeness, overlap))

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Return all that is known as arrays and facts, see :mod:`streamvggt.saving`."""
        arrays = pack_keyframes([keyframe for submap in self.submaps for keyframe in submap.keyframes])
        arrays |= {name: _packed([getattr(submap, name) for submap in self.submaps]) for name in _POSES}
        arrays["between"] = _packed([edge.transform for edge in self.edges])
        return arrays, {
            "submaps": [(submap.start, submap.given_from, len(submap.keyframes)) for submap in self.submaps],
            "edges": [(edge.first, edge.second, edge.weight) for edge in self.edges],
            "loops": [asdict(loop) for loop in self.loops],
        }

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Atlas:
        """Return the map that :meth:`pack` described."""
        atlas = cls()
        left = iter(unpack_keyframes(arrays, sum(count for _, _, count in facts["submaps"])))
        poses = zip(*(_unpacked(arrays[name]) for name in _POSES), strict=True)
        atlas.submaps = [
            SubMap(start, given_from, **dict(zip(_POSES, placing, strict=True)), keyframes=list(islice(left, count)))
            for (start, given_from, count), placing in zip(facts["submaps"], poses, strict=True)
        ]
        known = zip(facts["edges"], _unpacked(arrays["between"]), strict=True)
        atlas.edges = [Edge(first, second, between, weight) for (first, second, weight), between in known]
        atlas.loops = [Loop(**loop) for loop in facts["loops"]]
        return atlas

    def corrections(self, cameras: Sequence[FloatArray]) -> list[Similarity]:
        """Say where frames belong by now, see :meth:`streamvggt.LongSession.corrections`.

        Args:
            cameras: of all frames, world-to-camera ``[3, 4]``, as they were given out.
        """
        if not self.loops:
            return [Similarity.identity()] * len(cameras)
        starts = np.array([submap.given_from for submap in self.submaps])
        ends = np.append(starts[1:], len(cameras))
        place = np.interp(np.arange(len(cameras)), (starts + ends - 1) / 2, np.arange(len(starts)))
        # Chained, sub-maps fit at their seams; given out, those that came after a loop was closed do not.
        bends = [submap.placed.compose(submap.chained.inverse()) for submap in self.submaps]
        unbend = [submap.chained.compose(submap.emitted.inverse()) for submap in self.submaps]
        numbers = np.repeat(np.arange(len(starts)), ends - starts)
        corrections = []
        guessed = {edge.second for edge in self.edges if edge.weight == _GUESS}
        for number, x, camera in zip(numbers, place, cameras, strict=True):
            before, share = int(x), float(x % 1)
            after = min(before + 1, len(bends) - 1)
            if after in guessed or not np.isfinite(camera).all():  # nothing to go over to, or from
                corrections.append(bends[number].compose(unbend[number]))
                continue
            given = camera_pose(camera)
            chained = unbend[number].compose(given)
            placed = _between(bends[before].compose(chained), bends[after].compose(chained), share)
            corrections.append(placed.compose(given.inverse()))
        return corrections


def _packed(transforms: Sequence[Similarity]) -> NDArray[np.float64]:
    """Scale, rotation and translation of each, ``[N, 13]``."""
    rows = [np.concatenate([[t.scale], t.rotation.ravel(), t.translation]) for t in transforms]
    return np.array(rows, np.float64).reshape(-1, 13)


def _unpacked(rows: NDArray[np.float64]) -> list[Similarity]:
    return [Similarity(float(row[0]), row[1:10].reshape(3, 3), row[10:]) for row in rows]


def _lengths(rows: FloatArray) -> FloatArray:
    return np.linalg.norm(rows, axis=1, keepdims=True)


def _between(one: Similarity, other: Similarity, share: float) -> Similarity:
    """Go over from one pose to another: place, direction and logarithm of the unit, each evenly."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(one.rotation.T @ other.rotation).as_rotvec()
    return Similarity(
        float(one.scale ** (1 - share) * other.scale**share),
        one.rotation @ Rotation.from_rotvec(share * turn).as_matrix(),
        (1 - share) * one.translation + share * other.translation,
    )
