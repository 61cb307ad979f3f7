"""Find what rays hit first in scenes of boxes, ellipsoids and cylinders, exactly and for many frames at once.

Rays come in tiles: the ``K`` pixels of a small square see almost the same things, so solids are tried per tile,
bounding sphere against cone of rays, then faces against the rays' ends, and only the pairs that pass are intersected.
All rays of a frame start at one point: at the camera, or at the light for shadows.

Vectors over pixels have their component first, ``[3, F, T, K]``: ``F`` frames of ``T`` tiles. No matrix product is
used on coordinates (see :mod:`streamvggt.geometry`), and no sum runs over more than one tile: a frame comes out the
same in whatever batch it is cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from streamvggt.geometry import invert_pose

_PARALLEL = 1e-12  # added to directions, so that a ray along a face divides by something
_MARGIN, _FACE_MARGIN = 1e-4, 1e-3  # on the cosine of a cone, on the unit cube; against rounding


@dataclass(frozen=True, eq=False)
class Solids:
    """Convex solids in ``F`` frames: each is the cube ``|x|, |y|, |z| <= 1`` of its own frame, cut by a quadric.

    Attributes:
        poses: ``[F, N, 3, 4]``, rigid, solid-to-world.
        half_sizes: ``[F, N, 3]``, half the extent along the solid's own axes, scene units, > 0.
        roundness: ``[F, N, 2]``, the solid satisfies ``a (x^2 + z^2) + b y^2 <= 1`` besides: (0, 0) is a box, (1, 1) an
            ellipsoid, (1, 0) a cylinder along y.
        active: bool ``[F, N]``, False for solids that are not there.
    """

    poses: Tensor
    half_sizes: Tensor
    roundness: Tensor
    active: Tensor

    @cached_property
    def to_unit(self) -> Tensor:
        """The affine map from the world to the unit cube, ``[F, N, 3, 4]``."""
        return invert_pose(self.poses) / self.half_sizes[..., None]

    @cached_property
    def radii(self) -> Tensor:
        """Radius of the bounding sphere, ``[F, N]``, scene units."""
        corner = self.half_sizes.square().sum(-1).sqrt()
        return torch.where(self.roundness[..., 1] > 0, self.half_sizes.amax(-1), corner)


def nearest(solids: Solids, origins: Tensor, directions: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first solid along each ray.

    Args:
        solids: what may be hit.
        origins: ``[F, 3]``, where all rays of a frame start, world.
        directions: ``[3, F, T, K]``, of any length, world.
        limit: ``[F, T, K]``, finite; hits beyond do not count.

    Returns:
        The ray parameter of the hit ``[F, T, K]`` (the hit is at ``origin + parameter * direction``), the limit where
        nothing is hit, and the number of the solid, int64 ``[F, T, K]``, -1 where nothing is hit. A ray that starts
        inside a solid passes through it.
    """
    tile, solid = _candidates(solids, origins, directions, limit)
    parameter = _entry(solids, origins, directions, tile, solid)
    first = limit.flatten(0, 1).clone()
    where = tile[:, None].expand_as(parameter)
    first.scatter_reduce_(0, where, parameter, "amin")
    wins = parameter == first.index_select(0, tile)
    number = torch.where(wins, (solid % solids.active.shape[1]).to(first)[:, None], -1)
    hit = torch.full_like(first, -1).scatter_reduce_(0, where, number, "amax")
    return first.view_as(limit), hit.view_as(limit).long()


def blocked(solids: Solids, origins: Tensor, directions: Tensor, limit: Tensor) -> Tensor:
    """Tell whether each ray meets any solid before its limit: bool ``[F, T, K]``; arguments as in :func:`nearest`."""
    tile, solid = _candidates(solids, origins, directions, limit)
    parameter = _entry(solids, origins, directions, tile, solid)
    first = torch.full_like(limit, torch.inf).flatten(0, 1)
    first.scatter_reduce_(0, tile[:, None].expand_as(parameter), parameter, "amin")
    return first.view_as(limit) < limit


def room_exit(to_unit: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Find where rays that start inside a box leave it.

    Args:
        to_unit: ``[F, 3, 4]``, affine map from the world to the box's unit cube.
        origins: ``[F, 3]``, inside the box.
        directions: ``[3, F, T, K]``.

    Returns:
        The ray parameter ``[F, T, K]``.
    """
    local_origin = _apply(to_unit, origins)[..., None, None]
    exits = []
    for axis in range(3):
        inverse = _rotate(to_unit[:, axis, :3, None, None], directions).add_(_PARALLEL).reciprocal_()
        exits.append(inverse.abs() - local_origin[:, axis] * inverse)
    return torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    """Apply ``[..., 3, 4]`` to ``[..., 3]``."""
    return (affine[..., :3] * points[..., None, :]).sum(-1) + affine[..., 3]


def _rotate(row: Tensor, directions: Tensor | list[Tensor]) -> Tensor:
    """Multiply one row of a matrix, ``[M, 3, ...]``, with vectors whose components come first."""
    product = row[:, 0] * directions[0]
    return product.addcmul_(row[:, 1], directions[1]).addcmul_(row[:, 2], directions[2])


def _candidates(solids: Solids, origins: Tensor, directions: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Pair tiles with the solids that their rays may meet: numbers of tiles (of F * T) and of solids (of F * N)."""
    inverse_length = directions.square().sum(0).rsqrt_()
    axis = (directions * inverse_length).mean(-1)
    axis /= axis.square().sum(0).sqrt().clamp_min(1e-6)
    cos_tile = ((directions * axis[..., None]).sum(0) * inverse_length).amin(-1)[..., None]
    reach = (limit / inverse_length).amax(-1)[..., None]

    to_center = solids.poses[..., 3] - origins[:, None]
    distance = to_center.square().sum(-1).sqrt()
    outside = distance > solids.radii
    sin_solid = (solids.radii / distance.clamp_min(1e-6)).clamp(max=1)[:, None]
    cos_solid = (1 - sin_solid.square()).sqrt()
    toward = to_center / distance.clamp_min(1e-6)[..., None]
    cosine = sum(axis[i, :, :, None] * toward[:, None, :, i] for i in range(3))
    # Two cones meet where the angle between their axes is at most the sum of their half angles.
    meets = cosine >= cos_tile * cos_solid - (1 - cos_tile.square()).clamp_min(0).sqrt() * sin_solid - _MARGIN
    meets |= ~outside[:, None] | (cos_tile < 0)
    meets &= ((distance - solids.radii)[:, None] < reach) & solids.active[:, None]
    frame, tile, solid = meets.nonzero(as_tuple=True)

    # A sphere around a board or a wall cabinet is mostly air: drop the pairs that a face of the box keeps apart.
    ends = torch.addcmul(origins.T[..., None, None], directions, limit)
    middle = ends.mean(-1)
    spread = (ends - middle[..., None]).square().sum(0).amax(-1).sqrt()[frame, tile, None]
    spread = spread / solids.half_sizes[frame, solid] + _FACE_MARGIN
    to_unit = solids.to_unit[frame, solid]
    start, end = _apply(to_unit, origins[frame]), _apply(to_unit, middle[:, frame, tile].T)
    apart = (start > 1) & (end - spread > 1) | (start < -1) & (end + spread < -1)
    keep = ~apart.any(-1)
    return (frame * meets.shape[1] + tile)[keep], (frame * meets.shape[2] + solid)[keep]


def _entry(solids: Solids, origins: Tensor, directions: Tensor, tile: Tensor, solid: Tensor) -> Tensor:
    """Intersect pairs of tile and solid: the ray parameter of entry ``[M, K]``, infinite where the ray misses."""
    to_unit = solids.to_unit.flatten(0, 1)[solid][..., None]  # [M, 3, 4, 1]
    local_origin = _apply(solids.to_unit, origins[:, None]).flatten(0, 1)[solid][..., None]
    round_xz, round_y = solids.roundness.flatten(0, 1)[solid][..., None].unbind(1)
    rays = [component.flatten(0, 1).index_select(0, tile) for component in directions]
    local = [_rotate(to_unit[:, axis, :3], rays).add_(_PARALLEL) for axis in range(3)]

    near, far = [], []
    for axis in range(3):
        inverse = local[axis].reciprocal()
        middle, half = local_origin[:, axis] * inverse, inverse.abs_()
        near.append(-middle - half)
        far.append(half - middle)

    # The quadric from the ray's point nearest to the axis: the usual discriminant loses small, far solids to rounding.
    weighted = [round_xz * local[0], round_y * local[1], round_xz * local[2]]
    square = (weighted[0] * local[0]).addcmul_(weighted[1], local[1]).addcmul_(weighted[2], local[2])
    square.clamp_min_(_PARALLEL)
    middle = -sum(w * local_origin[:, axis] for axis, w in enumerate(weighted)) / square
    x, y, z = (torch.addcmul(local_origin[:, axis], middle, local[axis]) for axis in range(3))
    room = 1 - round_xz * (x * x + z * z) - round_y * y * y
    half = (room.clamp_min(0) / square).sqrt_()
    enter, leave = reduce(torch.maximum, [*near, middle - half]), reduce(torch.minimum, [*far, middle + half])
    return torch.where((enter < leave) & (enter > 0) & (room > 0), enter, torch.inf)
