"""Pictures of hand-made depth and clouds, whose pixels are worked out on paper."""

import numpy as np
import pytest

from streamvggt.pictures import depth_picture


def lightness(rgb):
    """CIE L* of sRGB colours, 0 to 100, from the definition: linear light, luminance, cube root."""
    srgb = np.asarray(rgb, float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


def test_near_is_warm_and_light_and_far_is_blue_and_dark():
    near, far = depth_picture(np.geomspace(1, 8, 200, dtype=np.float32).reshape(2, 100)).reshape(-1, 3)[[0, -1]]
    assert near[0] > near[1] > near[2]
    assert far[2] > far[1] and far[2] > far[0]
    assert lightness(near) > 90 and lightness(far) < 20


def test_equal_ratios_of_depth_look_equally_far_apart():
    row = depth_picture(np.geomspace(1, 100, 1001, dtype=np.float32)[None])[0, 10:-10]
    steps = -np.diff(lightness(row[::70]))
    assert steps.min() > 0
    assert steps.max() < 1.7 * steps.mean()


def test_the_unit_of_length_changes_nothing_and_a_few_outliers_little():
    depth = np.random.default_rng(0).uniform(1, 3, (40, 50)).astype(np.float32)
    picture = depth_picture(depth)
    assert np.abs(depth_picture(1000 * depth).astype(int) - picture).max() <= 2
    depth[0, :5] = 1e6
    assert np.abs(depth_picture(depth)[1:].astype(int) - picture[1:]).max() <= 8


@pytest.mark.filterwarnings("error")
def test_pixels_without_a_depth_are_grey():
    depth = np.array([[1, 2, np.nan], [np.inf, -1, 0]], np.float32)
    grey = (depth_picture(depth) == 128).all(axis=-1)
    assert grey.tolist() == [[False, False, True], [True, True, True]]
    assert (depth_picture(np.full((2, 2), np.nan, np.float32)) == 128).all()
    assert len(np.unique(depth_picture(np.full((3, 4), 2, np.float32)).reshape(-1, 3), axis=0)) == 1


def test_a_batch_of_depth_maps_is_refused():
    with pytest.raises(ValueError, match=r"depth must be \[H, W\], got \[2, 3, 4\]"):
        depth_picture(np.ones((2, 3, 4), np.float32))
