"""Train a network: a teacher with the truth, then a causal student from it. Two configurations of one loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset

from .checkpoint import load_model, save_model
from .config import StreamVGGTConfig
from .data import Augmentation, ClipBatch, ClipSource, ClipStream, Stage, SyntheticSource
from .distill import Pupil, matching_losses, teacher_losses, truth_losses
from .losses import LossConfig
from .model import Encoded, StreamVGGT
from .optimizer import build_optimizers

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_SMALL = ((84, 112), (98, 126), (126, 98), (84, 154), (126, 168))
_LARGE = ((126, 168), (126, 224), (168, 224), (168, 168), (224, 168))


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number, or a checkpoint does not belong to the run."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run; it is kept beside its checkpoints.

    Attributes:
        network: sizes of the network, with the attention that is trained.
        init: weights to begin with, for ``load_model``; None for fresh ones.
        encoder_init: DINOv2 weights for the encoder under their public names (safetensors), where ``init`` is None.
        teacher: weights of the teacher, for ``load_model``; None to learn from the truth alone.
        truth: weight of the losses against the truth beside a teacher's.
        loss: weights of the losses.
        frozen: parts that stay as they are, by the beginnings of their names.
        num_steps: of the optimiser.
        lr: AdamW's learning rate, reached after ``warmup_steps``, from where it falls along a cosine to ``final_lr``.
        muon_lr: Muon's, for the matrices of blocks; 0 to give those to AdamW.
        final_lr: share of the learning rates at the end.
        warmup_steps: steps of linear rise.
        weight_decay: decoupled.
        betas: AdamW's.
        clip_norm: largest norm of the gradients.
        ema: how much the averaged weights keep of themselves each step, which are those that are saved as the model.
        accumulation: batches a step.
        precision: "no" (float32) or "bf16".
        recompute: whether blocks recompute their activations in the backward pass, which saves memory.
        dense_share: share of the frames whose maps are compared, chosen anew each step.
        stages: clips of the parts of the run.
        augment: whether colours are changed.
        scene_frames: frames rendered of a made-up scene.
        seed: decides weights and clips.
        workers: processes that make clips; 0 to make them in between.
        encode_in_workers: whether the workers also run the encoder, which must be frozen: for training on a CPU.
        log_every: steps a line of the log.
        validate_every: steps between validations.
        save_every: steps between checkpoints.
    """

    network: StreamVGGTConfig
    init: str | None = None
    encoder_init: str | None = None
    teacher: str | None = None
    truth: float = 1.0
    loss: LossConfig = field(default_factory=LossConfig)
    frozen: tuple[str, ...] = ("encoder.",)
    num_steps: int = 3000
    lr: float = 6e-4
    muon_lr: float = 1.5e-3
    final_lr: float = 0.02
    warmup_steps: int = 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema: float = 0.995
    accumulation: int = 1
    precision: Literal["no", "bf16"] = "no"
    recompute: bool = False
    dense_share: float = 0.34
    stages: tuple[Stage, ...] = (
        Stage(0.3, (2,), (3, 7), _SMALL, 1200),
        Stage(0.75, (2, 3, 4), (1, 4), _SMALL, 1600),
        Stage(1.0, (2, 4, 8), (1, 4), _LARGE, 2400),
    )
    augment: bool = True
    scene_frames: int = 8
    seed: int = 0
    workers: int = 1
    encode_in_workers: bool = False
    log_every: int = 20
    validate_every: int = 200
    save_every: int = 100

    def to_json(self) -> str:
        """This configuration as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def small_teacher(cls, encoder_init: str) -> TrainConfig:
        """The teacher of the bundled model: full attention, learns from the truth."""
        return cls(network=StreamVGGTConfig.small("full"), encoder_init=encoder_init, encode_in_workers=True)

    @classmethod
    def small_student(cls, teacher: str) -> TrainConfig:
        """The bundled model: causal, starts as its teacher and learns from it, and a little from the truth."""
        return cls(
            network=StreamVGGTConfig.small(),
            init=teacher,
            teacher=teacher,
            truth=0.3,
            loss=LossConfig(feature=0.5),
            num_steps=1000,
            lr=3e-4,
            muon_lr=7e-4,
            encode_in_workers=True,
            stages=(Stage(1.0, (2, 4, 8), (1, 4), _SMALL + _LARGE, 2000),),
        )

    @classmethod
    def published(cls, teacher: str = "facebook/VGGT-1B") -> TrainConfig:
        """StreamVGGT as published (Zhuo et al. 2025, section 4.1): ten frames a clip, one clip a process and step."""
        return cls(
            network=StreamVGGTConfig.vggt_1b(),
            init=teacher,
            teacher=teacher,
            truth=0.0,
            loss=LossConfig.published(),
            frozen=("encoder.", "aggregator.camera_token", "aggregator.register_token"),
            num_steps=390_000,
            lr=1e-5,
            muon_lr=0.0,
            final_lr=0.01,
            warmup_steps=19_500,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            ema=0.0,
            precision="bf16",
            recompute=True,
            dense_share=1.0,
            stages=(Stage(1.0, (10,), (1, 4), ((392, 518), (294, 518), (518, 518)), 10_360),),
            scene_frames=24,
            workers=4,
            validate_every=2000,
            save_every=1000,
        )


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
        TrainingError: a tensor is missing or has another shape.
    """
    from safetensors.torch import load_file

    given = load_file(path)
    own = network.encoder.state_dict()
    if "pos_embed" in given:
        side = math.isqrt(own["pos_embed"].shape[1] - 1)
        was = math.isqrt(given["pos_embed"].shape[1] - 1)
        grid = given["pos_embed"][:, 1:].float().unflatten(1, (was, was)).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        given["pos_embed"] = torch.cat([given["pos_embed"][:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
    wrong = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    if wrong:
        raise TrainingError(f"{path} does not fit the encoder: {', '.join(wrong[:3])} missing or of another shape")
    network.encoder.load_state_dict({name: given[name].float() for name in own})


class Run:
    """A training run in a folder: it starts, or goes on from its newest checkpoint.

    Args:
        config: of the run.
        folder: for ``config.json``, ``log.jsonl``, checkpoints and, at the end, ``model.safetensors``.
        sources: where clips come from and how often each; None for made-up scenes.
        validate: called with the averaged network now and then; its numbers go into the log.

    Raises:
        TrainingError: the folder holds a run of another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        *,
        sources: Sequence[tuple[ClipSource, float]] | None = None,
        validate: Callable[[StreamVGGT], dict[str, float]] | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.config, self.folder, self._validate = config, Path(folder), validate
        self.accelerator: Accelerator = Accelerator(
            mixed_precision=config.precision, gradient_accumulation_steps=config.accumulation
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim_folder()
        network = build_network(config)
        if config.recompute:
            for block in (*network.aggregator.frame_blocks, *network.aggregator.global_blocks):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        pupil = Pupil(network)
        optimizers = build_optimizers(
            pupil, lr=config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay, betas=config.betas
        )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.pupil, *self.optimizers = self.accelerator.prepare(pupil, *optimizers)
        self._teacher: Pupil | None = None
        if config.teacher is not None:
            teacher = Pupil(
                load_model(config.teacher, config=replace(config.network, attention="full"), attention="full")
            )
            self._teacher = teacher.requires_grad_(False).eval().to(self.accelerator.device)
        self._average = {n: p.detach().clone() for n, p in self._trained() if config.ema}
        sources = sources or [(SyntheticSource(config.scene_frames), 1.0)]
        self._clips = ClipStream(
            sources=tuple(source for source, _ in sources),
            weights=tuple(weight for _, weight in sources),
            stages=config.stages,
            num_steps=config.num_steps * config.accumulation,
            seed=config.seed,
            augment=Augmentation() if config.augment else None,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            patch_size=config.network.patch_size,
        )
        self.step = 0
        self._resume()

    @property
    def network(self) -> StreamVGGT:
        """The network in training."""
        network: StreamVGGT = self.accelerator.unwrap_model(self.pupil).network
        return network

    def train(self) -> None:
        """Take the steps that are left, with log, validation and checkpoints; write the model at the end.

        Raises:
            TrainingError: a loss is not finite; the batch is saved.
        """
        config, started, seen = self.config, time.perf_counter(), 0
        sums: dict[str, Tensor] = {}
        batches = self._batches()
        while self.step < config.num_steps:
            losses: dict[str, Tensor] = {}
            for _ in range(config.accumulation):
                clips, encoded = next(batches)
                clips = clips.to(self.accelerator.device)
                seen += clips.images.shape[0] * clips.images.shape[1] * self.accelerator.num_processes
                with self.accelerator.accumulate(self.pupil):
                    losses = self._take_step(clips, encoded)
            self.step += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value
            if self.step % config.log_every == 0:
                seconds = time.perf_counter() - started
                means = {name: float(value) / config.log_every for name, value in sums.items()}
                self._log({"step": self.step, **means, "frames_per_s": round(seen / seconds, 2)})
                sums, seen, started = {}, 0, time.perf_counter()
            if self.step % config.save_every == 0 or self.step == config.num_steps:
                self._save()
            if self._validate is not None and self.step % config.validate_every == 0:
                self._log({"step": self.step, "validation": self._validate(self.averaged())})
                started = time.perf_counter()
        if self.accelerator.is_main_process:
            save_model(self.averaged(), self.folder / "model.safetensors")

    def averaged(self) -> StreamVGGT:
        """A copy of the network with the averaged weights, ready to predict."""
        network = StreamVGGT(self.config.network).to(self.accelerator.device)
        state = dict(self.network.state_dict())
        state.update(
            {name.removeprefix("network."): x for name, x in self._average.items() if name.startswith("network.")}
        )
        network.load_state_dict(state)
        return network.eval()

    def _take_step(self, clips: ClipBatch, encoded: Encoded | None) -> dict[str, Tensor]:
        """Go forwards and backwards and, where the batches of a step are complete, change the weights."""
        losses = self.losses(clips, encoded)
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            path = self.folder / f"bad-batch-{self.step}.pt"
            torch.save({name: tensor.cpu() for name, tensor in vars(clips).items()}, path)
            parts = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
            raise TrainingError(f"the loss of step {self.step} is not finite ({parts}); its clips are in {path}")
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self._schedule()
        self.accelerator.backward(total)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.pupil.parameters(), self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            # A young average forgets faster, or it would hold on to the fresh weights.
            keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
            for name, parameter in self._trained():
                if name in self._average:
                    self._average[name].lerp_(parameter.detach(), 1 - keep)
        return {name: value.detach() for name, value in losses.items()}

    def losses(self, clips: ClipBatch, encoded: Encoded | None = None) -> dict[str, Tensor]:
        """Losses of the parts, each times its weight, for clips as :class:`ClipStream` gives them.

        A frozen encoder sees the clips once, for teacher and student, unless ``encoded`` is its answer already.
        """
        config = self.config
        rng = torch.Generator().manual_seed(config.seed * 7 + self.step)
        num_frames = clips.images.shape[1]
        count = max(1, round(config.dense_share * num_frames))
        frames = torch.randperm(num_frames, generator=rng)[:count].sort().values.to(clips.images.device)
        with self.accelerator.autocast():
            if encoded is None and self._encoder_is_frozen:
                with torch.no_grad():
                    encoded = self.network._encode(clips.images)
            seen = self.pupil(clips.images, frames, encoded)
        parts = {name: (config.truth, x) for name, x in truth_losses(seen, clips, frames, config.loss).items()}
        if self._teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                told = self._teacher(clips.images, frames, encoded)
            valid = clips.valid[:, frames]
            valid = valid | ~valid.flatten(1).any(1)[:, None, None, None]
            taught = teacher_losses(seen, told, valid, config.loss)
            parts = {f"truth_{name}": x for name, x in parts.items()} | {n: (1.0, x) for n, x in taught.items()}
        matching = matching_losses(seen, clips, self.network, config.loss)
        parts |= {name: (1.0, x) for name, x in matching.items()}
        return {
            name: share * getattr(config.loss, name.removeprefix("truth_")) * loss
            for name, (share, loss) in parts.items()
            if share
        }

    @property
    def _encoder_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.network.encoder.parameters())

    def _batches(self) -> Iterator[tuple[ClipBatch, Encoded | None]]:
        """Clips of the steps to come, made by workers ahead of time."""
        config = self.config
        encoder = self.network if config.encode_in_workers and self._encoder_is_frozen else None
        steps = range(self.step * config.accumulation, len(self._clips))
        loader: DataLoader[Any] = DataLoader(
            Subset(_Encoding(self._clips, encoder), steps),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_one_thread,
        )
        return iter(loader)

    def _schedule(self) -> float:
        """Share of the learning rates at this step."""
        config = self.config
        if self.step < config.warmup_steps:
            return (self.step + 1) / config.warmup_steps
        progress = (self.step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def _trained(self) -> list[tuple[str, Tensor]]:
        """Names and values of the parameters in training, the read-outs' among them."""
        pupil = self.accelerator.unwrap_model(self.pupil)
        return [(name, parameter) for name, parameter in pupil.named_parameters() if parameter.requires_grad]

    def _claim_folder(self) -> None:
        """Write the configuration, or compare it with the one that is there."""
        path = self.folder / "config.json"
        if not path.exists():
            path.write_text(self.config.to_json())
        elif path.read_text() != self.config.to_json():
            raise TrainingError(f"{path} is of another run; take another folder, or the same configuration to go on")

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        saved = torch.load(path, map_location="cpu", weights_only=True)
        self.accelerator.unwrap_model(self.pupil).load_state_dict(saved["pupil"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._average = {name: x.to(self.accelerator.device) for name, x in saved["average"].items()}
        self.step = saved["step"]
        logger.info("going on from step %d", self.step)

    def _save(self) -> None:
        """Write the checkpoint beside the old one, then put it in its place."""
        if not self.accelerator.is_main_process:
            return
        saved = {
            "pupil": self.accelerator.unwrap_model(self.pupil).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self._average,
            "step": self.step,
        }
        fresh = self.folder / "checkpoint.pt.new"
        try:
            torch.save(saved, fresh)
            fresh.replace(self.folder / "checkpoint.pt")
        except OSError as error:
            fresh.unlink(missing_ok=True)
            logger.warning("checkpoint of step %d could not be written, the last one stays: %s", self.step, error)

    def _log(self, line: dict[str, Any]) -> None:
        """Append a line to the log."""
        if not self.accelerator.is_main_process:
            return
        logger.info("%s", line)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class _Encoding:
    """Clips, and what a frozen encoder makes of them."""

    clips: ClipStream
    network: StreamVGGT | None

    @torch.no_grad()
    def __getitem__(self, step: int) -> tuple[ClipBatch, Encoded | None]:
        clips = self.clips[step]
        return clips, None if self.network is None else self.network._encode(clips.images)


def _one_thread(_worker: int) -> None:
    """Keep a worker to one thread."""
    torch.set_num_threads(1)
