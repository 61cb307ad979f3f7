"""Weights in a quarter of their size: 8-bit integers, one scale for each output of a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE = ".int8_scale"
_LEAST = 1024  # numbers; smaller tensors are not worth it


def pack_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store the weights of layers as int8, each row (first axis) divided by its own scale; all else stays.

    The rounding error of a weight is at most 1/254 of the largest one in its row.

    Args:
        tensors: floating point, by name; those named "...weight" with two or more axes are packed.

    Returns:
        Tensors by name, and beside each packed one its scales ``[rows]``, float32. :func:`unpack_int8` is the inverse.
    """
    packed = {}
    for name, tensor in tensors.items():
        if not name.endswith("weight") or tensor.ndim < 2 or tensor.numel() < _LEAST:
            packed[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(1e-12) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view_as(tensor)
        packed[name + _SCALE] = scale
    return packed


def unpack_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`pack_int8`: float32 where scales are there, all else as it is."""
    unpacked = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            continue
        scale = tensors.get(name + _SCALE)
        unpacked[name] = tensor if scale is None else (tensor.flatten(1) * scale[:, None]).view_as(tensor)
    return unpacked
