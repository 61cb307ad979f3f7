"""What keys and values in a byte a number cost: a stream in int8 beside the same one as it is computed, in one run.

Both hold the same frames (`AnchorWindow`) and take turns frame by frame. Times are CPU time, medians of the frames that
came when the window was full. Bytes are those of the blocks' keys and values, scales counted; the camera head's are
kept as they are computed in both. "Off" is int8 against native: the mean of absolute logarithms of depth. AbsRel is of
depth scaled to the median frame by frame, ATE of the path after one similarity.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from policies import Walk, real_walk, round_trip

from streamvggt.checkpoint import load_model
from streamvggt.export import write_atomically
from streamvggt.geometry import decode_pose
from streamvggt.model import StreamVGGT
from streamvggt.policies import AnchorWindow
from streamvggt.protocols import SEQUENCE
from streamvggt.scoring import Answer, score
from streamvggt.stores import STORAGES


@torch.inference_mode()
def measure(model: StreamVGGT, walk: Walk, held: int) -> str:
    """A row of the table."""
    states = [model.new_state(AnchorWindow(1, held - 1), storage=storage) for storage in STORAGES]
    depths: list[list[torch.Tensor]] = [[] for _ in states]
    poses: list[list[torch.Tensor]] = [[] for _ in states]
    times: list[list[float]] = [[] for _ in states]
    for frame in walk.images.split(1):
        for i, state in enumerate(states):
            start = time.process_time()
            said = model(frame[None], state=state, outputs={"camera", "depth"})
            times[i].append(time.process_time() - start)
            assert said.depth is not None and said.pose_enc is not None
            depths[i].append(said.depth[0])
            poses[i].append(said.pose_enc[0])
    scores = []
    for depth, pose in zip(depths, poses, strict=True):
        extrinsics, _ = decode_pose(torch.cat(pose), walk.truth.image_hw)
        answer = Answer(depth=torch.cat(depth).numpy(), extrinsics=extrinsics.numpy())
        scores.append(score(answer, walk.truth, SEQUENCE))
    native, int8 = (sum(c.nbytes for name, c in s.caches.items() if name.startswith("block")) for s in states)
    as_bfloat16 = native * 2 // (states[0].key_bytes or 4)
    off = (torch.cat(depths[1]) / torch.cat(depths[0])).log().abs().mean().item()
    ms = [1e3 * float(np.median(t[held:])) for t in times]
    pairs = [[s[measure] for s in scores] for measure in ("abs_rel_median", "ate_rmse")]
    errors = [f"{was:.4f} | {now:.4f} ({100 * (now / was - 1):+.2f} %)" for was, now in pairs]
    return (
        f"| {walk.name} | {held} | {native:,} | {as_bfloat16:,} | {int8:,} | {int8 / as_bfloat16:.4f} "
        f"| {100 * off:.3f} % | {' | '.join(errors)} | {ms[0]:.0f} | {ms[1]:.0f} | {ms[1] / ms[0]:.2f} |"
    )


def main(argv: list[str]) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--held", type=int, nargs="+", default=[16, 64], help="numbers of held frames")
    parser.add_argument("--frames", type=int, default=16, help="that come when the window is full")
    parser.add_argument("--width", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--seed", type=int, default=3, help="of the made-up room")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of sequences with truth")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/int8.md"))
    args = parser.parse_args(argv)
    model = load_model(args.model)
    height = round(args.width * 3 / 4 / 14) * 14
    shown = [part.rsplit("/", 1)[-1] for part in argv]
    lines = [
        f"    {shlex.join(['python', 'benchmarks/int8.py', *shown])}\n\n`{args.model}`, {args.width} pixels wide, CPU, "
        f"float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}.\n\n{__doc__}",
        "| walk | held | native, bytes | as bfloat16 | int8 | int8 / bfloat16 | depth off | AbsRel native | int8 "
        "| ATE native, m | int8 | ms native | int8 | int8 / native |\n|---|" + "--:|" * 13,
    ]
    for held in args.held:
        walks = [round_trip(args.seed, held + args.frames, (height, args.width))]
        walks += [real_walk(folder, held + args.frames, args.width) for folder in args.data]
        lines += [measure(model, walk, held) for walk in walks if len(walk.images) > held]
    text = "\n".join(lines) + "\n"
    print(text)
    write_atomically(args.out, text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
