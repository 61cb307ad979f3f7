"""What decides a training run, as data: the settings, the recipes by name, and how to change single settings."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from .config import StreamVGGTConfig
from .data import Stage
from .losses import LossConfig

_SMALL = ((84, 112), (98, 126), (126, 98), (84, 154), (126, 168))
_LARGE = ((126, 168), (126, 224), (168, 224), (168, 168), (224, 168))
_CLIPS_PER_EPOCH, _EPOCHS, _CLIPS_PER_STEP = 39_000, 10, 4  # StreamVGGT: a clip on each of four GPUs


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
        pose_lr: share of ``lr`` for the last layer of the camera head, see
            :func:`streamvggt.optimizer.build_optimizers`.
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
        batch_scale: times as many clips a step as the stages say, for accelerators.
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
    pose_lr: float = 0.25
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
        Stage(0.35, (2,), (3, 7), _SMALL, 1200),
        Stage(0.8, (2, 3, 4), (1, 4), _SMALL, 1600),
        Stage(1.0, (2, 4, 8), (1, 4), _LARGE, 2400),
    )
    batch_scale: int = 1
    augment: bool = True
    scene_frames: int = 8
    seed: int = 0
    workers: int = 1
    encode_in_workers: bool = False
    log_every: int = 20
    validate_every: int = 200
    save_every: int = 100

    def __post_init__(self) -> None:
        counts = (
            "num_steps",
            "accumulation",
            "batch_scale",
            "log_every",
            "validate_every",
            "save_every",
            "scene_frames",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("truth", "muon_lr", "final_lr", "warmup_steps", "weight_decay", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "pose_lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}; 0 saves the plain weights")
        if not 0 < self.dense_share <= 1:
            raise ValueError(f"dense_share must be in (0, 1], got {self.dense_share}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision must be no or bf16, got {self.precision!r}")
        if not self.stages:
            raise ValueError("stages must name at least one part of the run")

    def to_json(self) -> str:
        """This configuration as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def with_settings(self, settings: dict[str, str]) -> TrainConfig:
        """Change single numbers, switches and words, given as text: ``{"num_steps": "500", "loss.depth": "2"}``.

        Raises:
            ValueError: there is no such setting, or the text is no value for it.
        """
        changes, of_loss = dict[str, Any](), dict[str, Any]()
        for name, text in settings.items():
            owner = self.loss if name.startswith("loss.") else self
            key = name.removeprefix("loss.")
            value = _parse(owner, key, name, text)
            (of_loss if owner is self.loss else changes)[key] = value
        return replace(self, loss=replace(self.loss, **of_loss), **changes)

    @classmethod
    def small_teacher(cls, encoder_init: str | None) -> TrainConfig:
        """The teacher of the bundled model: full attention, learns from the truth."""
        return cls(network=StreamVGGTConfig.small("full"), encoder_init=encoder_init, encode_in_workers=True)

    @classmethod
    def small_student(cls, teacher: str) -> TrainConfig:
        """The bundled model: causal, starts as its teacher and learns from it and from the truth."""
        return cls(
            network=StreamVGGTConfig.small(),
            init=teacher,
            teacher=teacher,
            loss=LossConfig(camera=1.5, feature=0.5),
            num_steps=1000,
            lr=4e-4,
            muon_lr=1e-3,
            warmup_steps=20,
            ema=0.99,
            encode_in_workers=True,
            stages=(Stage(1.0, (2, 3, 4, 8), (1, 4), _SMALL + _LARGE, 1600),),
        )

    @classmethod
    def small_camera(cls, student: str) -> TrainConfig:
        """The last touch of the bundled model: its camera head alone, on what the finished network sees.

        While the blocks still move, the head follows them and its poses stay too small; once they rest, it learns in
        minutes how large they are.
        """
        return cls(
            network=StreamVGGTConfig.small(),
            init=student,
            loss=LossConfig(depth=0.0, points=0.0, descriptor=0.0, guide=0.0, displacement=0.0, patch_depth=0.0),
            frozen=("encoder.", "encoder_proj.", "soft_match.", "aggregator.", "depth_head.", "point_head."),
            num_steps=300,
            muon_lr=0.0,
            warmup_steps=20,
            ema=0.98,
            dense_share=0.1,
            encode_in_workers=True,
            workers=2,
            stages=(Stage(1.0, (2, 3, 4, 8), (1, 4), _SMALL, 2400),),
        )

    @classmethod
    def tiny(cls, teacher: str | None = None) -> TrainConfig:
        """A run of seconds with the test network, which shows that everything works; it learns nothing of use."""
        return cls(
            network=StreamVGGTConfig.tiny(),
            teacher=teacher,
            frozen=(),
            num_steps=30,
            lr=3e-3,
            muon_lr=4e-3,
            warmup_steps=5,
            ema=0.9,
            dense_share=1.0,
            stages=(Stage(1.0, (2,), (1, 1), ((56, 84),), 96),),
            scene_frames=2,
            workers=0,
            log_every=5,
            validate_every=15,
            save_every=10,
        )

    @classmethod
    def published(cls, teacher: str = "facebook/VGGT-1B", num_processes: int = _CLIPS_PER_STEP) -> TrainConfig:
        """StreamVGGT as published (Zhuo et al. 2025, section 4.1): ten epochs of clips of ten frames, four a step.

        Each process takes one clip at a time. Fewer than four accumulate what four would see at once; more make the
        steps larger and fewer.

        Args:
            teacher: for ``load_model``; the student starts as a copy.
            num_processes: GPUs of the run.
        """
        accumulation = max(1, _CLIPS_PER_STEP // num_processes)
        steps_per_epoch = _CLIPS_PER_EPOCH // (num_processes * accumulation)
        return cls(
            network=StreamVGGTConfig.vggt_1b(),
            init=teacher,
            teacher=teacher,
            truth=0.0,
            loss=LossConfig.published(),
            frozen=("encoder.", "aggregator.camera_token", "aggregator.register_token"),
            num_steps=_EPOCHS * steps_per_epoch,
            lr=1e-5,
            muon_lr=0.0,
            pose_lr=1.0,
            final_lr=0.01,
            warmup_steps=steps_per_epoch // 2,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            ema=0.0,
            accumulation=accumulation,
            precision="bf16",
            recompute=True,
            dense_share=1.0,
            stages=(Stage(1.0, (10,), (1, 4), ((392, 518), (294, 518), (518, 518)), 1),),
            scene_frames=19,  # one clip of ten frames a scene, with a step of up to two
            workers=4,
            validate_every=2000,
            save_every=1000,
        )


RECIPES = ("small-teacher", "small-student", "small-camera", "vggt-1b", "tiny")


def recipe(
    name: str,
    *,
    init: str | None = None,
    encoder: str | None = None,
    teacher: str | None = None,
    num_processes: int = 1,
) -> TrainConfig:
    """Look a recipe up by its name and fill in the weights that it starts from.

    Args:
        name: one of ``RECIPES``.
        init: weights to begin with instead of the recipe's own; for ``load_model``.
        encoder: DINOv2 ViT-S/14 weights for fresh networks with that encoder.
        teacher: weights to learn from; for ``load_model``.
        num_processes: of the run.

    Raises:
        ValueError: there is no such recipe, or it needs weights that were not given.
    """
    if name not in RECIPES:
        raise ValueError(f"--config must be one of {', '.join(RECIPES)}, got {name!r}")
    if name == "small-teacher":
        if init is None and encoder is None:
            raise ValueError(
                "small-teacher keeps its encoder as it is and needs trained weights for it: give --encoder FILE "
                "(DINOv2 ViT-S/14, safetensors), or --init W to go on from a network"
            )
        config = replace(TrainConfig.small_teacher(None if init else encoder), teacher=teacher)
    elif name == "small-student":
        if teacher is None:
            raise ValueError("small-student learns from a network: give --teacher W, the result of small-teacher")
        config = TrainConfig.small_student(teacher)
    elif name == "small-camera":
        if init is None:
            raise ValueError("small-camera trains one head of a network: give --init W, the result of small-student")
        if teacher is not None:
            raise ValueError("small-camera learns from the truth; leave --teacher out")
        config = TrainConfig.small_camera(init)
    elif name == "vggt-1b":
        config = TrainConfig.published(teacher or "facebook/VGGT-1B", num_processes)
    else:
        config = TrainConfig.tiny(teacher)
    if encoder is not None and config.encoder_init is None:
        raise ValueError(f"--encoder is for a fresh small-teacher; {name} takes its encoder from elsewhere")
    return config if init is None else replace(config, init=init)


def _parse(owner: Any, key: str, name: str, text: str) -> float | int | bool | str:
    """Read the text for one setting as the type that it has."""
    types = get_type_hints(type(owner))
    plain = {f.name: types[f.name] for f in fields(owner)}
    plain = {n: t for n, t in plain.items() if t in (bool, int, float) or set(map(type, get_args(t))) == {str}}
    if key not in plain:
        near = difflib.get_close_matches(key, plain, 3) or sorted(plain)
        prefix = name.removesuffix(key)
        raise ValueError(f"there is no setting {name!r} to change; {', '.join(prefix + n for n in near)} can be")
    kind = plain[key]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind not in (int, float):
        if text not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {text!r}")
        return text
    try:
        value: float = kind(text)
    except ValueError:
        needed = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {needed}, got {text!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{name} must be finite, got {text!r}")
    return value
