"""All that streams remember of their past, and how it fits into a given memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .attention import Attend
from .cache import KVCache, SharedRoundsCache, Slots, frame_prototypes
from .config import StreamVGGTConfig
from .costs import frame_costs
from .layers import RunBlock, run_block
from .matching import MatchMemory
from .memory import byte_count
from .policies import CachePolicy, Costs, KeyDiversity, Keyframes, TokenBudget, require_policy
from .static import StaticCache, StaticPlan, require_fixed_size, run_compiled
from .stores import Storage, new_store
from .tokens import TokenCache
from .tracks import TrackMemory

CameraCache = Literal["per_iteration", "shared"]

logger = logging.getLogger(__name__)


class StreamState:
    """All that ``B`` streams remember of their past. :meth:`streamvggt.StreamVGGT.new_state` makes one.

    Args:
        config: sizes of the network.
        policy: which frames are kept.
        storage: how the blocks' keys and values are kept, see :mod:`streamvggt.stores`; the camera head's, one token a
            frame, are kept as they are.
        camera_cache: "per_iteration" gives each refinement round its own cache, so that a stream equals a batch;
            "shared" reproduces the poses of the released streaming code.
        memory: bytes that :attr:`allocated_bytes` never passes, see :func:`streamvggt.memory.byte_count`; None for no
            limit.
        head_bytes: bytes of a number in the heads' precision.
        static: run blocks as compiled code, against caches of fixed size.

    Raises:
        ValueError: the policy is none, the memory is no amount, or caches of fixed size cannot hold what is asked for.
    """

    def __init__(
        self,
        config: StreamVGGTConfig,
        policy: CachePolicy,
        *,
        storage: Storage = "native",
        camera_cache: CameraCache = "per_iteration",
        memory: int | str | None = None,
        head_bytes: int = 4,
        static: bool = False,
    ) -> None:
        self.config = config
        self.storage = storage
        self.camera_cache = camera_cache
        self.run: RunBlock = run_compiled if static else run_block
        self._head_bytes = head_bytes
        self._static = StaticPlan() if static else None
        self._memory = self._checked(policy, memory)
        self._asked = policy
        self.reset()

    def reset(self) -> None:
        """Forget the streams: the next frame is the first of new ones, with the policy and memory asked for."""
        self.start(self._bounded(self._asked))
        self.tracks = TrackMemory()
        self.matches = MatchMemory()
        self.input_shape: tuple[int, int, int] | None = None  # B, H, W of the first call
        self.key_bytes = 4  # of one number, as keys are seen to have
        self._queries = 0  # frames on which points were named, those of the coming call among them
        self._queries_fitted = 0  # those that the policy leaves room for; a call that failed leaves more than there are
        self._coming_shape = (0, 0, 0)
        self._waits = False  # whether commits wait for what else is to succeed
        self._waiting: tuple[MatchMemory, TrackMemory] | None = None

    def start(self, policy: CachePolicy) -> None:
        """Hold nothing, in caches as ``policy`` needs them."""
        self.slots = Slots(policy)
        self.full = False  # whether a policy without a limit has reached the memory
        rounds, depth = self.config.camera_iterations, self.config.camera_depth
        per_iteration = self.camera_cache == "per_iteration"
        # The first block chooses the slots, in Python, and keeps a cache that is written so.
        self._blocks = [self._block_cache(), *(self._block_cache(self._static) for _ in range(self.config.depth - 1))]
        self._camera = [[self._camera_cache() for _ in range(depth)] for _ in range(rounds if per_iteration else 0)]
        self._shared_camera = [SharedRoundsCache(self.slots, rounds) for _ in range(0 if per_iteration else depth)]

    def _block_cache(self, plan: StaticPlan | None = None) -> KVCache:
        if plan is not None:
            return StaticCache(self.slots, plan)
        if isinstance(self.slots.policy, TokenBudget):
            return TokenCache(self.slots, new_store(self.storage), self.config.special_tokens)
        return KVCache(self.slots, new_store(self.storage))

    def _camera_cache(self) -> KVCache:
        return KVCache(self.slots) if self._static is None else StaticCache(self.slots, self._static)

    @property
    def policy(self) -> CachePolicy:
        """Which frames are kept: what was asked for, with counts that the memory has room for.

        A policy without a limit is named until the memory is full, and after that the one that took over.
        """
        return self._asked if self._asked.capacity is None and not self.full else self.slots.policy

    @property
    def compiled(self) -> bool:
        """Whether blocks run as compiled code."""
        return self._static is not None

    @property
    def asked_policy(self) -> CachePolicy:
        """Which frames were to be kept, whatever the memory has room for."""
        return self._asked

    @property
    def memory(self) -> int | None:
        """Bytes that are never passed; None for no limit."""
        return self._memory

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
        return sum(cache.nbytes for cache in self._caches) + self._other_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes held, and those of buffers that wait for frames to come; never more than :attr:`memory`."""
        return sum(cache.allocated_bytes for cache in self._caches) + self._other_bytes

    @property
    def holds_cameras(self) -> bool:
        """Whether the camera head has seen the frames so far."""
        return any(cache.nbytes for cache in self._camera_caches)

    @property
    def block_attends(self) -> list[Attend]:
        """How each global block attends."""
        return [self._attend_first, *(cache.attend for cache in self._blocks[1:])]

    def camera_attend(self, round_index: int, block: int) -> Attend:
        """How a block of the camera head attends in a refinement round."""
        if self.camera_cache == "shared":
            return partial(self._shared_camera[block].attend_in_round, round_index=round_index)
        return self._camera[round_index][block].attend

    def begin(self, num_frames: int, shape: tuple[int, int, int], *, queries: bool = False) -> int:
        """Announce the frames of a call; the first block attends next, and :meth:`commit` ends the call.

        Args:
            num_frames: S.
            shape: B, H, W.
            queries: whether points to follow are named on the first of them.

        Returns:
            How many of the frames the call can take; the others are to come in another one.

        Raises:
            ValueError: the memory has no room for the features of these points' frame, or the streams are lost.
        """
        self._commit_waiting()  # of the first part of a call that is taken in two
        self.slots.check_not_lost()
        self._coming_shape = shape
        self._queries = len(self.tracks.queries) + queries
        if self.num_frames == 0:
            self.start(self._bounded(self._asked))  # a call that failed may have left buffers of another size
        elif queries and self._memory is not None and self._queries > self._queries_fitted:
            self._apply(self._asked)
        taken = min(num_frames, self._frames_before_sharing() or num_frames)
        self.slots.begin(taken)
        return taken

    def commit(self, matches: MatchMemory, tracks: TrackMemory) -> None:
        """Make the frames of the call the newest ones of the streams.

        Args:
            matches: for the next call.
            tracks: likewise.
        """
        self._waiting = matches, tracks
        if not self._waits:
            self._commit_waiting()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take the frames of the call inside when all else inside has succeeded, too; else they were not seen."""
        before, self._waits = self.num_frames, True
        try:
            yield
            self._commit_waiting()
        except BaseException:
            self._waiting = None
            if self.num_frames != before:
                self.abandon(before)
            raise
        finally:
            self._waits = False

    def _commit_waiting(self) -> None:
        if self._waiting is not None:
            self.slots.commit()
            (self.matches, self.tracks), self.input_shape = self._waiting, self._coming_shape
            self._waiting = None

    def set_policy(self, policy: CachePolicy, *, memory: int | str | None = None) -> None:
        """Go on with another policy and limit; frames that it would not hold are dropped at once.

        Args:
            policy: which frames are kept from here on.
            memory: bytes from here on, as for a new stream; None for no limit.

        Raises:
            ValueError: there is no room for the least that the policy needs, or as for new streams. The streams are as
                they were.
        """
        before, self._memory = self._memory, self._checked(policy, memory)
        try:
            if self.num_frames:
                self._queries = len(self.tracks.queries)
                self._apply(policy)
        except BaseException:
            self._memory = before
            raise
        self._asked, self.full = policy, False
        if not self.num_frames:
            self.reset()

    def _checked(self, policy: CachePolicy, memory: int | str | None) -> int | None:
        """Return ``memory`` in bytes; raise ValueError if it is none, or if the streams cannot have such a policy."""
        require_policy(policy)
        count = None if memory is None else byte_count(memory)
        if self._static is not None:
            require_fixed_size(policy, self.storage, count)
        return count

    @property
    def caches(self) -> dict[str, KVCache]:
        """All caches, by a name that says whose they are."""
        named = {f"block{i}": cache for i, cache in enumerate(self._blocks)}
        return named | {f"camera{i}": cache for i, cache in enumerate(self._camera_caches)}

    @property
    def _caches(self) -> list[KVCache]:
        return [*self._blocks, *self._camera_caches]

    @property
    def _camera_caches(self) -> list[KVCache]:
        return [*self._shared_camera, *(cache for row in self._camera for cache in row)]

    @property
    def _other_bytes(self) -> int:
        prototypes = sum(prototype.nbytes for prototype in self.slots.prototypes.values())
        return prototypes + self.matches.nbytes + self.tracks.nbytes

    def _attend_first(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Choose the frames to hold by the keys of the first block, for all caches, and attend in it."""
        if self.num_frames == 0:
            self.key_bytes = k.element_size()
            self.slots.policy = self._fitted(self._asked)
            self._queries_fitted = self._queries
        self._tell_when_full(coming=k.shape[2])
        self.slots.choose(frame_prototypes(k, self.config.special_tokens))
        if self._static is not None and self.slots.capacity is not None:
            self._static.update(self.slots.plan, self.slots.capacity, k.device)
        return self._blocks[0].attend(q, k, v)

    def abandon(self, before: int) -> None:
        """Go back after frames were taken in parts and a later part failed, if there was nothing ``before`` them."""
        if before == 0:
            self.reset()
        else:
            self.slots.lost = "the last call failed after a part of its frames was taken"

    def _frames_before_sharing(self) -> int | None:
        """How many frames can come before layers must share what they hold, which they do here when it is none.

        Layers share by the keys that all of them hold, so never within a call, in which one is done before the next.
        """
        policy, thinned = self.slots.policy, self._thinned
        if not isinstance(policy, TokenBudget) or any(cache.share for cache in thinned):
            return None
        score = policy.score
        if not isinstance(score, KeyDiversity) or score.temperature is None:
            return None
        if self.num_frames == 0:
            return 1  # the first frame says how many tokens there are
        room = self._frames_with_all_tokens(policy)
        if room > 0:
            return room
        shares = score.shares(torch.stack([cache.likeness(score) for cache in thinned]).tolist())
        budgets = policy.layer_budgets(shares, thinned[0].frame_tokens, self.config.special_tokens)
        with self._irreversible():
            for cache, share in zip(thinned, budgets, strict=True):
                cache.share = share
                if cache.exceeds_capacity:
                    cache.select(range(len(self.slots.frames)))
        return None

    def _frames_with_all_tokens(self, policy: TokenBudget) -> int:
        """How many frames can come before tokens have to go; none, or less than that, once they have."""
        tokens = self.config.tokens_per_frame(*self._coming_shape[1:])
        return (policy.budget - max(cache.used for cache in self._thinned)) // tokens

    @contextmanager
    def _irreversible(self) -> Iterator[None]:
        """What fails in here, out of memory say, leaves caches that no longer agree."""
        self.slots.lost = "a change of what the layers hold failed half-way, and they no longer agree"
        yield
        self.slots.lost = None

    @property
    def _thinned(self) -> list[TokenCache]:
        return [cache for cache in self._blocks if isinstance(cache, TokenCache)]

    def _apply(self, policy: CachePolicy) -> None:
        """Hold what ``policy`` holds within the memory."""
        self.slots.check_settled()
        fitted = self._fitted(policy)
        by_tokens, thinned = isinstance(fitted, TokenBudget), self._thinned
        slots = set(range(len(self.slots.frames)))
        if thinned and not by_tokens:
            # Frames of which tokens have gone are of no use to a policy of whole frames.
            slots = set.intersection(*(cache.whole() for cache in thinned))
        kept = self.slots.kept(fitted, slots)  # the last thing that may be refused
        with self._irreversible():
            if thinned and not by_tokens:
                self._hold(kept, always=True)
                self._blocks = [cache.to_frames(self.slots) for cache in thinned]
                kept = list(range(len(kept)))
            if fitted != self.slots.policy:
                for cache in thinned:
                    cache.share = None  # until tokens have to go again
            self.slots.policy = fitted
            self._hold(kept)
            if by_tokens and not thinned:
                for layer, whole in enumerate(self._blocks):
                    self._blocks[layer] = thin = TokenCache.of_frames(whole, self.config.special_tokens)
                    if thin.exceeds_capacity:
                        thin.select(range(len(self.slots.frames)))
        self._queries_fitted = self._queries

    def _hold(self, slots: list[int], *, always: bool = False) -> None:
        """Hold the frames of these slots alone, in buffers that are no larger than the policy allows."""
        for cache in self._caches:
            if always or len(slots) < len(self.slots.frames) or cache.exceeds_capacity:
                cache.select(slots)
        self.slots.select(slots)
        self.tracks.features = {i: levels for i, levels in self.tracks.features.items() if i in self.slots.frames}

    def _bounded(self, policy: CachePolicy) -> CachePolicy:
        """The policy that holds to the memory: one without a limit keeps everything just as long as this one does."""
        if policy.capacity is not None or self._memory is None:
            return policy
        return TokenBudget() if self._static is None else Keyframes()

    def _fitted(self, policy: CachePolicy) -> CachePolicy:
        """What holds to the memory, with counts that there is room for."""
        costs, bounded = self._costs(), self._bounded(policy)
        fitted, unlimited = bounded.fit(costs), bounded.fit(costs._replace(room=None))
        if bounded is policy and fitted.holds_less(unlimited):
            logger.warning("a memory of %s bytes has room for %s, not for %s", f"{self._memory:,}", fitted, unlimited)
        return fitted

    def _tell_when_full(self, coming: int) -> None:
        """Say once that the memory has no room for the coming frames, where all were to be kept."""
        policy = self.slots.policy
        if self.full or policy.capacity is None or self._asked.capacity is not None:
            return
        if isinstance(policy, TokenBudget):
            room, parts = self._frames_with_all_tokens(policy), "tokens"
        else:
            room, parts = policy.capacity - len(self.slots.frames), "whole frames"
        if coming > room:
            self.full = True
            logger.warning(
                "the memory of this stream is full after %d frames; from here on it keeps the %s that differ: %s",
                self.num_frames + max(0, room),
                parts,
                policy,
            )

    def _costs(self) -> Costs:
        """What frames of the size of these streams cost."""
        return frame_costs(
            self.config,
            self.input_shape or self._coming_shape,
            storage=self.storage,
            key_bytes=self.key_bytes,
            head_bytes=self._head_bytes,
            queries=self._queries,
            memory=self._memory,
        )
