"""Soft matching against a loop over patches, and streams against batches."""

import math
from dataclasses import replace

import pytest
import torch

from streamvggt import StreamVGGTConfig, load_model, save_model
from streamvggt.matching import MatchMemory, SoftMatch
from streamvggt.model import StreamVGGT

CONFIG = StreamVGGTConfig(
    image_size=56, embed_dim=16, depth=2, num_heads=2, encoder_depth=2, encoder_num_heads=2, encoder_dim=12,
    match_layer=1, match_dim=6, camera_depth=1, camera_num_heads=2, dense_features=8, dense_channels=(4, 4, 8, 8),
    dense_layers=(0, 0, 1, 1), track=None,
)  # fmt: skip
GRID = (3, 4)


@pytest.fixture
def match():
    torch.manual_seed(0)
    return SoftMatch(CONFIG)


def places(descriptors, memory, temperature):
    """What the embedding is given: descriptor, own place, and for both references motion and certainty; [B, S, N, .]"""
    b, s, n, _ = descriptors.shape
    rows, columns = GRID
    longer = max(GRID)
    centre = [((i % columns + 0.5 - columns / 2) * 2 / longer, (i // columns + 0.5 - rows / 2) * 2 / longer) for i in range(n)]  # fmt: skip  # noqa: E501
    out = torch.zeros(b, s, n, descriptors.shape[-1] + 8)
    for clip in range(b):
        history = ([] if memory.previous is None else [memory.previous[clip]]) + list(descriptors[clip])
        past = 0 if memory.previous is None else 1
        first = descriptors[clip, 0] if memory.first is None else memory.first[clip]
        for frame in range(s):
            previous = history[max(0, frame + past - 1)]
            for i in range(n):
                row = [*descriptors[clip, frame, i].tolist(), *centre[i]]
                for reference in (first, previous):
                    weights = [math.exp(temperature * float(descriptors[clip, frame, i] @ reference[j])) for j in range(n)]  # fmt: skip  # noqa: E501
                    weights = [w / sum(weights) for w in weights]
                    for axis in (0, 1):
                        expected = sum(w * c[axis] for w, c in zip(weights, centre, strict=True))
                        row.append(expected - centre[i][axis])
                    row.append(max(weights))
                out[clip, frame, i] = torch.tensor(row)
    return out


@pytest.mark.parametrize("in_stream", [False, True])
def test_it_equals_a_loop_over_patches(match, in_stream):
    described = match.describe(torch.randn(2, 3, 12, 12))
    assert torch.allclose(described.norm(dim=-1), torch.ones(2, 3, 12), atol=1e-6)
    memory = MatchMemory(*match.describe(torch.randn(2, 2, 12, 12)).unbind(0)) if in_stream else MatchMemory()
    with torch.no_grad():
        found, after = match(described, memory, GRID)
        expected = match.embed(places(described, memory, 14.0))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(after.first, described[:, 0] if memory.first is None else memory.first)
    assert torch.equal(after.previous, described[:, -1])


def read_places(match):
    """Let the module show what it found instead of embedding it."""
    match.embed = torch.nn.Identity()
    match.embed.weight = torch.empty(0)
    return match


def test_a_frame_shifted_by_one_patch_has_moved_by_one_patch(match):
    match.log_temperature.data.fill_(math.log(1000))
    frame = torch.eye(12).reshape(*GRID, 12)
    left = frame.roll(-1, dims=1)  # what was in column 1 is in column 0 now
    with torch.no_grad():
        found, _ = read_places(match)(torch.stack([frame, left, left])[None].flatten(2, 3), MatchMemory(), GRID)
    motion = found[0, :, :, 14:].unflatten(1, GRID)[:, :, :3]  # the last column came in from the other side
    zero, one = torch.tensor([0.0, 0, 1]), torch.tensor([0.5, 0, 1])  # two units over four columns
    for frame_number, to_first, to_previous in ((0, zero, zero), (1, one, one), (2, one, zero)):
        expected = torch.cat([to_first, to_previous]).expand(3, 3, 6)
        torch.testing.assert_close(motion[frame_number], expected, atol=1e-5, rtol=0)


def test_frame_0_is_compared_with_itself(match):
    described = match.describe(torch.randn(1, 1, 12, 12))
    with torch.no_grad():
        found, _ = read_places(match)(described, MatchMemory(), GRID)
    assert torch.equal(found[..., 8:11], found[..., 11:14])
    assert (found[..., 10] > 1 / 12).all()


@pytest.mark.parametrize("chunks", [(5,), (1,) * 5, (2, 3), (3, 1, 1)])
def test_a_stream_in_chunks_equals_a_batch(match, chunks):
    described = match.describe(torch.randn(2, 5, 12, 12)).detach()
    memory, parts = MatchMemory(), []
    with torch.no_grad():
        batch, _ = match(described, MatchMemory(), GRID)
        for chunk in described.split(list(chunks), dim=1):
            found, memory = match(chunk, memory, GRID)
            parts.append(found)
    torch.testing.assert_close(torch.cat(parts, dim=1), batch, atol=1e-6, rtol=0)


def test_the_memory_is_two_frames_and_holds_on_to_no_more(match):
    assert MatchMemory().nbytes == 0
    described = match.describe(torch.randn(2, 5, 12, 12)).detach()
    _, memory = match(described, MatchMemory(), GRID)
    assert memory.nbytes == 2 * 2 * 12 * 6 * 4
    for kept in (memory.first, memory.previous):
        assert kept.untyped_storage().nbytes() == 2 * 12 * 6 * 4


def test_half_precision_around_it_does_not_round_positions():
    torch.manual_seed(0)
    network = StreamVGGT(CONFIG).eval()
    seen = []
    network.soft_match.register_forward_hook(lambda _module, given, result: seen.append((given[0], result[0])))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.rand(1, 2, 3, 28, 56))
        again, _ = network.soft_match(seen[0][0], MatchMemory(), (2, 4))
    assert torch.equal(seen[0][1], again) and again.dtype == torch.float32


@pytest.mark.parametrize("match_layer", [1, None])
def test_a_network_with_a_projected_encoder_runs_in_half_precision(match_layer, tmp_path):
    torch.manual_seed(0)
    model = StreamVGGT(replace(CONFIG, match_layer=match_layer)).eval()
    save_model(model, tmp_path)
    half, images = load_model(tmp_path, dtype=torch.bfloat16), torch.rand(1, 3, 3, 42, 56)
    state = half.new_state()
    with torch.no_grad():
        exact, said = model(images), half(images)
        parts = [half(images[:, s : s + 1], state=state).depth for s in range(3)]
        again = model.to(torch.bfloat16)(images)
    for depth in (said.depth, torch.cat(parts, dim=1), again.depth.float()):
        assert (depth / exact.depth).log().abs().mean() < 0.02  # bfloat16 keeps 8 bits
