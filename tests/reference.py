"""The oracles of the tests: golden data of the released implementations, and a cache-free dense-mask network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from streamvggt.config import StreamVGGTConfig, TrackConfig
from streamvggt.model import StreamVGGT
from streamvggt.types import Predictions

GOLDEN = Path(__file__).parent / "data" / "golden"
CASES = ("dinov2-landscape", "conv-batch")


def golden_case(name: str) -> tuple[StreamVGGTConfig, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Configuration (causal), float32 weights under official names and expected tensors of a golden case."""
    case = json.loads((GOLDEN / name / "case.json").read_text())
    track = case["track"]
    config = StreamVGGTConfig(
        image_size=case["img_size"],
        patch_size=case["patch_size"],
        embed_dim=case["embed_dim"],
        depth=case["depth"],
        num_heads=case["num_heads"],
        num_register_tokens=case["num_register_tokens"],
        encoder=case["patch_embed"],
        encoder_depth=case["encoder_depth"],
        encoder_num_heads=case["encoder_num_heads"],
        camera_depth=case["camera_trunk_depth"],
        camera_num_heads=case["camera_num_heads"],
        dense_features=case["dpt_features"],
        dense_channels=tuple(case["dpt_out_channels"]),
        dense_layers=tuple(case["dpt_layers"]),
        track=TrackConfig(
            features=track["features"],
            iterations=track["iters"],
            correlation_levels=track["corr_levels"],
            correlation_radius=track["corr_radius"],
            hidden_size=track["hidden_size"],
            depth=track["depth"],
        ),
    )
    weights = {name_: tensor.float() for name_, tensor in load_file(GOLDEN / name / "weights.safetensors").items()}
    return config, weights, load_file(GOLDEN / name / "expected.safetensors")


def golden_model(name: str, attention: str = "causal") -> tuple[StreamVGGT, dict[str, torch.Tensor]]:
    """The network of a golden case with its weights, and the expected tensors."""
    config, weights, expected = golden_case(name)
    model = StreamVGGT(replace(config, attention=attention)).eval()
    model.load_state_dict(weights, strict=True)
    return model, expected


def lively(config: StreamVGGTConfig, seed: int = 2) -> StreamVGGT:
    """A network whose random weights let frames speak to each other; fresh weights for training hardly do."""
    torch.manual_seed(seed)
    model = StreamVGGT(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.startswith("track_head"):
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    return model


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation over the largest expected value."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def dense_mask_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Frame-causal attention written out: scores of all pairs, a mask, softmax, weighted sum."""
    frames, tokens, width = q.shape[2:]
    frame = torch.arange(frames).repeat_interleave(tokens)
    future = frame[None, :] > frame[:, None]
    q, k, v = (x.flatten(2, 3) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(future, -torch.inf)
    return (scores.softmax(-1) @ v).unflatten(2, (frames, tokens))


@torch.no_grad()
def naive_forward(model: StreamVGGT, images: torch.Tensor, query_points: torch.Tensor | None = None) -> Predictions:
    """What the causal network must say, from the definition: no cache, no loop, the mask built by hand."""
    hw = (images.shape[-2], images.shape[-1])
    tokens = model._tokens(images, [dense_mask_attention] * model.config.depth)
    predictions = model._decode(tokens, hw, lambda _round, _block: dense_mask_attention)
    if query_points is not None:
        tracks = model.track_head(query_points, model.track_head.features(tokens, hw))
        predictions.tracks, predictions.track_visibility, predictions.track_conf = tracks
    return predictions
