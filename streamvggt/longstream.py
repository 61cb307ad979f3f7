"""A stream without end: a chain of sub-maps, each begun anew, laid on one another, with loops closed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .geometry import Similarity, invert_pose
from .model import StreamVGGT
from .policies import CachePolicy, KeepAll
from .posegraph import Edge, optimise_pose_graph, require_scipy, strain
from .session import StreamSession
from .submaps import Keyframe, SubMap, View, align_views, jpeg_of, seen_again
from .types import FloatArray, Frame, FramePrediction, required

_KEYFRAME_EVERY = 4
_APART = 2  # sub-maps, at least, between two views of a loop
_ALIKE = 0.5  # cosine of descriptors, less their mean, from which two frames may show one place
_TRIES = 3  # pairs of sub-maps that are looked at for loops of one sub-map
_JOINT_FRAMES = 2  # from each side
_SURE = 0.5  # inliers of both alignments of a joint segment
_OVERLAP = 0.3  # of what a frame shows must be seen by the other
_MOST_STRAIN = 0.25  # by which a loop may bend one edge


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


class LongSession:
    """Reconstruct a stream of any length without the drift and the memory of one long session.

    The stream is cut into sub-maps: every ``length`` frames a new :class:`StreamSession` begins, which is exact near
    its own beginning; the last ``overlap`` frames of a sub-map are seen by its successor too and tell, point by point,
    how the two lie (a robust similarity). Where the camera comes to a place that an earlier sub-map knows, both views
    go through the network together, and if what it says fits both sub-maps, all of them move so that the loop closes.

    Predictions come at once, in the world as it is known then. :meth:`corrections` moves earlier ones to where they
    belong by now (see :meth:`streamvggt.Scene.correct`). Frames in an overlap cost double; so short clips are better
    off with a :class:`StreamSession`, and so is whoever wants point tracks, which end with a sub-map.

    Args:
        model: a causal network.
        policy: which frames of a sub-map are kept in memory.
        length: frames of a sub-map.
        overlap: frames that neighbouring sub-maps share, at least 1 and at most half of the length.
        loops: find and close them; needs SciPy.
        options: as for :class:`StreamSession`, for each of the two sessions of an overlap; cameras and depth must be
            among the outputs.

    Raises:
        ValueError: the overlap does not fit the length, or as for :class:`StreamSession`.
        ImportError: loops are to be closed, and SciPy is not installed.
    """

    def __init__(
        self,
        model: StreamVGGT,
        policy: CachePolicy = KeepAll(),  # noqa: B008 (frozen)
        *,
        length: int = 32,
        overlap: int = 4,
        loops: bool = True,
        **options: Any,
    ) -> None:
        if not 1 <= overlap <= length // 2:
            raise ValueError(f"overlap must be from 1 to half of the length, got {overlap} of {length}")
        wanted = options.get("outputs")
        if wanted is not None and not {"camera", "depth"} <= set(wanted):
            raise ValueError(f'a long session needs the outputs "camera" and "depth", got {sorted(wanted)}')
        if loops:
            require_scipy()
        self.model, self.length, self.overlap = model, length, overlap
        self._policy, self._loops_wanted, self._options = policy, loops, options
        self._session, self._next = self._begin(), _Coming()
        here = Similarity.identity()
        self._submaps = [SubMap(0, here, here, here)]
        self._edges: list[Edge] = []
        self._loops: list[Loop] = []
        self._cameras: list[FloatArray] = []  # as they were given out

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return len(self._cameras)

    @property
    def held_frames(self) -> tuple[int, ...]:
        """Numbers of the frames whose keys and values are held in memory, ascending."""
        start = self._submaps[-1].start
        return tuple(start + frame for frame in self._session.held_frames)

    @property
    def nbytes(self) -> int:
        """Bytes that the sessions hold (two of them in an overlap) and that is kept of all sub-maps."""
        kept = sum(keyframe.nbytes for submap in self._submaps for keyframe in submap.keyframes)
        kept += sum(camera.nbytes for camera in self._cameras)
        return kept + self._session.nbytes + self._next.nbytes

    @property
    def num_submaps(self) -> int:
        """Sub-maps so far."""
        return len(self._submaps)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Loops that were closed so far. :meth:`corrections` changes with each."""
        return tuple(self._loops)

    def corrections(self) -> list[Similarity]:
        """Say for every frame so far where what was predicted belongs by now.

        Between the middles of two sub-maps the transforms go over from one to the other, as seen from each camera, so
        that there are no seams.

        Returns:
            One transform a frame, from the world in which its prediction came to the world as it is known now; that of
            the first frames is the identity. See :func:`move_prediction` and :meth:`streamvggt.Scene.correct`.
        """
        if not self._loops:
            return [Similarity.identity()] * self.num_frames
        # The first frames of a sub-map were given out by the one before.
        starts = np.array([0, *(submap.start + self.overlap for submap in self._submaps[1:])])
        ends = np.append(starts[1:], self.num_frames)
        place = np.interp(np.arange(self.num_frames), (starts + ends - 1) / 2, np.arange(len(starts)))
        # Chained, sub-maps fit at their seams; given out, those that came after a loop was closed do not.
        bends = [submap.placed.compose(submap.chained.inverse()) for submap in self._submaps]
        unbend = [submap.chained.compose(submap.emitted.inverse()) for submap in self._submaps]
        numbers = np.repeat(np.arange(len(starts)), ends - starts)
        corrections = []
        for number, x, camera in zip(numbers, place, self._cameras, strict=True):
            before, share = int(x), float(x % 1)
            after = min(before + 1, len(bends) - 1)
            camera_to_world = invert_pose(np.asarray(camera, np.float64))
            given = Similarity(1.0, camera_to_world[:, :3], camera_to_world[:, 3])
            chained = unbend[number].compose(given)
            placed = _between(bends[before].compose(chained), bends[after].compose(chained), share)
            corrections.append(placed.compose(given.inverse()))
        return corrections

    def step(self, frame: Frame | NDArray[np.uint8]) -> FramePrediction:
        """Take the next frame of the stream and say what it shows, in the world as it is known now.

        Args:
            frame: as for :meth:`StreamSession.step`.

        Raises:
            ValueError: as there. The stream is as it was before the call.
        """
        if not isinstance(frame, Frame):
            frame = Frame(frame, time_s=float(self.num_frames))
        submap = self._submaps[-1]
        said = self._session.step(frame)
        self._keep(submap.keyframes, said, self.num_frames)
        if said.index >= self.length - self.overlap:
            coming = self._next
            coming.session = coming.session or self._begin()
            again = coming.session.step(frame)
            self._keep(coming.keyframes, again, self.num_frames)
            coming.shared.append((View.of(again), View.of(said)))
        prediction = replace(move_prediction(said, submap.emitted), index=self.num_frames)
        self._cameras.append(required(prediction.extrinsics, "camera"))
        if said.index == self.length - 1:
            self._hand_over()
        return prediction

    def run(self, frames: Iterable[Frame | NDArray[np.uint8]]) -> Iterator[FramePrediction]:
        """Take frames one after the other, yield a prediction for each, and look for loops once more at the end."""
        for frame in frames:
            yield self.step(frame)
        self.close_loops()

    def close_loops(self) -> None:
        """Look for loops in the newest sub-map too, which otherwise waits for its end; the stream may go on."""
        if self._loops_wanted:
            self._search(len(self._submaps) - 1)

    def _begin(self) -> StreamSession:
        return StreamSession(self.model, self._policy, **self._options)

    def _keep(self, keyframes: list[Keyframe], said: FramePrediction, index: int) -> None:
        """Keep every fourth frame of a sub-map, if loops are to be found."""
        if not self._loops_wanted or said.index % _KEYFRAME_EVERY:
            return
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(said.image.transpose(2, 0, 1).astype(np.float32) / 255).to(device)
        descriptor = self.model.describe(pixels[None, None])[0, 0].float().cpu().numpy()
        keyframes.append(Keyframe(index, jpeg_of(said.image), descriptor, View.of(said)))

    def _hand_over(self) -> None:
        """End the newest sub-map, and go on with the one that has seen its last frames."""
        coming, last = self._next, len(self._submaps) - 1
        assert coming.session is not None
        between = align_views(*zip(*coming.shared, strict=True)).transform
        self.close_loops()
        chained, placed = (pose.compose(between) for pose in (self._submaps[last].chained, self._submaps[last].placed))
        self._submaps.append(SubMap(self.num_frames - self.overlap, chained, placed, placed, coming.keyframes))
        self._edges.append(Edge(last, last + 1, between))
        self._session, self._next = coming.session, _Coming()

    def _search(self, number: int) -> None:
        """Look for places of a sub-map that earlier ones know, and close the loops."""
        found = self._candidates(number)
        for likeness, earlier, first, second in found[:_TRIES]:
            sides = (self._submaps[earlier].keyframes, first), (self._submaps[number].keyframes, second)
            edge, overlap = self._verify(*sides)
            if edge is None:
                continue
            edges = [*self._edges, Edge(earlier, number, edge)]
            placed = optimise_pose_graph([submap.placed for submap in self._submaps], edges)
            if strain(placed, edges).max() > _MOST_STRAIN:
                continue
            self._edges = edges
            for submap, pose in zip(self._submaps, placed, strict=True):
                submap.placed = pose
            before, after = (keyframes[which].index for keyframes, which in sides)
            self._loops.append(Loop(before, after, likeness, overlap))

    def _candidates(self, number: int) -> list[tuple[float, int, int, int]]:
        """Likeness, sub-map and the numbers of the keyframes in both, of the likest pair a sub-map; likest first."""
        descriptors = [
            np.stack([k.descriptor for k in s.keyframes]) for s in self._submaps[: number + 1] if s.keyframes
        ]
        if len(descriptors) <= number:
            return []
        centre = np.concatenate(descriptors).mean(0)
        # What all frames of a stream have in common tells no places apart.
        unit = [(d - centre) / np.maximum(np.linalg.norm(d - centre, axis=1, keepdims=True), 1e-9) for d in descriptors]
        known = {(edge.first, edge.second) for edge in self._edges}
        found = []
        for earlier in range(number + 1 - _APART):
            likeness = unit[earlier] @ unit[number].T
            first, second = np.unravel_index(likeness.argmax(), likeness.shape)
            if likeness[first, second] >= _ALIKE and (earlier, number) not in known:
                found.append((float(likeness[first, second]), earlier, int(first), int(second)))
        return sorted(found, reverse=True)

    def _verify(self, *sides: tuple[list[Keyframe], int]) -> tuple[Similarity | None, float]:
        """Look at both places together: how the later sub-map lies in the earlier, or None; what share is common."""
        session, views, alignments = self._begin(), [], []
        for keyframes, which in sides:
            around = range(len(keyframes))[max(0, min(which, len(keyframes) - _JOINT_FRAMES)) :][:_JOINT_FRAMES]
            joint = [View.of(session.step(keyframes[i].image())) for i in around]
            views.append(joint[which - around[0]])
            alignments.append(align_views(joint, [keyframes[i].view for i in around]))
        overlap = max(seen_again(views[0], views[1]), seen_again(views[1], views[0]))
        if overlap < _OVERLAP or min(alignment.inliers for alignment in alignments) < _SURE:
            return None, overlap
        to_earlier, to_later = (alignment.transform for alignment in alignments)
        return to_earlier.compose(to_later.inverse()), overlap


def _between(one: Similarity, other: Similarity, share: float) -> Similarity:
    """Go over from one pose to another: place, direction and logarithm of the unit, each evenly."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(one.rotation.T @ other.rotation).as_rotvec()
    return Similarity(
        float(one.scale ** (1 - share) * other.scale**share),
        one.rotation @ Rotation.from_rotvec(share * turn).as_matrix(),
        (1 - share) * one.translation + share * other.translation,
    )


@dataclass(eq=False)
class _Coming:
    """The sub-map that sees the last frames of the newest, and with it what both say of them."""

    session: StreamSession | None = None
    keyframes: list[Keyframe] = field(default_factory=list)
    shared: list[tuple[View, View]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        views = sum(new.nbytes + old.nbytes for new, old in self.shared)
        return views + sum(k.nbytes for k in self.keyframes) + (0 if self.session is None else self.session.nbytes)


def move_prediction(prediction: FramePrediction, move: Similarity) -> FramePrediction:
    """Bring a prediction to another world, as :meth:`LongSession.corrections` asks for: camera, depth and points.

    The unit of the depth is that of the world, so it changes with the scale. Images, tracks and confidences stay.
    """
    points, depth, pose = prediction.world_points, prediction.depth, prediction.extrinsics
    return replace(
        prediction,
        world_points=None if points is None else move.apply(points).astype(np.float32),
        depth=None if depth is None else (move.scale * depth).astype(np.float32),
        extrinsics=None if pose is None else move.apply_to_extrinsics(pose).astype(np.float32),
    )
