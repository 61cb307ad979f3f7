"""``reconstruct``: a video goes in, files that other programs read come out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import torch

from ..checkpoint import load_model
from ..export import colmap_files, npz_bytes, ply_bytes, tum_trajectory, write_atomically
from ..glb import glb_bytes
from ..scene import PointFilter, Scene
from ..session import StreamSession
from ..types import ByteArray, Frame, FramePrediction
from ..video import VideoError, describe_video, read_frames
from .arguments import DTYPES, MIB, Commands, choices_of, default_device, find_device, parse_policy, parse_rate

CHUNK = 8  # frames taken at once: nobody waits for the newest
FORMATS = ("glb", "ply", "colmap", "tum", "npz")
MASKS = ("black", "white", "sky")


def add(commands: Commands) -> None:
    """Declare the verb and its options."""
    command = commands.add_parser(
        "reconstruct",
        help="turn a video into a coloured point cloud with cameras",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("video", metavar="VIDEO", help="a video, an animated image, or a folder of images")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the results")
    command.add_argument(
        "--model", default="small", help="small (bundled), tiny (untrained), a file, a folder or a Hub id"
    )
    command.add_argument("--fps", type=parse_rate, default=2.0, help="frames taken a second of video, or 'all'")
    command.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    command.add_argument("--size", type=int, help="width in pixels for the network; the model's own if not given")
    command.add_argument(
        "--policy",
        type=parse_policy,
        default="all",
        help="frames kept in memory: all, window, or window:A,R for A first and R recent ones",
    )
    command.add_argument(
        "--format", type=choices_of(FORMATS, needed=True), default="glb,tum", help=f"any of {','.join(FORMATS)}"
    )
    command.add_argument(
        "--geometry", choices=("depth", "points"), default="depth", help="points from depth and camera, or point maps"
    )
    command.add_argument(
        "--confidence", type=float, default=20.0, metavar="PERCENT", help="drop this many percent least certain points"
    )
    command.add_argument("--mask", type=choices_of(MASKS), default="", help=f"background to drop: {','.join(MASKS)}")
    command.add_argument("--max-points", type=int, default=1_000_000, metavar="N", help="points in the cloud at most")
    command.add_argument("--device", default=default_device(), help="cpu, cuda or mps")
    command.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision of the weights; half of it halves their memory"
    )


def run(options: argparse.Namespace) -> int:
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
    model = load_model(
        options.model, device=find_device(options.device), dtype=DTYPES[options.dtype], attention="causal"
    )
    outputs = {"camera", "depth"}
    if options.geometry == "points" or "npz" in options.format:
        outputs.add("points")
    session = StreamSession(model, options.policy, size=options.size, outputs=outputs)
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
        for prediction in session.run(frames, chunk=CHUNK):
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
