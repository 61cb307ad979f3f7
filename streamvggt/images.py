"""From any image to the network's input, and from the network's pixels back to the image's.

Both grids have their pixel centres at integer coordinates; :class:`~streamvggt.types.Placement` holds how one was cut
from the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .types import ByteArray, FloatArray, Placement

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_WHITE = 255
_MAX_HEIGHT_PER_WIDTH = 100  # a taller image, resized to full width before it is cropped, takes memory without bound


def to_rgb(image: PILImage | NDArray[Any]) -> ByteArray:
    """Turn an image of any common kind into RGB, uint8 ``[h, w, 3]``.

    Transparency is put over white, 16 bits become 8, grey becomes three equal channels. A PIL image is first turned
    upright as its EXIF orientation says.

    Args:
        image: a PIL image (of 8 bits a channel, one bit, a palette, or 16-bit grey), or a uint8 or uint16 array, grey
            ``[h, w]`` or ``[h, w, 1]``, grey and alpha ``[h, w, 2]``, RGB ``[h, w, 3]``, RGB and alpha ``[h, w, 4]``.

    Returns:
        uint8 ``[h, w, 3]``; an array that was so already is not copied.

    Raises:
        ValueError: it is something else; float images are not guessed at, since their range is not known.
    """
    pixels = image if isinstance(image, np.ndarray) else _pil_pixels(image)
    _require_pixels(pixels)
    if pixels.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257; rounds to nearest
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    color, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, None)
    rgb = np.broadcast_to(color, (*color.shape[:2], 3))
    return np.ascontiguousarray(rgb if alpha is None else _over_white(rgb, alpha))


def preprocess(
    image: PILImage | NDArray[Any],
    size: int = 518,
    patch_size: int = 14,
    mode: Literal["crop", "pad"] = "crop",
) -> tuple[FloatArray, Placement]:
    """Resize an image to what the network takes: sides that are multiples of the patch size, values in [0, 1].

    "crop" makes the width ``size``, keeps the aspect to the nearest whole patch, and cuts what is higher than ``size``
    equally from top and bottom. "pad" makes the longer side ``size`` and fills up to a square with white. The sizes and
    the bicubic filter are those of the released VGGT, whose weights were trained on such images.

    Args:
        image: what :func:`to_rgb` takes.
        size: width ("crop") or side ("pad") in pixels, a multiple of ``patch_size``.
        patch_size: pixels.
        mode: "crop" or "pad".

    Returns:
        RGB float32 ``[3, H, W]`` in [0, 1], and the way back to the pixels of ``image``, upright.

    Raises:
        ValueError: ``size`` is not a positive multiple of ``patch_size``, the mode is unknown, :func:`to_rgb` refuses
            the image, or "crop" is asked for one more than 100 times as high as wide, of which next to nothing stays.
    """
    from PIL import Image

    if mode not in ("crop", "pad"):
        raise ValueError(f'mode must be "crop" or "pad", got {mode!r}')
    if size < patch_size or size % patch_size:
        nearest = max(1, round(size / patch_size)) * patch_size
        raise ValueError(f"size must be a positive multiple of the patch size {patch_size}, got {size}; use {nearest}")
    rgb = to_rgb(image)
    source_h, source_w = rgb.shape[:2]
    if mode == "crop" and source_h > _MAX_HEIGHT_PER_WIDTH * source_w:
        raise ValueError(f'an image of {source_h} x {source_w} (h x w) is too narrow to crop; use mode="pad" or cut it')

    def whole_patches(length: int, scaled_by: float) -> int:
        return max(1, round(length * scaled_by / patch_size)) * patch_size

    if mode == "pad" and source_h > source_w:
        resized_h, resized_w = size, whole_patches(source_w, size / source_h)
    else:
        resized_h, resized_w = whole_patches(source_h, size / source_w), size
    height = size if mode == "pad" else min(resized_h, size)
    top, left = (resized_h - height) // 2, (resized_w - size) // 2

    resized = Image.fromarray(rgb).resize((resized_w, resized_h), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, height), (_WHITE,) * 3)
    canvas.paste(resized, (-left, -top))
    values = np.ascontiguousarray(np.asarray(canvas, np.float32).transpose(2, 0, 1) / np.float32(255))
    return values, Placement((source_h, source_w), (resized_h, resized_w), (left, top), (height, size))


def to_source_xy(xy: ArrayLike, placement: Placement) -> NDArray[np.floating[Any]]:
    """Take points ``[..., 2]`` in pixels of the processed image to pixels of the image as it came."""
    xy, offset, scale = _as_floats(xy), *_offset_and_scale(placement)
    return ((xy + offset + 0.5) * scale - 0.5).astype(xy.dtype)


def from_source_xy(xy: ArrayLike, placement: Placement) -> NDArray[np.floating[Any]]:
    """Take points ``[..., 2]`` in pixels of the image as it came to pixels of the processed image.

    Points that were cropped away land outside of ``[-0.5, W - 0.5] x [-0.5, H - 0.5]``.
    """
    xy, offset, scale = _as_floats(xy), *_offset_and_scale(placement)
    return ((xy + 0.5) / scale - 0.5 - offset).astype(xy.dtype)


def to_source_intrinsics(intrinsics: NDArray[Any], placement: Placement) -> NDArray[np.floating[Any]]:
    """Turn intrinsics ``[..., 3, 3]`` of the processed image into those of the image as it came, both in pixels."""
    moved = _as_floats(intrinsics).copy()
    _, scale = _offset_and_scale(placement)
    moved[..., 0, 0] *= scale[0]
    moved[..., 1, 1] *= scale[1]
    moved[..., :2, 2] = to_source_xy(moved[..., :2, 2], placement)
    return moved


def to_source_map(array: NDArray[Any], placement: Placement, fill: float = np.nan) -> NDArray[np.floating[Any]]:
    """Bring a dense map, such as depth, back to the pixel grid of the image as it came, by bilinear interpolation.

    Args:
        array: ``[H, W]`` or ``[H, W, C]`` on the processed image.
        placement: what :func:`preprocess` returned for the image.
        fill: value of the pixels that were cropped away.

    Returns:
        ``[h, w]`` or ``[h, w, C]``, floating point.

    Raises:
        ValueError: the map is not of the processed image's size.
    """
    if array.ndim not in (2, 3) or array.shape[:2] != placement.image_hw:
        raise ValueError(f"array must be [H, W] or [H, W, C] with H, W = {placement.image_hw}, got {list(array.shape)}")
    source_h, source_w = placement.source_hw
    diagonal = np.arange(max(source_h, source_w), dtype=np.float64)
    x, y = from_source_xy(np.stack([diagonal, diagonal], axis=-1), placement).T
    values = _as_floats(array)
    for axis, at in enumerate((y[:source_h], x[:source_w])):
        # Rows and columns of padding are no part of the picture and must not blend into its border.
        first = max(0, -placement.offset_xy[1 - axis])
        last = min(placement.image_hw[axis], first + placement.resized_hw[axis]) - 1
        values = _interpolate(values, at.clip(first, last), axis)
        outside = (at < first - 0.5) | (at > last + 0.5)
        values[outside if axis == 0 else np.s_[:, outside]] = fill
    return values


def _pil_pixels(image: PILImage) -> NDArray[Any]:
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise ValueError(f"image must be a PIL image or a numpy array, got {type(image).__name__}; open files first")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"a PIL image of mode {image.mode!r} has no fixed range; scale it to 0..255 and convert to 'L'"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return np.array(upright).astype(np.uint16)
    return np.array(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))


def _require_pixels(pixels: NDArray[Any]) -> None:
    shape = list(pixels.shape)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and shape[2] not in (1, 2, 3, 4)):
        raise ValueError(f"image must be [h, w] or [h, w, 1 to 4] with at least one pixel, got {pixels.dtype} {shape}")
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        values = f"{pixels.dtype} {shape}"
        if pixels.dtype.kind in "biuf":
            values += f" with values {pixels.min()} to {pixels.max()}"
        advice = "multiply by 255 and cast to uint8" if pixels.dtype.kind in "bf" else "scale to 0..255, cast to uint8"
        raise ValueError(f"image must be uint8 or uint16, got {values}; {advice}")


def _over_white(rgb: ByteArray, alpha: ByteArray) -> ByteArray:
    from PIL import Image

    picture = Image.fromarray(np.concatenate([rgb, alpha], axis=-1))
    white = Image.new("RGBA", picture.size, (_WHITE,) * 4)
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _as_floats(values: ArrayLike) -> NDArray[np.floating[Any]]:
    array = np.asarray(values)
    return array.astype(np.result_type(array, np.float32), copy=False)


def _offset_and_scale(placement: Placement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offset xy, and source pixels per resized pixel, xy."""
    (source_h, source_w), (resized_h, resized_w) = placement.source_hw, placement.resized_hw
    return np.array(placement.offset_xy, np.float64), np.array([source_w / resized_w, source_h / resized_h])


def _interpolate(array: NDArray[Any], at: NDArray[np.float64], axis: int) -> NDArray[Any]:
    """Sample one axis at real positions between its first and last centre."""
    low, high = np.floor(at).astype(np.intp), np.ceil(at).astype(np.intp)
    part = (at - low).astype(array.dtype).reshape(-1, *[1] * (array.ndim - 1 - axis))
    return array.take(low, axis) * (1 - part) + array.take(high, axis) * part
