"""What the verbs share: how words of the command line become values, and the devices and precisions to name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from ..policies import AnchorWindow, CachePolicy, KeepAll

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a verb adds its parser."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIB = 2**20


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
    name, _, counts = text.partition(":")
    try:
        if name == "all" and not counts:
            return KeepAll()
        if name == "window":
            return AnchorWindow(*(int(count) for count in counts.split(","))) if counts else AnchorWindow()
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    raise argparse.ArgumentTypeError(f"needs all, window or window:A,R, got {text!r}")


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
