"""A stream without an end: time of a frame and resident memory, long after the memory is full.

Frames are random pictures, outputs are dropped. The slope of resident memory is fitted over what comes after the first
tenth. Blocks of frames are compared by their medians, so that the load of a shared machine counts for less.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from streamvggt.checkpoint import load_model
from streamvggt.export import write_atomically
from streamvggt.policies import Keyframes
from streamvggt.session import StreamSession


def resident_bytes() -> int:
    """Memory of this process that is in use (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(session: StreamSession, num_frames: int, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every frame, and resident bytes after it."""
    rng = np.random.default_rng(0)
    seconds, resident = np.empty(num_frames), np.empty(num_frames)
    for i in range(num_frames):
        image = rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)
        start = time.perf_counter()
        session.step(image)
        seconds[i], resident[i] = time.perf_counter() - start, resident_bytes()
    return seconds, resident


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
    session = StreamSession(
        load_model(args.model), Keyframes(1, 7, 8), storage=args.storage, size=args.size[1], outputs={"camera", "depth"}
    )
    seconds, resident = measure(session, args.frames, tuple(args.size))
    width = max(1, args.frames // 20)
    early, late = (1e3 * float(np.median(part)) for part in (seconds[width : 2 * width], seconds[-width:]))
    text = (
        f"`python benchmarks/long_stream.py`: `{args.model}`, {args.frames} frames of {args.size[1]}x{args.size[0]}, "
        f"{session.policy}, {args.storage}, camera and depth, CPU, float32.\n\n"
        "| median of frames | ms |\n|---|--:|\n"
        f"| {width} to {2 * width} | {early:.1f} |\n| the last {width} | {late:.1f} |\n"
        f"| last / first | {late / early:.3f} |\n\n"
        f"Resident memory: {resident[-1] / 2**20:.0f} MiB at the end, {slope(resident) / 1024:+.3f} KiB a frame after "
        f"the first {args.frames // 10}; held {session.nbytes / 2**20:.2f} MiB.\n"
    )
    print(text, end="")
    write_atomically(args.out, text.encode())


if __name__ == "__main__":
    main()
