"""The paper's ablation in small: what distillation is worth to a causal student, same budget, on held-out scenes.

Four rows, each with several seeds: a teacher with full attention; its weights run causally; a causal student that
starts from them and learns from the truth; one that learns from the teacher (and a little from the truth, as the
bundled model). All share one frozen encoder and see the same clips. Depth is also given for frame 0, which has the most
to lose: a teacher sees all frames there, a student one.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from streamvggt.checkpoint import load_model, save_model
from streamvggt.config import StreamVGGTConfig
from streamvggt.data import ClipBatch, ClipStream, Stage, SyntheticSource
from streamvggt.evaluate import evaluate_clips
from streamvggt.learner import Batch, Learner
from streamvggt.losses import LossConfig
from streamvggt.model import StreamVGGT
from streamvggt.recipes import TrainConfig
from streamvggt.validation import FIRST_HELD_OUT_SEED

IMAGE_HW = (84, 112)
ROWS = ("teacher, full attention", "teacher's weights, causal", "student, truth only", "student, distilled")
COLUMNS = {
    "abs_rel_median": ("AbsRel", "frame by frame, each scaled to its median"),
    "frame_0": ("of frame 0", "likewise"),
    "delta_1_25_median": ("delta < 1.25", "likewise"),
    "rotation_deg": ("rotation, deg", "mean error since frame 0"),
    "auc_30": ("AUC@30", "of all pairs"),
}


def base_config(steps: int) -> TrainConfig:
    """A run of the ablation: the bundled model with half its width, three pairs of blocks and slim maps."""
    sizes = {"embed_dim": 128, "num_heads": 2, "depth": 3, "camera_num_heads": 4, "dense_layers": (0, 1, 1, 2)}
    maps = {"dense_features": 16, "dense_channels": (16, 16, 32, 32)}
    network = replace(StreamVGGTConfig.small("full"), **sizes, **maps)
    return TrainConfig(network=network, num_steps=steps, warmup_steps=20, ema=0.98, dense_share=0.5, workers=0)


def fresh_network(config: StreamVGGTConfig, encoder: StreamVGGT, seed: int) -> StreamVGGT:
    """A network with new weights behind the encoder."""
    torch.manual_seed(seed)
    network = StreamVGGT(config)
    network.encoder.load_state_dict(encoder.encoder.state_dict())
    return network


@torch.no_grad()
def batches(stages: tuple[Stage, ...], steps: int, encoder: StreamVGGT) -> list[Batch]:
    """The clips of all steps, and what the encoder makes of them."""
    stream = ClipStream((SyntheticSource(),), (1.0,), stages, steps, seed=5)
    return [(clips, encoder._encode(clips.images)) for clips in (stream[step] for step in range(steps))]


def train(config: TrainConfig, clips: list[Batch], path: Path) -> StreamVGGT:
    """Take all steps and keep the averaged weights."""
    learner = Learner(config, "cpu")
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(config.seed)).tolist()
    for step in range(config.num_steps):
        learner.take_step(step, [clips[order[step % len(order)]]])
    network = learner.averaged()
    save_model(network, path)
    return network


def scores(network: StreamVGGT, clips: ClipBatch) -> dict[str, float]:
    """The numbers of a row."""
    report = evaluate_clips(network, clips, trivial=False)
    curves = report["per_frame"]
    turned = [x for x in curves["rotation_deg"][1:] if x is not None]
    return {**report["rows"]["model"], "frame_0": curves["abs_rel_median"][0], "rotation_deg": mean(turned)}


def one_seed(
    seed: int, args: argparse.Namespace, encoder: StreamVGGT, data: list[Batch], held: ClipBatch
) -> list[dict]:
    """Train teacher and students with one seed; the scores of the four rows."""
    with tempfile.TemporaryDirectory() as folder:
        start, teacher = Path(folder) / "start.safetensors", Path(folder) / "teacher.safetensors"
        config = replace(base_config(args.steps), seed=seed, init=str(start))
        save_model(fresh_network(config.network, encoder, seed), start)
        full = train(config, data, teacher)
        causal = replace(config.network, attention="causal")
        rate = {"lr": config.lr / 2, "muon_lr": config.muon_lr / 2, "num_steps": args.steps // 2}
        pupil = replace(config, network=causal, init=str(teacher), **rate)
        taught = replace(pupil, teacher=str(teacher), truth=0.3, loss=LossConfig(feature=0.5))
        spare = Path(folder) / "student.safetensors"
        networks = [full, load_model(teacher, config=causal), train(pupil, data, spare), train(taught, data, spare)]
    rows = [scores(network, held) for network in networks]
    for name, row in zip(ROWS, rows, strict=True):
        print(f"seed {seed}, {name}:", {key: round(row[key], 4) for key in COLUMNS}, flush=True)
    return rows


def main() -> None:
    """Train, score, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", default="small", help="whose encoder: as load_model takes it")
    parser.add_argument("--steps", type=int, default=300, help="of the teacher; a student takes half as many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=40, help="held-out scenes")
    args = parser.parse_args()
    encoder = load_model(args.encoder)
    stages = (Stage(0.3, (2,), (3, 7), (IMAGE_HW,), 1152), Stage(1.0, (4,), (1, 2), (IMAGE_HW,), 1152))
    data = batches(stages, args.steps, encoder)
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + args.clips)
    held = SyntheticSource(7).clips(seeds, 4, (2, 2), IMAGE_HW).normalized()
    results = [one_seed(seed, args, encoder, data, held) for seed in range(args.seeds)]
    trivial = evaluate_clips(None, held)["rows"]
    best = min(trivial[name]["abs_rel_median"] for name in ("constant depth", "depth template"))
    print(f"\n{args.steps} steps of 24 frames for a teacher, {args.steps // 2} more for a student, {args.seeds} seeds, "
          f"{args.clips} scenes of 4 frames; mean and deviation. Best trivial AbsRel {best:.3f}\n")  # fmt: skip
    print("| | " + " | ".join(name for name, _ in COLUMNS.values()) + " |\n|---|" + "--:|" * len(COLUMNS))
    for i, name in enumerate(ROWS):
        cells = []
        for key in COLUMNS:
            values = [rows[i][key] for rows in results]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
