"""Train a network: a teacher with the truth, then a causal student from it. Two configurations of one loop.

>>> from streamvggt.train import Run, TrainConfig, memorise
>>> config = TrainConfig.tiny()
>>> memorise(config)                  # doctest: +SKIP
>>> Run(config, "folder").train()     # doctest: +SKIP

The same two lines again go on from the newest checkpoint, with the numbers that an uninterrupted run has.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .checkpoint import save_model
from .data import Augmentation, ClipBatch, ClipSource, ClipStream, SyntheticSource
from .export import write_atomically
from .journal import Journal
from .learner import Batch, Learner, NotFiniteError, TrainingError, build_network, load_encoder
from .model import StreamVGGT
from .recipes import RECIPES, TrainConfig, recipe

__all__ = [
    "RECIPES",
    "Learner",
    "Run",
    "TrainConfig",
    "TrainingError",
    "build_network",
    "load_encoder",
    "memorise",
    "recipe",
]

logger = logging.getLogger(__name__)

WeighedSources = Sequence[tuple[ClipSource, float]]


class Run:
    """A training run in a folder: it starts, or goes on from its newest checkpoint.

    Args:
        config: of the run.
        folder: for ``config.json``, ``log.jsonl``, ``tensorboard``, ``checkpoint.pt`` and, at the end,
            ``model.safetensors``.
        sources: where clips come from and how often each; None for made-up scenes.
        validate: called with the averaged network now and then; its numbers go into the log.
        data: what the sources are, as JSON keeps it; a run goes on with the same only.
        device: "cpu" to leave accelerators alone; None for the best one there is.

    Raises:
        TrainingError: the folder holds a run of another configuration or a damaged checkpoint, or the configuration
            cannot be trained here.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        *,
        sources: WeighedSources | None = None,
        validate: Callable[[StreamVGGT], dict[str, float]] | None = None,
        data: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        self.config, self.folder, self._validate = config, Path(folder), validate
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(config.to_json()) | ({} if data is None else {"data": json.loads(json.dumps(data))})
        _require_same(self.folder / "config.json", settings)
        self._checkpoint = self.folder / "checkpoint.pt"
        self.learner = Learner(config, device)
        self._clips = _clip_stream(config, sources, self.learner)
        self.step = 0
        self._sums: dict[str, Tensor] = {}
        self._resume()
        self._journal = None
        if self._is_main:
            write_atomically(self.folder / "config.json", json.dumps(settings, indent=1).encode())
            self._checkpoint.with_name("checkpoint.pt.new").unlink(missing_ok=True)  # of a run that was killed
            self._journal = Journal(self.folder, self.step)

    @property
    def network(self) -> StreamVGGT:
        """The network in training."""
        return self.learner.network

    def averaged(self) -> StreamVGGT:
        """A copy of the network with the averaged weights, ready to predict."""
        return self.learner.averaged()

    def train(self) -> None:
        """Take the steps that are left, with log, validation and checkpoints; write the model at the end.

        Raises:
            TrainingError: a loss or a gradient is not finite; the clips are saved, the last checkpoint stays.
            OSError: the model cannot be written; the checkpoint is there, the same run again writes it.
        """
        config, started, seen = self.config, time.perf_counter(), 0
        batches = _batches(self._clips, self.learner, self.step)
        while self.step < config.num_steps:
            looked_at = list(islice(batches, config.accumulation))
            seen += sum(clips.images.shape[0] * clips.images.shape[1] for clips, _ in looked_at)
            try:
                losses = self.learner.take_step(self.step, looked_at)
            except NotFiniteError as error:
                raise TrainingError(f"{error}; {self._keep(error.clips)}") from error
            self.step += 1
            for name, value in losses.items():
                self._sums[name] = self._sums.get(name, 0) + value
            if self.step % config.log_every == 0:
                self._log_losses(seen / (time.perf_counter() - started))
                started, seen = time.perf_counter(), 0
            ends = self.step == config.num_steps
            if self._validate is not None and (self.step % config.validate_every == 0 or ends):
                before = time.perf_counter()
                self._log_validation(self._validate)
                started += time.perf_counter() - before
            # Last, so that a run that goes on from here finds everything about its past in the log.
            if self.step % config.save_every == 0 or ends:
                self._save()
        network = self.averaged()
        if self._journal is not None:
            save_model(network, self.folder / "model.safetensors")
            self._journal.close()

    @property
    def _is_main(self) -> bool:
        return bool(self.learner.accelerator.is_main_process)

    def _log_losses(self, frames_per_s: float) -> None:
        """Log the means since the last line, over all processes."""
        names = list(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        sums = self.learner.accelerator.reduce(sums, "mean") / self.config.log_every
        means = dict(zip(names, sums.tolist(), strict=True))
        self._sums = {}
        if self._journal is None:
            return
        rate = round(frames_per_s * self.learner.num_processes, 2)
        share = self.learner.schedule(self.step - 1)
        self._journal.write(self.step, "losses", means | {"lr": self.config.lr * share, "frames_per_s": rate})
        total = sum(value for name, value in means.items() if name != "grad_norm")
        parts = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        logger.info(
            "step %d of %d: loss %.4g (%s), %.3g frames/s", self.step, self.config.num_steps, total, parts, rate
        )

    def _log_validation(self, validate: Callable[[StreamVGGT], dict[str, float]]) -> None:
        network = self.averaged()
        if self._journal is None:
            return
        numbers = validate(network)
        self._journal.write(self.step, "validation", numbers)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        logger.info("step %d, validation (ratios to the trivial answers, below 1 is better): %s", self.step, shown)

    def _keep(self, clips: list[ClipBatch]) -> str:
        """Write clips that did harm, and say where they are."""
        rank = self.learner.accelerator.process_index
        path = self.folder / f"bad-batch-{self.step}{f'-{rank}' if rank else ''}.pt"
        content = io.BytesIO()
        torch.save([{name: tensor.cpu() for name, tensor in vars(batch).items()} for batch in clips], content)
        try:
            write_atomically(path, content.getvalue())
        except OSError as error:
            return f"its clips could not be saved ({error})"
        return f"its clips are in {path}, and the checkpoint before it is untouched; lower lr, or look for bad data"

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if not self._checkpoint.exists():
            return
        try:
            saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            self.learner.load_state(saved)
            self._sums = {name: x.to(self.learner.accelerator.device) for name, x in saved.get("sums", {}).items()}
            self.step = int(saved["step"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"{self._checkpoint} is damaged ({reason}); put a copy in its place, or delete it to begin again"
            ) from error
        logger.info("going on from step %d of %d", self.step, self.config.num_steps)

    def _save(self) -> None:
        """Write the checkpoint beside the old one, then put it in its place; the old one stays if that fails."""
        saved = self.learner.state() | {"sums": self._sums, "step": self.step}
        if not self._is_main:
            return
        fresh = self._checkpoint.with_name("checkpoint.pt.new")
        try:
            with fresh.open("wb") as file:
                torch.save(saved, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._checkpoint)
        except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as the latter
            logger.warning("the checkpoint of step %d could not be written, the last stays: %s", self.step, error)
        finally:
            fresh.unlink(missing_ok=True)


def memorise(
    config: TrainConfig,
    *,
    sources: WeighedSources | None = None,
    device: str | None = None,
    num_steps: int = 60,
    seconds: float = 60.0,
) -> tuple[float, float]:
    """Check that a fresh copy of the network can learn one batch by heart, which tells a fault from a lack of training.

    Fresh weights must halve the losses of camera and depth; weights that have learned before start lower, with a
    smaller learning rate, and must lower them at all. Nothing of the run that follows changes by this.

    Args:
        config: of the run. Its learning rates are reached after five steps and stay.
        sources: see :class:`Run`; the batch is the run's first.
        device: see :class:`Run`.
        num_steps: steps at most; it ends earlier once the losses have fallen enough.
        seconds: time after which at most half of the steps are taken.

    Returns:
        Losses of camera and depth before, and after (mean of the last three steps).

    Raises:
        TrainingError: they have not fallen enough.
    """
    changes: dict[str, Any] = {"warmup_steps": 5, "final_lr": 1.0, "ema": 0.0, "dense_share": 1.0, "accumulation": 1}
    learner = Learner(replace(config, **changes), device)
    clips = _clip_stream(config, sources, learner)[0].to(learner.accelerator.device)
    share = 0.5 if config.init is None else 1.0
    seen, started = list[float](), time.perf_counter()
    for step in range(num_steps):
        losses = learner.take_step(step, [(clips, None)])
        parts = [float(x) for name, x in losses.items() if name.removeprefix("truth_") in ("camera", "depth")]
        seen.append(sum(parts))
        before, after = seen[0], sum(seen[-3:]) / len(seen[-3:])
        if step >= 5 and learner.everywhere(after < share * before):
            logger.info("one batch can be learned by heart: %.4g to %.4g in %d steps", before, after, len(seen))
            return before, after
        late = time.perf_counter() - started > seconds
        if step + 1 >= num_steps / 2 and not learner.everywhere(not late):
            break
    raise TrainingError(
        f"the network cannot learn one batch by heart: its losses of camera and depth went from {before:.4g} to "
        f"{after:.4g} in {len(seen)} steps, {'half' if share < 1 else 'less'} is needed. More data will not help: look "
        "for a fault of the optimisation (initial weights, learning rate, frozen parts, loss weights) or of the truth"
    )


def _require_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Compare settings with those of the run that is in the folder.

    Raises:
        TrainingError: they differ, or cannot be read.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differences = _differences(before, dict(settings))
    except (ValueError, AttributeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); take another folder") from error
    if differences:
        raise TrainingError(
            f"{path.parent} holds a run with other settings ({'; '.join(differences[:5])}); take another folder, or "
            "the same settings to go on"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the fields in which two trees of settings differ, with both values."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_, dict):
            found += _differences(was, is_, f"{prefix}{name}.")
        elif was != is_ and not (name == "data" and name not in before):  # older runs did not write it down
            found.append(f"{prefix}{name} was {json.dumps(was)}, now {json.dumps(is_)}")
    return found


def _clip_stream(config: TrainConfig, sources: WeighedSources | None, learner: Learner) -> ClipStream:
    """The clips of a run, or this process's share of them.

    Raises:
        TrainingError: workers would have to render on an accelerator.
    """
    sources = sources or [(SyntheticSource(config.scene_frames), 1.0)]
    if config.workers and any(isinstance(one, SyntheticSource) and one.device != "cpu" for one, _ in sources):
        raise TrainingError("scenes can be rendered on an accelerator by the main process only: give --set workers=0")
    return ClipStream(
        sources=tuple(source for source, _ in sources),
        weights=tuple(weight for _, weight in sources),
        stages=tuple(replace(stage, patches=stage.patches * config.batch_scale) for stage in config.stages),
        num_steps=config.num_steps * config.accumulation,
        seed=config.seed,
        augment=Augmentation() if config.augment else None,
        rank=learner.accelerator.process_index,
        world=learner.num_processes,
        patch_size=config.network.patch_size,
    )


def _batches(clips: ClipStream, learner: Learner, step: int) -> Iterator[Batch]:
    """Clips of the steps to come, made by workers ahead of time."""
    config = learner.config
    encodes = config.encode_in_workers and learner.encoder_is_frozen and not learner.sharded
    encodes = encodes and learner.accelerator.device.type == "cpu"
    steps = range(step * config.accumulation, len(clips))
    loader: DataLoader[Any] = DataLoader(
        Subset(_Encoding(clips, learner.network if encodes else None), steps),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_set_up_worker,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Encoding:
    """Clips, and what a frozen encoder makes of them."""

    clips: ClipStream
    network: StreamVGGT | None

    @torch.no_grad()
    def __getitem__(self, step: int) -> Batch:
        clips = self.clips[step]
        return clips, None if self.network is None else self.network._encode(clips.images)


def _set_up_worker(_worker: int) -> None:
    """Keep a worker to one thread, and let it end with the run: one that is full of clips would wait for ever."""
    torch.set_num_threads(1)
    run = os.getppid()

    def follow() -> None:
        while os.getppid() == run:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
