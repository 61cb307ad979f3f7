"""``reconstruct``: a video goes in, files that other programs read come out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..batch import Job, find_videos, gather, plan_jobs, processes, run_jobs, share, summary
from ..checkpoint import load_model
from ..geometry import Similarity
from ..longstream import LongSession
from ..model import StreamVGGT
from ..reconstruct import FORMATS, CutShort, Wanted, reconstruct
from ..saving import fingerprint
from ..scene import PointFilter
from ..session import StreamSession
from ..types import Frame, FramePrediction
from ..video import describe_video, read_frames
from .arguments import DTYPES, MIB, Commands, add_memory_options, choices_of, default_device, find_device, parse_rate

CHUNK = 8  # frames taken at once: nobody waits for the newest
MASKS = ("black", "white", "sky")
# Where results lie and what computes them; every other option changes the results.
_NO_SETTINGS = frozenset(("run", "video", "output", "device"))


def add(commands: Commands) -> None:
    """Declare the verb and its options."""
    command = commands.add_parser(
        "reconstruct",
        help="turn a video into a coloured point cloud with cameras",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "video",
        metavar="VIDEO",
        nargs="+",
        type=Path,
        help="a video, an animated image, or a folder of images; several of them, folders of them, or a list (.txt)",
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="OUT",
        help="folder for the results; with several videos, one in it for each, and finished ones are skipped",
    )
    command.add_argument(
        "--model", default="small", help="small (bundled), tiny (untrained), a file, a folder or a Hub id"
    )
    command.add_argument("--fps", type=parse_rate, default=2.0, help="frames taken a second of video, or 'all'")
    command.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    command.add_argument("--size", type=int, help="width in pixels for the network; the model's own if not given")
    add_memory_options(command)
    command.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="find cameras by matched patches and not by the camera head; if not given, where the network can",
    )
    command.add_argument(
        "--long",
        action="store_true",
        help="for hundreds of frames and more: sub-maps that begin anew, are laid on one another, and close loops",
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
    """Stream videos through the network and write the formats asked for."""
    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output needs a folder, which is made if it is not there")
    point_filter = PointFilter(
        conf_percentile=options.confidence,
        max_points=options.max_points,
        **{f"mask_{name}": True for name in options.mask},
    )
    wanted = Wanted(options.format, options.geometry, point_filter)
    videos = find_videos(options.video)
    if videos == options.video and len(videos) == 1:
        return _run_one(options, wanted, videos[0])
    return _run_many(options, wanted, plan_jobs(videos, output))


def _run_one(options: argparse.Namespace, wanted: Wanted, video: Path) -> int:
    """Reconstruct one video; its results lie in the output folder itself."""
    frames = read_frames(video, fps=options.fps, max_frames=options.max_frames)
    total = _expected_frames(options, video)
    session = _session(options, _load(options))
    status = 0
    try:
        files = reconstruct(
            _with_progress(session, frames, total), options.output, wanted, lambda: _corrections(session)
        )
    except CutShort as cut:
        print(f"streamvggt: {cut}; the {cut.num_frames} frames before it are written", file=sys.stderr)
        files, status = cut.files, 130 if isinstance(cut.__cause__, KeyboardInterrupt) else 1
    for path in files:
        print(path)
    return status


def _run_many(options: argparse.Namespace, wanted: Wanted, jobs: Sequence[Job]) -> int:
    """Reconstruct this process's share of the videos, each into a folder of its own; 1 if any failed."""
    rank, num_processes = processes()
    model = _load(options)

    def work(job: Job) -> list[Path]:
        frames = read_frames(job.video, fps=options.fps, max_frames=options.max_frames)
        total = _expected_frames(options, job.video)
        try:
            session = _session(options, model)
            predictions = _with_progress(session, frames, total, job.output.name)
            return reconstruct(predictions, job.output, wanted, lambda: _corrections(session))
        except CutShort as cut:
            if isinstance(cut.__cause__, KeyboardInterrupt):
                raise cut.__cause__ from None
            raise ValueError(f"{cut}; the {cut.num_frames} frames before it are written") from cut

    settings = {name: str(value) for name, value in vars(options).items() if name not in _NO_SETTINGS}
    settings["weights"] = fingerprint(model)  # a file can be another one by now
    outcomes = run_jobs(share(jobs, rank, num_processes), settings, work, say=print)
    outcomes = gather(outcomes, num_processes)
    if rank == 0 or len(outcomes) < len(jobs):
        print(summary(outcomes))
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _load(options: argparse.Namespace) -> StreamVGGT:
    device = find_device(options.device)
    # Processes of one machine share out its devices.
    if device.type == "cuda" and ":" not in options.device and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # A network with full attention cannot stream; VGGT's weights run causally too.
    return load_model(options.model, device=device, dtype=DTYPES[options.dtype], attention="causal")


def _session(options: argparse.Namespace, model: StreamVGGT) -> StreamSession | LongSession:
    outputs = {"camera", "depth"}
    if options.geometry == "points" or "npz" in options.format:
        outputs.add("points")
    kind = LongSession if options.long else StreamSession
    refine = model.config.can_refine if options.refine is None else options.refine
    how = {"storage": options.storage, "memory": options.memory, "refine": refine}
    return kind(model, options.policy, size=options.size, outputs=outputs, **how)


def _corrections(session: StreamSession | LongSession) -> list[Similarity] | None:
    return session.corrections() if isinstance(session, LongSession) else None


def _with_progress(
    session: StreamSession | LongSession, frames: Iterator[Frame], total: int | None, name: str | None = None
) -> Iterator[FramePrediction]:
    """Run a session with a bar that shows frames a second and the size of the cache."""
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit=" frames", disable=None) as bar:
        for prediction in session.run(frames, chunk=CHUNK):
            yield prediction
            bar.set_postfix_str(f"cache {session.nbytes / MIB:.1f} MiB, {len(session.held_frames)} frames")
            bar.update()


def _expected_frames(options: argparse.Namespace, video: Path) -> int | None:
    """How many frames will come, for the progress bar; None where nobody knows."""
    if not video.is_file():
        return options.max_frames
    info = describe_video(video)
    if options.fps is None:
        count = info.num_frames
    else:
        count = None if info.duration_s is None else max(1, round(info.duration_s * options.fps))
    known = [value for value in (count, options.max_frames) if value is not None]
    return min(known) if known else None
