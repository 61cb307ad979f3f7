"""Poses, pinhole cameras and similarity transforms.

Conventions: ``extrinsics`` are world-to-camera ``[R | t]``, OpenCV axes (x right, y down, z forward); pixel centres lie
at integer coordinates; quaternions are ordered xyzw; intrinsics have no skew. The functions of the network are torch
and differentiable; those that scenes use too take torch tensors or numpy arrays and return what they were given.

No matrix product is used on coordinates: under autocast or TF32 it would round them to half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[Any])

MIN_FOV_RAD = 1e-3
"""Fields of view decode to this at least and pi minus this at most; beyond, focal lengths are infinite or negative."""

_MIN_DEPTH = 1e-8  # projecting divides by no less than this, so that points behind the camera stay finite
_COLLINEAR = 1e-10  # ratio of the two largest singular values of a covariance, below which a rotation is undetermined


def decode_pose(pose_enc: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Turn the network's nine numbers into camera matrices.

    Args:
        pose_enc: ``[..., 9]``: translation 3, quaternion xyzw 4 (any length; zero means no rotation), vertical and
            horizontal field of view in radians, limited to ``[MIN_FOV_RAD, pi - MIN_FOV_RAD]``.
        image_hw: height and width of the image in pixels.

    Returns:
        Extrinsics ``[..., 3, 4]``, world-to-camera, and intrinsics ``[..., 3, 3]`` in pixels, with the principal point
        at ``(W / 2, H / 2)``.

    Raises:
        ValueError: the last axis is not 9.
    """
    _require_shape("pose_enc", pose_enc, (9,))
    translation, quaternion, fov_rad = pose_enc.split([3, 4, 2], dim=-1)
    extrinsics = torch.cat([quaternion_to_matrix(quaternion), translation[..., None]], dim=-1)

    height, width = image_hw
    half_fov_h, half_fov_w = (fov_rad.clamp(MIN_FOV_RAD, math.pi - MIN_FOV_RAD) / 2).unbind(-1)
    fx, fy = (width / 2) / half_fov_w.tan(), (height / 2) / half_fov_h.tan()
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [fx, zero, one * (width / 2), zero, fy, one * (height / 2), zero, zero, one]
    return extrinsics, torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def encode_pose(extrinsics: Tensor, intrinsics: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Turn camera matrices into the nine numbers that the network predicts, the inverse of :func:`decode_pose`.

    The principal point is not part of the encoding: it is taken to be the image's centre.

    Args:
        extrinsics: ``[..., 3, 4]``, world-to-camera.
        intrinsics: ``[..., 3, 3]``, pixels.
        image_hw: height and width of the image in pixels.

    Returns:
        ``[..., 9]``: translation, unit quaternion xyzw with w >= 0, vertical and horizontal field of view in radians.

    Raises:
        ValueError: the last axes are not ``[3, 4]`` and ``[3, 3]``.
    """
    _require_shape("extrinsics", extrinsics, (3, 4))
    _require_shape("intrinsics", intrinsics, (3, 3))
    height, width = image_hw
    fov_h = 2 * torch.atan((height / 2) / intrinsics[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / intrinsics[..., 0, 0])
    quaternion = matrix_to_quaternion(extrinsics[..., :3])
    return torch.cat([extrinsics[..., 3], quaternion, torch.stack([fov_h, fov_w], dim=-1)], dim=-1)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Turn quaternions xyzw ``[..., 4]`` of any length into rotation matrices ``[..., 3, 3]``; zero is no rotation."""
    # A zero quaternion stays zero in `normalize` and every product below vanishes: identity, with finite gradients.
    x, y, z, w = F.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Turn rotation matrices ``[..., 3, 3]`` into unit quaternions xyzw ``[..., 4]`` with w >= 0.

    The entries of ``4 q q^T`` are sums of matrix entries; its row with the largest diagonal, normalised, is ``q``. That
    row is at least 2 long for every rotation: neither value nor gradient has a weak spot (after Shepperd 1978).
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = [
        1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12,
        m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20,
        m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01,
        m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22,
    ]  # fmt: skip
    outer = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quaternion = F.normalize(outer.take_along_dim(largest[..., None, None], dim=-2).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Chain rigid transforms ``[..., 3, 4]``: the result applies ``inner`` first."""
    rotation = (outer[..., :3, None] * inner[..., None, :, :]).sum(-2)
    return rotation + F.pad(outer[..., 3:], (3, 0))


def invert_pose(pose: Array) -> Array:
    """Turn world-to-camera ``[..., 3, 4]`` into camera-to-world ``[..., 3, 4]``, or back: it is its own inverse.

    The last column of the camera-to-world matrix is the camera's centre.

    Raises:
        ValueError: the last axes are not ``[3, 4]``.
    """
    _require_shape("pose", pose, (3, 4))
    inverse = pose[..., :3].swapaxes(-1, -2)
    return _namespace(pose).concatenate([inverse, -_transform(inverse, pose[..., 3])[..., None]], -1)


def unproject(depth: Array, extrinsics: Array, intrinsics: Array) -> Array:
    """Lift every pixel of a depth map to its point in the world.

    Args:
        depth: ``[..., H, W]``, z in the camera, scene units.
        extrinsics: ``[..., 3, 4]``, world-to-camera.
        intrinsics: ``[..., 3, 3]``, pixels of the depth map.

    Returns:
        World points ``[..., H, W, 3]``, scene units.

    Raises:
        ValueError: the last axes are not as above.
    """
    _require_shape("extrinsics", extrinsics, (3, 4))
    _require_shape("intrinsics", intrinsics, (3, 3))
    if depth.ndim < 2:
        raise ValueError(f"depth must be [..., H, W], got {list(depth.shape)}")
    height, width = depth.shape[-2:]
    fx, fy, cx, cy = _pinhole(intrinsics[..., None, None, :, :])
    x = (_arange(width, depth) - cx) / fx * depth
    y = (_arange(height, depth)[:, None] - cy) / fy * depth
    in_camera = _namespace(depth).stack([x, y, depth], -1)
    pose = extrinsics[..., None, None, :, :]
    return _transform(pose[..., :3].swapaxes(-1, -2), in_camera - pose[..., 3])


def project(points: Array, extrinsics: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Find the pixels where a camera sees points of the world.

    The leading axes broadcast: points ``[N, 3]`` take one camera ``[3, 4]``; ``[B, S, H, W, 3]`` take cameras
    ``[B, S, 1, 1, 3, 4]``.

    Args:
        points: ``[..., 3]``, world, scene units.
        extrinsics: ``[..., 3, 4]``, world-to-camera.
        intrinsics: ``[..., 3, 3]``, pixels.

    Returns:
        xy ``[..., 2]`` in pixels (inside the image or not) and depth ``[...]``, z in the camera. Where the depth is
        <= 0 the point is not in front of the camera and its xy is finite but means nothing: mask it.

    Raises:
        ValueError: the last axes are not as above.
    """
    _require_shape("points", points, (3,))
    _require_shape("extrinsics", extrinsics, (3, 4))
    _require_shape("intrinsics", intrinsics, (3, 3))
    in_camera = _transform(extrinsics[..., :3], points) + extrinsics[..., 3]
    depth = in_camera[..., 2]
    fx, fy, cx, cy = _pinhole(intrinsics)
    divisor = depth.clip(_MIN_DEPTH)
    x = in_camera[..., 0] / divisor * fx + cx
    y = in_camera[..., 1] / divisor * fy + cy
    return _namespace(points).stack([x, y], -1), depth


@dataclass(frozen=True, eq=False)
class Similarity:
    """The transform ``x -> scale * rotation @ x + translation`` between two worlds (numpy, float64).

    Attributes:
        scale: > 0, new units per old unit.
        rotation: ``[3, 3]``.
        translation: ``[3]``, new units.
    """

    scale: float
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @classmethod
    def identity(cls) -> Similarity:
        """Return the transform that leaves everything where it is."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def compose(self, inner: Similarity) -> Similarity:
        """Chain two transforms: the result applies ``inner`` first, then this one."""
        return Similarity(self.scale * inner.scale, self.rotation @ inner.rotation, self.apply(inner.translation))

    def inverse(self) -> Similarity:
        """Return the way back."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -_transform(rotation, self.translation) / self.scale)

    def apply(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Move points ``[..., 3]`` of the old world to the new one."""
        return self.scale * _transform(self.rotation, points) + self.translation

    def apply_to_extrinsics(self, extrinsics: NDArray[Any]) -> NDArray[np.float64]:
        """Move world-to-camera matrices ``[..., 3, 4]`` to the new world.

        A moved camera sees a moved point at the same pixel, at ``scale`` times the depth.
        """
        camera_to_world = invert_pose(np.asarray(extrinsics, np.float64))
        centers = self.apply(camera_to_world[..., 3])
        return invert_pose(np.concatenate([self.rotation @ camera_to_world[..., :3], centers[..., None]], -1))


def align_similarity(
    source: NDArray[Any], target: NDArray[Any], weights: NDArray[Any] | None = None, *, with_scale: bool = True
) -> Similarity:
    """Find the similarity that brings one set of points closest to another, in the sense of (weighted) least squares.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
    The result is never a reflection; for mirrored points it is the best rotation.

    Args:
        source: ``[N, 3]``, at least three points that are not on one line.
        target: ``[N, 3]``, where they should come to lie, pair by pair.
        weights: ``[N]``, >= 0, or None for equal weights.
        with_scale: False fixes the scale at 1.

    Raises:
        ValueError: shapes differ, a value is not finite, a weight is negative, or the points (those with a weight) do
            not determine a rotation: fewer than three, all on one line, or all equal.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or source.shape[1] != 3 or source.shape != target.shape:
        raise ValueError(f"source and target must both be [N, 3], got {list(source.shape)} and {list(target.shape)}")
    weights = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != source.shape[:1] or not (weights >= 0).all():
        raise ValueError(f"weights must be [{len(source)}], one per point, and >= 0; got {list(weights.shape)}")
    if not all(np.isfinite(values).all() for values in (source, target, weights)):
        raise ValueError("source, target and weights must be finite; drop the pairs with NaN or infinite values")
    if np.count_nonzero(weights) < 3:
        raise ValueError(f"an alignment needs at least 3 points with a weight, got {np.count_nonzero(weights)}")

    weights = weights[:, None] / weights.sum()
    source_mean, target_mean = (weights * source).sum(0), (weights * target).sum(0)
    source_centered, target_centered = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd((weights * target_centered).T @ source_centered)
    if singular[1] <= _COLLINEAR * singular[0]:
        raise ValueError(
            f"the {len(source)} points lie on one line or all in one place, which leaves the rotation open; "
            "add points off the line"
        )
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * signs) @ vt
    scale = float((singular * signs).sum() / (weights * source_centered**2).sum()) if with_scale else 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def depth_edges(depth: NDArray[Any], rtol: float = 0.03) -> NDArray[np.bool_]:
    """Mark the pixels where the depth jumps: there the network's points float between the near and the far surface.

    Args:
        depth: ``[..., H, W]``, > 0, scene units. A NaN is no edge and makes none.
        rtol: a jump is a difference to one of the eight neighbours of more than this part of the smaller of the two.

    Returns:
        bool ``[..., H, W]``; both sides of a jump are marked.

    Raises:
        ValueError: depth has fewer than two axes.
    """
    if depth.ndim < 2:
        raise ValueError(f"depth must be [..., H, W], got {list(depth.shape)}")
    padded = np.pad(depth, [(0, 0)] * (depth.ndim - 2) + [(1, 1), (1, 1)], mode="edge")

    def over_window(pick: np.ufunc) -> NDArray[Any]:
        rows = pick(pick(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
        return pick(pick(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])

    factor = 1 + rtol
    return (over_window(np.fmax) > factor * depth) | (depth > factor * over_window(np.fmin))


def _namespace(array: Tensor | NDArray[Any]) -> Any:
    return torch if isinstance(array, Tensor) else np


def _arange(count: int, like: Array) -> Array:
    if isinstance(like, Tensor):
        return torch.arange(count, dtype=like.dtype, device=like.device)
    return np.arange(count, dtype=like.dtype)


def _transform(matrix: Array, vectors: Array) -> Array:
    """Multiply ``[..., 3, 3]`` with ``[..., 3]``, element by element (see the module's docstring)."""
    return matrix[..., 0] * vectors[..., 0:1] + matrix[..., 1] * vectors[..., 1:2] + matrix[..., 2] * vectors[..., 2:3]


def _pinhole(intrinsics: Array) -> tuple[Array, Array, Array, Array]:
    """Split ``[..., 3, 3]`` into fx, fy, cx, cy ``[...]``."""
    return intrinsics[..., 0, 0], intrinsics[..., 1, 1], intrinsics[..., 0, 2], intrinsics[..., 1, 2]


def _require_shape(name: str, array: Tensor | NDArray[Any], last: tuple[int, ...]) -> None:
    if tuple(array.shape[-len(last) :]) != last:
        raise ValueError(f"{name} must be [..., {', '.join(map(str, last))}], got {list(array.shape)}")
