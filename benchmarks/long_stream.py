"""A stream without an end: time of a frame and resident memory, long after the memory is full.

Frames are random pictures, outputs are dropped. The slope of resident memory is fitted over what comes after the first
tenth. At the end a younger stream is brought to the frames after its memory was filled, and from there both take frames
in turn, so that what else the machine does hits both: the ratio of their medians says whether age costs time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from streamvggt.checkpoint import load_model
from streamvggt.export import write_atomically
from streamvggt.policies import Keyframes
from streamvggt.session import StreamSession


def resident_bytes() -> int:
    """Memory of this process that is in use (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stream(session: StreamSession, images: Iterator[np.ndarray], num_frames: int) -> np.ndarray:
    """Take so many frames; resident bytes after each."""
    resident = np.empty(num_frames)
    for i in range(num_frames):
        session.step(next(images))
        resident[i] = resident_bytes()
    return resident


def in_turn(sessions: Sequence[StreamSession], images: Iterator[np.ndarray], num_frames: int) -> list[float]:
    """Take so many frames with each, one here, one there; the median milliseconds of a frame of each."""
    seconds = np.empty((num_frames, len(sessions)))
    for i in range(num_frames):
        image = next(images)
        for k, session in enumerate(sessions):
            start = time.perf_counter()
            session.step(image)
            seconds[i, k] = time.perf_counter() - start
    return [1e3 * float(ms) for ms in np.median(seconds, axis=0)]


def noise(image_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """Pictures without end, RGB uint8 ``[h, w, 3]``."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)


def slope(resident: np.ndarray) -> float:
    """Bytes a frame by which resident memory grows after the first tenth."""
    after = len(resident) // 10
    return float(np.polyfit(np.arange(after, len(resident)), resident[after:], 1)[0])


def main() -> None:
    """Stream, and write what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="small", help="as load_model takes it")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=(84, 112), metavar=("H", "W"))
    parser.add_argument("--storage", choices=("native", "int8"), default="native")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/long_stream.md"))
    args = parser.parse_args()
    model, images = load_model(args.model), noise(tuple(args.size))

    def begin() -> StreamSession:
        return StreamSession(
            model, Keyframes(1, 7, 8), storage=args.storage, size=args.size[1], outputs={"camera", "depth"}
        )

    block = args.frames // 20
    old = begin()
    resident = stream(old, images, args.frames - block)
    young = begin()
    stream(young, images, block)
    late, early = in_turn([old, young], images, block)
    text = (
        f"    {shlex.join(['python', 'benchmarks/long_stream.py', *sys.argv[1:]])}\n\n"
        f"`{args.model}`, {args.size[1]}x{args.size[0]} pixels, {old.policy}, {args.storage}, camera and depth, CPU, "
        f"float32, {torch.get_num_threads()} threads.\n\n"
        "| frames, two streams in turn | ms, median |\n|---|--:|\n"
        f"| {block} to {2 * block} | {early:.1f} |\n| {args.frames - block} to {args.frames} | {late:.1f} |\n"
        f"| ratio | {late / early:.3f} |\n\n"
        f"Resident memory: {resident[-1] / 2**20:.0f} MiB at frame {len(resident)}, {slope(resident) / 1024:+.3f} KiB "
        f"a frame after the first {len(resident) // 10}; held {old.nbytes / 2**20:.2f} MiB.\n"
    )
    print(text, end="")
    write_atomically(args.out, text.encode())


if __name__ == "__main__":
    main()
