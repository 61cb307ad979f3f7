"""What the generator makes, as data: the choices, and everything that there is to see in a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from streamvggt.synthetic.raycast import Solids


@dataclass(frozen=True)
class SyntheticConfig:
    """Choose what the generator makes. Probabilities are per clip.

    Attributes:
        num_frames: frames of a clip.
        image_hw: height and width, pixels; multiples of 7, the side of the renderer's tiles (the network wants 14).
        fov_deg: range of the horizontal field of view, degrees.
        open_probability: outdoors instead of in a room.
        moving_probability: some objects move.
        roll_probability: camera roll uniform in +-60 degrees instead of a few degrees.
        closeup_probability: camera within a metre or so of a table.
        shadows: cast shadows; without them rendering is faster.
    """

    num_frames: int = 8
    image_hw: tuple[int, int] = (168, 224)
    fov_deg: tuple[float, float] = (35.0, 100.0)
    open_probability: float = 0.3
    moving_probability: float = 1 / 3
    roll_probability: float = 0.2
    closeup_probability: float = 0.35
    shadows: bool = True

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        if any(size <= 0 or size % 7 for size in self.image_hw):
            raise ValueError(f"image_hw must be two multiples of 7, the renderer's tile, got {self.image_hw}")
        if not 0 < self.fov_deg[0] <= self.fov_deg[1] < 180:
            raise ValueError(f"fov_deg must be a range within 0..180 degrees, low end first, got {self.fov_deg}")
        for name in ("open_probability", "moving_probability", "roll_probability", "closeup_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class World:
    """Everything there is to see, frame by frame: the leading axes are ``[B, S]``, or ``[F]`` once flattened.

    World coordinates are those of the first camera. ``N`` solids come first; the room, a box seen from inside, is last
    and brings them to ``N + 1``.

    Attributes:
        extrinsics: ``[..., 3, 4]``, world-to-camera.
        intrinsics: ``[..., 3, 3]``, pixels.
        poses: ``[..., N + 1, 3, 4]``, rigid, solid-to-world.
        half_sizes: ``[..., N + 1, 3]``.
        roundness: ``[..., N + 1, 2]``, see :class:`Solids`.
        active: bool ``[..., N + 1]``.
        textures: ``[..., N + 1, 6]``, numbers in [0, 1) that choose a texture for each face (-x, x, -y, y, -z, z).
        repeats: ``[..., N + 1]``, texture repeats a metre.
        offsets: ``[..., N + 1, 2]``, of the texture, in repeats.
        tints: ``[..., N + 1, 3]``, factors on the texture's colours.
        walls: bool ``[...]``, False where there is only sky above the ground.
        ceiling: bool ``[...]``.
        up: ``[..., 3]``, unit vector against gravity.
        light: ``[..., 3]``, position of the light.
        light_range: ``[...]``, distance at which the light is down to half.
        ambient: ``[...]``, share of the light that comes from everywhere, in [0, 1].
        sky: ``[..., 2, 3]``, colours of the sky at the horizon and overhead.
        brightness: ``[...]``, mean of the images after exposure, in [0, 1].
        cast: ``[..., 3]``, factors of the exposure on the colours, near 1.
        gamma: ``[...]``, exponent on the exposed colours, near 1.
    """

    extrinsics: Tensor
    intrinsics: Tensor
    poses: Tensor
    half_sizes: Tensor
    roundness: Tensor
    active: Tensor
    textures: Tensor
    repeats: Tensor
    offsets: Tensor
    tints: Tensor
    walls: Tensor
    ceiling: Tensor
    up: Tensor
    light: Tensor
    light_range: Tensor
    ambient: Tensor
    sky: Tensor
    brightness: Tensor
    cast: Tensor
    gamma: Tensor

    def to(self, device: torch.device) -> World:
        """Move everything to the device, numbers as float32."""
        return self._map(lambda value: value.to(device, torch.float32 if value.is_floating_point() else value.dtype))

    def frames(self, start: int, stop: int) -> World:
        """Take frames ``start`` to ``stop`` of the ``B * S`` in a row."""
        return self._map(lambda value: value.flatten(0, 1)[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> World:
        return World(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    @property
    def solids(self) -> Solids:
        """The solids without the room; for flattened worlds."""
        return Solids(self.poses[:, :-1], self.half_sizes[:, :-1], self.roundness[:, :-1], self.active[:, :-1])
