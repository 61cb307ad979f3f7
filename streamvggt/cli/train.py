"""``train``: train a teacher, or distil a causal student from one; the same command goes on with a run."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data import ClipSource, SyntheticSource
from ..sequences import find_sequences
from ..sources import SequenceSource, load_photos
from ..synthetic import TextureBank
from ..train import RECIPES, Run, TrainConfig, memorise, recipe
from ..validation import Validation
from .arguments import Commands, default_device, find_device, parse_setting, parse_weighed, parse_weight


def add(commands: Commands) -> None:
    """Declare the verb and its options."""
    command = commands.add_parser(
        "train",
        help="train a teacher, or distil a causal student from one; again to go on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--config", choices=RECIPES, required=True, help="the recipe")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder of the run")
    command.add_argument("--init", metavar="W", help="weights to begin with, as for reconstruct; else the recipe's")
    command.add_argument("--encoder", metavar="FILE", help="DINOv2 ViT-S/14 for a fresh small-teacher, safetensors")
    command.add_argument("--teacher", metavar="W", help="weights to learn from, as for reconstruct; else the recipe's")
    command.add_argument(
        "--data",
        nargs="+",
        action="extend",
        type=parse_weighed,
        default=[],
        metavar="FOLDER[:WEIGHT]",
        help="posed sequences with depth",
    )
    command.add_argument("--synthetic-weight", type=parse_weight, default=1.0, metavar="W", help="of made-up scenes")
    command.add_argument("--textures", type=Path, metavar="FOLDER", help="photographs for made-up scenes to wear")
    command.add_argument(
        "--validate",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="real sequences, beside made-up scenes",
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=parse_setting,
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: num_steps=500",
    )
    command.add_argument("--device", default=default_device(), help="cpu, cuda or mps")
    command.add_argument("--skip-check", action="store_true", help="do not learn one batch by heart first")


def run(options: argparse.Namespace) -> int:
    """Train, or go on where the folder's checkpoint is."""
    rank, num_processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    with _talking(rank == 0):
        return _train_as(rank, num_processes, options)


def _train_as(rank: int, num_processes: int, options: argparse.Namespace) -> int:
    """Train as one of so many processes."""
    device = find_device(options.device).type
    config = recipe(
        options.config,
        init=options.init,
        encoder=options.encoder,
        teacher=options.teacher,
        num_processes=num_processes,
    ).with_settings(dict(options.set))
    sources = _sources(options, config, device)
    data = {
        "data": [[str(folder), weight] for folder, weight in options.data],
        "synthetic_weight": options.synthetic_weight,
        "textures": None if options.textures is None else str(options.textures),
        "validate": [str(folder) for folder in options.validate],
    }
    if not (options.skip_check or (options.output / "checkpoint.pt").exists()):
        memorise(config, sources=sources, device=device)
    validate = None
    if rank == 0:
        side, patch = config.network.image_size, 14
        validate = Validation.of_folders(round(side * 3 / 4 / patch) * patch, options.validate)
    training = Run(config, options.output, sources=sources, validate=validate, data=data, device=device)
    training.train()
    if rank == 0:
        print(options.output / "model.safetensors")
    return 0


def _sources(options: argparse.Namespace, config: TrainConfig, device: str) -> list[tuple[ClipSource, float]]:
    """Open what clips are cut out of. Scenes are rendered where the workers are: without any, on the device."""
    sources: list[tuple[ClipSource, float]] = [
        (SequenceSource(find_sequences(folder)), weight) for folder, weight in options.data
    ]
    if options.textures is not None and not options.synthetic_weight:
        raise ValueError("--textures are for made-up scenes, which --synthetic-weight 0 leaves out")
    if options.synthetic_weight:
        where = "cpu" if config.workers else device
        bank = None if options.textures is None else TextureBank(load_photos(options.textures), where)
        scenes = SyntheticSource(config.scene_frames, textures=bank, device=where)
        sources.append((scenes, options.synthetic_weight))
    if not sources:
        raise ValueError("nothing to learn from: give --data FOLDER, or a --synthetic-weight above 0")
    return sources


@contextmanager
def _talking(aloud: bool) -> Iterator[None]:
    """Let progress through, and licences once, though weights are loaded several times; or nothing but errors."""
    package, loading, told = logging.getLogger("streamvggt"), logging.getLogger("streamvggt.checkpoint"), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in told
        told.add(record.getMessage())
        return not known

    level = package.level
    package.setLevel(logging.INFO if aloud else logging.ERROR)
    loading.addFilter(is_new)
    try:
        yield
    finally:
        package.setLevel(level)
        loading.removeFilter(is_new)
