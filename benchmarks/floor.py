"""A frame of every policy against the floor, its matrix products, convolutions and attention calls alone.

For each policy, storage and number of held frames, in one run: a frame with the outputs asked for, the same in compiled
blocks where that is asked for and possible, and the floor (see :class:`streaming.Floor`), that of native storage for
int8 too. A token budget holds the tokens of so many frames. The held frames are random numbers: what keys and values
say does not change the time. README.md beside this file says how to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from streaming import CONFIGS, DTYPES, WARM_UP, Floor, Meter, Setup, Stream

from streamvggt import AnchorWindow, KeepAll, KeyDiversity, Keyframes, QueryImportance, TokenBudget
from streamvggt.policies import CachePolicy
from streamvggt.stores import STORAGES, Storage

# From the number of held frames, and the tokens that so many have.
POLICIES: dict[str, Callable[[int, int], CachePolicy]] = {
    "KeepAll": lambda held, tokens: KeepAll(),
    "AnchorWindow": lambda held, tokens: AnchorWindow(1, held - 1),
    "Keyframes": lambda held, tokens: Keyframes(anchors=1, bank=held - held // 3 - 1, recent=held // 3),
    "KeyDiversity": lambda held, tokens: TokenBudget(tokens, KeyDiversity(), frames=4 * held),
    "QueryImportance": lambda held, tokens: TokenBudget(tokens, QueryImportance(), frames=4 * held),
}


def hold(stream: Stream, frames: int) -> None:
    """Let a stream of whole frames that has seen one hold ``frames`` frames of random numbers."""
    slots = stream.state.slots
    [prototype] = slots.prototypes.values()
    slots.frames, slots.num_frames = list(range(frames)), frames
    noise = torch.randn(frames, *prototype.shape, generator=torch.Generator().manual_seed(0)).to(prototype)
    slots.prototypes = dict(enumerate(torch.nn.functional.normalize(noise, dim=-1)))
    for cache in stream.state._caches:
        keys, values = (cache.store.buffers[name] for name in ("keys", "values"))
        cache.store.resize(frames * cache.frame_tokens, frames, keys, values)
        for name, buffer in cache.store.buffers.items():
            if name.endswith("scales"):
                buffer.fill_(0.01)
            elif buffer.dtype == torch.int8:
                buffer.random_(-127, 128)
            else:
                buffer.normal_()


@torch.inference_mode()
def measure(
    setup: Setup,
    meter: Meter,
    policy: CachePolicy,
    held: int,
    outputs: set[str],
    repeats: int,
    *,
    storage: Storage,
    compiled: bool,
) -> list[float]:
    """Milliseconds of a frame, of its floor and, where asked for, of a compiled one; medians, taken in turn."""
    model, frames = setup.model(), setup.frames()
    first, frame = next(frames), next(frames)
    by_tokens = isinstance(policy, TokenBudget)
    start = KeepAll() if by_tokens else policy
    native = Stream(model, start, outputs)
    streams = [native if storage == "native" else Stream(model, start, outputs, storage=storage)]
    if compiled:
        streams.append(Stream(model, policy, outputs, compile=True))
    for stream in {native, *streams}:
        stream.step(first)
        hold(stream, held)
        if by_tokens:
            stream.state.set_policy(policy)
    floor = Floor()
    with native.undone(), floor:
        native.step(frame)
    calls = [(stream, partial(stream.step, frame)) for stream in streams]
    times: list[list[float]] = [[] for _ in range(len(calls) + 1)]
    for _ in range(WARM_UP + repeats):
        for (stream, call), column in zip(calls, (times[0], *times[2:]), strict=True):
            with stream.undone():
                column.append(meter.time_ms(call))
        times[1].append(meter.time_ms(floor.replay))
    return [median(column[WARM_UP:]) for column in times]


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--held", type=int, nargs="+", default=[16, 64, 200], help="numbers of held frames")
    parser.add_argument("--policies", choices=POLICIES, nargs="+", default=list(POLICIES))
    parser.add_argument("--storages", choices=STORAGES, nargs="+", default=["native"])
    parser.add_argument("--outputs", nargs="+", default=["camera", "depth"])
    parser.add_argument("--compile", action="store_true", help="compiled blocks too, where they can be")
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--size", type=int, nargs=2, default=[168, 224], metavar=("H", "W"), help="of a frame, pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of encoder and aggregator")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU time instead of the clock, for a machine that others use"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    args = parse(argv)
    setup = Setup(args.config, tuple(args.size), args.device, args.dtype)
    meter = Meter(args.device, time.process_time if args.cpu_time else time.perf_counter)
    print(
        f"    {shlex.join(['python', 'benchmarks/floor.py', *argv])}\n\n"
        f"{args.config}, {args.size[1]}x{args.size[0]} pixels, {args.dtype}; {', '.join(args.outputs)}; "
        f"{meter.name()}; torch {torch.__version__}; {datetime.date.today()}; medians of {args.repeats}.\n\n"
        "| policy | storage | held frames | ms | floor ms | ms / floor | compiled ms | compiled / floor |\n|---|---|"
        + "--:|"
        * 6
    )
    tokens = CONFIGS[args.config]().tokens_per_frame(*args.size)
    for name, storage, held in itertools.product(args.policies, args.storages, args.held):
        policy = POLICIES[name](held, held * tokens)
        fixed_size = policy.capacity is not None and not isinstance(policy, TokenBudget) and storage == "native"
        options = {"storage": storage, "compiled": args.compile and fixed_size}
        ours, floor, *rest = measure(setup, meter, policy, held, set(args.outputs), args.repeats, **options)
        fast = f"{rest[0]:.1f} | {rest[0] / floor:.2f}" if rest else "- | -"
        print(f"| {name} | {storage} | {held} | {ours:.1f} | {floor:.1f} | {ours / floor:.2f} | {fast} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
