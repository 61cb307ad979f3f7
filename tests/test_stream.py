"""A stream is exact: frame by frame, in chunks or all at once give the numbers of a network without any cache."""

from dataclasses import replace

import pytest
import torch
from reference import dense_mask_attention, golden_model, lively, naive_forward, relative_error

from streamvggt.cache import AnchorWindow, KeepAll
from streamvggt.config import StreamVGGTConfig

DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
TRACKS = ("tracks", "track_visibility", "track_conf")


@pytest.fixture(scope="module")
def tiny():
    return lively(StreamVGGTConfig.tiny())


def images(streams, frames, hw, seed=0):
    return torch.rand(streams, frames, 3, *hw, generator=torch.Generator().manual_seed(seed))


def stream(model, video, chunks, state=None, query_points=None):
    """Predictions of a video taken in chunks of the given sizes, joined along the frames."""
    state = state or model.new_state()
    parts = []
    for chunk in video.split(chunks, dim=1):
        parts.append(model(chunk, state=state, query_points=query_points if not parts else None))
    names = DENSE if query_points is None else DENSE + TRACKS
    joined = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names}
    joined["pose_enc_iterations"] = torch.cat([part.pose_enc_iterations for part in parts], dim=2)
    return joined


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("hw", [(84, 112), (112, 112), (56, 42), (14, 14)], ids=str)
def test_batch_chunks_and_stream_equal_the_naive_network(tiny, streams, hw):
    video = images(streams, 6, hw)
    want = naive_forward(tiny, video)
    with torch.no_grad():
        batch = tiny(video)
    for name in (*DENSE, "pose_enc_iterations"):
        assert relative_error(getattr(batch, name), getattr(want, name)) < 1e-5, name
    for chunks in ([1] * 6, [2, 3, 1], [6]):
        for name, got in stream(tiny, video, chunks).items():
            assert relative_error(got, getattr(want, name)) < 1e-5, (chunks, name)


@pytest.mark.parametrize("case", ["dinov2-landscape", "conv-batch"])
def test_released_weights_stream_as_the_naive_network(case):
    model, expected = golden_model(case)
    want = naive_forward(model, expected["images"])
    for name, got in stream(model, expected["images"], 1).items():
        assert relative_error(got, getattr(want, name)) < 1e-5, name


def test_a_stream_differs_from_frames_taken_alone(tiny):
    video = images(1, 3, (56, 56))
    together, alone = stream(tiny, video, 1)["depth"], [stream(tiny, frame, 1)["depth"] for frame in video.split(1, 1)]
    assert torch.equal(together[:, :1], alone[0])
    assert relative_error(together[:, 1:2], alone[1]) > 1e-3


def test_streams_of_a_batch_do_not_see_each_other(tiny):
    video = images(2, 4, (56, 56))
    both = stream(tiny, video, 1)
    for b in range(2):
        for name, got in stream(tiny, video[b : b + 1], 1).items():
            want = both[name][:, b : b + 1] if name == "pose_enc_iterations" else both[name][b : b + 1]
            assert relative_error(got, want) < 1e-5, name


@pytest.mark.parametrize("changed", [1, 3, 5])
def test_the_future_does_not_leak(tiny, changed):
    video = images(1, 6, (84, 84))
    other = video.clone()
    other[:, changed] = 1 - other[:, changed]
    with torch.no_grad():
        before, after = tiny(video), tiny(other)
    for name in DENSE:
        assert torch.equal(getattr(before, name)[:, :changed], getattr(after, name)[:, :changed]), name
        assert not torch.equal(getattr(before, name)[:, changed:], getattr(after, name)[:, changed:]), name
    chunked = [stream(tiny, x, [4, 2]) for x in (video, other)]
    for name in DENSE:
        assert torch.equal(chunked[0][name][:, :changed], chunked[1][name][:, :changed]), name


def test_full_attention_sees_the_future():
    model = lively(replace(StreamVGGTConfig.tiny(), attention="full"))
    video = images(1, 3, (56, 56))
    other = video.clone()
    other[:, 2] = 1 - other[:, 2]
    with torch.no_grad():
        assert relative_error(model(other).depth[:, :1], model(video).depth[:, :1]) > 1e-4
    with pytest.raises(ValueError, match="cannot stream"):
        model.new_state()


@pytest.mark.parametrize("chunks", [1, 3, 8])
@pytest.mark.parametrize(("anchors", "recent"), [(1, 3), (2, 1), (1, 1)])
def test_a_window_equals_attention_with_a_window_mask(tiny, anchors, recent, chunks):
    """The oracle is dense attention with the mask written down: frame s sees the anchors and the last ``recent``."""
    video = images(1, 8, (56, 56))

    def windowed(q, k, v):
        frames, tokens, width = q.shape[2:]
        frame = torch.arange(frames).repeat_interleave(tokens)
        row, column = frame[:, None], frame[None]
        seen = (column <= row) & ((column < anchors) | (column > row - recent))
        # While the window is not full, frames stay; the rule above would drop none of them.
        seen |= (column <= row) & (row < anchors + recent)
        q, k, v = (x.flatten(2, 3) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ v).unflatten(2, (frames, tokens))

    with torch.no_grad():
        tokens = tiny._tokens(video, [windowed] * tiny.config.depth)
        want = tiny._decode(tokens, (56, 56), lambda _round, _block: windowed)
    state = tiny.new_state(AnchorWindow(anchors, recent))
    got = stream(tiny, video, chunks, state)
    for name in DENSE:
        assert relative_error(got[name], getattr(want, name)) < 1e-5, name
    assert state.held_frames == (*range(anchors), *range(8 - recent, 8))


def test_a_window_that_is_never_full_is_bitwise_keep_all(tiny):
    video = images(1, 5, (56, 70))
    kept, windowed = (stream(tiny, video, 1, tiny.new_state(policy)) for policy in (KeepAll(), AnchorWindow(1, 4)))
    for name in DENSE:
        assert torch.equal(kept[name], windowed[name]), name


def test_memory_is_exact_and_flat_under_a_window(tiny):
    state = tiny.new_state(AnchorWindow(1, 3))
    # K and V in 4 bytes: 4 layers of 5 + 4 * 5 tokens 48 wide, and 4 rounds of 2 camera blocks 96 wide.
    frame_bytes = 2 * 4 * (4 * 25 * 48 + 4 * 2 * 96)
    assert tiny.config.cached_frame_bytes(56, 70) == frame_bytes
    sizes = []
    for frame in images(1, 8, (56, 70)).split(1, dim=1):
        tiny(frame, state=state)
        sizes.append(state.nbytes)
    assert sizes == [frame_bytes * n for n in (1, 2, 3, 4, 4, 4, 4, 4)]
    assert state.num_frames == 8


def test_keep_all_grows_by_doubling_and_keeps_what_it_had(tiny):
    state = tiny.new_state()
    allocated = []
    for frame in images(1, 9, (28, 28)).split(1, dim=1):
        tiny(frame, state=state)
        allocated.append(state._blocks[0]._keys.shape[2])
    assert allocated == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert state.held_frames == tuple(range(9))


def test_a_call_that_fails_can_be_repeated(tiny, monkeypatch):
    video = images(1, 4, (56, 56))
    want = stream(tiny, video, 1)
    state = tiny.new_state()
    first = stream(tiny, video[:, :3], 1, state)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):

        def fail(*_args):
            raise RuntimeError("out of memory")

        patch.setattr(tiny.point_head, "forward", fail)
        tiny(video[:, 3:], state=state)
    assert state.num_frames == 3
    last = tiny(video[:, 3:], state=state)
    for name in DENSE:
        assert torch.equal(torch.cat([first[name], getattr(last, name)], dim=1), want[name]), name


def test_no_gradient_is_kept_by_a_stream(tiny):
    state = tiny.new_state()
    assert not tiny(images(1, 2, (28, 28)), state=state).depth.requires_grad


def test_gradients_of_a_batch_equal_those_of_the_naive_network(tiny):
    video = images(1, 4, (56, 56))

    def gradient(attend):
        tiny.zero_grad()
        tokens = tiny._tokens(video, [attend] * tiny.config.depth)
        said = tiny._decode(tokens, (56, 56), lambda _round, _block: attend)
        (said.depth.log().sum() + said.pose_enc_iterations.square().sum()).backward()
        return tiny.aggregator.global_blocks[0].attn.qkv.weight.grad.clone()

    want = gradient(dense_mask_attention)
    tiny.zero_grad()
    said = tiny(video)
    (said.depth.log().sum() + said.pose_enc_iterations.square().sum()).backward()
    assert relative_error(tiny.aggregator.global_blocks[0].attn.qkv.weight.grad, want) < 1e-4
    tiny.zero_grad()


def test_weights_made_in_inference_mode_tables_still_train(tiny):
    """Tables of positions are made once per grid; one first made in inference mode must not break training."""
    with torch.inference_mode():
        tiny(images(1, 1, (42, 98)))
    tiny(images(1, 1, (42, 98))).depth.sum().backward()
    tiny.zero_grad()


# --- tracks


@pytest.fixture(scope="module")
def steady():
    """A tracker that moves points by less than a pixel.

    Its sines of up to 750 radians a cell blow up the rounding errors of larger moves (see test_golden.py), and then no
    two ways to compute the same tracks agree.
    """
    model = lively(StreamVGGTConfig.tiny())
    with torch.no_grad():
        model.track_head.transformer.flow_head.weight[:2] *= 0.03
    return model


def queries(streams, count, hw, seed=1):
    corner = torch.tensor([hw[1] - 1.0, hw[0] - 1.0])
    return torch.rand(streams, count, 2, generator=torch.Generator().manual_seed(seed)) * corner


@pytest.mark.parametrize("streams", [1, 2])
def test_tracks_of_a_stream_equal_those_of_a_batch_of_the_frames_so_far(steady, streams):
    hw = (56, 84)
    video, points = images(streams, 5, hw), queries(streams, 4, hw)
    for chunks in (1, [2, 3], 5):
        got = stream(steady, video, chunks, query_points=points)
        for t in range(5):
            want = naive_forward(steady, video[:, : t + 1], points)
            for name in TRACKS:
                assert relative_error(got[name][:, t], getattr(want, name)[:, -1]) < 1e-5, (chunks, t, name)
        assert 0.01 < (got["tracks"][:, -1] - points).abs().mean() < 1


def test_points_can_be_named_on_any_frame(steady):
    hw = (56, 84)
    video, first, second = images(1, 6, hw), queries(1, 2, hw), queries(1, 3, hw, seed=2)
    state = steady.new_state()
    counts, last = [], None
    for t in range(6):
        last = steady(video[:, t : t + 1], state=state, query_points={1: first, 3: second}.get(t))
        counts.append(0 if last.tracks is None else last.tracks.shape[2])
    assert counts == [0, 2, 2, 5, 5, 5]
    with torch.no_grad():
        tokens = steady._tokens(video, [dense_mask_attention] * steady.config.depth)
        frames = steady.track_head.features(tokens, hw)
        for start, points, part in ((1, first, slice(0, 2)), (3, second, slice(2, 5))):
            tracks, visibility, confidence = steady.track_head(points, frames[start:])
            assert relative_error(last.tracks[:, 0, part], tracks[:, -1]) < 1e-5
            assert relative_error(last.track_visibility[:, 0, part], visibility[:, -1]) < 1e-5
            assert relative_error(last.track_conf[:, 0, part], confidence[:, -1]) < 1e-5


def test_points_outlive_their_frame_in_a_window(tiny):
    hw = (56, 56)
    video, points = images(1, 9, hw), queries(1, 2, hw)
    state = tiny.new_state(AnchorWindow(1, 2))
    sizes = []
    for t in range(9):
        said = tiny(video[:, t : t + 1], state=state, query_points=points if t == 2 else None)
        sizes.append(state.nbytes)
    assert state.held_frames == (0, 7, 8)
    assert said.tracks.shape == (1, 1, 2, 2)
    assert said.tracks.isfinite().all()
    assert sorted(state.tracks.features) == [7, 8]
    assert len(set(sizes[4:])) == 1  # flat once the window is full of frames with features
