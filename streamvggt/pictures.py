"""Pictures of what a stream has seen: coloured depth maps, and its points from any side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamvggt.geometry import project
from streamvggt.types import ByteArray, Camera, FloatArray, PointCloud, PosedCamera

# Nine colours from near to far, evenly spaced: lightness falls in equal steps from 0.93 to 0.30 in OKLab (Ottosson,
# "A perceptual color space for image processing", 2020) while the hue turns from yellow by red to blue, so that equal
# steps of depth look equal, also in grey.
_NEAR_TO_FAR = np.array(
    [
        [254, 232, 150],
        [252, 195, 112],
        [252, 153, 89],
        [251, 101, 87],
        [220, 63, 128],
        [169, 49, 163],
        [107, 43, 179],
        [46, 34, 168],
        [4, 10, 141],
    ]
)
_NO_DEPTH = 128  # grey, which no depth has

_OVERSAMPLING = 2
_MAX_DIAMETER = 12.0  # of a point that is near, pixels
_FITTED_DIAMETERS = (2.0, 8.0)
_IN_SIGHT = 0.9  # part of the points that an overview shows


def depth_picture(depth: FloatArray) -> ByteArray:
    """Colour a depth map by the logarithm of depth: near is warm and light, far is blue and dark.

    The colours span the 1st to the 99th percentile of this map, so they say what is nearer and not how near it is.

    Args:
        depth: ``[H, W]``, z in the camera, scene units.

    Returns:
        RGB uint8 ``[H, W, 3]``; pixels without a finite depth above 0 are grey.

    Raises:
        ValueError: depth is not ``[H, W]``.
    """
    if depth.ndim != 2:
        raise ValueError(f"depth must be [H, W], got {list(depth.shape)}; colour one map at a time")
    valid = np.isfinite(depth) & (depth > 0)
    log_depth = np.log(np.where(valid, depth, 1).astype(np.float32))
    low, high = np.percentile(log_depth[valid], (1, 99)) if valid.any() else (0, 0)
    place = (log_depth - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    picture = _color_table()[np.rint(place.clip(0, 255)).astype(np.uint8)]
    picture[~valid] = _NO_DEPTH
    return picture


@lru_cache(maxsize=1)
def _color_table() -> ByteArray:
    """``[256, 3]``, sRGB, near first."""
    knots = np.linspace(0, 255, len(_NEAR_TO_FAR))
    return np.stack([np.interp(np.arange(256), knots, channel) for channel in _NEAR_TO_FAR.T], axis=-1).astype(np.uint8)


def render_points(
    cloud: PointCloud,
    camera: PosedCamera,
    *,
    point_size: float | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> ByteArray:
    """Draw points as a camera sees them: round, near ones large and in front of far ones, with smooth borders.

    Args:
        cloud: the points; none are fine.
        camera: whose view to draw, in a picture of its ``image_hw``; of a scene, or from :func:`overview_camera`.
        point_size: diameter of a point at the median depth of those in the picture, pixels, > 0. It shrinks with
            depth, and is 12 pixels at most. None takes a size with which that many points would just fill the picture.
        background: RGB, 0 to 255.

    Returns:
        RGB uint8 ``[H, W, 3]``.

    Raises:
        ValueError: ``point_size`` is not positive.
    """
    if point_size is not None and not 0 < point_size < math.inf:
        raise ValueError(f"point_size must be a positive number of pixels, got {point_size}; None fits it")
    # Drawn larger, then averaged.
    height, width = (_OVERSAMPLING * side for side in camera.image_hw)
    xy, depth = project(cloud.points, camera.extrinsics.astype(np.float32), camera.intrinsics.astype(np.float32))
    xy = _OVERSAMPLING * (xy + 0.5) - 0.5
    reach = math.ceil(_OVERSAMPLING * _MAX_DIAMETER / 2)
    in_sight = (depth > 0) & (xy > -reach).all(-1) & (xy < [width + reach, height + reach]).all(-1)
    visible = np.flatnonzero(in_sight)
    visible = visible[np.argsort(-depth[visible], kind="stable")]
    depth = depth[visible]
    median = np.median(depth) if len(depth) else 1
    if point_size is None:
        height_px, width_px = camera.image_hw
        low, high = _FITTED_DIAMETERS
        point_size = min(max(1.5 * math.sqrt(height_px * width_px / max(len(depth), 1)), low), high)
    radius = _OVERSAMPLING / 2 * np.minimum(point_size * median / depth, _MAX_DIAMETER)
    # A margin for centres that are out of sight, and again for their discs: so no pixel needs a check of its own.
    margin = 2 * reach + 1
    column, row = (np.rint(xy[visible]).astype(np.int64) + margin).T
    shape = (height + 2 * margin, width + 2 * margin)
    front = _front_points(row * shape[1] + column, radius, shape)[margin:-margin, margin:-margin]
    colors = np.concatenate([np.array([background], np.uint8), cloud.colors[visible]])
    fine = colors.take(front, axis=0).astype(np.uint16)
    n = _OVERSAMPLING
    total = sum((fine[dy::n, dx::n] for dy, dx in np.ndindex(n, n)), start=np.zeros((), np.uint16))
    return ((total + n * n // 2) // (n * n)).astype(np.uint8)


def _front_points(place: NDArray[np.int64], radius: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Number of the point that each pixel shows, from 1; 0 for none. Points come from far to near, as flat pixels."""
    front = np.zeros(shape[0] * shape[1], np.int32)
    number = np.arange(1, len(place) + 1, dtype=np.int32)
    reach = math.ceil(radius.max()) if len(radius) else 0
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for dy, dx in sorted(offsets, key=lambda offset: math.hypot(*offset)):
        # The pixel at its centre belongs to every point, however small.
        reaching = radius >= max(math.hypot(dy, dx) - 0.5, 0)
        if not reaching.all():
            place, radius, number = place[reaching], radius[reaching], number[reaching]
        pixel = place + (dy * shape[1] + dx)
        nearer = number > front[pixel]
        # Of several points that come to one pixel the last stays, which is the nearest.
        front[pixel[nearer]] = number[nearer]
    return front.reshape(shape)


def overview_camera(
    cloud: PointCloud,
    cameras: Sequence[PosedCamera],
    image_hw: tuple[int, int],
    *,
    yaw_deg: float = 0.0,
    pitch_deg: float = 12.0,
    fov_y_deg: float = 45.0,
) -> Camera:
    """Find a camera that sees nine tenths of a scene: on the side of its cameras, turned about its middle.

    Args:
        cloud: what to look at; its middle is the median of its points.
        cameras: the scene's; the mean of their poses says where the front is and what is up. At least one.
        image_hw: height and width of the picture, pixels.
        yaw_deg: turn to the right about the vertical, so that more of the scene's right side shows.
        pitch_deg: rise above the middle, looking down.
        fov_y_deg: vertical field of view, between 0 and 180.

    Returns:
        A camera for :func:`render_points`.

    Raises:
        ValueError: there is no camera or no point, or the field of view is out of range.
    """
    if not cameras or not len(cloud):
        raise ValueError(f"an overview needs points and cameras, got {len(cloud)} points and {len(cameras)} cameras")
    if not 0 < fov_y_deg < 180:
        raise ValueError(f"fov_y_deg must be between 0 and 180 degrees, got {fov_y_deg}")
    height, width = image_hw
    # The rotation nearest to the mean of all; cameras that look in opposite directions leave it to chance.
    u, _, vt = np.linalg.svd(np.mean([camera.extrinsics[:, :3] for camera in cameras], axis=0, dtype=np.float64))
    front = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    rotation = _turn(0, pitch_deg) @ _turn(1, yaw_deg) @ front
    middle = np.median(cloud.points, axis=0).astype(np.float64)
    focal = height / 2 / math.tan(math.radians(fov_y_deg) / 2)
    seen = (cloud.points - middle) @ rotation.T
    # How far back each point needs the camera to be, if it is to lie in the picture.
    needed = focal * np.abs(seen[:, :2] / [width / 2, height / 2]).max(axis=1) - seen[:, 2]
    distance = max(float(np.quantile(needed, _IN_SIGHT)), 1e-6)
    extrinsics = np.column_stack([rotation, [0, 0, distance] - rotation @ middle]).astype(np.float32)
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float32)
    return Camera(0, 0.0, extrinsics, intrinsics, image_hw)


def _turn(axis: int, angle_deg: float) -> NDArray[np.float64]:
    """Rotation about the camera's x (0) or y (1) axis."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    if axis == 0:
        return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
