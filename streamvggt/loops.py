"""Whether two sub-maps show one place: both views go through the network together, or their patches are matched."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .follow import FOLLOWED, match, patch_centres
from .geometry import Similarity
from .refinement import Points, Sight, brightness
from .session import StreamSession
from .submaps import Keyframe, View, align_views, camera_pose, seen_again
from .types import required

_JOINT_FRAMES = 2  # from each side
_SURE = 0.5  # inliers of both alignments of a joint segment
_OVERLAP = 0.3  # of what a frame shows must be seen by the other
_MATCHES = 25  # followed ones that must agree with one camera, in both directions
_AGREE_PX = 4.0
_SAME_TURN, _SAME_UNIT = 0.15, 0.3  # radians and logarithm of scale by which the two directions may differ


def look_together(
    session: StreamSession, earlier: tuple[list[Keyframe], int], later: tuple[list[Keyframe], int]
) -> tuple[Similarity | None, float]:
    """Say how one sub-map lies in another if they show one place.

    Args:
        session: a fresh one; it is used up.
        earlier, later: the keyframes of each and the number of the one that may show the place.

    Returns:
        From the later sub-map's world to the earlier one's, or None if the network does not agree with both; and the
        share of the one view that the other shows too.
    """
    views, alignments = [], []
    for keyframes, which in (earlier, later):
        around = range(len(keyframes))[max(0, min(which, len(keyframes) - _JOINT_FRAMES)) :][:_JOINT_FRAMES]
        # One by one: a live stream that is compiled would wait for the compiler where more came at once.
        joint = [View.of(session.step(keyframes[i].image())) for i in around]
        views.append(joint[which - around[0]])
        try:
            alignments.append(align_views(joint, [keyframes[i].view for i in around]))
        except ValueError:  # what the network says of both together is not finite
            return None, 0.0
    overlap = max(seen_again(views[0], views[1]), seen_again(views[1], views[0]))
    if overlap < _OVERLAP or min(alignment.inliers for alignment in alignments) < _SURE:
        return None, overlap
    to_earlier, to_later = (alignment.transform for alignment in alignments)
    return to_earlier.compose(to_later.inverse()), overlap


def match_together(earlier: Keyframe, later: Keyframe, patch_size: int) -> tuple[Similarity | None, float]:
    """Say how one sub-map lies in another by the patches that two of their frames share.

    The camera of each is fitted to what is found of the other, see :mod:`streamvggt.refinement`; both must agree.

    Args:
        earlier, later: with patches.
        patch_size: pixels.

    Returns:
        From the later sub-map's world to the earlier one's, or None if too little agrees; and the share of the patches
        that does.
    """
    first, second = (_sight(keyframe, patch_size) for keyframe in (earlier, later))
    image_hw = second.image.shape[0], second.image.shape[1]
    places = patch_centres(image_hw, patch_size)
    log_focal = math.log(later.view.focal_px(image_hw))  # known better than earlier
    (there, count), (back, count_back) = (
        _seen_from(reference, other, places, patch_size, log_focal)
        for reference, other in ((first, second), (second, first))
    )
    shared = min(count, count_back) / len(places)
    if min(count, count_back) < _MATCHES:
        return None, shared
    forth = there.compose(camera_pose(second.extrinsics).inverse())
    again = back.compose(camera_pose(first.extrinsics).inverse())
    apart = forth.compose(again)
    turn = math.acos(min(max((np.trace(apart.rotation) - 1) / 2, -1), 1))
    if turn > _SAME_TURN or abs(math.log(apart.scale)) > _SAME_UNIT:
        return None, shared
    return forth, shared


def _sight(keyframe: Keyframe, patch_size: int) -> Sight:
    image, view = keyframe.image(), keyframe.view
    image_hw = image.shape[0], image.shape[1]
    patches = required(keyframe.patches, "camera").astype(np.float32)
    depth = view.depth_near(patch_centres(image_hw, patch_size), image_hw)
    return Sight(patches, brightness(image), depth, np.asarray(view.extrinsics, np.float64))


def _seen_from(
    reference: Sight, other: Sight, places: NDArray[np.float64], patch_size: int, log_focal: float
) -> tuple[Similarity, int]:
    """From ``other``'s camera, in its own unit, to the world of ``reference``; and how many matches agree."""
    height, width = reference.image.shape
    matches = match(reference, other, places, patch_size)
    points = Points.of(reference, matches, np.array([width / 2, height / 2]))
    if points.followed < _MATCHES:
        return Similarity.identity(), points.followed
    camera = points.fit(reference.extrinsics, log_focal).extrinsics
    good = (points.weight >= FOLLOWED) & (points.errors(camera, log_focal) < _AGREE_PX)
    column, row = np.rint((points.found + np.array([width, height]) / 2) / patch_size - 0.5).astype(int).T
    own = other.depth.reshape(height // patch_size, width // patch_size)
    own = own[row.clip(0, own.shape[0] - 1), column.clip(0, own.shape[1] - 1)]
    good &= np.isfinite(own) & (own > 0)
    if good.sum() < _MATCHES:
        return Similarity.identity(), int(good.sum())
    unit = np.exp(np.median(np.log(points.depth_in(camera, log_focal)[good] / own[good])))
    return camera_pose(camera, float(unit)), int(good.sum())
