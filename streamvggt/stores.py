"""How the keys and values of one attention layer are kept: buffers that are written in place and attended over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Storage = Literal["native", "int8"]
STORAGES: tuple[Storage, ...] = ("native", "int8")

_COPY = 2**20  # numbers of a copy of keys, unless one head has more; fresh memory costs as much as what is done in it
_LEAST_SCALE = 1e-12


class Store(Protocol):
    """Keys and values of one layer, ``[B, heads, T, D]``.

    Frames have slots. Token t belongs to the slot ``t // P``, or where frames are not whole to the one that ``owners``
    ``[B, heads, T]`` names. Buffers are made one after the other, so that never more than one of them is there twice.
    """

    @property
    def tokens(self) -> int:
        """T, the tokens that there is room for."""

    @property
    def slots(self) -> int:
        """Frames that there is room for, however few tokens of them are left."""

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All buffers by name; none before the first frame."""

    def resize(self, tokens: int, slots: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``tokens`` tokens of ``slots`` frames like ``k``, ``v`` ``[B, heads, P, D]``; content stays."""

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame's keys and values ``[B, heads, P, D]`` to the tokens of its slot."""

    def write_tokens(self, at: Tensor, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame's keys and values to the tokens ``at`` ``[B, heads, P]``."""

    def attend(self, q: Tensor, used: int, owners: Tensor | None = None) -> Tensor:
        """Attend from queries ``[B, heads, P, D]`` over the first ``used`` tokens."""

    def head_keys(self, used: int, owners: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Keys of the first ``used`` tokens as numbers, some heads at a time: which heads; ``[B, some, used, D]``.

        They are good until the next ones are taken, which may lie in the same memory.
        """

    def select(self, slots: Sequence[int], tokens_per_slot: int) -> None:
        """Keep the tokens of these slots alone, in this order, in buffers that hold no more."""

    def gather(self, at: Tensor, slots: Sequence[int]) -> None:
        """Keep the tokens ``at`` ``[B, heads, n]`` alone, all of these slots, in buffers that hold no more."""


def new_store(storage: Storage) -> Store:
    """An empty store."""
    return Int8Store() if storage == "int8" else NativeStore()


class _Buffers:
    """Named buffers ``[B, heads, T or slots, ...]``; those named ``key_scales`` have a row a slot, others a token."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    @property
    def tokens(self) -> int:
        """T, the tokens that there is room for."""
        return self.buffers["keys"].shape[2] if self.buffers else 0

    @property
    def slots(self) -> int:
        """Frames that there is room for; as many as tokens where nothing is kept for a frame as such."""
        return self.buffers["key_scales"].shape[2] if "key_scales" in self.buffers else self.tokens

    def select(self, slots: Sequence[int], tokens_per_slot: int) -> None:
        """Keep the tokens of these slots alone."""
        for name, buffer in self.buffers.items():
            rows = 1 if name == "key_scales" else tokens_per_slot
            new = new_buffer((*buffer.shape[:2], len(slots) * rows, *buffer.shape[3:]), buffer)
            for place, slot in enumerate(slots):
                new[:, :, place * rows : (place + 1) * rows] = buffer[:, :, slot * rows : (slot + 1) * rows]
            self.buffers[name] = new

    def gather(self, at: Tensor, slots: Sequence[int]) -> None:
        """Keep the tokens ``at`` alone."""
        for name, buffer in self.buffers.items():
            if name == "key_scales":
                new = new_buffer((*buffer.shape[:2], len(slots), *buffer.shape[3:]), buffer)
                for place, slot in enumerate(slots):
                    new[:, :, place] = buffer[:, :, slot]
            else:
                new = new_buffer((*at.shape, *buffer.shape[3:]), buffer)
                torch.index_select(buffer.flatten(0, 2), 0, _rows(at, buffer), out=new.flatten(0, 2))
            self.buffers[name] = new

    def _put(self, name: str, at: Tensor, tokens: Tensor) -> None:
        """Write tokens ``[B, heads, n, width]`` to the places ``at``; whole rows, sooner done than a scatter."""
        buffer = self.buffers[name]
        buffer.flatten(0, 2).index_copy_(0, _rows(at, buffer), tokens.flatten(0, 2))

    def _resize(self, name: str, rows: int, like: Tensor, dtype: torch.dtype, width: int) -> None:
        """Make a buffer of ``rows`` rows with what the old one of that name holds."""
        old = self.buffers.get(name)
        if old is not None and old.shape[2] == rows:
            return
        new = new_buffer((*like.shape[:2], rows, width), like, dtype)
        if old is not None:
            new[:, :, : old.shape[2]] = old
        self.buffers[name] = new


class NativeStore(_Buffers):
    """Keys and values as they were computed."""

    def resize(self, tokens: int, slots: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``tokens`` tokens; content stays."""
        self._resize("keys", tokens, k, k.dtype, k.shape[-1])
        self._resize("values", tokens, v, v.dtype, v.shape[-1])

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame to the tokens of its slot."""
        place = slice(slot * k.shape[2], (slot + 1) * k.shape[2])
        self.buffers["keys"][:, :, place] = k
        self.buffers["values"][:, :, place] = v

    def write_tokens(self, at: Tensor, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame to the tokens ``at``."""
        for name, part in (("keys", k), ("values", v)):
            self._put(name, at, part)

    def attend(self, q: Tensor, used: int, owners: Tensor | None = None) -> Tensor:
        """Attend over the first ``used`` tokens."""
        keys, values = self.buffers["keys"], self.buffers["values"]
        return scaled_dot_product_attention(q, keys[:, :, :used], values[:, :, :used])

    def head_keys(self, used: int, owners: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Keys of the first ``used`` tokens, of all heads at once: nothing is copied."""
        yield slice(None), self.buffers["keys"][:, :, :used]


class Int8Store(_Buffers):
    """Keys and values in a byte a number: keys with a scale for a channel of a frame, values with one for a token.

    Channels of keys differ in size and tokens of values do (KIVI, Liu et al. 2024, section 3; XStreamVGGT). A number is
    off by at most half a step, 1/254 of the largest one of its scale, and half as much again where bfloat16 rounded the
    scale down. A few heads at a time, of long memories one, are made floating point numbers again and attended over.
    """

    def resize(self, tokens: int, slots: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``tokens`` tokens of ``slots`` frames; content stays."""
        self._resize("keys", tokens, k, torch.int8, k.shape[-1])
        self._resize("key_scales", slots, k, torch.bfloat16, k.shape[-1])
        self._resize("values", tokens, v, torch.int8, v.shape[-1])
        self._resize("value_scales", tokens, v, torch.bfloat16, 1)

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame to the tokens of its slot."""
        tokens = k.shape[2]
        place = slice(slot * tokens, (slot + 1) * tokens)
        for name, part in self._packed(slot, k, v).items():
            self.buffers[name][:, :, place] = part

    def write_tokens(self, at: Tensor, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame to the tokens ``at``."""
        for name, part in self._packed(slot, k, v).items():
            self._put(name, at, part)

    def attend(self, q: Tensor, used: int, owners: Tensor | None = None) -> Tensor:
        """Attend over the first ``used`` tokens."""
        both = (self._numbers(name, used, owners, q.dtype) for name in ("keys", "values"))
        return torch.cat(
            [scaled_dot_product_attention(q[:, heads], k, v) for (heads, k), (_, v) in zip(*both, strict=True)], dim=1
        )

    def head_keys(self, used: int, owners: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Keys of the first ``used`` tokens as numbers, a few heads at a time, each in the memory of those before."""
        return self._numbers("keys", used, owners, torch.float32)

    def _numbers(
        self, name: str, used: int, owners: Tensor | None, dtype: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """Which heads, and their keys or values ``[B, some, used, D]``."""
        stored, per_slot = self.buffers[name][:, :, :used], self.tokens // self.slots
        some = max(1, _COPY // stored[:, 0].numel())
        memory = torch.empty_like(stored[:, :some], dtype=dtype, memory_format=torch.contiguous_format)
        for heads in (slice(start, start + some) for start in range(0, stored.shape[1], some)):
            numbers = memory[:, : stored[:, heads].shape[1]].copy_(stored[:, heads])
            scales = self.buffers[name.removesuffix("s") + "_scales"][:, heads].to(dtype)
            if name == "values":
                numbers *= scales[:, :, :used]
            elif owners is None:
                numbers.unflatten(2, (-1, per_slot)).mul_(scales[:, :, : used // per_slot, None])
            else:
                numbers *= scales.flatten(0, 2)[_rows(owners[:, heads, :used], scales)].view_as(numbers)
            yield heads, numbers

    def _packed(self, slot: int, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Write the scales of a frame's keys to its slot; its tokens as they are stored, by name of the buffer."""
        keys, key_scales = _quantise(k, 2)
        values, value_scales = _quantise(v, 3)
        self.buffers["key_scales"][:, :, slot] = key_scales[:, :, 0]
        return {"keys": keys, "values": values, "value_scales": value_scales}


def _quantise(numbers: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Divide by a scale for all along ``dim`` and round to int8; the integers and the scales, as they are stored."""
    scale = (numbers.float().abs().amax(dim, keepdim=True) / 127).clamp_min_(_LEAST_SCALE).bfloat16()
    return (numbers.float() / scale).round_().clamp_(-127, 127).to(torch.int8), scale


def new_buffer(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised buffer; one made in inference mode could not be written outside it."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _rows(at: Tensor, buffer: Tensor) -> Tensor:
    """Numbers of tokens or slots ``[B, heads, n]`` as those of rows where a buffer's first three axes are one."""
    first = buffer.shape[2] * torch.arange(at.shape[0] * at.shape[1], device=at.device)
    return (at.flatten(0, 1) + first[:, None]).flatten()
