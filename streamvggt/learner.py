"""A network in training: losses, gradients, steps and averaged weights, on one device or on many.

Accelerate starts the processes, chooses the device and wraps the network for data parallelism (DDP). Where its
launcher asks for FSDP, the weights are sharded by ``torch.distributed.fsdp.fully_shard``, which Accelerate would call
too, but on GPUs alone: so the same lines run on CPUs, where they are tested.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .checkpoint import load_model
from .data import ClipBatch
from .distill import Pupil, Seen, matching_losses, teacher_losses, truth_losses
from .encoder import resize_positions
from .layers import Block
from .model import Encoded, StreamVGGT
from .optimizer import build_optimizers
from .recipes import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[ClipBatch, Encoded | None]
"""Clips, and what a frozen encoder makes of them where that is known already."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number, or a checkpoint does not belong to the run."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is not finite; ``clips`` are those that were looked at."""

    def __init__(self, message: str, clips: list[ClipBatch]) -> None:
        super().__init__(message)
        self.clips = clips


def build_network(config: TrainConfig) -> StreamVGGT:
    """Make the network that a run begins with: loaded, or fresh from the seed; frozen parts take no gradients."""
    torch.manual_seed(config.seed)
    if config.init is not None:
        network = load_model(config.init, config=config.network, attention=config.network.attention)
    else:
        network = StreamVGGT(config.network)
        if config.encoder_init is not None:
            load_encoder(network, config.encoder_init)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(config.frozen) if config.frozen else True)
    return network.train()


def load_encoder(network: StreamVGGT, path: str | Path) -> None:
    """Copy DINOv2 weights under their public names into the encoder: its first blocks, its positions resized.

    Raises:
        TrainingError: the file cannot be read, or a tensor is missing or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read as safetensors ({error}); give the encoder's weights") from error
    own = network.encoder.state_dict()
    if "pos_embed" in given and "pos_embed" in own:
        side = math.isqrt(own["pos_embed"].shape[1] - 1)
        of_class, of_patches = given["pos_embed"].float().tensor_split([1], dim=1)
        given["pos_embed"] = torch.cat([of_class, resize_positions(of_patches, side, side)], dim=1)
    wrong = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    if wrong:
        raise TrainingError(f"{path} does not fit the encoder: {', '.join(wrong[:3])} missing or of another shape")
    network.encoder.load_state_dict({name: given[name].float() for name in own})


class Lesson(nn.Module):
    """A pupil and the losses that it learns by. All weights in training are used inside its ``forward``.

    So gradients are shared out once, and parts that no loss reaches are known to be unused.
    """

    def __init__(self, pupil: Pupil, config: TrainConfig) -> None:
        super().__init__()
        self.pupil = pupil
        self._config = config

    def forward(
        self, clips: ClipBatch, frames: Tensor, encoded: Encoded | None, told: Seen | None
    ) -> dict[str, Tensor]:
        """Losses of the parts, each times its weight; those of weight 0 are left out.

        Args:
            clips: what is seen, and the truth.
            frames: numbers of the frames whose maps are compared.
            encoded: what a frozen encoder makes of the clips, where that is known.
            told: the teacher's view of them, or None.
        """
        config = self._config
        with _precision(config, clips.images.device):
            seen = self.pupil(clips.images, frames, encoded)
        parts = {name: (config.truth, x) for name, x in truth_losses(seen, clips, frames, config.loss).items()}
        if told is not None:
            valid = clips.valid[:, frames]
            valid = valid | ~valid.flatten(1).any(1)[:, None, None, None]
            taught = teacher_losses(seen, told, valid, config.loss)
            parts = {f"truth_{name}": x for name, x in parts.items()} | {n: (1.0, x) for n, x in taught.items()}
        matching = matching_losses(seen, clips, self.pupil.network, config.loss)
        parts |= {name: (1.0, x) for name, x in matching.items()}
        weights = {
            name: share * getattr(config.loss, name.removeprefix("truth_")) for name, (share, _) in parts.items()
        }
        return {name: weights[name] * loss for name, (_, loss) in parts.items() if weights[name]}


class Learner:
    """A network in training, with its optimisers and its averaged weights.

    Args:
        config: of the run.
        device: "cpu" to leave accelerators alone; None for the best one there is.

    Raises:
        TrainingError: sharding was asked for and cannot be done.
    """

    def __init__(self, config: TrainConfig, device: str | None = None) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError as error:
            raise TrainingError("training needs Accelerate: pip install 'streamvggt[train]'") from error
        self.config = config
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator: Accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu", kwargs_handlers=[unused])
        network = build_network(config)
        if config.recompute:
            for block in (*network.aggregator.frame_blocks, *network.aggregator.global_blocks):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and self.num_processes > 1
        lesson = Lesson(Pupil(network), config)
        if self.sharded:
            _shard(lesson.to(self.accelerator.device), config)
            self._lesson: nn.Module = lesson
        else:
            self._lesson = self.accelerator.prepare_model(lesson)
        self.optimizers = build_optimizers(
            self.pupil,
            lr=config.lr,
            muon_lr=config.muon_lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            pose_lr=config.pose_lr,
        )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._teacher: Pupil | None = None
        self._shares_encoder = False
        if config.teacher is not None:
            full = replace(config.network, attention="full")
            teacher = Pupil(load_model(config.teacher, config=full, attention="full"))
            self._shares_encoder = (
                self.encoder_is_frozen and not self.sharded and _same_encoder(teacher.network, network)
            )
            self._teacher = teacher.requires_grad_(False).eval().to(self.accelerator.device)
        self._average = {name: p.detach().clone() for name, p in self._trained()} if config.ema else {}

    @property
    def num_processes(self) -> int:
        """Processes that train together."""
        return int(self.accelerator.num_processes)

    @property
    def pupil(self) -> Pupil:
        """The network in training, with its read-outs."""
        lesson = self._lesson.module if isinstance(self._lesson, DistributedDataParallel) else self._lesson
        return cast(Lesson, lesson).pupil

    @property
    def network(self) -> StreamVGGT:
        """The network in training."""
        return self.pupil.network

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return not any(parameter.requires_grad for parameter in self.network.encoder.parameters())

    def losses(self, clips: ClipBatch, encoded: Encoded | None = None, step: int = 0) -> dict[str, Tensor]:
        """Losses of the parts, each times its weight, for clips on the device.

        A frozen encoder sees the clips once, for teacher and student if they have the same, unless ``encoded`` is its
        answer already. The step decides which frames' maps are compared.
        """
        config, num_frames = self.config, clips.images.shape[1]
        rng = torch.Generator().manual_seed(config.seed * 7 + step)
        count = max(1, round(config.dense_share * num_frames))
        frames = torch.randperm(num_frames, generator=rng)[:count].sort().values.to(clips.images.device)
        told = None
        with torch.no_grad(), _precision(config, clips.images.device):
            # Sharded weights are whole inside of the lesson only.
            if encoded is None and self.encoder_is_frozen and not self.sharded:
                encoded = self.network._encode(clips.images)
            if self._teacher is not None:
                told = self._teacher(clips.images, frames, encoded if self._shares_encoder else None)
        losses: dict[str, Tensor] = self._lesson(clips, frames, encoded, told)
        return losses

    def take_step(self, step: int, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Learn from the batches of one step, and change the weights.

        Returns:
            The losses, averaged over the batches, and ``grad_norm``, the norm of all gradients before it is clipped.

        Raises:
            NotFiniteError: a loss or a gradient is not finite in any of the processes; no weight has changed.
        """
        config, means, looked_at = self.config, dict[str, Tensor](), list[ClipBatch]()
        for number, (clips, encoded) in enumerate(batches, 1):
            clips = clips.to(self.accelerator.device)
            looked_at.append(clips)
            more = number < config.accumulation
            with (
                self._lesson.no_sync() if more and isinstance(self._lesson, DistributedDataParallel) else nullcontext()
            ):
                losses = self.losses(clips, encoded, step)
                total = torch.stack(list(losses.values())).sum() / config.accumulation
                if not self.everywhere(bool(total.isfinite())):
                    parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
                    raise NotFiniteError(f"the loss of step {step} is not finite ({parts})", looked_at)
                total.backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / config.accumulation
        means["grad_norm"] = self._clip(step, looked_at)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.schedule(step)
            optimizer.step()
            optimizer.zero_grad()
        # A young average forgets faster, or it would hold on to the fresh weights.
        keep = min(config.ema, (1 + step) / (10 + step))
        for name, parameter in self._trained():
            if name in self._average:
                self._average[name].lerp_(parameter.detach(), 1 - keep)
        return means

    def schedule(self, step: int) -> float:
        """Share of the learning rates at a step."""
        config = self.config
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def everywhere(self, holds: bool) -> bool:
        """Say whether something holds in all processes, all of which must ask."""
        if self.num_processes == 1:
            return holds
        flag = torch.tensor(float(holds), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") == self.num_processes)

    def averaged(self) -> StreamVGGT:
        """A copy of the network with the averaged weights, ready to predict; all processes must ask."""
        state = {name: x.detach().clone() for name, x in _whole(self.network.state_dict()).items()}
        average = _whole(self._average)
        state |= {n.removeprefix("network."): x.clone() for n, x in average.items() if n.startswith("network.")}
        with torch.device("meta"):
            network = StreamVGGT(self.config.network)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval()

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on, as whole tensors however they are sharded; all processes must ask."""
        return {
            "pupil": _whole(self.pupil.state_dict()),
            "optimizers": [_whole(optimizer.state_dict()) for optimizer in self.optimizers],
            "average": _whole(self._average),
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave, in whichever number of processes.

        Raises:
            KeyError, RuntimeError, ValueError: it does not fit.
        """
        like = self.pupil.state_dict()
        self.pupil.load_state_dict({name: _placed(x, like.get(name)) for name, x in saved["pupil"].items()})
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            members = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                i: {name: _placed(x, members[i]) for name, x in values.items()} for i, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": moments})
        trained = dict(self._trained())
        device = self.accelerator.device
        self._average = {name: _placed(x.to(device), trained[name]) for name, x in saved["average"].items()}

    def _clip(self, step: int, looked_at: list[ClipBatch]) -> Tensor:
        """Shorten the gradients to the norm allowed and return what it was."""
        norm = nn.utils.clip_grad_norm_(self.pupil.parameters(), self.config.clip_norm)
        norm = _whole({"norm": norm})["norm"]
        if not norm.isfinite():
            raise NotFiniteError(f"the losses of step {step} are finite, but their gradients are not", looked_at)
        return norm

    def _trained(self) -> list[tuple[str, Tensor]]:
        """Names and values of the parameters in training, the read-outs' among them."""
        return [(name, parameter) for name, parameter in self.pupil.named_parameters() if parameter.requires_grad]


def _precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Compute in the run's precision."""
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def _same_encoder(one: StreamVGGT, other: StreamVGGT) -> bool:
    """Say whether two networks see single frames alike."""
    theirs = other.encoder.state_dict()
    return all(torch.equal(x, theirs[name].to(x.device)) for name, x in one.encoder.state_dict().items())


def _shard(lesson: Lesson, config: TrainConfig) -> None:
    """Share the weights out among the processes, block by block (FSDP2)."""
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if config.muon_lr:
        raise TrainingError(
            "Muon needs whole matrices, which FSDP shards: give --set muon_lr=0 for AdamW alone, or train without FSDP"
        )
    scalars = [name for name, parameter in lesson.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise TrainingError(f"FSDP cannot shard single numbers ({scalars[0]}); train this network without it")
    mesh = init_device_mesh(next(lesson.parameters()).device.type, (get_world_size(),))
    for module in list(lesson.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(lesson, mesh=mesh)


def _whole(tree: Any) -> Any:
    """Put sharded tensors together, in dictionaries and lists however deep."""
    from torch.distributed.tensor import DTensor

    if isinstance(tree, dict):
        return {name: _whole(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_whole(value) for value in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def _placed(value: Any, like: Any) -> Any:
    """Shard a tensor as another of its shape is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
