"""Gather the predictions of a stream into one coloured point cloud, with filters that can change after the fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamvggt.geometry import Similarity, depth_edges, unproject
from streamvggt.types import ByteArray, Camera, FloatArray, FramePrediction, PointCloud, required

BoolArray = NDArray[np.bool_]

# Levels of an 8-bit image.
BLACK_BELOW = 16
WHITE_ABOVE = 240
SKY_BRIGHT_ABOVE = 170
SKY_SMOOTH_BELOW = 6
# Sky lies this many times farther than the median depth.
SKY_DEPTH_RATIO = 2.0


@dataclass(frozen=True)
class PointFilter:
    """Choose which points to keep: those that pass every filter, and of these at most ``max_points``.

    Points without a finite position or confidence are always dropped, and so are depths that are not positive.

    Attributes:
        conf_percentile: drop the points whose confidence is below this percentile, in percent, 0 <= p < 100. The
            percentile is that of all valid points of the scene, or of one frame in :meth:`Scene.frame_points`,
            before any other filter; points that tie with it stay.
        edge_rtol: drop pixels where the depth jumps by more than this part of it (0.03 is 3 %): there the network's
            points float between the near and the far surface. None keeps them.
        mask_black: drop pixels whose channels are all below 16 of 255 (a black background).
        mask_white: drop pixels whose channels are all above 240 of 255 (a white background).
        mask_sky: drop what looks like sky: farther than twice the median depth, bright or without texture, and
            connected to the top border of the image. A rule of thumb and no segmentation: it misses sky that branches
            cut off from the border, sky predicted near, and sky that fills half of the pixels or more; and it takes
            away a pale distant wall or mountain that reaches the border.
        max_points: keep at most this many, a uniform random subset that is the same in every call; None keeps all.
    """

    conf_percentile: float = 20.0
    edge_rtol: float | None = 0.03
    mask_black: bool = False
    mask_white: bool = False
    mask_sky: bool = False
    max_points: int | None = 1_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.conf_percentile < 100:
            raise ValueError(f"conf_percentile must be in [0, 100), got {self.conf_percentile}; 0 keeps every point")
        if self.edge_rtol is not None and not self.edge_rtol > 0:
            raise ValueError(f"edge_rtol must be positive, got {self.edge_rtol}; None keeps the depth edges")
        if self.max_points is not None and self.max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {self.max_points}; None keeps all points")


@dataclass(frozen=True, eq=False)
class _StoredFrame:
    """What the filters need of a prediction, in arrays of its own. ``world_points`` is None where depth gives them.

    ``move`` has been applied to all of it since it was added.
    """

    camera: Camera
    image: ByteArray
    depth: FloatArray
    conf: FloatArray
    world_points: FloatArray | None
    move: Similarity = Similarity.identity()  # noqa: RUF009 (frozen)

    @property
    def nbytes(self) -> int:
        arrays = (self.image, self.depth, self.conf, self.camera.extrinsics, self.camera.intrinsics)
        return sum(array.nbytes for array in arrays) + (0 if self.world_points is None else self.world_points.nbytes)

    def moved(self, move: Similarity) -> _StoredFrame:
        """The frame as if ``move`` and nothing else had been applied."""
        if all(np.array_equal(getattr(move, part.name), getattr(self.move, part.name)) for part in fields(move)):
            return self
        change = move.compose(self.move.inverse())
        extrinsics = change.apply_to_extrinsics(self.camera.extrinsics).astype(np.float32)
        points = None if self.world_points is None else change.apply(self.world_points).astype(np.float32)
        return replace(
            self,
            camera=replace(self.camera, extrinsics=extrinsics),
            depth=np.float32(change.scale) * self.depth,
            world_points=points,
            move=move,
        )

    def points(self) -> FloatArray:
        if self.world_points is not None:
            return self.world_points
        with np.errstate(invalid="ignore"):  # an infinite depth gives NaN, and is not valid
            return unproject(self.depth, self.camera.extrinsics, self.camera.intrinsics)

    def valid(self) -> BoolArray:
        if self.world_points is not None:
            return np.isfinite(self.conf) & np.isfinite(self.world_points).all(axis=-1)
        posed = np.isfinite(self.camera.extrinsics).all() and np.isfinite(self.camera.intrinsics).all()
        return np.isfinite(self.conf) & np.isfinite(self.depth) & (self.depth > 0) & posed


class Scene:
    """Accumulate the predictions of a stream and turn them into coloured points.

    The predictions are kept, not the points, so another filter costs no network: 11 bytes a pixel with depth geometry,
    23 with point maps. A prediction added is copied; it can be freed.

    Args:
        geometry: "depth" places a point by its depth and the camera of its frame (sharper), "points" takes the point
            map of the network, and needs it beside both.

    Raises:
        ValueError: ``geometry`` is neither.
    """

    def __init__(self, geometry: Literal["depth", "points"] = "depth") -> None:
        if geometry not in ("depth", "points"):
            raise ValueError(f"geometry must be 'depth' or 'points', got {geometry!r}")
        self.geometry = geometry
        self._frames: list[_StoredFrame] = []

    def add(self, prediction: FramePrediction) -> None:
        """Take in one more frame.

        Raises:
            ValueError: the image, depth and confidence differ in size, or the session was not asked for what it takes.
        """
        depth = np.array(required(prediction.depth, "depth"), dtype=np.float32)
        conf, world_points = prediction.depth_conf, None
        if self.geometry == "points":
            world_points = np.array(required(prediction.world_points, "points"), dtype=np.float32)
            conf = prediction.world_points_conf
        conf = np.array(required(conf, self.geometry), dtype=np.float32)
        sizes = {prediction.image_hw, depth.shape, conf.shape}
        if world_points is not None:
            sizes.add(world_points.shape[:-1])
        if len(sizes) > 1:
            raise ValueError(
                f"frame {prediction.index}: image, depth, points and confidence must share one height and width, "
                f"got {sorted(sizes)}"
            )
        self._frames.append(
            _StoredFrame(
                camera=prediction.camera,
                image=np.array(prediction.image, dtype=np.uint8),
                depth=depth,
                conf=conf,
                world_points=world_points,
            )
        )

    def correct(self, corrections: Sequence[Similarity]) -> None:
        """Move frames to where they belong by now; cameras, points and all that is exported follow.

        Args:
            corrections: for each frame number up to that of the newest frame, the transform from the world in which
                its prediction came (not from where an earlier call put it), as
                :meth:`streamvggt.LongSession.corrections` returns them.

        Raises:
            ValueError: there are fewer than that. Nothing is moved.
        """
        last = max((frame.camera.index for frame in self._frames), default=-1)
        if last >= len(corrections):
            raise ValueError(
                f"the scene goes up to frame {last} and needs {last + 1} corrections, got {len(corrections)}"
            )
        self._frames = [frame.moved(corrections[frame.camera.index]) for frame in self._frames]

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The camera of every frame, in the order in which the frames came."""
        return tuple(frame.camera for frame in self._frames)

    @property
    def num_frames(self) -> int:
        """Frames added so far."""
        return len(self._frames)

    @property
    def nbytes(self) -> int:
        """Bytes that the kept arrays take."""
        return sum(frame.nbytes for frame in self._frames)

    def frame(self, position: int) -> FramePrediction:
        """Return what is kept of a frame: image, depth, camera, and what places and weighs its points.

        Args:
            position: counted from 0 in the order in which the frames came; -1 is the newest.

        Raises:
            IndexError: there is no such frame.
        """
        kept = self._frame(position)
        camera, from_depth = kept.camera, kept.world_points is None
        return FramePrediction(
            index=camera.index,
            time_s=camera.time_s,
            image=kept.image,
            depth=kept.depth,
            depth_conf=kept.conf if from_depth else None,
            world_points=kept.world_points,
            world_points_conf=None if from_depth else kept.conf,
            extrinsics=camera.extrinsics,
            intrinsics=camera.intrinsics,
        )

    def point_cloud(self, point_filter: PointFilter = PointFilter()) -> PointCloud:
        """Return the points of all frames that pass the filter, ordered by frame, then row, then column.

        Returns:
            A cloud in the first camera's frame, OpenCV axes, scene units; it may have no points.
        """
        return _collect(self._frames, point_filter)

    def frame_points(self, position: int, point_filter: PointFilter = PointFilter()) -> PointCloud:
        """Return the points that one frame added, as if it were the whole scene: percentile and budget are its own.

        Args:
            position: which frame, counted from 0 in the order in which they came; -1 is the newest.
            point_filter: which points to keep.

        Returns:
            A cloud in the first camera's frame (not in this camera's), OpenCV axes, scene units.

        Raises:
            IndexError: there is no such frame.
        """
        return _collect([self._frame(position)], point_filter)

    def _frame(self, position: int) -> _StoredFrame:
        if not -self.num_frames <= position < self.num_frames:
            raise IndexError(f"the scene has {self.num_frames} frames, there is no frame {position}")
        return self._frames[position]


def _collect(frames: list[_StoredFrame], point_filter: PointFilter) -> PointCloud:
    picks = _within_budget(_kept_pixels(frames, point_filter), point_filter.max_points)
    # Empty first items give concatenate its types and widths when no frame, or no point, is there.
    points, colors = [np.empty((0, 3), np.float32)], [np.empty((0, 3), np.uint8)]
    confidence, frame_index = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    for frame, pixels in zip(frames, picks, strict=True):
        points.append(frame.points().reshape(-1, 3)[pixels])
        colors.append(frame.image.reshape(-1, 3)[pixels])
        confidence.append(frame.conf.reshape(-1)[pixels])
        frame_index.append(np.full(len(pixels), frame.camera.index, np.int32))
    return PointCloud(
        np.concatenate(points), np.concatenate(colors), np.concatenate(confidence), np.concatenate(frame_index)
    )


def _kept_pixels(frames: list[_StoredFrame], point_filter: PointFilter) -> list[NDArray[np.intp]]:
    """Flat numbers of the pixels of each frame that pass every filter but the budget, ascending."""
    valid = [frame.valid() for frame in frames]
    conf = np.concatenate([np.empty(0, np.float32), *(f.conf[v] for f, v in zip(frames, valid, strict=True))])
    threshold = np.percentile(conf, point_filter.conf_percentile) if conf.size else np.inf
    median_depth = _median_depth(frames) if point_filter.mask_sky else np.inf
    kept = []
    for frame, keep in zip(frames, valid, strict=True):
        keep &= frame.conf >= threshold
        if point_filter.edge_rtol is not None:
            keep &= ~depth_edges(frame.depth, point_filter.edge_rtol)
        if point_filter.mask_black:
            keep &= ~(frame.image < BLACK_BELOW).all(axis=-1)
        if point_filter.mask_white:
            keep &= ~(frame.image > WHITE_ABOVE).all(axis=-1)
        if point_filter.mask_sky:
            keep &= ~_sky(frame.image, frame.depth, median_depth)
        kept.append(np.flatnonzero(keep))
    return kept


def _within_budget(pixels: list[NDArray[np.intp]], max_points: int | None) -> list[NDArray[np.intp]]:
    """Draw a uniform subset of ``max_points`` pixels over all frames; a seed makes it the same every time."""
    counts = [len(frame) for frame in pixels]
    if max_points is None or sum(counts) <= max_points:
        return pixels
    rng = np.random.default_rng(0)
    # How many each frame would get of one draw over the whole scene; so no array is as long as the scene.
    shares = rng.multivariate_hypergeometric(counts, max_points)
    return [
        np.sort(rng.choice(frame, share, replace=False, shuffle=False))
        for frame, share in zip(pixels, shares, strict=True)
    ]


def _median_depth(frames: list[_StoredFrame]) -> float:
    # The median of medians: the depths of a long stream need not be in one array for a rule of thumb.
    medians = [np.median(seen) for frame in frames if (seen := frame.depth[np.isfinite(frame.depth)]).size]
    return float(np.median(medians)) if medians else np.inf


def _sky(image: ByteArray, depth: FloatArray, median_depth: float) -> BoolArray:
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    # Each pixel against the one above and the one to its left.
    step_y = np.abs(np.diff(luma, axis=0, prepend=luma[:1]))
    step_x = np.abs(np.diff(luma, axis=1, prepend=luma[:, :1]))
    smooth = np.maximum(step_y, step_x) < SKY_SMOOTH_BELOW
    far = depth > SKY_DEPTH_RATIO * median_depth
    return _connected_to_top(far & (smooth | (luma > SKY_BRIGHT_ABOVE)))


def _connected_to_top(mask: BoolArray) -> BoolArray:
    """Flood ``mask`` from its first row over shared sides: whole columns and rows at a time, until nothing changes."""
    reached = np.zeros_like(mask)
    reached[0] = mask[0]
    while True:
        spread = _fill_runs(_fill_runs(reached.T, mask.T).T, mask)
        if spread.sum() == reached.sum():
            return spread
        reached = spread


def _fill_runs(reached: BoolArray, mask: BoolArray) -> BoolArray:
    """Fill each unbroken run of a row of ``mask`` that has a reached pixel."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    run = np.cumsum(starts).reshape(mask.shape)
    hit = np.zeros(run[-1, -1] + 1, dtype=bool)
    hit[run[reached]] = True
    return mask & hit[run]
