"""Time and memory of one more frame, against the number of frames already cached.

Four things are measured in one run on the same random weights and frames: the package's stream that keeps all frames,
its stream with a window, the scheme of the released code (:mod:`released_scheme`), and the floor: the matrix products,
convolutions and attention calls of our frame alone, recorded from a real one and called again with the same tensors.
README.md beside this file says how to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from released_scheme import ReleasedStream
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamvggt.config import StreamVGGTConfig
from streamvggt.model import StreamVGGT
from streamvggt.policies import AnchorWindow, CachePolicy, KeepAll
from streamvggt.state import StreamState
from streamvggt.stores import Storage
from streamvggt.types import Predictions

CONFIGS = {"tiny": StreamVGGTConfig.tiny, "small": StreamVGGTConfig.small, "vggt-1b": StreamVGGTConfig.vggt_1b}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference of depths between the schemes, in standard deviations of the depth. Over the largest depth it would
# say little: that of random weights hardly varies.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
WINDOW = AnchorWindow(1, 15)
WARM_UP = 3
FLOOR = {F.linear, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention}


@dataclass(frozen=True)
class Setup:
    """What is run; small enough to be sent to another process."""

    config: str
    image_hw: tuple[int, int]
    device: str
    dtype: str

    def model(self) -> StreamVGGT:
        """Build the network with random weights: encoder and aggregator in ``dtype``, heads in float32."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = StreamVGGT(replace(CONFIGS[self.config](), track=None)).eval()
        model.encoder.to(DTYPES[self.dtype])
        model.aggregator.to(DTYPES[self.dtype])
        return model

    def frames(self) -> Iterator[Tensor]:
        """Noise, ``[1, 1, 3, H, W]`` a frame, the same for everyone who asks."""
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.rand(1, 1, 3, *self.image_hw, generator=generator).to(self.device)


class Stream:
    """The package's stream, with a way to take frames back."""

    def __init__(
        self,
        model: StreamVGGT,
        policy: CachePolicy,
        outputs: Collection[str] | None = None,
        *,
        storage: Storage = "native",
        compile: bool = False,
    ) -> None:
        self.model = model
        self.outputs = outputs
        self.state: StreamState = model.new_state(policy, storage=storage, compile=compile)

    def step(self, images: Tensor) -> Predictions:
        """Take the next frame."""
        return self.model(images, state=self.state, outputs=self.outputs)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Forget the frames that are taken inside; slots that they filled are free again."""
        slots = self.state.slots
        before, matches = (slots.frames, slots.prototypes, slots.num_frames), self.state.matches
        yield
        slots.frames, slots.prototypes, slots.num_frames = before
        self.state.matches = matches

    def double(self) -> list[Tensor]:
        """Do what the caches do when they are full: copy all they hold to buffers of twice the size."""
        doubled = []
        for cache in (*self.state._blocks, *(cache for row in self.state._camera for cache in row)):
            for old in cache.store.buffers.values():
                new = old.new_empty(*old.shape[:2], 2 * old.shape[2], *old.shape[3:])
                new[:, :, : old.shape[2]] = old
                doubled.append(new)
        return doubled


SCHEMES: dict[str, Callable[[StreamVGGT], Any]] = {
    "ours": partial(Stream, policy=KeepAll()),
    "released": ReleasedStream,
    "window": partial(Stream, policy=WINDOW),
}


class Floor(TorchFunctionMode):
    """Records the calls that no implementation of this network can do without, to make them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the call, and keep it if it counts."""
        kwargs = kwargs or {}
        if func in FLOOR:
            self.calls.append(partial(func, *args, **kwargs))
        return func(*args, **kwargs)

    def replay(self) -> None:
        """Make all recorded calls again."""
        for call in self.calls:
            call()


class Meter:
    """Clock and memory gauge of a device; the one place that knows how devices differ."""

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._clock = clock  # of work on a CPU, seconds

    def time_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds that ``call`` takes, until the device is done."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end)
        start_s = self._clock()
        call()
        return 1e3 * (self._clock() - start_s)

    def peak_mib(self) -> float:
        """The most memory that this process has held so far."""
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        # Not getrusage: its ru_maxrss also counts what the parent held when it started this process.
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 2**10

    def name(self) -> str:
        """The machine, in words."""
        if self._cuda:
            return torch.cuda.get_device_name()
        cpu = Path("/proc/cpuinfo")
        models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
        load = f"load {os.getloadavg()[0]:.1f} before the run"
        return f"{(models or [platform.processor()])[0]}, {torch.get_num_threads()} threads, {load}"


@dataclass
class Row:
    """What was measured at one length: medians in milliseconds by scheme, and peaks in MiB by scheme."""

    cached: int
    time_ms: dict[str, float]
    doubling_ms: float | None
    difference: float
    peak_mib: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def measure_times(setup: Setup, lengths: list[int], repeats: int) -> list[Row]:
    """Stream until each length and time the next frame there, taking it back each time.

    Raises:
        SystemExit: the schemes do not give the same depth, so that comparing them says nothing.
    """
    meter, model, frames = Meter(setup.device), setup.model(), setup.frames()
    streams = {name: scheme(model) for name, scheme in SCHEMES.items()}
    rows = []
    for cached in lengths:
        while streams["ours"].state.num_frames < cached:
            frame = next(frames)
            for stream in streams.values():
                stream.step(frame)
        doubling_ms = None
        if cached & (cached - 1) == 0:  # the buffers are full
            doubling_ms = median(meter.time_ms(streams["ours"].double) for _ in range(repeats))
        frame, tolerance = next(frames), TOLERANCE[setup.dtype]
        difference = depth_difference(streams, frame)
        if not difference <= tolerance:
            sys.exit(f"the schemes' depths differ by {difference:.1e} deviations, more than {tolerance}: one is wrong")
        rows.append(Row(cached, time_at(meter, streams, frame, repeats), doubling_ms, difference))
    return rows


def depth_difference(streams: dict[str, Any], frame: Tensor) -> float:
    """Largest difference of what ours and the released scheme say about the next frame, in standard deviations."""
    with streams["ours"].undone(), streams["released"].undone():
        ours, released = streams["ours"].step(frame).depth, streams["released"].step(frame).depth
    return ((ours - released).abs().max() / released.std()).item()


def time_at(meter: Meter, streams: dict[str, Any], frame: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of every scheme, and of the floor, for the next frame; the schemes take turns."""
    floor = Floor()
    with streams["ours"].undone(), floor:
        streams["ours"].step(frame)
    times: dict[str, list[float]] = {name: [] for name in (*streams, "floor")}
    for _ in range(WARM_UP + repeats):
        for name, stream in streams.items():
            with stream.undone():
                times[name].append(meter.time_ms(partial(stream.step, frame)))
        times["floor"].append(meter.time_ms(floor.replay))
    return {name: median(values[WARM_UP:]) for name, values in times.items()}


@torch.inference_mode()
def measure_peaks(setup: Setup, scheme: str, lengths: list[int]) -> list[float]:
    """By how many MiB the peak of memory has grown since the first frame, once a frame is added to each length.

    To be called in a process of its own.
    """
    meter, frames = Meter(setup.device), setup.frames()
    stream = SCHEMES[scheme](setup.model())
    stream.step(next(frames))
    first, peaks = meter.peak_mib(), []
    for cached in range(1, max(lengths) + 1):
        stream.step(next(frames))
        if cached in lengths:
            peaks.append(meter.peak_mib() - first)
    return peaks


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| cached frames | ours ms | released ms | floor ms | ours / floor | released / ours | window ms | doubling ms "
        "| ours MiB | released MiB | window MiB |",
        "|" + "--:|" * 11,
    ]
    for row in rows:
        t, peak = row.time_ms, row.peak_mib
        doubling = "-" if row.doubling_ms is None else f"{row.doubling_ms:.1f}"
        lines.append(
            f"| {row.cached} | {t['ours']:.1f} | {t['released']:.1f} | {t['floor']:.1f} | {t['ours'] / t['floor']:.2f} "
            f"| {t['released'] / t['ours']:.2f} | {t['window']:.1f} | {doubling} "
            f"| {peak['ours']:.0f} | {peak['released']:.0f} | {peak['window']:.0f} |"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 8, 16, 32, 64], help="numbers of cached frames")
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--size", type=int, nargs=2, default=[168, 224], metavar=("H", "W"), help="of a frame, pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of encoder and aggregator")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="Markdown file to write; without it the result is printed")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure and write the table."""
    args = parse(argv)
    lengths = sorted(set(args.lengths))
    setup = Setup(args.config, tuple(args.size), args.device, args.dtype)
    machine = Meter(args.device).name()
    peaks = {}
    for name in SCHEMES:
        with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as fresh:
            peaks[name] = fresh.submit(measure_peaks, setup, name, lengths).result()
    rows = measure_times(setup, lengths, args.repeats)
    for i, row in enumerate(rows):
        row.peak_mib = {name: values[i] for name, values in peaks.items()}
    height, width = args.size
    text = (
        f"# One more frame against the frames already cached\n\n"
        f"    {shlex.join(['python', 'benchmarks/streaming.py', *argv])}\n\n"
        f"{args.config}, {width}x{height} pixels, {args.dtype}; {machine}; torch {torch.__version__}; "
        f"{datetime.date.today()}; medians of {args.repeats}. Depths of the two schemes differ by "
        f"{max(row.difference for row in rows):.0e} standard deviations at most. "
        f"[README.md](README.md) says what the columns are.\n\n"
        f"{table(rows)}\n"
    )
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
