"""Whether two sub-maps show one place: both views go through the network together."""

from __future__ import annotations

from .geometry import Similarity
from .session import StreamSession
from .submaps import Keyframe, View, align_views, seen_again

_JOINT_FRAMES = 2  # from each side
_SURE = 0.5  # inliers of both alignments of a joint segment
_OVERLAP = 0.3  # of what a frame shows must be seen by the other


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
