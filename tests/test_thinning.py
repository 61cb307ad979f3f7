"""The thinning against a dictionary of cells, and against clouds whose cells are counted by hand."""

import math

import numpy as np
import pytest

from streamvggt.thinning import VoxelThinning
from streamvggt.types import Camera, PointCloud


def cloud_of(points):
    points = np.array(points, np.float32).reshape(-1, 3)
    count = len(points)
    numbers = np.arange(count)
    colors = np.stack([numbers % 256] * 3, axis=1).astype(np.uint8)
    return PointCloud(points, colors, np.ones(count, np.float32), numbers.astype(np.int32))


def camera_at(center=(0, 0, 0)):
    extrinsics = np.column_stack([np.eye(3), -np.array(center)]).astype(np.float32)
    return Camera(0, 0.0, extrinsics, np.eye(3, dtype=np.float32), (1, 1))


def kept(thinning, points, center=(0, 0, 0)):
    """Numbers of the points that were new."""
    return thinning.new_points(cloud_of(points), camera_at(center)).frame_index.tolist()


class NaiveThinning:
    """One set of cells, one point at a time, as the docstring says it."""

    def __init__(self, cell):
        self.cell, self.distance, self.taken = cell, None, set()

    def new_points(self, points, center):
        distances = [math.dist(point, center) for point in points]
        self.distance = self.distance or float(np.median(distances))
        cells, new = [], []
        for number, (point, distance) in enumerate(zip(points, distances, strict=True)):
            level = min(7, max(0, math.floor(math.log2(distance / self.distance))))
            around = [
                (size, *(math.floor(x / (self.cell * self.distance * 2**size)) for x in point))
                for size in range(level, 8)
            ]
            if around[0] not in self.taken and around[0] not in {cell[0] for cell in cells}:
                new.append(number)
            cells.append(around)
        self.taken |= {cell for around in cells for cell in around}
        return new


def test_it_keeps_what_a_naive_set_of_cells_keeps():
    rng = np.random.default_rng(0)
    thinning, naive = VoxelThinning(0.1), NaiveThinning(0.1)
    counts = []
    for center in ([0, 0, 0], [1, 0, -2], [1, 0, -2], [-5, 3, 40], [0, 0, 0.5]):
        points = rng.normal(size=(600, 3)) * [3, 3, 10] + [0, 0, 4]
        points = points.astype(np.float32).astype(np.float64)
        new = kept(thinning, points, center)
        assert new == naive.new_points(points.tolist(), center)
        counts.append(len(new))
    assert 0 < min(counts) < max(counts) < 600


def test_one_point_stays_per_cell_and_it_is_the_first():
    # The median distance is 2, so cells of 0.5 are 1 wide.
    points = [[2.1, 0.1, 0.1], [2.9, 0.9, 0.9], [1.5, 0.1, 0.1], [2.1, 0.1, -0.1], [1.2, 0.2, 0.2]]
    points = [*points, [0.5, 0, 2.05]]
    distances = sorted(math.dist(point, (0, 0, 0)) for point in points)
    middle = (distances[2] + distances[3]) / 2
    assert 2.05 < middle < 2.15
    thinning = VoxelThinning(1 / middle)
    assert kept(thinning, points) == [0, 2, 3, 5]
    assert kept(thinning, points) == []
    assert kept(thinning, [[1.9, 0.9, 0.9], [3.1, 0.1, 0.1]]) == [1]


def test_dense_keeps_the_whole_of_a_new_cell_for_the_first_frame_that_sees_it():
    rng = np.random.default_rng(0)
    thinning, naive = VoxelThinning(0.2, dense=True), NaiveThinning(0.2)
    for center in ([0, 0, 0], [1, 0, -2], [0, 0, 0.5]):
        points = rng.normal([0, 0, 4], size=(400, 3)).astype(np.float32).astype(np.float64)
        known = set(naive.taken)
        naive.new_points(points.tolist(), center)
        expected = []
        for number, point in enumerate(points):
            level = min(7, max(0, math.floor(math.log2(math.dist(point, center) / naive.distance))))
            size = 0.2 * naive.distance * 2**level
            if (level, *(math.floor(x / size) for x in point)) not in known:
                expected.append(number)
        assert kept(thinning, points, center) == expected
        assert len(expected) == 400 if not known else 0 < len(expected) < 400


def test_a_far_look_adds_nothing_to_a_place_known_from_near_and_a_near_look_adds_detail():
    wall = [[x / 10 + 0.05, 0.05, 1.05] for x in range(10)]
    near = (0.5, 0, 0)
    thinning = VoxelThinning(0.05)  # cells of some 0.05: every point of the wall has its own
    assert len(kept(thinning, wall, near)) == 10
    assert kept(thinning, wall, (0.5, 0, -20)) == []

    other = [[x + 100, y, z] for x, y, z in wall]
    # From 17 times as far a cell is 16 times as wide.
    few = len(kept(thinning, other, (100.5, 0, -17)))
    assert 1 <= few <= 3
    assert len(kept(thinning, other, (100.5, 0, 0))) == 10


def test_the_first_frame_with_points_is_the_measure():
    small, large = VoxelThinning(0.01), VoxelThinning(0.01)
    assert kept(small, []) == []
    rng = np.random.default_rng(0)
    points = rng.uniform(1, 2, (500, 3))
    first = kept(small, points)
    assert first == kept(large, 1024 * points)  # a power of two changes no rounding
    assert len(first) < 500


def test_memory_is_bounded_and_what_is_in_view_is_not_forgotten():
    thinning = VoxelThinning(0.01, max_cells=4000)
    rng = np.random.default_rng(0)

    def stop_at(x):
        return rng.uniform([x - 1, -1, 1], [x + 1, 1, 3], (300, 3))

    here = stop_at(0)
    assert len(kept(thinning, here)) > 200
    for step in range(1, 40):
        there = stop_at(10 * step)
        assert len(kept(thinning, there, (10 * step, 0, 0))) > 200
        assert kept(thinning, here) == []
        assert thinning.nbytes <= 8 * 4000
    first_stop = stop_at(10)
    assert len(kept(thinning, first_stop, (10, 0, 0))) > 200  # forgotten long ago


def test_more_cells_than_it_may_hold_are_cut():
    thinning = VoxelThinning(0.01, max_cells=100)
    assert len(kept(thinning, np.random.default_rng(0).uniform(1, 2, (1000, 3)))) > 900
    assert thinning.nbytes <= 800


def test_wrong_arguments_are_named():
    for cell in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="cell must be a positive part"):
            VoxelThinning(cell)
    with pytest.raises(ValueError, match="max_cells must be at least 2, got 1"):
        VoxelThinning(max_cells=1)
    with pytest.raises(ValueError, match="frame 0 has points or a camera that are not finite"):
        kept(VoxelThinning(), [[0, 0, math.nan]])
