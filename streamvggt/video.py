"""Frames from a video, an animated image, a folder of images or a list of them, one at a time."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from .images import to_rgb
from .types import ByteArray, FloatArray, Frame

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image

logger = logging.getLogger(__name__)

T = TypeVar("T")

_IMAGE_FORMATS = frozenset(("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"))
# The second page of a TIFF or the second picture of a phone's JPEG is no later moment.
_ANIMATED_FORMATS = frozenset(("GIF", "PNG", "WEBP", "AVIF"))

# Matroska and WebM round time stamps to milliseconds; a frame that is early by no more has reached its time.
_ROUNDING_S = 1e-3

# Transfer characteristics of ITU-T H.273.
_PQ, _HLG = 16, 18
_REFERENCE_WHITE_NITS = 203.0  # ITU-R BT.2408
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_SHOULDER = 0.6  # of the reference white
_MAX_LIGHT = 4.0  # reference whites; what is brighter shows as white
_NUM_DISPLAY_CODES = 4096


class VideoError(ValueError):
    """Raised for a source of frames that cannot be read; the message names the file and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about itself before it is decoded. Only the size is certain.

    Attributes:
        width: of the frames as :func:`read_frames` yields them (turned upright, square pixels), pixels.
        height: likewise.
        duration_s: seconds, or None where the file does not tell (live recordings, animated images).
        fps: mean frames per second, or None.
        num_frames: number of frames, or None.
        codec: name of the video codec or image format, such as "h264" or "gif".
    """

    width: int
    height: int
    duration_s: float | None
    fps: float | None
    num_frames: int | None
    codec: str


def read_frames(
    source: str | Path | Sequence[str | Path | ByteArray],
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Frame]:
    """Yield the frames of a video, an image, a folder of images or a list, one at a time.

    Nothing is kept: memory stays flat however long the video is. The file is closed when the last frame is out, on an
    error, and when the generator is closed. Frames come as a viewer shows them: turned upright, with square pixels,
    8 bit. A few damaged packets cost their frames only, and a video that was cut short yields what there is; both are
    logged.

    Args:
        source: path of a video, an animated image (GIF, WebP, PNG, AVIF) or a still image; path of a folder, of which
            the images are taken in natural order (``frame2`` before ``frame10``; hidden files and other files are
            left out); or a list of image paths and uint8 arrays ``[h, w, 3]``.
        fps: frames per second to sample by time stamp, > 0: a frame is taken when its time reaches the next multiple
            of ``1 / fps``, so that each frame comes at most once; None for every frame. Folders and lists have no
            time stamps: all of their images are taken, and ``fps`` (1 if None) is the rate at which they were made.
        max_frames: stop after so many frames, >= 1; None for all.
        stop: asked before each frame of a video or an animation, also those between the samples: a file may have very
            many of them. True ends the reading.

    Yields:
        Frame: RGB, uint8 ``[h, w, 3]``; ``index`` counts the yielded frames; ``time_s`` starts at 0. Images of a folder
        keep their own sizes.

    Raises:
        VideoError: at the call where the source is missing, empty or holds no image; while iterating where a file
            cannot be decoded or is too large.
        ValueError: ``fps`` or ``max_frames`` is out of range.
        TypeError: ``source`` is neither a path nor a list.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a finite number above 0, or None for every frame; got {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, or None for all; got {max_frames}")
    if isinstance(source, list | tuple):
        if not source:
            raise VideoError("the list of images is empty; give at least one path or array")
        return _limited(_stills([_checked_item(item, i) for i, item in enumerate(source)], fps), max_frames)
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a path or a list of image paths and arrays, got {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        return _limited(_stills(_images_in(path), fps), max_frames)
    _check_file(path)
    if not _is_image(path):
        return _limited(_video_frames(path, fps, stop), max_frames)
    with _opened_image(path) as image:
        animated = _num_pictures(image) > 1
    return _limited(_animation_frames(path, fps, stop) if animated else _stills([path], fps), max_frames)


def describe_video(path: str | Path) -> VideoInfo:
    """Tell size, duration and codec of a video or an image, decoding no more than its first frame.

    Args:
        path: a video or an image, as :func:`read_frames` takes it (no folder).

    Raises:
        VideoError: the file is missing, empty, or not a video.
    """
    path = Path(path)
    _check_file(path)
    if _is_image(path):
        with _opened_image(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # the four orientations that swap the axes
                width, height = height, width
            return VideoInfo(width, height, None, None, _num_pictures(image), str(image.format).lower())
    with _opened_video(path) as (container, stream):
        frame = next(_decoded(container, stream, path))
        width, height = _square_pixel_width(frame, stream), frame.height
        if _quarter_turns(frame) % 2:
            width, height = height, width
        return VideoInfo(
            width,
            height,
            _declared_duration_s(container, stream),
            float(stream.average_rate) if stream.average_rate else None,
            stream.frames or None,
            stream.codec_context.codec.canonical_name,
        )


def _limited(frames: Generator[Frame, None, None], max_frames: int | None) -> Iterator[Frame]:
    with closing(frames):
        yield from islice(frames, max_frames)


def _sampled(timed: Iterable[tuple[T, float]], fps: float | None) -> Iterator[tuple[T, float]]:
    """Keep an item when its time in seconds reaches the next multiple of ``1 / fps``."""
    last_tick = -1
    for item, time_s in timed:
        tick = math.floor((time_s + _ROUNDING_S) * fps) if fps else last_tick + 1
        if tick > last_tick:
            last_tick = tick
            yield item, time_s


class _Stopped(Exception):  # noqa: N818 (it is no error)
    """Raised through all that reads a file when the caller wants no more."""


def _until(items: Iterable[T], stop: Callable[[], bool]) -> Iterator[T]:
    for item in items:
        if stop():
            raise _Stopped
        yield item


# Files and folders


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"{path} does not exist; give the path of a video, an image or a folder of images")
    if not path.is_file():
        raise VideoError(f"{path} is not a file; give the path of a video or an image")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes); copy or record it again")


def _checked_item(item: object, index: int) -> Path | ByteArray:
    if isinstance(item, str | Path):
        _check_file(Path(item))
        return Path(item)
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        return item
    kind = f"an array of {item.dtype}" if isinstance(item, np.ndarray) else type(item).__name__
    raise VideoError(f"item {index} of the list must be an image path or a uint8 array [h, w, 3], got {kind}")


def image_files(folder: Path) -> list[Path]:
    """List the files of a folder that are called images, in any order; hidden ones are left out."""
    from PIL import Image

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _IMAGE_FORMATS}
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()]
    return [path for path in files if path.suffix.lower() in suffixes]


def _images_in(folder: Path) -> list[Path]:
    paths = image_files(folder)
    if not paths:
        raise VideoError(f"folder {folder} holds no images; needed are files such as .jpg or .png")
    for path in paths:
        _check_file(path)
    return sorted(paths, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


# Images


def _is_image(path: Path) -> bool:
    """Tell by the content, since a GIF may be called ``.mp4``."""
    from PIL import UnidentifiedImageError

    try:
        with _opened_image(path):
            return True
    except VideoError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return False
        raise


@contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image and turn whatever goes wrong before it is closed into a VideoError."""
    from PIL import Image

    Image.init()
    try:
        with Image.open(path, formats=sorted(_IMAGE_FORMATS & Image.OPEN.keys())) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path} is too large an image: {error}; make it smaller") from error
    except Exception as error:  # the decoders raise nearly anything on a damaged file
        raise VideoError(f"{path} is not a readable image ({error}); save it again or leave it out") from error


def _num_pictures(image: Image.Image) -> int:
    """Count the moments that an image shows: 1 unless it is animated."""
    if image.format not in _ANIMATED_FORMATS:
        return 1
    return getattr(image, "n_frames", 1) - _has_poster(image)


def _has_poster(image: Image.Image) -> bool:
    """Tell whether the first picture is only for programs that cannot animate, as an animated PNG may have it."""
    return getattr(image, "default_image", False)


def _stills(items: Sequence[Path | ByteArray], fps: float | None) -> Generator[Frame, None, None]:
    for index, item in enumerate(items):
        time_s = index / (fps or 1.0)
        if isinstance(item, Path):
            with _opened_image(item) as image:
                pixels = to_rgb(image)
            yield Frame(pixels, index, time_s, item.name)
        else:
            try:
                pixels = to_rgb(item)
            except ValueError as error:
                raise VideoError(f"item {index} of the list: {error}") from error
            yield Frame(pixels, index, time_s)


def _animation_frames(path: Path, fps: float | None, stop: Callable[[], bool]) -> Generator[Frame, None, None]:
    with _opened_image(path) as image, suppress(_Stopped):
        for index, (picture, time_s) in enumerate(_sampled(_until(_timed_pictures(image), stop), fps)):
            yield Frame(to_rgb(picture), index, time_s)


def _timed_pictures(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    from PIL import ImageSequence

    time_ms = 0.0
    for picture in islice(ImageSequence.Iterator(image), int(_has_poster(image)), None):
        picture.load()  # WebP and AVIF tell the duration only now
        duration_ms = picture.info.get("duration") or 0
        yield picture, time_ms / 1000
        time_ms += duration_ms if duration_ms > 10 else 100  # as browsers do


# Video


def _video_frames(path: Path, fps: float | None, stop: Callable[[], bool]) -> Generator[Frame, None, None]:
    with _opened_video(path) as (container, stream), suppress(_Stopped):
        timed = _timed(_decoded(container, stream, path, stop), container, stream, path)
        for index, (decoded, time_s) in enumerate(_sampled(timed, fps)):
            yield Frame(_to_pixels(decoded, stream), index, time_s)


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    import av

    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            # With an open file and no protocol allowed, a playlist that calls itself a video cannot make ffmpeg read
            # other files or the network, and no character of the name is special.
            container = av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
            stack.enter_context(container)
        except (OSError, av.FFmpegError) as error:
            raise VideoError(
                f"{path} cannot be opened as a video or an image ({error.strerror}); it may be another kind of file, "
                "or cut short before its index: copy or convert it again"
            ) from error
        yield container, _video_stream(container, path)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    from av.stream import Disposition

    if container.format.name == "tty":  # ffmpeg plays any text file as terminal art
        raise VideoError(f"{path} is a text file; give a video, an image or a folder of images")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path} has no video stream (it has {kinds}); give a file with moving pictures")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{path} has a video stream that no decoder here knows; convert it to H.264")
    # With frame threads ("AUTO") an error while decoding leaves the process hanging at its end.
    stream.thread_type = "SLICE"
    return stream


def _decoded(
    container: InputContainer, stream: VideoStream, path: Path, stop: Callable[[], bool] = lambda: False
) -> Iterator[VideoFrame]:
    """Decode packet by packet, so that a damaged packet costs its own frames only."""
    import av

    num_frames = num_skipped = 0
    try:
        for packet in _until(container.demux(stream), stop):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                num_skipped += 1
                continue
            num_frames += len(frames)
            yield from frames
    except (av.FFmpegError, IndexError) as error:  # PyAV stumbles over a stream that begins midway in a damaged file
        logger.warning("%s cannot be read to its end: %s", path, error)
    if not num_frames:
        raise VideoError(f"no frame of {path} could be decoded; the file is damaged: copy or convert it again")
    if num_skipped:
        logger.warning("%s: skipped %d damaged packets, decoded %d frames", path, num_skipped, num_frames)


def _timed(
    frames: Iterable[VideoFrame], container: InputContainer, stream: VideoStream, path: Path
) -> Iterator[tuple[VideoFrame, float]]:
    """Add to each frame the seconds since the first one, which always grow."""
    period_s = 1 / float(stream.guessed_rate or 25)
    first_pts = None
    time_s = -period_s
    for frame in frames:
        stamp_s = None
        if frame.pts is not None and frame.time_base is not None:
            first_pts = frame.pts if first_pts is None else first_pts
            stamp_s = float((frame.pts - first_pts) * frame.time_base)
        # Bare streams have no time stamps and joined files begin theirs anew: there the frame rate counts on.
        time_s = stamp_s if stamp_s is not None and stamp_s > time_s else time_s + period_s
        yield frame, time_s
    # Some containers count their duration from zero, others from their first frame: the later end is no false alarm.
    end_s = (container.start_time or 0) / 1e6 + time_s + period_s
    declared_s = _declared_duration_s(container, stream)
    if declared_s and end_s < 0.9 * declared_s:
        logger.warning("%s ends after %.2f s of %.2f s; it may be cut short", path, end_s, declared_s)


def _declared_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _square_pixel_width(frame: VideoFrame, stream: VideoStream) -> int:
    return max(1, round(frame.width * (stream.sample_aspect_ratio or 1)))


def _quarter_turns(frame: VideoFrame) -> int:
    """Count the anticlockwise quarter turns that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def _to_pixels(frame: VideoFrame, stream: VideoStream) -> ByteArray:
    width = _square_pixel_width(frame, stream)
    if frame.color_trc in (_PQ, _HLG):
        pixels = _tone_mapped(frame.to_ndarray(format="rgb48le", width=width).astype(np.uint16), frame.color_trc)
    else:
        pixels = frame.to_ndarray(format="rgb24", width=width).astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


def _tone_mapped(codes: NDArray[np.uint16], transfer: int) -> ByteArray:
    """Bring high dynamic range, BT.2020 ``[h, w, 3]`` full range, to 8-bit sRGB."""
    linear = _linear_light(transfer)[codes].reshape(-1, 3) @ _BT2020_TO_BT709.T
    roots = np.sqrt(np.clip(linear, 0, _MAX_LIGHT, out=linear), out=linear)
    return _display_codes()[np.rint(roots * (_NUM_DISPLAY_CODES - 1) / _MAX_LIGHT**0.5).astype(np.uint16)].reshape(
        codes.shape
    )


@lru_cache(maxsize=1)
def _display_codes() -> ByteArray:
    """sRGB code of linear light by its square root (finer in the dark), from 0 to ``_MAX_LIGHT`` reference whites.

    Light is shown as it is up to 60 % of the reference white; from there a shoulder runs up to the screen's white.
    """
    light = _MAX_LIGHT * np.linspace(0, 1, _NUM_DISPLAY_CODES) ** 2
    above = 1 - _SHOULDER
    light = np.where(light < _SHOULDER, light, 1 - above * np.exp((_SHOULDER - light) / above))
    return np.rint(255 * np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


@lru_cache(maxsize=2)
def _linear_light(transfer: int) -> FloatArray:
    """Linear light of each 16-bit code, ``[65536]``, 1 at the reference white (ITU-R BT.2100, tables 4 and 5)."""
    code = np.arange(65536) / 65535
    if transfer == _PQ:
        root = code ** (32 / 2523)
        nits = 10_000 * (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        nits = 1000 * scene**1.2  # the display of 1000 nits that the system gamma 1.2 belongs to
    return (nits / _REFERENCE_WHITE_NITS).astype(np.float32)
