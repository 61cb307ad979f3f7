"""Frames of a finished video taken in chunks: time of a frame against the number of frames a call."""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from streamvggt import AnchorWindow, LongSession, StreamVGGT, load_model


@torch.inference_mode()
def frame_ms(model: StreamVGGT, video: torch.Tensor, chunk: int, outputs: list[str]) -> float:
    """Stream a video ``[1, S, 3, H, W]`` and return milliseconds a frame."""
    state = model.new_state(AnchorWindow(1, 15))
    start_s = time.perf_counter()
    for frames in video.split(chunk, dim=1):
        model(frames, state=state, outputs=outputs)
    if video.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start_s) / video.shape[1]


def long_frame_ms(model: StreamVGGT, video: torch.Tensor, chunk: int, outputs: list[str]) -> float:
    """The same in a long session, which reads images and gives out arrays."""
    images = list((video[0].permute(0, 2, 3, 1) * 255).byte().cpu().numpy())
    session = LongSession(model, AnchorWindow(1, 15), size=video.shape[-1], outputs=outputs)
    start_s = time.perf_counter()
    for _ in session.run(images, chunk=chunk):
        pass
    return 1e3 * (time.perf_counter() - start_s) / len(images)


def main() -> None:
    """Stream random frames, the sizes of chunks in turn, and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--size", type=int, nargs=2, default=(168, 224), metavar=("H", "W"))
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--outputs", nargs="+", default=["camera", "depth"])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--long", action="store_true", help="a long session; sub-maps are of 32 frames")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = load_model(args.model, device=args.device)
    video = torch.rand(1, args.frames, 3, *args.size).to(args.device)
    times: dict[int, list[float]] = {chunk: [] for chunk in args.chunks}
    for _ in range(args.repeats):
        for chunk, column in times.items():
            column.append((long_frame_ms if args.long else frame_ms)(model, video, chunk, args.outputs))
    first = median(times[args.chunks[0]])
    print("| frames a call | ms a frame | gain |\n|--:|--:|--:|")
    for chunk, column in times.items():
        print(f"| {chunk} | {median(column):.1f} | {first / median(column):.2f} |")


if __name__ == "__main__":
    main()
