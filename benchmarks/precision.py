"""What half precision changes: a video streamed in float32 and in bfloat16 with the same weights, results compared.

Only trained weights tell something: those of "tiny" hardly react to what they see.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import numpy as np
import torch

from streamvggt import FramePrediction, StreamSession, load_model, read_frames
from streamvggt.metrics import depth_metrics, relative_pose_errors


def stream(args: argparse.Namespace, weights: torch.dtype, autocast: torch.dtype) -> list[FramePrediction]:
    """Predict the frames of the video with encoder and aggregator in these precisions."""
    session = StreamSession(load_model(args.model, device=args.device, dtype=weights), dtype=autocast)
    return list(session.run(islice(read_frames(args.video, fps=args.fps), args.frames)))


def main(argv: list[str]) -> None:
    """Stream three times and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="as load_model takes it")
    parser.add_argument("video", help="as read_frames takes it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fps", type=float)
    parser.add_argument("--frames", type=int, default=30)
    args = parser.parse_args(argv)
    exact = stream(args, torch.float32, torch.float32)
    truth = {name: np.stack([getattr(p, name) for p in exact]) for name in ("depth", "depth_conf", "extrinsics")}
    print(
        f"{len(exact)} frames, against float32 weights without autocast\n\n"
        "| encoder and aggregator | depth, mean relative error | depth confidence, likewise | rotation, median deg |\n"
        "|---|--:|--:|--:|"
    )
    for name, weights in (("bfloat16 by autocast", torch.float32), ("bfloat16 weights", torch.bfloat16)):
        half = stream(args, weights, torch.bfloat16 if weights == torch.float32 else torch.float32)
        got = {key: np.stack([getattr(p, key) for p in half]) for key in truth}
        errors = [depth_metrics(got[key], truth[key], align="none").abs_rel for key in ("depth", "depth_conf")]
        rotation_deg, _ = relative_pose_errors(got["extrinsics"], truth["extrinsics"])
        print(f"| {name} | {errors[0]:.1e} | {errors[1]:.1e} | {np.median(rotation_deg):.1e} |")


if __name__ == "__main__":
    main(sys.argv[1:])
