"""How the keys and values of one attention layer are kept: buffers that are written in place and attended over."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Store(Protocol):
    """Keys and values of one layer, ``[B, heads, T, D]``; token t belongs to the slot ``t // P`` unless told otherwise.

    Buffers are made one after the other, so that never more than one of them is there twice.
    """

    @property
    def tokens(self) -> int:
        """T, the tokens that there is room for."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, filled or not."""

    def resize(self, tokens: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``tokens`` tokens like those of a frame ``k``, ``v`` ``[B, heads, P, D]``; content stays."""

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame's keys and values ``[B, heads, P, D]`` to the tokens of its slot."""

    def attend(self, q: Tensor, used: int) -> Tensor:
        """Attend from queries ``[B, heads, P, D]`` over the first ``used`` tokens."""

    def select(self, slots: list[int], tokens_per_slot: int) -> None:
        """Keep the content of these slots alone, in this order, in buffers that hold no more."""

    def held_bytes(self, used: int) -> int:
        """Bytes of the first ``used`` tokens."""


class NativeStore:
    """Keys and values as they were computed."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def tokens(self) -> int:
        """T, the tokens that there is room for."""
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, filled or not."""
        return sum(buffer.nbytes for buffer in (self.keys, self.values) if buffer is not None)

    def resize(self, tokens: int, k: Tensor, v: Tensor) -> None:
        """Make room for ``tokens`` tokens like those of ``k`` and ``v``; content stays."""
        self.keys = _resized(self.keys, k, tokens)
        self.values = _resized(self.values, v, tokens)

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Write a frame to the tokens of its slot."""
        keys, values = self.buffers()
        place = slice(slot * k.shape[2], (slot + 1) * k.shape[2])
        keys[:, :, place] = k
        values[:, :, place] = v

    def attend(self, q: Tensor, used: int) -> Tensor:
        """Attend over the first ``used`` tokens."""
        keys, values = self.buffers()
        return scaled_dot_product_attention(q, keys[:, :, :used], values[:, :, :used])

    def select(self, slots: list[int], tokens_per_slot: int) -> None:
        """Keep the content of these slots alone."""
        keys, values = self.buffers()
        self.keys = keys = _selected(keys, slots, tokens_per_slot)
        self.values = _selected(values, slots, tokens_per_slot)

    def held_bytes(self, used: int) -> int:
        """Bytes of the first ``used`` tokens."""
        return 0 if not self.tokens else self.nbytes // self.tokens * used

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values, once there are some."""
        if self.keys is None or self.values is None:
            raise RuntimeError("nothing has been stored yet")
        return self.keys, self.values


def new_buffer(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised buffer; one made in inference mode could not be written outside it."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _resized(buffer: Tensor | None, like: Tensor, tokens: int) -> Tensor:
    """Return a buffer ``[B, heads, tokens, ...]`` for frames like ``like``, with the content of the old one."""
    new = new_buffer((*like.shape[:2], tokens, *like.shape[3:]), like)
    if buffer is not None:
        both = min(tokens, buffer.shape[2])
        new[:, :, :both] = buffer[:, :, :both]
    return new


def _selected(buffer: Tensor, slots: list[int], tokens_per_slot: int) -> Tensor:
    """Return a buffer with these slots of the old one, in this order."""
    new = new_buffer((*buffer.shape[:2], len(slots) * tokens_per_slot, *buffer.shape[3:]), buffer)
    old_frames, new_frames = (x.unflatten(2, (-1, tokens_per_slot)) for x in (buffer, new))
    for place, slot in enumerate(slots):
        new_frames[:, :, place] = old_frames[:, :, slot]
    return new
