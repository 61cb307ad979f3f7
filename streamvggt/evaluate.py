"""Judge a model on sequences with truth: run it, score it beside the trivial answers, average.

>>> from streamvggt.evaluate import evaluate_sequence
>>> from streamvggt.sequences import open_sequence
>>> result = evaluate_sequence(model, open_sequence("folder"))        # doctest: +SKIP
>>> result["rows"]["model"]["abs_rel_median"]                         # doctest: +SKIP

:func:`evaluate_sequence` takes folders, :func:`evaluate_clips` batches with truth, as validation in training has them.
Both return dictionaries that are JSON as they stand. See :mod:`streamvggt.protocols` for what is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from .export import write_atomically
from .geometry import compose, invert_pose
from .model import StreamVGGT
from .predict import Keeping, Mode, Predictor, predict
from .protocols import CLIPS, SEQUENCE, Protocol
from .report import depth_png, trajectory_png
from .scoring import Answer, Scores, Truth, mean_scores, score, score_frames, trivial_answers
from .sequences import Sequence, SequenceError, load_frames, natural_hw
from .synthetic import SyntheticClip

logger = logging.getLogger(__name__)


class EvaluationError(ValueError):
    """A sequence cannot be scored: no frame can be read, or a prediction is no number."""


class Clips(Interface):
    """Batched clips with truth; :class:`~streamvggt.synthetic.SyntheticClip` is one.

    ``images`` ``[B, S, 3, H, W]`` in [0, 1], ``depth`` and bool ``valid`` ``[B, S, H, W]``, world-to-camera
    ``extrinsics`` ``[B, S, 3, 4]``, ``intrinsics`` ``[B, S, 3, 3]`` in pixels; torch tensors.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def depth(self) -> Tensor: ...
    @property
    def valid(self) -> Tensor: ...
    @property
    def extrinsics(self) -> Tensor: ...
    @property
    def intrinsics(self) -> Tensor: ...


def evaluate_sequence(
    model: Predictor | None,
    sequence: Sequence,
    protocol: Protocol = SEQUENCE,
    *,
    label: str = "model",
    width: int = 224,
    mode: Mode | None = None,
    keeping: Keeping = Keeping(),  # noqa: B008 (frozen)
    plots: Path | None = None,
) -> dict[str, Any]:
    """Run a model over one sequence and score it beside the trivial answers.

    Frames that cannot be read are left out and counted. What the sequence lacks (depth, poses) is not scored.

    Args:
        model: a network, or any function from images ``[1, S, 3, H, W]`` to :class:`Predictions`; None scores the
            trivial answers alone.
        sequence: of :func:`streamvggt.sequences.open_sequence`.
        protocol: what is scored, and on which frames.
        label: name of the model's row.
        width: of the processed frames, pixels, for a network a multiple of its patch size; the height follows from the
            aspect ratio.
        mode: "stream" (frame by frame) or "batch" (all at once); None streams causal networks.
        keeping: what a stream keeps.
        plots: folder for PNGs of trajectory and depth, or None.

    Returns:
        ``name``, ``layout``, ``num_frames``, ``num_skipped``, ``frames`` (their numbers), ``image_hw``; ``rows``, a
        dictionary of scores for each answer (:func:`streamvggt.scoring.score`; the row "..., point head" judges the
        point maps, the model's own row the cloud from depth and camera); ``per_frame``, the model's errors along the
        stream (:func:`streamvggt.scoring.score_frames`).

    Raises:
        EvaluationError: no frame can be read, or a prediction is not finite; it names the sequence.
        SequenceError: no picture can be opened.
        ValueError: the mode does not fit the network.
    """
    multiple = model.config.patch_size if isinstance(model, StreamVGGT) else 14
    image_hw = natural_hw(sequence, width, multiple)
    images, truth, frames, num_skipped = _load(sequence, protocol, image_hw)
    answers: dict[str, Answer] = {}
    if model is not None:
        answers = _answers(model, images, truth, protocol, label, mode, keeping)
    rows, per_frame = _score(sequence.name, answers, truth, protocol)
    if plots is not None:
        shown = answers | trivial_answers(truth, protocol)
        for kind, data in (("trajectory", trajectory_png(truth, shown)), ("depth", depth_png(images, truth, shown))):
            if data is not None:
                write_atomically(plots / f"{sequence.name.replace('/', '_')}_{kind}.png", data)
    return {
        "name": sequence.name,
        "layout": sequence.layout,
        "num_frames": len(frames),
        "num_skipped": num_skipped,
        "frames": frames,
        "image_hw": list(image_hw),
        "rows": rows,
        "per_frame": per_frame,
    }


def evaluate_sequences(
    model: Predictor | None, sequences: Iterable[Sequence], protocol: Protocol = SEQUENCE, **options: Any
) -> dict[str, Any]:
    """Score several sequences and average them; one that fails is named and does not stop the others.

    Args:
        model: as in :func:`evaluate_sequence`.
        sequences: those that do not belong to the protocol are passed over.
        protocol: likewise.
        **options: the further arguments of :func:`evaluate_sequence`.

    Returns:
        ``protocol``, ``sequences`` (a list of what :func:`evaluate_sequence` returns), ``mean`` (rows as there) and
        ``failures`` (name of a sequence: what went wrong).

    Raises:
        EvaluationError: no sequence belongs to the protocol.
    """
    sequences = list(sequences)
    chosen = [one for one in sequences if protocol.includes(one.folder.absolute().as_posix())]
    if not chosen:
        raise EvaluationError(
            f"none of the sequences ({', '.join(one.name for one in sequences) or 'none'}) belongs to the protocol "
            f"{protocol.name!r}, which takes those that end in {', '.join(protocol.sequences) or 'anything'}"
        )
    results, failures = [], {}
    for sequence in chosen:
        try:
            results.append(evaluate_sequence(model, sequence, protocol, **options))
        except (EvaluationError, SequenceError) as error:
            logger.warning("%s is not scored: %s", sequence.name, error)
            failures[sequence.name] = str(error)
    return {
        "protocol": asdict(protocol),
        "sequences": results,
        "mean": _mean_rows([one["rows"] for one in results], protocol),
        "failures": failures,
    }


def evaluate_clips(
    model: Predictor | None,
    clips: Clips,
    protocol: Protocol = CLIPS,
    *,
    label: str = "model",
    mode: Mode | None = "batch",
    keeping: Keeping = Keeping(),  # noqa: B008 (frozen)
    trivial: bool = True,
    num_tracks: int = 64,
) -> dict[str, Any]:
    """Score a model on batched clips, one clip at a time, and average; validation in training calls this.

    Tracks are scored for synthetic clips and a network with a track head. A causal network gives the same numbers as a
    batch and as a stream, the batch faster (tracks excepted, see :meth:`StreamVGGT.forward`).

    Args:
        model: as in :func:`evaluate_sequence`.
        clips: B clips of S frames; they go to the network's device one by one.
        protocol: what is scored; of every clip all frames.
        label: name of the model's row.
        mode: "stream" or "batch"; None streams causal networks.
        keeping: what a stream keeps.
        trivial: score the trivial answers too; they do not change while a model trains.
        num_tracks: points that are followed in each clip.

    Returns:
        ``num_clips``, ``num_frames``, ``image_hw``; ``rows`` and ``per_frame`` as :func:`evaluate_sequence`, averaged
        over the clips.

    Raises:
        EvaluationError: a prediction is not finite; it names the clip.
    """
    num_clips, num_frames, _, *image_hw = clips.images.shape
    follows = "tracks" in protocol.parts and isinstance(model, StreamVGGT) and model.track_head is not None
    tracks = clips.tracks(0, num_tracks, seed=0) if follows and isinstance(clips, SyntheticClip) else None
    all_rows, all_curves = [], []
    for b in range(num_clips):
        truth = Truth(
            depth=clips.depth[b].cpu().numpy(),
            valid=clips.valid[b].cpu().numpy(),
            extrinsics=clips.extrinsics[b].cpu().numpy(),
            intrinsics=clips.intrinsics[b].cpu().numpy(),
            image_hw=(image_hw[0], image_hw[1]),
            tracks=None if tracks is None else tracks.xy[b].cpu().numpy(),
            visible=None if tracks is None else tracks.visible[b].cpu().numpy(),
        )
        answers: dict[str, Answer] = {}
        if model is not None:
            answers = _answers(model, clips.images[b], truth, protocol, label, mode, keeping)
        rows, curves = _score(f"clip {b}", answers, truth, protocol, trivial=trivial)
        all_rows.append(rows)
        all_curves.append(curves)
    return {
        "num_clips": num_clips,
        "num_frames": num_frames,
        "image_hw": image_hw,
        "rows": _mean_rows(all_rows, protocol),
        "per_frame": _mean_curves(all_curves),
    }


def _load(sequence: Sequence, protocol: Protocol, image_hw: tuple[int, int]) -> tuple[Tensor, Truth, list[int], int]:
    """Read the frames of a protocol one by one: images, truth, numbers of the frames read, count of the others."""
    wanted = protocol.frames(len(sequence))
    parts, frames = [], []
    reason = f"it has {len(sequence)} frames and the protocol {protocol.name!r} starts at {protocol.first_frame}"
    for index in wanted:
        try:
            part = load_frames(sequence, [index], image_hw)
        except SequenceError as error:
            reason = str(error)
            logger.warning("%s: frame %d is left out: %s", sequence.name, index, error)
            continue
        parts.append(part)
        frames.append(index)
    if not parts:
        raise EvaluationError(f"{sequence.name}: none of {len(wanted)} frames can be read ({reason})")
    images, depth, valid, extrinsics, intrinsics = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    extrinsics = compose(extrinsics, invert_pose(extrinsics[:1]))  # worlds may begin far from the cameras
    deep = bool(valid.any())
    truth = Truth(
        depth=depth.numpy() if deep else None,
        valid=valid.numpy() if deep else None,
        extrinsics=extrinsics.numpy() if extrinsics.isfinite().all() else None,
        intrinsics=intrinsics.numpy(),
        image_hw=image_hw,
    )
    return images, truth, frames, len(wanted) - len(frames)


def _answers(
    model: Predictor,
    images: Tensor,
    truth: Truth,
    protocol: Protocol,
    label: str,
    mode: Mode | None,
    keeping: Keeping,
) -> dict[str, Answer]:
    """Let a model answer; a second row judges its point maps where clouds are scored."""
    queries = None if truth.tracks is None else torch.from_numpy(truth.tracks[0])
    own, point_head = predict(
        model, images, mode=mode, keeping=keeping, single_frames=protocol.single_frames, query_points=queries
    )
    if "points" not in protocol.parts:
        return {label: replace(own, world_points=None)}
    return {label: own, f"{label}, point head": point_head}


def _score(
    name: str, answers: dict[str, Answer], truth: Truth, protocol: Protocol, *, trivial: bool = True
) -> tuple[dict[str, Scores], dict[str, list[float | None]]]:
    """Rows of scores, those of the model first, and the model's errors along the stream."""
    for label, answer in answers.items():
        for part in ("depth", "extrinsics", "world_points"):
            _require_finite(name, label, part, getattr(answer, part))
    everyone = answers | (trivial_answers(truth, protocol) if trivial else {})
    try:
        rows = {label: score(answer, truth, protocol) for label, answer in everyone.items()}
        per_frame = score_frames(next(iter(answers.values())), truth, protocol) if answers else {}
    except ValueError as error:
        raise EvaluationError(f"{name}: {error}") from error
    return {label: scores for label, scores in rows.items() if scores}, per_frame


def _require_finite(name: str, label: str, part: str, values: Any) -> None:
    if values is None:
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        frames = np.flatnonzero(~finite).tolist()
        raise EvaluationError(
            f"{name}: {part} of {label} is not finite in {len(frames)} of {len(values)} frames, first in frame "
            f"{frames[0]}; look for overflow (half precision?) or damaged weights"
        )


def _mean_rows(results: list[dict[str, Scores]], protocol: Protocol) -> dict[str, Scores]:
    labels = dict.fromkeys(label for rows in results for label in rows)
    return {
        label: mean_scores([rows[label] for rows in results if label in rows], weigh_pixels=protocol.weigh_pixels)
        for label in labels
    }


def _mean_curves(results: list[dict[str, list[float | None]]]) -> dict[str, list[float | None]]:
    """Average curves of equal length, frame by frame over the clips that define it."""
    mean: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for curves in results for name in curves):
        columns = zip(*(curves[name] for curves in results if name in curves), strict=True)
        given = [[value for value in column if value is not None] for column in columns]
        mean[name] = [float(np.mean(values)) if values else None for values in given]
    return mean
