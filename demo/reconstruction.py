"""The work of one run: frames through the network, and what each adds to the scene into the run's folder."""

from __future__ import annotations

import io
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from streamvggt import (
    Frame,
    FramePrediction,
    PointCloud,
    Scene,
    Similarity,
    frame_glb_bytes,
    move_prediction,
    write_atomically,
)

from .engine import Engine, Moved
from .run import Run, chunk_path, corrections_path, edition_folder, prediction_path
from .settings import RunSettings

PERCENTILES = range(0, 101, 5)
"""Of the confidence of the points so far, percent; the manifest lists their values."""

FIELDS = ("image", "depth", "depth_conf", "world_points", "world_points_conf", "extrinsics", "intrinsics")
"""What is kept of a prediction beside its number and time."""

_SAMPLE = 2000  # confidences kept of each frame for the percentiles


def reconstruct(run: Run, engine: Engine) -> str | None:
    """Do all of a run's work.

    Returns:
        Why it ended before its time, for the visitor; None if all frames were taken.

    Raises:
        EngineError: the network cannot go on.
        ValueError: a frame cannot be decoded or differs in shape.
        OSError: the disk is full.
    """
    chunks = _Chunks(run)
    with closing(engine.stream(_frames(run), run.settings, run.notice, live=run.source.live)) as steps:
        for step in steps:
            if isinstance(step, Moved):
                _move(run, step.corrections)
                continue
            write_atomically(prediction_path(run.folder, run.count), prediction_bytes(step.prediction))
            run.grown(cache_bytes=step.cache_bytes, **chunks.write(run.count, step.prediction))
            # A long run goes on to the corrections, which come after the last frame that it was given.
            if not run.settings.long and (ending := run.ending) is not None:
                return ending
    return run.ending


class _Chunks:
    """Writes the chunks of an edition one after the other: a place is in that of the first frame that sees it."""

    def __init__(self, run: Run, edition: int = 0) -> None:
        self._run, self._edition, self._thinning = run, edition, run.settings.thinning()
        self._sample, self._num_points = np.empty(0, np.float32), 0

    def write(self, index: int, prediction: FramePrediction) -> dict[str, Any]:
        """Write the next one and return what it changes in the statistics of the manifest."""
        cloud = self._thinning.new_points(frame_cloud(prediction, self._run.settings), prediction)
        write_atomically(chunk_path(self._run.folder, index, self._edition), frame_glb_bytes(prediction, cloud))
        self._num_points += len(cloud)
        confidence = cloud.confidence[:: len(cloud) // _SAMPLE + 1]
        self._sample = np.concatenate([self._sample, confidence])[-50 * _SAMPLE :]
        levels = np.percentile(self._sample, PERCENTILES).round(4).tolist() if len(self._sample) else []
        return {"points": self._num_points, "conf_percentiles": levels}


def _frames(run: Run) -> Iterator[Frame]:
    """Yield the frames of a run until it must end."""
    for frame in run.source.frames(run.settings, run.limits, lambda: run.ending is not None):
        if run.ending is not None:
            return
        yield frame


def _move(run: Run, corrections: Sequence[Similarity]) -> None:
    """Bring scene and files of a run to where the predictions belong by now; those on disk stay as they came.

    The former edition stays whole and is shown until this one is complete.
    """
    former, edition = run.edition, run.edition + 1
    try:
        chunks, stats = _Chunks(run, edition), {}
        for index in range(run.count):
            prediction = move_prediction(read_prediction(prediction_path(run.folder, index)), corrections[index])
            stats = chunks.write(index, prediction)
        _write_corrections(corrections_path(run.folder, edition), corrections)
    except BaseException:
        shutil.rmtree(edition_folder(run.folder, edition), ignore_errors=True)
        raise
    run.renewed(**stats)
    shutil.rmtree(edition_folder(run.folder, former), ignore_errors=True)
    run.notice("Places were seen again: scene and files follow the corrected path.")


_PARTS = ("scale", "rotation", "translation")


def _write_corrections(path: Path, corrections: Sequence[Similarity]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array([getattr(move, name) for move in corrections]) for name in _PARTS})
    write_atomically(path, buffer.getvalue())


def read_corrections(folder: Path, edition: int) -> list[Similarity] | None:
    """Read where the predictions of a run belong, None where they are there already."""
    if not edition:
        return None
    with np.load(corrections_path(folder, edition), allow_pickle=False) as archive:
        scales, rotations, translations = (archive[name] for name in _PARTS)
    return [Similarity(float(scale), *pose) for scale, *pose in zip(scales, rotations, translations, strict=True)]


def frame_cloud(prediction: FramePrediction, settings: RunSettings) -> PointCloud:
    """Return the points of one frame that the settings let through, in the first camera's frame."""
    scene = Scene(settings.geometry)
    scene.add(prediction)
    return scene.frame_points(0, settings.point_filter)


def prediction_bytes(prediction: FramePrediction) -> bytes:
    """Write one raw prediction as a NumPy archive, not compressed, for :func:`read_prediction`."""
    buffer = io.BytesIO()
    numbers = {"index": prediction.index, "time_s": prediction.time_s}
    arrays = {name: value for name in FIELDS if (value := getattr(prediction, name)) is not None}
    np.savez(buffer, **numbers, **arrays)
    return buffer.getvalue()


def read_prediction(path: Any, fields: Collection[str] = FIELDS) -> FramePrediction:
    """Read a prediction that :func:`prediction_bytes` wrote, or some fields of it; the image must be among them."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in FIELDS if name in archive and name in fields}
        return FramePrediction(index=int(archive["index"]), time_s=float(archive["time_s"]), **arrays)
