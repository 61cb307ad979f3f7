"""Many videos: find them, share them out over processes, leave out what is finished, go on after a bad one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from .export import write_atomically
from .memory import is_out_of_memory
from .reconstruct import out_of_memory, remove_results, result_files
from .video import image_files

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv .y4m".split()  # noqa: SIM905
)
LIST_SUFFIX = ".txt"
MARKER = "finished.json"
_PATIENCE = timedelta(days=7)  # how long a process that is done waits for the others


@dataclass(frozen=True)
class Job:
    """One video and the folder of its results."""

    video: Path
    output: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: of the folder of its results.
        status: "finished" now, "skipped" because it was finished before, or "failed".
        message: why it failed.
    """

    name: str
    status: Literal["finished", "skipped", "failed"]
    message: str = ""


def find_videos(named: Sequence[Path]) -> list[Path]:
    """Replace folders of videos and list files by the videos that they name; each video comes once.

    A folder with images is one video, as for :func:`streamvggt.read_frames`. Any other folder stands for the video
    files and folders of images in it, by name. A list file (``.txt``) has one path a line, relative to itself; empty
    lines and lines that begin with ``#`` do not count.

    Raises:
        ValueError: a folder holds videos and images, or nothing of both; a list names nothing or cannot be read.
    """
    found = [video for path in named for video in _expanded(path)]
    return list({video.resolve(): video for video in found}.values())


def _expanded(path: Path) -> Iterator[Path]:
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        yield from _listed(path)
        return
    if not path.is_dir():
        yield path
        return
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    videos = [child for child in inside if child.suffix.lower() in VIDEO_SUFFIXES and child.is_file()]
    if image_files(path):
        if videos:
            raise ValueError(
                f"{path} holds images and {len(videos)} videos ({videos[0].name} ...): it is not clear what is meant; "
                "name the videos themselves, or move the images"
            )
        yield path
        return
    folders = [child for child in inside if child.is_dir() and image_files(child)]
    if not videos + folders:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"folder {path} holds no images, no folders of images and no videos ({suffixes})")
    yield from sorted(videos + folders)


def _listed(path: Path) -> Iterator[Path]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; a list has the path of one video a line") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"the list {path} names no video; write one path a line")
    for name in names:
        yield from _expanded(path.parent / name)


def plan_jobs(videos: Sequence[Path], output: Path) -> list[Job]:
    """Give each video a folder below ``output``, called by its name without suffix.

    Names that more than one video would have get the suffix back, and as many of the folders above in front
    (``kitchen-clip.mp4``) as it takes to tell them apart.

    Raises:
        ValueError: nothing tells them apart.
    """
    parts = {video: video.resolve().parts[1:] for video in videos}
    names = {video: video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name for video in videos}
    for depth in range(1, 2 + max(map(len, parts.values()), default=0)):
        count = Counter(names.values())
        clashing = [video for video, name in names.items() if count[name] > 1]
        names |= {video: "-".join(parts[video][-depth:]) for video in clashing}
    if clashing:
        raise ValueError(f"the results of {clashing[0]} and another video would have one name; run them apart")
    return [Job(video, output / names[video]) for video in videos]


def share(jobs: Sequence[Job], rank: int, num_processes: int) -> list[Job]:
    """Choose the jobs of one process, the same for everyone: the largest next to whoever has the least so far."""
    sizes = {job: sum(_size_and_time(job.video)[:1]) for job in jobs}
    loads, shares = [0] * num_processes, [list[Job]() for _ in range(num_processes)]
    for job in sorted(jobs, key=lambda job: (-sizes[job], str(job.output))):
        least = loads.index(min(loads))
        loads[least] += sizes[job] + 1
        shares[least].append(job)
    mine = set(shares[rank])
    return [job for job in jobs if job in mine]


def is_finished(job: Job, settings: Mapping[str, Any]) -> bool:
    """Tell whether the results of this very video with these settings are there, whole."""
    try:
        marker = json.loads((job.output / MARKER).read_bytes())
        files = [job.output / name for name in marker.pop("files")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return marker == _identity(job, settings) and all(file.is_file() for file in files)


def mark_finished(job: Job, settings: Mapping[str, Any]) -> None:
    """Write down, when all else is written, which video with which settings the results are of, and their files."""
    names = [file.relative_to(job.output).as_posix() for file in result_files(job.output)]
    marker = _identity(job, settings) | {"files": names}
    write_atomically(job.output / MARKER, (json.dumps(marker, indent=1) + "\n").encode())


def run_jobs(
    jobs: Sequence[Job],
    settings: Mapping[str, Any],
    work: Callable[[Job], object],
    *,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Outcome]:
    """Do the jobs that are not finished, one after the other; a job that fails is noted and left behind.

    Args:
        jobs: of this process.
        settings: whatever changes the results, as JSON holds it.
        work: writes the results of a job.
        say: takes a line about each job.
    """
    outcomes = []
    for job in jobs:
        finished = is_finished(job, settings)
        outcome = Outcome(job.output.name, "skipped") if finished else _attempt(job, settings, work)
        say(f"{outcome.name}: {outcome.status}" + (f": {outcome.message}" if outcome.message else ""))
        outcomes.append(outcome)
    return outcomes


def _attempt(job: Job, settings: Mapping[str, Any], work: Callable[[Job], object]) -> Outcome:
    try:
        # First of all the marker: what is written from here on is not what it says.
        (job.output / MARKER).unlink(missing_ok=True)
        remove_results(job.output)
        work(job)
        mark_finished(job, settings)
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome(job.output.name, "failed", out_of_memory(error))
        if not isinstance(error, (ValueError, OSError)):
            raise
        return Outcome(job.output.name, "failed", (str(error).splitlines() or [type(error).__name__])[0])
    return Outcome(job.output.name, "finished")


def summary(outcomes: Sequence[Outcome]) -> str:
    """Say how many videos are finished, were so before, and failed; and which, and why."""
    count = {status: sum(o.status == status for o in outcomes) for status in ("finished", "skipped", "failed")}
    lines = [f"{len(outcomes)} videos: " + ", ".join(f"{number} {status}" for status, number in count.items())]
    lines += [f"  {outcome.name}: {outcome.message}" for outcome in outcomes if outcome.status == "failed"]
    return "\n".join(lines)


def processes() -> tuple[int, int]:
    """Number of this process and how many there are, from ``RANK`` and ``WORLD_SIZE`` (0 and 1 if not set).

    Raises:
        ValueError: they are no numbers, or the rank is not below the number of processes.
    """
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (all(text.isdecimal() for text in texts) and int(texts[0]) < int(texts[1])):
        raise ValueError("RANK must be from 0 to WORLD_SIZE - 1, got RANK={} and WORLD_SIZE={}".format(*texts))
    return int(texts[0]), int(texts[1])


def gather(outcomes: list[Outcome], num_processes: int) -> list[Outcome]:
    """Collect the outcomes of all processes of a launcher, and wait for them.

    A launcher (one that sets ``MASTER_ADDR``: accelerate, torchrun) ends all processes when one ends with an error, so
    they end together. Processes that were started by hand know nothing of one another and get their own back.
    """
    if num_processes == 1 or "MASTER_ADDR" not in os.environ:
        return outcomes
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)
    parts: list[Any] = [None] * num_processes
    dist.all_gather_object(parts, outcomes)
    dist.destroy_process_group()
    return [outcome for part in parts for outcome in part]


def _identity(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    size, modified = _size_and_time(job.video)
    video = {"name": job.video.name, "bytes": size, "modified_ns": modified}
    # Through JSON, as the marker went: tuples are lists there.
    return json.loads(json.dumps({"video": video, "settings": dict(settings)}))


def _size_and_time(video: Path) -> tuple[int, int]:
    """Bytes and the newest time of change, nanoseconds; zeros where nothing is there."""
    try:
        found = [file.stat() for file in (image_files(video) if video.is_dir() else [video])]
    except OSError:
        return 0, 0
    return sum(entry.st_size for entry in found), max((entry.st_mtime_ns for entry in found), default=0)
