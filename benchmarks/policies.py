"""What a bounded memory costs: every policy at three budgets, on a long walk with exact truth and on real sequences.

A budget is as many bytes as so many whole frames take; every policy fills it. The walk goes round a made-up room
twice, so that places come back. Errors are of the whole sequence: path after one similarity (ATE), depth scaled to the
median frame by frame (AbsRel), cloud after one similarity (the mean of accuracy and completeness). How far depth and
cameras move from those of the stream that keeps everything (mean of absolute logarithms of depth, median of angles)
says what a rule forgets, whatever the network is worth.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from streamvggt.checkpoint import load_model
from streamvggt.export import write_atomically
from streamvggt.geometry import compose, decode_pose, invert_pose, unproject
from streamvggt.model import StreamVGGT
from streamvggt.policies import (
    AnchorWindow,
    CachePolicy,
    KeepAll,
    KeyDiversity,
    Keyframes,
    QueryImportance,
    TokenBudget,
)
from streamvggt.protocols import SEQUENCE
from streamvggt.scoring import Answer, Truth, score
from streamvggt.sequences import find_sequences, load_frames, natural_hw
from streamvggt.stores import Storage
from streamvggt.synthetic import SyntheticConfig
from streamvggt.synthetic.sampling import sample_world
from streamvggt.synthetic.shading import expose, render
from streamvggt.synthetic.textures import procedural_bank

BUDGETS = (8, 16, 32)
MEASURES = ("ATE", "AbsRel", "cloud")


@dataclass(frozen=True)
class Row:
    """A policy with a budget in whole frames, None for no limit."""

    name: str
    budget: int | None
    policy: CachePolicy
    storage: Storage = "native"


@dataclass(frozen=True, eq=False)
class Walk:
    """Images ``[S, 3, H, W]`` and what is true of them."""

    name: str
    images: Tensor
    truth: Truth


def rows(budgets: tuple[int, ...] = BUDGETS) -> Iterator[Row]:
    """All that is compared."""
    yield Row("KeepAll", None, KeepAll())
    for budget in budgets:
        yield Row("AnchorWindow", budget, AnchorWindow(1, budget - 1))
        yield Row("Keyframes", budget, Keyframes(1, None, max(1, (budget + 2) // 3)))
        yield Row("TokenBudget, diversity", budget, TokenBudget(None, KeyDiversity()))
        yield Row("TokenBudget, importance", budget, TokenBudget(None, QueryImportance()))
    yield Row("Keyframes, int8", budgets[len(budgets) // 2], Keyframes(1, None, 8), "int8")


def round_trip(seed: int, num_frames: int, image_hw: tuple[int, int]) -> Walk:
    """Walk round a made-up room twice, ahead and outwards, above the furniture."""
    config = SyntheticConfig(
        num_frames=num_frames, image_hw=image_hw, open_probability=0, moving_probability=0, closeup_probability=0
    )
    world = sample_world([seed], config)
    room = world.poses[:, :, -1]
    half = world.half_sizes[0, 0, -1]
    angle = torch.arange(num_frames, dtype=torch.float64) * (4 * math.pi / num_frames)
    height = -0.35 * half[1] + 0.1 * (3 * angle).sin()
    centre = torch.stack([0.5 * half[0] * angle.cos(), height, 0.5 * half[2] * angle.sin()], -1)
    yaw, pitch = -angle + 0.5 * (2 * angle).sin() + 0.7, torch.full_like(angle, -0.25)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    turn = [yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()]
    nod = [one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()]
    rotation = torch.stack(turn, -1).unflatten(-1, (3, 3)) @ torch.stack(nod, -1).unflatten(-1, (3, 3))
    camera_to_room = torch.cat([rotation, centre[..., None]], -1)[None]
    world = replace(world, extrinsics=invert_pose(compose(room, camera_to_room))).to(torch.device("cpu"))
    parts = [
        render(world.frames(t, t + 1), procedural_bank(torch.device("cpu")), image_hw, shadows=True)
        for t in range(num_frames)
    ]
    radiance, depth = (torch.cat(values)[None] for values in list(zip(*parts, strict=True))[:2])
    truth = Truth(
        depth=depth[0].numpy(),
        valid=(depth[0] > 0).numpy(),
        extrinsics=world.extrinsics[0].numpy(),
        intrinsics=world.intrinsics[0].numpy(),
        image_hw=image_hw,
    )
    return Walk(f"walk {seed}", expose(radiance, world)[0], truth)


def real_walk(folder: Path, num_frames: int, width: int) -> Walk:
    """The first frames of a sequence on disk."""
    [sequence] = find_sequences(folder)
    image_hw = natural_hw(sequence, width, 14)
    frames = range(min(num_frames, len(sequence.frames)))
    images, depth, valid, extrinsics, intrinsics = load_frames(sequence, frames, image_hw)
    truth = Truth(depth.numpy(), valid.numpy(), extrinsics.numpy(), intrinsics.numpy(), image_hw)
    return Walk(folder.name, images, truth)


@torch.inference_mode()
def run(model: StreamVGGT, walk: Walk, row: Row, whole: Answer | None) -> tuple[dict[str, float], Answer]:
    """Stream a walk and score what was said, also against what a stream that keeps everything said, if it is known.

    Returns:
        Errors, bytes and frames held at the end, and the median CPU time of a frame; and what was said.
    """
    memory = None
    if row.budget is not None:
        memory = budget_bytes(model, walk, row.budget)
    state = model.new_state(row.policy, storage=row.storage, memory=memory)
    depth, poses, times = [], [], []
    for frame in walk.images.split(1):
        start = time.process_time()
        said = model(frame[None], state=state, outputs={"camera", "depth"})
        times.append(time.process_time() - start)
        assert said.depth is not None and said.pose_enc is not None
        depth.append(said.depth[0])
        poses.append(said.pose_enc[0])
        assert memory is None or state.allocated_bytes <= memory
    extrinsics, intrinsics = decode_pose(torch.cat(poses), walk.truth.image_hw)
    depths = torch.cat(depth)
    answer = Answer(
        depth=depths.numpy(),
        extrinsics=extrinsics.numpy(),
        world_points=unproject(depths, extrinsics, intrinsics).numpy(),
    )
    scores = score(answer, walk.truth, SEQUENCE)
    whole = answer if whole is None else whole
    results = {
        "ATE": scores["ate_rmse"],
        "AbsRel": scores["abs_rel_median"],
        "cloud": mean((scores["accuracy_mean"], scores["completeness_mean"])),
        "bytes": float(state.nbytes),
        "frames": float(len(state.held_frames)),
        "ms": 1e3 * float(np.median(times[len(times) // 2 :])),
        "depth off": float(np.abs(np.log(_depth(answer) / _depth(whole))).mean()),
        "turn off": float(np.median(_angles(answer, whole))),
    }
    return results, answer


def _depth(answer: Answer) -> np.ndarray:
    assert answer.depth is not None
    return answer.depth


def _angles(answer: Answer, other: Answer) -> np.ndarray:
    """Degrees between the cameras of two answers, frame by frame."""
    assert answer.extrinsics is not None and other.extrinsics is not None
    # Not by the cosine, which knows no angle below 0.02 degrees in float32.
    chord = np.linalg.norm(answer.extrinsics[:, :3, :3] - other.extrinsics[:, :3, :3], axis=(-2, -1))
    return np.degrees(2 * np.arcsin((chord / 8**0.5).clip(0, 1)))


def budget_bytes(model: StreamVGGT, walk: Walk, budget: int) -> int:
    """Bytes in which so many whole frames fit, with descriptors and room to make one buffer anew."""
    plenty = 2**50
    state = model.new_state(memory=plenty)
    model(walk.images[None, :1], state=state, outputs={"camera", "depth"})
    costs = state._costs()
    assert costs.room is not None
    return budget * (costs.tokens * costs.token + costs.frame) + plenty - costs.room


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each policy and budget, its measures in every walk, and the mean of their ratios to KeepAll's."""
    walks = list(next(iter(results.values())))
    lines = [
        "| policy | frames it fits | held | MiB | ms a frame | " + " | ".join(walks) + " | mean over KeepAll "
        "| off KeepAll |",
        "|---|--:|--:|--:|--:|" + "--:|" * (len(walks) + 2),
    ]
    for name, by_walk in results.items():
        policy, budget = name.rsplit(" @ ", 1)
        first = by_walk[walks[0]]
        cells = [" / ".join(f"{by_walk[walk][measure]:.3f}" for measure in MEASURES) for walk in walks]
        lines.append(
            f"| {policy} | {budget} | {first['frames']:.0f} | {first['bytes'] / 2**20:.1f} | {first['ms']:.0f} | "
            + " | ".join(cells)
            + f" | {' / '.join(f'{ratio(results, name, measure):.3f}' for measure in MEASURES)}"
            + f" | {100 * mean(m['depth off'] for m in by_walk.values()):.2f} % / "
            + f"{mean(m['turn off'] for m in by_walk.values()):.2f} deg |"
        )
    return "\n".join(lines) + "\n"


def ratio(results: dict[str, dict[str, dict[str, float]]], name: str, measure: str) -> float:
    """Geometric mean over the walks of a row's error over that of the stream that keeps everything."""
    whole = results["KeepAll @ all"]
    return math.exp(mean(math.log(results[name][walk][measure] / whole[walk][measure]) for walk in whole))


def draw(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Errors over KeepAll's against the bytes held."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(11, 3.4), constrained_layout=True)
    walk = next(iter(next(iter(results.values()))))
    policies = list(dict.fromkeys(name.rsplit(" @ ", 1)[0] for name in results))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for policy in policies[1:]:
            names = [name for name in results if name.rsplit(" @ ", 1)[0] == policy]
            sizes = [results[name][walk]["bytes"] / 2**20 for name in names]
            axis.plot(sizes, [ratio(results, name, measure) for name in names], marker="o", label=policy)
        axis.axhline(1, color="black", linewidth=1, label="KeepAll")
        axis.set(title=f"{measure} over KeepAll's", xlabel="held at the end, MiB")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run every row on every walk; write a table, a plot and all numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--width", type=int, default=112, help="of the images, pixels")
    parser.add_argument("--frames", type=int, default=240, help="of the made-up walks; of others at most so many")
    parser.add_argument("--seeds", type=int, nargs="*", default=[3], help="of the made-up rooms")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of sequences with truth")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/policies.md"))
    args = parser.parse_args()
    model = load_model(args.model)
    height = round(args.width * 3 / 4 / 14) * 14
    walks = [round_trip(seed, args.frames, (height, args.width)) for seed in args.seeds]
    walks += [real_walk(folder, args.frames, args.width) for folder in args.data]
    results: dict[str, dict[str, dict[str, float]]] = {}
    whole: dict[str, Answer] = {}
    for row in rows(tuple(args.budgets)):
        name = f"{row.name} @ {'all' if row.budget is None else row.budget}"
        results[name] = {}
        for walk in walks:
            title = f"{walk.name}, {len(walk.images)}"
            results[name][title], answer = run(model, walk, row, whole.get(title))
            whole.setdefault(title, answer)  # the first row keeps everything
        print(name, json.dumps(results[name]), flush=True)
    head = (
        f"# What a bounded memory costs\n\n    {shlex.join(['python', 'benchmarks/policies.py', *sys.argv[1:]])}\n\n"
        f"`{args.model}`, {args.width} pixels wide, CPU, float32.\n\n{__doc__}\n"
    )
    columns = (
        f"Columns of walks: {' / '.join(MEASURES)} (lower is better; ATE and cloud in metres). Frames held, MiB and\n"
        "CPU time (median of the second half) are those of the first walk; the last two columns are of all walks.\n\n"
    )
    write_atomically(args.out, (head + columns + table(results)).encode())
    draw(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
