"""Checks of what visitors hand in, before anything is decoded at length or a network is asked."""

from __future__ import annotations

import html
import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamvggt import Frame, VideoError, VideoInfo, describe_video, read_frames, to_rgb

from .settings import PATCH, Limits, RunSettings


class InputError(ValueError):
    """Raised for an input that cannot be used; the message is shown to the visitor."""


@dataclass(frozen=True)
class Clip:
    """A checked input.

    Attributes:
        title: a short name for people, free of paths and control characters.
        total: number of frames that will come, or None where the file does not tell.
        note: a remark for the visitor, or "".
        paths: the video, or the images in order.
        is_video: whether ``paths`` is one video.
    """

    title: str
    total: int | None
    note: str
    paths: tuple[Path, ...]
    is_video: bool
    live: bool = False

    def close(self) -> None:
        """See :class:`demo.run.Source`: nothing to wait for."""

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.paths)

    def kept_in(self, folder: Path) -> Clip:
        """Return this clip with files of its own in ``folder``: links where that can be, else copies."""
        kept = [folder / str(number) / path.name for number, path in enumerate(self.paths)]
        for path, place in zip(self.paths, kept, strict=True):
            place.parent.mkdir(parents=True)
            try:
                place.hardlink_to(path)
            except OSError:  # on another disk
                shutil.copyfile(path, place)
        return replace(self, paths=tuple(kept))

    def frames(self, settings: RunSettings, limits: Limits, has_ended: Callable[[], bool]) -> Iterator[Frame]:
        """Decode, one frame at a time.

        Raises:
            InputError: a frame cannot be decoded.
        """
        source = self.paths[0] if self.is_video else list(self.paths)
        try:
            frames = read_frames(source, fps=settings.fps, max_frames=settings.max_frames, stop=has_ended)
            # A recording that does not tell its length is cut where a longer video would have been refused.
            yield from takewhile(lambda frame: not self.is_video or frame.time_s <= limits.duration_s, frames)
        except VideoError as error:
            raise InputError(_without_folders(str(error), self.paths)) from error


def check_video(path: str | None, settings: RunSettings, limits: Limits) -> Clip:
    """Look at a video before it is decoded.

    Raises:
        InputError: there is none, or it is too large, too long, or not a video.
    """
    if not path:
        raise InputError("Choose or record a video first.")
    title = short_name(path)
    info = _described(Path(path), title, limits)
    if info.duration_s is not None and info.duration_s > limits.duration_s:
        raise InputError(
            f"{title} is {_minutes(info.duration_s)} long; at most {_minutes(limits.duration_s)} are taken. Cut a part."
        )
    total, note = None, ""
    if info.num_frames == 1:
        total, note = 1, "One frame only: turn on a video to see a scene grow."
    elif info.duration_s is not None:
        rate = min(settings.fps, info.fps or settings.fps)
        available = max(1, int(info.duration_s * rate + 0.5))
        total = min(available, settings.max_frames)
        if total < available:
            note = f"The first {total} of about {available} frames are taken."
    return Clip(title, total, note, (Path(path),), True)


def check_images(paths: Sequence[str] | None, settings: RunSettings, limits: Limits) -> Clip:
    """Look at several images before they are decoded.

    Raises:
        InputError: there are none or too many; one is too large or not an image, or all together are; or their shapes
            differ.
    """
    if not paths:
        raise InputError("Choose some images first.")
    if len(paths) > limits.images:
        raise InputError(f"{len(paths):,} images are too many; at most {limits.images} are taken. Leave some out.")
    shapes: dict[int, str] = {}  # by the height that the network would see, in patches
    patches_wide = settings.seen_width_px // PATCH
    for path in paths:
        title = short_name(path)
        info = _described(Path(path), title, limits)
        patches_high = min(round(patches_wide * info.height / info.width), patches_wide)
        shapes.setdefault(patches_high, f"{title} has {info.width}x{info.height}")
    if len(shapes) > 1:
        first, other = list(shapes.values())[:2]
        raise InputError(f"The images must share one shape: {first}, {other} pixels. Crop them, or leave some out.")
    clip = Clip(f"{len(paths)} images", None, "", tuple(map(Path, paths)), False)
    if clip.nbytes > limits.upload_bytes:
        held, most = (f"{size / 2**20:,.0f} MB" for size in (clip.nbytes, limits.upload_bytes))
        raise InputError(f"The images have {held} together; at most {most} are taken. Make them smaller.")
    total = min(len(paths), settings.max_frames)
    note = f"The first {total} of {len(paths)} images are taken." if total < len(paths) else ""
    if total == 1:
        note = "One image only: add more to see a scene grow."
    return replace(clip, total=total, note=note)


def check_live_frame(jpeg: bytes, limits: Limits) -> None:
    """Look at the header of a frame from a visitor's camera.

    Raises:
        InputError: it is no JPEG, or too large.
    """
    from PIL import Image

    if len(jpeg) > limits.live_jpeg_bytes:
        raise InputError(f"A frame has {len(jpeg):,} bytes; at most {limits.live_jpeg_bytes:,} are taken.")
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError("A frame must be a JPEG image.") from error
    if width * height > limits.pixels or min(width, height) < PATCH or height > 4 * width:
        raise InputError(f"A frame of {width}x{height} pixels cannot be used.")


def decode_live_frame(jpeg: bytes) -> NDArray[np.uint8] | None:
    """Decode a frame from a visitor's camera, RGB ``[h, w, 3]``; None if it is damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return to_rgb(image)
    except Exception:  # Pillow raises nearly anything on a damaged file
        return None


def short_name(path: str | Path) -> str:
    """Return a file's name for people: without folders and control characters, of at most 60 characters."""
    name = re.sub(r"[\x00-\x1f\x7f<>&\"'`]+", " ", html.unescape(re.split(r"[\\/]", str(path))[-1])).strip()
    return name if len(name) <= 60 else f"{name[:45]}…{name[-14:]}"


def _described(path: Path, title: str, limits: Limits) -> VideoInfo:
    try:
        size = path.stat().st_size
        if size > limits.file_bytes:
            megabytes = limits.file_bytes / 2**20
            raise InputError(f"{title} has {size / 2**20:,.0f} MB; at most {megabytes:,.0f} MB are taken.")
        info = describe_video(path)
    except (VideoError, OSError) as error:
        raise InputError(_without_folders(str(error), (path,))) from error
    if info.width * info.height > limits.pixels:
        raise InputError(
            f"{title} has {info.width}x{info.height} pixels; at most 4K (4096x2304) is taken. Make it smaller."
        )
    if info.height > 4 * info.width or info.width > 8 * info.height or min(info.width, info.height) < PATCH:
        raise InputError(f"{title} is {info.width}x{info.height} pixels, too narrow or too small for the network.")
    return info


def _without_folders(message: str, paths: Sequence[Path]) -> str:
    """Where uploads lie is nobody's business."""
    for path in paths:
        message = message.replace(str(path), short_name(path))
    return message


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
