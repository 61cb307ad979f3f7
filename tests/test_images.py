"""Pictures to RGB and to the network's input, and the way back, against PIL and numbers by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from streamvggt.images import (
    from_source_xy,
    preprocess,
    to_rgb,
    to_source_intrinsics,
    to_source_map,
    to_source_xy,
)
from streamvggt.types import Placement

HALF_SIZE = Placement(source_hw=(80, 60), resized_hw=(40, 30), offset_xy=(0, 5), image_hw=(30, 30))


def reopened(image, kind, **options):
    """The image as a reader would meet it: written to a file and opened again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def random_rgb(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_rgb_comes_out_as_it_went_in():
    rgb = random_rgb(5, 7)
    np.testing.assert_array_equal(to_rgb(rgb), rgb)
    np.testing.assert_array_equal(to_rgb(reopened(Image.fromarray(rgb), "PNG")), rgb)
    reversed_channels = to_rgb(rgb[..., ::-1])
    np.testing.assert_array_equal(reversed_channels, rgb[..., [2, 1, 0]])
    assert reversed_channels.flags.c_contiguous


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1)])
def test_grey_becomes_three_equal_channels(shape):
    grey = np.array([0, 7, 128, 255], np.uint8)
    assert to_rgb(grey.reshape(shape)).reshape(4, 3).tolist() == [[v] * 3 for v in (0, 7, 128, 255)]
    assert to_rgb(reopened(Image.fromarray(grey.reshape(2, 2)), "PNG")).reshape(4, 3)[:, 1].tolist() == [0, 7, 128, 255]


def test_transparency_is_put_over_white():
    rgba = np.array([[[200, 0, 100, 0], [200, 0, 100, 255], [200, 0, 100, 51]]], np.uint8)
    # 51 / 255 is a fifth: 200 / 5 + 255 * 4 / 5 = 244, 204, 224.
    expected = [[[255, 255, 255], [200, 0, 100], [244, 204, 224]]]
    assert to_rgb(rgba).tolist() == expected
    assert to_rgb(reopened(Image.fromarray(rgba), "PNG")).tolist() == expected


def test_grey_with_transparency_is_put_over_white():
    grey_alpha = np.array([[[100, 0], [100, 255], [100, 51]]], np.uint8)
    expected = [[[255] * 3, [100] * 3, [224] * 3]]
    assert to_rgb(grey_alpha).tolist() == expected
    assert to_rgb(reopened(Image.fromarray(grey_alpha, "LA"), "PNG")).tolist() == expected


def test_a_palette_with_a_transparent_entry_shows_white_there():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert to_rgb(reopened(image, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert to_rgb(reopened(image, "PNG", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bits_become_eight_rounded_to_nearest():
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 255]  # 128 / 257 = 0.498, 129 / 257 = 0.502, 32768 / 257 = 127.502
    assert to_rgb(deep)[0, :, 0].tolist() == expected
    picture = reopened(Image.fromarray(deep), "PNG")
    assert picture.mode == "I;16"
    assert to_rgb(picture)[0, :, 2].tolist() == expected
    assert to_rgb(np.stack([deep, deep[:, ::-1], deep], axis=-1))[0, :, 1].tolist() == expected[::-1]


def test_one_bit_and_cmyk_pictures_become_rgb():
    bits = reopened(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG")
    assert bits.mode == "1"
    assert to_rgb(bits).tolist() == [[[0] * 3, [255] * 3]]
    cmyk = reopened(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")
    assert cmyk.mode == "CMYK"
    assert to_rgb(cmyk).tolist() == [[[0, 255, 255]]]


def test_a_photograph_is_turned_upright_as_its_exif_orientation_says():
    # Orientation 6: the first row of the file is the right-hand side of the scene.
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = random_rgb(2, 3)
    turned = to_rgb(reopened(Image.fromarray(rgb), "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(rgb, k=-1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 5, 3), 0.5, np.float32), r"float32 \[4, 5, 3\] with values 0.5 to 0.5; multiply by 255 and cast"),
        (np.ones((4, 5), bool), r"bool \[4, 5\] with values True to True; multiply by 255 and cast"),
        (np.full((4, 5), 300), r"int64 \[4, 5\] with values 300 to 300; scale to 0..255"),
        (np.zeros((3, 4, 5, 3), np.uint8), r"got uint8 \[3, 4, 5, 3\]"),
        (np.zeros((3, 40, 50), np.uint8), r"got uint8 \[3, 40, 50\]"),
        (np.zeros((0, 4, 3), np.uint8), r"at least one pixel, got uint8 \[0, 4, 3\]"),
        (Image.new("F", (2, 2)), "mode 'F' has no fixed range"),
        ("photo.png", "got str; open files first"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_came_and_what_to_do(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image)


@pytest.mark.parametrize(
    ("source_hw", "mode", "resized_hw", "offset_xy", "image_hw"),
    [
        ((1080, 1920), "crop", (294, 518), (0, 0), (294, 518)),
        ((480, 640), "crop", (392, 518), (0, 0), (392, 518)),
        ((1920, 1080), "crop", (924, 518), (0, 203), (518, 518)),
        ((518, 518), "crop", (518, 518), (0, 0), (518, 518)),
        ((20, 10000), "crop", (14, 518), (0, 0), (14, 518)),
        ((1080, 1920), "pad", (294, 518), (0, -112), (518, 518)),
        ((1920, 1080), "pad", (518, 294), (-112, 0), (518, 518)),
        ((10000, 20), "pad", (518, 14), (-252, 0), (518, 518)),
    ],
)
def test_processed_sizes_are_those_of_the_released_preprocessing(source_hw, mode, resized_hw, offset_xy, image_hw):
    values, placement = preprocess(np.zeros((*source_hw, 3), np.uint8), mode=mode)
    assert values.shape == (3, *image_hw)
    assert values.dtype == np.float32
    assert placement == Placement(source_hw, resized_hw, offset_xy, image_hw)


def test_the_cropped_image_is_the_middle_of_pils_bicubic_resize():
    rgb = random_rgb(90, 40)
    values, placement = preprocess(rgb, size=56)
    resized = np.asarray(Image.fromarray(rgb).resize((56, 126), Image.Resampling.BICUBIC))
    assert placement.offset_xy == (0, 35)
    np.testing.assert_array_equal(values, resized[35:91].transpose(2, 0, 1) / np.float32(255))
    assert values.flags.c_contiguous


def test_the_padded_image_is_pils_bicubic_resize_between_white_bars():
    rgb = random_rgb(90, 40)
    values, _ = preprocess(rgb, size=56, mode="pad")
    resized = np.asarray(Image.fromarray(rgb).resize((28, 56), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(values[:, :, 14:42], resized.transpose(2, 0, 1) / np.float32(255))
    assert (values[:, :, :14] == 1).all()
    assert (values[:, :, 42:] == 1).all()


def test_values_are_between_zero_and_one_whatever_the_picture():
    black_and_white = np.zeros((30, 30), np.uint8)
    black_and_white[:, 15:] = 255  # bicubic overshoots on both sides of such an edge
    values, _ = preprocess(black_and_white, size=56)
    assert (values.min(), values.max()) == (0, 1)


def test_another_patch_size_gives_multiples_of_it():
    assert preprocess(random_rgb(30, 40), size=64, patch_size=16)[0].shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (random_rgb(4, 4), {"size": 500}, "multiple of the patch size 14, got 500; use 504"),
        (random_rgb(4, 4), {"size": 0}, "got 0; use 14"),
        (random_rgb(4, 4), {"mode": "stretch"}, '"crop" or "pad", got \'stretch\''),
        (random_rgb(1010, 10), {}, 'too narrow to crop; use mode="pad"'),
    ],
)
def test_preprocess_refuses_what_it_cannot_do_and_says_what_works(image, options, message):
    with pytest.raises(ValueError, match=message):
        preprocess(image, **options)


def test_points_move_as_calculated_by_hand():
    # Half the size: processed pixel 0 covers source pixels 0 and 1, so its centre is at 0.5. Five rows were cut off.
    np.testing.assert_allclose(to_source_xy([[0, 0], [3, -5]], HALF_SIZE), [[0.5, 10.5], [6.5, 0.5]])
    np.testing.assert_allclose(from_source_xy([[0.5, 10.5], [-0.5, -0.5]], HALF_SIZE), [[0, 0], [-0.5, -5.5]])
    assert to_source_xy(np.zeros((2, 2), np.float32), HALF_SIZE).dtype == np.float32


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("source_hw", [(300, 123), (123, 300), (50, 50)])
def test_points_return_from_the_way_there_and_back(source_hw, mode):
    _, placement = preprocess(random_rgb(*source_hw), size=140, mode=mode)
    xy = np.random.default_rng(1).uniform(-20, 320, (5, 8, 2))
    np.testing.assert_allclose(to_source_xy(from_source_xy(xy, placement), placement), xy, atol=1e-10)


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("source_hw", [(600, 300), (300, 600), (40, 50)])
def test_a_spot_lands_where_the_placement_says(source_hw, mode):
    h, w = source_hw
    spot_xy = np.array([0.3 * w, 0.55 * h])
    v, u = np.mgrid[:h, :w]
    spot = np.exp(-((u - spot_xy[0]) ** 2 + (v - spot_xy[1]) ** 2) / (2 * (0.04 * w) ** 2))
    values, placement = preprocess((255 * spot).round().astype(np.uint8), size=140, mode=mode)
    brightness = np.where(values[0] < 1, values[0], 0) if mode == "pad" else values[0]
    rows, columns = np.mgrid[: values.shape[1], : values.shape[2]]
    center_xy = np.array([(brightness * columns).sum(), (brightness * rows).sum()]) / brightness.sum()
    np.testing.assert_allclose(center_xy, from_source_xy(spot_xy, placement), atol=0.1)


def test_a_point_projects_to_the_same_place_of_the_source_with_the_source_intrinsics():
    placement = Placement(source_hw=(90, 40), resized_hw=(126, 60), offset_xy=(2, 35), image_hw=(56, 56))
    intrinsics = np.array([[70.0, 0, 28], [0, 80, 27], [0, 0, 1]])
    moved = to_source_intrinsics(intrinsics, placement)
    np.testing.assert_allclose(moved[[0, 1], [0, 1]], [70 * 40 / 60, 80 * 90 / 126])
    point = np.array([0.1, -0.2, 1.5])
    there, here = ((k @ point)[:2] / point[2] for k in (moved, intrinsics))
    np.testing.assert_allclose(there, to_source_xy(here, placement))
    assert intrinsics[0, 0] == 70


@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_ramp_comes_back_to_the_source_grid_as_a_ramp_with_the_cropped_rows_filled(channels):
    v, u = np.mgrid[:30, :30].astype(np.float32)
    ramp = np.stack([u, v + 100], axis=-1) if channels else u + 2 * v
    back = to_source_map(ramp, HALF_SIZE)
    assert back.shape == (80, 60, *channels)
    assert back.dtype == np.float32
    assert np.isnan(back[:10]).all()
    assert np.isnan(back[70:]).all()
    assert np.isfinite(back[10:70]).all()
    # Source pixel (20, 31) has its centre at processed (9.75, 10.25).
    np.testing.assert_allclose(back[31, 20], [9.75, 110.25] if channels else 9.75 + 2 * 10.25)


def test_a_map_at_the_same_size_comes_back_unchanged():
    array = np.random.default_rng(2).random((28, 42))
    np.testing.assert_array_equal(to_source_map(array, Placement((28, 42), (28, 42), (0, 0), (28, 42))), array)


def test_bringing_a_map_back_agrees_with_pils_bilinear_enlargement():
    array = np.random.default_rng(3).random((14, 28)).astype(np.float32)
    back = to_source_map(array, Placement((50, 90), (14, 28), (0, 0), (14, 28)))
    np.testing.assert_allclose(back, Image.fromarray(array).resize((90, 50), Image.Resampling.BILINEAR), atol=1e-5)


@pytest.mark.parametrize("source_hw", [(20, 40), (200, 400), (400, 200)])
def test_padding_does_not_blend_into_the_picture_that_fills_the_source(source_hw):
    _, placement = preprocess(random_rgb(*source_hw), size=56, mode="pad")
    array = np.full((56, 56), np.nan)
    array[np.s_[14:42] if source_hw[0] < source_hw[1] else np.s_[:, 14:42]] = 5
    back = to_source_map(array, placement, fill=0)
    assert back.shape == source_hw
    assert (back == 5).all()


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"H, W = \(30, 30\), got \[30, 31\]"):
        to_source_map(np.zeros((30, 31)), HALF_SIZE)
