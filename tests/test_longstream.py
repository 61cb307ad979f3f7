"""Long sessions, with a network that knows the truth and drifts away from it by a known amount."""

import sys
import weakref
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from drifting import LAP, RADIUS, SIDE, Drift, KnowsTheTruth, picture, true_depth, true_pose
from ledger import Ledger
from reference import lively
from scipy.spatial.transform import Rotation

from streamvggt import (
    AnchorWindow,
    KeepAll,
    Keyframes,
    LongSession,
    Scene,
    StreamSession,
    StreamVGGTConfig,
    TokenBudget,
    invert_pose,
    load_model,
    move_prediction,
)
from streamvggt.geometry import Similarity, align_similarity
from streamvggt.heads.dense import DenseHead
from streamvggt.metrics import trajectory_metrics
from streamvggt.reconstruct import Wanted, reconstruct
from streamvggt.submaps import View, align_robustly, align_views, seen_again
from streamvggt.types import Frame, FramePrediction


def poses_of(predictions):
    return np.stack([prediction.extrinsics for prediction in predictions]).astype(np.float64)


def corrected(session, predictions):
    moves = session.corrections()
    assert len(moves) == len(predictions)
    return [move_prediction(said, move) for said, move in zip(predictions, moves, strict=True)]


@pytest.fixture(scope="module")
def two_laps():
    frames = [picture(i) for i in range(2 * LAP + 20)]
    session = LongSession(KnowsTheTruth(Drift()), length=32, overlap=4)
    predictions = list(session.run(frames))
    plain = list(StreamSession(KnowsTheTruth(Drift()), AnchorWindow(1, 15)).run(frames))
    return session, predictions, plain, np.stack([true_pose(i) for i in range(len(frames))])


# --- the whole


def test_the_stand_in_says_the_truth_when_it_does_not_drift():
    still = Drift(0, 0, 0, 0, 0, 0)
    said = list(StreamSession(KnowsTheTruth(still)).run([picture(i) for i in (0, 7, 999)]))
    truth = np.stack([true_pose(i) for i in (0, 7, 999)])
    assert trajectory_metrics(poses_of(said), truth).ate_rmse < 1e-5


def test_a_long_session_halves_the_error_of_a_plain_stream_and_closes_its_loop(two_laps):
    session, predictions, plain, truth = two_laps
    got = corrected(session, predictions)
    error, plain_error = (trajectory_metrics(poses_of(said), truth).ate_rmse for said in (got, plain))
    assert error < plain_error / 2
    assert error < 0.1 * RADIUS
    centres = invert_pose(poses_of(got))[..., 3]
    length = np.linalg.norm(np.diff(centres[: LAP + 1], axis=0), axis=1).sum()
    gaps = np.linalg.norm(centres[LAP:] - centres[:-LAP], axis=1)
    assert gaps[0] < 0.01 * length
    assert np.median(gaps) < 0.01 * length
    for loop in session.loops:
        apart = (loop.later - loop.earlier) % LAP
        assert min(apart, LAP - apart) <= 8  # the same place, on the next lap


def test_corrections_begin_with_the_identity_and_go_over_without_seams(two_laps):
    session, predictions, plain, truth = two_laps
    moves = session.corrections()
    for move in moves[:16]:  # up to the middle of the first sub-map
        np.testing.assert_allclose(move.apply(np.eye(3)), np.eye(3), atol=1e-6)
    assert session.num_submaps == len(range(0, len(moves) - 4, 28))
    got, was, alone = (
        trajectory_metrics(poses_of(said), truth) for said in (corrected(session, predictions), predictions, plain)
    )
    assert got.rpe_rotation_rmse_deg < 1.2 * alone.rpe_rotation_rmse_deg
    assert got.rpe_translation_rmse < 1.2 * alone.rpe_translation_rmse
    assert got.ate_rmse < was.ate_rmse


def test_without_loops_sub_maps_are_chained_and_nothing_moves_afterwards():
    """Sub-maps that do not drift make one world, whatever unit each of them has."""
    frames = [picture(i) for i in range(110)]
    session = LongSession(KnowsTheTruth(Drift(0, 0, 0)), length=32, overlap=4, loops=False)
    predictions = list(session.run(frames))
    truth = np.stack([true_pose(i) for i in range(len(frames))])
    assert trajectory_metrics(poses_of(predictions), truth).ate_rmse < 0.01 * RADIUS
    for move in session.corrections():
        np.testing.assert_allclose(move.apply(np.eye(3)), np.eye(3), atol=1e-12)
    assert session.loops == ()


def test_depth_and_cameras_of_all_sub_maps_are_in_one_unit():
    session = LongSession(KnowsTheTruth(Drift(0, 0, 0, 0.01, 0.05, 0)), length=16, overlap=4, loops=False)
    ratios = [
        np.median(said.depth / true_depth(true_pose(i))) for i, said in enumerate(session.run(map(picture, range(60))))
    ]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.01)


def test_a_scene_follows_the_corrections(two_laps):
    session, predictions, _, _ = two_laps
    scene, want = Scene(), corrected(session, predictions)
    moves = session.corrections()
    for said in predictions:
        scene.add(said)
    before = scene.nbytes
    scene.correct([Similarity(2.0, np.eye(3), np.ones(3))] * len(moves))  # replaced, not added to
    scene.correct(moves)
    assert scene.nbytes == before
    for camera, said in zip(scene.cameras, want, strict=True):
        np.testing.assert_allclose(camera.extrinsics, said.extrinsics, atol=2e-5)
    direct = Scene()
    for said in want:
        direct.add(said)
    np.testing.assert_allclose(scene.point_cloud().points, direct.point_cloud().points, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"needs {len(moves)} corrections, got 3"):
        scene.correct(moves[:3])


def test_files_have_the_corrected_path(two_laps, tmp_path):
    session, predictions, _, _ = two_laps
    reconstruct(predictions, tmp_path, Wanted(("tum", "npz")), session.corrections)
    want = np.stack([invert_pose(said.extrinsics)[:, 3] for said in corrected(session, predictions)])
    np.testing.assert_allclose(np.loadtxt(tmp_path / "trajectory.txt")[:, 1:4], want, atol=1e-4)
    with np.load(tmp_path / "predictions.npz") as raw:
        np.testing.assert_allclose(invert_pose(raw["extrinsics"])[..., 3], want, atol=1e-4)
        np.testing.assert_allclose(raw["depth"][-1], corrected(session, predictions)[-1].depth, rtol=1e-5)


def test_a_scene_of_point_maps_follows_too():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, 4, 3)).astype(np.float32)
    ones = np.ones((4, 4), np.float32)
    said = FramePrediction(
        index=0,
        time_s=0.0,
        image=np.zeros((4, 4, 3), np.uint8),
        depth=ones,
        world_points=maps,
        world_points_conf=ones,
        extrinsics=np.eye(3, 4, dtype=np.float32),
        intrinsics=np.eye(3, dtype=np.float32),
    )
    scene = Scene("points")
    scene.add(said)
    move = Similarity(3.0, Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix(), np.array([1.0, 0, 0]))
    scene.correct([move])
    x, y, z = maps.reshape(-1, 3).T
    want = np.stack([1 - 3 * y, 3 * x, 3 * z], axis=1)
    np.testing.assert_allclose(scene.frame_points(0).points, want, atol=1e-5)


def test_what_is_kept_of_finished_sub_maps_is_small_and_counted():
    frames = [picture(i) for i in range(120)]
    session = LongSession(KnowsTheTruth(Drift()), length=16, overlap=4)
    sizes = {}
    for i, _ in enumerate(session.run(frames)):
        sizes[i] = session.nbytes
    # Per fourth frame and sub-map: the grid of 28 x 28 twice, two matrices, a descriptor, a small JPEG.
    keyframe = 2 * 4 * SIDE**2 + 4 * (12 + 9) + 4 * 128
    grown = sizes[105] - sizes[57]  # four sub-maps of four keyframes later, at the same place in a sub-map
    assert 16 * keyframe < grown < 16 * (keyframe + 2000)


# --- its parts


def test_robust_alignment_is_the_plain_one_without_outliers_and_withstands_thirty_percent():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(400, 3))
    true = Similarity(1.7, Rotation.from_rotvec([0.4, -0.8, 0.3]).as_matrix(), np.array([1.0, -2.0, 0.5]))
    target, ones = true.apply(source), np.ones(400)
    exact = align_robustly(source, target, ones, ones)
    plain = align_similarity(source, target)
    for name in ("scale", "rotation", "translation"):
        np.testing.assert_allclose(getattr(exact, name), getattr(plain, name), atol=1e-9)

    noisy = target + rng.normal(0, 0.01, target.shape)
    noisy[:120] += rng.normal([3.0, 1.0, -2.0], 1.0, (120, 3))  # all to one side: the worst kind
    robust, fooled = align_robustly(source, noisy, ones, ones), align_similarity(source, noisy)
    inliers_alone = align_similarity(source[120:], noisy[120:])
    for name in ("scale", "rotation", "translation"):
        np.testing.assert_allclose(getattr(robust, name), getattr(inliers_alone, name), atol=2e-3)
    assert np.abs(fooled.translation - true.translation).max() > 0.3


def test_alignment_counts_weights_and_spread():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(200, 3))
    target = source + np.where(np.arange(200) < 100, 0.0, 1.0)[:, None]
    ones = np.ones(200)
    heavy = np.where(np.arange(200) < 100, 10.0, 1.0)
    np.testing.assert_allclose(align_robustly(source, target, heavy, ones).translation, 0, atol=1e-6)
    np.testing.assert_allclose(align_robustly(source, target, ones / heavy, ones).translation, 1, atol=1e-6)


def view_of(frame, move=None):
    network = KnowsTheTruth(Drift(0, 0, 0, 0, 0, 0))
    said = next(iter(StreamSession(network).run([picture(frame)])))
    pose = true_pose(frame) if move is None else move.apply_to_extrinsics(true_pose(frame))
    scale = 1.0 if move is None else move.scale
    return View.of(replace(said, extrinsics=pose, depth=(scale * true_depth(true_pose(frame))).astype(np.float32)))


def test_a_thinned_view_has_the_points_of_the_whole_one():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 2, (90, 120)).astype(np.float32)
    intrinsics = np.array([[100, 0, 60], [0, 110, 45], [0, 0, 1]], np.float32)
    said = FramePrediction(
        index=0,
        time_s=0.0,
        image=np.zeros((90, 120, 3), np.uint8),
        depth=depth,
        depth_conf=depth,
        extrinsics=true_pose(3).astype(np.float32),
        intrinsics=intrinsics,
    )
    view = View.of(said)
    stride = 3  # 90 * 120 / 1000 is 10.8
    assert view.depth.shape == (30, 40)
    rows, columns = np.mgrid[1:90:stride, 1:120:stride]
    rays = np.stack([(columns - 60) / 100, (rows - 45) / 110, np.ones_like(rows)], -1)
    in_camera = (rays * depth[rows, columns][..., None]).reshape(-1, 3)
    pose = invert_pose(true_pose(3))
    np.testing.assert_allclose(view.points(), in_camera @ pose[:, :3].T + pose[:, 3], atol=1e-5)


def test_views_of_two_worlds_tell_how_these_lie():
    move = Similarity(0.4, Rotation.from_rotvec([0.1, 2.0, 0.3]).as_matrix(), np.array([3.0, 1.0, 2.0]))
    found = align_views([view_of(i) for i in (0, 3)], [view_of(i, move) for i in (0, 3)])
    np.testing.assert_allclose(found.transform.rotation, move.rotation, atol=1e-5)
    np.testing.assert_allclose(found.transform.translation, move.translation, atol=1e-4)
    assert found.transform.scale == pytest.approx(0.4, rel=1e-5)
    assert found.inliers > 0.999
    other = align_views([view_of(0), view_of(3)], [view_of(40, move), view_of(90, move)])
    assert other.inliers < 0.5
    with pytest.raises(ValueError, match="same frames"):
        align_views([view_of(0)], [])


def test_a_place_is_seen_again_only_from_where_it_is_seen():
    assert seen_again(view_of(0), view_of(0)) > 0.99
    assert seen_again(view_of(0), view_of(4)) > 0.4
    assert seen_again(view_of(0), view_of(50)) < 0.3


# --- with a real network


def test_the_first_sub_map_is_a_plain_session_and_state_stays_right():
    model = load_model("tiny")
    images = list(np.random.default_rng(0).integers(0, 256, (11, 28, 28, 3), dtype=np.uint8))
    session = LongSession(model, KeepAll(), length=6, overlap=2, size=28)
    plain = list(StreamSession(model, size=28).run(images[:6]))
    got = [session.step(Frame(image, time_s=0.5 * i)) for i, image in enumerate(images)]
    for said, want in zip(got[:6], plain, strict=True):
        np.testing.assert_allclose(said.depth, want.depth, rtol=1e-6)
        np.testing.assert_allclose(said.extrinsics, want.extrinsics, atol=1e-6)
        np.testing.assert_allclose(said.world_points, want.world_points, atol=1e-5)
    assert [said.index for said in got] == list(range(11))
    assert [said.time_s for said in got] == [0.5 * i for i in range(11)]
    assert session.num_frames == 11
    assert session.held_frames == (8, 9, 10)  # sub-maps begin at 0, 4 and 8
    assert len(session.corrections()) == 11


@pytest.fixture(scope="module")
def lively_tiny():
    return lively(StreamVGGTConfig.tiny())


def noise(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8))


def numbers(predictions):
    return np.stack(
        [np.concatenate([p.depth.ravel(), p.world_points.ravel(), p.extrinsics.ravel()]) for p in predictions]
    )


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 6, 8])
def test_a_frame_that_is_refused_leaves_the_stream_as_it_was(at):
    """Sub-maps begin at 0, 4, 8; both streams of an overlap see frames 4, 5 and 8, 9."""
    model, images = load_model("tiny"), noise(11)
    session = LongSession(model, length=6, overlap=2, size=28)
    got = [session.step(image) for image in images[:at]]
    held = session.nbytes
    with pytest.raises(ValueError, match="resize the frames" if at else "must be uint8"):
        session.step(np.zeros((28, 56, 3), np.uint8) if at else np.zeros((28, 28, 3)))
    # A sub-map whose end was due before this frame has ended.
    assert session.num_frames == at and session.nbytes <= held
    got += [session.step(image) for image in images[at:]]
    want = list(LongSession(model, length=6, overlap=2, size=28).run(images))
    np.testing.assert_array_equal(numbers(got), numbers(want))
    assert [said.index for said in got] == list(range(11))


@pytest.mark.parametrize("how", [2, 3, 8, (21,), (1, 2, 6, 9, 3), (5, 2, 5, 2, 7)], ids=str)
def test_frames_taken_together_say_what_single_frames_say(how):
    """In chunks of a run or by hand; sub-maps begin at 0, 5, 10 and 15, and overlaps end with frames 6, 11 and 16."""
    model, images = load_model("tiny"), noise(21)
    single, many = (LongSession(model, AnchorWindow(1, 4), length=7, overlap=2, size=28) for _ in range(2))
    want, left = [single.step(image) for image in images], iter(images)
    if isinstance(how, int):
        got = list(many.run(left, chunk=how))
    else:
        got = [said for count in how for said in many.step_many(list(islice(left, count)))]
    assert [(said.index, said.time_s) for said in got] == [(i, float(i)) for i in range(21)]
    assert (many.num_submaps, many.held_frames) == (single.num_submaps, single.held_frames) == (4, (15, 17, 18, 19, 20))
    for name in ("depth", "depth_conf", "world_points", "extrinsics", "intrinsics", "descriptor"):
        one, other = (np.stack([getattr(said, name) for said in said_by]) for said_by in (got, want))
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max(), rtol=0)


def test_frames_that_cannot_be_taken_together_are_refused_before_a_part_of_them_is_taken():
    """The first sub-map ends within them."""
    session, images = LongSession(load_model("tiny"), length=6, overlap=2, size=28), noise(11)
    session.step(images[0])
    for last, message in ((np.zeros((28, 56, 3), np.uint8), "28x28 and of 14x28"), (images[0] / 2, "must be uint8")):
        with pytest.raises(ValueError, match=message):
            session.step_many([*images[1:9], last])
    with pytest.raises(ValueError, match="at least one frame"):
        session.step_many([])
    assert session.num_frames == 1
    got = session.step_many(images[1:])
    want = list(LongSession(load_model("tiny"), length=6, overlap=2, size=28).run(images))
    np.testing.assert_allclose(numbers(got), numbers(want[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [3, 5, 6], ids=["alone", "within an overlap", "where a sub-map ends"])
def test_a_policy_set_in_mid_stream_is_that_of_a_chain_made_by_hand(lively_tiny, at):
    """Two sub-maps, of frames 0 to 5 and 4 to 9: each told of the policy when the long stream was."""
    images, policy = noise(10), AnchorWindow(1, 1)
    session = LongSession(lively_tiny, length=6, overlap=2, loops=False, size=28)
    got = list(session.run(images[:at]))
    session.set_policy(policy)
    got += list(session.run(images[at:]))

    first, second = (StreamSession(lively_tiny, size=28) for _ in range(2))
    chain = {first: [], second: []}
    for i, image in enumerate(images):
        if i == at:
            first.set_policy(policy), second.set_policy(policy)
        for stream in [first] * (i < 6) + [second] * (i >= 4):
            chain[stream].append(stream.step(image))
    shared = [[View.of(said) for said in both] for both in (chain[second][:2], chain[first][4:])]
    between = align_views(*shared).transform
    want = [*chain[first], *(move_prediction(said, between) for said in chain[second][2:])]
    np.testing.assert_allclose(numbers(got), numbers(want), rtol=1e-5, atol=1e-5)
    assert session.policy == policy and session.held_frames == (4, 9)
    unchanged = list(LongSession(lively_tiny, length=6, overlap=2, loops=False, size=28).run(images))
    assert np.abs(numbers(got)[at:] - numbers(unchanged)[at:]).max() > 0.01


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("policy", [KeepAll(), AnchorWindow(1, 12), TokenBudget()], ids=str)
def test_a_memory_set_in_mid_stream_holds_from_then_on_and_after_a_stop(policy, loops, monkeypatch, tmp_path):
    """Set within an overlap, when two streams have more than it allows."""
    model, images = load_model("tiny"), noise(40)
    frame = model.config.cached_frame_bytes(28, 28)
    session = LongSession(model, length=14, overlap=4, loops=loops, size=28)
    for image in images[:12]:
        session.step(image)
    assert session.nbytes > 13 * frame
    with pytest.raises(ValueError, match="memory"):
        session.set_policy(policy, memory=frame // 2)
    memory = 12 * frame
    session.set_policy(policy, memory=memory)
    session.save(tmp_path / "stream.safetensors")
    streams, step_many, most = set(), StreamSession.step_many, 0

    def stepped(self, *args):
        nonlocal most
        streams.add(self)
        said = step_many(self, *args)
        most = max(most, sum(stream._state.allocated_bytes for stream in inner(session)))
        return said

    def inner(long):
        return {long._session, long._next.session} - {None}

    monkeypatch.setattr(StreamSession, "step_many", stepped)
    want = list(session.run(images[12:]))
    assert session.num_submaps == 4 and len(streams) >= 4
    assert 0.3 * memory < most <= memory * (2 / 3 if loops else 1)  # a third is for the stream that looks at loops
    session = LongSession.resume(model, tmp_path / "stream.safetensors")
    np.testing.assert_array_equal(numbers(session.run(images[12:])), numbers(want))
    session.reset()
    assert session.policy == policy and session.step(images[0]).index == 0


def test_a_policy_that_is_refused_leaves_the_stream_as_it_was():
    model, images = load_model("tiny"), noise(11)
    session = LongSession(model, AnchorWindow(1, 3), length=6, overlap=2, size=28)
    got = list(session.run(images[:3]))
    for policy, memory in ((AnchorWindow(1, 1), "1KB"), ("window", None), (KeepAll(), "much")):
        with pytest.raises(ValueError):
            session.set_policy(policy, memory=memory)
    assert session.policy == AnchorWindow(1, 3)
    got += list(session.run(images[3:]))
    want = list(LongSession(model, AnchorWindow(1, 3), length=6, overlap=2, size=28).run(images))
    np.testing.assert_array_equal(numbers(got), numbers(want))


def test_a_stream_that_was_reset_is_a_fresh_one(caplog, tmp_path):
    """Also where another policy took over, in a sub-map that has ended, and in other pixels than before."""
    model, images = load_model("tiny"), noise(23)
    options = {"length": 10, "overlap": 3, "size": 28, "memory": 10 * model.config.cached_frame_bytes(28, 28)}
    fresh, session = (LongSession(model, KeepAll(), **options) for _ in range(2))
    list(session.run([image[:14] for image in noise(23, seed=1)]))
    assert session.policy != KeepAll() and session.num_submaps == 3
    session.save(tmp_path / "stream.safetensors")
    for stream in (session, LongSession.resume(model, tmp_path / "stream.safetensors")):
        stream.reset()
        facts = (stream.num_frames, stream.num_submaps, stream.held_frames, stream.nbytes, stream.corrections())
        assert facts == (0, 1, (), 0, []) and stream.loops == () and stream.policy == KeepAll()
    caplog.clear()
    want = list(fresh.run(images))
    told = [record.message for record in caplog.records]
    caplog.clear()
    got = list(session.run(images))
    np.testing.assert_array_equal(numbers(got), numbers(want))
    assert [record.message for record in caplog.records] == told and len(told) == 1


def test_frames_before_a_failing_source_are_predicted_in_chunks_too():
    def camera():
        yield from noise(9)
        raise OSError("unplugged")

    session, seen = LongSession(load_model("tiny"), length=6, overlap=2, size=28), []
    with pytest.raises(OSError, match="unplugged"):
        for said in session.run(camera(), chunk=8):
            seen.append(said.index)
    assert seen == list(range(9))
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        next(session.run(noise(1), chunk=0))


def test_descriptors_of_a_stream_are_those_of_frames_alone():
    model = load_model("tiny")
    images = torch.rand(1, 4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    state, alone = model.new_state(), model.describe(images)
    got = [model(chunk, state=state).descriptors for chunk in images.split([1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(got, dim=1), alone)
    said = StreamSession(model, size=28).step((images[0, 0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert said.descriptor.shape == (model.config.encoder_width,)
    np.testing.assert_allclose(said.descriptor, alone[0, 0].numpy(), atol=0.01)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("policy", [KeepAll(), AnchorWindow(1, 12), Keyframes(), TokenBudget()], ids=str)
def test_the_memory_holds_for_all_inner_streams_together(policy, loops, monkeypatch, caplog):
    """With loops three of them are there where a place is looked at within an overlap; without, two."""
    model, images = load_model("tiny"), noise(35)
    monkeypatch.setattr("streamvggt.atlas._ALIKE", -1)
    streams, most = weakref.WeakSet(), 0
    begin, step_many = StreamSession.__init__, StreamSession.step_many

    def counted(self, *args, **options):
        streams.add(self)
        begin(self, *args, **options)

    def stepped(self, *args):
        nonlocal most
        said = step_many(self, *args)
        most = max(most, ledger.most + sum(stream._state._other_bytes for stream in streams))
        together.add(sum(stream.num_frames > 0 for stream in streams))
        return said

    monkeypatch.setattr(StreamSession, "__init__", counted)
    monkeypatch.setattr(StreamSession, "step_many", stepped)
    together, held, memory = set(), [], 21 * model.config.cached_frame_bytes(28, 28)
    ledger = Ledger(monkeypatch)
    session = LongSession(model, policy, length=14, overlap=4, loops=loops, memory=memory, size=28)
    caplog.clear()
    for i, said in enumerate(session.run(images, chunk=2)):
        assert said.index == i
        held.append(len(session.held_frames))
        if i == 32:  # within an overlap
            session.close_loops()
    assert max(together) == (3 if loops else 2)
    assert 0.4 * memory < most <= memory
    assert session.num_submaps == 4
    if not isinstance(policy, TokenBudget):
        assert 5 < max(held) <= (6 if loops else 10)  # of 14
    assert len({record.message for record in caplog.records}) == len(caplog.records) <= 1, caplog.messages


# --- what goes wrong


STILL = Drift(0, 0, 0, 0, 0, 0)


def errors_of(predictions, unit=1.0):
    truth = [true_pose(said.index) for said in predictions]
    centres = invert_pose(poses_of(predictions))[..., 3]
    first = invert_pose(true_pose(0))
    want = (invert_pose(np.stack(truth))[..., 3] - first[:, 3]) @ first[:, :3]
    return np.linalg.norm(centres / unit - want, axis=1)


def first_unit(predictions):
    return np.median(predictions[0].depth / true_depth(true_pose(0)))


def test_an_overlap_that_is_not_finite_is_made_again_and_told_once(caplog):
    model = KnowsTheTruth(STILL, broken=range(28, 37))
    session = LongSession(model, length=32, overlap=4, loops=False)
    submaps, got = [], []
    for i in range(120):
        got.append(session.step(picture(i)))
        submaps.append(session.num_submaps)
    # Overlaps 28 to 31 and 32 to 35 tell nothing, 36 to 39 does: the new sub-map gives out frame 40.
    assert np.flatnonzero(np.diff(submaps)).tolist() == [39, 67, 95]
    assert [record.message for record in caplog.records if "goes on" in record.message] == [
        "sub-map 0 goes on, for nothing tells yet how the next one lies: an alignment needs at least 3 points with a "
        "weight, got 0"
    ]
    sound = [said for said in got if said.index not in model.broken]
    assert errors_of(sound, first_unit(got)).max() < 1e-3 * RADIUS
    assert all(np.isnan(got[i].depth).all() for i in model.broken)


def test_frames_of_an_overlap_that_are_finite_suffice(caplog):
    session = LongSession(KnowsTheTruth(STILL, broken=(28, 30, 31)), length=32, overlap=4, loops=False)
    got = list(session.run(map(picture, range(60)), chunk=8))
    assert session.num_submaps == 2 and not caplog.records
    assert errors_of(got[32:], first_unit(got)).max() < 1e-3 * RADIUS


def test_a_sub_map_that_never_recovers_ends_and_a_loop_finds_the_next_one(caplog):
    """From frame 20 on the first sub-map is lost. The third lap is laid on what there is of the first, 20 frames."""
    model = KnowsTheTruth(STILL, broken=[20], lasting=True)
    session, got, held = LongSession(model, length=32, overlap=4), [], []
    for i in range(3 * LAP):
        got.append(session.step(picture(i)))
        held.append(len(session.held_frames))
    session.close_loops()
    assert max(held) == 64  # twice the length, and no more
    assert [record.message for record in caplog.records] == [
        "sub-map 0 goes on, for nothing tells yet how the next one lies: an alignment needs at least 3 points with a "
        "weight, got 0",
        "sub-map 1 begins where the last known camera is, for nothing tells more",
    ]
    assert all(np.isnan(said.extrinsics).all() for said in got[20:64])
    # The new sub-map begins with frame 60, which stands where frame 19 was, in the unit that its network took.
    at_60 = np.vstack([true_pose(60), [0, 0, 0, 1]])
    seen = true_pose(64) @ np.linalg.inv(at_60)
    seen[:, 3] *= np.median(got[64].depth / true_depth(true_pose(64)))
    want = seen @ np.vstack([got[19].extrinsics, [0, 0, 0, 1]])
    np.testing.assert_allclose(got[64].extrinsics, want, atol=1e-4)
    moved = corrected(session, got)
    unit = first_unit(got)
    assert errors_of([*moved[:20], *moved[64:]], unit).max() < 0.05 * RADIUS < errors_of(got[64:90], unit).min()


def test_a_failure_in_an_overlap_takes_no_frame(monkeypatch):
    """The one stream has taken the frame when the other fails."""
    frames = [picture(i) for i in range(80)]
    session = LongSession(KnowsTheTruth(STILL), length=32, overlap=4, loops=False)
    got = [session.step(frame) for frame in frames[:30]]
    step_many = StreamSession.step_many

    def fail(self, *args):
        if self.num_frames == 30:
            raise torch.OutOfMemoryError("full")
        return step_many(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StreamSession, "step_many", fail)
        with pytest.raises(torch.OutOfMemoryError):
            session.step(frames[30])
    assert session.num_frames == 30 and session.held_frames == tuple(range(30))
    got += [session.step(frame) for frame in frames[30:]]
    assert [said.index for said in got] == list(range(80))
    assert session.num_submaps == 3  # of 34, 32 and 22 frames
    assert errors_of(got, first_unit(got)).max() < 1e-3 * RADIUS


def test_a_coming_sub_map_that_takes_a_part_of_a_chunk_and_fails_is_begun_anew(monkeypatch):
    """Layers of a token budget share within the chunk, so that it is taken in two parts; the second one fails."""
    frames = list(noise(40))
    session = LongSession(load_model("tiny"), TokenBudget(30), length=16, overlap=8, loops=False, size=28)
    got = [session.step(frame) for frame in frames[:9]]
    forward, calls = DenseHead.forward, []

    def fail(self, *args):
        calls.append(self)
        if len(calls) == 3:  # two dense heads a part
            raise torch.OutOfMemoryError("full")
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DenseHead, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError):
            list(session.run(frames[9:13], chunk=4))
    assert session.num_frames == 9
    got += list(session.run(frames[9:], chunk=4))
    assert [said.index for said in got] == list(range(40))
    assert max(session.held_frames) == 39


def test_a_search_for_loops_that_fails_is_made_again_with_the_next_call(monkeypatch):
    frames = [picture(i) for i in range(2 * LAP)]
    want = LongSession(KnowsTheTruth(Drift()), length=32, overlap=4)
    predictions = list(want.run(frames))
    session, failures, got = LongSession(KnowsTheTruth(Drift()), length=32, overlap=4), 0, []

    def fail(*_args):
        raise torch.OutOfMemoryError("full")

    for frame in frames:
        try:
            with monkeypatch.context() as patch:
                patch.setattr("streamvggt.atlas.Atlas.candidates", fail)
                got.append(session.step(frame))
        except torch.OutOfMemoryError:
            failures += 1
            got.append(session.step(frame))
    session.close_loops()
    assert failures > 0 and len(want.loops) > 1
    assert [vars(loop) for loop in session.loops] == [vars(loop) for loop in want.loops]
    np.testing.assert_array_equal(poses_of(corrected(session, got)), poses_of(corrected(want, predictions)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 8, "overlap": 5}, "from 1 to half of the length, got 5 of 8"),
        ({"overlap": 0}, "from 1 to half"),
        ({"outputs": {"depth"}}, 'needs the outputs "camera" and "depth"'),
        ({"size": 30}, "multiple of the patch size"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LongSession(load_model("tiny"), **options)


def test_scipy_is_needed_for_loops_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    LongSession(load_model("tiny"), loops=False)
    with pytest.raises(ImportError, match=r"streamvggt\[long\]"):
        LongSession(load_model("tiny"))
