"""Clips to learn from: cut out of scenes and sequences, coloured anew, mixed by weight, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .geometry import compose, encode_pose, invert_pose, unproject
from .synthetic import SyntheticConfig, TextureBank, render_clips

_LEAST_VALID = 0.3  # of the pixels of every frame of a clip
_NEAREST = 0.05  # of the mean distance of what frame 0 sees; a camera inside of things is no clip
_MOST_TRIES = 100  # scenes in a row that are no clip, before a configuration is given up
_COLOURS = 0x5BD1E995  # turns a clip's seed into that of its colours: the same numbers must not decide both


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """``B`` clips of ``S`` frames with what is true of them; float32 where nothing else is said.

    Attributes:
        images: RGB in [0, 1], ``[B, S, 3, H, W]``.
        depth: z in the camera, scene units, ``[B, S, H, W]``; 0 where not valid.
        valid: bool ``[B, S, H, W]``, whether the depth of the pixel is known.
        extrinsics: world-to-camera ``[B, S, 3, 4]``; the identity in frame 0.
        intrinsics: pixels, ``[B, S, 3, 3]``.
    """

    images: Tensor
    depth: Tensor
    valid: Tensor
    extrinsics: Tensor
    intrinsics: Tensor

    @property
    def pose_enc(self) -> Tensor:
        """Cameras as the network predicts them, ``[B, S, 9]``; see :class:`streamvggt.Predictions`."""
        height, width = self.images.shape[-2:]
        return encode_pose(self.extrinsics, self.intrinsics, (height, width))

    @property
    def world_points(self) -> Tensor:
        """The point of the scene in every pixel, ``[B, S, H, W, 3]``, first camera's frame; see ``valid``."""
        return unproject(self.depth, self.extrinsics, self.intrinsics)

    def to(self, device: torch.device | str) -> ClipBatch:
        """These clips on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def part(self, clips: slice | Tensor) -> ClipBatch:
        """Some of the clips."""
        return self._each(lambda tensor: tensor[clips])

    def frames(self, order: Tensor) -> ClipBatch:
        """Other frames, seen from the first of them: ``order`` holds frame numbers ``[B, S']``, in any order."""
        rows = torch.arange(len(order), device=order.device)[:, None]
        chosen = self._each(lambda tensor: tensor[rows, order])
        to_first = invert_pose(chosen.extrinsics[:, :1])
        return replace(chosen, extrinsics=compose(chosen.extrinsics, to_first))

    def normalized(self) -> ClipBatch:
        """Divide lengths by the mean distance of what frame 0 sees from its camera, which a stream knows at its start.

        Clips of which nothing is known in frame 0 keep their scale.
        """
        distance = self.world_points[:, 0].square().sum(-1).sqrt()
        known = self.valid[:, 0]
        mean = torch.where(known, distance, 0.0).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
        return self.shrunk(torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None, None])

    def shrunk(self, scale: Tensor | float) -> ClipBatch:
        """Divide lengths by a number, or by one a clip, ``[B, 1, 1, 1]``."""
        extrinsics = torch.cat([self.extrinsics[..., :3], self.extrinsics[..., 3:] / scale], dim=-1)
        return replace(self, depth=self.depth / scale, extrinsics=extrinsics)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ClipBatch:
        return ClipBatch(*(change(getattr(self, part.name)) for part in fields(self)))


class ClipSource(Protocol):
    """Where clips come from."""

    def clips_per_seed(self, num_frames: int) -> int:
        """How many clips of so many frames :meth:`clips` makes of each seed."""

    def clips(
        self, seeds: Sequence[int], num_frames: int, stride: tuple[int, int], image_hw: tuple[int, int]
    ) -> ClipBatch:
        """Make clips, in metres. A seed means the same clips in any company.

        Args:
            seeds: of scenes and frames.
            num_frames: S, frames a clip.
            stride: least and most frames of the sequence from one frame of a clip to the next.
            image_hw: size of the frames.
        """


@dataclass(frozen=True)
class SyntheticSource:
    """Clips of made-up scenes. A scene is rendered once and cut into as many clips as its frames are enough for.

    Attributes:
        scene_frames: frames rendered of each scene.
        config: everything else about the scenes.
        textures: what surfaces look like; None for procedural textures.
        device: where to render.
    """

    scene_frames: int = 8
    config: SyntheticConfig = field(default_factory=SyntheticConfig)
    textures: TextureBank | None = None
    device: str = "cpu"

    def clips_per_seed(self, num_frames: int) -> int:
        """See :class:`ClipSource`."""
        return max(1, self.scene_frames // num_frames)

    def clips(
        self, seeds: Sequence[int], num_frames: int, stride: tuple[int, int], image_hw: tuple[int, int]
    ) -> ClipBatch:
        """See :class:`ClipSource`. Scenes that show little are replaced by those of the next higher seeds.

        Raises:
            ValueError: so do a hundred scenes in a row.
        """
        frames = max(self.scene_frames, 1 + stride[0] * (num_frames - 1))
        config = replace(self.config, num_frames=frames, image_hw=image_hw)
        scenes, good = self._render(seeds, config)
        for i in (~good).nonzero().flatten().tolist():
            for other in range(seeds[i] + 1, seeds[i] + _MOST_TRIES):
                scene, good_now = self._render([other], config)
                if good_now[0]:
                    break
            else:
                raise ValueError(f"{_MOST_TRIES} scenes from seed {seeds[i]} on show next to nothing with {config}")
            for name, tensor in vars(scenes).items():
                tensor[i] = getattr(scene, name)[0]
        order = []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            order += [clip_order(frames, num_frames, stride, rng) for _ in range(self.clips_per_seed(num_frames))]
        rows = torch.arange(len(seeds)).repeat_interleave(self.clips_per_seed(num_frames))
        return scenes.part(rows.to(self.device)).frames(torch.stack(order).to(self.device))

    def _render(self, seeds: Sequence[int], config: SyntheticConfig) -> tuple[ClipBatch, Tensor]:
        """Render scenes and say, bool ``[B]``, which show more than sky or a wall from too near."""
        clip = render_clips(seeds, config, self.device, textures=self.textures)
        enough = clip.valid.float().mean((2, 3)).amin(1) >= _LEAST_VALID
        mean = (clip.depth * clip.valid).sum((1, 2, 3)) / clip.valid.sum((1, 2, 3)).clamp_min(1)
        nearest = torch.where(clip.valid, clip.depth, torch.inf).amin((1, 2, 3))
        scenes = ClipBatch(clip.images, clip.depth, clip.valid, clip.extrinsics, clip.intrinsics)
        return scenes, enough & (nearest > _NEAREST * mean)


def clip_order(available: int, num_frames: int, stride: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Choose the frames of a clip: a random stride, a random start, forwards or backwards; int64 ``[num_frames]``.

    Args:
        available: frames of the sequence; at least ``1 + stride[0] * (num_frames - 1)``.
        num_frames: frames of the clip.
        stride: least and most step; the most is cut to what fits.
        rng: decides.

    Raises:
        ValueError: the sequence is too short.
    """
    longest = (available - 1) // max(1, num_frames - 1)
    low, high = stride[0], max(stride[0], min(stride[1], longest))
    if low > longest and num_frames > 1:
        raise ValueError(
            f"a clip of {num_frames} frames with stride {low} needs {1 + low * (num_frames - 1)}, got {available}; "
            "take a shorter clip or a smaller stride"
        )
    step = int(torch.randint(low, high + 1, (), generator=rng))
    start = int(torch.randint(available - step * (num_frames - 1), (), generator=rng))
    order = start + step * torch.arange(num_frames)
    return order.flip(0) if torch.randint(2, (), generator=rng) else order


@dataclass(frozen=True)
class Augmentation:
    """How differently cameras see the same thing: strengths of random changes, drawn once a clip.

    Attributes:
        contrast: contrast, saturation and gamma vary by up to this factor (as ``exp(+-contrast)``).
        tint: each of red, green, blue likewise.
        exposure: brightness likewise; a quarter of it drifts over the clip.
        noise: largest deviation of the noise, of the range 0 to 1.
        blur: share of clips that are out of focus.
        gray: share of clips without colour.
    """

    contrast: float = 0.25
    tint: float = 0.1
    exposure: float = 0.3
    noise: float = 0.03
    blur: float = 0.25
    gray: float = 0.08

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Change the colours of a clip, RGB in [0, 1] ``[S, 3, H, W]``; the same for the same seed."""
        rng = torch.Generator().manual_seed(seed)
        change = (2 * torch.rand(9, generator=rng) - 1).to(images.device)
        chance = torch.rand(2, generator=rng)
        x = images.clamp(1e-3, 1) ** (self.contrast * change[0]).exp()
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * (self.contrast * change[1]).exp()
        mean = x.mean()
        x = mean + (x - mean) * (self.contrast * change[2]).exp()
        drift = change[3] * torch.linspace(-0.25, 0.25, len(x), device=x.device).view(-1, 1, 1, 1)
        x = x * (self.exposure * (change[4] + drift) + self.tint * change[5:8].view(3, 1, 1)).exp()
        if chance[1] < self.blur:
            x = _blurred(x)
        x = x + self.noise * change[8].abs() * torch.randn(x.shape, generator=rng).to(x.device)
        if chance[0] < self.gray:  # last, as tint and noise have colour too
            x = x.mean(1, keepdim=True).expand_as(x)
        return x.clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """Blur ``[S, 3, H, W]`` with the binomial kernel of three pixels."""
    row = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    flat = pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return conv2d(flat, (row[:, None] * row)[None, None]).view_as(images)


@dataclass(frozen=True)
class Stage:
    """A part of a training run, with clips of its own.

    Attributes:
        until: share of all steps at which it ends, in (0, 1].
        clip_lengths: frames a clip, one of these a step.
        stride: least and most step between frames of a clip.
        image_hws: sizes of frames, one of these a step.
        patches: patch tokens a step, over all clips: what decides how many clips there are.
    """

    until: float
    clip_lengths: tuple[int, ...]
    stride: tuple[int, int]
    image_hws: tuple[tuple[int, int], ...]
    patches: int


@dataclass(frozen=True)
class ClipStream:
    """The clips of every step of a run, the same whatever was drawn before: step ``n`` can be asked for at any time.

    Attributes:
        sources: where clips come from, one of these a step.
        weights: how often each.
        stages: parts of the run, by rising ``until``.
        num_steps: of the whole run.
        seed: decides everything.
        augment: how colours change; None for not at all.
        rank: which share of the clips of a step this is, of
        world: how many, all of one size. All shares together are what one process would get, where its clips can be
            shared out evenly; else there are a few more or fewer of them.
        patch_size: side of a patch, pixels.
    """

    sources: tuple[ClipSource, ...]
    weights: tuple[float, ...]
    stages: tuple[Stage, ...]
    num_steps: int
    seed: int = 0
    augment: Augmentation | None = Augmentation()
    rank: int = 0
    world: int = 1
    patch_size: int = 14

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> ClipBatch:
        """Clips of a step, their lengths divided by the mean distance in frame 0.

        Raises:
            IndexError: the run has no such step.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"steps are 0..{self.num_steps - 1}, got {step}")
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        stage = next(s for s in self.stages if step < s.until * self.num_steps or s is self.stages[-1])
        source = self.sources[int(torch.multinomial(torch.tensor(self.weights, dtype=torch.float64), 1, generator=rng))]
        length = stage.clip_lengths[int(torch.randint(len(stage.clip_lengths), (), generator=rng))]
        hw = stage.image_hws[int(torch.randint(len(stage.image_hws), (), generator=rng))]
        each = source.clips_per_seed(length)
        tokens = hw[0] * hw[1] // self.patch_size**2 * length * each
        mine = max(1, round(stage.patches / (tokens * self.world)))
        drawn = torch.randint(1 << 30, (mine * self.world,), generator=rng).tolist()
        seeds = drawn[mine * self.rank : mine * (self.rank + 1)]
        clips = source.clips(seeds, length, stage.stride, hw).normalized()
        if self.augment is None:
            return clips
        of_clip = [(seed * each + i) ^ _COLOURS for seed in seeds for i in range(each)]
        colours = [self.augment(clip, seed) for clip, seed in zip(clips.images, of_clip, strict=True)]
        return replace(clips, images=torch.stack(colours))
