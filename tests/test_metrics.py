"""Measures against hand calculation, naive loops, exact optimisers and evo."""

import dataclasses
import math

import numpy as np
import pytest
from evo.core import metrics as evo_metrics
from evo.core.trajectory import PosePath3D
from scipy.optimize import linprog, minimize
from scipy.spatial.transform import Rotation

from streamvggt.geometry import Similarity, unproject
from streamvggt.metrics import (
    constant_depth,
    constant_velocity_camera,
    depth_metrics,
    fit_depth,
    mean_depth_template,
    point_map_normals,
    point_metrics,
    relative_pose_errors,
    relative_pose_metrics,
    static_camera,
    track_metrics,
    trajectory_metrics,
)


def poses_from(rotations, centers):
    """World-to-camera [S, 3, 4] from camera-to-world rotations and camera centres."""
    world_to_camera = np.asarray(rotations).swapaxes(-1, -2)
    return np.concatenate([world_to_camera, -world_to_camera @ np.asarray(centers, float)[..., None]], -1)


def random_path(seed, num_frames=20):
    rng = np.random.default_rng(seed)
    rotations = Rotation.from_rotvec(np.cumsum(0.2 * rng.standard_normal((num_frames, 3)), 0)).as_matrix()
    return poses_from(rotations, np.cumsum(rng.standard_normal((num_frames, 3)), 0))


def shaken(path, seed, angle=0.1, distance=0.3):
    """The same path with noise in every pose, in another world."""
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(angle * rng.standard_normal((len(path), 3))).as_matrix()
    shifted = path[..., 3:] + distance * rng.standard_normal((len(path), 3, 1))
    noisy = np.concatenate([turns @ path[..., :3], shifted], -1)
    move = Similarity(0.3, Rotation.from_rotvec([1, 2, -1]).as_matrix(), np.array([5, -4, 3]))
    return move.apply_to_extrinsics(noisy)


def as_evo(path):
    bottom = np.tile([[[0, 0, 0, 1]]], (len(path), 1, 1))
    return PosePath3D(poses_se3=list(np.linalg.inv(np.concatenate([path, bottom], 1))))


def straight_path(num_frames, step=(1.0, 0.0, 0.0)):
    return poses_from(np.tile(np.eye(3), (num_frames, 1, 1)), np.arange(num_frames)[:, None] * np.array(step))


# Depth


def test_depth_errors_match_hand_calculation():
    result = depth_metrics(np.array([[1.0, 2.6, 3.0]]), np.array([[1.0, 2.0, 4.0]]), align="none")
    assert result.abs_rel == pytest.approx((0 + 0.3 + 0.25) / 3)
    assert result.delta_1_25 == pytest.approx(1 / 3)  # 2.6 / 2 and 4 / 3 are both too far, in either direction
    assert result.rmse == pytest.approx(math.sqrt((0 + 0.36 + 1) / 3))
    assert result.num_pixels == 3


def test_a_ratio_of_exactly_1_25_is_a_miss():
    assert depth_metrics(np.array([[1.25, 1.0]]), np.array([[1.0, 1.25]]), align="none").delta_1_25 == 0


def test_the_median_alignment_is_the_ratio_of_medians():
    assert fit_depth(np.array([1.0, 2.0, 9.0]), np.array([3.0, 6.0, 7.0]), "median") == (3.0, 0.0)


def test_the_scale_has_the_least_absolute_error():
    rng = np.random.default_rng(0)
    prediction = rng.uniform(0.5, 3, 301)
    truth = 2.5 * prediction + rng.laplace(0, 0.5, 301) + 2
    scale, shift = fit_depth(prediction, truth, "scale")
    # The minimum of a sum of |s p - t| lies at one of its corners s = t / p: try them all.
    corners = truth / prediction
    errors = np.abs(corners[:, None] * prediction - truth).sum(1)
    assert shift == 0
    assert scale == corners[errors.argmin()]


def test_scale_and_shift_have_the_least_absolute_error():
    rng = np.random.default_rng(1)
    prediction = rng.uniform(0.5, 3, 200)
    truth = 1.7 * prediction + 0.8 + rng.normal(0, 0.05, 200)
    truth[:40] += 20  # a fifth lies far off: least squares would follow it
    scale, shift = fit_depth(prediction, truth, "scale_shift")
    # The exact minimum, as a linear programme over scale, shift and one bound per residual.
    identity = np.eye(200)
    plus = np.column_stack([prediction, np.ones(200), -identity])
    minus = np.column_stack([-prediction, -np.ones(200), -identity])
    best = linprog(
        np.r_[0, 0, np.ones(200)],
        np.vstack([plus, minus]),
        np.r_[truth, -truth],
        bounds=[(None, None)] * 2 + [(0, None)] * 200,
    )
    assert np.abs(scale * prediction + shift - truth).sum() == pytest.approx(best.fun, rel=1e-6)
    assert (scale, shift) == pytest.approx(best.x[:2], abs=1e-3)


@pytest.mark.parametrize(("align", "factor", "offset"), [("median", 7, 0), ("scale", 7, 0), ("scale_shift", 7, 3)])
def test_alignment_takes_out_what_it_says(align, factor, offset):
    truth = np.random.default_rng(2).uniform(5, 9, (3, 4, 5))
    prediction = (truth - offset) / factor
    perfect = depth_metrics(prediction, truth, align=align)
    assert perfect.abs_rel == pytest.approx(0, abs=1e-9)
    assert perfect.delta_1_25 == 1
    assert depth_metrics(prediction, truth, align="none").abs_rel > 0.5


def test_frames_of_different_scale_are_right_only_when_aligned_one_by_one():
    truth = np.random.default_rng(3).uniform(1, 2, (2, 6, 6))
    prediction = truth * np.array([1, 4])[:, None, None]
    assert depth_metrics(prediction, truth, align="median", per_frame=True).abs_rel == pytest.approx(0, abs=1e-12)
    assert depth_metrics(prediction, truth, align="median").abs_rel > 0.3


def test_per_frame_scores_pool_all_pixels():
    rng = np.random.default_rng(4)
    truth, prediction = rng.uniform(1, 5, (2, 3, 4, 4))
    valid = rng.random(truth.shape) < [[[0.9]], [[0.2]], [[0.6]]]
    alone = [depth_metrics(p, t, v) for p, t, v in zip(prediction, truth, valid, strict=True)]
    weights = [result.num_pixels for result in alone]
    pooled = depth_metrics(prediction, truth, valid, per_frame=True)
    assert pooled.num_pixels == valid.sum()
    assert pooled.abs_rel == pytest.approx(np.average([r.abs_rel for r in alone], weights=weights))
    assert pooled.delta_1_25 == pytest.approx(np.average([r.delta_1_25 for r in alone], weights=weights))


def test_pixels_without_truth_or_outside_the_mask_change_nothing():
    truth = np.array([[2.0, 4.0, np.nan, 0.0, -1.0, np.inf, 8.0]])
    prediction = np.array([[1.0, 2.5, np.nan, 5.0, 5.0, 5.0, np.nan]])
    valid = np.array([[True] * 6 + [False]])
    assert depth_metrics(prediction, truth, valid, "none") == depth_metrics(
        prediction[:, :2], truth[:, :2], None, "none"
    )


def test_depth_without_a_valid_pixel_is_nan():
    result = depth_metrics(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3), bool))
    assert result.num_pixels == 0
    assert np.isnan([result.abs_rel, result.delta_1_25, result.rmse]).all()


def test_a_frame_without_valid_pixels_is_passed_over():
    truth = np.stack([np.full((2, 2), 3.0), np.zeros((2, 2))])
    result = depth_metrics(np.ones((2, 2, 2)), truth, per_frame=True)
    assert (result.abs_rel, result.num_pixels) == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_broken_prediction_is_refused_not_dropped(bad):
    prediction = np.ones((2, 3))
    prediction[0, 1] = bad
    with pytest.raises(ValueError, match="1 of 6 compared pixels"):
        depth_metrics(prediction, np.ones((2, 3)))


def test_depth_that_the_shift_made_negative_is_a_miss():
    truth = np.array([[0.1, 10.0, 20.0, 30.0, 40.0, 50.0]])
    result = depth_metrics(np.array([[1.0, 11.5, 21.5, 31.5, 41.5, 51.5]]), truth, align="scale_shift")
    # The line through the other five leaves the first at 1 - 1.5 < 0.
    assert result.delta_1_25 == pytest.approx(5 / 6)
    assert result.abs_rel == pytest.approx(0.6 / 0.1 / 6, rel=1e-3)


def test_a_constant_prediction_with_scale_and_shift_becomes_the_median():
    scale, shift = fit_depth(np.full(5, 3.0), np.array([1.0, 2.0, 4.0, 50.0, 60.0]), "scale_shift")
    assert scale * 3 + shift == pytest.approx(4, rel=1e-3)


def test_clipping_limits_aligned_depth():
    result = depth_metrics(np.array([[10.0, 100.0]]), np.array([[10.0, 60.0]]), align="none", clip_max=70)
    assert result.abs_rel == pytest.approx((0 + 10 / 60) / 2)


def test_depth_refuses_wrong_inputs():
    with pytest.raises(ValueError, match=r"prediction must have the shape of truth, \[2, 3\], got \[3, 2\]"):
        depth_metrics(np.ones((3, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="valid must have"):
        depth_metrics(np.ones((2, 3)), np.ones((2, 3)), np.ones(3, bool))
    with pytest.raises(ValueError, match="'mean'"):
        depth_metrics(np.ones((2, 3)), np.ones((2, 3)), align="mean")


# Cameras


@pytest.mark.parametrize("seed", range(5))
def test_trajectory_errors_equal_those_of_evo(seed):
    truth = random_path(seed)
    prediction = shaken(truth, seed + 100)
    ours = trajectory_metrics(prediction, truth)

    reference, estimate = as_evo(truth), as_evo(prediction)
    estimate.align(reference, correct_scale=True)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, estimate))
    assert ours.ate_rmse == pytest.approx(ape.get_statistic(evo_metrics.StatisticsType.rmse), rel=1e-9)
    for relation, value in (
        (evo_metrics.PoseRelation.translation_part, ours.rpe_translation_rmse),
        (evo_metrics.PoseRelation.rotation_angle_deg, ours.rpe_rotation_rmse_deg),
    ):
        rpe = evo_metrics.RPE(relation, delta=1, delta_unit=evo_metrics.Unit.frames, all_pairs=True)
        rpe.process_data((reference, estimate))
        assert value == pytest.approx(rpe.get_statistic(evo_metrics.StatisticsType.rmse), rel=1e-9)


def test_camera_measures_do_not_depend_on_the_world_of_the_estimate():
    truth = random_path(6)
    prediction = shaken(truth, 7)
    move = Similarity(4.0, Rotation.from_rotvec([0.4, -2, 1]).as_matrix(), np.array([1, 20, -3]))
    for measure in (trajectory_metrics, relative_pose_metrics):
        before, after = measure(prediction, truth), measure(move.apply_to_extrinsics(prediction), truth)
        assert dataclasses.astuple(after) == pytest.approx(dataclasses.astuple(before), rel=1e-9)


def test_true_poses_in_another_world_are_perfect():
    truth = random_path(8)
    prediction = shaken(truth, 9, angle=0, distance=0)
    assert dataclasses.astuple(trajectory_metrics(prediction, truth)) == pytest.approx((0, 0, 0), abs=1e-9)
    assert dataclasses.astuple(relative_pose_metrics(prediction, truth)) == (1,) * 7


def test_a_camera_that_never_moves_gets_the_spread_of_the_true_path():
    centers = np.array([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]])  # each sqrt(2) from the mean
    truth = poses_from(np.tile(np.eye(3), (4, 1, 1)), centers)
    result = trajectory_metrics(static_camera(4), truth)
    assert result.ate_rmse == pytest.approx(math.sqrt(2))
    assert result.rpe_translation_rmse == pytest.approx(2)
    assert result.rpe_rotation_rmse_deg == 0


def test_the_ate_of_a_straight_estimate_is_the_least_possible():
    truth = random_path(10, num_frames=12)
    centers = -(truth[..., :3].swapaxes(-1, -2) @ truth[..., 3:])[..., 0]
    line = np.arange(12.0)[:, None] * [0, 0, 1]

    def squared(parameters):
        moved = Rotation.from_rotvec(parameters[:3]).apply(line * parameters[3]) + parameters[4:]
        return np.sum((moved - centers) ** 2) / 12

    best = min(
        minimize(squared, np.r_[turn, 1, centers.mean(0)], tol=1e-12).fun for turn in np.r_[np.eye(3), -np.eye(3)]
    )
    result = trajectory_metrics(constant_velocity_camera(12), truth)
    assert result.ate_rmse == pytest.approx(math.sqrt(best), rel=1e-5)
    assert result.ate_rmse < trajectory_metrics(static_camera(12), truth).ate_rmse


def test_two_straight_paths_are_compared_along_the_line():
    # Centres 0, 1, 2 against 0, 1, 3: the best line through them has residuals 1/6, -1/3, 1/6.
    truth = poses_from(np.tile(np.eye(3), (3, 1, 1)), [[0, 0, 0], [1, 0, 0], [3, 0, 0]])
    result = trajectory_metrics(straight_path(3, step=(0, 0, -0.2)), truth)
    assert result.ate_rmse == pytest.approx(math.sqrt((1 / 36 + 1 / 9 + 1 / 36) / 3))


def test_a_true_path_that_stands_still_has_no_scale():
    turning = poses_from(Rotation.from_rotvec([[0, 0, 0], [0, 0.1, 0], [0, 0.2, 0]]).as_matrix(), np.ones((3, 3)))
    result = trajectory_metrics(straight_path(3), turning)
    assert np.isnan([result.ate_rmse, result.rpe_translation_rmse]).all()
    assert result.rpe_rotation_rmse_deg == pytest.approx(math.degrees(0.1))


def test_relative_pose_errors_match_a_loop_over_pairs():
    truth = random_path(11, num_frames=6)
    prediction = shaken(truth, 12, angle=0.5, distance=1)
    rotation_deg, direction_deg = relative_pose_errors(prediction, truth)
    estimates, references = ([np.r_[pose, [[0, 0, 0, 1]]] for pose in path] for path in (prediction, truth))
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    assert len(rotation_deg) == len(direction_deg) == 15
    for k, (i, j) in enumerate(pairs):
        a, b = (path[i] @ np.linalg.inv(path[j]) for path in (estimates, references))
        assert rotation_deg[k] == pytest.approx(
            math.degrees(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()), rel=1e-7
        )
        cosine = a[:3, 3] @ b[:3, 3] / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
        assert direction_deg[k] == pytest.approx(math.degrees(math.acos(abs(cosine))), rel=1e-7)


def test_auc_counts_whole_degrees_above_the_larger_error():
    # The second camera is turned by 10.5 degrees too much; its direction, seen from the first camera, is right.
    turn = Rotation.from_rotvec([[0, 0, 0], [0, math.radians(10.5), 0]]).as_matrix()
    result = relative_pose_metrics(poses_from(turn, [[0, 0, 0], [1, 0, 0]]), straight_path(2))
    assert (result.rra_5, result.rra_15, result.rra_30) == (0, 1, 1)
    assert (result.rta_5, result.rta_15, result.rta_30) == (1, 1, 1)
    assert result.auc_30 == pytest.approx(20 / 30)  # t = 11, ..., 30


def test_auc_joins_both_errors_of_a_pair():
    # Three cameras; pair (0, 1): direction 20.5 degrees off; pairs with camera 2: turned by 40 degrees.
    turn = Rotation.from_rotvec([[0, 0, 0], [0, 0, 0], [0, 0, math.radians(40)]]).as_matrix()
    angle = math.radians(20.5)
    prediction = poses_from(turn, [[0, 0, 0], [math.cos(angle), math.sin(angle), 0], [2, 0, 0]])
    result = relative_pose_metrics(prediction, straight_path(3))
    assert result.rra_30 == pytest.approx(1 / 3)
    assert result.auc_30 == pytest.approx(10 / 30 / 3)  # t = 21, ..., 30, for one pair of three


def test_the_sign_of_the_direction_is_not_scored():
    result = relative_pose_metrics(straight_path(4, step=(-1, 0, 0)), straight_path(4))
    assert result.auc_30 == 1
    assert trajectory_metrics(straight_path(4, step=(-1, 0, 0)), straight_path(4)).rpe_translation_rmse == 2


def test_a_static_camera_has_no_direction():
    result = relative_pose_metrics(static_camera(5), straight_path(5))
    assert (result.rra_5, result.rta_30, result.auc_30) == (1, 0, 0)


def test_one_frame_has_no_pairs_and_no_trajectory():
    assert np.isnan(dataclasses.astuple(relative_pose_metrics(static_camera(1), static_camera(1)))).all()
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        trajectory_metrics(static_camera(1), static_camera(1))


@pytest.mark.parametrize("measure", [relative_pose_metrics, trajectory_metrics])
def test_poses_of_wrong_shape_or_with_nan_are_refused(measure):
    with pytest.raises(ValueError, match=r"\[S, 3, 4\], got \[4, 3, 4\] and \[5, 3, 4\]"):
        measure(static_camera(4), static_camera(5))
    broken = straight_path(4)
    broken[2, 0, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        measure(broken, straight_path(4))


# Points


def test_cloud_distances_match_brute_force():
    rng = np.random.default_rng(13)
    prediction, truth = rng.standard_normal((150, 3)), rng.standard_normal((90, 3)) * [1, 1, 0.1]
    own, true = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (prediction**3, truth + 2))
    result = point_metrics(prediction, truth, own, true)
    distances = np.linalg.norm(prediction[:, None] - truth, axis=-1)
    accuracy, completeness = distances.min(1), distances.min(0)
    cosines = np.abs(own @ true.T)
    forward, backward = cosines[np.arange(150), distances.argmin(1)], cosines[distances.argmin(0), np.arange(90)]
    assert dataclasses.astuple(result) == pytest.approx(
        (
            accuracy.mean(),
            np.median(accuracy),
            completeness.mean(),
            np.median(completeness),
            (forward.mean() + backward.mean()) / 2,
            (np.median(forward) + np.median(backward)) / 2,
        )
    )


def test_swapping_prediction_and_truth_swaps_accuracy_and_completeness():
    rng = np.random.default_rng(14)
    a, b = rng.standard_normal((30, 3)), rng.standard_normal((50, 3))
    forward, backward = point_metrics(a, b), point_metrics(b, a)
    assert forward.accuracy_mean == backward.completeness_mean
    assert forward.completeness_median == backward.accuracy_median
    assert forward.accuracy_mean != forward.completeness_mean


def test_half_a_cloud_is_accurate_but_not_complete():
    truth = np.arange(4.0)[:, None] * [1, 0, 0]
    result = point_metrics(truth[:2], truth)
    assert (result.accuracy_mean, result.completeness_mean, result.completeness_median) == (0, 0.75, 0.5)
    assert math.isnan(result.normal_consistency_mean)


def test_normals_count_without_sign_and_missing_ones_not_at_all():
    points = np.arange(3.0)[:, None] * [1, 0, 0]
    true = np.tile([0.0, 0, 1], (3, 1))
    own = np.array([[0, 0, -1.0], [0, 0.6, 0.8], [np.nan] * 3])
    assert point_metrics(points, points, own, true).normal_consistency_mean == pytest.approx(0.9)
    assert math.isnan(point_metrics(points, points, own * np.nan, true).normal_consistency_mean)


def test_clouds_that_cannot_be_compared_are_refused():
    points = np.zeros((3, 3))
    for bad in (np.zeros((0, 3)), np.zeros((3, 2)), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="truth must be"):
            point_metrics(points, bad)
    with pytest.raises(ValueError, match="normals of both"):
        point_metrics(points, points, points)
    with pytest.raises(ValueError, match="truth_normals must have"):
        point_metrics(points, points, points, np.zeros((2, 3)))


def test_normals_of_a_slanted_wall_are_its_own_and_face_the_camera():
    # The plane n x = 2 seen by a pinhole camera at the origin.
    normal = np.array([0.6, 0.0, 0.8])
    intrinsics = np.array([[50.0, 0, 10], [0, 50, 8], [0, 0, 1]])
    rays = unproject(np.ones((16, 20)), np.eye(3, 4), intrinsics)
    normals = point_map_normals(rays * (2 / (rays @ normal))[..., None])
    np.testing.assert_allclose(normals, np.broadcast_to(-normal, normals.shape), atol=1e-12)


def test_normals_of_a_ball_point_outwards():
    intrinsics = np.array([[400.0, 0, 32], [0, 400, 32], [0, 0, 1]])
    rays = unproject(np.ones((64, 64)), np.eye(3, 4), intrinsics)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    center = np.array([0, 0, 5.0])
    along = rays @ center
    hit = along - np.sqrt(along**2 - (25 - 1))  # a ball of radius 1; it fills the view
    points = rays * hit[..., None]
    cosines = (point_map_normals(points) * (points - center)).sum(-1)
    assert cosines[1:-1, 1:-1].min() > 0.9999
    assert cosines.min() > 0.999


def test_invalid_pixels_have_no_normal_nor_have_their_neighbours():
    points = unproject(np.ones((2, 7, 7)), np.eye(3, 4), np.eye(3))
    valid = np.ones((2, 7, 7), bool)
    valid[0, 3, 3] = False
    missing = np.isnan(point_map_normals(points, valid)).any(-1)
    expected = np.zeros((2, 7, 7), bool)
    expected[0, [2, 3, 3, 3, 4], [3, 2, 3, 4, 3]] = True
    np.testing.assert_array_equal(missing, expected)
    assert np.isnan(point_map_normals(np.zeros((3, 3, 3)))).all()
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W, 3\]"):
        point_map_normals(np.zeros((1, 5, 3)))


# Tracks


def test_track_scores_match_hand_calculation():
    # One track over four frames, the first is the query. Errors after it: 3 px, 0 px (both visible), and one frame
    # where the truth is hidden but the prediction claims to see it.
    truth = np.zeros((4, 1, 2))
    tracks = np.array([[[99.0, 0]], [[3, 0]], [[0, 0]], [[0, 0]]])
    truth_visible = np.array([[True], [True], [True], [False]])
    visible = np.ones((4, 1), bool)
    result = track_metrics(tracks, visible, truth, truth_visible, (256, 256))
    assert result.delta_avg == pytest.approx((0.5 + 0.5 + 1 + 1 + 1) / 5)
    # At 1 and 2 px the far point and the hidden one are false positives: 1 / (2 + 2); above, 2 / (2 + 1).
    assert result.average_jaccard == pytest.approx((2 * 1 / 4 + 3 * 2 / 3) / 5)
    assert result.occlusion_accuracy == pytest.approx(2 / 3)


def test_track_scores_match_counting_one_by_one():
    rng = np.random.default_rng(15)
    num_frames, num_points, height, width = 7, 9, 120, 400
    truth = rng.uniform(0, 100, (num_frames, num_points, 2))
    tracks = truth + rng.standard_normal(truth.shape) * [8, 3]
    truth_visible, visible = rng.random((2, num_frames, num_points)) < 0.7
    queries = rng.integers(0, num_frames - 1, num_points)
    jaccards, deltas = [], []
    for limit in (1, 2, 4, 8, 16):
        tp = fp = fn = close = seen = agree = scored = 0
        for n in range(num_points):
            for s in range(queries[n] + 1, num_frames):
                dx, dy = (tracks[s, n] - truth[s, n]) * [256 / width, 256 / height]
                near, there, claimed = math.hypot(dx, dy) < limit, truth_visible[s, n], visible[s, n]
                scored += 1
                agree += there == claimed
                seen += there
                close += there and near
                tp += there and claimed and near
                fp += claimed and not (there and near)
                fn += there and not (claimed and near)
        # A visible point claimed in a wrong place is both a false positive and a false negative.
        jaccards.append(tp / (tp + fp + fn))
        deltas.append(close / seen)
    result = track_metrics(tracks, visible, truth, truth_visible, (height, width), queries)
    assert dataclasses.astuple(result) == pytest.approx((np.mean(jaccards), np.mean(deltas), agree / scored))


def test_perfect_tracks_score_one_and_lost_ones_nothing():
    truth = np.random.default_rng(16).uniform(0, 50, (5, 3, 2))
    visible = np.ones((5, 3), bool)
    assert dataclasses.astuple(track_metrics(truth, visible, truth, visible, (64, 64))) == (1, 1, 1)
    lost = track_metrics(np.full_like(truth, np.nan), visible, truth, visible, (64, 64))
    assert (lost.average_jaccard, lost.delta_avg, lost.occlusion_accuracy) == (0, 0, 1)


def test_tracks_with_nothing_to_score_are_nan():
    one_frame = (np.zeros((1, 3, 2)), np.ones((1, 3), bool))
    assert np.isnan(dataclasses.astuple(track_metrics(*one_frame, *one_frame, (64, 64)))).all()


def test_tracks_refuse_wrong_inputs():
    tracks, visible = np.zeros((4, 3, 2)), np.ones((4, 3), bool)
    with pytest.raises(ValueError, match="must be bool, got float64"):
        track_metrics(tracks, visible * 0.9, tracks, visible, (64, 64))
    with pytest.raises(ValueError, match="truth_tracks must have"):
        track_metrics(tracks, visible, tracks[:, :2], visible, (64, 64))
    with pytest.raises(ValueError, match="one per track, got"):
        track_metrics(tracks, visible, tracks, visible, (64, 64), np.zeros(4, int))


# Trivial answers


def test_the_template_is_the_mean_of_maps_in_medians():
    depths = np.array([[[1.0, 2.0, 6.0]], [[20.0, 10.0, 5.0]], [[7.0, 7.0, 7.0]]])
    valid = np.array([[[True, True, True]], [[True, True, False]], [[False] * 3]])
    # Medians 2 and 15; the third map has no valid pixel.
    expected = [[(1 / 2 + 20 / 15) / 2, (2 / 2 + 10 / 15) / 2, 6 / 2]]
    np.testing.assert_allclose(mean_depth_template(depths, valid), expected)
    np.testing.assert_array_equal(mean_depth_template(depths, np.zeros_like(valid)), [[1, 1, 1]])


def test_the_template_beats_constant_depth_on_maps_like_those_it_saw():
    rng = np.random.default_rng(17)
    floor = np.linspace(4, 1, 12)[:, None] * np.ones(16)
    seen, new = np.exp(0.1 * rng.standard_normal((2, 6, 12, 16))) * floor
    template = mean_depth_template(seen, np.ones_like(seen, bool))
    scores = [
        depth_metrics(np.broadcast_to(answer, new.shape), new, per_frame=True).abs_rel
        for answer in (template, constant_depth((12, 16)))
    ]
    assert scores[0] < 0.1 < 0.3 < scores[1]


def test_constant_velocity_moves_ahead_along_z():
    path = constant_velocity_camera(4)
    centers = -(path[..., :3].swapaxes(-1, -2) @ path[..., 3:])[..., 0]
    np.testing.assert_array_equal(centers, [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])
    assert relative_pose_metrics(path, straight_path(4, step=(0, 0, 7))).auc_30 == 1
    assert relative_pose_metrics(path, straight_path(4)).rta_30 == 0
