"""Blocks as compiled code, and caches whose shapes never change, which compiled code can write to and attend over.

An eager cache attends over the slots in use, so its shapes, and the numbers of slots that Python counts, change from
frame to frame; compiled code would be made anew for each. Here every buffer has room for all frames that the policy
holds from the start, the slot of a frame is a number in a tensor, and slots that a frame must not see are ruled out by
a bias. So the code depends on the size of the frames and of the cache alone, and all blocks of one kind share it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .attention import Attend, full_attention, side_by_side
from .cache import KVCache, Slots, Step
from .layers import RunBlock, run_block
from .policies import CachePolicy, TokenBudget
from .stores import Storage


class StaticPlan:
    """What the coming frames do to the slots, as tensors at fixed addresses; one for all caches of a stream.

    Attributes:
        places: slot of each of the S frames, int64 ``[S]``.
        bias: 0 for the slots that a frame sees and minus infinity for the others, float32 ``[S, F]``.
    """

    def __init__(self) -> None:
        self.places = torch.empty(0, dtype=torch.int64)
        self.bias = torch.empty(0, 0)

    def update(self, steps: Sequence[Step], capacity: int, device: torch.device) -> None:
        """Take over the plan of a call."""
        shape = (len(steps), capacity)
        if self.bias.shape != shape or self.bias.device != device:
            with torch.inference_mode(False):
                self.places = torch.empty(len(steps), dtype=torch.int64, device=device)
                self.bias = torch.empty(shape, device=device)
        self.places.copy_(torch.tensor([step.slot for step in steps]))
        used = torch.tensor([step.used for step in steps])
        unseen = torch.arange(capacity)[None] >= used[:, None]
        self.bias.copy_(torch.zeros(shape).masked_fill_(unseen, -torch.inf))


class StaticCache(KVCache):
    """Keys and values of one layer in buffers of one size for the whole stream."""

    def __init__(self, slots: Slots, plan: StaticPlan) -> None:
        super().__init__(slots)
        self.plan = plan

    @property
    def ready(self) -> bool:
        """Whether the buffers have the size that the plan asks for; so they have after the first frame."""
        return 0 < self.store.tokens == self.plan.bias.shape[1] * self.frame_tokens

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write each frame to its slot and attend from it over the slots that it sees (an ``Attend``)."""
        if not self.ready:
            self._allocate(k[:, :, 0], v[:, :, 0])
        keys, values = self.store.buffers["keys"], self.store.buffers["values"]
        slots = (self.plan.bias.shape[1], k.shape[3])
        frames = []
        for s in range(k.shape[2]):
            keys.unflatten(2, slots).index_copy_(2, self.plan.places[s : s + 1], k[:, :, s : s + 1])
            values.unflatten(2, slots).index_copy_(2, self.plan.places[s : s + 1], v[:, :, s : s + 1])
            bias = self.plan.bias[s, :, None].expand(slots).flatten()[None].to(q.dtype)
            frames.append(scaled_dot_product_attention(q[:, :, s], keys, values, attn_mask=bias))
        return side_by_side(frames)

    def _allocate(self, k: Tensor, v: Tensor) -> None:
        """Make buffers for all slots; what no frame has written must be finite, though nobody sees it."""
        self.frame_tokens = k.shape[2]
        filled = len(self.slots.frames) * self.frame_tokens
        slots = self.plan.bias.shape[1]
        self.store.resize(slots * self.frame_tokens, slots, k, v)
        for buffer in self.store.buffers.values():
            buffer[:, :, filled:] = 0


def run_compiled(block: nn.Module, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    """Run a block as compiled code where its way to attend allows it (a ``RunBlock``).

    The first frame of a stream makes the buffers, and the first block chooses, in Python, which frames are held: these
    run as they are.
    """
    cache = getattr(attend, "__self__", None)
    if attend is full_attention or (isinstance(cache, StaticCache) and cache.ready):
        return _compiled()(block, x, attend, rotary)
    return run_block(block, x, attend, rotary)


def require_fixed_size(policy: CachePolicy, storage: Storage, memory: int | None) -> None:
    """Raise ValueError for caches that compiled code cannot write to."""
    if isinstance(policy, TokenBudget) or storage != "native":
        raise ValueError(
            f'compile=True needs a policy of whole frames and storage="native", got {policy} and {storage!r}; '
            "leave compile out, or take a policy such as Keyframes()"
        )
    if policy.capacity is None and memory is None:
        raise ValueError(
            f"compile=True needs caches of a fixed size, and {policy} sets no limit; take another policy, such as "
            "AnchorWindow(1, 15), or give the stream a memory"
        )


def require_compiler(device_type: str) -> None:
    """Raise ValueError where code for the device cannot be compiled."""
    if device_type != "cpu":
        return
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise ValueError(
            f"compile=True needs a C++ compiler, and {name} is not there; install it (on Debian: apt-get install g++), "
            "name another in the environment variable CXX, or leave compile out"
        )


@lru_cache(maxsize=1)
def _compiled() -> RunBlock:
    compiled: RunBlock = torch.compile(run_block, dynamic=False)
    return compiled
