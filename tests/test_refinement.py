"""Cameras from what frames have in common, against worlds whose cameras are known."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

import streamvggt as sv
from streamvggt.follow import FOLLOWED, GUESSED, Look, follow, match, patch_centres
from streamvggt.geometry import compose, invert_pose
from streamvggt.loops import match_together
from streamvggt.metrics import trajectory_metrics
from streamvggt.predict import Keeping, predict
from streamvggt.refinement import Fit, Points, Refiner, Sight
from streamvggt.submaps import Keyframe, View, jpeg_of

ASSETS = Path(__file__).parents[1] / "assets"
SMALL_LIKE = replace(sv.StreamVGGTConfig.tiny(), encoder_dim=64, match_layer=1, camera_reads_patches=True, track=None)


def texture(shape, seed, blur=1.5):
    grain = gaussian_filter(np.random.default_rng(seed).normal(size=shape), blur)
    return 128 + 40 * grain / grain.std()


def camera(turn_deg, place):
    """World-to-camera of a camera at a place, turned by a rotation vector in degrees."""
    turn = Rotation.from_rotvec(np.deg2rad(turn_deg)).as_matrix()
    return invert_pose(np.concatenate([turn, np.array(place, float)[:, None]], axis=1))


def turn_between(one, other):
    """Degrees."""
    return np.rad2deg(Rotation.from_matrix(one[:, :3] @ other[:, :3].T).magnitude())


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.3, -1.7), (-5.25, 4.5)])
def test_windows_are_followed_to_a_twentieth_of_a_pixel_through_a_change_of_light(shift):
    picture = texture((80, 112), 0)
    y, x = np.mgrid[:80, :112].astype(float)
    moved = map_coordinates(picture, [y - shift[1], x - shift[0]], order=3, mode="reflect")
    at = patch_centres((80, 112), 14)
    at = at[(at > 20).all(1) & (at < (92, 60)).all(1)]
    there, good = follow(picture.astype(np.uint8), (20 + 0.7 * moved).astype(np.uint8), at, at + shift + (2.0, -1.5))
    assert good.all() and len(at) == 18
    assert np.abs(there - at - shift).max() < 0.05


def test_windows_without_texture_or_with_another_are_not_followed():
    at = np.array([[40.0, 40.0]])
    flat, one, other = np.full((80, 80), 90, np.uint8), *(texture((80, 80), i).astype(np.uint8) for i in (1, 2))
    assert not follow(flat, flat, at, at)[1].any()
    assert not follow(one, other, at, at)[1].any()


def test_patches_are_matched_where_each_is_the_others_nearest_and_placed_between_patches():
    rng = np.random.default_rng(3)
    flat = np.full((56, 70), 100, np.uint8)
    described = rng.normal(size=(4, 5, 16))
    # The other frame sees everything one patch further right; its first column is new.
    moved = np.concatenate([rng.normal(size=(4, 1, 16)), described[:, :-1]], axis=1)
    looks = [
        Look((d / np.linalg.norm(d, axis=-1, keepdims=True)).reshape(20, 16).astype(np.float32), flat)
        for d in (described, moved)
    ]
    places = patch_centres((56, 70), 14)
    assert places[6].tolist() == [20.5, 20.5]  # second row, second column
    found = match(*looks, places, 14)
    seen = {int(patch) for patch in found.patches}
    assert seen >= {patch for patch in range(20) if patch % 5 < 4}
    inner = found.patches % 5 < 4
    assert np.abs(found.found - found.at - (14, 0))[inner].max() < 0.5  # noise of the softmax of unlike neighbours
    assert (found.weight == GUESSED).all()


def scene(rng, count=150, outliers=0.0, depth_error=0.0, noise_px=0.0, focal=150.0):
    """Points seen by a camera at the origin and found by one that has moved."""
    start = np.stack([rng.uniform(-110, 110, count), rng.uniform(-80, 80, count)], 1)
    depth = rng.uniform(2, 8, count)
    truth = camera((3, -6, 2), (0.4, -0.1, 0.3))
    world = np.concatenate([start / focal, np.ones((count, 1))], 1) * depth[:, None]
    there = world @ truth[:, :3].T + truth[:, 3]
    found = there[:, :2] / there[:, 2:] * focal + rng.normal(0, noise_px, (count, 2))
    wrong = rng.random(count) < outliers
    found[wrong] += rng.uniform(-60, 60, (wrong.sum(), 2))
    depth = depth * np.exp(rng.normal(0, depth_error, count))
    pose = np.broadcast_to(np.eye(3, 4), (count, 3, 4))
    return Points(start, depth, pose, found, np.full(count, FOLLOWED)), truth, world


def test_the_camera_of_exact_matches_is_found_exactly_whatever_a_third_of_them_say():
    points, truth, _ = scene(np.random.default_rng(0), outliers=0.33)
    found = points.fit(np.eye(3, 4), np.log(150.0)).extrinsics
    assert turn_between(found, truth) < 1e-3
    np.testing.assert_allclose(found[:, 3], truth[:, 3], atol=1e-4)
    assert (points.errors(found, np.log(150.0)) < 1e-3).mean() > 0.6
    np.testing.assert_allclose(points.depth_in(truth, np.log(150.0)), scene(np.random.default_rng(0))[2] @ truth[2, :3] + truth[2, 3])  # fmt: skip  # noqa: E501


def test_noisy_matches_give_what_scipy_makes_of_them():
    points, truth, world = scene(np.random.default_rng(1), noise_px=0.5)

    def residuals(step):
        turned = world @ (Rotation.from_rotvec(step[:3]).as_matrix() @ truth[:, :3]).T + truth[:, 3] + step[3:]
        return (turned[:, :2] / turned[:, 2:] * 150.0 - points.found).ravel()

    best = least_squares(residuals, np.zeros(6), loss="huber", f_scale=1.0).x
    expected = Rotation.from_rotvec(best[:3]).as_matrix() @ truth[:, :3]
    found = points.fit(np.eye(3, 4), np.log(150.0)).extrinsics
    assert turn_between(found, np.concatenate([expected, truth[:, 3:]], 1)) < 0.1
    assert np.linalg.norm(found[:, 3] - truth[:, 3] - best[3:]) < 0.02


def test_the_rotation_stands_though_all_depths_are_a_third_off():
    errors = []
    for seed in range(5):
        points, truth, _ = scene(np.random.default_rng(seed), depth_error=0.3, noise_px=0.3)
        errors.append(turn_between(points.fit(np.eye(3, 4), np.log(150.0)).extrinsics, truth))
    assert np.median(errors) < 0.4  # of 7 degrees


def test_rotation_tells_the_focal_length_and_going_straight_ahead_does_not():
    rng = np.random.default_rng(2)
    start = np.stack([rng.uniform(-110, 110, 200), rng.uniform(-80, 80, 200)], 1)
    depth = rng.uniform(2, 8, 200)
    pose = np.broadcast_to(np.eye(3, 4), (200, 3, 4))
    told = {}
    for name, truth in {"turns": camera((0, 15, 0), (0, 0, 0)), "ahead": camera((0, 0, 0), (0, 0, 0.5))}.items():
        world = np.concatenate([start / 150.0, np.ones((200, 1))], 1) * depth[:, None]
        there = world @ truth[:, :3].T + truth[:, 3]
        found = there[:, :2] / there[:, 2:] * 150.0 + rng.normal(0, 0.3, (200, 2))
        told[name] = Points(start, depth, pose, found, np.full(200, FOLLOWED)).fit(np.eye(3, 4), np.log(150.0 * 1.05))
    step = told["turns"].gradient / told["turns"].information  # Newton's, in the logarithm
    assert step == pytest.approx(-np.log(1.05), abs=0.015)
    assert told["ahead"].information < 0.02 * told["turns"].information


def test_what_a_frame_tells_of_the_focal_length_counts_once(monkeypatch):
    """By a frame that is told to ask for half again as long a lens, with as much right as the network has."""
    wanted, certainty = np.log(150.0 * 1.5), 75.0
    information = 300.0  # a variance of 1 / 300, and of 1 / 100 for what it may be wrong: 1 / 75
    monkeypatch.setattr(Points, "fit", lambda _, pose, focal: Fit(pose, information * (wanted - focal), information))
    monkeypatch.setattr(Points, "errors", lambda self, *_: np.zeros(len(self.depth)))
    points, *_ = scene(np.random.default_rng(0))
    sight = Sight(np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), np.eye(3, 4))
    refiner = Refiner(14, sight, sight, np.zeros(6), np.log(150.0), np.log(150.0), certainty)
    after, _ = refiner._fit([points])
    assert after.log_focal == pytest.approx((np.log(150.0) + wanted) / 2)  # half way, also after the second look
    assert after.certainty == pytest.approx(2 * certainty)
    information = 99.0  # less than what an error of the depths can seem to tell
    after, _ = refiner._fit([points])
    assert (after.log_focal, after.certainty) == (np.log(150.0), certainty)


@pytest.fixture(scope="module")
def rooms():
    """Frames of two bundled clips, and their cameras."""
    found = {}
    for name in ("living_room", "playroom"):
        frames = list(sv.read_frames(ASSETS / f"{name}.mp4", fps=None, max_frames=24))[::2]
        found[name] = frames, np.load(ASSETS / f"{name}.npz")["extrinsics"][:24:2]
    return found


def pairs(poses):
    return itertools.pairwise(poses)


def motion(before, after):
    """From one camera to the next, ``[3, 4]``."""
    before, after = (torch.from_numpy(pose.astype(np.float64)) for pose in (before, after))
    return compose(after, invert_pose(before)).numpy()


def said_of(session, frames):
    return np.stack([said.extrinsics for said in session.run(frames)])


@pytest.mark.parametrize("name", ["living_room", "playroom"])
def test_refined_cameras_of_the_bundled_model_err_by_a_third_of_what_its_camera_head_does(rooms, name):
    frames, truth = rooms[name]
    model, outputs = sv.load_model(), {"camera", "depth"}
    errors = []
    for refine in (False, True):
        cameras = said_of(sv.StreamSession(model, outputs=outputs, refine=refine), frames)
        steps = [
            turn_between(motion(*pair), motion(*true)) for pair, true in zip(pairs(cameras), pairs(truth), strict=True)
        ]
        errors.append((np.mean(steps), trajectory_metrics(cameras.astype(float), truth.astype(float)).ate_rmse))
    (turn, path), (refined_turn, refined_path) = errors
    assert refined_turn < turn / 3 and refined_path < path / 2


@pytest.fixture(scope="module")
def like_small():
    torch.manual_seed(0)
    return sv.StreamVGGT(SMALL_LIKE).eval()


def pictures(count):
    """A textured wall that goes by, slow enough for patches to be found again by a network that has learnt nothing."""
    wall = texture((70, 84 + count), 5, blur=3)
    frames = [np.repeat(wall[:, i : i + 84, None], 3, 2) for i in range(count)]
    return [frame.clip(0, 255).astype(np.uint8) for frame in frames]


OPTIONS = {"size": 84, "refine": True}


def test_chunks_and_a_stop_change_nothing(like_small, tmp_path):
    frames = pictures(7)
    expected = said_of(sv.StreamSession(like_small, **OPTIONS), frames)
    assert min(np.abs(after - before).max() for before, after in pairs(expected)) > 0.005  # the camera goes along
    session = sv.StreamSession(like_small, **OPTIONS)
    said = [session.step(frames[0]), *session.step_many(frames[1:4])]
    session.save(tmp_path / "stream.safetensors")
    session = sv.StreamSession.resume(like_small, tmp_path / "stream.safetensors")
    assert session.refine
    said += [*session.step_many(frames[4:6]), session.step(frames[6])]
    for patches in (one.patch_descriptors for one in said):
        assert patches.base is None or patches.base.nbytes == patches.nbytes, "a frame keeps its whole chunk alive"
    np.testing.assert_allclose(np.stack([one.extrinsics for one in said]), expected, atol=1e-4)
    session.reset()
    np.testing.assert_array_equal(said_of(session, frames), expected)


def test_points_keep_their_places_before_the_camera_and_the_first_camera_stays(like_small):
    frames = pictures(4)
    plain = list(sv.StreamSession(like_small, size=84).run(frames))
    refined = list(sv.StreamSession(like_small, **OPTIONS).run(frames))
    np.testing.assert_array_equal(refined[0].extrinsics, plain[0].extrinsics)
    for one, other in zip(plain, refined, strict=True):
        before, after = (s.world_points @ s.extrinsics[:, :3].T + s.extrinsics[:, 3] for s in (one, other))
        np.testing.assert_allclose(after, before, atol=1e-4)
        np.testing.assert_array_equal(one.depth, other.depth)
    assert np.abs(refined[3].extrinsics - plain[0].extrinsics).max() > 0.01  # and yet it has moved
    assert refined[0].intrinsics[0, 0] == pytest.approx(refined[0].intrinsics[1, 1])


def test_where_nothing_is_found_again_the_camera_stays_and_where_numbers_are_none_it_waits():
    rng = np.random.default_rng(0)
    image = np.repeat(texture((56, 70), 1)[..., None], 3, 2).clip(0, 255).astype(np.uint8)
    patches = rng.normal(size=(20, 8)).astype(np.float32)
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    depth, pose = np.full((56, 70), 2.0, np.float32), camera((0, 5, 0), (1, 0, 0)).astype(np.float32)
    lens = np.array([[60, 0, 35], [0, 66, 28], [0, 0, 1]], np.float32)
    waiting, said, _ = Refiner(14).step(image, patches, depth, pose * np.nan, lens)
    assert waiting.previous is None and np.isnan(said).all()
    begun, said, intrinsics = waiting.step(image, patches, depth, pose, lens)
    np.testing.assert_array_equal(said, pose)
    np.testing.assert_allclose(np.diag(intrinsics), [np.sqrt(60 * 66), np.sqrt(60 * 66), 1], rtol=1e-6)
    for broken in (np.full_like(depth, np.nan), np.zeros_like(depth)):
        after, said, _ = begun.step(image, patches, broken, pose * 3, lens)
        after, said, _ = after.step(image, patches, depth, pose * 3, lens)  # nothing to lift by
        np.testing.assert_array_equal(said, after.previous.extrinsics.astype(np.float32))
        np.testing.assert_allclose(said, pose, atol=1e-5)
    elsewhere = -patches
    after, said, _ = begun.step(255 - image, elsewhere, depth, pose * 3, lens)
    np.testing.assert_array_equal(said, pose)


def described(count, seed=0, width=32):
    """Patches that are all unlike each other."""
    patches = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return patches / np.linalg.norm(patches, axis=1, keepdims=True)


LENS = np.array([[100, 0, 42], [0, 100, 35], [0, 0, 1]], np.float32)


def test_a_wall_without_texture_moves_no_camera():
    """All patches alike: what is guessed then leans to the middle of the image."""
    image, patches = np.full((70, 84, 3), 90, np.uint8), described(30)
    alike = 10 * described(1) + 0.1 * patches
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    refiner, pose = Refiner(14), np.eye(3, 4, dtype=np.float32)
    for _ in range(4):
        refiner, said, _ = refiner.step(image, alike, np.full((70, 84), 2.0, np.float32), pose, LENS)
        np.testing.assert_array_equal(said, pose)


def test_a_flash_is_as_if_it_had_not_been():
    frames, depth, pose = pictures(5), np.full((70, 84), 2.0, np.float32), np.eye(3, 4, dtype=np.float32)
    flash = np.full((70, 84, 3), 255, np.uint8)

    def cameras(shown):
        refiner, said = Refiner(14), []
        for image in shown:
            patches = described(30, seed=int(image is flash))
            refiner, extrinsics, _ = refiner.step(image, patches, depth, pose, LENS)
            said.append(extrinsics)
            motions.append(refiner.motion)
        return said

    motions = []
    without = cameras(frames)
    motions.clear()
    through = cameras([*frames[:3], flash, *frames[3:]])
    np.testing.assert_allclose(motions[3:5], [motions[2] / 2] * 2)  # the guess beside the flash tells of no motion
    np.testing.assert_allclose(motion(*through[2:4]), motion(*through[1:3]), atol=1e-6)
    np.testing.assert_allclose(through[4], without[3], atol=5e-3)  # one reference instead of two
    np.testing.assert_allclose(through[5], without[4], atol=5e-3)
    assert np.abs(without[3] - without[2]).max() > 0.01  # 1 pixel of 100, at a depth of 2


def test_a_camera_that_is_lost_moves_on_and_slows_down():
    image, depth, pose = (
        np.full((70, 84, 3), 90, np.uint8),
        np.full((70, 84), 2.0, np.float32),
        camera((5, 0, 0), (1, 0, 0)),
    )
    going = np.array([0.1, -0.2, 0.3, 0.01, 0.02, 0.03])
    refiner, *_ = Refiner(14).step(image, described(30), depth, pose.astype(np.float32), LENS)
    refiner, expected = replace(refiner, motion=going), pose
    for share in (1, 0.5, 0.25):
        refiner, said, _ = refiner.step(image, described(30), depth, pose.astype(np.float32), LENS)
        turn = Rotation.from_rotvec(share * going[:3]).as_matrix()
        expected = np.concatenate(
            [turn @ expected[:, :3], (turn @ expected[:, 3] + share * going[3:])[:, None]], axis=1
        )
        np.testing.assert_allclose(said, expected, atol=1e-6)
    assert refiner.keyframe.extrinsics == pytest.approx(pose)


def test_the_next_camera_is_expected_where_the_motion_before_leads_to(monkeypatch):
    expected, fit = [], Points.fit
    monkeypatch.setattr(Points, "fit", lambda self, *args: expected.append(args[0]) or fit(self, *args))
    refiner, said, depth = Refiner(14), [], np.full((70, 84), 2.0, np.float32)
    for image in pictures(4):
        expected.clear()
        refiner, extrinsics, _ = refiner.step(image, described(30), depth, np.eye(3, 4, dtype=np.float32), LENS)
        said.append(extrinsics)
    leads = compose(*(torch.from_numpy(part).double() for part in (motion(*said[1:3]), said[2]))).numpy()
    assert len(expected) >= 2 and np.abs(leads - said[2]).max() > 0.01
    np.testing.assert_allclose(expected, [leads] * len(expected), atol=1e-6)
    again = Refiner.unpack(14, *refiner.pack())
    assert again.motion.tolist() == refiner.motion.tolist() != refiner.restarted().motion.tolist() == [0] * 6


def test_points_that_tell_little_leave_the_camera_where_it_is_expected():
    points, truth, _ = scene(np.random.default_rng(0))
    expected = camera((1, 2, 3), (0.2, 0.1, 0))
    np.testing.assert_allclose(replace(points, weight=points.weight * 1e-12).fit(expected, np.log(150.0)).extrinsics, expected, atol=1e-9)  # fmt: skip  # noqa: E501
    # One point tells two numbers of six: the camera sees it, and else moves as little as it can.
    lone = points.select(np.arange(len(points.depth)) == 0)
    found = lone.fit(expected, np.log(150.0)).extrinsics
    assert lone.errors(found, np.log(150.0)) < 0.05 * lone.errors(expected, np.log(150.0))
    assert turn_between(found, expected) < turn_between(truth, expected)


def test_a_step_that_fails_leaves_the_cameras_as_they_were(like_small, monkeypatch):
    frames = pictures(4)
    options = {**OPTIONS, "outputs": {"camera", "depth"}}
    expected = said_of(sv.StreamSession(like_small, **options), frames)
    session, step = sv.StreamSession(like_small, **options), Refiner.step
    said = [one.extrinsics for one in session.step_many(frames[:2])]
    calls = []

    def fails_second(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return step(self, *args)

    monkeypatch.setattr(Refiner, "step", fails_second)
    before = session._refiner
    with pytest.raises(MemoryError):
        session.step_many(frames[2:])
    assert session._refiner is before and session.num_frames == 2
    said += [one.extrinsics for one in session.step_many(frames[2:])]
    np.testing.assert_allclose(np.stack(said), expected, atol=1e-4)


def test_derivatives_of_what_a_camera_sees_are_those_of_finite_differences():
    points, truth, _ = scene(np.random.default_rng(4))
    jacobian, nudge = points._seen(truth, np.log(150.0)).jacobian, 1e-6
    for k, step in enumerate(nudge * np.eye(6)):
        ends = []
        for sign in (1, -1):
            moved = Rotation.from_rotvec(sign * step[:3]).as_matrix() @ truth
            moved[:, 3] += sign * step[3:]
            ends.append(points._seen(moved, np.log(150.0)).xy)
        np.testing.assert_allclose(jacobian[:, :, k], (ends[0] - ends[1]) / (2 * nudge), atol=1e-5)


def keyframe(image, patches, depth, scale=1.0):
    said = sv.FramePrediction(
        0, 0.0, image, depth, np.full(depth.shape, 5, np.float32), None, None, np.eye(3, 4, dtype=np.float32), LENS
    )
    said = sv.move_prediction(said, sv.Similarity(scale, np.eye(3), np.zeros(3)))
    return Keyframe(0, jpeg_of(image), np.zeros(8, np.float32), View.of(said), patches.astype(np.float16))


@pytest.mark.filterwarnings("error")
def test_depths_that_are_not_finite_tell_nothing_of_a_loop():
    image, patches = pictures(1)[0], described(30)
    depth = np.full((70, 84), 2.0, np.float32)
    whole, broken, half = depth, np.full_like(depth, np.nan), depth.copy()
    half[35:] = np.nan
    few = depth.copy()
    few[:14, :56] = np.inf
    good = keyframe(image, patches, whole)
    found, shared = match_together(good, keyframe(image, patches, whole, 3.0), 14)
    assert found.scale == pytest.approx(1 / 3, rel=0.01) and shared > 0.9
    for other in (broken, half):  # of 30 patches, 25 must agree
        for pair in ((good, keyframe(image, patches, other)), (keyframe(image, patches, other), good)):
            assert match_together(*pair, 14)[0] is None
    found, _ = match_together(good, keyframe(image, patches, few, 3.0), 14)
    assert found.scale == pytest.approx(1 / 3, rel=0.01)


def test_what_cannot_be_refined_is_told(like_small):
    with pytest.raises(ValueError, match=r"soft matches \(config.match_layer\), and this one has none"):
        sv.StreamSession(sv.StreamVGGT(replace(SMALL_LIKE, match_layer=None)).eval(), **OPTIONS)
    with pytest.raises(ValueError, match=r"needs the outputs \"camera\" and \"depth\", got \['camera'\]"):
        sv.StreamSession(like_small, outputs={"camera"}, **OPTIONS)


def test_two_frames_of_one_place_say_how_two_sub_maps_lie(rooms):
    """Two streams over one clip; the second begins later, in other units: the truth tells how it lies."""
    frames, truth = rooms["living_room"]
    model = sv.load_model()
    sessions = [
        list(sv.StreamSession(model, outputs={"camera", "depth"}, refine=True).run(f))
        for f in (frames[:6], frames[4:10])
    ]
    keyframes = []
    for said, scale in ((sessions[0][5], 1.0), (sessions[1][2], 3.0)):
        said = sv.move_prediction(said, sv.Similarity(scale, np.eye(3), np.zeros(3)))
        keyframes.append(Keyframe(0, jpeg_of(said.image), said.descriptor, View.of(said), said.patch_descriptors.astype(np.float16)))  # fmt: skip  # noqa: E501
    found, shared = match_together(*keyframes, 14)
    assert shared > 0.3
    assert found.scale == pytest.approx(1 / 3, rel=0.1)
    expected = invert_pose(motion(truth[0], truth[4]))  # from the second world to the first
    assert np.rad2deg(Rotation.from_matrix(found.rotation @ expected[:, :3].T).magnitude()) < 1
    elsewhere = replace(keyframes[1], patches=-keyframes[1].patches)
    assert match_together(keyframes[0], elsewhere, 14)[0] is None


def test_evaluation_scores_the_cameras_and_clouds_of_a_refined_stream(like_small):
    frames = pictures(4)
    expected = list(sv.StreamSession(like_small, **OPTIONS).run(frames))
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    own, points = predict(like_small, images, keeping=Keeping(refine=True))
    np.testing.assert_allclose(own.extrinsics, np.stack([said.extrinsics for said in expected]), atol=1e-5)
    for said, cloud, other in zip(expected, own.world_points, points.world_points, strict=True):
        np.testing.assert_allclose(cloud, sv.unproject(said.depth, said.extrinsics, said.intrinsics), atol=1e-4)
        np.testing.assert_allclose(other, said.world_points, atol=1e-4)
    with pytest.raises(ValueError, match="networks with soft matches alone"):
        predict(sv.load_model("tiny"), images, keeping=Keeping(refine=True))
