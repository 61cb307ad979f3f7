"""What the verbs share: how words of the command line become values, and the devices and precisions to name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from ..memory import byte_count
from ..policies import (
    AnchorWindow,
    CachePolicy,
    KeepAll,
    KeyDiversity,
    Keyframes,
    QueryImportance,
    TokenBudget,
    TokenScore,
)
from ..stores import STORAGES

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a verb adds its parser."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIB = 2**20
POLICIES = "all, window[:FIRST,RECENT], keyframes[:FIRST,BETWEEN,RECENT], tokens[:COUNT][,diversity|importance]"
SCORES: dict[str, TokenScore] = {"diversity": KeyDiversity(), "importance": QueryImportance()}


def parse_rate(text: str) -> float | None:
    if text == "all":
        return None
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a rate above 0 or 'all', got {text}")
    return value


def parse_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"needs a number of at least 1, got {text}")
    return value


def parse_weight(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a weight of at least 0, got {text}")
    return value


def parse_weighed(text: str) -> tuple[Path, float]:
    folder, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not (folder and 0 < value < float("inf")):
        raise argparse.ArgumentTypeError(f"needs a folder, or FOLDER:WEIGHT with a weight above 0, got {text!r}")
    return Path(folder), value


def parse_setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise argparse.ArgumentTypeError(f"needs NAME=VALUE, such as num_steps=500, got {text!r}")
    return name.strip(), value.strip()


def parse_seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            seeds += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs seeds such as 0-15 or 3,5,8, got {text!r}") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"needs at least one seed, got {text!r}; ranges go upwards")
    return tuple(seeds)


def parse_policy(text: str) -> CachePolicy:
    name, _, rest = text.partition(":")
    parts = rest.split(",") if rest else []
    try:
        if name == "all" and not parts:
            return KeepAll()
        if name == "window" and len(parts) in (0, 2):
            return AnchorWindow(*(int(count) for count in parts))
        if name == "keyframes" and len(parts) in (0, 3):
            return Keyframes(*(int(count) for count in parts))
        if name == "tokens":
            score = SCORES[parts.pop()] if parts and parts[-1] in SCORES else KeyDiversity()
            if len(parts) <= 1:
                return TokenBudget(int(parts[0]) if parts else None, score)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    raise argparse.ArgumentTypeError(f"needs {POLICIES}, got {text!r}")


def parse_memory(text: str) -> int:
    try:
        return byte_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_memory_options(command: argparse.ArgumentParser) -> None:
    """Declare what a stream keeps, and how: ``--policy``, ``--memory`` and ``--storage``."""
    command.add_argument(
        "--policy",
        type=parse_policy,
        default="all",
        help=f"what a stream keeps in memory, in frames, or in tokens a layer: {POLICIES}",
    )
    command.add_argument(
        "--memory", type=parse_memory, metavar="BYTES", help="that it never passes, such as 2GB or 512MiB"
    )
    command.add_argument(
        "--storage", choices=STORAGES, default="native", help="keys and values as computed, or in 8 bits a number"
    )


def choices_of(allowed: Sequence[str], *, needed: bool = False) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        unknown = [name for name in names if name not in allowed]
        if unknown or (needed and not names):
            raise argparse.ArgumentTypeError(f"needs any of {','.join(allowed)}, joined by commas, got {text!r}")
        return names

    return parse


def find_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not to be had here ({str(error).splitlines()[0]}); take cpu") from None


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
