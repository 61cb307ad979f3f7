"""The names of tensors in the released checkpoints, and ours: one table, read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_TRACKER = "track_head.tracker.updateformer."

# (ours, released), a row a part. "#" stands for any number; "#+1" is counted from 1 where we count from 0.
NAMES = [
    ("encoder.", "aggregator.patch_embed."),
    ("camera_head.initial_pose", "camera_head.empty_pose_tokens"),
    ("camera_head.modulation.", "camera_head.poseLN_modulation.1."),
    ("track_head.feature_norm.", "track_head.tracker.fmap_norm."),
    ("track_head.query_token", "track_head.tracker.query_ref_token"),
    ("track_head.correlation_mlp.", "track_head.tracker.corr_mlp."),
    ("track_head.update_norm.", "track_head.tracker.ffeat_norm."),
    ("track_head.update_proj.", "track_head.tracker.ffeat_updater.0."),
    ("track_head.visibility.", "track_head.tracker.vis_predictor.0."),
    ("track_head.confidence.", "track_head.tracker.conf_predictor.0."),
    # The misspelling is part of the released weights.
    ("track_head.transformer.virtual_tracks", _TRACKER + "virual_tracks"),
    ("track_head.transformer.input_norm.", _TRACKER + "input_norm."),
    ("track_head.transformer.input_proj.", _TRACKER + "input_transform."),
    ("track_head.transformer.output_norm.", _TRACKER + "output_norm."),
    ("track_head.transformer.flow_head.", _TRACKER + "flow_head."),
    ("track_head.transformer.time_blocks.", _TRACKER + "time_blocks."),
    ("track_head.transformer.virtual_blocks.", _TRACKER + "space_virtual_blocks."),
    ("track_head.transformer.gather_blocks.#.attn.", _TRACKER + "space_virtual2point_blocks.#.cross_attn."),
    ("track_head.transformer.gather_blocks.", _TRACKER + "space_virtual2point_blocks."),
    ("track_head.transformer.scatter_blocks.#.attn.", _TRACKER + "space_point2virtual_blocks.#.cross_attn."),
    ("track_head.transformer.scatter_blocks.", _TRACKER + "space_point2virtual_blocks."),
]
for _ours, _released in (
    ("depth_head.pyramid.", "depth_head."),
    ("point_head.pyramid.", "point_head."),
    ("track_head.feature_extractor.", "track_head.feature_extractor."),
):
    NAMES += [
        (_ours + "norm.", _released + "norm."),
        (_ours + "projections.", _released + "projects."),
        (_ours + "resize.", _released + "resize_layers."),
        (_ours + "narrow.#.", _released + "scratch.layer#+1_rn."),
        (_ours + "fusions.#.skip_unit.", _released + "scratch.refinenet#+1.resConfUnit1."),
        (_ours + "fusions.#.unit.", _released + "scratch.refinenet#+1.resConfUnit2."),
        (_ours + "fusions.#.out_conv.", _released + "scratch.refinenet#+1.out_conv."),
        (_ours + "out_conv.", _released + "scratch.output_conv1."),
    ]
NAMES += [(f"{head}.out.", f"{head}.scratch.output_conv2.") for head in ("depth_head", "point_head")]


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from our names to those of the released checkpoints. Other names pass unchanged."""
    return {_rename(name, _TO_OFFICIAL): tensor for name, tensor in state_dict.items()}


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from the released checkpoints' names to ours. Our own names pass unchanged."""
    return {_rename(name, _FROM_OFFICIAL): tensor for name, tensor in state_dict.items()}


def _rename(name: str, rules: list[tuple[re.Pattern[str], str, int]]) -> str:
    for pattern, template, shift in rules:
        match = pattern.match(name)
        if match:
            number = str(int(match[1]) + shift) if match.groups() else ""
            return template.replace("#", number) + name[match.end() :]
    return name


def _rules(pairs: list[tuple[str, str]], shift: int) -> list[tuple[re.Pattern[str], str, int]]:
    """Compile (from, to) parts to (pattern, template, what is added to the number)."""
    rules = []
    for old, new in pairs:
        counted_from_one = "#+1" in old + new
        pattern = re.compile(re.escape(old.replace("+1", "")).replace(r"\#", r"(\d+)"))
        rules.append((pattern, new.replace("+1", ""), shift if counted_from_one else 0))
    return rules


_TO_OFFICIAL = _rules(NAMES, 1)
_FROM_OFFICIAL = _rules([(released, ours) for ours, released in NAMES], -1)
