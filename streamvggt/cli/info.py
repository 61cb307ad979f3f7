"""``info``: the sizes of a model and what a cached frame costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from ..checkpoint import load_model
from ..config import StreamVGGTConfig
from ..model import StreamVGGT
from ..policies import AnchorWindow, Keyframes, TokenBudget
from .arguments import MIB, Commands

PRESETS: dict[str, Callable[[], StreamVGGTConfig]] = {
    "tiny": StreamVGGTConfig.tiny,
    "small": StreamVGGTConfig.small,
    "vggt-1b": StreamVGGTConfig.vggt_1b,
}


def add(commands: Commands) -> None:
    """Declare the verb and its options."""
    command = commands.add_parser("info", help="print the sizes of a model and what a cached frame costs")
    command.set_defaults(run=run)
    command.add_argument(
        "model", nargs="?", default="vggt-1b", help=f"{', '.join(PRESETS)}, a file, a folder or Hub id"
    )


def run(options: argparse.Namespace) -> int:
    """Print configuration, parameters and bytes of a cached frame; presets are built without weights."""
    preset = PRESETS.get(options.model)
    config = preset() if preset else load_model(options.model).config
    with torch.device("meta"):
        model = StreamVGGT(config)
    print(f"{options.model}: attention {config.attention}, encoder {config.encoder}, {config.depth} pairs of blocks,")
    print(f"  {config.embed_dim} wide, {config.num_heads} heads, patches of {config.patch_size} pixels")
    print(f"parameters {_count(model):>38,}")
    for name, part in model.named_children():
        print(f"  {name:<20} {_count(part):>26,}")
    print("memory of one cached frame            float32      bfloat16          int8")
    side, patch = config.image_size, config.patch_size
    sizes = {(round(side * ratio / patch) * patch, side) for ratio in (1, 3 / 4, 9 / 16)}
    for height, width in sorted(sizes, reverse=True):
        bytes_a_frame = [config.cached_frame_bytes(height, width, size) for size in (4, 2)]
        bytes_a_frame.append(config.cached_frame_bytes(height, width, storage="int8"))
        cells = [f"{count / MIB:10.2f} MiB" for count in bytes_a_frame]
        print(f"  {width}x{height} ({config.tokens_per_frame(height, width)} tokens)".ljust(31) + "".join(cells))
    window, whole, spread = AnchorWindow().capacity, Keyframes().capacity, TokenBudget().capacity
    print(f"frames held without a --memory: window {window}, keyframes {whole}, all every frame;")
    print(f"  tokens as many as {whole} frames have, of {spread} frames at most")
    return 0


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
