"""A cache that keeps single tokens of frames, those that score highest in its layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .attention import side_by_side
from .cache import KVCache, Slots, Step
from .policies import KeyDiversity, LayerTokens, TokenBudget
from .stores import Store, new_buffer

LABEL_BYTES = 3  # of a token in one head: its slot, and whether it is special


class TokenCache(KVCache):
    """Keys and values of some tokens of the held frames, written in place.

    A frame comes in whole. Where there is no room, its tokens take the places of those that score lowest, first of all
    those of a frame that is no longer held. Which frames these are, the slots say, as for all caches; the tokens of the
    first frame, and all camera and register tokens of held frames, stay.

    Args:
        slots: which frames are held; their policy is a :class:`TokenBudget` that was fitted.
        store: where keys and values lie.
        special: camera and register tokens of a frame.
    """

    def __init__(self, slots: Slots, store: Store, special: int) -> None:
        super().__init__(slots, store)
        self._special_tokens = special
        self.owners: Tensor | None = None  # slot of each token, [B, heads, T]
        self.special: Tensor | None = None  # whether it is a camera or register token, likewise
        self.share: int | None = None  # tokens that this layer holds at most, where layers differ in it
        self._used = 0
        # The call that was made last: frames before it, and tokens before it.
        self._before, self._start = -1, 0

    def content(self) -> dict[str, Tensor]:
        """What is held, by name."""
        if self.owners is None or self.special is None:
            return {}
        held = {"owners": self.owners, "special": self.special}
        scales = {name: x for name, x in self.store.buffers.items() if name == "key_scales"}
        held |= {name: x for name, x in self.store.buffers.items() if name not in scales}
        held = {name: x[:, :, : self.used] for name, x in held.items()}
        return held | {name: x[:, :, : len(self.slots.frames)] for name, x in scales.items()}

    def load(self, content: Mapping[str, Tensor]) -> None:
        """Hold what :meth:`content` of a cache with the same slots gave."""
        self.store.buffers.update({name: x for name, x in content.items() if name not in ("owners", "special")})
        self.owners, self.special = content["owners"], content["special"]
        self._used = self.store.tokens
        # The first frame is whole.
        self.frame_tokens = int((self.owners[0, 0] == self.slots.frames.index(0)).sum())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, filled or not."""
        return super().allocated_bytes + self._labels_bytes(self.store.tokens)

    @property
    def exceeds_capacity(self) -> bool:
        """Whether there is room for more than the policy holds."""
        scales = self.store.buffers.get("key_scales")  # a row a frame
        too_many = scales is not None and scales.shape[2] > self._policy.capacity
        return too_many or self.store.tokens > self.budget

    @property
    def budget(self) -> int:
        """Tokens that this layer holds at most."""
        return self._policy.budget if self.share is None else self.share

    @property
    def used(self) -> int:
        """Tokens of held frames; between calls, for those of a call that failed do not count."""
        return self._start if self.slots.num_frames == self._before else self._used

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write each frame over tokens that make room for it and attend over all that are held (an ``Attend``)."""
        self._begin()
        self.frame_tokens = k.shape[3]
        frames, slots = [], len(self.slots.frames)
        for s, step in enumerate(self.slots.plan):
            at, added = self._places(step, q[:, :, s], k[:, :, s], replaces=step.used == slots)
            if added < self.frame_tokens:
                self.slots.thin(s)
            self._used += added
            slots = step.used
            self._write(at, step.slot, k[:, :, s], v[:, :, s])
            frames.append(self.store.attend(q[:, :, s], self._used, self._labels()[0]))
        return side_by_side(frames)

    @classmethod
    def of_frames(cls, cache: KVCache, special: int) -> TokenCache:
        """The same content as a cache of whole frames has."""
        new = cls(cache.slots, cache.store, special)
        new.adopt(cache.frame_tokens)
        if cache.store.tokens:
            keys = cache.store.buffers["keys"]
            count = torch.arange(cache.store.tokens, device=keys.device)
            new._make_labels(cache.store.tokens, keys)
            owners, is_special = new._labels()
            owners.copy_((count // cache.frame_tokens).expand_as(owners))
            is_special.copy_((count % cache.frame_tokens < special).expand_as(is_special))
            new._used = len(cache.slots.frames) * cache.frame_tokens
        return new

    def whole(self) -> set[int]:
        """Slots of frames of which every token is held."""
        if not self.used:
            return set(range(len(self.slots.frames)))
        owners = self._labels()[0][:, :, : self.used]
        return {s for s in range(len(self.slots.frames)) if bool((owners == s).sum(2).eq(self.frame_tokens).all())}

    def select(self, slots: Sequence[int]) -> None:
        """Keep tokens of these slots alone, as many as the policy holds; see :meth:`Slots.select`."""
        self._used = self.used
        if not self._used:
            return
        owners, special = (label[:, :, : self._used] for label in self._labels())
        stays = torch.isin(owners, torch.tensor(list(slots), dtype=owners.dtype, device=owners.device))
        # Frames have different numbers of tokens left in different heads, and all heads must hold as many.
        count = min(int(stays.sum(2).min()), self.budget)
        newest = self.slots.frames.index(max(self.slots.frames))
        protected = special | (owners == self.slots.frames.index(min(self.slots.frames))) | (owners == newest)
        # There is no query between frames, so that what is unlike the others stays, whatever the policy's score.
        score = KeyDiversity()(self._between_frames(stays & ~protected))
        score = score.masked_fill(protected, torch.inf).masked_fill(~stays, -torch.inf)
        at = score.topk(count, dim=2).indices.sort(dim=2).values
        place = torch.zeros(max(slots) + 1, dtype=torch.int16, device=owners.device)
        place[list(slots)] = torch.arange(len(slots), dtype=torch.int16, device=owners.device)
        owners, special = place[owners.gather(2, at).long()], special.gather(2, at)
        self.store.gather(at, slots)
        self.owners = self.special = None
        self._make_labels(count, owners)
        for label, content in zip(self._labels(), (owners, special), strict=True):
            label.copy_(content)
        self._used, self._before = count, -1

    def to_frames(self, slots: Slots) -> KVCache:
        """The same content for a policy of whole frames; every frame held must be whole."""
        cache = KVCache(slots, self.store)
        if self.used:
            order = self._labels()[0][:, :, : self.used].long().argsort(dim=2, stable=True)
            self.store.gather(order, range(len(self.slots.frames)))
            cache.adopt(self.frame_tokens)
        return cache

    def likeness(self, score: KeyDiversity) -> Tensor:
        """How alike this layer's tokens are, but for those that stay anyway."""
        self._used = self.used
        owners, special = (label[:, :, : self._used] for label in self._labels())
        first = owners == self.slots.frames.index(min(self.slots.frames))
        return score.likeness(self._between_frames(~(special | first)))

    @property
    def _policy(self) -> TokenBudget:
        policy = self.slots.policy
        if not isinstance(policy, TokenBudget):
            raise TypeError(f"a token cache needs a TokenBudget, got {policy}")
        return policy

    def _begin(self) -> None:
        """Take back a call that failed, or start a new one."""
        if self.slots.num_frames != self._before:
            self._before, self._start = self.slots.num_frames, self._used
        self._used = self._start

    def _places(self, step: Step, q: Tensor, k: Tensor, *, replaces: bool) -> tuple[Tensor, int]:
        """Where the tokens of a coming frame go, ``[B, heads, P]``, and how many of them behind the last ones.

        The others take the places of tokens that go; places ascend.

        Args:
            step: what the frame does to the slots.
            q: its queries ``[B, heads, P, D]``.
            k: its keys.
            replaces: whether its slot was another frame's, all of whose tokens then go.
        """
        free = min(self.budget - self._used, self.frame_tokens)
        victims = torch.empty((*k.shape[:2], 0), dtype=torch.long, device=k.device)
        if replaces or free < self.frame_tokens:
            owners, special = (label[:, :, : self._used] for label in self._labels())
            leaves = owners == step.slot
            if replaces and free:
                free = min(free, self.frame_tokens - int(leaves.sum(2).max()))
            protected = (special | (owners == step.held.index(min(step.held)))) & ~leaves
            keys = partial(self.store.head_keys, self._used, owners)
            score = self._policy.score(LayerTokens(keys, ~(protected | leaves), q, k, self._special_tokens))
            score = score.masked_fill(protected, torch.inf).masked_fill(leaves, -torch.inf)
            victims = score.topk(self.frame_tokens - free, dim=2, largest=False).indices.sort(dim=2).values
        behind = torch.arange(self._used, self._used + free, device=k.device)
        return torch.cat([victims, behind.expand(*k.shape[:2], -1)], dim=2), free

    def _write(self, at: Tensor, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame's tokens to their places and say whose they are."""
        self._reserve_tokens(self._used, slot + 1, k, v)
        owners, special = self._labels()
        owners.scatter_(2, at, slot)
        is_special = torch.arange(self.frame_tokens, device=k.device) < self._special_tokens
        special.scatter_(2, at, is_special.expand_as(at))
        self.store.write_tokens(at, slot, k, v)

    def _between_frames(self, candidates: Tensor) -> LayerTokens:
        """What is known of the tokens held when no frame comes."""
        keys = partial(self.store.head_keys, self._used, self._labels()[0])
        nothing = self.store.buffers["keys"][:, :, :0]
        return LayerTokens(keys, candidates, nothing, nothing, self._special_tokens)

    def _reserve_tokens(self, used: int, slots: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``used`` tokens of ``slots`` frames; buffers double when full, up to the layer's budget.

        One that passes the mean of all layers takes all of its budget at once: while it grows, both buffers are there,
        and the memory has room beside the budgets for one that is no larger than the mean.
        """
        if self.store.tokens < used:
            frames = -(-used // self.frame_tokens)
            mean = self._policy.budget
            size = min((1 << (frames - 1).bit_length()) * self.frame_tokens, mean) if used <= mean else self.budget
            size = min(size, self.budget)
            self._make_labels(size, k)
        elif self.store.slots < slots:
            size = self.store.tokens
        else:
            return
        self.store.resize(size, self._policy.capacity, k, v)

    def _make_labels(self, size: int, like: Tensor) -> None:
        """Make labels for ``size`` tokens; content stays."""
        self.owners = _longer(self.owners, size, like, torch.int16)
        self.special = _longer(self.special, size, like, torch.bool)

    def _labels(self) -> tuple[Tensor, Tensor]:
        if self.owners is None or self.special is None:
            raise RuntimeError("nothing has been stored yet")
        return self.owners, self.special

    def _labels_bytes(self, tokens: int) -> int:
        return 0 if self.owners is None else self.owners.shape[0] * self.owners.shape[1] * tokens * LABEL_BYTES


def _longer(label: Tensor | None, size: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a label for ``size`` tokens with the content of the old one."""
    new = new_buffer((*like.shape[:2], size), like, dtype)
    if label is not None:
        new[:, :, : label.shape[2]] = label
    return new
