"""What streams keep: every policy within its memory, and what it chooses against the rule written down naively."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ledger import Ledger
from reference import lively, relative_error

from streamvggt import (
    AnchorWindow,
    KeepAll,
    KeyDiversity,
    Keyframes,
    QueryImportance,
    SavedSessionError,
    StreamSession,
    StreamVGGTConfig,
    TokenBudget,
    load_model,
    save_model,
    stores,
)
from streamvggt.attention import causal_attention
from streamvggt.cache import frame_prototypes
from streamvggt.memory import byte_count, is_out_of_memory
from streamvggt.policies import Costs, LayerTokens
from streamvggt.stores import STORAGES, Int8Store

DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
HW = (56, 70)  # 5 special tokens and 20 patches
FRAMES = 9
POLICIES = {
    "all": KeepAll(),
    "window": AnchorWindow(1, 4),
    "keyframes": Keyframes(1, 2, 2),
    "diversity": TokenBudget(5 * 25 + 3, KeyDiversity(temperature=0.05)),  # layers that differ widely
    "importance": TokenBudget(5 * 25 + 3, QueryImportance(), frames=7),
}
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
storages = pytest.mark.parametrize("storage", STORAGES)


@pytest.fixture(scope="module")
def tiny():
    """A network with every part of the bundled one, each as few times as can be, and a tracker."""
    few = {"depth": 2, "dense_layers": (0, 0, 1, 1), "encoder_depth": 1, "camera_depth": 1, "camera_iterations": 2}
    like_small = {"encoder_dim": 64, "match_layer": 1, "camera_reads_patches": True}
    return lively(replace(StreamVGGTConfig.tiny(), **few, **like_small))


@pytest.fixture(scope="module")
def all_kept(tiny):
    """What two streams of five frames say that keep all of them, by storage."""
    return {storage: stream(tiny, images(2, 5), tiny.new_state(storage=storage))[0] for storage in STORAGES}


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


@pytest.mark.parametrize("frames", [5, 10])
@storages
@policies
def test_the_memory_is_never_passed_not_even_while_buffers_grow(tiny, policy, storage, frames, monkeypatch):
    memory = frames * tiny.config.cached_frame_bytes(*HW) * 2
    ledger = Ledger(monkeypatch)
    state = tiny.new_state(policy, storage=storage, memory=memory)
    for t in range(0, FRAMES, 3):
        stream(tiny, images(2, 3, seed=t), state, chunks=[1, 2])
        assert state.nbytes <= state.allocated_bytes <= memory
        assert {0, t + 2} <= set(state.held_frames)
    assert ledger.now == state.allocated_bytes - state._other_bytes
    assert ledger.most + state._other_bytes <= memory
    assert len(state.held_frames) == min(state.policy.capacity or FRAMES, FRAMES)
    if storage == "native" and not isinstance(state.policy, TokenBudget):
        # Beside the frames there are descriptors, and room to make one of 4 buffers anew.
        assert len(state.held_frames) == min(policy.capacity, {5: 3, 10: 7}[frames])


@storages
@policies
def test_a_memory_that_is_never_full_changes_no_bit(tiny, policy, storage, all_kept):
    for memory in (None, "1GB"):
        got, held = stream(tiny, images(2, 5), tiny.new_state(policy, storage=storage, memory=memory))
        assert held[-1] == (0, 1, 2, 3, 4)
        for name in DENSE:
            assert torch.equal(got[name], all_kept[storage][name]), name


@storages
@policies
def test_chunks_hold_and_say_what_single_frames_do(tiny, policy, storage):
    video = images(2)
    how = {"storage": storage, "memory": 8 * tiny.config.cached_frame_bytes(*HW) * 2}
    want, held = stream(tiny, video, tiny.new_state(policy, **how))
    for chunks in ([1, 5, 3], 9):
        state = tiny.new_state(policy, **how)
        got, _ = stream(tiny, video, state, chunks)
        assert state.held_frames == held[-1]
        for name in DENSE:
            # Rounding to int8 makes steps of rounding errors.
            assert relative_error(got[name], want[name]) < (1e-5 if storage == "native" else 1e-2), (chunks, name)


@storages
@policies
def test_equal_streams_of_a_batch_are_each_the_stream_alone(tiny, policy, storage):
    video = images()
    want, held = stream(tiny, video, tiny.new_state(policy, storage=storage))
    got, both_held = stream(tiny, video.expand(2, -1, -1, -1, -1), tiny.new_state(policy, storage=storage))
    assert both_held == held
    for name in DENSE:
        limit = 1e-5 if storage == "native" else 1e-2
        assert relative_error(got[name], torch.cat([want[name]] * 2)) < limit, name


# Policies whose choice of frames does not look at them, so that a stream beside another chooses as it would alone.
BY_NUMBER = [
    KeepAll(),
    AnchorWindow(2, 3),
    TokenBudget(128, KeyDiversity(temperature=None), frames=FRAMES),
    TokenBudget(128, QueryImportance(), frames=FRAMES),
]


@storages
@pytest.mark.parametrize("policy", BY_NUMBER, ids=str)
def test_different_streams_of_a_batch_are_each_the_stream_alone(tiny, policy, storage):
    """Tokens are chosen for each stream; with int8 a rounding error can choose another one of two like ones."""
    videos = [images(seed=seed) for seed in (0, 1)]
    got, _ = stream(tiny, torch.cat(videos), tiny.new_state(policy, storage=storage))
    for i, video in enumerate(videos):
        want, _ = stream(tiny, video, tiny.new_state(policy, storage=storage))
        for name in DENSE:
            limit = 1e-5 if storage == "native" else 1e-2
            assert relative_error(got[name][i : i + 1], want[name]) < limit, name


@storages
@policies
def test_a_stream_that_was_reset_starts_anew(tiny, policy, storage):
    video = images()
    state = tiny.new_state(policy, storage=storage)
    want, held = stream(tiny, video, state)
    tiny(images(frames=1, seed=3), state=state)
    state.reset()
    assert (state.num_frames, state.held_frames, state.nbytes) == (0, (), 0)
    got, again = stream(tiny, video, state)
    assert again == held
    for name in DENSE:
        assert torch.equal(got[name], want[name]), name


@storages
@policies
def test_a_failed_call_is_repeated_exactly(tiny, policy, storage, monkeypatch):
    video = images()
    want, _ = stream(tiny, video, tiny.new_state(policy, storage=storage))
    state = tiny.new_state(policy, storage=storage)
    parts = []
    for frame in video.split(1, dim=1):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):

            def fail(*_args):
                raise RuntimeError("out of memory")

            patch.setattr(tiny.point_head, "forward", fail)
            tiny(frame, state=state)
        parts.append(tiny(frame, state=state).depth)
    assert torch.equal(torch.cat(parts, 1), want["depth"])


class Fails:
    """A frame that fails in the last block, once all others have written it."""

    def __init__(self, model, monkeypatch):
        self.block, self.monkeypatch = model.aggregator.global_blocks[-1], monkeypatch

    def __call__(self, model, chunk, state):
        def fail(*_args):
            raise RuntimeError("out of memory")

        with self.monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(self.block.mlp, "forward", fail)
            model(chunk, state=state)


@pytest.fixture
def failing_call(tiny, monkeypatch):
    return Fails(tiny, monkeypatch)


@storages
@pytest.mark.parametrize("score", [KeyDiversity(), QueryImportance()], ids=str)
def test_tokens_that_a_failed_call_overwrote_are_told_to_every_other_frame(tiny, storage, score, failing_call):
    video = images(frames=7)
    state = tiny.new_state(TokenBudget(4 * 25 + 3, score), storage=storage)
    want, _ = stream(tiny, video, tiny.new_state(TokenBudget(4 * 25 + 3, score), storage=storage))
    got, _ = stream(tiny, video[:, :6], state)
    for _ in range(2):
        failing_call(tiny, video[:, 6:], state)
        with pytest.raises(
            ValueError, match="overwrote held tokens; repeat it with the same frame, or start another stream"
        ):
            tiny(video[:, :1], state=state)
        with pytest.raises(ValueError, match="overwrote held tokens; repeat it first"):
            state.set_policy(AnchorWindow(1, 1))
    last = tiny(video[:, 6:], state=state)
    for name in DENSE:
        assert torch.equal(torch.cat([got[name], getattr(last, name)], 1), want[name]), name


def test_a_chunk_that_overwrote_tokens_for_a_later_frame_and_failed_is_told(tiny, failing_call):
    video = images(frames=7)
    state = tiny.new_state(TokenBudget(4 * 25 + 3, QueryImportance()))
    stream(tiny, video[:, :5], state)
    failing_call(tiny, video[:, 5:], state)
    for again in (video[:, 5:], video[:, 5:6]):
        with pytest.raises(ValueError, match="overwrote held tokens, which are lost; start another stream"):
            tiny(again, state=state)


@pytest.mark.parametrize("score", [KeyDiversity(), QueryImportance()], ids=str)
def test_a_failed_call_that_overwrote_nothing_leaves_no_trace(tiny, score, failing_call, tmp_path):
    """There was room for its tokens: they are neither counted nor saved, and another frame can come."""
    video = frames(6)
    want = numbers(StreamSession(tiny, TokenBudget(103, score), size=70).run([*video[:2], *video[3:]]))
    session = StreamSession(tiny, TokenBudget(103, score), size=70)
    got = numbers(session.run(video[:2]))
    before = session.nbytes
    failing_call(tiny, images(frames=1), session._state)
    assert session.nbytes == before
    session.save(tmp_path / "stream.safetensors")
    resumed = StreamSession.resume(tiny, tmp_path / "stream.safetensors")
    assert resumed.nbytes == before
    for goes_on in (session, resumed):
        np.testing.assert_array_equal(np.stack(got + numbers(goes_on.run(video[3:]))), np.stack(want))


def test_a_chunk_that_was_taken_in_parts_and_failed_is_undone_or_told(tiny, monkeypatch):
    """Layers share their tokens between calls, so that a chunk may be taken in two; here the second part fails."""
    video = images(frames=9)
    policy = TokenBudget(4 * 25 + 3)
    want, _ = stream(tiny, video, tiny.new_state(policy))
    state, parts = tiny.new_state(policy), []

    def second_fails(*args):
        parts.append(args)
        if len(parts) % 2 == 0:
            raise RuntimeError("out of memory")
        return type(tiny.depth_head).forward(tiny.depth_head, *args)

    def failing(chunk):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(tiny.depth_head, "forward", second_fails)
            tiny(chunk, state=state)

    failing(video[:, :3])
    assert (state.num_frames, state.nbytes) == (0, 0)
    got, _ = stream(tiny, video[:, :3], state, 3)
    failing(video[:, 3:])
    assert len(parts) == 4
    for call in (lambda: tiny(video[:, 3:], state=state), lambda: state.set_policy(KeepAll())):
        with pytest.raises(ValueError, match="after a part of its frames was taken; start another stream"):
            call()
    state.reset()
    got, _ = stream(tiny, video, state, 9)
    for name in DENSE:
        assert relative_error(got[name], want[name]) < 1e-5, name


@pytest.mark.parametrize("policy", [AnchorWindow(1, 5), TokenBudget(6 * 25, frames=6)], ids=str)
def test_a_change_of_policy_that_fails_half_way_is_told(tiny, policy, monkeypatch):
    """The third buffer cannot be made, so that one layer is shortened and the others are not."""
    want, _ = stream(tiny, images(), tiny.new_state(policy))
    state, calls, make = tiny.new_state(policy), [], stores.new_buffer
    stream(tiny, images(), state)

    def fail(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return make(*args)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(stores, "new_buffer", fail)
        state.set_policy(AnchorWindow(1, 1))
    for call in (lambda: tiny(images(frames=1), state=state), lambda: state.set_policy(policy)):
        with pytest.raises(ValueError, match="failed half-way, and they no longer agree; start another stream"):
            call()
    state.reset()
    got, _ = stream(tiny, images(), state)
    assert torch.equal(got["depth"], want["depth"])


@storages
@policies
def test_the_hundred_thousandth_frame_is_like_any_other(tiny, policy, storage, tmp_path):
    """A stream whose frames are renumbered, as if many had come and gone, says what it would have said."""
    video, far = images(), 100_000
    want, held = stream(tiny, video, tiny.new_state(policy, storage=storage))
    state = tiny.new_state(policy, storage=storage)
    got, _ = stream(tiny, video[:, :6], state)
    slots = state.slots

    def number(frame):
        return frame + far if frame else 0

    slots.prototypes = {number(frame): prototype for frame, prototype in slots.prototypes.items()}
    slots.frames, slots.num_frames = [number(frame) for frame in slots.frames], number(slots.num_frames)
    rest, held_far = stream(tiny, video[:, 6:], state)
    assert held_far == [tuple(map(number, frames)) for frames in held[6:]]
    for name in DENSE:
        assert torch.equal(torch.cat([got[name], rest[name]], 1), want[name]), name


def test_single_tokens_are_held_of_no_more_frames_than_labels_can_tell_apart(tiny):
    with pytest.raises(ValueError, match="at most 32,767 frames, got frames=32,768"):
        TokenBudget(frames=2**15)
    costs = Costs(tokens=9, special=5, token=8, label=3, frame=8, room=None)
    assert TokenBudget(10**9).fit(costs).frames == 2**15 - 1


# --- what is kept


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


def naive_layer_budgets(model, video, budget, frames):
    """Tokens of each layer: two frames and the special tokens of the others, and by likeness a share of the rest.

    The likeness is the mean cosine of each patch of the frames that fit, but the first, to each, itself among them.
    """
    keys, depth = [], model.config.depth

    def attend(q, k, v):
        keys.append(k)
        return causal_attention(q, k, v)

    with torch.no_grad():
        model._tokens(video[:, : budget // 25], [attend] * depth)
    weights = []
    for k in keys:
        patches = torch.nn.functional.normalize(k[:, :, 1:, 5:].flatten(2, 3), dim=-1)
        weights.append(math.exp((1 - (patches @ patches.transpose(-1, -2)).mean().item()) / 0.5))
    least = 2 * 25 + (frames - 2) * 5
    shares = [(budget - least) * depth * weight / sum(weights) for weight in weights]
    over = sum(max(0, share - (frames * 25 - least)) for share in shares)  # of one of two layers
    assert depth == 2
    return [least + round(min(frames * 25 - least, share + over)) for share in shares]


def naive_token_stream(model, video, budget, frames, score):
    """Tokens held after each frame in each layer and head, from the definition, with lists; and the numbers said.

    A token is known by its frame and its place in it; attention sees the held ones in the order of their keys.
    """
    special, depth = 5, model.config.depth
    held_frames = naive_keyframes(first_keys(model, video), special, 1, frames - 2, 1)
    kept = [[[] for _ in range(model.config.num_heads)] for _ in range(depth)]
    budgets = [budget] * depth
    if score is naive_diversity:
        budgets = naive_layer_budgets(model, video, budget, frames)

    def attend_in(layer):
        def attend(q, k, v):
            out = torch.empty_like(q)
            for t in range(k.shape[2]):
                for head in range(k.shape[1]):
                    keys, values = k[0, head], v[0, head]
                    tokens = kept[layer][head]
                    may_go = [token for token in tokens if token[0] > 0 and token[1] >= special]
                    if t == budget // 25 and len(tokens) > budgets[layer]:  # less than all layers held till now
                        old = [token for token in may_go if token[0] < t - 1]
                        worth = naive_diversity(old, k[0], q[0, :, t], head, None)
                        gone = sorted(old, key=lambda token: worth[token])[: len(tokens) - budgets[layer]]
                        tokens = [token for token in tokens if token not in gone]
                    tokens = [token for token in tokens if token[0] in held_frames[t]]
                    may_go = [token for token in tokens if token in may_go]
                    excess = len(tokens) + k.shape[3] - (budgets[layer] if t >= budget // 25 else budget)
                    if excess > 0:
                        worth = score(may_go, k[0], q[0, :, t], head, t)
                        gone = sorted(may_go, key=lambda token: worth[token])[:excess]
                        tokens = [token for token in tokens if token not in gone]
                    tokens += [(t, place) for place in range(k.shape[3])]
                    kept[layer][head] = tokens
                    index = tuple(torch.tensor(tokens).T)
                    weights = (q[0, head, t] @ keys[index].T / q.shape[-1] ** 0.5).softmax(-1)
                    out[0, head, t] = weights @ values[index]
            return out

        return attend

    with torch.no_grad():
        tokens = model._tokens(video, [attend_in(layer) for layer in range(depth)])
    return held_frames, kept, tokens, budgets


def naive_diversity(may_go, k, q, head, t):
    """Distance from the mean direction of what may go and the patches of frame t, with the longest way round."""
    directions = {token: k[head][token] / k[head][token].norm() for token in may_go}
    patches = [] if t is None else [(t, place) for place in range(5, k.shape[2])]
    newest = [k[head][token] / k[head][token].norm() for token in patches]
    mean = sum([*directions.values(), *newest]) / (len(may_go) + len(newest))
    return {token: 1 - float(direction @ mean / mean.norm()) for token, direction in directions.items()}


def naive_importance(may_go, k, q, head, t):
    """Mean over pooled queries of their products with the keys' mean over heads."""
    heads = len(q)
    mean_q = sum(q[h] for h in range(heads)) / heads
    pooled = [mean_q[i] for i in range(5)]
    pooled += [
        mean_q[start : start + 16].sum(0) / len(mean_q[start : start + 16]) for start in range(5, len(mean_q), 16)
    ]
    worth = {}
    for token in may_go:
        key = sum(k[h][token] for h in range(heads)) / heads
        worth[token] = sum(float(query @ key) for query in pooled) / len(pooled)
    return worth


@pytest.mark.parametrize(("budget", "frames"), [(103, 12), (103, 5), (75, 4), (160, 8)])
@pytest.mark.parametrize(
    ("score", "naive"), [(KeyDiversity(), naive_diversity), (QueryImportance(), naive_importance)], ids=["div", "imp"]
)
def test_a_token_budget_keeps_what_the_rule_says(tiny, score, naive, budget, frames):
    video = images(frames=10)
    held, kept, want, budgets = naive_token_stream(tiny, video, budget, frames, naive)
    assert (len(set(budgets)) > 1) == (naive is naive_diversity)
    state = tiny.new_state(TokenBudget(budget, score, frames=frames))
    got, frames_held = stream(tiny, video, state)
    assert frames_held == held
    assert [cache.budget for cache in state._blocks] == budgets
    for layer, cache in enumerate(state._blocks):
        for head in range(tiny.config.num_heads):
            frame_of = [state.slots.frames[slot] for slot in cache.owners[0, head, : cache.used].tolist()]
            assert sorted(frame_of) == sorted(frame for frame, _ in kept[layer][head]), (layer, head)
    with torch.no_grad():
        depth = tiny._decode(want, HW, lambda _round, _block: lambda q, k, v: v, {"depth"}).depth
    assert relative_error(got["depth"], depth) < 1e-5


def test_key_diversity_by_hand():
    """Three keys, to the right, up and down-right; with a coming patch to the right the mean points to the right.

    A second head sees all of it turned round, which changes no angle.
    """
    keys = torch.tensor([[[[2.0, 0.0], [0.0, 3.0], [1.0, -1.0]]]])
    coming = torch.tensor([[[[0.0, 9.0], [5.0, 0.0]]]])  # a special token, which does not count, and a patch
    may_go, coming = torch.ones(1, 2, 3, dtype=torch.bool), torch.cat([coming, -coming], 1)
    head_keys = [(slice(0, 1), keys), (slice(1, 2), -keys)]
    score = KeyDiversity()(LayerTokens(lambda: iter(head_keys), may_go, coming, coming, 1))
    x, y = 2 + 0.5**0.5, 1 - 0.5**0.5  # the sum of the directions
    length = (x * x + y * y) ** 0.5
    expected = torch.tensor([-x, -y, -(x - y) * 0.5**0.5]) / length
    torch.testing.assert_close(score, torch.stack([expected, expected])[None])


def test_layers_share_tokens_by_hand():
    """Likeness 0.2 and 0.7: one unit of the temperature apart, so parts as e to 1."""
    score = KeyDiversity(temperature=0.5)
    shares = score.shares([0.2, 0.7])
    torch.testing.assert_close(shares, [math.e / (1 + math.e), 1 / (1 + math.e)])
    # 4 frames of 20 tokens, 5 of them special: each layer holds 2 * 20 + 2 * 5 = 50, and of the 2 * 10 others parts.
    budgets = TokenBudget(60, score, frames=4).layer_budgets(shares, 20, 5)
    assert budgets == [50 + 15, 50 + 5]  # 14.6 and 5.4
    # No layer has more than its frames have: 80. The other has the rest, and at the end all layers are full.
    for budget, want in ((76, [80, 72]), (80, [80, 80])):
        assert TokenBudget(budget, score, frames=4).layer_budgets(shares, 20, 5) == want
    for even in (KeyDiversity(temperature=None).shares([0.2, 0.7]), score.shares([0.2, math.nan])):
        assert even == [0.5, 0.5]


def test_layers_share_what_one_that_takes_nearly_all_leaves():
    """A part of 1 but for rounding, and 0 for the others, which share evenly what is left."""
    shares = KeyDiversity(temperature=1e-4).shares([0.2, 0.7, 0.9])
    assert shares == [1, 0, 0]
    # Of 3 * 15 tokens the first layer has room for 30.
    assert TokenBudget(65, frames=4).layer_budgets(shares, 20, 5) == [80, 58, 57]
    rng = np.random.default_rng(0)
    for temperature in (0.5, 0.05, 0.02, 0.015):
        shares = KeyDiversity(temperature).shares(list(rng.uniform(0.05, 0.9, 24)))
        budgets = TokenBudget(6000, frames=40).layer_budgets(shares, 1041, 5)
        assert sum(budgets) == 24 * 6000 and min(budgets) >= 2 * 1041 + 38 * 5


def test_likeness_by_hand():
    """Two keys at a right angle: of the four pairs two have cosine 1 and two 0; the third key does not count.

    In a second head the first and the third may go, at 45 degrees: a cosine of 0.5 ** 0.5 in two of four pairs.
    """
    keys = torch.tensor([[[[2.0, 0.0], [0.0, 3.0], [5.0, 5.0]]]])
    may_go, nothing = torch.tensor([[[True, True, False], [True, False, True]]]), torch.zeros(1, 2, 0, 2)
    tokens = LayerTokens(lambda: iter([(slice(0, 1), keys), (slice(1, 2), keys)]), may_go, nothing, nothing, 1)
    want = (0.5 + (1 + 0.5**0.5) / 2) / 2
    torch.testing.assert_close(KeyDiversity().likeness(tokens), torch.tensor(want))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match="temperature above 0"):
        KeyDiversity(temperature)
    assert type(KeyDiversity(np.float32(0.5)).temperature) is float  # JSON has no other


def test_query_importance_by_hand():
    """Two heads; the special query counts as much as the mean of both patch queries."""
    keys = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]]])  # means over heads: (2, 0), (0, 2)
    special, patches = [0.0, 1.0], [[1.0, 0.0], [5.0, 0.0]]  # pooled: (0, 1), (3, 0); their mean: (1.5, 0.5)
    queries = torch.tensor([[[special, *patches]] * 2])
    may_go = torch.ones(1, 2, 2, dtype=torch.bool)
    score = QueryImportance()(LayerTokens(lambda: iter([(slice(None), keys)]), may_go, queries, keys, 1))
    torch.testing.assert_close(score, torch.tensor([[[3.0, 1.0]] * 2]))


# --- stored in 8 bits


@pytest.mark.parametrize("copy", [1, 100_000, 2**20])  # numbers: of one head, of two, of all three
@pytest.mark.parametrize("owned", [False, True])
def test_attention_over_int8_is_attention_over_what_was_stored(owned, copy, monkeypatch):
    """Scales by hand: keys for each channel of a frame, values for each token."""
    monkeypatch.setattr(stores, "_COPY", copy)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 4 * 700, 8, generator=generator)
    store, owners = Int8Store(), None
    store.resize(2800, 4, k[:, :, :700], v[:, :, :700])
    for slot, (frame_k, frame_v) in enumerate(zip(k.split(700, 2), v.split(700, 2), strict=True)):
        if owned:
            at = torch.arange(slot * 700, slot * 700 + 700).expand(2, 3, -1)
            store.write_tokens(at, slot, frame_k, frame_v)
        else:
            store.write(slot, frame_k, frame_v)
    if owned:
        owners = torch.arange(2800).div(700, rounding_mode="floor").expand(2, 3, -1)
    step = k.unflatten(2, (4, 700)).abs().amax(3, keepdim=True).div(127).bfloat16().float()
    keys = ((k.unflatten(2, (4, 700)) / step).round().clamp(-127, 127) * step).flatten(2, 3)
    step = v.abs().amax(3, keepdim=True).div(127).bfloat16().float()
    values = (v / step).round().clamp(-127, 127) * step
    assert (keys - k).abs().max() < 0.75 * k.abs().max() / 127
    for used in (700, 2800):
        scores = q[:, :, :50] @ keys[:, :, :used].transpose(-1, -2) / 8**0.5
        want = scores.softmax(-1) @ values[:, :, :used]
        torch.testing.assert_close(store.attend(q[:, :, :50], used, owners), want, rtol=1e-4, atol=1e-5)
        for heads, numbers in store.head_keys(used, owners):
            torch.testing.assert_close(numbers, keys[:, heads, :used])


@policies
def test_int8_says_nearly_the_same(tiny, policy):
    video = images(frames=6)
    want, held = stream(tiny, video, tiny.new_state(policy))
    got, held_int8 = stream(tiny, video, tiny.new_state(policy, storage="int8"))
    assert held_int8 == held
    for name in DENSE:
        error = (got[name] - want[name]).abs().mean() / want[name].abs().mean()
        # Where one token takes the place of another, more than rounding differs.
        assert 0 < error < 0.02, (name, error)


def test_int8_halves_the_bytes_of_bfloat16():
    """At the head width of the released network, with the scales counted."""
    config = replace(StreamVGGTConfig.tiny(), embed_dim=128, num_heads=2, camera_num_heads=2, track=None)
    model = lively(config).to(torch.bfloat16)
    sizes = {}
    for storage in ("native", "int8"):
        state = model.new_state(storage=storage)
        stream(model, images(frames=4, hw=(112, 112)), state)
        sizes[storage] = sum(cache.nbytes for cache in state._blocks)
    # 69 tokens; in bytes a token and head of 64: 256; 128, 2 for the value's scale and 128 / 69 for the keys'.
    assert sizes["native"] == 4 * 4 * 69 * 2 * 256
    assert sizes["int8"] == 4 * 4 * 2 * (69 * 130 + 128)
    assert sizes["int8"] / sizes["native"] < 0.52


# --- limits and changes


@storages
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("chunks", [1, 4])
def test_keep_all_goes_on_as_a_token_budget_when_it_is_full(tiny, storage, streams, chunks, caplog, monkeypatch):
    """Until then it says what it says without a limit, and from the start what the budget says; it warns once."""
    video, frames = images(streams, 14), 14 if storage == "native" else 7
    memory = frames * streams * tiny.config.cached_frame_bytes(*HW)
    budgeted = tiny.new_state(TokenBudget(), storage=storage, memory=memory)
    want, want_held = stream(tiny, video, budgeted, chunks)
    full = budgeted.policy.tokens // 25
    unlimited, _ = stream(tiny, video[:, :full], tiny.new_state(storage=storage))
    caplog.clear()
    ledger = Ledger(monkeypatch)
    state = tiny.new_state(storage=storage, memory=memory)
    policies = []
    got, held = [], []
    for chunk in video.split(chunks, dim=1):
        got.append(tiny(chunk, state=state))
        held.append(state.held_frames)
        policies.append(state.policy)
        assert state.allocated_bytes <= memory
    assert 4 < full < 12 and held == want_held
    assert policies == [KeepAll() if (t + 1) * chunks <= full else budgeted.policy for t in range(len(policies))]
    for name in DENSE:
        joined = torch.cat([getattr(said, name) for said in got], dim=1)
        assert torch.equal(joined, want[name]), name
        assert relative_error(joined[:, :full], unlimited[name]) < (1e-5 if storage == "native" else 1e-2), name
    [message] = [record.getMessage() for record in caplog.records]
    assert f"full after {full} frames; from here on it keeps the tokens that differ: TokenBudget(" in message
    assert ledger.most + state._other_bytes <= memory


def test_what_a_policy_leaves_open_is_filled_by_the_memory(tiny, caplog):
    frame = tiny.config.cached_frame_bytes(*HW)
    held = {}
    for memory in (None, 18 * frame, 45 * frame):
        state = tiny.new_state(Keyframes(), memory=memory)
        tiny(images(frames=1), state=state)
        held[memory] = state.policy.capacity
    assert held == {None: 24, 18 * frame: 13, 45 * frame: 34}
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
    video = images(frames=12)
    state = tiny.new_state(AnchorWindow(1, 1))
    state.set_policy(KeepAll())
    assert state.policy == KeepAll()  # before the first frame, too
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


CHANGES = [
    (AnchorWindow(1, 5), 6),
    (Keyframes(1, 3, 2), 6),
    (TokenBudget(103), None),
    (TokenBudget(60), None),
    (KeepAll(), None),  # which does not fit, and goes on as a token budget
]


@storages
@pytest.mark.parametrize(("after", "count"), CHANGES, ids=lambda x: str(x)[:15])
@pytest.mark.parametrize("before", POLICIES.values(), ids=POLICIES)
def test_every_policy_can_follow_every_other(tiny, before, after, count, storage, monkeypatch):
    memory = 9 * tiny.config.cached_frame_bytes(*HW)
    ledger = Ledger(monkeypatch)
    state = tiny.new_state(before, storage=storage, memory=memory)
    stream(tiny, images(frames=9), state)
    held = set(state.held_frames)
    state.set_policy(after, memory=memory)
    assert {0, 8} <= set(state.held_frames) <= held
    if isinstance(before, TokenBudget) and count is not None:
        assert state.held_frames == (0, 8)  # the others are no longer whole
    said, _ = stream(tiny, images(frames=12, seed=4), state)
    assert said["depth"].isfinite().all()
    assert len(state.held_frames) == (count or min(state.policy.frames, len(state.held_frames)))
    assert ledger.now == state.allocated_bytes - state._other_bytes
    assert ledger.most + state._other_bytes <= memory
    if count is None:
        assert all(cache.used == cache.budget for cache in state._blocks)
        assert sum(cache.budget for cache in state._blocks) == 2 * state.policy.tokens
        assert state.policy.tokens == getattr(after, "tokens", state.policy.tokens)


@storages
def test_a_larger_token_budget_can_spread_over_fewer_frames(tiny, storage, monkeypatch):
    memory = 40 * tiny.config.cached_frame_bytes(*HW)
    ledger = Ledger(monkeypatch)
    state = tiny.new_state(TokenBudget(300, frames=30), storage=storage, memory=memory)
    stream(tiny, images(frames=5), state, chunks=5)
    state.set_policy(TokenBudget(400, frames=10), memory=memory)
    assert state.held_frames == (0, 1, 2, 3, 4)
    stream(tiny, images(frames=7, seed=1), state, chunks=7)
    assert len(state.held_frames) == 10 and state.held_frames[0] == 0
    assert ledger.most + state._other_bytes <= memory


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


class Oldest(AnchorWindow):
    """A policy that loses the newest frame."""

    def keep(self, frames, prototypes):
        return frames[: self.capacity]


def test_a_change_that_cannot_be_is_refused_and_the_stream_goes_on(tiny):
    video = images(frames=6)
    want, _ = stream(tiny, video, tiny.new_state())
    state = tiny.new_state()
    first, _ = stream(tiny, video[:, :4], state)
    refused = [
        (Keyframes(), tiny.config.cached_frame_bytes(*HW), "too little|needs room"),
        (AnchorWindow, "1GB", "must be an instance"),
        (AnchorWindow(1, 2), "much", "number of bytes"),
        (Oldest(1, 2), "1GB", "must keep 3 of the frames"),
    ]
    for policy, memory, reason in refused:
        with pytest.raises(ValueError, match=reason):
            state.set_policy(policy, memory=memory)
        assert (state.memory, state.policy, state.asked_policy) == (None, KeepAll(), KeepAll())
    rest, _ = stream(tiny, video[:, 4:], state)
    assert torch.equal(torch.cat([first["depth"], rest["depth"]], 1), want["depth"])


def test_points_that_are_named_after_the_memory_was_full_do_not_fill_it_again(tiny, caplog):
    state = tiny.new_state(memory=30 * tiny.config.cached_frame_bytes(*HW))
    stream(tiny, images(frames=24), state, chunks=24)
    assert isinstance(state.policy, TokenBudget)
    for seed in range(4):
        points = torch.tensor([[[10.0, 20.0]]]) if seed == 0 else None
        tiny(images(frames=1, seed=seed), state=state, query_points=points)
    assert caplog.text.count("is full after") == 1
    assert isinstance(state.policy, TokenBudget) and state.allocated_bytes <= state.memory


def test_a_call_that_names_points_and_failed_can_be_repeated(tiny, monkeypatch):
    state = tiny.new_state(AnchorWindow(1, 2), memory=40 * tiny.config.cached_frame_bytes(*HW))
    want = tiny.new_state(AnchorWindow(1, 2), memory=40 * tiny.config.cached_frame_bytes(*HW))
    video, points = images(frames=6), torch.tensor([[[10.0, 20.0]]])
    for s in (state, want):
        stream(tiny, video[:, :4], s)
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "_decode", lambda *_args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny(video[:, 4:5], state=state, query_points=points)
    said, expected = (tiny(video[:, 4:5], state=s, query_points=points) for s in (state, want))
    assert torch.equal(said.depth, expected.depth) and torch.equal(said.tracks, points[:, None])


def test_features_of_point_tracks_count_and_drop_frames_when_they_come(tiny, monkeypatch):
    memory = 24 * tiny.config.cached_frame_bytes(*HW)
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


def test_memory_that_ran_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**50)
    told = [
        of_torch.value,
        of_numpy.value,
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),  # on Windows
        RuntimeError("MPS backend out of memory (MPS allocated: 8 bytes)"),
    ]
    assert all(is_out_of_memory(error) for error in told)
    others = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(28, "")]
    assert not any(is_out_of_memory(error) for error in others)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((0, 2, 2), r"anchors of at least 1, got anchors=0 \(int\)"),
        ((1, -1, 2), r"bank of at least 0, got bank=-1 \(int\)"),
        ((1, 2, 0), r"recent of at least 1, got recent=0 \(int\)"),
        ((1, 2.0, 1), r"got bank=2.0 \(float\)"),
        ((np.float32(1), 2, 1), r"got anchors=np.float32\(1.0\) \(float32\)"),
        ((True, 2, 1), r"got anchors=True \(bool\)"),
        (("1", 2, 1), r"got anchors='1' \(str\)"),
        ((1, 2, np.array([1, 2])), r"got recent=array\(\[1, 2\]\) \(ndarray\)"),
        ((None, 2, 1), r"got anchors=None"),
    ],
)
def test_counts_of_keyframes_are_checked(counts, told):
    with pytest.raises(ValueError, match="Keyframes needs whole numbers, " + ".*" + told):
        Keyframes(*counts)


@pytest.mark.parametrize("whole", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "tensor"])
def test_whole_numbers_of_numpy_and_torch_are_counts(whole):
    for got, want in (
        (AnchorWindow(whole(1), whole(4)), AnchorWindow(1, 4)),
        (Keyframes(whole(1), whole(0), whole(3)), Keyframes(1, 0, 3)),
        (TokenBudget(whole(200), frames=whole(9)), TokenBudget(200, frames=9)),
    ):
        assert got == want and repr(got) == repr(want)


def test_a_policy_that_keeps_what_it_may_not_is_told(tiny):
    state = tiny.new_state(Oldest(1, 1))
    with pytest.raises(ValueError, match=r"must keep 2 of the frames \[0, 1, 2\], the last among them"):
        stream(tiny, images(), state)


# --- saved and resumed


def frames(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 56, 70, 3), dtype=np.uint8))


def numbers(predictions):
    return [np.concatenate([p.depth.ravel(), p.world_points.ravel(), p.extrinsics.ravel()]) for p in predictions]


@storages
@policies
@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_stream_says_bit_for_bit_what_one_without_a_stop_says(tiny, policy, storage, stop, tmp_path):
    """The memory is full after four to six frames, so that what is kept changes before the stop or after it."""
    video = frames(10)
    memory = (10 if storage == "native" else 5) * tiny.config.cached_frame_bytes(*HW)
    how = {"storage": storage, "size": 70, "memory": memory}
    whole = StreamSession(tiny, policy, **how)
    want = numbers(whole.run(video))
    session = StreamSession(tiny, policy, **how)
    got = numbers(session.run(video[:stop]))
    session.save(tmp_path / "stream.safetensors")
    resumed = StreamSession.resume(tiny, tmp_path / "stream.safetensors")
    for attribute in ("held_frames", "nbytes", "policy"):
        assert getattr(resumed, attribute) == getattr(session, attribute)
    assert (session.policy == KeepAll()) == (policy == KeepAll() and stop == 3)
    got += numbers(resumed.run(video[stop:]))
    assert (resumed.held_frames, resumed.policy, resumed.num_frames) == (whole.held_frames, whole.policy, 10)
    np.testing.assert_array_equal(np.stack(got), np.stack(want))
    assert [path.name for path in tmp_path.iterdir()] == ["stream.safetensors"]


class NoRoom:
    """Lets the memory run out when numbers go from the network to NumPy."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def __call__(self, session, *arguments):
        def fail(_tensor):
            raise MemoryError

        with self.monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr("streamvggt.session._numpy", fail)
            session.step_many(*arguments)


@storages
@policies
def test_frames_of_which_nothing_could_be_handed_over_were_not_seen(tiny, policy, storage, monkeypatch):
    """Every frame fails when its numbers are copied, and comes again; points are named on the third."""
    video, points, no_room = frames(9), np.array([[10.0, 20.0]]), NoRoom(monkeypatch)
    whole, session = (StreamSession(tiny, policy, storage=storage, size=70) for _ in range(2))
    for t, image in enumerate(video):
        named = points if t == 2 else None
        no_room(session, [image], named)
        assert session.num_frames == t
        want, got = whole.step(image, named), session.step(image, named)
        assert got.index == t and session.held_frames == whole.held_frames
        for name in ("depth", "world_points", "extrinsics", "tracks"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_a_chunk_in_two_parts_that_could_not_be_handed_over_is_undone_or_told(tiny, monkeypatch):
    video, no_room = frames(9), NoRoom(monkeypatch)
    session = StreamSession(tiny, TokenBudget(4 * 25 + 3), size=70)
    no_room(session, video[:3])
    assert (session.num_frames, session.nbytes) == (0, 0)
    session.step_many(video[:3])
    no_room(session, video[3:])
    with pytest.raises(ValueError, match="after a part of its frames was taken; start another stream"):
        session.step(video[3])


def test_points_are_followed_on_after_a_stop(tiny, tmp_path):
    video, points = frames(7), np.array([[10.0, 20.0], [30.0, 5.0]])
    whole = StreamSession(tiny, AnchorWindow(1, 3), size=70)
    want = [whole.step(image, points if t == 1 else None) for t, image in enumerate(video)]
    session = StreamSession(tiny, AnchorWindow(1, 3), size=70)
    for t in range(4):
        session.step(video[t], points if t == 1 else None)
    session.save(tmp_path / "stream.safetensors")
    resumed = StreamSession.resume(tiny, tmp_path / "stream.safetensors")
    assert resumed.nbytes == session.nbytes
    for t in range(4, 7):
        np.testing.assert_array_equal(resumed.step(video[t]).tracks, want[t].tracks)
    resumed.set_policy(AnchorWindow(1, 1))
    assert resumed.held_frames == (0, 6)


def test_files_that_are_no_session_of_this_model_are_told(tiny, tmp_path):
    session = StreamSession(tiny, size=70)
    session.step(frames(1)[0])
    path = tmp_path / "stream.safetensors"
    session.save(path)
    whole = path.read_bytes()
    for length in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(SavedSessionError, match=r"damaged or no saved session .* take another save"):
            StreamSession.resume(tiny, tmp_path / "cut.safetensors")
    save_model(tiny, tmp_path / "model.safetensors")
    with pytest.raises(SavedSessionError, match="is no session"):
        StreamSession.resume(tiny, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("a diary")
    with pytest.raises(SavedSessionError, match="damaged"):
        StreamSession.resume(tiny, tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError):
        StreamSession.resume(tiny, tmp_path / "nowhere.safetensors")
    for other in (lively(tiny.config, seed=9), lively(replace(tiny.config, num_heads=2))):
        with pytest.raises(SavedSessionError, match="another model"):
            StreamSession.resume(other, path)


def test_a_full_disk_leaves_the_last_save_and_the_stream_as_they_were(tiny, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on the size of files fails as a full disk does
    path = tmp_path / "stream.safetensors"
    session = StreamSession(tiny, size=70)
    video = frames(3)
    session.step(video[0])
    session.save(path)
    before = path.read_bytes()
    session.step(video[1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .* make room"):
            session.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["stream.safetensors"]
    want = StreamSession(tiny, size=70)
    np.testing.assert_array_equal(session.step(video[2]).depth, list(want.run(video))[2].depth)


def test_a_policy_of_ones_own_cannot_be_saved(tiny, tmp_path):
    class Own(AnchorWindow):
        pass

    session = StreamSession(tiny, Own(1, 2), size=70)
    session.step(frames(1)[0])
    with pytest.raises(ValueError, match="none of this package's policies"):
        session.save(tmp_path / "stream.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@storages
def test_ten_thousand_frames_take_no_more_memory_than_a_hundred(storage):
    """Resident memory of the process, by frame; outputs are taken away. A leak of one tensor a frame would be 1 KiB."""
    resident = Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("needs /proc to read the memory of this process")
    session = StreamSession(
        load_model("tiny"), Keyframes(1, 3, 4), storage=storage, size=28, outputs={"camera", "depth"}
    )
    pages, sizes = [], set()
    for t in range(10_000):
        session.step(np.full((28, 28, 3), t % 256, np.uint8))
        if t >= 1000:
            pages.append(int(resident.read_text().split()[1]))
            sizes.add(session.nbytes)
    assert len(sizes) == 1
    assert session.held_frames[0] == 0 and session.num_frames == 10_000
    bytes_a_frame = np.polyfit(np.arange(len(pages)), pages, 1)[0] * 4096
    assert bytes_a_frame < 1024
