"""What the page's controls do, as plain functions."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from streamvggt import PointFilter, Scene, StreamSession, glb_bytes, read_frames, write_atomically

from . import engine

Update = tuple[np.ndarray | None, str | None, str]


def open_folder() -> str:
    """Make the folder that holds a visitor's results."""
    return tempfile.mkdtemp(prefix="streamvggt-")


def close_folder(folder: str | None) -> None:
    """Remove a visitor's results."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def reconstruct(video: str | None, fps: float, max_frames: float, confidence: float, folder: str) -> Iterator[Update]:
    """Stream a video through the network.

    Args:
        video: path of the upload.
        fps: frames taken a second of video.
        max_frames: frames taken at most.
        confidence: percent of the least certain points to drop.
        folder: where the scene is written.

    Yields:
        The depth map of the newest frame, the path of the scene once it is complete, and a line of status.

    Raises:
        ValueError: there is no video, or it cannot be read.
    """
    if not video:
        raise ValueError("Choose a video first")
    session, scene = StreamSession(engine.model()), Scene()
    start = time.perf_counter()
    for prediction in session.run(read_frames(video, fps=fps, max_frames=int(max_frames))):
        scene.add(prediction)
        rate = scene.num_frames / (time.perf_counter() - start)
        status = f"Frame {scene.num_frames}, {rate:.1f} frames/s, cache {session.nbytes / 2**20:.1f} MiB"
        yield depth_picture(prediction.depth), None, status
    cloud = scene.point_cloud(PointFilter(conf_percentile=confidence))
    path = Path(folder) / f"scene-{time.time_ns()}.glb"
    write_atomically(path, glb_bytes(cloud, scene.cameras))
    yield depth_picture(prediction.depth), str(path), f"{scene.num_frames} frames, {len(cloud):,} points"


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """Show a depth map ``[H, W]`` as grey uint8 ``[H, W]``: near is bright, 2nd to 98th percentile."""
    inverse = np.nan_to_num(1 / depth, posinf=0, neginf=0)
    low, high = np.percentile(inverse, [2, 98])
    return (255 * ((inverse - low) / max(high - low, 1e-9)).clip(0, 1)).astype(np.uint8)
