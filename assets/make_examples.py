"""Make the finished runs that the page offers as examples, from the clips in this folder and the bundled network.

python assets/make_examples.py    # all of them, some minutes on a CPU
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import streamvggt as sv

ASSETS = Path(__file__).parent
PICTURE_HW = (300, 480)
BACKGROUND = (20, 22, 28)


@dataclass(frozen=True)
class Example:
    """How to show a clip at its best.

    The bundled network is small and its depth coarse, so each place is left to the first frame that sees it, by cells
    that are large against the errors.

    Attributes:
        title: for people.
        step: take every so many frames.
        cell: see :class:`streamvggt.VoxelThinning`.
        yaw_deg: from where the picture is taken.
    """

    title: str
    step: int = 4
    cell: float = 0.15
    yaw_deg: float = 0.0


EXAMPLES = {
    "living_room": Example("A walk through a living room", yaw_deg=-8),
    "playroom": Example("A playroom with a moving train"),
    "still_life": Example("Around a table", yaw_deg=-8, cell=0.18, step=3),
    "street": Example("Up a narrow street"),
}
SHOWN = sv.PointFilter(conf_percentile=20, edge_rtol=0.06)
NUM_FRAMES = 9


def main() -> None:
    """Write the examples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clips", nargs="*", default=sorted(EXAMPLES), help="names of clips in assets/; default all")
    parser.add_argument("--out", type=Path, default=ASSETS / "examples")
    parser.add_argument("--model", default="small")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = sv.load_model(arguments.model)
    for name in arguments.clips:
        size = write_example(model, arguments.model, name, arguments.out / name)
        logging.info("%s: %d kB", name, size // 1000)


def reconstruct(model: sv.StreamVGGT, name: str) -> Iterator[tuple[sv.FramePrediction, sv.PointCloud, int]]:
    """Yield for each frame of an example its prediction, the points it adds, and the bytes that the stream holds."""
    example = EXAMPLES[name]
    session, scene = sv.StreamSession(model, refine=model.config.can_refine), sv.Scene()
    thinning = sv.VoxelThinning(example.cell, dense=True)
    frames = sv.read_frames(ASSETS / f"{name}.mp4", max_frames=NUM_FRAMES * example.step)
    for frame in list(frames)[:: example.step]:
        prediction = session.step(frame)
        scene.add(prediction)
        yield prediction, thinning.new_points(scene.frame_points(-1, SHOWN), prediction), session.nbytes


def write_example(model: sv.StreamVGGT, model_name: str, name: str, folder: Path) -> int:
    """Write one example in the place of a former one; returns its bytes."""
    example = EXAMPLES[name]
    shutil.rmtree(folder, ignore_errors=True)
    cameras, parts = [], []
    for position, (prediction, part, num_bytes) in enumerate(reconstruct(model, name)):
        cache_bytes = num_bytes
        sv.write_atomically(folder / "chunks" / f"{position:06d}.glb", sv.frame_glb_bytes(prediction, part))
        cameras.append(prediction.camera)
        parts.append(part)
    cloud = joined(parts)
    view = sv.overview_camera(cloud, cameras, PICTURE_HW, yaw_deg=example.yaw_deg, pitch_deg=6, fov_y_deg=40)
    card = sv.render_points(cloud, view, point_size=3, background=BACKGROUND)
    sv.write_atomically(folder / "picture.jpg", jpeg_bytes(card))
    manifest = {
        "run": f"example-{name}",
        "version": 1,
        "status": "done",
        "message": "",
        "queue_position": None,
        "title": example.title,
        "total": len(parts),
        "count": len(parts),
        "live": False,
        "stats": {
            "frames_per_s": 0.0,
            "cache_bytes": cache_bytes,
            "points": len(cloud),
            "conf_percentiles": np.percentile(cloud.confidence, range(0, 101, 5)).round(4).tolist(),
        },
        "downloads": [],
        "settings": {"model": model_name},
    }
    sv.write_atomically(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def joined(parts: list[sv.PointCloud]) -> sv.PointCloud:
    """Put clouds one behind the other."""
    names = ("points", "colors", "confidence", "frame_index")
    return sv.PointCloud(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def jpeg_bytes(pixels: np.ndarray) -> bytes:
    """Write a picture as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=84)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
