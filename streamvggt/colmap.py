"""Read COLMAP's sparse models; :func:`streamvggt.colmap_files` writes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .geometry import invert_pose, quaternion_to_matrix
from .listings import Listing, Matrix, SequenceError, make_listing, npy_depth, pinhole, read_text

_log = logging.getLogger(__name__)

# How many focal lengths stand before cx and cy; what stands after them is distortion.
_FOCALS = {
    "SIMPLE_PINHOLE": 1,
    "PINHOLE": 2,
    "SIMPLE_RADIAL": 1,
    "RADIAL": 1,
    "OPENCV": 2,
    "FULL_OPENCV": 2,
}


def read_colmap(folder: Path) -> Listing:
    """Read a COLMAP sparse model in its text format, ``cameras.txt`` and ``images.txt``, and the pictures beside it.

    The model lies in the folder, in ``sparse/0`` or in ``sparse``; the pictures in ``images`` there or above. Frames
    come in the order of their names, one second apart; the scale is arbitrary and there is no depth. COLMAP puts the
    first pixel's centre at (0.5, 0.5), so principal points move by half a pixel. Distortion is ignored, with a warning.
    Source: COLMAP documentation, "Output Format" and "Camera Models".
    """
    model = colmap_model(folder)
    if model is None:
        wanted = "cameras.txt and images.txt, here, in sparse/0 or in sparse"
        raise SequenceError(f"{folder}: needs {wanted}; write text with colmap model_converter --output_type TXT")
    places = [place / "images" for place in (folder, model, model.parent, model.parent.parent)]
    pictures = next((place for place in places if place.is_dir()), None)
    if pictures is None:
        raise SequenceError(f"{folder}: needs the pictures in {places[0]}")
    cameras = _cameras(model / "cameras.txt")
    frames, is_header = [], True
    for line in read_text(model / "images.txt").splitlines():
        if not is_header:  # the points of the picture, on a line of their own, which may be empty
            is_header = True
        elif line.strip() and not line.startswith("#"):
            frames.append(_image(model / "images.txt", line, cameras))
            is_header = False
    frames.sort(key=lambda frame: frame[0])
    poses = np.array([pose for _, pose, _ in frames]).reshape(-1, 3, 4)
    return make_listing(
        folder,
        [pictures / name for name, _, _ in frames],
        None,
        invert_pose(poses),
        np.array([cameras[camera][0] for _, _, camera in frames]).reshape(-1, 3, 3),
        np.arange(len(frames), dtype=np.float64),
        npy_depth,
        sizes=[cameras[camera][1] for _, _, camera in frames],
    )


def colmap_model(folder: Path, suffix: str = "txt") -> Path | None:
    """Find the folder of a model, in text or ("bin") binary: the folder itself, ``sparse/0`` or ``sparse`` in it."""
    places = (folder, folder / "sparse" / "0", folder / "sparse")
    files = [f"{name}.{suffix}" for name in ("cameras", "images")]
    return next((place for place in places if all((place / name).is_file() for name in files)), None)


def _cameras(path: Path) -> dict[str, tuple[Matrix, tuple[int, int]]]:
    """Intrinsics and image size by camera id."""
    cameras, distorted = {}, set()
    for line in read_text(path).splitlines():
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        try:
            number, model, width, height = fields[0], fields[1], int(fields[2]), int(fields[3])
            num_focals, values = _FOCALS[model], list(map(float, fields[4:]))
            fx, fy, (cx, cy) = values[0], values[num_focals - 1], values[num_focals : num_focals + 2]
        except (ValueError, IndexError, KeyError) as error:
            models = ", ".join(_FOCALS)
            raise SequenceError(f"{path}: cannot use the camera {line.strip()!r}; models: {models}") from error
        if any(values[num_focals + 2 :]):
            distorted.add(model)
        cameras[number] = (pinhole(fx, fy, cx - 0.5, cy - 0.5), (height, width))
    if distorted:
        models = ", ".join(sorted(distorted))
        _log.warning("%s: the lens distortion of %s is ignored; colmap image_undistorter removes it", path, models)
    return cameras


def _image(path: Path, line: str, cameras: dict[str, Any]) -> tuple[str, Matrix, str]:
    """Name, world-to-camera and camera id."""
    fields = line.split(maxsplit=9)
    try:
        w, x, y, z, *translation = map(float, fields[1:8])
        camera, name = fields[8], fields[9].strip()
        cameras[camera]
    except (ValueError, IndexError, KeyError) as error:
        raise SequenceError(f"{path}: cannot use the line {line.strip()[:120]!r} ({error!r})") from error
    rotation = quaternion_to_matrix(torch.tensor([x, y, z, w], dtype=torch.float64)).numpy()
    return name, np.column_stack([rotation, translation]), camera
