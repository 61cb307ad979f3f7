"""Memory: amounts of it as people write them, and the many ways in which it is told that there is none left."""

from __future__ import annotations

import re

import torch

_UNITS = {"": 1, **{prefix + "B": 1000**i for i, prefix in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {prefix + "IB": 1024**i for i, prefix in enumerate(("K", "M", "G", "T"), 1)}
# On Linux and macOS, on Windows; of the drivers of devices.
_TOLD = ("can't allocate memory", "not enough memory", "out of memory")


def byte_count(amount: int | str) -> int:
    """Read an amount of memory: bytes, or text such as "2GB" (of 1000), "1.5 GiB" (of 1024) or "800MB".

    Raises:
        ValueError: it is none of these, or below 1.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", str(amount).upper())
    unit = _UNITS.get(found[2]) if found else None
    count = int(float(found[1]) * unit) if found and unit else 0
    if count < 1 or isinstance(amount, bool):
        raise ValueError(f'memory must be a number of bytes, or text such as "2GB" or "512MiB", got {amount!r}')
    return count


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory has run out, of the machine or of a device.

    PyTorch raises ``torch.OutOfMemoryError`` for CUDA and a plain RuntimeError for the memory of the machine; Python
    and NumPy raise MemoryError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _TOLD)
