"""Pictures of what a stream has seen: coloured depth maps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from streamvggt.types import ByteArray, FloatArray

# Nine colours from near to far, evenly spaced: lightness falls in equal steps from 0.93 to 0.30 in OKLab (Ottosson,
# "A perceptual color space for image processing", 2020) while the hue turns from yellow by red to blue, so that equal
# steps of depth look equal, also in grey.
_NEAR_TO_FAR = np.array(
    [
        [254, 232, 150],
        [252, 195, 112],
        [252, 153, 89],
        [251, 101, 87],
        [220, 63, 128],
        [169, 49, 163],
        [107, 43, 179],
        [46, 34, 168],
        [4, 10, 141],
    ]
)
_NO_DEPTH = 128  # grey, which no depth has


def depth_picture(depth: FloatArray) -> ByteArray:
    """Colour a depth map by the logarithm of depth: near is warm and light, far is blue and dark.

    The colours span the 1st to the 99th percentile of this map, so they say what is nearer and not how near it is.

    Args:
        depth: ``[H, W]``, z in the camera, scene units.

    Returns:
        RGB uint8 ``[H, W, 3]``; pixels without a finite depth above 0 are grey.

    Raises:
        ValueError: depth is not ``[H, W]``.
    """
    if depth.ndim != 2:
        raise ValueError(f"depth must be [H, W], got {list(depth.shape)}; colour one map at a time")
    valid = np.isfinite(depth) & (depth > 0)
    log_depth = np.log(np.where(valid, depth, 1).astype(np.float32))
    low, high = np.percentile(log_depth[valid], (1, 99)) if valid.any() else (0, 0)
    place = (log_depth - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    picture = _color_table()[np.rint(place.clip(0, 255)).astype(np.uint8)]
    picture[~valid] = _NO_DEPTH
    return picture


@lru_cache(maxsize=1)
def _color_table() -> ByteArray:
    """``[256, 3]``, sRGB, near first."""
    knots = np.linspace(0, 255, len(_NEAR_TO_FAR))
    return np.stack([np.interp(np.arange(256), knots, channel) for channel in _NEAR_TO_FAR.T], axis=-1).astype(np.uint8)
