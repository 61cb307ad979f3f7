"""Make the pictures of the README and of links to the page, from what the bundled network makes of the clips here.

python assets/make_picture.py    # small.jpg, growing.webp, thumbnail.jpg and social.jpg, some minutes on a CPU
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from make_examples import ASSETS, BACKGROUND, EXAMPLES, joined, jpeg_bytes, reconstruct
from PIL import Image, ImageDraw, ImageFont

import streamvggt as sv

ROW_CLIPS, ROW_YAWS_DEG, ROW_FRAMES = ("living_room", "street"), (0, 20), 4
HERO_CLIP, HERO_HW, HERO_SWING_DEG = "living_room", (360, 640), 16
CARD_CLIP, CARD_HW, THUMBNAIL_HW = "living_room", (640, 1280), (360, 640)
CARD_POINT_SIZE = 7  # at the width of the social card


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder")
    parser.add_argument("--model", default="small")
    arguments = parser.parse_args()
    model = sv.load_model(arguments.model)
    runs = {name: list(reconstruct(model, name)) for name in {*ROW_CLIPS, HERO_CLIP, CARD_CLIP}}
    rows = np.concatenate([row(runs[name][:ROW_FRAMES]) for name in ROW_CLIPS])
    thumbnail = scene_picture(runs[CARD_CLIP], THUMBNAIL_HW, EXAMPLES[CARD_CLIP].yaw_deg)
    pictures = {
        "small.jpg": jpeg_bytes(rows),
        "growing.webp": growing(runs[HERO_CLIP]),
        "thumbnail.jpg": jpeg_bytes(thumbnail),
        "social.jpg": jpeg_bytes(social_card(scene_picture(runs[CARD_CLIP], CARD_HW, 0, shift=0.29))),
    }
    for name, data in pictures.items():
        sv.write_atomically(arguments.out / name, data)


def row(run: list) -> np.ndarray:
    """One clip: its first and last frame with their depths, and two views of the cloud."""
    cameras, cloud = [prediction.camera for prediction, *_ in run], joined([part for _, part, _ in run])
    first, last = run[0][0], run[-1][0]
    ends = [picture for p in (first, last) for picture in (p.image, sv.depth_picture(p.depth))]
    views = [sv.overview_camera(cloud, cameras, first.image_hw, yaw_deg=yaw) for yaw in ROW_YAWS_DEG]
    return np.concatenate([*ends, *(sv.render_points(cloud, view) for view in views)], axis=1)


def growing(run: list) -> bytes:
    """Animate a scene: frames come in on the left and add to it on the right, then it swings once; a WebP file."""
    half, two_thirds = HERO_HW[0] // 2, HERO_HW[0] * 2 // 3
    cameras, parts = [prediction.camera for prediction, *_ in run], [part for _, part, _ in run]
    whole = joined(parts)
    swing = HERO_SWING_DEG * np.sin(np.linspace(0, 2 * np.pi, 24, endpoint=False))
    moments = [(count, 0.0, 450) for count in range(1, len(parts) + 1)]
    moments += [(len(parts), float(yaw), 110) for yaw in swing[1:]]
    slides = []
    for count, yaw, _ in moments:
        view = sv.overview_camera(whole, cameras, HERO_HW, yaw_deg=yaw, pitch_deg=6, fov_y_deg=40)
        scene = sv.render_points(joined(parts[:count]), view, point_size=3.5, background=BACKGROUND)
        shown = run[count - 1][0]
        side = [fitted(image, (half, two_thirds)) for image in (shown.image, sv.depth_picture(shown.depth))]
        slides.append(Image.fromarray(np.concatenate([np.concatenate(side), scene], axis=1)))
    buffer = io.BytesIO()
    times_ms = [time_ms for *_, time_ms in moments]
    slides[0].save(
        buffer, "WEBP", save_all=True, append_images=slides[1:], duration=times_ms, loop=0, quality=55, method=6
    )
    return buffer.getvalue()


def scene_picture(run: list, image_hw: tuple[int, int], yaw_deg: float, shift: float = 0.0) -> np.ndarray:
    """Draw a scene on dark ground, moved to the right by ``shift`` of the picture's width."""
    cloud, cameras = joined([part for _, part, _ in run]), [prediction.camera for prediction, *_ in run]
    view = sv.overview_camera(cloud, cameras, image_hw, yaw_deg=yaw_deg, pitch_deg=6, fov_y_deg=40)
    view.intrinsics[0, 2] += shift * image_hw[1]
    size = CARD_POINT_SIZE * image_hw[1] / CARD_HW[1]
    return sv.render_points(cloud, view, point_size=size, background=BACKGROUND)


def social_card(scene: np.ndarray) -> np.ndarray:
    """Write the name of the project beside a scene."""
    card = Image.fromarray(scene)
    draw = ImageDraw.Draw(card)
    title, text = ImageFont.load_default(size=64), ImageFont.load_default(size=34)
    draw.text((56, 244), "StreamVGGT", font=title, fill=(255, 255, 255))
    draw.text((58, 334), "Live 3D from video,\nframe by frame", font=text, fill=(200, 206, 216), spacing=12)
    return np.asarray(card)


def fitted(picture: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resize a picture, cut to the shape that is asked for."""
    height, width = image_hw
    source = Image.fromarray(picture)
    scale = max(height / source.height, width / source.width)
    size = (round(source.width * scale), round(source.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(source.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height)))


if __name__ == "__main__":
    main()
