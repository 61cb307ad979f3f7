"""What a visitor may choose for a run, and what the server allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from streamvggt import (
    AnchorWindow,
    CachePolicy,
    KeepAll,
    Keyframes,
    LongSession,
    PointFilter,
    StreamSession,
    StreamVGGT,
    TokenBudget,
    VoxelThinning,
)

PATCH = 14


@dataclass(frozen=True)
class ModelChoice:
    """A network on offer.

    Attributes:
        label: what the control shows.
        source: what :func:`streamvggt.load_model` takes.
        width_px: width of the frames it was trained with.
        licence: what its weights allow, shown before they are fetched.
        cell: a place belongs to the first frame that sees it; places are cells of this part of the first frame's
            median distance, larger than the errors of the network's cameras, or surfaces would show several times.
    """

    label: str
    source: str
    width_px: int
    licence: str
    cell: float


MODELS: Mapping[str, ModelChoice] = {
    "small": ModelChoice(
        "Bundled (34 M, coarse, starts at once)", "small", 224, "Bundled with this page: Apache-2.0, any use.", 0.15
    ),
    "released": ModelChoice(
        "Released StreamVGGT (1.26 B, detailed)",
        "lch01/StreamVGGT",
        518,
        "**Not for commercial use.** The first run downloads about 5 GB of public research weights (lch01/StreamVGGT) "
        "and needs as much memory; without a GPU a frame takes many seconds.",
        0.02,
    ),
}


@dataclass(frozen=True)
class MemoryChoice:
    """A rule for what a stream remembers.

    Attributes:
        label: what the control shows.
        policy: the rule, where a frame of 4:3 has so many tokens.
    """

    label: str
    policy: Callable[[int], CachePolicy]


MEMORIES: Mapping[str, MemoryChoice] = {
    "window": MemoryChoice("The first frame and the newest 15", lambda tokens: AnchorWindow(1, 15)),
    "keyframes": MemoryChoice("The 24 frames that differ most", lambda tokens: Keyframes(anchors=1, bank=15, recent=8)),
    "tokens": MemoryChoice("Parts that stand out in many frames", lambda tokens: TokenBudget(24 * tokens)),
    "all": MemoryChoice("Every frame: slower and slower", lambda tokens: KeepAll()),
}

MEMORY = "2GiB"
"""What a stream may hold at most, whatever the rule asks for."""

WIDTHS = (112, 168, 224, 294, 392, 518)
"""Widths of frames on offer, pixels."""

GEOMETRIES: Mapping[str, str] = {"depth": "Depth and camera (sharper)", "points": "Point map of the network"}


class SettingsError(ValueError):
    """Raised for a setting out of its range; the message is shown to the visitor."""


@dataclass(frozen=True)
class RunSettings:
    """The choices for one run.

    Attributes:
        fps: frames taken a second of video, 0.2 to 30.
        max_frames: frames taken at most, 1 to 300.
        width_px: width to which frames are resized, a multiple of 14 from 56 to 518; 0 takes the network's own.
            ``small`` needs 20 patches a frame, which videos up to 3:1 have from 112 on.
        model: a key of ``MODELS``, or "tiny" in tests.
        memory: a key of ``MEMORIES``.
        compress: store what is remembered in 8 bits a number.
        long: correct drift and close loops, see :class:`streamvggt.LongSession`; predictions move afterwards.
        geometry: where a point lies: "depth" by depth map and camera, "points" by the point map.
        confidence: percent of each frame's least certain points that are left out, 0 to 90.
        mask_sky: leave out what looks like sky.
        mask_black: leave out a black background.
        mask_white: leave out a white background.

    Raises:
        SettingsError: a value is out of its range.
    """

    fps: float = 2.0
    max_frames: int = 60
    width_px: int = 0
    model: str = "small"
    memory: str = "tokens"
    compress: bool = False
    long: bool = False
    geometry: Literal["depth", "points"] = "depth"
    confidence: float = 10.0
    mask_sky: bool = False
    mask_black: bool = False
    mask_white: bool = False

    def __post_init__(self) -> None:
        _require_between("Frames a second", self.fps, 0.2, 30)
        _require_between("Frames at most", self.max_frames, 1, 300)
        _require_between("Least certain points to leave out", self.confidence, 0, 90)
        if self.width_px and not (4 * PATCH <= self.width_px <= 37 * PATCH and self.width_px % PATCH == 0):
            raise SettingsError(f"The width must be 0 or a multiple of 14 from 56 to 518 pixels, got {self.width_px}.")
        _require_one_of("model", self.model, [*MODELS, "tiny"])
        _require_one_of("memory", self.memory, MEMORIES)
        _require_one_of("geometry", self.geometry, GEOMETRIES)

    @classmethod
    def from_values(cls, **values: Any) -> RunSettings:
        """Build settings from what a form or a client sent: numbers become of the right type, unset ones the default.

        Raises:
            SettingsError: a value is of the wrong kind or out of its range.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        try:
            return cls(**{name: kinds[name](value) for name, value in values.items() if value is not None})
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"A setting is no number: {error}") from error

    @property
    def source(self) -> str:
        """What :func:`streamvggt.load_model` takes."""
        return MODELS[self.model].source if self.model in MODELS else self.model

    @property
    def seen_width_px(self) -> int:
        """Width of the frames that the network sees."""
        return self.width_px or (MODELS[self.model].width_px if self.model in MODELS else 8 * PATCH)

    @property
    def together(self) -> int:
        """Frames of a finished video that go through the network at once, behind the first one.

        Narrow frames take 0.8 of the time so, and the scene grows by steps of about a second; wide ones gain little.
        """
        return 4 if self.seen_width_px <= 224 else 1

    @property
    def point_filter(self) -> PointFilter:
        """Which points of a frame are shown and written."""
        return PointFilter(
            conf_percentile=self.confidence,
            mask_sky=self.mask_sky,
            mask_black=self.mask_black,
            mask_white=self.mask_white,
        )

    def thinning(self) -> VoxelThinning:
        """Begin a scene in which a place belongs to the first frame that sees it."""
        return VoxelThinning(MODELS[self.model].cell if self.model in MODELS else 0.05, dense=True)

    def session(self, model: StreamVGGT) -> StreamSession | LongSession:
        """Begin a stream as chosen."""
        width = self.seen_width_px
        tokens = model.config.tokens_per_frame(width * 3 // 4, width)
        return (LongSession if self.long else StreamSession)(
            model,
            MEMORIES[self.memory].policy(tokens),
            storage="int8" if self.compress else "native",
            memory=MEMORY,
            refine=model.config.can_refine,
            size=self.width_px or None,
            outputs={"camera", "depth"} | ({"points"} if self.geometry == "points" else set()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the choices for the manifest."""
        return asdict(self)


def _require_between(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{what} must be from {low} to {high}, got {value}.")


def _require_one_of(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise SettingsError(f"There is no {what} {value!r}; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class Limits:
    """What the server allows, and how long it keeps things.

    Attributes:
        file_bytes: largest upload.
        duration_s: longest video.
        pixels: most pixels of a frame as it comes; 8K is over, 4K under it.
        images: most images of one run.
        waiting: most runs in the queue.
        upload_bytes: most bytes of all uploads that wait or are worked on.
        run_s: longest time a run may compute.
        grace_s: a run that nobody watches ends after so long.
        live_frames: most frames of a live camera run.
        live_idle_s: a live camera run ends when no frame came for so long.
        live_jpeg_bytes: largest live frame.
        keep_s: a finished run is deleted after so long.
        keep_bytes: the oldest finished runs are deleted when all together take more.
    """

    file_bytes: int = 200 * 2**20
    duration_s: float = 600
    pixels: int = 4096 * 2304
    images: int = 300
    waiting: int = 20
    upload_bytes: int = 2 * 2**30
    run_s: float = 900
    grace_s: float = 60
    live_frames: int = 600
    live_idle_s: float = 20
    live_jpeg_bytes: int = 2 * 2**20
    keep_s: float = 24 * 3600
    keep_bytes: int = 8 * 2**30
