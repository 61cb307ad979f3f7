"""The work of one run: frames through the network, and what each adds to the scene into the run's folder."""

from __future__ import annotations

import io
from contextlib import closing
from typing import Any

import numpy as np

from streamvggt import FramePrediction, PointCloud, Scene, frame_glb_bytes, write_atomically

from .engine import Engine
from .run import Run, chunk_path, prediction_path
from .settings import RunSettings

PERCENTILES = range(0, 101, 5)
"""Of the confidence of the points so far, percent; the manifest lists their values."""

_SAMPLE = 2000  # confidences kept of each frame for the percentiles
_FIELDS = ("image", "depth", "depth_conf", "world_points", "world_points_conf", "extrinsics", "intrinsics")


def reconstruct(run: Run, engine: Engine) -> str | None:
    """Do all of a run's work.

    Returns:
        Why it ended before its time, for the visitor; None if all frames were taken.

    Raises:
        EngineError: the network cannot go on.
        ValueError: a frame cannot be decoded or differs in shape.
        OSError: the disk is full.
    """
    sample = np.empty(0, np.float32)
    num_points = 0
    thinning = run.settings.thinning()
    frames = run.source.frames(run.settings, run.limits, lambda: run.ending is not None)
    with closing(engine.stream(frames, run.settings, run.notice)) as steps:
        for step in steps:
            cloud = thinning.new_points(frame_cloud(step.prediction, run.settings), step.prediction)
            write_atomically(prediction_path(run.folder, run.count), prediction_bytes(step.prediction))
            write_atomically(chunk_path(run.folder, run.count), frame_glb_bytes(step.prediction, cloud))
            num_points += len(cloud)
            sample = np.concatenate([sample, cloud.confidence[:: len(cloud) // _SAMPLE + 1]])[-50 * _SAMPLE :]
            levels = np.percentile(sample, PERCENTILES).round(4).tolist() if len(sample) else []
            run.grown(cache_bytes=step.cache_bytes, points=num_points, conf_percentiles=levels)
            if (ending := run.ending) is not None:
                return ending
    return run.ending


def frame_cloud(prediction: FramePrediction, settings: RunSettings) -> PointCloud:
    """Return the points of one frame that the settings let through, in the first camera's frame."""
    scene = Scene(settings.geometry)
    scene.add(prediction)
    return scene.frame_points(0, settings.point_filter)


def prediction_bytes(prediction: FramePrediction) -> bytes:
    """Write one raw prediction as a NumPy archive, not compressed, for :func:`read_prediction`."""
    buffer = io.BytesIO()
    numbers = {"index": prediction.index, "time_s": prediction.time_s}
    arrays = {name: value for name in _FIELDS if (value := getattr(prediction, name)) is not None}
    np.savez(buffer, **numbers, **arrays)
    return buffer.getvalue()


def read_prediction(path: Any) -> FramePrediction:
    """Read a prediction that :func:`prediction_bytes` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in _FIELDS if name in archive}
        return FramePrediction(index=int(archive["index"]), time_s=float(archive["time_s"]), **arrays)
