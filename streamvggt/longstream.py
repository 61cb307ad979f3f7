"""A stream without end: a chain of sub-maps, each begun anew, laid on one another, with loops closed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .atlas import Atlas, Loop
from .geometry import Similarity
from .loops import look_together, match_together
from .memory import byte_count
from .model import StreamVGGT
from .policies import CachePolicy, KeepAll
from .posegraph import require_scipy
from .saving import Facts, Tensors, read_session, rule_facts, rule_of, write_session
from .session import Prepared, StreamSession, in_groups, pack_session, require_one_size, session_options, unpack_session
from .submaps import (
    Arrays,
    Keyframe,
    View,
    align_views,
    camera_pose,
    jpeg_of,
    pack_keyframes,
    pack_views,
    unpack_keyframes,
    unpack_views,
)
from .types import FloatArray, Frame, FramePrediction, required

_KEYFRAME_EVERY = 4
_TRIES = 3  # pairs of sub-maps that are looked at for loops of one sub-map
_PATIENCE = 2  # lengths of a sub-map after which it ends even if nothing tells how the next one lies

logger = logging.getLogger(__name__)


class LongSession:
    """Reconstruct a stream of any length without the drift and the memory of one long session.

    The stream is cut into sub-maps: every ``length`` frames a new :class:`StreamSession` begins, which is exact near
    its own beginning; the last ``overlap`` frames of a sub-map are seen by its successor too and tell, point by point,
    how the two lie (a robust similarity). Where the camera comes to a place that an earlier sub-map knows, the patches
    that both views share tell how they lie; or, where cameras are not refined, both go through the network together. If
    that fits both sub-maps, all of them move so that the loop closes.

    Where an overlap does not tell how two sub-maps lie, because what the network says is not finite, the older one goes
    on until another overlap does, up to twice its length, and one warning says so.

    Predictions come at once, in the world as it is known then. :meth:`corrections` moves earlier ones to where they
    belong by now (see :meth:`streamvggt.Scene.correct`). Frames in an overlap cost double; so short clips are better
    off with a :class:`StreamSession`, and so is whoever wants point tracks, which end with a sub-map.

    Args:
        model: a causal network.
        policy: which frames of a sub-map are kept in memory.
        length: frames of a sub-map.
        overlap: frames that neighbouring sub-maps share, at least 1 and at most half of the length.
        loops: find and close them; needs SciPy.
        memory: what all inner streams may remember together, as for :class:`StreamSession`; it is never passed. Each of
            those that can be there at once has an equal part: two in an overlap, and where the network looks for loops
            a third that sees two places together. What is kept of sub-maps that have ended comes on top, and grows with
            the stream: for every fourth frame a JPEG, a grid of about 1000 depths with their confidences and
            descriptors (24 KB more where cameras are refined), and a camera for each.
        options: as for :class:`StreamSession`; cameras and depth must be among the outputs. Cameras are refined where
            the network can, unless ``refine=False``; and then loops are closed by the patches that two frames share.

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
        memory: int | str | None = None,
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
        self._loops_wanted, self._asked = loops, policy
        self._memory = None if memory is None else byte_count(memory)
        options = {"refine": model.config.can_refine} | options
        self._looks = loops and not options["refine"]
        self._begin(StreamSession(model, policy, memory=self._share(self._memory), **options))

    def _begin(self, session: StreamSession) -> None:
        """Have seen nothing."""
        self._session, self._next = session, _Coming()
        self._atlas = Atlas()
        self._cameras: list[FloatArray] = []  # as they were given out

    def _share(self, memory: int | None) -> int | None:
        """What each of the streams that can be there at once may remember of ``memory`` bytes."""
        return None if memory is None else memory // (3 if self._looks else 2)

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return len(self._cameras)

    @property
    def held_frames(self) -> tuple[int, ...]:
        """Numbers of the frames whose keys and values are held in memory, ascending."""
        start = self._atlas.newest.start
        return tuple(start + frame for frame in self._session.held_frames)

    @property
    def nbytes(self) -> int:
        """Bytes that the inner streams hold (two of them in an overlap), and those that are kept of all sub-maps."""
        kept = sum(keyframe.nbytes for submap in self._atlas.submaps for keyframe in submap.keyframes)
        kept += sum(camera.nbytes for camera in self._cameras)
        return kept + self._session.nbytes + self._next.nbytes

    @property
    def num_submaps(self) -> int:
        """Sub-maps so far."""
        return len(self._atlas.submaps)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Loops that were closed so far. :meth:`corrections` changes with each."""
        return tuple(self._atlas.loops)

    def corrections(self) -> list[Similarity]:
        """Say for every frame so far where what was predicted belongs by now.

        Between the middles of two sub-maps the transforms go over from one to the other, as seen from each camera, so
        that there are no seams.

        Returns:
            One transform a frame, from the world in which its prediction came to the world as it is known now; that of
            the first frames is the identity. See :func:`move_prediction` and :meth:`streamvggt.Scene.correct`.
        """
        return self._atlas.corrections(self._cameras)

    @property
    def policy(self) -> CachePolicy:
        """Which frames of the newest sub-map are kept, see :attr:`StreamSession.policy`."""
        return self._session.policy

    def set_policy(self, policy: CachePolicy, *, memory: int | str | None = None) -> None:
        """Go on with another policy and memory, also in sub-maps to come, see :meth:`StreamSession.set_policy`.

        Args:
            policy: which frames of a sub-map are kept from here on.
            memory: as for a new session; None sets no limit.

        Raises:
            ValueError: as there. The stream is as it was before, save that an overlap may begin anew.
        """
        count = None if memory is None else byte_count(memory)
        try:
            for session in filter(None, (self._next.session, self._session)):
                session.set_policy(policy, memory=self._share(count))
        except BaseException:
            self._next = _Coming()  # it may have changed
            raise
        self._asked, self._memory = policy, count

    def reset(self) -> None:
        """Forget the stream, its sub-maps and its loops: the next frame is the first of a new one."""
        options = session_options(self._session)
        self._begin(StreamSession(self.model, self._asked, memory=self._share(self._memory), **options))

    def step(self, frame: Frame | NDArray[np.uint8]) -> FramePrediction:
        """Take the next frame of the stream and say what it shows, in the world as it is known now.

        Args:
            frame: as for :meth:`StreamSession.step`.

        Raises:
            ValueError: as there. The stream is as it was before the call.
        """
        return self.step_many([frame])[0]

    def step_many(self, frames: Sequence[Frame | NDArray[np.uint8]]) -> list[FramePrediction]:
        """Take the next frames of the stream at once, see :meth:`StreamSession.step_many`.

        Args:
            frames: one or more, each as :meth:`step` takes it; at the borders of sub-maps they are taken in parts.

        Raises:
            ValueError: as there. The stream is as it was before the call. (Where the memory of the machine runs out,
                the parts before have been seen, see :attr:`num_frames`.)
        """
        prepared = [self._prepare(frame, i) for i, frame in enumerate(frames)]
        require_one_size(prepared)
        return list(self._predict(prepared))

    def run(self, frames: Iterable[Frame | NDArray[np.uint8]], *, chunk: int = 1) -> Iterator[FramePrediction]:
        """Take frames one after the other, yield a prediction for each, and look for loops once more at the end.

        Args:
            frames: each as :meth:`step` takes it.
            chunk: frames taken at once, as for :meth:`StreamSession.run`; fewer at the borders of sub-maps.

        Raises:
            ValueError: as there.
        """
        prepared = (self._prepare(frame, i % chunk) for i, frame in enumerate(frames))
        for group in in_groups(prepared, chunk, Prepared.image_hw):
            yield from self._predict(group)
        self.close_loops()

    def close_loops(self) -> None:
        """Look for loops in the newest sub-map too, which otherwise waits for its end; the stream may go on."""
        self._search(self.num_submaps - 1)

    def save(self, path: str | Path) -> None:
        """Write all that the stream remembers to one file, see :meth:`StreamSession.save`; an overlap may be under way.

        Args:
            path: of a safetensors file; missing folders are made.

        Raises:
            OSError, ValueError: as there.
        """
        write_session(Path(path), "LongSession", self.model, *self._pack())

    @classmethod
    def resume(cls, model: StreamVGGT, path: str | Path) -> LongSession:
        """Go on with a saved stream, see :meth:`StreamSession.resume`; loops and corrections are as they were.

        Args:
            model: with the weights that the stream was saved with.
            path: of the file.

        Raises:
            SavedSessionError, OSError: as there.
            ImportError: the stream closes loops, and SciPy is not installed.
        """
        return read_session(Path(path), "LongSession", model, partial(cls._unpack, model))

    def _pack(self) -> tuple[Tensors, Facts]:
        """All that is remembered, see :mod:`streamvggt.saving`."""
        coming = self._next
        atlas, atlas_facts = self._atlas.pack()
        arrays = {"atlas": atlas, "keyframes": pack_keyframes(coming.keyframes)}
        arrays |= {f"shared{i}": pack_views([pair[i] for pair in coming.shared]) for i in range(2)}
        tensors = {f"{part}.{name}": torch.from_numpy(x) for part in arrays for name, x in arrays[part].items()}
        tensors["cameras"] = torch.from_numpy(np.array(self._cameras, np.float32).reshape(-1, 3, 4))
        facts: Facts = {
            "long": {"length": self.length, "overlap": self.overlap, "loops": self._loops_wanted},
            "asked": rule_facts(self._asked),
            "memory": self._memory,
            "atlas": atlas_facts,
            "coming": (len(coming.keyframes), len(coming.shared)),
        }
        for part, session in (("session", self._session), ("next", coming.session)):
            if session is not None:
                held, facts[part] = pack_session(session)
                tensors |= {f"{part}.{name}": tensor for name, tensor in held.items()}
        return tensors, facts

    @classmethod
    def _unpack(cls, model: StreamVGGT, facts: Facts, tensors: Tensors) -> LongSession:
        """Make a session of what :meth:`_pack` returned."""

        def part(name: str) -> Tensors:
            return {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}

        def arrays(name: str) -> Arrays:
            return {key: tensor.numpy() for key, tensor in part(name).items()}

        first = unpack_session(model, facts["session"], part("session"))
        options = session_options(first)
        session = cls(model, rule_of(facts["asked"]), memory=facts["memory"], **facts["long"], **options)
        session._session = first
        session._atlas = Atlas.unpack(arrays("atlas"), facts["atlas"])
        session._cameras = list(tensors["cameras"].numpy())
        coming, (keyframes, shared) = session._next, facts["coming"]
        if "next" in facts:
            coming.session = unpack_session(model, facts["next"], part("next"))
        coming.keyframes = unpack_keyframes(arrays("keyframes"), keyframes)
        views = (unpack_views(arrays(f"shared{i}"), shared) for i in range(2))
        coming.shared = list(zip(*views, strict=True))
        return session

    def _prepare(self, frame: Frame | NDArray[np.uint8], ahead: int) -> Prepared:
        """Bring the frame that comes after ``ahead`` others to the form that the network takes."""
        return Prepared.of(frame, self.num_frames + ahead, self._session.size, self.model.config.patch_size)

    def _predict(self, frames: Sequence[Prepared]) -> Iterator[FramePrediction]:
        """Extend the stream by frames of one size."""
        while frames:
            said = self._take(frames)
            yield from said
            frames = frames[len(said) :]

    def _take(self, frames: Sequence[Prepared]) -> list[FramePrediction]:
        """Take those of the frames that come before the next border: where an overlap begins or ends.

        An error leaves the stream as it was, save that an overlap may begin anew.
        """
        self._settle()
        coming, seen = self._next, self._session.num_frames
        in_overlap = seen >= self.length - self.overlap
        frames = frames[: self.overlap - len(coming.shared) if in_overlap else self.length - self.overlap - seen]
        again: list[FramePrediction] = []
        try:
            if in_overlap:
                coming.session = coming.session or self._session.another()
                again = coming.session.step_many(frames)
            said = self._session.step_many(frames)
        except BaseException as error:
            # A frame that is refused was seen by none; else the coming sub-map may have seen what the stream has not.
            if again or (in_overlap and not isinstance(error, ValueError)):
                self._next = _Coming()
            raise
        submap, first = self._atlas.newest, self.num_frames
        for new, old in zip(again, said[: len(again)], strict=True):
            self._keep(coming.keyframes, new, submap.start + old.index)
            coming.shared.append((View.of(new), View.of(old)))
        predictions = []
        for i, one in enumerate(said, first):
            self._keep(submap.keyframes, one, i)
            predictions.append(replace(move_prediction(one, submap.emitted), index=i))
            self._cameras.append(required(predictions[-1].extrinsics, "camera"))
        return predictions

    def _keep(self, keyframes: list[Keyframe], said: FramePrediction, index: int) -> None:
        """Keep every fourth frame of a sub-map by which it can be found again, if loops are to be found."""
        if not self._loops_wanted or said.index % _KEYFRAME_EVERY or said.descriptor is None:
            return
        if np.isfinite(said.descriptor).all() and np.isfinite(required(said.extrinsics, "camera")).all():
            patches = None if said.patch_descriptors is None else said.patch_descriptors.astype(np.float16)
            keyframes.append(Keyframe(index, jpeg_of(said.image), said.descriptor, View.of(said), patches))

    def _settle(self) -> None:
        """Do what is due before the next frame; if it fails, the frame before has been given out, and it is due again.

        After its last frame a sub-map ends, and one of which nothing was given out yet waits for the loops of the one
        before: its predictions come where these have moved it.
        """
        if len(self._next.shared) == self.overlap:
            self._hand_over()
        newest = self._atlas.newest
        if newest.given_from == self.num_frames > 0:
            self._search(self.num_submaps - 2)
            newest.emitted = newest.placed

    def _hand_over(self) -> None:
        """End the newest sub-map and go on with the one that has seen its last frames, if they tell how it lies.

        If not, the newest one goes on until a fresh overlap does; but not for ever, or its memory would grow.
        """
        coming, seen, number = self._next, self._session.num_frames, self.num_submaps - 1
        assert coming.session is not None
        sure = True
        try:
            between = align_views(*zip(*coming.shared, strict=True)).transform
        except ValueError as error:
            if seen < _PATIENCE * self.length:
                if seen < self.length + self.overlap:
                    logger.warning("sub-map %d goes on, for nothing tells yet how the next one lies: %s", number, error)
                self._next = _Coming()
                return
            logger.warning("sub-map %d begins where the last known camera is, for nothing tells more", number + 1)
            between, sure = self._last_camera(), False
        start = self.num_frames - self.overlap
        self._atlas.append(start, self.num_frames, between, coming.keyframes, sure=sure)
        self._session, self._next = coming.session, _Coming()

    def _last_camera(self) -> Similarity:
        """Where the last camera that is known stands in the newest sub-map, in whose units."""
        known = (camera for camera in reversed(self._cameras) if np.isfinite(camera).all())
        emitted = self._atlas.newest.emitted
        return emitted.inverse().compose(camera_pose(next(known, np.eye(3, 4, dtype=np.float32)), emitted.scale))

    def _search(self, number: int) -> None:
        """Look for places of a sub-map that earlier ones know, and close the loops."""
        for found in self._atlas.candidates(number)[:_TRIES] if self._loops_wanted else ():
            earlier, later = (self._atlas.submaps[i].keyframes for i in (found.earlier, found.later))
            if self._session.refine:
                pair = earlier[found.first], later[found.second]
                transform, overlap = match_together(*pair, self.model.config.patch_size)
            else:
                session = self._session.another()
                transform, overlap = look_together(session, (earlier, found.first), (later, found.second))
            if transform is not None:
                self._atlas.close(found, transform, overlap)


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
