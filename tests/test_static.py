"""Caches of fixed size and compiled blocks say what eager streams say."""

import numpy as np
import pytest
import torch
from reference import lively, relative_error

from streamvggt import static
from streamvggt.config import StreamVGGTConfig
from streamvggt.policies import AnchorWindow, KeepAll, Keyframes, TokenBudget
from streamvggt.session import StreamSession

FIELDS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


@pytest.fixture(scope="module")
def tiny():
    return lively(StreamVGGTConfig.tiny())


@pytest.fixture
def not_compiled(monkeypatch):
    """Run what would be compiled as it is: the same code on the same buffers, without the wait."""
    calls = []

    def run(*arguments):
        calls.append(arguments)
        return static.run_block(*arguments)

    monkeypatch.setattr(static, "_compiled", lambda: run)
    return calls


def images(streams, frames, hw=(28, 28), seed=0):
    return torch.rand(streams, frames, 3, *hw, generator=torch.Generator().manual_seed(seed))


def assert_equal_streams(model, video, chunks, first, second, tolerance=1e-5):
    for chunk in video.split(chunks, dim=1):
        want, got = model(chunk, state=first), model(chunk, state=second)
        for field in FIELDS:
            assert relative_error(getattr(got, field), getattr(want, field)) < tolerance, field
        assert first.held_frames == second.held_frames


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("policy", [AnchorWindow(1, 3), AnchorWindow(2, 1), Keyframes(1, 2, 2)], ids=str)
def test_a_static_stream_equals_an_eager_one(tiny, not_compiled, policy, chunks):
    """Nine frames: slots fill up, then are overwritten, within a chunk too."""
    eager, fixed = tiny.new_state(policy), tiny.new_state(policy, compile=True)
    assert_equal_streams(tiny, images(2, 9), chunks, eager, fixed)
    # Per call: 2 encoder blocks, 4 frame blocks; and once there are buffers, 3 global blocks and 4 rounds of 2.
    calls = -(-9 // chunks)
    assert len(not_compiled) == 6 * calls + 11 * (calls - 1)


def test_a_static_stream_holds_on_to_its_buffers_and_their_size(tiny, not_compiled):
    state = tiny.new_state(AnchorWindow(1, 5), compile=True)
    addresses, shapes = set(), set()
    for frame in images(1, 9).split(1, dim=1):
        tiny(frame, state=state)
        stores = [cache.store for cache in (*state._blocks[1:], state._camera[0][0])]
        addresses.add(tuple(x.data_ptr() for store in stores for x in store.buffers.values()))
        shapes.add(tuple(store.tokens for store in stores))
    assert len(addresses) == 1
    assert shapes == {(6 * 9, 6 * 9, 6 * 9, 6)}  # slots of 5 + 4 tokens; a camera has one


def test_a_static_stream_follows_a_change_of_policy_and_a_reset(tiny, not_compiled):
    video = images(1, 9)
    eager, fixed = tiny.new_state(AnchorWindow(1, 5)), tiny.new_state(AnchorWindow(1, 5), compile=True)
    assert_equal_streams(tiny, video[:, :4], 1, eager, fixed)
    for policy in (AnchorWindow(1, 2), AnchorWindow(1, 4)):
        for state in (eager, fixed):
            state.set_policy(policy)
        assert_equal_streams(tiny, video[:, 4:], 1, eager, fixed)
    for state in (eager, fixed):
        state.reset()
    assert_equal_streams(tiny, video, 1, eager, fixed)


def test_without_a_limit_there_is_no_fixed_size(tiny, not_compiled):
    with pytest.raises(ValueError, match="sets no limit"):
        tiny.new_state(KeepAll(), compile=True)
    state = tiny.new_state(AnchorWindow(1, 2), compile=True)
    tiny(images(1, 1), state=state)
    fresh = tiny.new_state(AnchorWindow(1, 2), compile=True)
    for policy, reason in ((KeepAll(), "sets no limit"), (TokenBudget(40), "policy of whole frames")):
        for changed in (fresh, state):
            with pytest.raises(ValueError, match=reason):
                changed.set_policy(policy)
            assert changed.policy == AnchorWindow(1, 2)
    assert tiny(images(1, 1), state=state).depth.isfinite().all()


@pytest.mark.parametrize("chunks", [1, 9])
def test_keep_all_in_caches_of_fixed_size_goes_on_as_keyframes(tiny, not_compiled, chunks, caplog):
    limit, video = 8 * tiny.config.cached_frame_bytes(28, 28), images(1, 9)
    eager, fixed = tiny.new_state(Keyframes(), memory=limit), tiny.new_state(memory=limit, compile=True)
    policies = []
    for chunk in video.split(chunks, dim=1):
        assert_equal_streams(tiny, chunk, chunks, eager, fixed)
        policies.append(fixed.policy)
    held = eager.policy.capacity
    assert 3 < held < 7 and fixed.allocated_bytes <= limit
    assert policies == [KeepAll() if (t + 1) * chunks <= held else eager.policy for t in range(len(policies))]
    [message] = [record.getMessage() for record in caplog.records if "is full" in record.getMessage()]
    assert f"full after {held} frames; from here on it keeps the whole frames that differ: Keyframes(" in message


def test_where_no_compiler_is_the_error_says_what_to_do(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and no-such-compiler is not there"):
        StreamSession(tiny, AnchorWindow(1, 2), compile=True)


@pytest.mark.parametrize("frames", [None, 4, 14], ids=["window", "full", "not yet full"])
def test_a_compiled_stream_goes_on_where_no_compiler_is(tiny, not_compiled, frames, monkeypatch, tmp_path, caplog):
    """With a window, and with all frames until the memory is full."""
    video = list(np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), dtype=np.uint8))
    memory = None if frames is None else frames * tiny.config.cached_frame_bytes(28, 28)
    policy = AnchorWindow(1, 2) if frames is None else KeepAll()
    session = StreamSession(tiny, policy, size=28, memory=memory, compile=True)
    want = [session.step(image).depth for image in video]
    session.reset()
    for image in video[:4]:
        session.step(image)
    assert (session.policy == KeepAll()) == (frames == 14)
    session.save(tmp_path / "stream.safetensors")
    for compiler, warnings in ((None, 0), ("no-such-compiler", 1)):
        if compiler:
            monkeypatch.setenv("CXX", compiler)
        resumed = StreamSession.resume(tiny, tmp_path / "stream.safetensors")
        assert resumed._state.compiled == (compiler is None)
        np.testing.assert_allclose([resumed.step(image).depth for image in video[4:]], want[4:], rtol=1e-5)
        assert caplog.text.count("no-such-compiler is not there") == warnings


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_blocks_share_four_graphs_and_say_what_eager_ones_say(device):
    """Encoder, frame, global and camera blocks are a graph each, whatever their number, and no frame asks for more."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, video = lively(StreamVGGTConfig.tiny()).to(device), images(1, 8).to(device)
    with torch.inference_mode():
        eager, compiled = model.new_state(AnchorWindow(1, 3)), model.new_state(AnchorWindow(1, 3), compile=True)
        assert_equal_streams(model, video[:, :2], 1, eager, compiled, 1e-4 if device == "cuda" else 1e-5)
        assert counters["stats"]["unique_graphs"] == 4
        assert_equal_streams(model, video[:, 2:], 1, eager, compiled, 1e-4 if device == "cuda" else 1e-5)
        assert counters["stats"]["unique_graphs"] == 4
        assert not counters["graph_break"]


@pytest.mark.slow
def test_a_compiled_session_in_half_precision_and_chunks_says_what_an_eager_one_says(tiny):
    video = list(np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), dtype=np.uint8))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        policy = AnchorWindow(1, 3)
        eager, compiled = (StreamSession(tiny, policy, dtype=dtype, compile=compile) for compile in (False, True))
        for want, got in zip(eager.run(video, chunk=2), compiled.run(video, chunk=2), strict=True):
            np.testing.assert_allclose(got.depth, want.depth, rtol=tolerance)
