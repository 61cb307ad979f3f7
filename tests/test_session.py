"""Sessions: numpy frames in, the network's numbers out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import lively

from streamvggt import (
    AnchorWindow,
    Frame,
    KeepAll,
    LongSession,
    StreamSession,
    StreamVGGTConfig,
    from_source_xy,
    preprocess,
    to_source_xy,
)
from streamvggt.refinement import FEWEST_MATCHES


@pytest.fixture(scope="module")
def tiny():
    return lively(StreamVGGTConfig.tiny())


def frames(count, hw=(90, 160), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *hw, 3), dtype=np.uint8))


def test_a_session_says_what_the_network_says(tiny):
    video = frames(3)
    session = StreamSession(tiny)
    got = [session.step(Frame(image, index=7 + i, time_s=0.5 * i)) for i, image in enumerate(video)]
    images = torch.stack([torch.from_numpy(preprocess(image, 112)[0]) for image in video])[None]
    with torch.no_grad():
        want = tiny(images)
    for i, prediction in enumerate(got):
        assert (prediction.index, prediction.time_s) == (i, 0.5 * i)
        assert prediction.image_hw == (56, 112)
        np.testing.assert_array_equal(prediction.image, np.round(images[0, i].permute(1, 2, 0).numpy() * 255))
        for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
            value = getattr(prediction, name)
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, getattr(want, name)[0, i].numpy(), rtol=1e-4, atol=1e-5)
        assert prediction.extrinsics.shape == (3, 4)
        fov_h, fov_w = want.pose_enc[0, i, 7:].clamp(1e-3, np.pi - 1e-3).tolist()
        np.testing.assert_allclose(prediction.intrinsics[0, 0], 56 / np.tan(fov_w / 2), rtol=1e-4)
        np.testing.assert_allclose(prediction.intrinsics[1, 1], 28 / np.tan(fov_h / 2), rtol=1e-4)
        np.testing.assert_array_equal(prediction.intrinsics[:2, 2], [56, 28])
        assert prediction.placement.source_hw == (90, 160)
        assert prediction.tracks is None


def test_run_yields_each_prediction_before_it_asks_for_the_next_frame(tiny):
    taken = []

    def camera():
        for i, image in enumerate(frames(3)):
            taken.append(i)
            yield image

    for prediction in StreamSession(tiny).run(camera()):
        assert taken == list(range(prediction.index + 1))
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("policy", [KeepAll(), AnchorWindow(1, 2)], ids=str)
def test_chunks_say_what_single_frames_say(tiny, policy):
    """Seven frames in chunks of three: two full ones and a rest; a window of three is passed within a chunk."""
    video = frames(7)
    want = list(StreamSession(tiny, policy).run(video))
    session = StreamSession(tiny, policy)
    got = list(session.run(iter(video), chunk=3))
    assert [p.index for p in got] == list(range(7))
    assert [p.time_s for p in got] == [p.time_s for p in want]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        for name in ("depth", "depth_conf", "world_points", "world_points_conf", "extrinsics", "intrinsics"):
            value = getattr(one, name)
            np.testing.assert_allclose(value, getattr(other, name), rtol=1e-5, atol=1e-5 * np.abs(value).max())
            assert value.base is None or value.base.nbytes == value.nbytes, "a frame keeps its whole chunk alive"
    assert session.held_frames == ((0, 5, 6) if policy.capacity else tuple(range(7)))


def test_frames_of_a_chunk_do_not_see_later_ones(tiny):
    video = frames(4)
    other = [*video[:3], 255 - video[3]]
    got, want = (StreamSession(tiny).step_many(x) for x in (other, video))
    for i in range(3):
        np.testing.assert_array_equal(got[i].depth, want[i].depth)
        np.testing.assert_array_equal(got[i].extrinsics, want[i].extrinsics)
    assert not np.array_equal(got[3].depth, want[3].depth)


@pytest.mark.parametrize("last", ["failing source", "bad frame", "other size"])
def test_frames_before_a_failure_are_predicted_in_chunks_too(tiny, last):
    def camera():
        yield from frames(5)
        if last == "failing source":
            raise OSError("unplugged")
        yield np.zeros((90, 160, 5) if last == "bad frame" else (160, 160, 3), np.uint8)

    session, seen = StreamSession(tiny), []
    with pytest.raises(OSError if last == "failing source" else ValueError):
        for prediction in session.run(camera(), chunk=4):
            seen.append(prediction.index)
    assert seen == [0, 1, 2, 3, 4]
    assert session.num_frames == 5


def test_points_named_with_a_chunk_are_followed_from_its_first_frame(tiny):
    video, points = frames(3), np.array([[10.0, 20.0], [100.0, 5.0]])
    one, many = StreamSession(tiny), StreamSession(tiny)
    want = [one.step(image, points if i == 0 else None) for i, image in enumerate(video)]
    got = many.step_many(video, points)
    for a, b in zip(got, want, strict=True):
        assert a.tracks.shape == b.tracks.shape == (2, 2)
        assert a.track_visibility.shape == (2,)
    np.testing.assert_array_equal(got[0].tracks, points)


def test_chunks_without_frames_or_with_frames_of_two_sizes_are_refused(tiny):
    session = StreamSession(tiny)
    with pytest.raises(ValueError, match="at least one frame"):
        session.step_many([])
    with pytest.raises(ValueError, match="56x112 and of 112x112"):
        session.step_many([frames(1)[0], np.zeros((160, 160, 3), np.uint8)])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        next(session.run(frames(1), chunk=0))
    assert session.num_frames == 0


@pytest.mark.parametrize("session", [StreamSession, LongSession])
def test_frames_too_small_to_refine_cameras_by_are_refused(session):
    """Of 16:9, 84 pixels are 6 x 3 patches and 98 pixels 7 x 4; a camera moves when 20 matches agree."""
    model = lively(replace(StreamVGGTConfig.tiny(), encoder_dim=64, match_layer=1, track=None))
    assert FEWEST_MATCHES == 20
    small = session(model, size=84, refine=True)
    with pytest.raises(ValueError, match=r"42x84 pixels have 18 patches, too few .* needs 20; take larger ones"):
        small.step(frames(1)[0])
    assert small.num_frames == 0
    assert session(model, size=84, refine=False).step(frames(1)[0]).image_hw == (42, 84)
    assert session(model, size=98, refine=True).step(frames(1)[0]).image_hw == (56, 98)
    assert session(model, size=70, refine=True).step(frames(1, (80, 100))[0]).image_hw == (56, 70)


def test_arrays_count_as_one_frame_a_second(tiny):
    session = StreamSession(tiny)
    assert [session.step(image).time_s for image in frames(3)] == [0.0, 1.0, 2.0]


def test_held_frames_and_bytes_follow_the_policy(tiny):
    session = StreamSession(tiny, AnchorWindow(1, 2))
    sizes = [(session.step(image), session.nbytes)[1] for image in frames(5)]
    assert session.held_frames == (0, 3, 4)
    assert session.num_frames == 5
    # K and V, 4 bytes: 4 layers of 37 tokens 48 wide, 4 rounds of 2 camera blocks 96 wide; a prototype 48 wide.
    assert sizes == [n * (8 * (4 * 37 * 48 + 4 * 2 * 96) + 4 * 48) for n in (1, 2, 3, 3, 3)]


def test_a_frame_of_another_size_in_mid_stream_is_refused_and_the_stream_goes_on(tiny):
    video = frames(3)
    whole, broken = StreamSession(tiny), StreamSession(tiny)
    want = [whole.step(image) for image in video]
    broken.step(video[0])
    with pytest.raises(ValueError, match=r"56x112.*112x112.*another stream"):
        broken.step(np.zeros((160, 160, 3), np.uint8))
    got = [broken.step(image) for image in video[1:]]
    assert [prediction.index for prediction in got] == [1, 2]
    np.testing.assert_array_equal(got[-1].depth, want[-1].depth)


def test_grey_and_transparent_frames_are_taken(tiny):
    grey = np.full((90, 160), 100, np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgba = np.concatenate([rgb, np.full((90, 160, 1), 255, np.uint8)], axis=2)
    depths = [StreamSession(tiny).step(image).depth for image in (grey, rgb, rgba)]
    np.testing.assert_array_equal(depths[0], depths[1])
    np.testing.assert_array_equal(depths[0], depths[2])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((90, 160, 5), np.uint8), "5"),
        (np.zeros((90, 160, 3), np.float32), "float32"),
        (np.zeros((0, 160, 3), np.uint8), "0"),
        (np.zeros(7, np.uint8), "7"),
    ],
)
def test_what_is_no_image_is_refused(tiny, frame, message):
    session = StreamSession(tiny)
    with pytest.raises(ValueError, match=message):
        session.step(frame)
    assert session.num_frames == 0


def test_points_are_followed_from_the_frame_they_were_named_on(tiny):
    session = StreamSession(tiny)
    video = frames(4)
    points = np.array([[10.0, 20.0], [100.0, 5.0]])
    assert session.step(video[0]).tracks is None
    first = session.step(video[1], points)
    np.testing.assert_array_equal(first.tracks, points)
    later = session.step(video[2], np.array([[1.0, 2.0]]))
    assert later.tracks.shape == (3, 2)
    np.testing.assert_array_equal(later.tracks[2], [1, 2])
    assert later.track_visibility.shape == (3,)
    assert ((later.track_visibility > 0) & (later.track_visibility < 1)).all()


def test_points_are_the_sessions_own(tiny, tmp_path):
    """An array that is named twice, and changed between two calls, as a program with one buffer does."""
    video, points = frames(3), np.array([[10.0, 20.0]], np.float32)
    session, other = StreamSession(tiny), StreamSession(tiny)
    for stream in (session, other):
        for frame in video[:2]:
            stream.step(frame, points if stream is session else points.copy())
    session.save(tmp_path / "stream.safetensors")
    points += 30
    np.testing.assert_array_equal(session.step(video[2]).tracks, other.step(video[2]).tracks)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[10.0, 56.0]], r"point 0 \[10.0, 56.0\] lies outside .* 112x56"),
        ([[10.0, np.nan]], "outside"),
        ([10.0, 5.0], r"\[N, 2\]"),
        (np.zeros((0, 2)), r"\[N, 2\]"),
    ],
)
def test_bad_query_points_are_refused(tiny, points, message):
    session = StreamSession(tiny)
    with pytest.raises(ValueError, match=message):
        session.step(frames(1)[0], np.array(points))
    assert session.num_frames == 0


def test_border_pixels_of_the_source_can_be_followed(tiny):
    session, image = StreamSession(tiny), frames(1, (1080, 1920))[0]
    placement = preprocess(image, 112)[1]
    source = np.array([[0.0, 0.0], [1919.0, 1079.0], [3.0, 800.0]])
    prediction = session.step(image, from_source_xy(source, placement))
    np.testing.assert_allclose(to_source_xy(prediction.tracks, prediction.placement), source, atol=0.01)


def test_other_precisions_are_refused(tiny):
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.bfloat16"):
        StreamSession(tiny, dtype=torch.int8)


def test_the_size_must_fit_the_patches(tiny):
    assert StreamSession(tiny, size=56).step(frames(1)[0]).image_hw == (28, 56)
    for size in (100, 0, -14):
        with pytest.raises(ValueError, match="multiple of the patch size 14"):
            StreamSession(tiny, size=size)


def test_half_precision_keeps_a_half_size_cache_and_float32_heads(tiny):
    full, half = StreamSession(tiny), StreamSession(tiny, dtype=torch.bfloat16)
    video = frames(3)
    for image in video:
        want, got = full.step(image), half.step(image)
    assert got.depth.dtype == np.float32
    # The camera head computes, and caches, in float32; so do prototypes.
    camera_bytes = 3 * (8 * 4 * 2 * 96 + 4 * 48)
    assert half.nbytes - camera_bytes == (full.nbytes - camera_bytes) / 2
    np.testing.assert_allclose(got.depth, want.depth, rtol=0.2)


def test_a_session_says_only_what_it_is_asked_for(tiny):
    video = frames(2)
    want = list(StreamSession(tiny).run(video))
    cameras = list(StreamSession(tiny, outputs={"camera"}).run(video))
    depths = list(StreamSession(tiny, outputs={"depth"}).run(video))
    for camera, depth, whole in zip(cameras, depths, want, strict=True):
        np.testing.assert_array_equal(camera.extrinsics, whole.extrinsics)
        np.testing.assert_array_equal(camera.camera.intrinsics, whole.intrinsics)
        np.testing.assert_array_equal(depth.depth, whole.depth)
        assert camera.depth is camera.depth_conf is camera.world_points is camera.world_points_conf is None
        assert depth.extrinsics is depth.intrinsics is depth.world_points is None
        assert camera.image_hw == depth.image_hw == (56, 112)
    with pytest.raises(ValueError, match=r"no camera.*add 'camera' to outputs"):
        _ = depths[0].camera
    with pytest.raises(ValueError, match="outputs must name"):
        StreamSession(tiny, outputs={"normals"})
