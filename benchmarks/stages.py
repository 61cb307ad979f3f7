"""Where the time of a frame goes: encoder, blocks, camera head, dense heads, of a network on a stream."""

from __future__ import annotations

import argparse
import itertools
import time
from statistics import median

import torch

from streamvggt import AnchorWindow, StreamVGGT, load_model
from streamvggt.state import StreamState

STAGES = ("encoder", "blocks", "camera head", "depth and point heads")


@torch.inference_mode()
def frame_times(model: StreamVGGT, frame: torch.Tensor, state: StreamState) -> list[float]:
    """Take one frame into the stream, by the steps of ``StreamVGGT.forward``; seconds of each stage."""
    hw = (frame.shape[-2], frame.shape[-1])
    marks = [time.perf_counter()]
    state.begin(1, (1, *hw))
    encoded = model._encode(frame)
    marks.append(time.perf_counter())
    tokens, matches = model._aggregate(encoded, hw, state.block_attends, state.num_frames, state.matches)
    marks.append(time.perf_counter())
    poses = model.camera_head(tokens[model.config.depth - 1], state.camera_attend)
    marks.append(time.perf_counter())
    model._dense(tokens, hw, poses)
    marks.append(time.perf_counter())
    state.commit(matches, state.tracks)
    return [after - before for before, after in itertools.pairwise(marks)]


def main() -> None:
    """Stream random frames and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--size", type=int, nargs=2, default=(168, 224), metavar=("H", "W"))
    parser.add_argument("--held", type=int, default=16, help="frames that the stream holds")
    parser.add_argument("--frames", type=int, default=60)
    args = parser.parse_args()
    model = load_model(args.model)
    state = model.new_state(AnchorWindow(1, args.held - 1))
    rows = []
    for i in range(args.frames + args.held):
        frame = torch.rand(1, 1, 3, *args.size, generator=torch.Generator().manual_seed(i))
        rows.append(frame_times(model, frame, state))
    steady = [1e3 * median(column) for column in zip(*rows[args.held :], strict=True)]
    total = 1e3 * median(sum(row) for row in rows[args.held :])
    print(
        f"`{args.model}`, {args.size[1]}x{args.size[0]}, {args.held} frames held, {torch.get_num_threads()} threads, "
        f"median of {args.frames} frames\n\n| stage | ms | share |\n|---|--:|--:|"
    )
    for name, ms in zip(STAGES, steady, strict=True):
        print(f"| {name} | {ms:.1f} | {100 * ms / sum(steady):.0f} % |")
    print(f"| a frame | {total:.1f} | {1e3 / total:.1f} frames/s |")


if __name__ == "__main__":
    main()
