"""The network computes what the released implementations compute."""

import pytest
import torch
from reference import CASES, golden_model, relative_error

from streamvggt.attention import causal_attention, full_attention

OUTPUTS = {
    "pose_enc": "pose_enc",
    "depth": "depth",
    "depth_conf": "depth_conf",
    "world_points": "world_points",
    "world_points_conf": "world_points_conf",
}


@pytest.mark.parametrize(("attention", "prefix"), [("causal", "causal"), ("full", "global")])
@pytest.mark.parametrize("case", CASES)
def test_cameras_and_dense_maps_equal_the_released_network(case, attention, prefix):
    model, expected = golden_model(case, attention)
    with torch.no_grad():
        got = model(expected["images"])
    for name, golden in OUTPUTS.items():
        want = expected[f"{prefix}.{golden}"]
        assert relative_error(getattr(got, name), want[..., 0] if name == "depth" else want) < 1e-5, name
    assert got.tracks is None


@pytest.mark.parametrize(("attention", "prefix"), [("causal", "causal"), ("full", "global")])
@pytest.mark.parametrize("case", CASES)
def test_aggregated_tokens_equal_the_released_network(case, attention, prefix):
    model, expected = golden_model(case, attention)
    attend = causal_attention if attention == "causal" else full_attention
    with torch.no_grad():
        tokens = model._tokens(expected["images"], [attend] * model.config.depth)
    assert relative_error(tokens[model.config.depth - 1], expected[f"{prefix}.tokens_last"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_every_refinement_round_equals_the_released_network(case):
    model, expected = golden_model(case)
    with torch.no_grad():
        rounds = model(expected["images"]).pose_enc_iterations
    assert len(rounds) == 4
    for i, got in enumerate(rounds):
        assert relative_error(got, expected[f"causal.pose_enc_iter{i}"]) < 1e-5


def test_shared_camera_cache_reproduces_the_released_stream():
    model, expected = golden_model("dinov2-landscape")
    state = model.new_state(camera_cache="shared")
    frames = [model(frame, state=state) for frame in expected["images"].split(1, dim=1)]
    poses = torch.cat([frame.pose_enc for frame in frames], dim=1)
    assert relative_error(poses, expected["official_stream.pose_enc"]) < 1e-5
    assert relative_error(poses, expected["causal.pose_enc"]) > 1e-3  # the defect that is reproduced
    depth = torch.cat([frame.depth for frame in frames], dim=1)
    assert relative_error(depth, expected["official_stream.depth"][..., 0]) < 1e-5


def round_off(x, generator):
    return x * (1 + 1e-6 * torch.randn(x.shape, generator=generator))


@pytest.mark.parametrize(("attention", "prefix"), [("causal", "causal"), ("full", "global")])
@pytest.mark.parametrize("case", CASES)
def test_tracks_equal_the_released_network_as_far_as_float32_tells(case, attention, prefix):
    """The tracker embeds displacements as sines of up to 750 radians a cell, so on random weights four rounds blow
    rounding errors up to a hundredth of the image, and no two programs agree to 1e-5. What can be checked: the released
    result must be one of those that rounding errors produce. An error in the network (a transposed window, another
    scale, an unnormalised skip) puts it 2.5 to 15 spreads away.
    """
    model, expected = golden_model(case, attention)
    hw = tuple(expected["images"].shape[-2:])
    generator = torch.Generator().manual_seed(0)

    attend = causal_attention if attention == "causal" else full_attention
    with torch.no_grad():
        tokens = model._tokens(expected["images"], [attend] * model.config.depth)
        frames = model.track_head.features(tokens, hw)
        runs = []
        for _ in range(12):
            rounded = [
                [x * (1 + 1e-6 * torch.randn(x.shape, generator=generator)) for x in levels] for levels in frames
            ]
            runs.append(model.track_head(expected["query_points"], rounded))
        exact = model(expected["images"], query_points=expected["query_points"])
    for output, got, name in zip(
        zip(*runs, strict=True),
        (exact.tracks, exact.track_visibility, exact.track_conf),
        ("track", "vis", "track_conf"),
        strict=True,
    ):
        samples = torch.stack(output)
        spread = (samples - samples.mean(0)).square().mean().sqrt()
        for result in (expected[f"{prefix}.{name}"], got):
            distance = (result - samples.mean(0)).square().mean().sqrt()
            assert distance < 2 * spread, (name, distance / spread)
    assert (
        expected[f"{prefix}.track"] - expected["query_points"][:, None]
    ).abs().mean() > 3  # there is motion to match


def test_query_frame_keeps_its_points():
    model, expected = golden_model("conv-batch")
    with torch.no_grad():
        tracks = model(expected["images"], query_points=expected["query_points"]).tracks
    assert torch.equal(tracks[:, 0], expected["query_points"])
