"""What the page's controls and the public endpoint do, as plain functions."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .engine import Engine
from .folders import lock_folder
from .inputs import check_images, check_video
from .jobs import Runs
from .live import LiveCamera
from .reconstruction import reconstruct as work
from .results import result_path
from .run import FINISHED
from .settings import MODELS, Limits, RunSettings

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"


def open_runs(engine: Engine, limits: Limits = Limits()) -> Runs:  # noqa: B008 (frozen)
    """Make the place of all runs, in ``STREAMVGGT_RUNS`` or in ``streamvggt-runs`` among the temporary files.

    Servers that run at once each have a folder of their own in it, the first one free, so that none deletes the runs of
    another; one that is started anew finds those of before.

    Raises:
        OSError: this user cannot write there.
    """
    place = Path(os.environ.get("STREAMVGGT_RUNS") or Path(tempfile.gettempdir()) / "streamvggt-runs")
    lock = None
    try:
        for number in itertools.count(1):
            folder = place / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            if lock := lock_folder(folder):
                break
    except OSError as error:
        hint = "Set STREAMVGGT_RUNS to a folder of your own."
        raise OSError(f"Runs cannot be kept in {place}: {error}. {hint}") from error
    return Runs(folder, EXAMPLES, partial(work, engine=engine), limits, lock=lock)


def start_video(runs: Runs, path: str | None, settings: RunSettings, **visitor: str) -> str:
    """Start a run on a video and return its id; see :meth:`demo.jobs.Runs.start` for ``visitor``.

    Raises:
        InputError: the video cannot be used.
        BusyError: too many wait.
    """
    return runs.start(check_video(path, settings, runs.limits), settings, **visitor)


def start_images(runs: Runs, paths: Sequence[str] | None, settings: RunSettings, **visitor: str) -> str:
    """Start a run on several images and return its id; see :meth:`demo.jobs.Runs.start` for ``visitor``.

    Raises:
        InputError: the images cannot be used.
        BusyError: too many wait.
    """
    return runs.start(check_images(paths, settings, runs.limits), settings, **visitor)


def start_camera(runs: Runs, settings: RunSettings, **visitor: str) -> str:
    """Start a run that takes frames by ``POST /runs/{run}/frames`` and return its id.

    Raises:
        BusyError: too many wait.
    """
    return runs.start(LiveCamera(runs.limits), settings, **visitor)


async def follow(runs: Runs, run_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the manifest of a run each time it changes, until the run has ended; who follows counts as a watcher."""
    version = 0
    viewer = secrets.token_urlsafe()
    while True:
        manifest = await runs.newer_manifest(run_id, version, viewer)
        if manifest["version"] > version:
            version = manifest["version"]
            yield manifest
        if manifest["status"] in FINISHED:
            return


def results(runs: Runs, run_id: str, formats: Sequence[str]) -> list[str]:
    """Make the files of a finished run and return where they lie.

    Raises:
        NotReadyError: the run has no frame.
    """
    folder, manifest = runs.find(run_id), runs.manifest(run_id)
    return [str(result_path(folder, manifest, name)) for name in formats]


def model_note(model: str) -> str:
    """Say what the licence of a network allows, in Markdown."""
    return MODELS[model].licence
