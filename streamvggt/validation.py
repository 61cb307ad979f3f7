"""Watch a network while it trains: held-out clips, every number beside the answer that needs no image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import ClipBatch, SyntheticSource
from .evaluate import evaluate_clips
from .metrics import relative_pose_errors
from .model import StreamVGGT
from .protocols import CLIPS
from .sequences import Sequence as Frames
from .sequences import find_sequences, load_frames, natural_hw
from .types import Predictions, required

logger = logging.getLogger(__name__)

FIRST_HELD_OUT_SEED = 2**31
"""Scenes from here on are for validation: :class:`~streamvggt.data.ClipStream` draws seeds below 2**30."""

_PROTOCOL = replace(CLIPS, parts=("depth", "camera"), depth_alignments=("median",))
_DEPTHS = ("constant depth", "depth template")
_PARTS = {"translation": slice(0, 3), "rotation": slice(3, 6), "fov": slice(7, 9)}


class Validation:
    """Score a network on clips that it never trains on; call it with the network.

    Args:
        width: of the frames, pixels, a multiple of 14.
        sequences: real sequences with poses beside the made-up scenes, each thinned out evenly; those of the same name
            get numbers.
        num_clips: made-up scenes.
        num_frames: frames of each; twice as many of a sequence.

    Raises:
        SequenceError: a frame cannot be read.
    """

    def __init__(
        self, width: int, sequences: Iterable[Frames] = (), *, num_clips: int = 8, num_frames: int = 6
    ) -> None:
        height = max(1, round(width * 3 / 4 / 14)) * 14
        seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 1000 * num_clips, 1000)
        source = SyntheticSource(2 * num_frames - 1)
        self._sets = {"synthetic": source.clips(seeds, num_frames, (2, 2), (height, width)).normalized()}
        for sequence in sequences:
            if not sequence.has_poses:
                logger.warning("%s has no poses and is not validated on", sequence.name)
                continue
            name = base = sequence.name.replace(".", "_")
            number = 2
            while name in self._sets:
                name, number = f"{base}_{number}", number + 1
            self._sets[name] = _clip(sequence, width, 2 * num_frames)
        self._trivial: dict[str, dict[str, float]] = {}

    @classmethod
    def of_folders(cls, width: int, folders: Sequence[str | Path]) -> Validation:
        """Take all sequences in folders and below them; names that occur twice get their folder's before them."""
        found = [(Path(folder), sequence) for folder in folders for sequence in find_sequences(folder)]
        names = [sequence.name for _, sequence in found]
        for folder, sequence in found:
            if names.count(sequence.name) > 1 or sequence.name == "synthetic":
                sequence.name = f"{folder.resolve().name}/{sequence.name}"
        return cls(width, [sequence for _, sequence in found])

    def __call__(self, network: StreamVGGT) -> dict[str, float]:
        """Score a network; what cannot be measured is left out.

        Returns:
            For each set of clips ("synthetic", then the sequences by name), under ``SET.NAME``: ``depth_ratio``, the
            error of depth (AbsRel, each frame scaled to its median) over that of the best trivial answer;
            ``delta_1_25``; ``auc_30``; ``rotation_ratio``, the mean error of rotation since frame 0 over that of a
            camera that never turns; ``ate_ratio``, the same of the path after Sim(3) over that of a static camera. For
            the made-up scenes also ``r_PART`` and ``sd_PART`` of translation, rotation (xyz of the quaternion) and
            field of view (fov): the correlation of prediction and truth, and the predictions' deviation over the
            truth's, both averaged over the components. In a network that starts to learn r rises first, then sd, then
            the ratios fall.
        """
        numbers: dict[str, float] = {}
        for name, clips in self._sets.items():
            recorder = _Recorder(network)
            report = evaluate_clips(recorder, clips, _PROTOCOL, trivial=False)
            rows, curves = report["rows"].get("model", {}), report["per_frame"]
            trivial = self._trivial_errors(name, clips)
            errors = {
                "depth": rows.get("abs_rel_median"),
                "rotation": _mean(curves.get("rotation_deg", [])),
                "ate": rows.get("ate_rmse"),
            }
            for part, error in errors.items():
                if error is not None and trivial.get(part, 0.0) > 0:
                    numbers[f"{name}.{part}_ratio"] = error / trivial[part]
            for key, metric in (("delta_1_25", "delta_1_25_median"), ("auc_30", "auc_30")):
                if metric in rows:
                    numbers[f"{name}.{key}"] = rows[metric]
            if name == "synthetic":
                predicted = torch.cat(recorder.poses).cpu()
                numbers |= {f"{name}.{k}": value for k, value in likeness(predicted, clips.pose_enc).items()}
        return numbers

    def _trivial_errors(self, name: str, clips: ClipBatch) -> dict[str, float]:
        """Errors of the answers that need no image, which are worked out once."""
        if name not in self._trivial:
            rows = evaluate_clips(None, clips, _PROTOCOL)["rows"]
            depth = [rows[row]["abs_rel_median"] for row in _DEPTHS if "abs_rel_median" in rows.get(row, {})]
            errors = {"depth": min(depth)} if depth else {}
            if "ate_rmse" in rows.get("static camera", {}):
                errors["ate"] = rows["static camera"]["ate_rmse"]
            turned = []
            for extrinsics in clips.extrinsics.numpy():
                still = np.broadcast_to(np.eye(3, 4), extrinsics.shape)
                turned.append(relative_pose_errors(still, extrinsics)[0][: len(extrinsics) - 1].mean())
            errors["rotation"] = float(np.mean(turned))
            self._trivial[name] = errors
        return self._trivial[name]


def likeness(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Correlate predicted and true cameras ``[B, S, 9]`` and compare how much they vary; frame 0, the origin, apart.

    Returns:
        ``r_PART`` and ``sd_PART`` of translation, rotation (xyz of the quaternion) and fov: means over the components.
    """
    numbers = {}
    for part, columns in _PARTS.items():
        x, y = (poses[:, 1:, columns].flatten(0, 1).double() for poses in (predicted, truth))
        x, y = x - x.mean(0), y - y.mean(0)
        deviation, true_deviation = (z.square().mean(0).sqrt() for z in (x, y))
        r = (x * y).mean(0) / (deviation * true_deviation).clamp_min(1e-12)
        numbers[f"r_{part}"] = float(r.mean())
        numbers[f"sd_{part}"] = float((deviation / true_deviation.clamp_min(1e-12)).mean())
    return numbers


class _Recorder:
    """Let a network predict, and keep the cameras."""

    def __init__(self, network: StreamVGGT) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self.poses: list[Tensor] = []

    def __call__(self, images: Tensor) -> Predictions:
        predictions: Predictions = self._network(images.to(self._device))
        self.poses.append(required(predictions.pose_enc, "camera"))
        return predictions


def _clip(sequence: Frames, width: int, num_frames: int) -> ClipBatch:
    """Spread frames over a sequence, seen from the first of them; ``[1, S, ...]``, metres."""
    order = np.linspace(0, len(sequence) - 1, min(num_frames, len(sequence))).round().astype(int).tolist()
    parts = load_frames(sequence, order, natural_hw(sequence, width))
    clips = ClipBatch(*(part[None] for part in parts)).frames(torch.arange(len(order))[None])
    return replace(clips, extrinsics=clips.extrinsics.float())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
