"""Write scenes, and the chunks that a live scene grows by, as GLB files: points, cameras and pictures in glTF axes.

glTF has y up and z back; the rest of the package has OpenCV axes, y down and z forward.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamvggt.export import SCALE_NOTE, camera_arrays, require_finite_points
from streamvggt.geometry import invert_pose
from streamvggt.gltf import LINE_STRIP, LINES, POINTS, GlbWriter
from streamvggt.pictures import depth_picture
from streamvggt.types import ByteArray, FloatArray, FramePrediction, PointCloud, PosedCamera, required

# Half a turn about x leads from OpenCV to glTF axes and back. A pose has it on both sides, for world and camera.
_GLTF_AXES = np.array([1, -1, -1], np.float32)
_AXES_NOTE = "The world is the first camera's frame, x right, y up, z back: OpenCV's (x, -y, -z)."
_FIRST_TO_LAST_COLORS = np.array([[60, 100, 230], [220, 60, 160], [250, 160, 30]])
_PICTURE_WIDTH = 224  # at most, pixels
_CHUNK_VERTEX = np.dtype([("POSITION", "<f4", 3), ("COLOR_0", "<u2", 3), ("padding", "<u2"), ("_CONFIDENCE", "<f4")])


def glb_bytes(
    cloud: PointCloud, cameras: Sequence[PosedCamera] | None = None, *, frustum_scale: float | None = None
) -> bytes:
    """Write points and cameras as one binary glTF 2.0 file, which 3D viewers and browsers open.

    The node ``points`` holds float32 positions, linear colours (glTF wants no sRGB on vertices) and the attribute
    ``_CONFIDENCE``, 1 - 1 / confidence in [0, 1]. With cameras there are one glTF camera node per frame, named
    ``frame_0000`` and so on, ``frustums`` (lines, blue for the first frame to orange for the last) and, from two
    cameras on, ``trajectory``. A glTF camera looks through the middle of its image; frustums follow the intrinsics.
    The world has glTF axes: x right, y up, z back.

    Args:
        cloud: the points; none are fine, and leave the node out.
        cameras: whose poses to show, in the order of the trajectory.
        frustum_scale: how far the frustums reach, scene units; None takes a twentieth of the extent of these points
            and cameras, so give it where several files are shown together.

    Raises:
        ValueError: a point or a camera is not finite, or ``frustum_scale`` is not positive.
    """
    require_finite_points(cloud)
    if frustum_scale is not None and not 0 < frustum_scale < math.inf:
        raise ValueError(f"frustum_scale must be positive, got {frustum_scale}; None derives it from the scene")
    glb = GlbWriter()
    if len(cloud):
        glb.add_mesh("points", _gltf_vertices(cloud.points, cloud.colors, cloud.confidence), POINTS)
    if cameras:
        extrinsics, intrinsics = camera_arrays(cameras)
        camera_to_world = invert_pose(extrinsics)
        colors = _first_to_last_colors(len(cameras))
        reach = frustum_scale or _twentieth_of_extent(cloud.points, camera_to_world[..., 3])
        corners, edges = _frustums(cameras, camera_to_world, intrinsics, reach)
        glb.add_mesh("frustums", _gltf_vertices(corners, np.repeat(colors, 5, axis=0)), LINES, edges)
        if len(cameras) > 1:
            glb.add_mesh("trajectory", _gltf_vertices(camera_to_world[..., 3], colors), LINE_STRIP)
        for camera, pose, matrix in zip(cameras, camera_to_world, intrinsics, strict=True):
            extras = {"frame": int(camera.index), "time_s": float(camera.time_s)}
            _add_camera(glb, f"frame_{camera.index:04d}", camera.image_hw, pose, matrix, extras)
    return glb.to_bytes(
        extras={
            "scale": SCALE_NOTE,
            "axes": _AXES_NOTE,
            "confidence": "_CONFIDENCE is 1 - 1 / confidence, confidence >= 1.",
        }
    )


def frame_glb_bytes(prediction: FramePrediction, cloud: PointCloud) -> bytes:
    """Write what one frame adds to a live scene: a chunk that the viewer appends to those before it.

    The node ``points`` holds float32 positions, linear 16-bit colours and ``_CONFIDENCE``, the confidence itself (>= 1,
    float32), 24 bytes a point. The points come in random order, the same in every call, so that the first n of them
    are an even sample of the frame. The node ``frame_000012`` (the frame's number) is its glTF camera, with
    ``extras``: ``frame``, ``time_s``, ``image_hw`` and ``intrinsics`` (fx, fy, cx, cy in pixels of an image of that
    size). Two JPEG pictures at most 224 pixels wide, ``image`` and ``depth``, show the frame and its depth coloured by
    :func:`depth_picture`. The world has glTF axes: x right, y up, z back.

    Args:
        prediction: the frame; its camera, image and depth are written.
        cloud: its new points, in the first camera's frame, as :meth:`Scene.frame_points` gives them; none are fine,
            and leave the node out.

    Raises:
        ValueError: a point or the camera is not finite, or the prediction has no camera or depth.
    """
    require_finite_points(cloud)
    (extrinsics,), (intrinsics,) = camera_arrays([prediction.camera])
    glb = GlbWriter()
    if len(cloud):
        glb.add_mesh("points", _chunk_vertices(cloud.select(_shuffled(len(cloud), prediction.index))), POINTS)
    extras = {
        "frame": int(prediction.index),
        "time_s": float(prediction.time_s),
        "image_hw": list(prediction.image_hw),
        "intrinsics": intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist(),
    }
    name = f"frame_{prediction.index:06d}"
    _add_camera(glb, name, prediction.image_hw, invert_pose(extrinsics), intrinsics, extras)
    glb.add_image("image", _small_jpeg(prediction.image))
    glb.add_image("depth", _small_jpeg(depth_picture(_thinned_out(required(prediction.depth, "depth")))))
    confidence = "_CONFIDENCE is the network's confidence, >= 1."
    return glb.to_bytes(extras={"scale": SCALE_NOTE, "axes": _AXES_NOTE, "confidence": confidence})


def _add_camera(
    glb: GlbWriter,
    name: str,
    image_hw: tuple[int, int],
    camera_to_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    extras: dict[str, Any],
) -> None:
    (height, width), fx, fy = image_hw, intrinsics[0, 0], intrinsics[1, 1]
    pose = np.vstack([_GLTF_AXES[:, None] * camera_to_world * np.append(_GLTF_AXES, 1), [0, 0, 0, 1]])
    fov_y_rad = 2 * math.atan(height / (2 * fy))
    glb.add_camera(name, pose, fov_y_rad, aspect=float((width / fx) / (height / fy)), extras=extras)


def _shuffled(count: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).permutation(count)


def _chunk_vertices(cloud: PointCloud) -> NDArray[np.void]:
    vertices = np.zeros(len(cloud), _CHUNK_VERTEX)
    vertices["POSITION"] = cloud.points * _GLTF_AXES
    vertices["COLOR_0"] = np.round(65535 * _linear_levels()).astype(np.uint16)[cloud.colors]
    vertices["_CONFIDENCE"] = cloud.confidence
    return vertices


def _thinned_out(depth: FloatArray) -> FloatArray:
    """Every so many pixels of a depth map, not their mean: between two surfaces there is none."""
    step = -(-depth.shape[1] // _PICTURE_WIDTH)
    return depth[::step, ::step]


def _small_jpeg(pixels: ByteArray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(pixels)
    if picture.width > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, max(1, round(picture.height * _PICTURE_WIDTH / picture.width)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _gltf_vertices(points: NDArray[Any], colors: ByteArray, confidence: FloatArray | None = None) -> NDArray[np.void]:
    """Interleave OpenCV points, sRGB colours and confidence as glTF attributes, each 4-byte aligned."""
    fields: list[Any] = [("POSITION", "<f4", 3), ("COLOR_0", "<f4", 3)]
    if confidence is not None:
        fields += [("_CONFIDENCE", "<u2"), ("padding", "<u2")]
    vertices = np.zeros(len(points), fields)
    vertices["POSITION"] = points * _GLTF_AXES
    # Floats: 8 linear bits would merge the dark levels, and trimesh misreads 16.
    vertices["COLOR_0"] = _linear_levels()[colors]
    if confidence is not None:
        vertices["_CONFIDENCE"] = np.round(65535 * (1 - 1 / np.maximum(confidence, 1)))
    return vertices


def _linear_levels() -> FloatArray:
    """Linear light in [0, 1] of each sRGB level (IEC 61966-2-1), ``[256]``."""
    srgb = np.arange(256) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _first_to_last_colors(count: int) -> ByteArray:
    """``[count, 3]``, sRGB."""
    progress = np.linspace(0, 1, count)
    knots = np.linspace(0, 1, len(_FIRST_TO_LAST_COLORS))
    channels = [np.interp(progress, knots, channel) for channel in _FIRST_TO_LAST_COLORS.T]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _frustums(
    cameras: Sequence[PosedCamera], camera_to_world: NDArray[np.float64], intrinsics: NDArray[np.float64], reach: float
) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Corners ``[5 S, 3]`` of a pyramid per camera (its centre, then the image's corners), and its edges' ends."""
    pixels = np.zeros((len(cameras), 5, 3))
    for corners, camera in zip(pixels, cameras, strict=True):
        height, width = camera.image_hw
        top, left, bottom, right = -0.5, -0.5, height - 0.5, width - 0.5
        corners[1:] = [[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]]
    rays = pixels @ np.linalg.inv(intrinsics).swapaxes(1, 2)
    corners = camera_to_world[:, None, :, 3] + reach * rays @ camera_to_world[..., :3].swapaxes(1, 2)
    edges = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
    indices = 5 * np.arange(len(cameras))[:, None, None] + edges
    return corners.reshape(-1, 3), indices.reshape(-1).astype(np.uint32)


def _twentieth_of_extent(points: FloatArray, centers: NDArray[np.float64]) -> float:
    some = points[:: len(points) // 10_000 + 1]
    # Percentiles, for a few stray points must not blow up the frustums.
    low, high = np.percentile(np.concatenate([some, centers]), (5, 95), axis=0)
    return 0.05 * float(np.linalg.norm(high - low)) or 0.1
