"""How good a reconstruction is: depth, cameras, points and tracks against the truth, and the trivial answers to beat.

Everything is numpy in, a frozen dataclass of floats out (``dataclasses.asdict`` makes it JSON), computed in float64. A
measure that the given data cannot define is NaN, never a flattering 0 or 1; inputs that make no sense raise ValueError.
Poses are world-to-camera ``[S, 3, 4]`` with OpenCV axes; prediction and truth may use worlds of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .geometry import Similarity, align_similarity, invert_pose

Array = NDArray[Any]
Float64 = NDArray[np.float64]
DepthAlignment = Literal["none", "median", "scale", "scale_shift"]

_TRACK_THRESHOLDS = (1, 2, 4, 8, 16)  # pixels of an image of 256x256 (TAP-Vid)


@dataclass(frozen=True)
class DepthMetrics:
    """Errors of aligned depth, over all valid pixels together.

    Attributes:
        abs_rel: mean of ``|prediction - truth| / truth``.
        delta_1_25: share of pixels where prediction and truth differ by a factor below 1.25; >= 0, <= 1.
        rmse: root mean square of ``prediction - truth``, in the truth's unit.
        num_pixels: how many pixels were compared: the weight for averages over sequences in the published tables.
    """

    abs_rel: float
    delta_1_25: float
    rmse: float
    num_pixels: int


def depth_metrics(
    prediction: Array,
    truth: Array,
    valid: Array | None = None,
    align: DepthAlignment = "median",
    *,
    per_frame: bool = False,
    clip_max: float | None = None,
) -> DepthMetrics:
    """Compare depth maps with the truth, after taking out the scale (and shift) that one camera cannot know.

    Source: the video-depth protocol of MonST3R (Zhang et al. 2025, section 4), which CUT3R and StreamVGGT follow: one
    alignment for a whole sequence ("scale", "scale_shift", or "none" for metric depth); single-frame tables use
    ``align="median", per_frame=True``. See :func:`fit_depth` for the alignments.

    Args:
        prediction: ``[..., H, W]``, z in the camera, > 0, any unit.
        truth: as ``prediction``, in the unit that the results are to have.
        valid: bool, as ``prediction``: the pixels to compare, or None for all. Those without a truth (zero, negative,
            NaN, infinite) are always left out. A limit on depth, as for Sintel (70 m), belongs in here.
        align: how to take out scale and shift.
        per_frame: align each ``[H, W]`` on its own instead of all of them together.
        clip_max: largest aligned prediction, truth's unit; larger ones are set to it (70 for Sintel as published).

    Returns:
        The errors; NaN where no pixel is valid. An aligned prediction <= 0 (a shift can do that) is a miss in delta.

    Raises:
        ValueError: shapes differ, ``align`` is unknown, or a prediction at a compared pixel is not finite and > 0.
    """
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    compared = np.isfinite(truth) & (truth > 0)
    if valid is not None:
        _require_same_shape("valid", np.asarray(valid), "truth", truth)
        compared &= np.asarray(valid, bool)
    _require_same_shape("prediction", prediction, "truth", truth)
    if truth.ndim < 2:
        raise ValueError(f"depth must be [..., H, W], got {list(truth.shape)}")
    bad = compared & ~(np.isfinite(prediction) & (prediction > 0))
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {compared.sum()} compared pixels have a prediction that is not finite and > 0; "
            "a method that leaves holes must take them out of `valid` and report their share"
        )
    aligned, target = [np.empty(0)], [np.empty(0)]
    groups = (-1, truth.shape[-2] * truth.shape[-1]) if per_frame else (1, -1)
    for p, t, mask in zip(prediction.reshape(groups), truth.reshape(groups), compared.reshape(groups), strict=True):
        if mask.any():
            scale, shift = fit_depth(p[mask], t[mask], align)
            aligned.append(scale * p[mask] + shift)
            target.append(t[mask])
    p, t = np.concatenate(aligned), np.concatenate(target)
    if not len(t):
        return DepthMetrics(np.nan, np.nan, np.nan, 0)
    if clip_max is not None:
        p = np.minimum(p, clip_max)
    # Not max(p/t, t/p): for negative p both ratios are negative and would count as close.
    within = (p < 1.25 * t) & (t < 1.25 * p)
    return DepthMetrics(float(np.mean(np.abs(p - t) / t)), float(within.mean()), _rms(p - t), len(t))


def fit_depth(prediction: Array, truth: Array, align: DepthAlignment) -> tuple[float, float]:
    """Find the scale and shift that bring predicted depth to the truth: ``scale * prediction + shift``.

    * "none": 1 and 0.
    * "median": the ratio of the medians.
    * "scale": the scale with the least sum of absolute differences, found exactly (a weighted median of the ratios).
    * "scale_shift": scale and shift with the least sum of absolute differences, by reweighted least squares (the sum
      comes within a few tenths of a percent of the minimum, mostly far closer). The published scripts walk there by
      1000 gradient steps of 1e-4 from the median scale, about 0.1 at most in each: they can stop short of it.

    Args:
        prediction: ``[N]``, > 0, finite, valid pixels only; N >= 1.
        truth: ``[N]``, > 0, finite.
        align: one of the above.

    Raises:
        ValueError: ``align`` is none of them.
    """
    if align == "none":
        return 1.0, 0.0
    if align == "median":
        return float(np.median(truth) / np.median(prediction)), 0.0
    if align == "scale":
        ratio = truth / prediction
        order = np.argsort(ratio)
        cumulative = np.cumsum(prediction[order])
        return float(ratio[order[np.searchsorted(cumulative, cumulative[-1] / 2)]]), 0.0
    if align != "scale_shift":
        raise ValueError(f'align must be "none", "median", "scale" or "scale_shift", got {align!r}')
    smallest = 1e-9 * float(np.median(truth))  # a pixel that fits perfectly keeps a finite weight
    weights, previous = np.ones(len(truth)), np.inf
    for _ in range(100):
        weights /= weights.sum()
        mean_p, mean_t = float(weights @ prediction), float(weights @ truth)
        variance = float(weights @ (prediction - mean_p) ** 2)
        # A constant prediction leaves the scale open: then the shift says it all.
        varies = variance > (1e-9 * mean_p) ** 2
        scale = float(weights @ ((prediction - mean_p) * (truth - mean_t))) / variance if varies else 0.0
        shift = mean_t - scale * mean_p
        residual = np.abs(scale * prediction + shift - truth)
        error = float(residual.sum())
        if error >= previous * (1 - 1e-9):
            break
        previous, weights = error, 1 / np.maximum(residual, smallest)
    return scale, shift


@dataclass(frozen=True)
class RelativePoseMetrics:
    """Shares of frame pairs whose relative pose is right within an angle; all >= 0, <= 1, or NaN without a pair.

    Attributes:
        rra_5, rra_15, rra_30: share of pairs with a relative rotation less than 5, 15, 30 degrees off.
        rta_5, rta_15, rta_30: share of pairs with a direction of relative translation less than that off.
        auc_30: area under the curve "share of pairs with both errors below t" for t = 1, 2, ..., 30 degrees.
    """

    rra_5: float
    rra_15: float
    rra_30: float
    rta_5: float
    rta_15: float
    rta_30: float
    auc_30: float


def relative_pose_metrics(prediction: Array, truth: Array) -> RelativePoseMetrics:
    """Score the relative poses of all pairs of frames, which needs no alignment and no scale.

    Source: PoseDiffusion (Wang et al. 2023) and VGGT (Wang et al. 2025): a pair's error is the larger of its two
    angles, counted at whole degrees with a strict "<"; AUC@30 is the mean of the 30 shares.

    Args:
        prediction: ``[S, 3, 4]``, world-to-camera.
        truth: ``[S, 3, 4]``, world-to-camera.

    Raises:
        ValueError: as :func:`relative_pose_errors`.
    """
    rotation_deg, direction_deg = relative_pose_errors(prediction, truth)
    worst = np.maximum(rotation_deg, direction_deg)

    def share(errors: Float64, limit_deg: int) -> float:
        return _ratio((errors < limit_deg).sum(), len(errors))

    return RelativePoseMetrics(
        rra_5=share(rotation_deg, 5),
        rra_15=share(rotation_deg, 15),
        rra_30=share(rotation_deg, 30),
        rta_5=share(direction_deg, 5),
        rta_15=share(direction_deg, 15),
        rta_30=share(direction_deg, 30),
        auc_30=float(np.mean([share(worst, limit_deg) for limit_deg in range(1, 31)])),
    )


def relative_pose_errors(prediction: Array, truth: Array) -> tuple[Float64, Float64]:
    """Measure how far the relative pose of every pair of frames is off.

    For frames ``i < j`` the relative pose takes camera ``j`` to camera ``i``; its translation is the centre of camera
    ``j`` seen from camera ``i``. As in the published code the direction is compared *up to its sign* (0 to 90
    degrees), so that a camera moving backwards scores like one moving forwards: look at ATE and RPE beside it. A pair
    without a baseline in prediction or truth has no direction and counts as 90 degrees off.

    Args:
        prediction: ``[S, 3, 4]``, world-to-camera.
        truth: ``[S, 3, 4]``, world-to-camera.

    Returns:
        Rotation errors in [0, 180] and direction errors in [0, 90], degrees, ``[S (S - 1) / 2]`` each, ordered
        (0, 1), (0, 2), ..., (1, 2), ...

    Raises:
        ValueError: shapes differ, are not ``[S, 3, 4]``, or a value is not finite.
    """
    prediction, truth = _require_poses(prediction, truth)
    rotation_deg, direction_deg = [np.empty(0)], [np.empty(0)]
    for i in range(len(truth) - 1):  # by rows: all pairs of a long video at once would be gigabytes
        rest = slice(i + 1, None)
        rotation, baseline = _relative_pose(prediction[i], prediction[rest])
        true_rotation, true_baseline = _relative_pose(truth[i], truth[rest])
        rotation_deg.append(_rotation_angle_deg(rotation, true_rotation))
        sine = np.linalg.norm(np.cross(baseline, true_baseline), axis=-1)
        cosine = np.abs((baseline * true_baseline).sum(-1))
        moved = baseline.any(-1) & true_baseline.any(-1)
        direction_deg.append(np.where(moved, np.degrees(np.arctan2(sine, cosine)), 90.0))
    return np.concatenate(rotation_deg), np.concatenate(direction_deg)


@dataclass(frozen=True)
class TrajectoryMetrics:
    """Errors of a camera path after the best similarity (Sim(3)) onto the true path; NaN where it is undefined.

    Attributes:
        ate_rmse: absolute trajectory error: root mean square distance of the centres, truth's unit.
        rpe_translation_rmse: relative pose error from frame to frame: root mean square translation, truth's unit.
        rpe_rotation_rmse_deg: the same for the angle of rotation, degrees.
    """

    ate_rmse: float
    rpe_translation_rmse: float
    rpe_rotation_rmse_deg: float


def trajectory_metrics(prediction: Array, truth: Array) -> TrajectoryMetrics:
    """Compare a camera path with the true one after moving, turning and scaling it as a whole.

    Source: Sturm et al. 2012 (TUM RGB-D), with the Sim(3) alignment of Umeyama 1991 and RPE over all neighbouring
    frames, as in the tables of MonST3R, CUT3R and StreamVGGT and as the program evo computes them
    (``align, correct_scale, delta=1``).

    Where the centres leave the rotation open (a straight line, one place, two frames), evo refuses; here one of the
    equally good rotations is taken, so that the least error is still exact: a camera that never moves gets the spread
    of the true path around its mean. Two frames always fit (ATE 0). A *true* path that never moves leaves the scale
    open: ATE and translational RPE are NaN.

    Args:
        prediction: ``[S, 3, 4]``, world-to-camera, S >= 2.
        truth: ``[S, 3, 4]``, world-to-camera.

    Raises:
        ValueError: shapes differ, are not ``[S, 3, 4]`` with S >= 2, or a value is not finite.
    """
    prediction, truth = _require_poses(prediction, truth)
    if len(truth) < 2:
        raise ValueError(f"a trajectory needs at least 2 frames, got {len(truth)}")
    rotation, baseline = _relative_pose(prediction[:-1], prediction[1:])
    true_rotation, true_baseline = _relative_pose(truth[:-1], truth[1:])
    rotation_deg = _rms(_rotation_angle_deg(rotation, true_rotation))

    centers, true_centers = invert_pose(prediction)[..., 3], invert_pose(truth)[..., 3]
    if np.ptp(true_centers, axis=0).max() <= 1e-6 * np.abs(true_centers).max():  # float32 files jitter by 1e-7
        return TrajectoryMetrics(np.nan, np.nan, rotation_deg)
    similarity = _align_paths(centers, true_centers)
    ate = _rms(np.linalg.norm(similarity.apply(centers) - true_centers, axis=-1))
    # Both baselines are seen from the frame's own camera: of the similarity only the scale is left.
    translation = _rms(np.linalg.norm(similarity.scale * baseline - true_baseline, axis=-1))
    return TrajectoryMetrics(ate, translation, rotation_deg)


def _align_paths(centers: Float64, true_centers: Float64) -> Similarity:
    try:
        return align_similarity(centers, true_centers)
    except ValueError:  # the centres leave the rotation open
        centered, true_centered = centers - centers.mean(0), true_centers - true_centers.mean(0)
        u, singular, vt = np.linalg.svd(true_centered.T @ centered)
        rotation = u @ vt  # perhaps a reflection, which leaves the distances the same here
        spread = (centered**2).sum()
        scale = float(singular[0] / spread) if spread > 0 else 1.0
        return Similarity(scale, rotation, true_centers.mean(0) - scale * rotation @ centers.mean(0))


@dataclass(frozen=True)
class PointMetrics:
    """Distances between a predicted and a true cloud; the unit is the clouds' own.

    Attributes:
        accuracy_mean, accuracy_median: distance from a predicted point to the nearest true point.
        completeness_mean, completeness_median: distance from a true point to the nearest predicted point.
        normal_consistency_mean, normal_consistency_median: ``|cos|`` of the angle between the normals of such nearest
            points, averaged over the two directions; >= 0, <= 1, or NaN without normals.
    """

    accuracy_mean: float
    accuracy_median: float
    completeness_mean: float
    completeness_median: float
    normal_consistency_mean: float
    normal_consistency_median: float


def point_metrics(
    prediction: Array, truth: Array, prediction_normals: Array | None = None, truth_normals: Array | None = None
) -> PointMetrics:
    """Compare two clouds point by nearest point. Align them first: this function moves nothing.

    Source: the 7-Scenes and NRGBD tables of Spann3R (Wang and Agapito 2024), CUT3R and StreamVGGT, which align the
    prediction to the truth, refine by ICP, and let Open3D estimate the normals of both clouds from neighbouring
    points. Normals of :func:`point_map_normals` are sharper at edges: state which ones a table uses.

    Args:
        prediction: ``[N, 3]``, finite.
        truth: ``[M, 3]``, finite, same unit and world.
        prediction_normals: ``[N, 3]``, unit length, either sign; NaN where there is none, which leaves the pair out.
        truth_normals: ``[M, 3]``, likewise.

    Raises:
        ValueError: a shape is wrong, a cloud is empty or not finite, or only one of the clouds has normals.
        ImportError: scipy is not installed.
    """
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError("point metrics need scipy: pip install 'streamvggt[eval]'") from error
    clouds = [np.asarray(prediction, np.float64), np.asarray(truth, np.float64)]
    for name, cloud in zip(("prediction", "truth"), clouds, strict=True):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or not np.isfinite(cloud).all():
            raise ValueError(f"{name} must be [N, 3], N >= 1, all finite, got {list(cloud.shape)}; drop invalid points")
    if (prediction_normals is None) != (truth_normals is None):
        raise ValueError("normal consistency needs the normals of both clouds, got those of one; give both or none")
    accuracy, nearest_truth = cKDTree(clouds[1]).query(clouds[0])
    completeness, nearest_prediction = cKDTree(clouds[0]).query(clouds[1])
    consistency = [np.empty(0)] * 2
    if prediction_normals is not None and truth_normals is not None:
        own, true = np.asarray(prediction_normals, np.float64), np.asarray(truth_normals, np.float64)
        _require_same_shape("prediction_normals", own, "prediction", clouds[0])
        _require_same_shape("truth_normals", true, "truth", clouds[1])
        pairs = [(own * true[nearest_truth]).sum(1), (own[nearest_prediction] * true).sum(1)]
        consistency = [np.abs(cosines[np.isfinite(cosines)]) for cosines in pairs]
    scored = all(len(cosines) for cosines in consistency)
    return PointMetrics(
        accuracy_mean=float(accuracy.mean()),
        accuracy_median=float(np.median(accuracy)),
        completeness_mean=float(completeness.mean()),
        completeness_median=float(np.median(completeness)),
        normal_consistency_mean=float(np.mean([c.mean() for c in consistency])) if scored else np.nan,
        normal_consistency_median=float(np.mean([np.median(c) for c in consistency])) if scored else np.nan,
    )


def point_map_normals(points: Array, valid: Array | None = None) -> Float64:
    """Find the surface normal at every pixel of a point map, from the pixel's neighbours on the grid.

    It is the cross product of the differences between the neighbours below and above and to the right and left (at
    the border, between neighbour and pixel). Normals face the camera of an image with x to the right and y down.

    Args:
        points: ``[..., H, W, 3]``, any unit; H and W >= 2.
        valid: bool ``[..., H, W]``, or None for all. Leave out depth edges (:func:`streamvggt.depth_edges`).

    Returns:
        Unit vectors ``[..., H, W, 3]``; NaN where the pixel or a neighbour is invalid or the neighbours coincide.

    Raises:
        ValueError: a shape is wrong.
    """
    points = np.array(points, np.float64)
    if points.ndim < 3 or points.shape[-1] != 3 or min(points.shape[-3:-1]) < 2:
        raise ValueError(f"points must be [..., H, W, 3] with H and W >= 2, got {list(points.shape)}")
    if valid is not None:
        _require_same_shape("valid", np.asarray(valid), "the map", points[..., 0])
        points[~np.asarray(valid, bool)] = np.nan
    down, right = np.gradient(points, axis=(-3, -2))
    normals = np.cross(down, right)
    normals[np.isnan(points).any(-1)] = np.nan  # a central difference does not look at the pixel itself
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.divide(normals, length, out=np.full_like(normals, np.nan), where=length > 0)


@dataclass(frozen=True)
class TrackMetrics:
    """Scores of point tracks; all >= 0, <= 1, NaN where nothing can be scored.

    Attributes:
        average_jaccard: true positives over all visible points and false positives, mean over the thresholds: position
            and visibility in one number.
        delta_avg: share of visible points within the threshold, mean over 1, 2, 4, 8 and 16 pixels of 256x256.
        occlusion_accuracy: share of points whose visibility is right.
    """

    average_jaccard: float
    delta_avg: float
    occlusion_accuracy: float


def track_metrics(
    tracks: Array,
    visible: Array,
    truth_tracks: Array,
    truth_visible: Array,
    image_hw: tuple[int, int],
    query_frames: Array | None = None,
) -> TrackMetrics:
    """Score point tracks of one video in the frames after each point's query.

    Source: TAP-Vid (Doersch et al. 2022, section 3), "first" queries; distances are those in an image of 256x256.

    Args:
        tracks: ``[S, N, 2]``, xy in pixels; NaN counts as far off.
        visible: bool ``[S, N]``; put a threshold on probabilities first.
        truth_tracks: ``[S, N, 2]``, xy in pixels; read only where visible.
        truth_visible: bool ``[S, N]``.
        image_hw: height and width of the image that the pixels belong to.
        query_frames: int ``[N]``, the frame where each point was given; None for frame 0.

    Raises:
        ValueError: shapes differ, or visibility is not bool.
    """
    tracks, truth_tracks = np.asarray(tracks, np.float64), np.asarray(truth_tracks, np.float64)
    visible, truth_visible = np.asarray(visible), np.asarray(truth_visible)
    if tracks.ndim != 3 or tracks.shape[-1] != 2:
        raise ValueError(f"tracks must be [S, N, 2], got {list(tracks.shape)}")
    _require_same_shape("truth_tracks", truth_tracks, "tracks", tracks)
    for name, array in (("visible", visible), ("truth_visible", truth_visible)):
        _require_same_shape(name, array, "tracks without xy", tracks[..., 0])
        if array.dtype != bool:
            raise ValueError(f"{name} must be bool, got {array.dtype}; compare probabilities with a threshold first")
    queries = np.zeros(tracks.shape[1], int) if query_frames is None else np.asarray(query_frames)
    if queries.shape != tracks.shape[1:2]:
        raise ValueError(f"query_frames must be [{tracks.shape[1]}], one per track, got {list(queries.shape)}")

    height, width = image_hw
    distance = np.linalg.norm((tracks - truth_tracks) * [256 / width, 256 / height], axis=-1)
    scored = np.arange(len(tracks))[:, None] > queries
    positives = (truth_visible & scored).sum()
    jaccard, within_share = [], []
    for threshold in _TRACK_THRESHOLDS:
        within = (distance < threshold) & truth_visible & scored
        true_positives = (within & visible).sum()
        false_positives = (visible & scored).sum() - true_positives
        jaccard.append(_ratio(true_positives, positives + false_positives))
        within_share.append(_ratio(within.sum(), positives))
    occlusion = _ratio(((visible == truth_visible) & scored).sum(), scored.sum())
    return TrackMetrics(float(np.mean(jaccard)), float(np.mean(within_share)), occlusion)


def constant_depth(image_hw: tuple[int, int]) -> Float64:
    """Answer depth 1 everywhere, ``[H, W]``: what a method must beat to have seen anything."""
    return np.ones(image_hw)


def mean_depth_template(depths: Array, valid: Array) -> Float64:
    """Answer the same depth map for every image: the mean of maps seen in training, each divided by its median.

    Args:
        depths: ``[F, H, W]``, > 0 where valid, of the training set: never of the frames that are scored.
        valid: bool ``[F, H, W]``.

    Returns:
        ``[H, W]``, > 0, in medians; 1 where no map has a valid pixel.

    Raises:
        ValueError: shapes differ, or are not ``[F, H, W]``.
    """
    depths, valid = np.asarray(depths, np.float64), np.asarray(valid, bool)
    _require_same_shape("valid", valid, "depths", depths)
    if depths.ndim != 3:
        raise ValueError(f"depths must be [F, H, W], got {list(depths.shape)}")
    total, count = np.zeros(depths.shape[1:]), valid.sum(0)
    for depth, mask in zip(depths, valid, strict=True):
        if mask.any():
            total[mask] += depth[mask] / np.median(depth[mask])
    return np.divide(total, count, out=np.ones_like(total), where=count > 0)


def static_camera(num_frames: int) -> Float64:
    """Answer that the camera never moves: ``[S, 3, 4]``, world-to-camera."""
    return np.tile(np.eye(3, 4), (num_frames, 1, 1))


def constant_velocity_camera(num_frames: int) -> Float64:
    """Answer that the camera moves straight ahead, one unit a frame, without turning: ``[S, 3, 4]``, world-to-camera.

    After the Sim(3) alignment of ATE this is the best straight line at constant speed in any direction.
    """
    extrinsics = static_camera(num_frames)
    extrinsics[:, 2, 3] = -np.arange(num_frames)
    return extrinsics


def _relative_pose(first: Float64, second: Float64) -> tuple[Float64, Float64]:
    """Rotation ``[..., 3, 3]`` from the second camera to the first, and the second's centre seen from the first."""
    rotation = first[..., :3] @ second[..., :3].swapaxes(-1, -2)
    # From the centres, so that equal poses give exactly zero.
    offset = invert_pose(second)[..., 3] - invert_pose(first)[..., 3]
    return rotation, (first[..., :3] @ offset[..., None])[..., 0]


def _rotation_angle_deg(first: Float64, second: Float64) -> Float64:
    """Angles between rotations ``[..., 3, 3]``, degrees; the chord, unlike the trace, is exact for small angles."""
    chord = np.linalg.norm(first - second, axis=(-2, -1)) / (2 * np.sqrt(2))
    return np.degrees(2 * np.arcsin(np.minimum(chord, 1)))


def _rms(values: Float64) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def _require_poses(prediction: Array, truth: Array) -> tuple[Float64, Float64]:
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if truth.ndim != 3 or truth.shape[1:] != (3, 4) or prediction.shape != truth.shape:
        raise ValueError(f"poses must both be [S, 3, 4], got {list(prediction.shape)} and {list(truth.shape)}")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError("poses must be finite; drop the frames without a pose from prediction and truth")
    return prediction, truth


def _require_same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {list(other.shape)}, got {list(array.shape)}")
