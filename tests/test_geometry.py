"""Poses, projection, alignment and depth edges, against released outputs, hand calculation and naive references."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from streamvggt.geometry import (
    MIN_FOV_RAD,
    Similarity,
    align_similarity,
    decode_pose,
    depth_edges,
    encode_pose,
    invert_pose,
    matrix_to_quaternion,
    project,
    quaternion_to_matrix,
    unproject,
)

GOLDEN = Path(__file__).parent / "data" / "golden"
HALF = math.sqrt(0.5)


def random_rotations(rng, count):
    """Uniform rotations from QR factors, by a way that shares nothing with the code under test."""
    q, r = np.linalg.qr(rng.standard_normal((count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    return q * np.linalg.det(q)[:, None, None]


def random_extrinsics(rng, count):
    return np.concatenate([random_rotations(rng, count), rng.standard_normal((count, 3, 1))], axis=-1)


def homogeneous(pose):
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*pose.shape[:-2], 1, 4))
    return np.concatenate([pose, bottom], axis=-2)


def intrinsics_of(fx, fy, cx, cy):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


@pytest.mark.parametrize("case", ["conv-batch", "dinov2-landscape"])
def test_released_poses_decode_to_the_released_cameras_and_points(case):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    depth = expected["causal.depth"].squeeze(-1)
    extrinsics, intrinsics = decode_pose(expected["causal.pose_enc"], tuple(depth.shape[-2:]))
    points = unproject(depth, extrinsics, intrinsics)
    torch.testing.assert_close(extrinsics, expected["causal.extrinsics"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(intrinsics, expected["causal.intrinsics"], rtol=1e-5, atol=0)
    torch.testing.assert_close(points, expected["causal.points_from_depth"], rtol=1e-5, atol=2e-6)


def test_a_quarter_turn_decodes_to_the_matrix_written_by_hand():
    # 90 degrees about z takes x to y; vertical 90 degrees sees H / 2 at depth 1, horizontal 2 atan(2) sees 2 x W / 2.
    pose_enc = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 5 * HALF, 5 * HALF, math.pi / 2, 2 * math.atan(2.0)])
    extrinsics, intrinsics = decode_pose(pose_enc, (60, 80))
    torch.testing.assert_close(extrinsics, torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]]))
    torch.testing.assert_close(intrinsics, torch.tensor([[20.0, 0, 40], [0, 30, 30], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("quaternion", "axis_images"),
    [
        ((HALF, 0, 0, HALF), [(1, 0, 0), (0, 0, 1), (0, -1, 0)]),  # about x: y goes to z
        ((0, HALF, 0, HALF), [(0, 0, -1), (0, 1, 0), (1, 0, 0)]),  # about y: z goes to x
        ((0, 0, 1, 0), [(-1, 0, 0), (0, -1, 0), (0, 0, 1)]),  # half a turn about z
    ],
)
def test_turns_about_each_axis_take_the_axes_where_hand_calculation_says(quaternion, axis_images):
    quaternion, matrix = torch.tensor(quaternion, dtype=torch.float32), torch.tensor(axis_images, dtype=torch.float32).T
    torch.testing.assert_close(quaternion_to_matrix(quaternion), matrix, rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix_to_quaternion(matrix), quaternion)


def test_a_zero_quaternion_is_no_rotation_and_gives_finite_gradients():
    quaternion = torch.zeros(4, requires_grad=True)
    matrix = quaternion_to_matrix(quaternion)
    assert torch.equal(matrix, torch.eye(3))
    matrix.sum().backward()
    assert quaternion.grad.isfinite().all()


def test_fields_of_view_at_and_beyond_the_limits_decode_to_finite_positive_focal_lengths():
    fov_rad = torch.tensor([0.0, math.pi, 4.0])
    pose_enc = torch.cat([torch.tensor([0, 0, 0, 0, 0, 0, 1.0]).expand(3, 7), fov_rad[:, None].expand(3, 2)], dim=-1)
    focal = decode_pose(pose_enc, (100, 100))[1][:, 0, 0]
    widest = 50 / math.tan((math.pi - MIN_FOV_RAD) / 2)
    expected = torch.tensor([50 / math.tan(MIN_FOV_RAD / 2), widest, widest])
    torch.testing.assert_close(focal, expected, rtol=2e-4, atol=0)


def test_encoding_undoes_decoding_up_to_the_length_and_sign_of_the_quaternion():
    generator = torch.Generator().manual_seed(0)
    pose_enc = torch.randn(200, 9, generator=generator, dtype=torch.float64)
    pose_enc[:, 7:] = 0.05 + 2.5 * torch.rand(200, 2, generator=generator, dtype=torch.float64)
    quaternion = pose_enc[:, 3:7] / pose_enc[:, 3:7].norm(dim=-1, keepdim=True)
    canonical = quaternion * quaternion[:, 3:].sign()
    expected = torch.cat([pose_enc[:, :3], canonical, pose_enc[:, 7:]], dim=-1)
    torch.testing.assert_close(encode_pose(*decode_pose(pose_enc, (294, 518)), (294, 518)), expected)


def test_every_rotation_survives_the_way_over_quaternions_half_turns_included():
    rng = np.random.default_rng(1)
    axes = rng.standard_normal((300, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    half_turns = 2 * axes[:, :, None] * axes[:, None, :] - np.eye(3)
    along_axes = np.stack([np.diag(d).astype(float) for d in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])])
    for rotations in (random_rotations(rng, 300), half_turns, along_axes):
        quaternion = matrix_to_quaternion(torch.from_numpy(rotations))
        assert (quaternion[:, 3] >= 0).all()
        np.testing.assert_allclose(quaternion.norm(dim=-1), 1, atol=1e-12)
        np.testing.assert_allclose(quaternion_to_matrix(quaternion), rotations, atol=1e-12)


def test_gradients_through_encode_and_decode_are_right_at_identity_and_at_random_poses():
    rng = np.random.default_rng(2)
    extrinsics = random_extrinsics(rng, 4)
    extrinsics[0, :, :3] = np.eye(3)
    intrinsics = np.stack([intrinsics_of(50, 60, 40, 30)] * 4)
    inputs = [torch.from_numpy(values).requires_grad_() for values in (extrinsics, intrinsics)]
    assert torch.autograd.gradcheck(lambda e, k: encode_pose(e, k, (60, 80)), inputs)
    pose_enc = encode_pose(*inputs, (60, 80)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: decode_pose(p, (60, 80)), pose_enc)


def test_gradients_reach_depth_pose_and_points_through_unproject_and_project():
    rng = np.random.default_rng(3)
    depth = torch.from_numpy(rng.uniform(1, 3, (2, 3, 4))).requires_grad_()
    extrinsics = torch.from_numpy(random_extrinsics(rng, 2)).requires_grad_()
    intrinsics = torch.from_numpy(np.stack([intrinsics_of(5, 6, 2, 1.5)] * 2)).requires_grad_()
    assert torch.autograd.gradcheck(unproject, (depth, extrinsics, intrinsics))
    in_front = torch.from_numpy(np.array([[0.3, -0.2, 2.0], [0.1, 0.4, 1.0]])).requires_grad_()
    pose = torch.eye(3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(project, (in_front, pose, intrinsics[0].detach().requires_grad_()))


def test_a_pose_composed_with_its_inverse_is_the_identity_and_inverting_twice_changes_nothing():
    pose = random_extrinsics(np.random.default_rng(4), 50)
    inverse = invert_pose(pose)
    np.testing.assert_allclose(
        homogeneous(pose) @ homogeneous(inverse), np.broadcast_to(np.eye(4), (50, 4, 4)), atol=1e-12
    )
    np.testing.assert_allclose(invert_pose(inverse), pose, atol=1e-12)
    np.testing.assert_allclose(
        invert_pose(torch.from_numpy(pose)).numpy(), np.linalg.inv(homogeneous(pose))[:, :3], atol=1e-12
    )


def test_a_known_pixel_unprojects_to_the_point_calculated_by_hand():
    # The camera stands at (10, 0, 0) and looks along the world's x axis: its right is -z, its down is y.
    camera_to_world = np.array([[0.0, 0, 1, 10], [0, 1, 0, 0], [-1, 0, 0, 0]])
    depth = np.full((3, 5), 2.0)
    points = unproject(depth, invert_pose(camera_to_world), intrinsics_of(4, 8, 2, 1))
    # Pixel (4, 2) is 2 right of and 1 below the centre: ray (2/4, 1/8, 1), times depth 2.
    np.testing.assert_allclose(points[2, 4], [12, 0.25, -1])
    np.testing.assert_allclose(points[1, 2], [12, 0, 0])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_projecting_unprojected_depth_gives_back_the_pixel_grid_and_the_depth(kind):
    rng = np.random.default_rng(5)
    arrays = [
        rng.uniform(0.5, 20, (2, 3, 7, 11)),
        random_extrinsics(rng, 6).reshape(2, 3, 3, 4),
        np.broadcast_to(intrinsics_of(9, 8, 5.5, 3.5), (2, 3, 3, 3)).copy(),
    ]
    depth, extrinsics, intrinsics = [torch.from_numpy(a) for a in arrays] if kind == "torch" else arrays
    points = unproject(depth, extrinsics, intrinsics)
    xy, z = project(points, extrinsics[..., None, None, :, :], intrinsics[..., None, None, :, :])
    assert type(xy) is type(depth)
    v, u = np.mgrid[:7, :11]
    np.testing.assert_allclose(xy, np.broadcast_to(np.stack([u, v], -1), xy.shape), atol=1e-9)
    np.testing.assert_allclose(z, depth, atol=1e-9)


def test_unprojecting_agrees_with_a_loop_over_pixels_and_inverse_matrices():
    rng = np.random.default_rng(6)
    depth, pose, intrinsics = rng.uniform(1, 9, (4, 6)), random_extrinsics(rng, 1)[0], intrinsics_of(7, 6, 2.5, 2)
    points = unproject(depth, pose, intrinsics)
    for v in range(4):
        for u in range(6):
            ray = np.linalg.inv(intrinsics) @ [u, v, 1]
            world = np.linalg.inv(homogeneous(pose)) @ [*(ray * depth[v, u]), 1]
            np.testing.assert_allclose(points[v, u], world[:3], atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_points_behind_or_in_the_camera_plane_are_told_by_their_depth_and_stay_finite():
    points = np.array([[0.5, 0.5, -1], [0.5, 0, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    xy, depth = project(points, np.eye(3, 4, dtype=np.float32), intrinsics_of(4, 4, 2, 1).astype(np.float32))
    assert (depth > 0).tolist() == [False, False, False, True]
    assert np.isfinite(xy).all()
    np.testing.assert_allclose(xy[3], [2, 1])


def test_float32_goes_in_and_comes_out():
    depth = np.ones((2, 3), np.float32)
    pose, intrinsics = np.eye(3, 4, dtype=np.float32), np.eye(3, dtype=np.float32)
    points = unproject(depth, pose, intrinsics)
    assert points.dtype == invert_pose(pose).dtype == project(points, pose, intrinsics)[0].dtype == np.float32


def test_half_precision_autocast_does_not_round_coordinates():
    depth = torch.full((2, 2), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        points = unproject(depth, torch.eye(3, 4), torch.eye(3))
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[..., 2], depth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_pose(torch.zeros(2, 7), (4, 4)), r"pose_enc must be \[..., 9\], got \[2, 7\]"),
        (lambda: invert_pose(np.eye(4)), r"pose must be \[..., 3, 4\], got \[4, 4\]"),
        (lambda: unproject(np.ones(3), np.eye(3, 4), np.eye(3)), r"depth must be \[..., H, W\], got \[3\]"),
        (lambda: project(np.ones((5, 2)), np.eye(3, 4), np.eye(3)), r"points must be \[..., 3\], got \[5, 2\]"),
        (lambda: depth_edges(np.ones(3)), r"depth must be \[..., H, W\], got \[3\]"),
    ],
)
def test_a_wrong_shape_is_named_with_what_is_needed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def random_similarity(rng, scale=2.5):
    return Similarity(scale, random_rotations(rng, 1)[0], rng.standard_normal(3))


def test_alignment_recovers_a_known_similarity_whatever_the_order_of_the_points():
    rng = np.random.default_rng(7)
    known, source = random_similarity(rng), rng.standard_normal((40, 3))
    target = known.scale * source @ known.rotation.T + known.translation
    order = rng.permutation(40)
    for found in (align_similarity(source, target), align_similarity(source[order], target[order])):
        assert found.scale == pytest.approx(known.scale, rel=1e-12)
        np.testing.assert_allclose(found.rotation, known.rotation, atol=1e-12)
        np.testing.assert_allclose(found.translation, known.translation, atol=1e-12)
        np.testing.assert_allclose(found.apply(source), target, atol=1e-12)


def test_a_mirrored_triangle_is_reached_by_turning_it_over():
    # Flat points make the covariance singular: half a turn about y does what a mirror would.
    source = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    target = np.array([[0.0, 0, 0], [-1, 0, 0], [0, 2, 0]])
    found = align_similarity(source, target)
    assert found.scale == pytest.approx(1)
    np.testing.assert_allclose(found.rotation, np.diag([-1.0, 1, -1]), atol=1e-12)
    np.testing.assert_allclose(found.apply(source), target, atol=1e-12)


def test_noisy_alignment_is_the_minimum_of_the_squared_error():
    rng = np.random.default_rng(8)
    source = rng.standard_normal((30, 3))
    target = random_similarity(rng).apply(source) + 0.3 * rng.standard_normal((30, 3))
    weights = rng.uniform(0, 2, 30)

    def error(transform):
        return (weights * ((transform.apply(source) - target) ** 2).sum(-1)).sum()

    best = align_similarity(source, target, weights)
    for _ in range(200):
        axis = 0.01 * rng.standard_normal(3)
        nudge = quaternion_to_matrix(torch.tensor([*axis, 1.0], dtype=torch.float64)).numpy()
        scale, shift = best.scale * (1 + 0.01 * rng.standard_normal()), 0.01 * rng.standard_normal(3)
        assert error(Similarity(scale, nudge @ best.rotation, best.translation + shift)) > error(best)


def test_mirrored_points_are_answered_with_a_rotation_not_a_reflection():
    source = np.random.default_rng(9).standard_normal((20, 3))
    found = align_similarity(source, source * [1, 1, -1])
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert 0 < found.scale < 1


def test_points_of_no_weight_are_ignored_and_whole_weights_count_as_repetitions():
    rng = np.random.default_rng(10)
    source, target = rng.standard_normal((2, 8, 3))
    weights = np.array([1, 1, 2, 1, 3, 1, 1, 0])
    found = align_similarity(source, target, weights)
    repeated = align_similarity(np.repeat(source, weights, axis=0), np.repeat(target, weights, axis=0))
    np.testing.assert_allclose(found.apply(source), repeated.apply(source), atol=1e-12)


def test_without_scale_the_scale_stays_one():
    rng = np.random.default_rng(11)
    known, source = random_similarity(rng, scale=1.0), rng.standard_normal((10, 3))
    found = align_similarity(source, known.apply(source) * 3, with_scale=False)
    assert found.scale == 1.0
    np.testing.assert_allclose(found.rotation, known.rotation, atol=1e-12)


@pytest.mark.parametrize(
    ("source", "target", "weights", "message"),
    [
        (np.eye(3)[:2], np.eye(3)[:2], None, "at least 3 points"),
        (np.eye(3), np.eye(3), np.array([1, 1, 0]), "at least 3 points"),
        (np.ones((5, 3)), np.ones((5, 3)), None, "one line"),
        (np.arange(5)[:, None] * [1.0, 2, 3], np.eye(5, 3), None, "one line"),
        (np.eye(5, 3), np.arange(5)[:, None] * [1.0, 2, 3], None, "one line"),
        (np.eye(3), np.eye(4, 3), None, r"both be \[N, 3\], got \[3, 3\] and \[4, 3\]"),
        (np.eye(3), np.eye(3), np.array([1, 1, -1.0]), "weights"),
        (np.full((3, 3), np.nan), np.eye(3), None, "finite"),
    ],
)
def test_points_that_leave_the_rotation_open_are_refused(source, target, weights, message):
    with pytest.raises(ValueError, match=message):
        align_similarity(source, target, weights)


def test_a_moved_camera_sees_a_moved_point_at_the_same_pixel():
    rng = np.random.default_rng(12)
    similarity, intrinsics = random_similarity(rng), intrinsics_of(50, 60, 40, 30)
    extrinsics, points = random_extrinsics(rng, 6), rng.standard_normal((6, 3))
    xy, depth = project(points, extrinsics, intrinsics)
    in_front = depth > 0.1
    assert in_front.any()
    moved_xy, moved_depth = project(similarity.apply(points), similarity.apply_to_extrinsics(extrinsics), intrinsics)
    np.testing.assert_allclose(moved_xy[in_front], xy[in_front], rtol=1e-9)
    np.testing.assert_allclose(moved_depth, similarity.scale * depth, atol=1e-12)


def test_both_sides_of_a_step_are_edges_and_a_gentle_slope_is_none():
    step = np.where(np.arange(6) < 3, 1.0, 1.1) * np.ones((4, 1))
    assert depth_edges(step)[1].tolist() == [False, False, True, True, False, False]
    assert not depth_edges(step, rtol=0.11).any()
    slope = 1.02 ** np.arange(20) * np.ones((5, 1))
    assert not depth_edges(slope).any()
    assert depth_edges(slope, rtol=0.019).all()


@pytest.mark.filterwarnings("error")
def test_depth_edges_agree_with_a_loop_over_all_neighbours_and_skip_missing_depth():
    depth = np.random.default_rng(13).uniform(1, 1.08, (2, 7, 9)).astype(np.float32)
    depth[0, 3, 4] = np.nan
    expected = np.zeros(depth.shape, bool)
    for b, y, x in np.ndindex(depth.shape):
        for other in depth[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flat:
            low, high = sorted((depth[b, y, x], other))
            expected[b, y, x] |= bool(high - low > 0.06 * low)
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(depth_edges(depth, rtol=0.06), expected)
