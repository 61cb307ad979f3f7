"""The caches of a stream: which frames lie where, and the keys and values of every attention layer.

A *policy* decides which frames stay. *Slots* carry that decision to every cache, so that no two of them can disagree. A
*KVCache* stores keys and values by slot and attends over them. Keys are stored after normalisation and rotation and
VGGT has no position in time, so held frames are a set: a frame is evicted by overwriting its slot, and nothing is ever
concatenated, shifted or rotated again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from .attention import side_by_side
from .policies import CachePolicy
from .stores import NativeStore, Store

_SAME_FRAME = 1e-3  # distance of prototypes, which have length 1


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

    A call on the stream goes :meth:`begin`, :meth:`choose` as soon as the keys of the first block are there, all caches
    write and attend by :attr:`plan`, :meth:`commit`. A call that fails before its commit can be repeated, unless it
    overwrote what the repetition would have to see: held frames, or single tokens of them.
    """

    def __init__(self, policy: CachePolicy) -> None:
        self.policy = policy
        self.frames: list[int] = []  # frame number by slot
        self.prototypes: dict[int, Tensor] = {}  # of held frames, [B, E], by frame number
        self.num_frames = 0  # frames seen so far
        self.plan: list[Step] = []  # one step for each coming frame
        self.lost: str | None = None  # why the streams cannot go on
        self._coming = 0
        self._planned: list[int] = []
        self._planned_prototypes: dict[int, Tensor] = {}
        self._overwritten: set[int] = set()  # held slots that calls without a commit have written
        self._thinned_by = -1  # last frame of such calls, counted from their first, that overwrote single held tokens
        self._first: Tensor | None = None  # prototype of the first frame of the last call, [B, E]

    @property
    def capacity(self) -> int | None:
        """The most frames held at once."""
        return self.policy.capacity

    def begin(self, num_frames: int) -> None:
        """Announce the next ``num_frames`` frames."""
        self._coming, self.plan = num_frames, []

    def choose(self, prototypes: Tensor) -> None:
        """Choose slots for the coming frames, from their prototypes ``[B, S, E]`` and those of the held ones.

        Raises:
            ValueError: the last call failed after it overwrote what this one would take for held, or the policy kept
                other frames than it may.
        """
        frames, known, plan = list(self.frames), dict(self.prototypes), list[Step]()
        for s in range(self._coming):
            frame = self.num_frames + s
            known[frame] = prototypes[:, s].clone()  # a view would keep the whole chunk
            victim = self._victim(sorted([*frames, frame]), known)
            if victim is None:
                frames.append(frame)
            else:
                frames[frames.index(victim)] = frame
                del known[victim]
            plan.append(Step(frames.index(frame), tuple(frames)))
        if not self._overwritten <= {plan[0].slot}:
            raise ValueError(
                f"the last call failed after it overwrote {len(self._overwritten)} held frames, which are lost; "
                "start another stream"
            )
        if self._thinned_by > 0 or (self._thinned_by == 0 and not self._is_first(prototypes[:, 0])):
            what_to_do = ", which are lost;" if self._thinned_by else "; repeat it with the same frame, or"
            raise ValueError(f"the last call failed after it overwrote held tokens{what_to_do} start another stream")
        self._overwritten |= {step.slot for step in plan} & set(range(len(self.frames)))
        self._first = prototypes[:, 0].clone()
        self.plan, self._planned, self._planned_prototypes = plan, frames, known

    def thin(self, s: int) -> None:
        """Note that frame ``s`` of the call overwrites single tokens of held frames."""
        self._thinned_by = max(self._thinned_by, s)

    def commit(self) -> None:
        """Make the planned frames the held ones."""
        self.num_frames += len(self.plan)
        self.frames, self.prototypes = self._planned, self._planned_prototypes
        self.plan, self._overwritten, self._thinned_by, self._first = [], set(), -1, None

    def check_not_lost(self) -> None:
        """Raise ValueError if the streams cannot go on."""
        if self.lost is not None:
            raise ValueError(f"{self.lost}; start another stream")

    def check_settled(self) -> None:
        """Raise ValueError after a call that failed when it had already overwritten held frames or tokens."""
        self.check_not_lost()
        if self._overwritten or self._thinned_by >= 0:
            what = f"{len(self._overwritten)} held frames" if self._overwritten else "held tokens"
            raise ValueError(
                f"the last call failed after it overwrote {what}; repeat it first, or start another stream"
            )

    def kept(self, policy: CachePolicy, slots: Collection[int]) -> list[int]:
        """Those of ``slots`` whose frames another policy would keep, ascending."""
        if policy.capacity is None or len(slots) <= policy.capacity:
            return sorted(slots)
        kept = _kept(policy, sorted(self.frames[slot] for slot in slots), self.prototypes)
        return [slot for slot in sorted(slots) if self.frames[slot] in kept]

    def select(self, slots: Sequence[int]) -> None:
        """Hold the frames of these slots alone; they move to the first ones in this order."""
        self.frames = [self.frames[slot] for slot in slots]
        self.prototypes = {frame: self.prototypes[frame] for frame in self.frames}

    def _is_first(self, prototype: Tensor) -> bool:
        """Whether a frame is the first one of the call that failed, but for rounding."""
        return self._first is not None and bool((prototype - self._first).norm(dim=-1).max() < _SAME_FRAME)

    def _victim(self, frames: list[int], prototypes: Mapping[int, Tensor]) -> int | None:
        """Name the frame that makes room for the last of ``frames``, or None if there is room."""
        if self.capacity is None or len(frames) <= self.capacity:
            return None
        [victim] = set(frames) - _kept(self.policy, frames, prototypes)
        return victim


def _kept(policy: CachePolicy, frames: list[int], prototypes: Mapping[int, Tensor]) -> set[int]:
    """Ask a policy which of more frames than it holds stay; raise ValueError for an answer that it may not give."""
    kept = set(policy.keep(frames, torch.stack([prototypes[frame] for frame in frames])))
    if len(kept) != policy.capacity or not kept <= set(frames) or frames[-1] not in kept:
        raise ValueError(
            f"{policy} must keep {policy.capacity} of the frames {frames}, the last among them, and kept {sorted(kept)}"
        )
    return kept


def frame_prototypes(k: Tensor, special: int) -> Tensor:
    """Direction of the mean key of each frame's patches, all heads joined: ``[B, heads, S, P, D]`` to ``[B, S, E]``."""
    return normalize(k[:, :, :, special:].float().mean(3).movedim(1, 2).flatten(2), dim=-1)


class KVCache:
    """Keys and values of the held frames in one attention layer, written in place."""

    def __init__(self, slots: Slots, store: Store | None = None) -> None:
        self.slots = slots
        self.store = NativeStore() if store is None else store
        self.frame_tokens = 0  # P

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write each frame to its slot and attend from it over the held frames (an ``Attend``).

        The S frames are taken one after the other, so a chunk gives what its frames would give one at a time.
        """
        frames = []
        for s, step in enumerate(self.slots.plan):
            self._reserve(step.used, k[:, :, s], v[:, :, s])
            self.store.write(step.slot, k[:, :, s], v[:, :, s])
            frames.append(self.store.attend(q[:, :, s], step.used * self.frame_tokens))
        return side_by_side(frames)

    @property
    def nbytes(self) -> int:
        """Bytes of the held frames' keys and values; buffers that double may have room for as many more."""
        return sum(part.nbytes for part in self.content().values())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, filled or not."""
        return sum(buffer.nbytes for buffer in self.store.buffers.values())

    @property
    def exceeds_capacity(self) -> bool:
        """Whether there is room for more than the policy holds."""
        return self.slots.capacity is not None and self.store.tokens > self.slots.capacity * self.frame_tokens

    def content(self) -> dict[str, Tensor]:
        """What is held, by name; :meth:`load` takes it back."""
        held = len(self.slots.frames)
        tokens = held * self.frame_tokens
        return {name: x[:, :, : held if name == "key_scales" else tokens] for name, x in self.store.buffers.items()}

    def load(self, content: Mapping[str, Tensor]) -> None:
        """Hold what :meth:`content` of a cache with the same slots gave."""
        self.store.buffers.update(content)
        self.frame_tokens = self.store.tokens // max(1, len(self.slots.frames))

    def adopt(self, tokens: int) -> None:
        """Take frames of ``tokens`` tokens that lie in the store for those of the slots."""
        self.frame_tokens = tokens

    def select(self, slots: Sequence[int]) -> None:
        """Keep these slots alone, see :meth:`Slots.select`."""
        if self.store.tokens:
            self.store.select(slots, self.frame_tokens)

    def _reserve(self, used: int, k: Tensor, v: Tensor) -> None:
        """Make room for at least ``used`` slots; buffers double when full, up to the policy's capacity."""
        self.frame_tokens = k.shape[2]
        if self.store.tokens < used * self.frame_tokens:
            size = 1 << (used - 1).bit_length()
            if self.slots.capacity is not None:
                size = min(size, self.slots.capacity)
            self.store.resize(size * self.frame_tokens, size, k, v)


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
        [step] = self.slots.plan
        room = (-1, -1, self._num_rounds, -1)
        self._reserve(step.used, k[:, :, 0].expand(room), v[:, :, 0].expand(room))
        keys, values = self.store.buffers["keys"], self.store.buffers["values"]
        # The rounds to come are masked, but must be finite all the same.
        place = slice(step.slot * self._num_rounds + round_index, (step.slot + 1) * self._num_rounds)
        keys[:, :, place] = k[:, :, 0]
        values[:, :, place] = v[:, :, 0]
        seen = torch.ones(step.used, self._num_rounds, dtype=torch.bool, device=q.device)
        seen[step.slot, round_index + 1 :] = False
        past = slice(step.used * self._num_rounds)
        out = scaled_dot_product_attention(
            q[:, :, 0], keys[:, :, past], values[:, :, past], attn_mask=seen.flatten()[None]
        )
        return out[:, :, None]
