"""Score answers against the truth of one sequence: the model's beside the trivial ones, by the same functions.

Everything here is numpy on the CPU. Scores are dictionaries of plain floats; a measure that the data cannot define is
left out, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from .geometry import Similarity, align_similarity, depth_edges, unproject
from .metrics import (
    constant_depth,
    constant_velocity_camera,
    depth_metrics,
    fit_depth,
    mean_depth_template,
    point_map_normals,
    point_metrics,
    relative_pose_errors,
    relative_pose_metrics,
    static_camera,
    track_metrics,
    trajectory_metrics,
)
from .protocols import Protocol
from .synthetic import SyntheticConfig, render_clips

Array = NDArray[Any]
Scores = dict[str, float]

_TEMPLATE_SEEDS = range(1_000_000, 1_000_256)  # far from the seeds that anyone trains or validates with
_EDGES = 0.03  # normals are not defined across jumps of the true depth by more than this part of it
_MAX_ICP_ROUNDS = 30  # as Open3D's default


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of S frames.

    Attributes:
        depth: ``[S, H, W]``, z in the camera, metres; read where ``valid``. None without depth.
        valid: bool ``[S, H, W]``, or None without depth.
        extrinsics: ``[S, 3, 4]``, world-to-camera, any world; None without poses.
        intrinsics: ``[S, 3, 3]``, pixels.
        image_hw: height and width of the frames, pixels.
        tracks: ``[S, N, 2]``, xy in pixels, of points given in frame 0, or None.
        visible: bool ``[S, N]``, or None.
    """

    depth: Array | None
    valid: Array | None
    extrinsics: Array | None
    intrinsics: Array
    image_hw: tuple[int, int]
    tracks: Array | None = None
    visible: Array | None = None

    @property
    def num_frames(self) -> int:
        """S."""
        return len(self.intrinsics)

    @property
    def world_points(self) -> Array | None:
        """``[S, H, W, 3]`` float64, metres, in the world of the extrinsics; None without depth or poses."""
        if self.depth is None or self.extrinsics is None:
            return None
        return unproject(*(np.asarray(x, np.float64) for x in (self.depth, self.extrinsics, self.intrinsics)))


@dataclass(frozen=True, eq=False)
class Answer:
    """What somebody says about S frames; None where they say nothing. Shapes as in :class:`Truth`.

    Attributes:
        depth: > 0 and finite, any unit.
        extrinsics: world-to-camera, any world.
        world_points: ``[S, H, W, 3]``, any world and unit.
        tracks, visible: of the truth's points.
    """

    depth: Array | None = None
    extrinsics: Array | None = None
    world_points: Array | None = None
    tracks: Array | None = None
    visible: Array | None = None


def trivial_answers(truth: Truth, protocol: Protocol) -> dict[str, Answer]:
    """Give the answers that need no image: what a model must beat to have seen anything.

    Clouds come from the trivial depth, one camera for all frames and the *true* intrinsics, which flatters them.
    """
    still = static_camera(truth.num_frames)
    answers = {}
    for name, map_of in (("constant depth", constant_depth), ("depth template", template_depth)):
        depth = np.broadcast_to(map_of(truth.image_hw), (truth.num_frames, *truth.image_hw))
        points = None
        if "points" in protocol.parts and truth.depth is not None:
            points = unproject(depth, still, np.asarray(truth.intrinsics, np.float64))
        answers[name] = Answer(depth=depth, world_points=points)
    answers["static camera"] = Answer(extrinsics=still)
    answers["constant velocity"] = Answer(extrinsics=constant_velocity_camera(truth.num_frames))
    if truth.tracks is not None:
        stay = np.tile(truth.tracks[:1], (truth.num_frames, 1, 1))
        answers["points stay"] = Answer(tracks=stay, visible=np.ones(stay.shape[:2], bool))
    return answers


def template_depth(image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Resize the mean depth map of a fixed set of made-up scenes to ``[H, W]``; > 0, in medians.

    The scenes are rendered once a process, in a few seconds.
    """
    template = torch.from_numpy(_template())[None, None]
    return interpolate(template, image_hw, mode="bilinear", align_corners=False)[0, 0].numpy()


@cache
def _template() -> NDArray[np.float64]:
    clips = render_clips(_TEMPLATE_SEEDS, SyntheticConfig(num_frames=1, image_hw=(42, 56), shadows=False))
    return mean_depth_template(clips.depth.flatten(0, 1).numpy(), clips.valid.flatten(0, 1).numpy())


def score(answer: Answer, truth: Truth, protocol: Protocol) -> Scores:
    """Score one answer by all measures of the protocol that answer and truth allow.

    Returns:
        ``abs_rel_A``, ``delta_1_25_A`` and ``rmse_A`` for each depth alignment A, with ``num_pixels``; the fields of
        :class:`~streamvggt.metrics.RelativePoseMetrics`, ``TrajectoryMetrics``, ``PointMetrics`` and ``TrackMetrics``.

    Raises:
        ValueError: a prediction is not finite, or a depth not > 0.
    """
    scores: Scores = {}
    if "depth" in protocol.parts and answer.depth is not None and truth.depth is not None:
        scores |= _score_depth(answer.depth, truth, protocol)
    if "camera" in protocol.parts and answer.extrinsics is not None and truth.num_frames > 1:
        scores |= _score_camera(answer.extrinsics, truth)
    if "points" in protocol.parts and answer.world_points is not None:
        scores |= _score_points(answer.world_points, truth, protocol)
    if "tracks" in protocol.parts and answer.tracks is not None and answer.visible is not None:
        scores |= _score_tracks(answer.tracks, answer.visible, truth)
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def score_frames(answer: Answer, truth: Truth, protocol: Protocol) -> dict[str, list[float | None]]:
    """Measure how errors grow along the stream: one number a frame, None where it is not defined.

    Returns:
        ``abs_rel_median``: each frame's depth error after its own median scale; ``abs_rel_scale``: after one scale for
        all frames; ``rotation_deg`` and ``direction_deg``: errors of the pose relative to frame 0 (see
        :func:`~streamvggt.metrics.relative_pose_errors`), None in frame 0.
    """
    curves: dict[str, list[float | None]] = {}
    if "depth" in protocol.parts and answer.depth is not None and truth.depth is not None:
        compared = _compared(truth, protocol)
        if compared.any():
            depth, true_depth = np.asarray(answer.depth, np.float64), np.asarray(truth.depth, np.float64)
            scale, _ = fit_depth(depth[compared], true_depth[compared], "scale")
            pairs = list(zip(depth, true_depth, compared, strict=True))
            curves["abs_rel_median"] = [_defined(depth_metrics(p, t, mask).abs_rel) for p, t, mask in pairs]
            curves["abs_rel_scale"] = [
                _defined(depth_metrics(scale * p, t, mask, "none").abs_rel) for p, t, mask in pairs
            ]
    moved = "camera" in protocol.parts and answer.extrinsics is not None and truth.extrinsics is not None
    if moved and truth.num_frames > 1:
        errors = relative_pose_errors(np.asarray(answer.extrinsics), np.asarray(truth.extrinsics))
        for name, values in zip(("rotation_deg", "direction_deg"), errors, strict=True):
            curves[name] = [None, *values[: truth.num_frames - 1].tolist()]  # the first row of pairs: with frame 0
    return curves


def iterate_closest_points(points: Array, target: Array, distance: float) -> Similarity:
    """Refine by rigid motions that bring each point to its nearest one within a distance, till none helps any more.

    Args:
        points: ``[N, 3]``, metres.
        target: ``[M, 3]``, metres, nearly in place.
        distance: points farther than this from their nearest one have no say, metres.

    Source: Besl and McKay 1992; threshold and end (a gain of 1e-6 in inliers and their error) as Open3D's defaults.
    """
    from scipy.spatial import cKDTree

    tree, moved = cKDTree(target), points
    motion, before = Similarity(1.0, np.eye(3), np.zeros(3)), (0.0, np.inf)
    for _ in range(_MAX_ICP_ROUNDS):
        away, nearest = tree.query(moved, distance_upper_bound=distance)
        near = np.isfinite(away)
        if near.sum() < 3:
            break
        now = (float(near.mean()), float(np.sqrt(np.mean(away[near] ** 2))))
        if abs(now[0] - before[0]) < 1e-6 and abs(now[1] - before[1]) < 1e-6:
            break
        try:
            step = align_similarity(moved[near], target[nearest[near]], with_scale=False)
        except ValueError:  # what is near lies on one line
            break
        moved, before = step.apply(moved), now
        motion = Similarity(1.0, step.rotation @ motion.rotation, step.rotation @ motion.translation + step.translation)
    return motion


def mean_scores(scores: Iterable[Scores], *, weigh_pixels: bool = False) -> Scores:
    """Average over sequences, each measure over those that define it.

    Args:
        scores: of each sequence.
        weigh_pixels: depth errors weigh by ``num_pixels``; else all sequences alike.
    """
    scores = list(scores)
    mean: Scores = {}
    for name in dict.fromkeys(name for one in scores for name in one):
        given = [one for one in scores if name in one]
        if name == "num_pixels":
            mean[name] = sum(one[name] for one in given)
            continue
        weighted = weigh_pixels and name.startswith(("abs_rel", "delta_1_25", "rmse"))
        weights = [one["num_pixels"] if weighted else 1.0 for one in given]
        mean[name] = float(np.average([one[name] for one in given], weights=weights))
    return mean


def _compared(truth: Truth, protocol: Protocol) -> NDArray[np.bool_]:
    depth, valid = np.asarray(truth.depth), np.asarray(truth.valid, bool)
    return valid if protocol.max_depth is None else valid & (depth < protocol.max_depth)


def _score_depth(depth: Array, truth: Truth, protocol: Protocol) -> Scores:
    scores: Scores = {}
    compared = _compared(truth, protocol)
    for align in protocol.depth_alignments:
        errors = depth_metrics(
            depth, np.asarray(truth.depth), compared, align, per_frame=align == "median", clip_max=protocol.clip_max
        )
        scores |= {f"{name}_{align}": value for name, value in asdict(errors).items() if name != "num_pixels"}
        scores["num_pixels"] = errors.num_pixels
    return scores


def _score_camera(extrinsics: Array, truth: Truth) -> Scores:
    if truth.extrinsics is None:
        return {}
    relative, path = (measure(extrinsics, truth.extrinsics) for measure in (relative_pose_metrics, trajectory_metrics))
    scores = asdict(relative) | asdict(path)
    if math.isnan(scores["ate_rmse"]):  # a camera that stays has no directions to get right
        scores = {name: value for name, value in scores.items() if not name.startswith(("rta", "auc"))}
    return scores


def _score_points(points: Array, truth: Truth, protocol: Protocol) -> Scores:
    """Align a cloud to the true one and compare them; see :class:`Protocol` for how."""
    true_points = truth.world_points
    if true_points is None:
        return {}
    middle = _middle(truth.image_hw, protocol.points_crop)
    points, true_points = np.asarray(points, np.float64)[middle], true_points[middle]
    valid = _compared(truth, protocol)[middle]
    smooth = valid & ~depth_edges(np.where(valid, np.asarray(truth.depth)[middle], np.nan), _EDGES)
    normals = [point_map_normals(cloud, smooth)[valid] for cloud in (points, true_points)]
    points, true_points = points[valid], true_points[valid]
    if len(points) < 3:
        return {}
    similarity = align_similarity(points, true_points)
    chosen = np.arange(len(points))
    if len(points) > protocol.max_points:
        chosen = np.sort(np.random.default_rng(0).choice(len(points), protocol.max_points, replace=False))
    points, true_points = similarity.apply(points[chosen]), true_points[chosen]
    rotation = similarity.rotation
    if protocol.icp_distance is not None:
        refinement = iterate_closest_points(points, true_points, protocol.icp_distance)
        points, rotation = refinement.apply(points), refinement.rotation @ rotation
    own_normals, true_normals = (values[chosen] for values in normals)
    return asdict(point_metrics(points, true_points, own_normals @ rotation.T, true_normals))


def _middle(image_hw: tuple[int, int], side: int | None) -> tuple[slice, slice, slice]:
    """Index of the middle square of maps ``[S, H, W, ...]``; an image smaller than it is taken whole."""
    if side is None:
        return slice(None), slice(None), slice(None)
    top, left = (max(0, size // 2 - side // 2) for size in image_hw)
    return slice(None), slice(top, top + side), slice(left, left + side)


def _score_tracks(tracks: Array, visible: Array, truth: Truth) -> Scores:
    if truth.tracks is None or truth.visible is None:
        return {}
    return asdict(track_metrics(tracks, visible, truth.tracks, truth.visible, truth.image_hw))


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
