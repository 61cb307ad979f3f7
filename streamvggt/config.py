"""Every size of the network in one frozen dataclass, with presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class TrackConfig:
    """Sizes of the point tracker.

    Attributes:
        features: channels of its feature map.
        iterations: refinement rounds.
        correlation_levels: levels of the correlation pyramid.
        correlation_radius: half width of the window compared at each level, in cells of that level.
        hidden_size: width of its transformer.
        depth: pairs of time and space blocks.
        stride: pixels of the image per cell of the feature map.
    """

    features: int = 128
    iterations: int = 4
    correlation_levels: int = 7
    correlation_radius: int = 4
    hidden_size: int = 384
    depth: int = 6
    stride: int = 2

    def __post_init__(self) -> None:
        if self.features % 4 or self.hidden_size % 8:
            raise ValueError(
                f"the tracker's features must be a multiple of 4 and its hidden_size of 8 (heads), got {self.features} "
                f"and {self.hidden_size}"
            )


@dataclass(frozen=True)
class StreamVGGTConfig:
    """Sizes of the network. The defaults are those of the released VGGT-1B and StreamVGGT weights.

    Attributes:
        image_size: side of the trained position grid, pixels; also the default width of a stream.
        patch_size: side of a patch, pixels.
        embed_dim: C, the width of the tokens.
        depth: pairs of frame and global blocks.
        num_heads: attention heads of these blocks.
        num_register_tokens: register tokens of the aggregator, beside the camera token.
        encoder: "dinov2" (a vision transformer) or "conv" (one convolution).
        encoder_depth: blocks of the DINOv2 encoder.
        encoder_num_heads: its attention heads.
        encoder_num_registers: its register tokens; 0 for DINOv2 without registers.
        encoder_dim: its width where it differs from ``embed_dim``; its tokens are then projected.
        match_layer: number of DINOv2 blocks after which patches are compared with the first and the previous frame,
            see :class:`streamvggt.matching.SoftMatch`; None for a network without this (the released ones).
        match_dim: width of the descriptors that are compared.
        camera_depth: blocks of the camera head.
        camera_num_heads: its attention heads.
        camera_iterations: its refinement rounds.
        camera_reads_patches: whether the camera head reads the mean of a frame's patches beside its camera token.
        dense_features: width of the dense heads' fusion.
        dense_channels: width of each of the four levels that they read.
        dense_layers: the aggregator layers that they read, counted from 0.
        track: sizes of the tracker, None for a network without one.
        attention: "causal" (a frame attends to itself and its past) or "full" (to all frames).
    """

    image_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    num_register_tokens: int = 4
    encoder: Literal["dinov2", "conv"] = "dinov2"
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    encoder_num_registers: int = 4
    encoder_dim: int | None = None
    match_layer: int | None = None
    match_dim: int = 64
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    camera_reads_patches: bool = False
    dense_features: int = 256
    dense_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dense_layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    track: TrackConfig | None = TrackConfig()
    attention: Literal["causal", "full"] = "causal"

    def __post_init__(self) -> None:
        for name, value in (("encoder", ("dinov2", "conv")), ("attention", ("causal", "full"))):
            if getattr(self, name) not in value:
                raise ValueError(f"{name} must be one of {value}, got {getattr(self, name)!r}")
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a positive multiple of patch_size {self.patch_size}"
            )
        if self.dense_features % 8 or any(channels % 4 for channels in self.dense_channels):
            raise ValueError(
                f"dense_features must be a multiple of 8 and dense_channels of 4, got {self.dense_features} and "
                f"{self.dense_channels}: position maps are sines and cosines of x and y"
            )
        if self.camera_iterations < 1:
            raise ValueError(f"camera_iterations must be at least 1, got {self.camera_iterations}")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} over num_heads {self.num_heads} must be a multiple of 4: "
                "rotary position embedding turns pairs in two halves of each head"
            )
        for name, dim in (("encoder_num_heads", self.encoder_width), ("camera_num_heads", 2 * self.embed_dim)):
            if dim % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} must divide the width {dim} of its tokens")
        if self.match_layer is not None and (
            self.encoder != "dinov2" or not 1 <= self.match_layer <= self.encoder_depth
        ):
            raise ValueError(
                f"match_layer counts blocks of a DINOv2 encoder, 1..{self.encoder_depth}, got {self.match_layer} with "
                f"encoder={self.encoder!r}"
            )
        if len(self.dense_layers) != 4 or not all(0 <= layer < self.depth for layer in self.dense_layers):
            raise ValueError(f"dense_layers must be four layers in 0..{self.depth - 1}, got {self.dense_layers}")

    @property
    def encoder_width(self) -> int:
        """Width of the encoder's tokens."""
        return self.encoder_dim or self.embed_dim

    @property
    def special_tokens(self) -> int:
        """Tokens of a frame before its patches: the camera token and the registers."""
        return 1 + self.num_register_tokens

    @property
    def can_refine(self) -> bool:
        """Whether sessions can find cameras by the patches that frames share, see :class:`streamvggt.StreamSession`."""
        return self.match_layer is not None

    def tokens_per_frame(self, height: int, width: int) -> int:
        """P, the tokens of a frame of ``height x width`` pixels."""
        return self.special_tokens + (height // self.patch_size) * (width // self.patch_size)

    def cached_frame_bytes(
        self, height: int, width: int, bytes_per_number: int = 4, *, storage: Literal["native", "int8"] = "native"
    ) -> int:
        """Memory that a stream takes for each frame it holds, without point tracks.

        Args:
            height: of the processed image, pixels.
            width: likewise.
            bytes_per_number: of the aggregator's keys and values, 2 in half precision; the camera head's take 4.
            storage: "int8" for keys and values in 8 bits, whatever their precision was, with their scales.
        """
        tokens = self.tokens_per_frame(height, width)
        blocks = self.depth * tokens * self.embed_dim * (1 if storage == "int8" else bytes_per_number)
        # In bfloat16: one for a value in each head, and one for each channel of a frame's keys.
        scales = 2 * self.depth * (tokens * self.num_heads + self.embed_dim) if storage == "int8" else 0
        camera = self.camera_iterations * self.camera_depth * 2 * self.embed_dim * 4
        prototype = self.embed_dim * 4  # what policies compare, see streamvggt.policies
        return 2 * (blocks + camera) + scales + prototype

    @classmethod
    def vggt_1b(cls, attention: Literal["causal", "full"] = "causal") -> StreamVGGTConfig:
        """The released sizes: 1.26 billion parameters."""
        return cls(attention=attention)

    @classmethod
    def small(cls, attention: Literal["causal", "full"] = "causal") -> StreamVGGTConfig:
        """The sizes of the bundled model: DINOv2 ViT-S/14 features, four pairs of blocks 256 wide, no tracker."""
        return cls(
            image_size=224,
            embed_dim=256,
            depth=4,
            num_heads=4,
            encoder_dim=384,
            encoder_depth=12,
            encoder_num_heads=6,
            encoder_num_registers=0,
            match_layer=6,
            camera_depth=1,
            camera_iterations=1,
            camera_num_heads=8,
            camera_reads_patches=True,
            dense_features=48,
            dense_channels=(32, 64, 128, 128),
            dense_layers=(0, 1, 2, 3),
            track=None,
            attention=attention,
        )

    @classmethod
    def tiny(cls) -> StreamVGGTConfig:
        """Under a million parameters, for tests: every part of the network is there, nothing is trained."""
        return cls(
            image_size=112,
            embed_dim=48,
            depth=4,
            num_heads=4,
            encoder_depth=2,
            encoder_num_heads=4,
            camera_depth=2,
            camera_num_heads=4,
            dense_features=16,
            dense_channels=(8, 16, 24, 24),
            dense_layers=(0, 1, 2, 3),
            track=TrackConfig(features=16, correlation_levels=3, correlation_radius=2, hidden_size=32, depth=2),
        )

    def to_json(self) -> str:
        """This configuration as JSON text; :meth:`from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StreamVGGTConfig:
        """Build the configuration that ``text`` describes.

        Raises:
            ValueError: the text is not JSON, or names a size that this version does not know.
        """
        values: dict[str, Any] = json.loads(text)
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"configuration has unknown sizes {sorted(unknown)}; it needs a newer streamvggt")
        for name in ("dense_channels", "dense_layers"):
            if name in values:
                values[name] = tuple(values[name])
        if values.get("track") is not None:
            values["track"] = TrackConfig(**values["track"])
        return cls(**values)
