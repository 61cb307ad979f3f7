"""Where the time of a frame goes: encoder, blocks, heads, and the camera by matches, of a network on a stream."""

from __future__ import annotations

import argparse
import itertools
import time
from statistics import median

import torch
from torch.nn.functional import interpolate

from streamvggt import AnchorWindow, StreamVGGT, decode_pose, load_model
from streamvggt.refinement import Refiner
from streamvggt.state import StreamState

STAGES = ("encoder", "blocks", "camera head", "depth and point heads", "camera by matches")
STEP = 2  # pixels that the picture moves a frame


@torch.inference_mode()
def frame_times(
    model: StreamVGGT, frame: torch.Tensor, state: StreamState, refiner: Refiner | None
) -> tuple[list[float], Refiner | None]:
    """Take one frame into the stream, by the steps of ``StreamSession``; seconds of each stage."""
    hw = (frame.shape[-2], frame.shape[-1])
    marks = [time.perf_counter()]
    state.begin(1, (1, *hw))
    encoded = model._encode(frame)
    marks.append(time.perf_counter())
    tokens, matches, described = model._aggregate(encoded, hw, state.block_attends, state.num_frames, state.matches)
    marks.append(time.perf_counter())
    poses = model.camera_head(tokens[model.config.depth - 1], state.camera_attend)
    marks.append(time.perf_counter())
    said = model._dense(tokens, hw, poses)
    marks.append(time.perf_counter())
    state.commit(matches, state.tracks)
    if refiner is not None:
        image = (frame[0, 0].permute(1, 2, 0) * 255).byte().numpy()
        patches, depth, *camera = (x[0, 0].numpy() for x in (described, said.depth, *decode_pose(poses[-1], hw)))
        refiner, *_ = refiner.step(image, patches, depth, *camera)
        marks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(marks)], refiner


def main() -> None:
    """Stream a picture that moves and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--size", type=int, nargs=2, default=(168, 224), metavar=("H", "W"))
    parser.add_argument("--held", type=int, default=16, help="frames that the stream holds")
    parser.add_argument("--frames", type=int, default=60)
    args = parser.parse_args()
    model = load_model(args.model)
    state = model.new_state(AnchorWindow(1, args.held - 1))
    refiner = Refiner(model.config.patch_size) if model.config.can_refine else None
    count, (height, width) = args.frames + args.held, args.size
    grain = torch.rand(1, 3, height // 4, (width + STEP * count) // 4, generator=torch.Generator().manual_seed(0))
    wall = interpolate(grain, (height, width + STEP * count), mode="bilinear")
    rows = []
    for i in range(count):
        times, refiner = frame_times(model, wall[None, ..., STEP * i : STEP * i + width], state, refiner)
        rows.append(times)
    steady = [1e3 * median(column) for column in zip(*rows[args.held :], strict=True)]
    total = 1e3 * median(sum(row) for row in rows[args.held :])
    print(
        f"`{args.model}`, {args.size[1]}x{args.size[0]}, {args.held} frames held, {torch.get_num_threads()} threads, "
        f"median of {args.frames} frames\n\n| stage | ms | share |\n|---|--:|--:|"
    )
    for name, ms in zip(STAGES, steady, strict=False):
        print(f"| {name} | {ms:.1f} | {100 * ms / sum(steady):.0f} % |")
    print(f"| a frame | {total:.1f} | {1e3 / total:.1f} frames/s |")


if __name__ == "__main__":
    main()
