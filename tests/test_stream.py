"""A stream is exact: frame by frame, in chunks or all at once give the numbers of a network without any cache."""

from dataclasses import replace

import pytest
import torch
from reference import dense_mask_attention, golden_model, lively, naive_forward, relative_error

from streamvggt.config import StreamVGGTConfig
from streamvggt.model import StreamVGGT
from streamvggt.policies import AnchorWindow, KeepAll

DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
TRACKS = ("tracks", "track_visibility", "track_conf")


# A network like VGGT, and one with what the bundled model has beside: projected encoder, soft matches, patches read.
CONFIGS = {
    "vggt": StreamVGGTConfig.tiny(),
    "matching": replace(StreamVGGTConfig.tiny(), encoder_dim=64, match_layer=1, camera_reads_patches=True),
}


@pytest.fixture(scope="module", params=CONFIGS)
def tiny(request):
    return lively(CONFIGS[request.param])


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
    # K and V in 4 bytes: 4 layers of 5 + 4 * 5 tokens 48 wide, and 4 rounds of 2 camera blocks 96 wide; a prototype.
    frame_bytes = 2 * 4 * (4 * 25 * 48 + 4 * 2 * 96) + 4 * 48
    assert tiny.config.cached_frame_bytes(56, 70) == frame_bytes
    sizes = []
    for frame in images(1, 8, (56, 70)).split(1, dim=1):
        tiny(frame, state=state)
        sizes.append(state.nbytes)
    descriptors = 0 if tiny.soft_match is None else 2 * 4 * 20 * 64  # of 20 patches, 64 numbers, of two frames
    assert sizes == [frame_bytes * n + descriptors for n in (1, 2, 3, 4, 4, 4, 4, 4)]
    assert state.num_frames == 8


def test_keep_all_grows_by_doubling_and_keeps_what_it_had(tiny):
    state = tiny.new_state()
    allocated = []
    for frame in images(1, 9, (28, 28)).split(1, dim=1):
        tiny(frame, state=state)
        allocated.append(state._blocks[0].store.tokens // 9)
    # 5 special tokens and 4 patches a frame.
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


def test_a_failed_call_on_a_full_window_is_repeated_exactly_or_refused(tiny, monkeypatch):
    """One frame overwrites the slot that its repetition takes. A chunk overwrites frames that it should see first."""
    video = images(1, 9, (56, 56))
    want = stream(tiny, video, 1, tiny.new_state(AnchorWindow(1, 3)))

    def fail(*_args):
        raise RuntimeError("out of memory")

    for chunk in (1, 4):
        state = tiny.new_state(AnchorWindow(1, 3))
        stream(tiny, video[:, :5], 1, state)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(tiny.point_head, "forward", fail)
            tiny(video[:, 5 : 5 + chunk], state=state)
        if chunk == 1:
            got = stream(tiny, video[:, 5:], 1, state)
            for name in DENSE:
                assert torch.equal(got[name], want[name][:, 5:]), name
        else:
            with pytest.raises(ValueError, match="overwrote 3 held frames"):
                tiny(video[:, 5:6], state=state)


def test_inference_mode_and_no_grad_can_take_turns_on_a_stream(tiny):
    video = images(1, 5, (28, 28))
    want = stream(tiny, video, 1)
    state = tiny.new_state()
    got = []
    for t in range(5):
        with torch.inference_mode(t % 2 == 0):
            got.append(tiny(video[:, t : t + 1], state=state).depth.clone())
    assert torch.equal(torch.cat(got, dim=1), want["depth"])


def test_a_default_dtype_in_force_once_does_not_change_later_results(tiny):
    hw = (42, 84)  # tables of positions are made once per grid; no other test has this one
    video = images(1, 1, hw)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.no_grad():
            got = tiny(video)
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative_error(got.depth, naive_forward(tiny, video).depth) < 1e-5
    from streamvggt.rope import rotary_table

    # Token 6 is the patch at row 0, column 1, which stands at (1, 2); axis 1 is x.
    cos, sin = rotary_table((3, 6), 5, 16, torch.device("cpu"))[:, 6, 1]
    angles = 2 * 100.0 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(cos, angles.cos().expand(2, -1))
    torch.testing.assert_close(sin, torch.stack([-angles.sin(), angles.sin()]))


def test_a_refinement_round_learns_only_from_its_own_step(tiny):
    """Gradients of the last round do not reach the rounds before it, nor the pose that they start from."""
    rounds = tiny(images(1, 2, (28, 28))).pose_enc_iterations
    for i, learns in ((0, True), (3, False)):
        [gradient] = torch.autograd.grad(rounds[i].sum(), tiny.camera_head.initial_pose, retain_graph=True)
        assert bool(gradient.any()) == learns, i


def test_a_fresh_network_looks_ahead_with_one_radian():
    torch.manual_seed(0)
    with torch.no_grad():
        pose = StreamVGGT(StreamVGGTConfig.tiny())(images(1, 2, (56, 56))).pose_enc
    torch.testing.assert_close(pose, torch.tensor([0.0] * 6 + [1.0] * 3).expand(1, 2, 9), atol=0.3, rtol=0)


def test_layer_norms_have_the_epsilons_of_the_released_networks(tiny):
    for name, module in tiny.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == (1e-6 if name.startswith("encoder.") else 1e-5), name


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


# --- only what is asked for

FIELDS = {"camera": DENSE[:1], "depth": DENSE[1:3], "points": DENSE[3:]}


@pytest.mark.parametrize("outputs", ["camera", "depth", "points", "camera depth"])
def test_only_the_heads_that_are_asked_for_run_and_say_what_they_always_say(tiny, outputs, monkeypatch):
    outputs = set(outputs.split())
    video = images(1, 3, (56, 56))
    want = stream(tiny, video, 1)
    heads = {"camera": tiny.camera_head, "depth": tiny.depth_head, "points": tiny.point_head}
    for name in heads.keys() - outputs:
        monkeypatch.setattr(heads[name], "forward", None)
    state = tiny.new_state()
    with torch.no_grad():
        batch = tiny(video, outputs=outputs)
    for t in range(3):
        got = tiny(video[:, t : t + 1], state=state, outputs=outputs)
        for output, fields in FIELDS.items():
            for field in fields:
                if output in outputs:
                    assert torch.equal(getattr(got, field), want[field][:, t : t + 1]), field
                    assert relative_error(getattr(batch, field), want[field]) < 1e-5, field
                else:
                    assert getattr(got, field) is None and getattr(batch, field) is None, field


def test_outputs_that_do_not_exist_or_nothing_are_refused(tiny):
    video = images(1, 1, (28, 28))
    for outputs in ({"depth", "normals"}, set(), "depth"):
        with pytest.raises(
            ValueError, match=r"outputs must name one or more of \['camera', 'depth', 'points', 'tracks'\]"
        ):
            tiny(video, outputs=outputs)
    with pytest.raises(ValueError, match="no track head"):
        StreamVGGT(replace(StreamVGGTConfig.tiny(), track=None))(video, outputs={"tracks"})
    with pytest.raises(ValueError, match='"tracks" are not among the outputs'):
        tiny(images(1, 1, (56, 56)), outputs={"depth"}, query_points=queries(1, 2, (56, 56)))


@pytest.mark.parametrize(("first", "later"), [({"depth"}, {"camera"}), ({"camera"}, {"depth"}), ({"points"}, None)])
def test_a_stream_has_cameras_from_its_first_frame_on_or_never(tiny, first, later):
    """Their heads look at earlier cameras; maps do not, and may be wanted of some frames only."""
    video = images(1, 3, (28, 28))
    state = tiny.new_state()
    tiny(video[:, :1], state=state, outputs=first)
    with pytest.raises(ValueError, match="start another stream"):
        tiny(video[:, 1:2], state=state, outputs=later)
    got = tiny(video[:, 1:2], state=state, outputs=first | {"points"})
    assert torch.equal(got.world_points, stream(tiny, video, 1)["world_points"][:, 1:2])


def test_a_stream_that_follows_points_goes_on_doing_so(tiny):
    hw = (56, 56)
    video, state = images(1, 2, hw), tiny.new_state()
    tiny(video[:, :1], state=state, outputs={"camera", "tracks"}, query_points=queries(1, 2, hw))
    with pytest.raises(ValueError, match="follows points"):
        tiny(video[:, 1:], state=state, outputs={"camera"})
    assert tiny(video[:, 1:], state=state, outputs={"camera", "tracks"}).tracks.shape == (1, 1, 2, 2)


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


def test_what_tracks_remember_does_not_keep_a_whole_chunk_alive(tiny):
    hw = (56, 56)
    state = tiny.new_state(AnchorWindow(1, 1))
    tiny(images(1, 9, hw), state=state, query_points=queries(1, 2, hw))
    levels = [*state.tracks.queries[0].features, *(level for maps in state.tracks.features.values() for level in maps)]
    storages = {level.untyped_storage().data_ptr(): level.untyped_storage().nbytes() for level in levels}
    assert sum(storages.values()) == state.tracks.nbytes


def test_points_just_outside_pixel_centres_are_looked_up_at_the_border(tiny):
    """Border pixels of the source lie up to half a pixel outside the centres of the processed image."""
    hw = (56, 84)
    video = images(1, 2, hw)
    outside, inside = torch.tensor([[[-0.4, -0.4]]]), torch.tensor([[[0.0, 0.0]]])
    with torch.no_grad():
        tokens = tiny._tokens(video, [dense_mask_attention] * tiny.config.depth)
        frames = tiny.track_head.features(tokens, hw)
        sample = {tuple(p.flatten().tolist()): tiny.track_head(p, frames[:1]) for p in (outside, inside)}
    (tracks, *_), (inner, *_) = sample.values()
    torch.testing.assert_close(tracks[:, 0], outside)
    torch.testing.assert_close(inner[:, 0], inside)
    from streamvggt.heads.track import _sample

    torch.testing.assert_close(
        _sample(frames[0][0], outside[:, :, None] / 2, "border"), _sample(frames[0][0], inside[:, :, None], "border")
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.tensor([[[torch.nan, 1.0]]]), "finite"),
        (torch.zeros(2, 1, 2), r"\[1, N, 2\]"),
        (torch.zeros(1, 0, 2), r"\[1, N, 2\]"),
        (torch.zeros(1, 1, 3), r"\[1, N, 2\]"),
    ],
)
def test_points_that_cannot_be_followed_are_refused(tiny, points, message):
    with pytest.raises(ValueError, match=message):
        tiny(images(1, 1, (56, 56)), query_points=points)


def test_images_too_small_for_the_tracker_are_refused(tiny):
    model = lively(replace(tiny.config, track=replace(tiny.config.track, correlation_levels=4)))
    with pytest.raises(ValueError, match=r"4 scales .* at least 16 pixels a side, got 14x56"):
        model(images(1, 1, (14, 56)), query_points=torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 1, 3, 50, 56), r"multiples of 14, got \[1, 1, 3, 50, 56\]; use preprocess"),
        (torch.zeros(1, 3, 56, 56), "must be"),
        (torch.zeros(1, 1, 4, 56, 56), "must be"),
        (torch.zeros(1, 0, 3, 56, 56), "must be"),
        (torch.full((1, 1, 3, 56, 56), 255.0), "from 255 to 255; divide"),
        (torch.full((1, 1, 3, 56, 56), torch.nan), "nan"),
        (torch.zeros(1, 1, 3, 56, 56, dtype=torch.uint8), "floating point"),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, video, message):
    state = tiny.new_state()
    with pytest.raises(ValueError, match=message):
        tiny(video, state=state)
    assert (state.num_frames, state.nbytes) == (0, 0)


def test_another_size_or_number_of_streams_is_refused(tiny):
    state = tiny.new_state()
    tiny(images(1, 1, (56, 56)), state=state)
    for video in (images(1, 1, (56, 70)), images(2, 1, (56, 56))):
        with pytest.raises(ValueError, match="another stream"):
            tiny(video, state=state)
    shared = tiny.new_state(camera_cache="shared")
    with pytest.raises(ValueError, match="one frame a call, got 2"):
        tiny(images(1, 2, (56, 56)), state=shared)


def test_arguments_of_a_state_are_checked(tiny):
    for arguments, message in (
        ({"policy": AnchorWindow}, "an instance"),
        ({"storage": "int4"}, "native"),
        ({"camera_cache": "both"}, "per_iteration"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.new_state(**arguments)
    for counts in ((0, 3), (1, 0), (1, 2.5)):
        with pytest.raises(ValueError, match="at least 1"):
            AnchorWindow(*counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tracks_work_in_any_precision_of_the_weights(dtype):
    hw = (56, 56)
    model = lively(StreamVGGTConfig.tiny()).to(dtype)
    said = model(images(1, 2, hw), state=model.new_state(), query_points=queries(1, 2, hw))
    assert said.tracks.dtype == torch.float32
    assert said.tracks.isfinite().all()
