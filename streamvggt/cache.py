"""The memory of a stream: which frames it holds, their keys and values, and the features that point tracks need.

Three things are kept apart. A *policy* decides which frames stay. *Slots* carry that decision to every cache, so that
no two of them can disagree. A *KVCache* stores keys and values by slot and attends over them. Keys are stored after
normalisation and rotation and VGGT has no position in time, so held frames are a set: a frame is evicted by
overwriting its slot, and nothing is ever concatenated, shifted or rotated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .attention import Attend
from .matching import MatchMemory


class CachePolicy(Protocol):
    """Decides which frames a stream keeps. Implementations are frozen dataclasses."""

    @property
    def capacity(self) -> int | None:
        """The most frames held at once, the newest among them; None for no limit."""

    def evict(self, held: Sequence[int], frame: int) -> int | None:
        """Name the frame that makes room for ``frame``, or None if there is room.

        Args:
            held: numbers of the frames held, ascending.
            frame: number of the frame that comes in.
        """


@dataclass(frozen=True)
class KeepAll:
    """Keep every frame: exact, with memory and time that grow with the stream."""

    @property
    def capacity(self) -> None:
        """No limit."""
        return None

    def evict(self, held: Sequence[int], frame: int) -> None:
        """Never make room."""
        return


@dataclass(frozen=True)
class AnchorWindow:
    """Keep the first frames, which define world and scale, and the most recent ones.

    Attributes:
        anchors: frames kept from the start of the stream, at least 1.
        recent: most recent frames kept, the newest among them, at least 1.
    """

    anchors: int = 1
    recent: int = 15

    def __post_init__(self) -> None:
        if not (isinstance(self.anchors, int) and isinstance(self.recent, int) and min(self.anchors, self.recent) >= 1):
            raise ValueError(
                f"AnchorWindow needs whole numbers of at least 1, got anchors={self.anchors} and recent={self.recent}; "
                "the first frame defines the world and the newest must be seen"
            )

    @property
    def capacity(self) -> int:
        """Anchors and recent frames together."""
        return self.anchors + self.recent

    def evict(self, held: Sequence[int], frame: int) -> int | None:
        """Name the oldest frame that is no anchor, once the window is full."""
        return held[self.anchors] if len(held) == self.capacity else None


class Step(NamedTuple):
    """What one coming frame does to the slots."""

    slot: int  # where it is written
    held: tuple[int, ...]  # frames held once it is written, by slot

    @property
    def used(self) -> int:
        """Slots in use once it is written; they are the first ones."""
        return len(self.held)


class Slots:
    """Which frame lies in which slot; one plan for every cache of a stream.

    A call on the stream goes :meth:`begin`, all caches write and attend by :attr:`plan`, :meth:`commit`. A call that
    fails before its commit can be repeated, unless it overwrote frames that the repetition would have to see.
    """

    def __init__(self, policy: CachePolicy) -> None:
        self.policy = policy
        self.frames: list[int] = []  # frame number by slot
        self.num_frames = 0  # frames seen so far
        self.plan: list[Step] = []  # one step for each coming frame
        self._planned: list[int] = []
        self._overwritten: set[int] = set()  # held slots that calls without a commit have written

    def begin(self, num_frames: int) -> None:
        """Choose slots for the next ``num_frames`` frames.

        Raises:
            ValueError: the last call failed after it overwrote frames that this one would take for held.
        """
        frames = list(self.frames)
        self.plan = []
        for frame in range(self.num_frames, self.num_frames + num_frames):
            victim = self.policy.evict(sorted(frames), frame)
            if victim is None:
                frames.append(frame)
            else:
                frames[frames.index(victim)] = frame
            self.plan.append(Step(frames.index(frame), tuple(frames)))
        if not self._overwritten <= {self.plan[0].slot}:
            raise ValueError(
                f"the last call failed after it overwrote {len(self._overwritten)} held frames, which are lost; "
                "start another stream"
            )
        self._overwritten |= {step.slot for step in self.plan} & set(range(len(self.frames)))
        self._planned = frames

    def commit(self) -> None:
        """Make the planned frames the held ones."""
        self.num_frames += len(self.plan)
        self.frames, self.plan, self._overwritten = self._planned, [], set()


class KVCache:
    """Keys and values of the held frames in one attention layer, ``[B, heads, F, P, D]``, written in place."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write each frame to its slot and attend from it over the held frames (an ``Attend``).

        The S frames are taken one after the other, so a chunk gives what its frames would give one at a time.
        """
        frames = []
        for s, step in enumerate(self._slots.plan):
            keys, values = self._reserve(step.used, k, v)
            keys[:, :, step.slot] = k[:, :, s]
            values[:, :, step.slot] = v[:, :, s]
            past = slice(step.used)
            frames.append(
                scaled_dot_product_attention(
                    q[:, :, s], keys[:, :, past].flatten(2, 3), values[:, :, past].flatten(2, 3)
                )
            )
        return torch.stack(frames, dim=2)

    @property
    def nbytes(self) -> int:
        """Bytes of the held frames' keys and values; buffers that double may have room for as many more."""
        if self._keys is None or self._values is None:
            return 0
        held = len(self._slots.frames)
        return self._keys[:, :, :held].nbytes + self._values[:, :, :held].nbytes

    def _reserve(self, used: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return buffers with at least ``used`` slots; they double when full, up to the policy's capacity."""
        if self._keys is None or self._values is None or self._keys.shape[2] < used:
            size = 1 << (used - 1).bit_length()
            if self._slots.policy.capacity is not None:
                size = min(size, self._slots.policy.capacity)
            self._keys = _grown(self._keys, k, size)
            self._values = _grown(self._values, v, size)
        return self._keys, self._values


class SharedRoundsCache(KVCache):
    """One cache for all refinement rounds of a camera block, as in the released StreamVGGT code.

    There every round leaves an entry of its own in one list, and each round sees the entries of all rounds. The poses
    published with that code were computed so; frame by frame they differ from those of all frames at once.
    """

    def __init__(self, slots: Slots, num_rounds: int) -> None:
        super().__init__(slots)
        self._num_rounds = num_rounds

    def attend_in_round(self, q: Tensor, k: Tensor, v: Tensor, *, round_index: int) -> Tensor:
        """Write this round's entry of the one coming frame and attend over all entries made so far."""
        [step] = self._slots.plan
        room = (-1, -1, -1, self._num_rounds, -1)
        keys, values = self._reserve(step.used, k.expand(room), v.expand(room))
        # The rounds to come are masked, but must be finite all the same.
        keys[:, :, step.slot, round_index:] = k[:, :, 0]
        values[:, :, step.slot, round_index:] = v[:, :, 0]
        seen = torch.ones(step.used, self._num_rounds, dtype=torch.bool, device=q.device)
        seen[step.slot, round_index + 1 :] = False
        past = slice(step.used)
        out = scaled_dot_product_attention(
            q[:, :, 0], keys[:, :, past].flatten(2, 3), values[:, :, past].flatten(2, 3), attn_mask=seen.flatten()[None]
        )
        return out[:, :, None]


def _grown(buffer: Tensor | None, like: Tensor, size: int) -> Tensor:
    """Return a buffer of ``size`` slots for frames such as ``like`` holds, with the content of the old one."""
    b, heads, _, p, d = like.shape
    # A buffer made in inference mode could not be written outside it.
    with torch.inference_mode(False):
        new = torch.empty(b, heads, size, p, d, dtype=like.dtype, device=like.device)
    if buffer is not None:
        new[:, :, : buffer.shape[2]] = buffer
    return new


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


class StreamState:
    """All that ``B`` streams remember of their past. :meth:`streamvggt.StreamVGGT.new_state` makes one.

    Args:
        depth: global blocks, each with a cache.
        camera_rounds: refinement rounds of the camera head.
        camera_depth: blocks of the camera head.
        policy: which frames are kept.
        camera_cache: "per_iteration" gives each refinement round its own cache, so that a stream equals a batch;
            "shared" reproduces the poses of the released streaming code.
    """

    def __init__(
        self,
        *,
        depth: int,
        camera_rounds: int,
        camera_depth: int,
        policy: CachePolicy,
        camera_cache: Literal["per_iteration", "shared"],
    ) -> None:
        self.slots = Slots(policy)
        self.tracks = TrackMemory()
        self.matches = MatchMemory()
        self.camera_cache = camera_cache
        self.input_shape: tuple[int, int, int] | None = None  # B, H, W of the first call
        self._blocks = [KVCache(self.slots) for _ in range(depth)]
        self._camera = [
            [KVCache(self.slots) for _ in range(camera_depth)]
            for _ in range(camera_rounds if camera_cache == "per_iteration" else 0)
        ]
        self._shared_camera = [
            SharedRoundsCache(self.slots, camera_rounds) for _ in range(camera_depth if camera_cache == "shared" else 0)
        ]

    @property
    def policy(self) -> CachePolicy:
        """Which frames are kept."""
        return self.slots.policy

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return self.slots.num_frames

    @property
    def held_frames(self) -> tuple[int, ...]:
        """Numbers of the frames held, ascending."""
        return tuple(sorted(self.slots.frames))

    @property
    def nbytes(self) -> int:
        """Bytes held: keys and values of blocks and camera head, descriptors, feature pyramids of point tracks."""
        caches = [*self._blocks, *self._shared_camera, *(cache for row in self._camera for cache in row)]
        return sum(cache.nbytes for cache in caches) + self.matches.nbytes + self.tracks.nbytes

    @property
    def holds_cameras(self) -> bool:
        """Whether the camera head has seen the frames so far."""
        return any(cache.nbytes for cache in (*self._shared_camera, *(cache for row in self._camera for cache in row)))

    @property
    def block_attends(self) -> list[Attend]:
        """How each global block attends."""
        return [cache.attend for cache in self._blocks]

    def camera_attend(self, round_index: int, block: int) -> Attend:
        """How a block of the camera head attends in a refinement round."""
        if self.camera_cache == "shared":
            return partial(self._shared_camera[block].attend_in_round, round_index=round_index)
        return self._camera[round_index][block].attend
