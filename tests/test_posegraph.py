"""Pose graphs: against sums done by hand, a known optimum, and SciPy's dense solver on the same cost."""

import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from streamvggt.geometry import Similarity
from streamvggt.posegraph import Edge, optimise_pose_graph, strain


def random_similarity(rng, size=1.0):
    return Similarity(
        float(np.exp(size * rng.normal(0, 0.3))),
        Rotation.from_rotvec(size * rng.normal(0, 0.5, 3)).as_matrix(),
        size * rng.normal(0, 1, 3),
    )


def shift(x, scale=1.0):
    return Similarity(scale, np.eye(3), np.array([x, 0.0, 0.0]))


def turn(angle):
    return Similarity(1.0, Rotation.from_rotvec([0, 0, angle]).as_matrix(), np.zeros(3))


def assert_close(got, want, atol):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.scale, b.scale, atol=atol)
        np.testing.assert_allclose(a.rotation, b.rotation, atol=atol)
        np.testing.assert_allclose(a.translation, b.translation, atol=atol)


def test_an_error_of_rotation_is_shared_by_the_edges_of_a_loop():
    # Three turns of 0.5 and one that says 1.42 from first to last: the gap of 0.08 goes to four edges alike, 0.02 each.
    edges = [Edge(i, i + 1, turn(0.5)) for i in range(3)] + [Edge(0, 3, turn(1.42))]
    got = optimise_pose_graph([turn(0.5 * i) for i in range(4)], edges)
    assert_close(got, [turn(0), turn(0.48), turn(0.96), turn(1.44)], atol=1e-6)


def test_a_weight_of_three_takes_a_ninth_of_the_gap():
    # Weights multiply residuals: the sum of 1 a^2 + 9 b^2 with a + b = 0.1 is least at a = 0.09, b = 0.01.
    got = optimise_pose_graph([shift(0), shift(1)], [Edge(0, 1, shift(1)), Edge(0, 1, shift(1.1), weight=3)])
    assert_close(got, [shift(0), shift(1.09)], atol=1e-6)


def test_an_error_of_scale_is_shared_in_its_logarithm():
    edges = [Edge(i, i + 1, shift(0)) for i in range(3)] + [Edge(0, 3, shift(0, scale=np.exp(0.08)))]
    got = optimise_pose_graph([shift(0)] * 4, edges)
    assert_close(got, [shift(0, np.exp(0.02 * i)) for i in range(4)], atol=1e-6)


def test_edges_that_all_agree_bring_every_pose_to_its_place():
    rng = np.random.default_rng(0)
    truth = [random_similarity(rng, 2.0) for _ in range(12)]
    pairs = [(i, i + 1) for i in range(11)] + [(0, 11), (2, 9), (7, 4)]
    edges = [Edge(i, j, truth[i].inverse().compose(truth[j])) for i, j in pairs]
    start = [truth[0], *(pose.compose(random_similarity(rng, 0.5)) for pose in truth[1:])]
    assert_close(optimise_pose_graph(start, edges), truth, atol=1e-4)


def test_noise_ends_where_a_dense_solver_ends():
    """The same cost in plain loops over single transforms, without sparsity, from the truth."""
    from scipy.optimize import least_squares

    rng = np.random.default_rng(1)
    truth = [Similarity.identity(), *(random_similarity(rng) for _ in range(4))]
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (1, 3)]
    edges = [
        Edge(i, j, truth[i].inverse().compose(truth[j]).compose(random_similarity(rng, 0.03)), 1 + i) for i, j in pairs
    ]

    def pose(numbers):
        return Similarity(float(np.exp(numbers[0])), Rotation.from_rotvec(numbers[1:4]).as_matrix(), numbers[4:])

    def cost(x):
        poses = [Similarity.identity(), *(pose(row) for row in x.reshape(-1, 7))]
        rows = []
        for edge in edges:
            error = edge.transform.inverse().compose(poses[edge.first].inverse().compose(poses[edge.second]))
            turned = Rotation.from_matrix(error.rotation).as_rotvec()
            rows.append(edge.weight * np.concatenate([[np.log(error.scale)], turned, error.translation]))
        return np.concatenate(rows)

    x0 = [[np.log(p.scale), *Rotation.from_matrix(p.rotation).as_rotvec(), *p.translation] for p in truth[1:]]
    want = least_squares(cost, np.ravel(x0), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    got = optimise_pose_graph([truth[0], *(p.compose(random_similarity(rng, 0.1)) for p in truth[1:])], edges)
    assert_close(got, [Similarity.identity(), *(pose(row) for row in want.x.reshape(-1, 7))], atol=1e-4)


def test_strain_tells_an_edge_that_does_not_fit():
    poses = [shift(0), shift(1), shift(2)]
    edges = [Edge(0, 1, shift(1)), Edge(1, 2, shift(1.25)), Edge(0, 2, turn(0.5), weight=3)]
    want = [0, 0.25, np.hypot(0.5, 2)]
    np.testing.assert_allclose(strain(poses, edges), want, atol=1e-12)


def test_a_long_loop_closes():
    """200 sub-maps on a circle, each a little too small and turned too far: the last meets the first again."""
    n = 200
    pace = Similarity(1.0, Rotation.from_rotvec([0, 2 * np.pi / n, 0]).as_matrix(), np.array([0.0, 0.0, 1.0]))
    drift = Similarity(0.998, Rotation.from_rotvec([0.001, 0.002, 0]).as_matrix(), np.zeros(3))
    poses = [Similarity.identity()]
    for _ in range(n):
        poses.append(poses[-1].compose(pace.compose(drift)))
    edges = [Edge(i, i + 1, pace.compose(drift)) for i in range(n)] + [Edge(0, n, Similarity.identity())]
    assert np.linalg.norm(poses[-1].translation) > 0.05 * n
    got = optimise_pose_graph(poses, edges)
    assert np.linalg.norm(got[-1].translation) < 0.005 * n
    assert abs(np.log(got[-1].scale)) < 0.01
    radii = np.linalg.norm([pose.translation - np.array([n / (2 * np.pi), 0, 0]) for pose in got], axis=1)
    np.testing.assert_allclose(radii, n / (2 * np.pi), rtol=0.15)


def test_edges_that_fit_no_graph_are_refused():
    for edge in (Edge(0, 2, shift(0)), Edge(1, 1, shift(0)), Edge(-1, 1, shift(0)), Edge(0, 1, shift(0), weight=0)):
        with pytest.raises(ValueError, match="sub-maps 0 to 1"):
            optimise_pose_graph([shift(0), shift(1)], [edge])


def test_without_scipy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"streamvggt\[long\]"):
        optimise_pose_graph([shift(0), shift(1)], [Edge(0, 1, shift(1))])
