"""Make the picture of the README: frames of example clips, their depth, and the cloud of the stream from aside.

python assets/make_picture.py living_room street --out assets/small.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

import streamvggt as sv
from streamvggt.geometry import project

ASSETS = Path(__file__).parent
VIEWS = ((0, 0, 0.25), (28, -8, 0.55))  # yaw and pitch in degrees, step back in units of the median depth


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """Colour the logarithm of depth, near is red."""
    low, high = np.percentile(np.log(depth), (1, 99))
    return (255 * colormaps["Spectral"]((np.log(depth) - low) / (high - low))[..., :3]).astype(np.uint8)


def cloud_picture(
    cloud: sv.PointCloud, centre: float, view: tuple[float, float, float], like: sv.FramePrediction
) -> np.ndarray:
    """Paint the points from far to near, seen by a camera that turns about a point ahead of the first one."""
    yaw, pitch, back = np.radians(view[0]), np.radians(view[1]), view[2]
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    rotation, pivot = about_x @ about_y, np.array([0, 0, centre])
    pose = np.c_[rotation, pivot - rotation @ pivot + [0, 0, back * centre]]
    xy, z = project(np.asarray(cloud.points, np.float64), pose, like.intrinsics.astype(np.float64))
    height, width = like.depth.shape
    picture = np.full((height, width, 3), 255, np.uint8)
    order = np.argsort(-z)
    order = order[z[order] > 0.05 * centre]
    for dx, dy in np.ndindex(2, 2):
        u, v = (xy[order] + (dx, dy)).round().astype(int).T
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        picture[v[inside], u[inside]] = cloud.colors[order[inside]]
    return picture


def row(model: sv.StreamVGGT, name: str, num_frames: int) -> np.ndarray:
    """One clip: its first and last frame with their depths, and two views of the cloud."""
    session, scene = sv.StreamSession(model), sv.Scene()
    stream = [session.step(frame) for frame in sv.read_frames(ASSETS / f"{name}.mp4", fps=2, max_frames=num_frames)]
    for prediction in stream:
        scene.add(prediction)
    cloud = scene.point_cloud(sv.PointFilter(conf_percentile=20))
    centre = float(np.median(stream[0].depth))
    ends = [picture for p in (stream[0], stream[-1]) for picture in (p.image, depth_picture(p.depth))]
    return np.concatenate([*ends, *(cloud_picture(cloud, centre, view, stream[0]) for view in VIEWS)], axis=1)


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
