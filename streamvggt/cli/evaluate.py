"""``evaluate``: score a model on sequences with truth, beside the trivial answers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..evaluate import evaluate_clips, evaluate_sequences
from ..export import write_atomically
from ..model import StreamVGGT
from ..predict import Keeping
from ..protocols import CLIPS, PROTOCOLS, Protocol
from ..report import json_text, markdown
from ..sequences import find_sequences
from ..synthetic import SyntheticConfig, render_clips
from .arguments import DTYPES, Commands, add_memory_options, default_device, find_device, parse_count, parse_seeds


def add(commands: Commands) -> None:
    """Declare the verb and its options."""
    command = commands.add_parser(
        "evaluate",
        help="score a model on sequences with truth, beside the trivial answers",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("--model", default="small", help="as for reconstruct; none scores the trivial answers alone")
    command.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="FOLDER", help="sequences, or folders of them"
    )
    command.add_argument("--layout", help="layout of the folders, such as tum; found out by their files if not given")
    command.add_argument("--protocol", choices=PROTOCOLS, default="sequence", help="what is scored, on which frames")
    command.add_argument(
        "--frames", type=parse_count, metavar="N", help="frames a sequence at most; else the protocol's"
    )
    command.add_argument("--stride", type=parse_count, metavar="K", help="every K-th frame; else the protocol's")
    command.add_argument("--width", type=parse_count, default=224, help="of the processed frames, pixels")
    command.add_argument("--mode", choices=("stream", "batch"), help="frame by frame or all at once; stream if it can")
    add_memory_options(command)
    command.add_argument("--refine", action="store_true", help="find cameras by matched patches, for the bundled model")
    command.add_argument(
        "--synthetic", type=parse_seeds, default=(), metavar="SEEDS", help="made-up scenes, such as 0-15 or 3,5,8"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="draw trajectories and depth there")
    command.add_argument("--device", default=default_device(), help="cpu, cuda or mps")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of encoder and aggregator")


def run(options: argparse.Namespace) -> int:
    """Score a model and print the tables; 1 if a sequence could not be scored."""
    if not (options.data or options.synthetic):
        raise ValueError("nothing to score: give --data FOLDER, --synthetic SEEDS or both")
    protocol = PROTOCOLS[options.protocol]
    changes = {"num_frames": options.frames, "stride": options.stride}
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    layout = options.layout or protocol.layout
    sequences = [sequence for folder in options.data for sequence in find_sequences(folder, layout)]
    model = None
    if options.model != "none":
        model = load_model(options.model, device=find_device(options.device), dtype=DTYPES[options.dtype])
        patch = model.config.patch_size
        if options.width % patch:
            nearest = max(1, round(options.width / patch)) * patch
            raise ValueError(
                f"--width must be a multiple of the patch size {patch}, got {options.width}; use {nearest}"
            )
    keeping = Keeping(options.policy, options.storage, options.memory, options.refine)
    how = {"label": options.model, "keeping": keeping}
    report: dict[str, Any] = {"protocol": None, "sequences": [], "mean": {}, "failures": {}}
    if sequences:
        report = evaluate_sequences(
            model, sequences, protocol, width=options.width, mode=options.mode, plots=options.plots, **how
        )
    if options.synthetic:
        report["synthetic"] = _evaluate_synthetic(options, model, how)
    print(markdown(report), end="")
    if options.json:
        report = {"model": options.model, "mode": options.mode, "width": options.width} | report
        write_atomically(options.json, json_text(report).encode())
    return 1 if report["failures"] else 0


def _evaluate_synthetic(options: argparse.Namespace, model: StreamVGGT | None, how: dict[str, Any]) -> dict[str, Any]:
    """Score clips of 4:3; they are rendered on the CPU, where a seed always means the same scene."""
    patch = 14 if model is None else model.config.patch_size
    height = max(1, round(options.width * 3 / 4 / patch)) * patch
    config = SyntheticConfig(num_frames=options.frames or SyntheticConfig.num_frames, image_hw=(height, options.width))
    protocol: Protocol = replace(CLIPS, parts=("depth", "camera", "points", "tracks"))
    clips = render_clips(options.synthetic, config)
    return {"seeds": list(options.synthetic)} | evaluate_clips(model, clips, protocol, mode=options.mode, **how)
