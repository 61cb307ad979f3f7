"""Files to take home, made from a finished run's predictions when they are first asked for.

Predictions are read one at a time, so memory does not grow with the run but up to the limit of points.
"""

from __future__ import annotations

import io
import secrets
import threading
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streamvggt import (
    Camera,
    FramePrediction,
    PointCloud,
    colmap_files,
    glb_bytes,
    move_prediction,
    npz_bytes,
    ply_bytes,
    tum_trajectory,
    turntable_mp4,
)

from .reconstruction import FIELDS, frame_cloud, read_corrections, read_prediction
from .run import DOWNLOADS, FINISHED, RESULTS, prediction_path
from .settings import RunSettings

MEDIA_TYPES = {
    "glb": "model/gltf-binary",
    "ply": "application/octet-stream",
    "colmap": "application/zip",
    "tum": "text/plain; charset=utf-8",
    "npz": "application/octet-stream",
    "mp4": "video/mp4",
}
MOST_POINTS = {"glb": 3_000_000, "ply": 3_000_000, "colmap": 200_000, "mp4": 500_000}
FILM_HW = (480, 640)

_making = threading.Lock()  # one at a time: each may take hundreds of megabytes for a moment


class NotReadyError(RuntimeError):
    """Raised where a run has no files to take home yet; the message is shown to the visitor."""


def result_path(folder: Path, manifest: dict[str, Any], result: str) -> Path:
    """Make a file if it is not there yet.

    Args:
        folder: of the run.
        manifest: of the run.
        result: "glb", "ply", "colmap", "tum", "npz" or "mp4".

    Returns:
        Where it lies.

    Raises:
        NotReadyError: the run goes on, or has no frame, or its predictions are gone.
        OSError: the disk is full.
    """
    if manifest["status"] not in FINISHED:
        raise NotReadyError("The run goes on; files are made when it has ended.")
    path = folder / RESULTS / next(entry["name"] for entry in DOWNLOADS if entry["format"] == result)
    if path.is_file():
        return path
    if not manifest["count"] or not prediction_path(folder, 0).is_file():
        raise NotReadyError("This run has no predictions to make a file from.")
    with _making:
        if not path.is_file():
            _write(path, lambda file: _MAKERS[result](file, Predictions(folder, manifest)))
    return path


class Predictions:
    """The predictions of a run, on disk."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.settings = RunSettings(**manifest["settings"])
        self.paths = [prediction_path(folder, index) for index in range(manifest["count"])]
        self._corrections = read_corrections(folder, manifest["edition"])

    def read(self, path: Path, fields: Collection[str] = FIELDS) -> FramePrediction:
        """Read one of ``paths`` as it is known at the end of the run, or some fields of it."""
        prediction = read_prediction(path, fields)
        if self._corrections is None:
            return prediction
        return move_prediction(prediction, self._corrections[prediction.index])

    def cloud(self, most_points: int) -> tuple[PointCloud, list[Camera]]:
        """Gather the points that the page shows, at most so many (an even sample), and all cameras."""
        cameras, thinning, rng = [], self.settings.thinning(), np.random.default_rng(0)
        columns: list[np.ndarray] = []
        for path in self.paths:
            prediction = self.read(path)
            cloud = thinning.new_points(frame_cloud(prediction, self.settings), prediction)
            keys = rng.random(len(cloud))
            new = [cloud.points, cloud.colors, cloud.confidence, cloud.frame_index, keys]
            columns = [np.concatenate(pair) for pair in zip(columns, new, strict=True)] if columns else new
            if len(columns[-1]) > most_points:
                # The smallest of random keys are an even sample of all points so far.
                kept = np.sort(np.argpartition(columns[-1], most_points)[:most_points])
                columns = [column[kept] for column in columns]
            cameras.append(
                Camera(
                    prediction.index,
                    prediction.time_s,
                    prediction.extrinsics,
                    prediction.intrinsics,
                    prediction.image_hw,
                )
            )
        return PointCloud(*columns[:-1]), cameras


def _glb(file: BinaryIO, predictions: Predictions) -> None:
    file.write(glb_bytes(*predictions.cloud(MOST_POINTS["glb"])))


def _ply(file: BinaryIO, predictions: Predictions) -> None:
    file.write(ply_bytes(predictions.cloud(MOST_POINTS["ply"])[0]))


def _tum(file: BinaryIO, predictions: Predictions) -> None:
    file.write(tum_trajectory(predictions.cloud(1)[1]).encode())


def _colmap(file: BinaryIO, predictions: Predictions) -> None:
    from PIL import Image

    cloud, cameras = predictions.cloud(MOST_POINTS["colmap"])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in colmap_files(cloud, cameras).items():
            archive.writestr(name, data)
        for path in predictions.paths:
            prediction = read_prediction(path)
            picture = io.BytesIO()
            Image.fromarray(prediction.image).save(picture, "PNG")
            archive.writestr(f"images/frame_{prediction.index:06d}.png", picture.getvalue(), zipfile.ZIP_STORED)


def _npz(file: BinaryIO, predictions: Predictions) -> None:
    """Write what :func:`streamvggt.npz_bytes` would, without all predictions in memory."""
    first = np.load(io.BytesIO(npz_bytes([predictions.read(predictions.paths[0])])), allow_pickle=False)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in first.files:
            template = first[name]
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if name == "readme":
                    np.lib.format.write_array(member, template)
                    continue
                shape = (len(predictions.paths), *template.shape[1:])
                header = {"descr": template.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for path in predictions.paths:
                    field = "image" if name == "images" else name
                    value = np.asarray(getattr(predictions.read(path, {"image", field}), field))
                    member.write(value.astype(template.dtype).tobytes())


def _mp4(file: BinaryIO, predictions: Predictions) -> None:
    cloud, cameras = predictions.cloud(MOST_POINTS["mp4"])
    if not len(cloud):
        raise NotReadyError("The scene has no points to film.")
    file.write(turntable_mp4(cloud, cameras, image_hw=FILM_HW))


_MAKERS: dict[str, Callable[[BinaryIO, Predictions], None]] = {
    "glb": _glb,
    "ply": _ply,
    "colmap": _colmap,
    "tum": _tum,
    "npz": _npz,
    "mp4": _mp4,
}


def _write(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Fill a file that appears when it is complete; ``write_atomically`` for what should not be in memory at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            fill(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
