"""Tell which points of a frame are new to a scene, so that a place that is looked at for long is drawn once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamvggt.geometry import invert_pose
from streamvggt.types import PointCloud, PosedCamera

Keys = NDArray[np.int64]

# A key is the level of a cell, 3 bits, and its place along three axes, 20 bits each at level 0 and one fewer at each
# level up: a cell is its parent's place twice, plus one bit. Places wrap around after a million of the smallest cells.
_AXIS_BITS, _LEVEL_SHIFT, _MAX_LEVEL = 20, 60, 7
_ALL_AXES_WITHOUT_TOP_BIT = sum(((1 << (_AXIS_BITS - 1)) - 1) << (axis * _AXIS_BITS) for axis in range(3))


class VoxelThinning:
    """Keep the points of a frame that lie in new cells of a grid over the whole stream, one a cell or all of them.

    Cells grow with the distance to the camera, in octaves: twice the size from twice the distance on, since a pixel
    sees twice as wide there. A cell that is taken takes the larger ones around it along: a far look at a place that is
    known from near brings nothing new, a near look at a place known from afar brings the detail.

    Memory is bounded: 8 bytes a cell, for at most ``max_cells`` cells. Beyond, those that no frame has hit for longest
    are forgotten, up to half of them at a time; what comes into view there again counts as new.

    Args:
        cell: side of the smallest cells as a part of the median distance of the first frame's points to their camera,
            > 0 (the unit of length is relative, so the scene itself is the measure). Cells grow from that distance on.
        dense: keep all points of a new cell, and so leave a place to the first frame that sees it, in full detail. With
            cells larger than the errors of poses and depths, such as 0.05, surfaces show once that would else show
            as several shifted copies. Otherwise the first point of a cell stays, which limits the density.
        max_cells: cells to remember, >= 2.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, cell: float = 0.005, *, dense: bool = False, max_cells: int = 4_000_000) -> None:
        if not 0 < cell < math.inf:
            raise ValueError(f"cell must be a positive part of the first frame's median distance, got {cell}")
        if max_cells < 2:
            raise ValueError(f"max_cells must be at least 2, got {max_cells}")
        self._cell = cell
        self._dense = dense
        self._generation_size = max_cells // 2
        self._distance: float | None = None
        # Sorted, without repeats. What is hit enters the young generation; once that is full it becomes the old one.
        self._young: Keys = np.empty(0, np.int64)
        self._old: Keys = np.empty(0, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that the remembered cells take."""
        return self._young.nbytes + self._old.nbytes

    def new_points(self, cloud: PointCloud, camera: PosedCamera) -> PointCloud:
        """Take in one frame's points and return those in new cells, in their order.

        Args:
            cloud: points that one frame saw, in the first camera's frame.
            camera: that frame's camera; the distance to it sizes the cells.

        Raises:
            ValueError: a point or the camera is not finite.
        """
        points = np.asarray(cloud.points, np.float64)
        center = invert_pose(np.asarray(camera.extrinsics, np.float64))[:, 3]
        if not (np.isfinite(points).all() and np.isfinite(center).all()):
            raise ValueError(f"frame {camera.index} has points or a camera that are not finite; drop them first")
        if not len(cloud):
            return cloud
        distance = np.linalg.norm(points - center, axis=-1)
        if self._distance is None:
            self._distance = float(np.median(distance)) or 1.0
        octave = np.log2(np.maximum(distance / self._distance, 1)).astype(np.int64)
        all_keys = _cell_keys(points / (self._cell * self._distance), np.minimum(octave, _MAX_LEVEL))
        keys, first, cell_of_point = np.unique(all_keys, return_index=True, return_inverse=True)
        is_new = ~(_contains(self._young, keys) | _contains(self._old, keys))
        new = np.flatnonzero(is_new[cell_of_point]) if self._dense else np.sort(first[is_new])
        self._young = _merged(self._young, _with_larger_cells(keys))
        if len(self._young) > self._generation_size:
            self._old, self._young = self._young[: self._generation_size], self._young[:0].copy()
        return cloud.select(new)


def _cell_keys(points: NDArray[np.float64], level: Keys) -> Keys:
    """Keys of the cells around points that are given in sides of the smallest cells."""
    places = np.floor(points).astype(np.int64) >> level[:, None] & (1 << _AXIS_BITS - level[:, None]) - 1
    x, y, z = places.T
    return level << _LEVEL_SHIFT | x << 2 * _AXIS_BITS | y << _AXIS_BITS | z


def _with_larger_cells(keys: Keys) -> Keys:
    """Add to sorted keys those of all the larger cells that contain theirs; sorted, without repeats."""
    sizes = [keys]
    for _ in range(_MAX_LEVEL):
        level = (keys >> _LEVEL_SHIFT) + 1
        keys = np.unique((level << _LEVEL_SHIFT | keys >> 1 & _ALL_AXES_WITHOUT_TOP_BIT)[level <= _MAX_LEVEL])
        sizes.append(keys)
    return np.unique(np.concatenate(sizes))


def _contains(table: Keys, keys: Keys) -> NDArray[np.bool_]:
    if not len(table):
        return np.zeros(len(keys), bool)
    return table[np.searchsorted(table, keys).clip(max=len(table) - 1)] == keys


def _merged(table: Keys, keys: Keys) -> Keys:
    """Both tables are sorted and without repeats, and so is the result."""
    fresh = keys[~_contains(table, keys)]
    return np.insert(table, np.searchsorted(table, fresh), fresh)
