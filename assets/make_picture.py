"""Make the picture of the README: frames of example clips, their depth, and the cloud of the stream from aside.

python assets/make_picture.py living_room street --out assets/small.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import streamvggt as sv

ASSETS = Path(__file__).parent
YAWS_DEG = (0, 28)


def row(model: sv.StreamVGGT, name: str, num_frames: int) -> np.ndarray:
    """One clip: its first and last frame with their depths, and two views of the cloud."""
    session, scene = sv.StreamSession(model), sv.Scene()
    stream = [session.step(frame) for frame in sv.read_frames(ASSETS / f"{name}.mp4", fps=2, max_frames=num_frames)]
    for prediction in stream:
        scene.add(prediction)
    cloud = scene.point_cloud(sv.PointFilter(conf_percentile=20))
    ends = [picture for p in (stream[0], stream[-1]) for picture in (p.image, sv.depth_picture(p.depth))]
    views = [sv.overview_camera(cloud, scene.cameras, stream[0].image_hw, yaw_deg=yaw) for yaw in YAWS_DEG]
    return np.concatenate([*ends, *(sv.render_points(cloud, view) for view in views)], axis=1)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clips", nargs="+", help="names of clips in assets/")
    parser.add_argument("--out", type=Path, default=ASSETS / "small.jpg")
    parser.add_argument("--model", default="small")
    parser.add_argument("--frames", type=int, default=4)
    args = parser.parse_args()
    model = sv.load_model(args.model)
    Image.fromarray(np.concatenate([row(model, name, args.frames) for name in args.clips])).save(args.out, quality=90)


if __name__ == "__main__":
    main()
