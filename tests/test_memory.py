"""What streams keep: every policy within its memory, and what it chooses against the rule written down naively."""

import logging
import weakref
from dataclasses import replace

import pytest
import torch
from reference import lively, relative_error

from streamvggt import AnchorWindow, KeepAll, Keyframes, StreamVGGTConfig
from streamvggt.cache import frame_prototypes
from streamvggt.state import byte_count

DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
HW = (56, 70)  # 5 special tokens and 20 patches
FRAMES = 12
POLICIES = {
    "all": KeepAll(),
    "window": AnchorWindow(1, 4),
    "keyframes": Keyframes(1, 2, 2),
}
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.fixture(scope="module")
def tiny():
    """A network with every part of the bundled one, and a tracker."""
    return lively(replace(StreamVGGTConfig.tiny(), encoder_dim=64, match_layer=1, camera_reads_patches=True))


def images(streams=1, frames=FRAMES, hw=HW, seed=0):
    return torch.rand(streams, frames, 3, *hw, generator=torch.Generator().manual_seed(seed))


def stream(model, video, state, chunks=1):
    """Predictions of a video in chunks, joined along the frames, and the frames held after each chunk."""
    parts, held = [], []
    for chunk in video.split(chunks, dim=1):
        parts.append(model(chunk, state=state))
        held.append(state.held_frames)
    return {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in DENSE}, held


def first_keys(model, video):
    """Keys of the first global block for every frame, read where they are used; they do not depend on the past."""
    seen = []

    def attend(q, k, v):
        seen.append(k)
        return v

    with torch.no_grad():
        model._tokens(video, [attend] * model.config.depth)
    return seen[0]


def naive_keyframes(keys, special, anchors, bank, recent):
    """Frames held after each frame, from the definition, with plain loops: ``keys [B, heads, S, P, D]``."""
    mean = keys[:, :, :, special:].mean(3)  # [B, heads, S, D]

    def likeness(i, j):
        return sum(
            torch.nn.functional.cosine_similarity(mean[b, :, i].flatten(), mean[b, :, j].flatten(), dim=0).item()
            for b in range(len(mean))
        )

    held, after = [], []
    for frame in range(keys.shape[2]):
        held = [*held, frame]
        if len(held) > anchors + bank + recent:
            chosen, left = held[:anchors] + held[-recent:], held[anchors:-recent]
            for _ in range(bank):
                farthest = min(left, key=lambda i: max(likeness(i, j) for j in chosen))
                chosen.append(farthest)
                left.remove(farthest)
            held = sorted(chosen)
        after.append(tuple(held))
    return after


class Ledger:
    """Counts the bytes of buffers that caches make and let go, at their worst moment."""

    def __init__(self, monkeypatch):
        import streamvggt.stores

        self.now, self.most = 0, 0
        make = streamvggt.stores.new_buffer

        def counted(*args, **kwargs):
            buffer = make(*args, **kwargs)
            size = buffer.nbytes
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(buffer, self.gone, size)
            return buffer

        monkeypatch.setattr(streamvggt.stores, "new_buffer", counted)

    def gone(self, size):
        self.now -= size


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("frames", [5, 9])
@policies
def test_the_memory_is_never_passed_not_even_while_buffers_grow(tiny, policy, frames, streams, monkeypatch):
    whole = tiny.config.cached_frame_bytes(*HW) * streams
    memory = frames * whole
    ledger = Ledger(monkeypatch)
    state = tiny.new_state(policy, memory=memory)
    for t in range(0, FRAMES, 3):
        stream(tiny, images(streams, 3, seed=t), state, chunks=[1, 2])
        assert state.allocated_bytes <= memory
        assert state.nbytes <= state.allocated_bytes
        assert 0 in state.held_frames
        assert t < FRAMES and t + 2 in state.held_frames
    assert ledger.most <= memory
    # Beside the frames there are descriptors, and room to make one of 10 buffers anew.
    assert len(state.held_frames) == min(policy.capacity or FRAMES, {5: 3, 9: 7}[frames])


@policies
def test_a_memory_that_is_never_full_changes_no_bit(tiny, policy):
    video = images(frames=5)
    want, _ = stream(tiny, video, tiny.new_state())
    for memory in (None, "1GB"):
        got, held = stream(tiny, video, tiny.new_state(policy, memory=memory))
        assert held[-1] == (0, 1, 2, 3, 4)
        for name in DENSE:
            assert torch.equal(got[name], want[name]), name


@policies
def test_chunks_hold_and_say_what_single_frames_do(tiny, policy):
    video = images(2)
    memory = 8 * tiny.config.cached_frame_bytes(*HW) * 2
    want, held = stream(tiny, video, tiny.new_state(policy, memory=memory))
    for chunks in ([1, 7, 4], 12):
        state = tiny.new_state(policy, memory=memory)
        got, _ = stream(tiny, video, state, chunks)
        assert state.held_frames == held[-1]
        for name in DENSE:
            assert relative_error(got[name], want[name]) < 1e-5, (chunks, name)


@policies
def test_equal_streams_of_a_batch_are_each_the_stream_alone(tiny, policy):
    video = images()
    want, held = stream(tiny, video, tiny.new_state(policy))
    got, both_held = stream(tiny, video.expand(2, -1, -1, -1, -1), tiny.new_state(policy))
    assert both_held == held
    for name in DENSE:
        assert relative_error(got[name], torch.cat([want[name]] * 2)) < 1e-5, name


@policies
def test_a_stream_that_was_reset_starts_anew(tiny, policy):
    video = images()
    state = tiny.new_state(policy)
    want, held = stream(tiny, video, state)
    tiny(images(frames=1, seed=3), state=state)
    state.reset()
    assert (state.num_frames, state.held_frames, state.nbytes) == (0, (), 0)
    got, again = stream(tiny, video, state)
    assert again == held
    for name in DENSE:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("counts", [(1, 2, 2), (2, 3, 1), (1, 0, 3), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("streams", [1, 2])
def test_keyframes_are_the_farthest_first_ones(tiny, counts, streams):
    video = images(streams, 14)
    want = naive_keyframes(first_keys(tiny, video), 5, *counts)
    _, held = stream(tiny, video, tiny.new_state(Keyframes(*counts)))
    assert held == want


def test_keyframes_by_hand():
    """Five frames on a circle, by angle; the first and the last stay, and 90 degrees is farther from both than 20."""
    angles = torch.deg2rad(torch.tensor([0.0, 20.0, 90.0, 100.0, 45.0]))
    prototypes = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None]
    frames = [0, 4, 5, 7, 9]
    assert Keyframes(1, 1, 1).keep(frames, prototypes) == [0, 7, 9]  # 55 degrees from frame 9, frame 5 only 45
    assert Keyframes(1, 2, 1).keep(frames, prototypes) == [0, 4, 7, 9]  # then 20 degrees against 10
    assert Keyframes(1, 0, 2).keep(frames, prototypes) == [0, 7, 9]


def test_a_prototype_is_the_direction_of_the_mean_patch_key():
    k = torch.tensor([[[[[9.0, 9.0], [1.0, 0.0], [2.0, 0.0]]], [[[9.0, 9.0], [0.0, 3.0], [0.0, 1.0]]]]])
    k = k[0][None]  # 1 stream, 2 heads, 1 frame of 1 special token and 2 patches, 2 numbers
    mean = torch.tensor([1.5, 0.0, 0.0, 2.0])
    torch.testing.assert_close(frame_prototypes(k, 1), (mean / 2.5)[None, None])


def test_keep_all_goes_on_as_keyframes_when_its_memory_is_full_and_says_so_once(tiny, caplog):
    frame = tiny.config.cached_frame_bytes(*HW)
    video = images(frames=20)
    want, _ = stream(tiny, video, tiny.new_state())
    state = tiny.new_state(memory=9 * frame)
    with caplog.at_level(logging.WARNING):
        got, held = stream(tiny, video, state)
    [message] = [record.getMessage() for record in caplog.records]
    assert "full after 7 frames" in message
    assert state.policy == Keyframes(1, 4, 2)
    assert held[6] == tuple(range(7))
    assert len(held[-1]) == 7
    for name in DENSE:
        assert torch.equal(got[name][:, :7], want[name][:, :7]), name


def test_what_a_policy_leaves_open_is_filled_by_the_memory(tiny, caplog):
    frame = tiny.config.cached_frame_bytes(*HW)
    held = {}
    for memory in (None, 16 * frame, 40 * frame):
        state = tiny.new_state(Keyframes(), memory=memory)
        tiny(images(frames=1), state=state)
        held[memory] = state.policy.capacity
    assert held == {None: 24, 16 * frame: 13, 40 * frame: 34}
    assert "room for Keyframes(anchors=1, bank=8, recent=4), not for" in caplog.text


@pytest.mark.parametrize("policy", [AnchorWindow(3, 2), Keyframes(3, 2, 2)], ids=str)
def test_a_memory_for_less_than_a_policy_needs_is_refused_with_the_numbers(tiny, policy):
    frame = tiny.config.cached_frame_bytes(*HW)
    state = tiny.new_state(policy, memory=4 * frame)
    with pytest.raises(ValueError, match=r"needs room for 4 frames, [\d,]+ bytes .* more memory"):
        tiny(images(frames=1), state=state)
    with pytest.raises(ValueError, match="too little"):
        tiny(images(frames=1), state=tiny.new_state(policy, memory=9))
    assert state.num_frames == 0


def test_a_policy_can_be_changed_in_mid_stream(tiny):
    """After the change the stream holds what the new policy keeps of what was held, and goes on from it."""
    frame = tiny.config.cached_frame_bytes(*HW)
    video = images()
    state = tiny.new_state()
    stream(tiny, video[:, :8], state)
    state.set_policy(AnchorWindow(1, 3))
    assert state.held_frames == (0, 5, 6, 7)
    assert state.allocated_bytes <= 5 * frame
    got, held = stream(tiny, video[:, 8:], state)
    assert held[-1] == (0, 9, 10, 11)
    want, _ = stream(tiny, video, tiny.new_state(AnchorWindow(1, 3)))
    assert got["depth"].shape == want["depth"][:, 8:].shape
    state.set_policy(KeepAll(), memory=20 * frame)
    _, held = stream(tiny, images(frames=3, seed=5), state)
    assert held[-1] == (0, 9, 10, 11, 12, 13, 14)


def test_frames_that_a_change_of_policy_keeps_are_kept_bit_for_bit(tiny):
    """A window of everything equals the same window asked for at the start, whatever buffers it went through."""
    video = images()
    want, _ = stream(tiny, video, tiny.new_state(AnchorWindow(1, 5)))
    state = tiny.new_state(AnchorWindow(1, 5))
    first, _ = stream(tiny, video[:, :6], state)
    state.set_policy(AnchorWindow(1, 7))
    state.set_policy(AnchorWindow(1, 5), memory="1GB")
    rest, _ = stream(tiny, video[:, 6:], state)
    for name in DENSE:
        assert torch.equal(torch.cat([first[name], rest[name]], 1), want[name]), name


def test_a_change_that_cannot_be_is_refused_and_the_stream_goes_on(tiny):
    video = images(frames=6)
    want, _ = stream(tiny, video, tiny.new_state())
    state = tiny.new_state()
    first, _ = stream(tiny, video[:, :4], state)
    with pytest.raises(ValueError, match=r"too little|needs room"):
        state.set_policy(Keyframes(), memory=tiny.config.cached_frame_bytes(*HW))
    assert (state.memory, state.policy) == (None, KeepAll())
    rest, _ = stream(tiny, video[:, 4:], state)
    assert torch.equal(torch.cat([first["depth"], rest["depth"]], 1), want["depth"])


def test_features_of_point_tracks_count_and_drop_frames_when_they_come(tiny, monkeypatch):
    memory = 12 * tiny.config.cached_frame_bytes(*HW)
    points = torch.tensor([[[10.0, 20.0], [30.0, 5.0]]])
    state = tiny.new_state(AnchorWindow(1, 20), memory=memory)
    ledger = Ledger(monkeypatch)
    stream(tiny, images(frames=10), state)
    before = len(state.held_frames)
    for t in range(6):
        video = images(frames=1, seed=t)
        said = tiny(video, state=state, query_points=points if t == 0 else None)
        assert said.tracks.shape == (1, 1, 2, 2)
        assert ledger.now + state._other_bytes == state.allocated_bytes <= memory
    assert 2 <= len(state.held_frames) < before
    pyramid = sum(16 * h * w * 4 for h, w in ((28, 35), (14, 17), (7, 8)))
    assert state.tracks.nbytes == (1 + min(5, len(state.held_frames) - 1)) * pyramid


@pytest.mark.parametrize(
    ("amount", "count"),
    [(5, 5), ("2GB", 2_000_000_000), ("1.5 GiB", 3 * 2**29), ("800 mb", 800_000_000), ("7", 7), ("64KiB", 65536)],
)
def test_amounts_of_memory_are_read(amount, count):
    assert byte_count(amount) == count


@pytest.mark.parametrize("amount", ["2 G", "", "-3GB", "GB", 0, -1, True, "1e9"])
def test_what_is_no_amount_of_memory_is_refused(amount):
    with pytest.raises(ValueError, match="2GB"):
        byte_count(amount)


@pytest.mark.parametrize("counts", [(0, 2, 2), (1, -1, 2), (1, 2, 0), (1, 2.0, 1)])
def test_counts_of_keyframes_are_checked(counts):
    with pytest.raises(ValueError, match="Keyframes needs whole numbers"):
        Keyframes(*counts)


def test_a_policy_that_keeps_what_it_may_not_is_told(tiny):
    class Oldest(AnchorWindow):
        def keep(self, frames, prototypes):
            return frames[: self.capacity]

    state = tiny.new_state(Oldest(1, 1))
    with pytest.raises(ValueError, match=r"must keep 2 of the frames \[0, 1, 2\], the last among them"):
        stream(tiny, images(), state)
