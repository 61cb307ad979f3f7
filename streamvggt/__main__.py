"""Command line: ``python -m streamvggt`` and a verb: ``reconstruct``, ``evaluate``, ``train`` or ``info``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .cache import AnchorWindow, CachePolicy, KeepAll
from .checkpoint import CheckpointError, load_model
from .config import StreamVGGTConfig
from .data import ClipSource, SyntheticSource
from .evaluate import evaluate_clips, evaluate_sequences
from .export import colmap_files, glb_bytes, npz_bytes, ply_bytes, tum_trajectory, write_atomically
from .model import StreamVGGT
from .protocols import CLIPS, PROTOCOLS, Protocol
from .report import json_text, markdown
from .scene import PointFilter, Scene
from .sequences import find_sequences
from .session import StreamSession
from .sources import SequenceSource, load_photos
from .synthetic import SyntheticConfig, TextureBank, render_clips
from .train import RECIPES, Run, TrainConfig, TrainingError, memorise, recipe
from .types import ByteArray, Frame, FramePrediction
from .validation import Validation
from .video import VideoError, describe_video, read_frames

FORMATS = ("glb", "ply", "colmap", "tum", "npz")
MASKS = ("black", "white", "sky")
PRESETS: dict[str, Callable[[], StreamVGGTConfig]] = {
    "tiny": StreamVGGTConfig.tiny,
    "small": StreamVGGTConfig.small,
    "vggt-1b": StreamVGGTConfig.vggt_1b,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 after an error that is printed, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("streamvggt: interrupted", file=sys.stderr)
        return 130
    except (VideoError, CheckpointError, TrainingError, ValueError, OSError, ImportError) as error:
        print(f"streamvggt: {error}", file=sys.stderr)
        return 1
    except (torch.OutOfMemoryError, MemoryError) as error:
        print(
            f"streamvggt: out of memory ({(str(error).splitlines() or ['no details'])[0]}); "
            "take --policy window, a smaller --size, or --device cpu",
            file=sys.stderr,
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamvggt", description="Live 3D from video: poses, depth and points of every new frame."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "reconstruct",
        help="turn a video into a coloured point cloud with cameras",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_reconstruct)
    command.add_argument("video", metavar="VIDEO", help="a video, an animated image, or a folder of images")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the results")
    command.add_argument(
        "--model", default="small", help="small (bundled), tiny (untrained), a file, a folder or a Hub id"
    )
    command.add_argument("--fps", type=_rate, default=2.0, help="frames taken a second of video, or 'all'")
    command.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    command.add_argument("--size", type=int, help="width in pixels for the network; the model's own if not given")
    command.add_argument(
        "--policy",
        type=_policy,
        default="all",
        help="frames kept in memory: all, window, or window:A,R for A first and R recent ones",
    )
    command.add_argument(
        "--format", type=_choices(FORMATS, needed=True), default="glb,tum", help=f"any of {','.join(FORMATS)}"
    )
    command.add_argument(
        "--geometry", choices=("depth", "points"), default="depth", help="points from depth and camera, or point maps"
    )
    command.add_argument(
        "--confidence", type=float, default=20.0, metavar="PERCENT", help="drop this many percent least certain points"
    )
    command.add_argument("--mask", type=_choices(MASKS), default="", help=f"background to drop: {','.join(MASKS)}")
    command.add_argument("--max-points", type=int, default=1_000_000, metavar="N", help="points in the cloud at most")
    command.add_argument("--device", default=_default_device(), help="cpu, cuda or mps")
    command.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision of the weights; half of it halves their memory"
    )

    _add_evaluate(commands)
    _add_train(commands)
    command = commands.add_parser("info", help="print the sizes of a model and what a cached frame costs")
    command.set_defaults(run=_info)
    command.add_argument(
        "model", nargs="?", default="vggt-1b", help=f"{', '.join(PRESETS)}, a file, a folder or Hub id"
    )
    return parser


# --- reconstruct


def _reconstruct(options: argparse.Namespace) -> int:
    """Stream a video through the network and write the formats asked for."""
    point_filter = PointFilter(
        conf_percentile=options.confidence,
        max_points=options.max_points,
        **{f"mask_{name}": True for name in options.mask},
    )
    frames = read_frames(options.video, fps=options.fps, max_frames=options.max_frames)
    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output needs a folder, which is made if it is not there")
    total = _expected_frames(options)
    # A network with full attention cannot stream; VGGT's weights run causally too.
    model = load_model(options.model, device=_device(options.device), dtype=DTYPES[options.dtype], attention="causal")
    session = StreamSession(model, options.policy, size=options.size)
    for stale in output.glob("colmap/images/frame_*.png"):
        stale.unlink()
    scene, raw = Scene(options.geometry), list[FramePrediction]()
    status = 0
    try:
        for prediction in _with_progress(session, frames, total):
            scene.add(prediction)
            if "npz" in options.format:
                raw.append(prediction)
            if "colmap" in options.format:
                path = output / "colmap" / "images" / f"frame_{prediction.index:06d}.png"
                write_atomically(path, _png(prediction.image))
    except (KeyboardInterrupt, VideoError, ValueError, torch.OutOfMemoryError) as error:
        if not scene.num_frames:
            raise
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"streamvggt: {reason}; writing the {scene.num_frames} frames before it", file=sys.stderr)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    for name, data in list(_results(scene, raw, point_filter, options.format)):
        write_atomically(output / name, data)
        print(output / name)
    return status


def _with_progress(session: StreamSession, frames: Iterator[Frame], total: int | None) -> Iterator[FramePrediction]:
    """Run a session with a bar that shows frames a second and the size of the cache."""
    from tqdm import tqdm

    with tqdm(total=total, unit=" frames", disable=None) as bar:
        for prediction in session.run(frames):
            yield prediction
            bar.set_postfix_str(f"cache {session.nbytes / MIB:.1f} MiB, {len(session.held_frames)} frames")
            bar.update()


def _expected_frames(options: argparse.Namespace) -> int | None:
    """How many frames will come, for the progress bar; None where nobody knows."""
    path = Path(options.video)
    if not path.is_file():
        return options.max_frames
    info = describe_video(path)
    if options.fps is None:
        count = info.num_frames
    else:
        count = None if info.duration_s is None else max(1, round(info.duration_s * options.fps))
    known = [value for value in (count, options.max_frames) if value is not None]
    return min(known) if known else None


def _results(
    scene: Scene, raw: list[FramePrediction], point_filter: PointFilter, formats: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """Relative paths and contents of the files that were asked for."""
    cloud = scene.point_cloud(point_filter)
    if "glb" in formats:
        yield "scene.glb", glb_bytes(cloud, scene.cameras)
    if "ply" in formats:
        yield "scene.ply", ply_bytes(cloud)
    if "colmap" in formats:
        for name, data in colmap_files(cloud, scene.cameras).items():
            yield f"colmap/{name}", data
    if "tum" in formats:
        yield "trajectory.txt", tum_trajectory(scene.cameras).encode()
    if "npz" in formats:
        yield "predictions.npz", npz_bytes(raw)


def _png(image: ByteArray) -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


# --- evaluate


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a model on sequences with truth, beside the trivial answers",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("--model", default="small", help="as for reconstruct; none scores the trivial answers alone")
    command.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="FOLDER", help="sequences, or folders of them"
    )
    command.add_argument("--layout", help="layout of the folders, such as tum; found out by their files if not given")
    command.add_argument("--protocol", choices=PROTOCOLS, default="sequence", help="what is scored, on which frames")
    command.add_argument("--frames", type=_count_of, metavar="N", help="frames a sequence at most; else the protocol's")
    command.add_argument("--stride", type=_count_of, metavar="K", help="every K-th frame; else the protocol's")
    command.add_argument("--width", type=_count_of, default=224, help="of the processed frames, pixels")
    command.add_argument("--mode", choices=("stream", "batch"), help="frame by frame or all at once; stream if it can")
    command.add_argument("--policy", type=_policy, default="all", help="frames a stream keeps, as for reconstruct")
    command.add_argument(
        "--synthetic", type=_seeds, default=(), metavar="SEEDS", help="made-up scenes, such as 0-15 or 3,5,8"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="draw trajectories and depth there")
    command.add_argument("--device", default=_default_device(), help="cpu, cuda or mps")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of encoder and aggregator")


def _evaluate(options: argparse.Namespace) -> int:
    """Score a model and print the tables; 1 if a sequence could not be scored."""
    if not (options.data or options.synthetic):
        raise ValueError("nothing to score: give --data FOLDER, --synthetic SEEDS or both")
    protocol = PROTOCOLS[options.protocol]
    changes = {"num_frames": options.frames, "stride": options.stride}
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    layout = options.layout or protocol.layout
    sequences = [sequence for folder in options.data for sequence in find_sequences(folder, layout)]
    model = None
    if options.model != "none":
        model = load_model(options.model, device=_device(options.device), dtype=DTYPES[options.dtype])
        patch = model.config.patch_size
        if options.width % patch:
            nearest = max(1, round(options.width / patch)) * patch
            raise ValueError(
                f"--width must be a multiple of the patch size {patch}, got {options.width}; use {nearest}"
            )
    how = {"label": options.model, "policy": options.policy}
    report: dict[str, Any] = {"protocol": None, "sequences": [], "mean": {}, "failures": {}}
    if sequences:
        report = evaluate_sequences(
            model, sequences, protocol, width=options.width, mode=options.mode, plots=options.plots, **how
        )
    if options.synthetic:
        report["synthetic"] = _evaluate_synthetic(options, model, how)
    print(markdown(report), end="")
    if options.json:
        report = {"model": options.model, "mode": options.mode, "width": options.width} | report
        write_atomically(options.json, json_text(report).encode())
    return 1 if report["failures"] else 0


def _evaluate_synthetic(options: argparse.Namespace, model: StreamVGGT | None, how: dict[str, Any]) -> dict[str, Any]:
    """Score clips of 4:3; they are rendered on the CPU, where a seed always means the same scene."""
    patch = 14 if model is None else model.config.patch_size
    height = max(1, round(options.width * 3 / 4 / patch)) * patch
    config = SyntheticConfig(num_frames=options.frames or SyntheticConfig.num_frames, image_hw=(height, options.width))
    protocol: Protocol = replace(CLIPS, parts=("depth", "camera", "points", "tracks"))
    clips = render_clips(options.synthetic, config)
    return {"seeds": list(options.synthetic)} | evaluate_clips(model, clips, protocol, mode=options.mode, **how)


# --- train


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "train",
        help="train a teacher, or distil a causal student from one; again to go on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_train)
    command.add_argument("--config", choices=RECIPES, required=True, help="the recipe")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder of the run")
    command.add_argument("--init", metavar="W", help="weights to begin with, as for reconstruct; else the recipe's")
    command.add_argument("--encoder", metavar="FILE", help="DINOv2 ViT-S/14 for a fresh small-teacher, safetensors")
    command.add_argument("--teacher", metavar="W", help="weights to learn from, as for reconstruct; else the recipe's")
    command.add_argument(
        "--data",
        nargs="+",
        action="extend",
        type=_weighed,
        default=[],
        metavar="FOLDER[:WEIGHT]",
        help="posed sequences with depth",
    )
    command.add_argument("--synthetic-weight", type=_weight, default=1.0, metavar="W", help="of made-up scenes")
    command.add_argument("--textures", type=Path, metavar="FOLDER", help="photographs for made-up scenes to wear")
    command.add_argument(
        "--validate",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="real sequences, beside made-up scenes",
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=_setting,
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: num_steps=500",
    )
    command.add_argument("--device", default=_default_device(), help="cpu, cuda or mps")
    command.add_argument("--skip-check", action="store_true", help="do not learn one batch by heart first")


def _train(options: argparse.Namespace) -> int:
    """Train, or go on where the folder's checkpoint is."""
    rank, num_processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    with _talking(rank == 0):
        return _train_as(rank, num_processes, options)


def _train_as(rank: int, num_processes: int, options: argparse.Namespace) -> int:
    """Train as one of so many processes."""
    device = _device(options.device).type
    config = recipe(
        options.config,
        init=options.init,
        encoder=options.encoder,
        teacher=options.teacher,
        num_processes=num_processes,
    ).with_settings(dict(options.set))
    sources = _sources(options, config, device)
    data = {
        "data": [[str(folder), weight] for folder, weight in options.data],
        "synthetic_weight": options.synthetic_weight,
        "textures": None if options.textures is None else str(options.textures),
        "validate": [str(folder) for folder in options.validate],
    }
    if not (options.skip_check or (options.output / "checkpoint.pt").exists()):
        memorise(config, sources=sources, device=device)
    validate = None
    if rank == 0:
        side, patch = config.network.image_size, 14
        validate = Validation.of_folders(round(side * 3 / 4 / patch) * patch, options.validate)
    run = Run(config, options.output, sources=sources, validate=validate, data=data, device=device)
    run.train()
    if rank == 0:
        print(options.output / "model.safetensors")
    return 0


def _sources(options: argparse.Namespace, config: TrainConfig, device: str) -> list[tuple[ClipSource, float]]:
    """Open what clips are cut out of. Scenes are rendered where the workers are: without any, on the device."""
    sources: list[tuple[ClipSource, float]] = [
        (SequenceSource(find_sequences(folder)), weight) for folder, weight in options.data
    ]
    if options.textures is not None and not options.synthetic_weight:
        raise ValueError("--textures are for made-up scenes, which --synthetic-weight 0 leaves out")
    if options.synthetic_weight:
        where = "cpu" if config.workers else device
        bank = None if options.textures is None else TextureBank(load_photos(options.textures), where)
        scenes = SyntheticSource(config.scene_frames, textures=bank, device=where)
        sources.append((scenes, options.synthetic_weight))
    if not sources:
        raise ValueError("nothing to learn from: give --data FOLDER, or a --synthetic-weight above 0")
    return sources


@contextmanager
def _talking(aloud: bool) -> Iterator[None]:
    """Let progress through, and licences once, though weights are loaded several times; or nothing but errors."""
    package, loading, told = logging.getLogger("streamvggt"), logging.getLogger("streamvggt.checkpoint"), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in told
        told.add(record.getMessage())
        return not known

    level = package.level
    package.setLevel(logging.INFO if aloud else logging.ERROR)
    loading.addFilter(is_new)
    try:
        yield
    finally:
        package.setLevel(level)
        loading.removeFilter(is_new)


# --- info


def _info(options: argparse.Namespace) -> int:
    """Print configuration, parameters and bytes of a cached frame; presets are built without weights."""
    preset = PRESETS.get(options.model)
    config = preset() if preset else load_model(options.model).config
    with torch.device("meta"):
        model = StreamVGGT(config)
    print(f"{options.model}: attention {config.attention}, encoder {config.encoder}, {config.depth} pairs of blocks,")
    print(f"  {config.embed_dim} wide, {config.num_heads} heads, patches of {config.patch_size} pixels")
    print(f"parameters {_count(model):>38,}")
    for name, part in model.named_children():
        print(f"  {name:<20} {_count(part):>26,}")
    print("memory of one cached frame            float32      bfloat16")
    side, patch = config.image_size, config.patch_size
    sizes = {(round(side * ratio / patch) * patch, side) for ratio in (1, 3 / 4, 9 / 16)}
    for height, width in sorted(sizes, reverse=True):
        cells = [f"{config.cached_frame_bytes(height, width, size) / MIB:10.2f} MiB" for size in (4, 2)]
        print(f"  {width}x{height} ({config.tokens_per_frame(height, width)} tokens)".ljust(31) + "".join(cells))
    return 0


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- arguments


def _rate(text: str) -> float | None:
    if text == "all":
        return None
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a rate above 0 or 'all', got {text}")
    return value


def _count_of(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"needs a number of at least 1, got {text}")
    return value


def _weight(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a weight of at least 0, got {text}")
    return value


def _weighed(text: str) -> tuple[Path, float]:
    folder, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not (folder and 0 < value < float("inf")):
        raise argparse.ArgumentTypeError(f"needs a folder, or FOLDER:WEIGHT with a weight above 0, got {text!r}")
    return Path(folder), value


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise argparse.ArgumentTypeError(f"needs NAME=VALUE, such as num_steps=500, got {text!r}")
    return name.strip(), value.strip()


def _seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            seeds += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs seeds such as 0-15 or 3,5,8, got {text!r}") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"needs at least one seed, got {text!r}; ranges go upwards")
    return tuple(seeds)


def _policy(text: str) -> CachePolicy:
    name, _, counts = text.partition(":")
    try:
        if name == "all" and not counts:
            return KeepAll()
        if name == "window":
            return AnchorWindow(*(int(count) for count in counts.split(","))) if counts else AnchorWindow()
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    raise argparse.ArgumentTypeError(f"needs all, window or window:A,R, got {text!r}")


def _choices(allowed: Sequence[str], *, needed: bool = False) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        unknown = [name for name in names if name not in allowed]
        if unknown or (needed and not names):
            raise argparse.ArgumentTypeError(f"needs any of {','.join(allowed)}, joined by commas, got {text!r}")
        return names

    return parse


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not to be had here ({str(error).splitlines()[0]}); take cpu") from None


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
