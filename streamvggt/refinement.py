"""Cameras by what frames have in common: matched patches, lifted by depth, say where the camera stands.

A small network finds patches again far better than it says where its camera stands. So its camera is replaced by the
one that sees points of earlier frames where they were found (motion-only bundle adjustment; Mur-Artal and Tardos 2017,
ORB-SLAM2, section III-C). Only the past is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .follow import FOLLOWED, Look, Matches, match, patch_centres
from .geometry import Similarity, invert_pose
from .types import ByteArray, FloatArray

Float64 = NDArray[np.float64]

FEWEST_MATCHES = 20
"""Matches that agree with a camera, below which a frame tells nothing of it."""

_ROUGH_STEPS, _FINE_STEPS = 8, 8
_PIXEL_ERROR = 0.7  # of a match
_DEPTH_ERROR, _ROUGH_DEPTH_ERROR = 0.4, 0.1  # of a depth, as a share; taken for smaller while the camera is unsure
_CUT = 4.0  # times the median error, beyond which a match counts for nothing
_LONGEST_PARALLAX = 80.0  # pixels; beyond, depths count for no less
_NEAREST = 0.01  # share of its depth in the reference, nearer than which a point is not seen
_TURN_DEVIATION, _WAY_DEVIATION = 0.2, 0.3  # radians and part of the usual depth: from the camera that is expected
_DAMPING, _LONGEST_STEP = 1e-6, 0.5
_NUDGE = 1e-3  # of the logarithm of the focal length

_SAME = 8.0  # error in pixels up to which a match agrees with a camera
_FEWEST_FOLLOWED = 8  # to a pixel, of a frame
_SLOWER = 0.5  # in each further frame that tells nothing
_SEEN_STILL = 0.5  # of the patches must be seen of a keyframe, or the next one is due
_MOVED = 0.2  # of the width; likewise
_FOCAL_DEVIATION, _FOCAL_RANGE = 0.3, 0.6  # logarithms: how sure the network is of it, and how far it can be wrong
_FOCAL_BIAS = 0.1  # of its logarithm: how far off a frame can be that knows it well; one that knows less tells nothing


_LENS = ("log_focal", "log_focal_first", "certainty")  # what a Refiner knows beside frames


@dataclass(frozen=True, eq=False)
class Sight(Look):
    """What is kept of a frame that later ones are compared with.

    Attributes:
        depth: ``[N]``, z of the middles of the patches.
        extrinsics: its camera, ``[3, 4]``.
    """

    depth: FloatArray
    extrinsics: Float64


@dataclass(frozen=True, eq=False)
class Refiner:
    """Camera by camera along a stream; each call returns what the next one needs.

    Attributes:
        patch_size: pixels.
        previous: the newest frame.
        keyframe: an older one, which is kept for as long as it is seen; it keeps errors from adding up.
        motion: from the camera before to the newest, rotation vector and translation, ``[6]``.
        log_focal: logarithm of the focal length in pixels, as it is known by now; 0 before the first frame.
        log_focal_first: the same, as the network said of the first frame.
        certainty: inverse variance of ``log_focal``.
    """

    patch_size: int
    previous: Sight | None = None
    keyframe: Sight | None = None
    motion: Float64 = field(default_factory=lambda: np.zeros(6))
    log_focal: float = 0.0
    log_focal_first: float = 0.0
    certainty: float = _FOCAL_DEVIATION**-2

    def restarted(self) -> Refiner:
        """Begin another stream through the same lens."""
        return replace(self, previous=None, keyframe=None, motion=np.zeros(6))

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
        """Return all that is remembered as arrays and facts, see :mod:`streamvggt.saving`."""
        sights = {"previous": self.previous, "keyframe": self.keyframe if self.keyframe is not self.previous else None}
        arrays = {
            f"{name}.{part.name}": getattr(sight, part.name)
            for name, sight in sights.items()
            if sight is not None
            for part in fields(Sight)
        }
        return arrays | {"motion": self.motion}, {name: getattr(self, name) for name in _LENS}

    @classmethod
    def unpack(cls, patch_size: int, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, float]) -> Refiner:
        """Return what :meth:`pack` described."""
        sights = {
            name: Sight(**{part.name: arrays[f"{name}.{part.name}"] for part in fields(Sight)})
            for name in ("previous", "keyframe")
            if f"{name}.depth" in arrays
        }
        previous = sights.get("previous")
        keyframe, lens = sights.get("keyframe", previous), {name: facts[name] for name in _LENS}
        return cls(patch_size, previous, keyframe, arrays["motion"], **lens)

    @property
    def nbytes(self) -> int:
        """Bytes that it remembers."""
        return sum(array.nbytes for array in self.pack()[0].values())

    def step(
        self,
        image: ByteArray,
        descriptors: FloatArray,
        depth: FloatArray,
        extrinsics: FloatArray,
        intrinsics: FloatArray,
    ) -> tuple[Refiner, FloatArray, FloatArray]:
        """Find the camera of the next frame.

        The first camera stays what the network said. Where too little of a frame is followed to a pixel, the camera
        moves on as before, half as far in each further frame. The keyframe stays, so that a flash or a hand before the
        lens does not end what is known.

        Args:
            image: RGB, uint8 ``[H, W, 3]``.
            descriptors: of its patches, ``[N, D]``, of length 1.
            depth: ``[H, W]``, z in the camera.
            extrinsics: what the network says, ``[3, 4]``.
            intrinsics: what the network says, ``[3, 3]``, pixels. One focal length is made of its two: pixels are
                square.

        Returns:
            What the next frame needs, and the camera's extrinsics and intrinsics, shaped as they came.
        """
        centre = np.asarray(intrinsics, np.float64)[:2, 2]
        places = patch_centres((image.shape[0], image.shape[1]), self.patch_size)
        column, row = (places + 0.5).astype(int).T
        new = Sight(descriptors, brightness(image), depth[row, column], np.asarray(extrinsics, np.float64))
        if self.previous is None or self.keyframe is None:
            if not (np.isfinite(extrinsics).all() and np.isfinite(intrinsics).all()):
                return self, extrinsics, intrinsics
            begun = replace(self, previous=new, keyframe=new)
            if not begun.log_focal:
                said = float(np.log([intrinsics[0, 0], intrinsics[1, 1]]).mean())
                begun = replace(begun, log_focal=said, log_focal_first=said)
            return begun, extrinsics, begun._intrinsics(centre)
        sights = [self.previous, *([] if self.keyframe is self.previous else [self.keyframe])]
        seen = [Points.of(sight, match(sight, new, places, self.patch_size), centre) for sight in sights]
        by_previous = self._fit(seen)
        fitted = by_previous or self._fit(seen[1:])  # what came between may have been a flash
        if fitted is None:
            last = _moved(self.previous.extrinsics, self.motion)
            lost = replace(self, previous=replace(new, extrinsics=last), motion=_SLOWER * self.motion)
            return lost, last.astype(np.float32), self._intrinsics(centre)
        after, camera = fitted
        new = replace(new, extrinsics=camera)
        agree = seen[-1].errors(camera, after.log_focal) < _SAME
        moved = np.linalg.norm(seen[-1].found - seen[-1].start, axis=1)
        due = agree.sum() < _SEEN_STILL * len(places) or np.median(moved) > _MOVED * image.shape[1]
        # From a camera that was only guessed, and that its frame does not bear out, it leads by the error of the guess.
        motion = _motion(self.previous.extrinsics, camera) if by_previous else self.motion
        after = replace(after, previous=new, keyframe=new if due else self.keyframe, motion=motion)
        return after, camera.astype(np.float32), after._intrinsics(centre)

    def _fit(self, seen: list[Points]) -> tuple[Refiner, Float64] | None:
        """Fit the camera to what was found of a frame and, where they agree, of others; None if that is too little.

        Places that are only guessed do not make a camera: they lean to the middle of the image, so that of a bare wall
        it would wander off.
        """
        assert self.previous is not None
        if not seen or seen[0].followed < _FEWEST_FOLLOWED:
            return None
        used, expected = seen[0], _moved(self.previous.extrinsics, self.motion)
        fit = used.fit(expected, self.log_focal)
        for more in seen[1:]:
            same = more.select(more.errors(fit.extrinsics, self.log_focal) < _SAME)
            if same.followed >= FEWEST_MATCHES:
                used = used.join(same)
        if used is not seen[0]:
            fit = used.fit(expected, self.log_focal)
        after = self
        for again in (False, True):  # with what the first time said of the focal length
            if again:
                fit = used.fit(expected, after.log_focal)
            clear = _FOCAL_BIAS**2 * fit.information  # else the error of its depths says more than the lens does
            share = (clear > 1) / (1 + clear)
            certainty = self.certainty + share * fit.information
            pull = self.certainty * (self.log_focal - after.log_focal)
            change = (share * fit.gradient + pull) / certainty
            low, high = self.log_focal_first - _FOCAL_RANGE, self.log_focal_first + _FOCAL_RANGE
            focal = min(max(after.log_focal + change, low), high)
            settled = abs(focal - after.log_focal) < 0.01
            after = replace(self, log_focal=focal, certainty=certainty)
            if settled:
                break
        if (used.errors(fit.extrinsics, after.log_focal) < _SAME).sum() < FEWEST_MATCHES:
            return None
        return after, fit.extrinsics

    def _intrinsics(self, centre: Float64) -> FloatArray:
        focal = math.exp(self.log_focal)
        return np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]], np.float32)


class Fit(NamedTuple):
    """A camera, and what it tells of the focal length.

    Attributes:
        extrinsics: ``[3, 4]``.
        gradient: of the log-likelihood, by the logarithm of the focal length, with the camera free to follow.
        information: its curvature.
    """

    extrinsics: Float64
    gradient: float
    information: float


@dataclass(frozen=True, eq=False)
class Points:
    """Points lifted by the depth of the frames that saw them first, and where the next frame sees them.

    Attributes:
        start: ``[M, 2]``, their places in the reference, pixels from the middle.
        depth: ``[M]``, z there.
        pose: ``[M, 3, 4]``, from the camera there to the world.
        found: ``[M, 2]``, their places in the next frame, pixels from the middle.
        weight: ``[M]``.
    """

    start: Float64
    depth: Float64
    pose: Float64
    found: Float64
    weight: Float64

    @classmethod
    def of(cls, sight: Sight, matches: Matches, centre: Float64) -> Points:
        """Lift what was found of a frame; what is not finite is left out."""
        depth = sight.depth[matches.patches].astype(np.float64)
        pose = np.broadcast_to(invert_pose(sight.extrinsics), (len(depth), 3, 4))
        points = cls(matches.at - centre, depth, pose, matches.found - centre, matches.weight)
        return points.select(np.isfinite(depth) & (depth > 0) & np.isfinite(points.found).all(1))

    @property
    def followed(self) -> int:
        """How many were followed to a pixel."""
        return int((self.weight >= FOLLOWED).sum())

    def select(self, which: NDArray[np.bool_]) -> Points:
        """Those of a mask."""
        return Points(*(getattr(self, part.name)[which] for part in fields(self)))

    def join(self, other: Points) -> Points:
        """These, and others behind them."""
        parts = ((getattr(self, part.name), getattr(other, part.name)) for part in fields(self))
        return Points(*(np.concatenate(pair) for pair in parts))

    def errors(self, extrinsics: Float64, log_focal: float) -> Float64:
        """How far from where they were found a camera sees them, ``[M]``, pixels.

        What may be an error of the depth counts for less, see :meth:`fit`; what lies behind the camera is infinitely
        far.
        """
        seen = self._seen(extrinsics, log_focal)
        away = _without_depth(self.found - seen.xy, seen.parallax, _DEPTH_ERROR)
        return np.where(seen.in_front, np.linalg.norm(away, axis=1), np.inf)

    def depth_in(self, extrinsics: Float64, log_focal: float) -> Float64:
        """Depth of the points in a camera, ``[M]``."""
        return self._seen(extrinsics, log_focal).depth

    def fit(self, expected: Float64, log_focal: float) -> Fit:
        """Find the camera that sees the points where they were found.

        Iteratively reweighted least squares: least distances first, then Tukey's biweight. What a point's parallax
        moves it is as unsure as its depth, so an error in that direction counts for less: where depths are wrong, the
        epipolar constraint decides; and where few points were found, the camera that is expected.

        Args:
            expected: the camera, as the ones before let it be expected, ``[3, 4]``.
            log_focal: logarithm of the focal length in pixels.
        """
        extrinsics = expected
        deviation = np.repeat((_TURN_DEVIATION, _WAY_DEVIATION * max(float(np.median(self.depth)), 1e-9)), 3)
        for step in range(_ROUGH_STEPS + _FINE_STEPS):
            rough = step < _ROUGH_STEPS
            seen, depth_error = self._seen(extrinsics, log_focal), _ROUGH_DEPTH_ERROR if rough else _DEPTH_ERROR
            away = _without_depth(self.found - seen.xy, seen.parallax, depth_error)
            error = np.linalg.norm(away, axis=1)
            usual = max(float(np.median(error)), _PIXEL_ERROR / 2)
            trust = (
                usual / np.maximum(error, 0.2 * usual)
                if step < _ROUGH_STEPS + _FINE_STEPS // 2
                else _biweight(error / (_CUT * usual))
            )
            weight = self.weight * trust * seen.in_front
            jacobian = _without_depth(seen.jacobian, seen.parallax, depth_error)
            weighted = jacobian * weight[:, None, None]
            square = np.einsum("mij,mik->jk", weighted, jacobian)
            pull = (usual / deviation) ** 2
            square[np.diag_indices(6)] += _DAMPING * np.diag(square) + pull
            down = np.einsum("mij,mi->j", weighted, away) - pull * _motion(expected, extrinsics)
            change = np.linalg.solve(square, down)
            change *= min(1, _LONGEST_STEP / max(np.abs(change).max(), 1e-12))
            extrinsics = _moved(extrinsics, change)
        # How all places would move with the focal length, and the camera after them.
        ahead, behind = (self._seen(extrinsics, log_focal + nudge).xy for nudge in (_NUDGE, -_NUDGE))
        focal = _without_depth((ahead - behind) / (2 * _NUDGE), seen.parallax, depth_error)
        along = np.linalg.solve(square, np.einsum("mij,mi->j", weighted, focal))
        rest = focal - jacobian @ along
        variance = max(usual, 0.5) ** 2 + 1
        gradient, information = (float((weight[:, None] * rest * x).sum() / variance) for x in (away, focal))
        return Fit(extrinsics, gradient, information)

    def _seen(self, extrinsics: Float64, log_focal: float) -> _Seen:
        focal = math.exp(log_focal)
        ray = np.concatenate([self.start / focal, np.ones((len(self.start), 1))], 1)
        lifted = _turned(self.pose[:, :, :3], ray * self.depth[:, None])
        turned = lifted @ extrinsics[:, :3].T
        x, y, z = (turned + self.pose[:, :, 3] @ extrinsics[:, :3].T + extrinsics[:, 3]).T
        nearest = _NEAREST * self.depth
        inverse = 1 / np.maximum(z, nearest)
        xy = np.stack([x, y], 1) * (focal * inverse)[:, None]
        still = turned[:, :2] * (focal / np.maximum(turned[:, 2], nearest))[:, None]
        u, v, zero = x * inverse, y * inverse, np.zeros_like(x)
        rows = [
            [-u * v, 1 + u * u, -v, inverse, zero, -u * inverse],
            [-1 - v * v, u * v, u, zero, inverse, -v * inverse],
        ]
        jacobian = focal * np.stack([np.stack(row, 1) for row in rows], 1)
        return _Seen(xy, z, xy - still, z > nearest, jacobian)


class _Seen(NamedTuple):
    """Where a camera sees points: xy from the middle, depth, what of xy is parallax, whether in front, derivatives."""

    xy: Float64
    depth: Float64
    parallax: Float64
    in_front: NDArray[np.bool_]
    jacobian: Float64


def move_points(points: FloatArray, before: FloatArray, after: FloatArray) -> FloatArray:
    """Bring points ``[..., 3]`` of the world to where they lie before another camera as before the one given."""
    back = after[:, :3].T.astype(np.float64)
    move = Similarity(1.0, back @ before[:, :3], back @ (before[:, 3] - after[:, 3]))
    return move.apply(points).astype(np.float32)


def _without_depth(vectors: Float64, parallax: Float64, depth_error: float) -> Float64:
    """Shorten vectors ``[M, 2, ...]`` along the parallax ``[M, 2]`` by what the depth is unsure about it."""
    length = np.linalg.norm(parallax, axis=1, keepdims=True)
    along = parallax / np.maximum(length, 1e-9)
    unsure = depth_error * np.minimum(length[:, 0], _LONGEST_PARALLAX) / _PIXEL_ERROR
    share = 1 - 1 / np.sqrt(1 + unsure**2)
    part = np.einsum("mi,mi...->m...", along, vectors)
    return vectors - np.einsum("m,mi,m...->mi...", share, along, part)


def _biweight(error: Float64) -> Float64:
    return np.clip(1 - error**2, 0, None) ** 2


def _turned(rotation: Float64, points: Float64) -> Float64:
    return np.einsum("mij,mj->mi", rotation, points)


def _motion(before: Float64, after: Float64) -> Float64:
    """Rotation vector and translation, ``[6]``, that lead from one camera to the next."""
    turn = after[:, :3] @ before[:, :3].T
    angle = math.acos(min(max((np.trace(turn) - 1) / 2, -1), 1))
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    vector = angle / max(2 * math.sin(angle), 1e-12) * axis
    return np.concatenate([vector, after[:, 3] - turn @ before[:, 3]])


def _moved(extrinsics: Float64, motion: Float64) -> Float64:
    """The camera after a motion."""
    extrinsics = _rotation(motion[:3]) @ extrinsics
    extrinsics[:, 3] += motion[3:]
    return extrinsics


def _rotation(vector: Float64) -> Float64:
    """The matrix of a rotation vector (Rodrigues)."""
    angle = max(float(np.linalg.norm(vector)), 1e-12)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def brightness(image: ByteArray) -> ByteArray:
    """Turn RGB ``[H, W, 3]`` to grey, uint8 ``[H, W]``."""
    return (image @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)
