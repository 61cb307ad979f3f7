"""Teacher and student: what a network in training sees and is told, by the truth and by a network that sees more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .attention import Attend, causal_attention, full_attention
from .data import ClipBatch
from .losses import (
    LossConfig,
    camera_loss,
    depth_loss,
    descriptor_loss,
    displacement_loss,
    feature_loss,
    guide_loss,
    patch_depth_loss,
    patch_matches,
    point_loss,
)
from .model import Encoded, StreamVGGT, full_precision
from .types import Predictions, required


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network says of clips, and what it thought meanwhile.

    Attributes:
        predictions: cameras of all frames, maps of the frames that were asked for.
        tokens: of the layers that the heads read, ``[B, S, P, 2 C]``.
        descriptors: ``[B, S, N, D]``, of networks with soft matching.
        queries: of the first global block, ``[B, heads, S, P, D]``.
        keys: likewise.
        displacement: read-out of the patches' motion since frame 0, half image widths, ``[B, S, N, 2]``.
        patch_depth: read-out of the logarithm of the patches' depth, ``[B, S, N]``.
    """

    predictions: Predictions
    tokens: dict[int, Tensor]
    descriptors: Tensor | None
    queries: Tensor
    keys: Tensor
    displacement: Tensor
    patch_depth: Tensor


class Pupil(nn.Module):
    """A network with the read-outs that only training needs. Its ``forward`` is what data parallelism wraps."""

    def __init__(self, network: StreamVGGT) -> None:
        super().__init__()
        self.network = network
        self.displacement = nn.Linear(2 * network.config.embed_dim, 2)
        self.patch_depth = nn.Linear(2 * network.config.embed_dim, 1)
        for readout in (self.displacement, self.patch_depth):
            nn.init.zeros_(readout.weight)
            nn.init.zeros_(readout.bias)

    def forward(self, images: Tensor, dense_frames: Tensor, encoded: Encoded | None = None) -> Seen:
        """Look at clips ``[B, S, 3, H, W]``; maps are made of the frames numbered ``dense_frames``.

        ``encoded`` is what a frozen encoder made of the images, for networks that share one.
        """
        network, config = self.network, self.network.config
        image_hw = (images.shape[-2], images.shape[-1])
        attend = causal_attention if config.attention == "causal" else full_attention
        recorder = _Recorder(attend)
        encoded = encoded or network._encode(images)
        tokens, _, described = network._aggregate(encoded, image_hw, [recorder, *[attend] * (config.depth - 1)])
        last = tokens[config.depth - 1]
        patches = last[:, :, config.special_tokens :]
        with full_precision(images.device.type):
            rounds = network.camera_head(last, lambda _round, _block: attend)
            dense = {layer: tokens[layer][:, dense_frames] for layer in config.dense_layers}
            return Seen(
                predictions=network._dense(dense, image_hw, rounds),
                tokens=tokens,
                descriptors=described,
                queries=recorder.queries.float(),
                keys=recorder.keys.float(),
                displacement=self.displacement(patches),
                patch_depth=self.patch_depth(patches)[..., 0],
            )


class _Recorder:
    """Attend, and remember the queries and keys."""

    queries: Tensor
    keys: Tensor

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.queries, self.keys = q, k
        return self._attend(q, k, v)


def truth_losses(seen: Seen, clips: ClipBatch, dense_frames: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Compare with the truth: cameras, depth and points, by the names of their weights in the configuration."""
    said = seen.predictions
    valid = clips.valid[:, dense_frames]
    losses = {"camera": camera_loss(required(said.pose_enc_iterations, "camera"), clips.pose_enc, config)}
    if config.depth:
        losses["depth"] = depth_loss(*_depth(said), clips.depth[:, dense_frames], valid, config)
    if config.points:
        losses["points"] = point_loss(*_points(said), clips.world_points[:, dense_frames], valid, config)
    return losses


def matching_losses(seen: Seen, clips: ClipBatch, network: StreamVGGT, config: LossConfig) -> dict[str, Tensor]:
    """Compare what helps to see motion with exact geometry; needs the depth of the clips."""
    if not (config.descriptor or config.guide or config.displacement or config.patch_depth):
        return {}
    matches = patch_matches(
        clips.depth, clips.valid, clips.world_points, clips.extrinsics, clips.intrinsics, network.config.patch_size
    )
    losses = {
        "displacement": displacement_loss(seen.displacement, matches, clips.images.shape[-1]),
        "patch_depth": patch_depth_loss(seen.patch_depth, matches),
    }
    if clips.images.shape[1] > 1:
        losses["guide"] = guide_loss(seen.queries, seen.keys, network.config.special_tokens, matches)
        if network.soft_match is not None and seen.descriptors is not None:
            temperature = network.soft_match.log_temperature.exp()
            losses["descriptor"] = descriptor_loss(seen.descriptors, temperature, matches)
    return losses


def teacher_losses(seen: Seen, teacher: Seen, valid: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Compare with a teacher that saw all frames: cameras (all nine numbers), depth, points, and tokens.

    Args:
        seen: the student's view, with gradients.
        teacher: the teacher's, of the same clips and frames.
        valid: bool ``[B, S', H, W]``, pixels at which the teacher is believed; the sky has no depth.
        config: weights.
    """
    said, told = seen.predictions, teacher.predictions
    poses = required(told.pose_enc, "camera").detach()
    losses = {"camera": camera_loss(required(said.pose_enc_iterations, "camera"), poses, config)}
    if config.depth:
        losses["depth"] = depth_loss(*_depth(said), _depth(told)[0].detach(), valid, config)
    if config.points:
        losses["points"] = point_loss(*_points(said), _points(told)[0].detach(), valid, config)
    if config.feature:
        losses["feature"] = feature_loss(seen.tokens, {i: x.detach() for i, x in teacher.tokens.items()})
    return losses


def _depth(said: Predictions) -> tuple[Tensor, Tensor]:
    return required(said.depth, "depth"), required(said.depth_conf, "depth")


def _points(said: Predictions) -> tuple[Tensor, Tensor]:
    return required(said.world_points, "points"), required(said.world_points_conf, "points")
