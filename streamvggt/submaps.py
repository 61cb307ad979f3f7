"""Sub-maps of a long stream: what is kept of one, and how one is laid on another by the frames that both saw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Similarity, align_similarity, invert_pose, project, unproject
from .types import ByteArray, FloatArray, FramePrediction, required

Float64 = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

_POINTS_A_FRAME = 1000  # about; more make no better alignment
_CENTRE_SHARE = 0.1  # weight of the camera centres, of that of all pixels
_L1_ROUNDS, _TUKEY_ROUNDS = 15, 10
_TUKEY = 4.685  # deviations beyond which a pair counts for nothing
_INLIER = 0.1  # of the depth
_JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class View:
    """What an alignment needs of a frame: its camera and a coarse grid of its depth.

    Attributes:
        extrinsics: ``[3, 4]``, from the world of its sub-map.
        intrinsics: ``[3, 3]``, pixels of the grid.
        depth: ``[h, w]``, z in the camera, units of the sub-map.
        conf: ``[h, w]``, >= 1.
    """

    extrinsics: FloatArray
    intrinsics: FloatArray
    depth: FloatArray
    conf: FloatArray

    @classmethod
    def of(cls, prediction: FramePrediction) -> View:
        """Thin out a prediction."""
        depth = required(prediction.depth, "depth")
        start, stride = _grid(depth.shape)
        # Grid position i lies at pixel start + stride * i.
        intrinsics = np.array(required(prediction.intrinsics, "camera"), np.float32)
        intrinsics[:2, 2] -= start
        intrinsics[:2] /= stride
        return cls(
            extrinsics=np.array(required(prediction.extrinsics, "camera"), np.float32),
            intrinsics=intrinsics,
            depth=depth[start::stride, start::stride].copy(),
            conf=required(prediction.depth_conf, "depth")[start::stride, start::stride].copy(),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return self.extrinsics.nbytes + self.intrinsics.nbytes + self.depth.nbytes + self.conf.nbytes

    def focal_px(self, image_hw: tuple[int, int]) -> float:
        """Focal length in pixels of the image."""
        return float(self.intrinsics[0, 0]) * _grid(image_hw)[1]

    def depth_near(self, xy: Float64, image_hw: tuple[int, int]) -> FloatArray:
        """Depth at the point of the grid that is nearest to each pixel ``[N, 2]`` of the image, ``[N]``."""
        start, stride = _grid(image_hw)
        column, row = np.rint((xy - start) / stride).astype(int).T
        height, width = self.depth.shape
        return self.depth[row.clip(0, height - 1), column.clip(0, width - 1)]

    def points(self) -> Float64:
        """``[h * w, 3]``, in the world of the sub-map."""
        parts = (np.asarray(part, np.float64) for part in (self.depth, self.extrinsics, self.intrinsics))
        with np.errstate(invalid="ignore"):  # an infinite depth gives NaN
            return unproject(*parts).reshape(-1, 3)

    def centre(self) -> Float64:
        """``[3]``, in the world of the sub-map."""
        return invert_pose(np.asarray(self.extrinsics, np.float64))[:, 3]


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame by which its sub-map is found again.

    Attributes:
        index: number of the frame in the stream.
        jpeg: the processed image.
        descriptor: ``[C]``, see :meth:`streamvggt.StreamVGGT.describe`.
        view: its camera and depth in the sub-map.
        patches: ``[N, D]`` float16, by which its patches are found again; None where cameras are not refined.
    """

    index: int
    jpeg: bytes
    descriptor: FloatArray
    view: View
    patches: NDArray[np.float16] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        patches = 0 if self.patches is None else self.patches.nbytes
        return len(self.jpeg) + self.descriptor.nbytes + self.view.nbytes + patches

    def image(self) -> ByteArray:
        """Decode the processed image, RGB, uint8 ``[H, W, 3]``."""
        from PIL import Image

        with Image.open(io.BytesIO(self.jpeg)) as picture:
            return np.asarray(picture.convert("RGB"))


def pack_views(views: Sequence[View]) -> Arrays:
    """Stack the arrays of views of one size, by name."""
    return {part.name: np.stack([getattr(view, part.name) for view in views]) for part in fields(View) if views}


def unpack_views(arrays: Mapping[str, NDArray[Any]], count: int) -> list[View]:
    """Return the views that :func:`pack_views` stacked."""
    return [View(**{part.name: arrays[part.name][i] for part in fields(View)}) for i in range(count)]


def pack_keyframes(keyframes: Sequence[Keyframe]) -> Arrays:
    """Stack what keyframes hold, by name; their images lie one after the other."""
    if not keyframes:
        return {}
    patches = [keyframe.patches for keyframe in keyframes if keyframe.patches is not None]
    return (
        pack_views([keyframe.view for keyframe in keyframes])
        | ({"patches": np.stack(patches)} if patches else {})
        | {
            "index": np.array([keyframe.index for keyframe in keyframes]),
            "descriptor": np.stack([keyframe.descriptor for keyframe in keyframes]),
            "jpeg": np.frombuffer(bytearray().join(keyframe.jpeg for keyframe in keyframes), np.uint8),
            "jpeg_end": np.cumsum([len(keyframe.jpeg) for keyframe in keyframes]),
        }
    )


def unpack_keyframes(arrays: Mapping[str, NDArray[Any]], count: int) -> list[Keyframe]:
    """Return the keyframes that :func:`pack_keyframes` stacked."""
    views, start, keyframes, patches = unpack_views(arrays, count), 0, [], arrays.get("patches")
    for i, view in enumerate(views):
        end = int(arrays["jpeg_end"][i])
        jpeg = arrays["jpeg"][start:end].tobytes()
        descriptors = arrays["descriptor"][i], None if patches is None else patches[i]
        keyframes.append(Keyframe(int(arrays["index"][i]), jpeg, descriptors[0], view, descriptors[1]))
        start = end
    return keyframes


def jpeg_of(image: ByteArray) -> bytes:
    """Compress an image so that the network hardly sees a difference."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


@dataclass(eq=False)
class SubMap:
    """A stretch of the stream with a world of its own, which is its first frame's camera.

    Attributes:
        start: number of its first frame in the stream.
        given_from: number of the first frame whose prediction came from it; those before it came from its predecessor.
        chained: from its world to that of the stream, by the overlaps alone.
        emitted: the same, as its predictions were given out.
        placed: the same, by all that is known now.
        keyframes: by which it is found again.
    """

    start: int
    given_from: int
    chained: Similarity
    emitted: Similarity
    placed: Similarity
    keyframes: list[Keyframe] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Alignment:
    """How one sub-map lies in another.

    Attributes:
        transform: from the source's world to the target's.
        inliers: share of the points, by weight, that come to lie within a tenth of their depth.
    """

    transform: Similarity
    inliers: float


def align_robustly(source: Float64, target: Float64, weights: Float64, spread: Float64) -> Similarity:
    """Find the similarity that most pairs of points agree on, whatever the others say.

    It begins with least absolute distances, which a third of outliers hardly moves, and ends with Tukey's biweight, for
    which they are not there; both by reweighted least squares (:func:`streamvggt.align_similarity`).

    Args:
        source, target: ``[N, 3]``, pair by pair.
        weights: ``[N]``, >= 0.
        spread: ``[N]``, > 0: how large errors are expected to be, up to a common factor.

    Raises:
        ValueError: as for :func:`streamvggt.align_similarity`.
    """
    transform = align_similarity(source, target, weights / spread**2)
    for turn in range(_L1_ROUNDS + _TUKEY_ROUNDS):
        error = np.linalg.norm(target - transform.apply(source), axis=1) / spread
        middle = max(_weighted_median(error, weights), 1e-9)
        if turn < _L1_ROUNDS:
            trust = 1 / np.maximum(error, 0.01 * middle)
        else:
            # The median length of a Gaussian error in three dimensions is 1.54 deviations.
            trust = np.clip(1 - (error / (_TUKEY * middle / 1.54)) ** 2, 0, None) ** 2
        transform = align_similarity(source, target, weights * trust / spread**2)
    return transform


def align_views(source: Sequence[View], target: Sequence[View]) -> Alignment:
    """Lay one sub-map on another by frames that both saw: their pixels are the same points, by depth and camera.

    Pixels count by both confidences and by their depth, for depths err in proportion; camera centres count for a tenth.
    What is not finite counts for nothing.

    Args:
        source: the frames as one sub-map has them.
        target: the same frames as the other has them.

    Raises:
        ValueError: the frames do not pair, or hold too few finite points.
    """
    if len(source) != len(target) or not source:
        raise ValueError(f"an alignment needs the same frames of both sub-maps, got {len(source)} and {len(target)}")
    pairs = list(zip(source, target, strict=True))
    points = np.concatenate([np.stack([a.points(), b.points()]) for a, b in pairs], axis=1)
    depth = np.concatenate([b.depth.ravel() for _, b in pairs]).astype(np.float64)
    certain = np.concatenate([((1 - 1 / a.conf) * (1 - 1 / b.conf)).ravel() for a, b in pairs]).astype(np.float64)
    good = np.isfinite(points).all(axis=(0, 2)) & np.isfinite(certain) & (depth > 0)
    points, depth, weights = points[:, good], depth[good], np.sqrt(certain[good]) + 1e-3

    centres = np.stack([[a.centre(), b.centre()] for a, b in pairs], axis=1)
    centres = centres[:, np.isfinite(centres).all(axis=(0, 2))]
    usual = np.full(centres.shape[1], np.median(depth) if len(depth) else 1.0)
    share = np.full(centres.shape[1], _CENTRE_SHARE * weights.sum() / len(pairs))
    moved, fixed = np.concatenate([points, centres], axis=1)
    transform = align_robustly(moved, fixed, np.concatenate([weights, share]), np.concatenate([depth, usual]))
    error = np.linalg.norm(points[1] - transform.apply(points[0]), axis=1)
    return Alignment(transform, float(weights[error < _INLIER * depth].sum() / weights.sum()))


def camera_pose(extrinsics: NDArray[np.floating[Any]], scale: float = 1.0) -> Similarity:
    """From a camera, in ``scale`` units of the world each of its own, to the world."""
    camera_to_world = invert_pose(np.asarray(extrinsics, np.float64))
    return Similarity(scale, camera_to_world[:, :3], camera_to_world[:, 3])


def seen_again(view: View, other: View, tolerance: float = 0.15) -> float:
    """Share of a view's points that another view of the same world shows where they are.

    Args:
        view, other: with cameras in one world.
        tolerance: a point is shown if its depth is that of the other's grid there, within this part of it.
    """
    points = view.points()
    camera = (np.asarray(other.extrinsics, np.float64), np.asarray(other.intrinsics, np.float64))
    xy, depth = project(points, *camera)
    height, width = other.depth.shape
    # A point far off the image may be too large for an integer.
    column, row = np.rint(np.clip(np.nan_to_num(xy, nan=-1), -1, max(height, width))).astype(int).T
    inside = (depth > 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    there = other.depth[row[inside], column[inside]]
    return float((np.abs(depth[inside] - there) < tolerance * there).sum() / len(points))


def _grid(image_hw: tuple[int, ...]) -> tuple[int, int]:
    """Where the grid of a view begins, and its step, pixels."""
    stride = max(1, round((image_hw[0] * image_hw[1] / _POINTS_A_FRAME) ** 0.5))
    return stride // 2, stride


def _weighted_median(values: Float64, weights: Float64) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])
