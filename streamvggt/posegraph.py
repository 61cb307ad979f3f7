"""Places of sub-maps that agree best with all that is known of pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .geometry import Similarity

_DOF = 7
_MAX_STEPS = 100
_DAMPING = 1e-4
_RELATIVE_GAIN, _SMALL_STEP = 1e-12, 1e-9
_NUDGE = 1e-5  # central differences err by its square


@dataclass(frozen=True, eq=False)
class Edge:
    """What is known of two sub-maps: how the second one lies in the first.

    Attributes:
        first, second: numbers of the sub-maps.
        transform: from the second's world to the first's.
        weight: > 0, factor on its residual.
    """

    first: int
    second: int
    transform: Similarity
    weight: float = 1.0


def require_scipy() -> None:
    """Raise ImportError, with what to do, where SciPy is missing."""
    try:
        import scipy.sparse.linalg  # noqa: F401
    except ImportError as error:
        raise ImportError("closing loops needs scipy: pip install 'streamvggt[long]', or switch loops off") from error


def optimise_pose_graph(poses: Sequence[Similarity], edges: Sequence[Edge]) -> list[Similarity]:
    """Move sub-maps so that they agree best with the edges; the first stays where it is.

    The residual of an edge is the logarithm of scale, the rotation vector and the translation (in the second's units)
    of ``transform^-1 poses[first]^-1 poses[second]``. The sum of their squares is minimised, so a false edge bends
    everything: see :func:`strain`.

    Args:
        poses: where each sub-map lies, sub-map to world; a first guess.
        edges: between them; each sub-map but the first should have at least one.

    Returns:
        Better poses, in the order of ``poses``.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: an edge names a sub-map that is not there, joins one to itself, or has no positive weight.

    Source: Strasdat, Montiel and Davison, "Scale drift-aware large scale monocular SLAM", RSS 2010; by the steps of
    Levenberg and Marquardt, with SciPy's sparse solver.
    """
    require_scipy()
    for edge in edges:
        ends = edge.first, edge.second
        if not (0 <= min(ends) < max(ends) < len(poses) and edge.weight > 0):
            raise ValueError(
                f"an edge must join two of the sub-maps 0 to {len(poses) - 1} with a weight above 0, got "
                f"{ends[0]} and {ends[1]} with {edge.weight}"
            )
    if len(poses) < 2 or not edges:
        return list(poses)
    cost = _Cost(edges)
    moved, loss, damping = _stacked(poses), cost.loss(_stacked(poses)), _DAMPING
    for _ in range(_MAX_STEPS):
        step = cost.step(moved, damping)
        tried = _changed(moved, step)
        new_loss = cost.loss(tried)
        # Marquardt's rule: trust the linear model more after a step that helped, less after one that did not.
        if new_loss <= loss:
            gain, moved, loss, damping = loss - new_loss, tried, new_loss, damping / 10
            if gain <= _RELATIVE_GAIN * loss or np.abs(step).max() < _SMALL_STEP:
                break
        else:
            damping *= 10
            if damping > 1e8:
                break
    better = [Similarity(float(s), r, t) for s, r, t in zip(*moved, strict=True)]
    return [poses[0], *better[1:]]


_Stack = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # scales, rotations, translations


def strain(poses: Sequence[Similarity], edges: Sequence[Edge]) -> NDArray[np.float64]:
    """Say how far each edge is from what it asks for: the length of its residual without its weight, ``[E]``."""
    return np.linalg.norm(_Cost(edges).residuals(_stacked(poses)), axis=1) / [edge.weight for edge in edges]


class _Cost:
    """Half the sum of squares of all edges, and the step of Levenberg and Marquardt that lessens it."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        self._known = _stacked([edge.transform for edge in edges])
        self._first, self._second = (np.array([getattr(edge, end) for edge in edges]) for end in ("first", "second"))
        self._weights = np.array([edge.weight for edge in edges])[:, None]

    def loss(self, poses: _Stack) -> float:
        """Half the sum of squares."""
        return float((self.residuals(poses) ** 2).sum() / 2)

    def residuals(self, poses: _Stack) -> NDArray[np.float64]:
        """Of every edge, ``[E, 7]``."""
        return self._residuals(_of(poses, self._first), _of(poses, self._second))

    def step(self, poses: _Stack, damping: float) -> NDArray[np.float64]:
        """Return a change of all poses, ``[N, 7]``; that of the first is 0."""
        from scipy.sparse import coo_matrix, diags
        from scipy.sparse.linalg import spsolve

        num_edges, num_poses = len(self._first), len(poses[0])
        ends = _of(poses, self._first), _of(poses, self._second)
        rows = np.arange(num_edges * _DOF).reshape(num_edges, _DOF, 1)
        data, row, column = [], [], []
        for which, numbers in enumerate((self._first, self._second)):
            for k in range(_DOF):
                nudge = np.zeros((num_edges, _DOF))
                nudge[:, k] = _NUDGE
                above, below = (
                    self._residuals(*(_changed(end, sign * nudge) if i == which else end for i, end in enumerate(ends)))
                    for sign in (1, -1)
                )
                data.append((above - below) / (2 * _NUDGE))
                row.append(rows[..., 0])
                column.append(np.repeat(_DOF * numbers[:, None] + k, _DOF, axis=1))
        shape = (num_edges * _DOF, num_poses * _DOF)
        entries = (np.ravel(data), (np.ravel(row), np.ravel(column)))
        jacobian = coo_matrix(entries, shape=shape).tocsc()[:, _DOF:]
        normal = jacobian.T @ jacobian
        # An unconnected pose has no pull at all, and stays.
        normal = normal + diags(damping * normal.diagonal() + 1e-12)
        change = spsolve(normal.tocsc(), -jacobian.T @ self._residuals(*ends).ravel())
        return np.concatenate([np.zeros((1, _DOF)), change.reshape(-1, _DOF)])

    def _residuals(self, first: _Stack, second: _Stack) -> NDArray[np.float64]:
        return self._weights * _logarithm(_seen_from(self._known, _seen_from(first, second)))


def _of(poses: _Stack, which: NDArray[np.int_]) -> _Stack:
    scales, rotations, translations = poses
    return scales[which], rotations[which], translations[which]


def _stacked(transforms: Sequence[Similarity]) -> _Stack:
    return (
        np.array([transform.scale for transform in transforms]),
        np.stack([transform.rotation for transform in transforms]),
        np.stack([transform.translation for transform in transforms]),
    )


def _seen_from(outer: _Stack, inner: _Stack) -> _Stack:
    """Chain the way back from ``outer`` with ``inner``, one by one."""
    (s, R, t), (inner_s, inner_R, inner_t) = outer, inner
    back = R.swapaxes(-1, -2)
    return inner_s / s, back @ inner_R, (back @ (inner_t - t)[..., None])[..., 0] / s[:, None]


def _logarithm(transforms: _Stack) -> NDArray[np.float64]:
    """``[N, 7]``: logarithm of scale, rotation vector in radians, translation."""
    from scipy.spatial.transform import Rotation

    scale, rotation, translation = transforms
    return np.concatenate([np.log(scale)[:, None], Rotation.from_matrix(rotation).as_rotvec(), translation], axis=1)


def _changed(poses: _Stack, change: NDArray[np.float64]) -> _Stack:
    """Move each pose by ``[N, 7]`` numbers in its own coordinates: what :func:`_logarithm` measures."""
    from scipy.spatial.transform import Rotation

    s, R, t = poses
    turned = R @ Rotation.from_rotvec(change[:, 1:4]).as_matrix()
    return s * np.exp(change[:, 0]), turned, t + s[:, None] * (R @ change[:, 4:, None])[..., 0]
