"""Pictures of hand-made depth and clouds, whose pixels are worked out on paper."""

import numpy as np
import pytest

from streamvggt.geometry import project
from streamvggt.pictures import depth_picture, overview_camera, render_points
from streamvggt.types import Camera, PointCloud

IDENTITY = np.eye(3, 4, dtype=np.float32)


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


def cloud_of(points, colors=None):
    points = np.array(points, np.float32).reshape(-1, 3)
    colors = np.zeros(points.shape) if colors is None else colors
    count = len(points)
    return PointCloud(points, np.array(colors, np.uint8), np.ones(count, np.float32), np.zeros(count, np.int32))


def camera(image_hw=(41, 61), extrinsics=IDENTITY):
    """Focal length 40; the axis goes through the middle pixel."""
    height, width = image_hw
    intrinsics = np.array([[40, 0, (width - 1) / 2], [0, 40, (height - 1) / 2], [0, 0, 1]], np.float32)
    return Camera(0, 0.0, np.array(extrinsics, np.float32), intrinsics, image_hw)


def test_a_point_is_a_disc_around_its_pixel_of_the_size_that_was_asked_for():
    # Pixel (30 + 40 * 0.25, 20 - 40 * 0.125) = (40, 15).
    picture = render_points(cloud_of([[0.5, -0.25, 2]], [[200, 60, 30]]), camera(), point_size=8)
    assert picture.shape == (41, 61, 3)
    assert picture[15, 40].tolist() == [200, 60, 30]
    covered = (255 - picture[..., 0].astype(float)) / 55
    assert covered.sum() == pytest.approx(np.pi * 4**2, rel=0.12)
    rows, columns = np.nonzero(covered)
    assert np.hypot(rows - 15, columns - 40).max() < 5
    assert (np.average(rows, weights=covered[rows, columns]), np.average(columns, weights=covered[rows, columns])) == (
        pytest.approx(15, abs=0.3),
        pytest.approx(40, abs=0.3),
    )


def test_the_nearest_of_many_points_wins_at_every_pixel():
    # The reference asks every point at every pixel; discs of one pixel and more, one distance each.
    rng = np.random.default_rng(0)
    points = rng.uniform([-1.2, -0.9, 1], [1.2, 0.9, 4], (300, 3)).astype(np.float32)
    colors = rng.integers(0, 255, (300, 3))
    view = camera()
    picture = render_points(cloud_of(points, colors), view, point_size=3)
    xy, depth = project(points.astype(np.float64), view.extrinsics, view.intrinsics)
    shown = (depth > 0) & (np.abs(xy - [30, 20]) < [42, 32]).all(-1)
    radius = 1.5 * np.minimum(np.median(depth[shown]) / depth, 4)
    expected = np.full((41, 61, 3), 255)
    inner = np.zeros((41, 61), bool)
    for y, x in np.ndindex(41, 61):
        distance = np.hypot(*(xy - [x, y]).T)
        near = np.flatnonzero(distance < radius)
        if len(near):
            front = near[np.argmin(depth[near])]
            expected[y, x] = colors[front]
            # The whole pixel is well within the front disc, and no nearer disc touches it.
            others = np.flatnonzero(depth < depth[front])
            inner[y, x] = distance[front] < radius[front] - 1.6 and (distance[others] > radius[others] + 1.6).all()
        else:
            inner[y, x] = (distance > radius + 1.6).all()
    assert inner.sum() > 60 and (expected[inner] < 255).any()
    np.testing.assert_array_equal(picture[inner], expected[inner])


def test_few_points_are_drawn_larger_so_that_a_surface_closes():
    grid = np.stack(np.meshgrid(np.linspace(-0.7, 0.7, 20), np.linspace(-0.5, 0.5, 20), [1]), -1)  # 3 pixels apart
    filled = [
        (render_points(cloud_of(grid), camera((82, 122)), point_size=size)[25:55, 40:80] == 0).mean()
        for size in (None, 2)
    ]
    assert filled[0] > 0.97
    assert filled[1] < 0.7


def test_points_behind_and_beside_the_camera_leave_the_background():
    points = [[0, 0, -1], [0, 0, 0], [100, 0, 1], [0, -100, 1]]
    picture = render_points(cloud_of(points), camera(), background=(10, 20, 30))
    np.testing.assert_array_equal(picture, np.broadcast_to([10, 20, 30], (41, 61, 3)))
    assert (render_points(cloud_of([]), camera()) == 255).all()


def test_discs_that_stick_out_of_the_picture_are_cut_at_its_border():
    # Their centres are all around the border, inside and outside, with the largest discs there are.
    edge = [[x, y, 1] for x in np.linspace(-0.9, 0.9, 61) for y in (-0.6, 0.6)]
    edge += [[x, y, 1] for x in (-0.9, 0.9) for y in np.linspace(-0.6, 0.6, 41)]
    picture = render_points(cloud_of(edge), camera(), point_size=12)
    assert (picture[18:23, 28:33] == 255).all()
    assert (picture[0] < 255).all() and (picture[:, -1] < 255).all()


def ring_of_cameras():
    """Three cameras beside each other that look along z with y down."""
    return [camera(extrinsics=np.column_stack([np.eye(3), [-x, 0, 0]])) for x in (-1, 0, 1)]


def test_an_overview_sees_nine_tenths_of_the_points_from_the_front():
    points = np.random.default_rng(0).normal(size=(2000, 3)) * [2, 1, 0.5] + [1, 2, 10]
    view = overview_camera(cloud_of(points), ring_of_cameras(), (480, 640), pitch_deg=0)
    xy, depth = project(points, view.extrinsics.astype(float), view.intrinsics.astype(float))
    inside = (depth > 0) & (xy > -0.5).all(-1) & (xy < [639.5, 479.5]).all(-1)
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(view.extrinsics[:, :3], np.eye(3), atol=1e-6)
    xy, _ = project(np.median(points, axis=0), view.extrinsics.astype(float), view.intrinsics.astype(float))
    np.testing.assert_allclose(xy, [319.5, 239.5], atol=0.01)


def test_an_overview_turned_right_and_raised_looks_left_and_down():
    cloud = cloud_of(np.random.default_rng(0).normal([0, 0, 10], size=(500, 3)))
    view = overview_camera(cloud, ring_of_cameras(), (480, 640), yaw_deg=30, pitch_deg=20)
    rotation = view.extrinsics[:, :3].astype(float)
    center = -rotation.T @ view.extrinsics[:, 3]
    toward = np.median(cloud.points, axis=0) - center
    forward = toward / np.linalg.norm(toward)
    np.testing.assert_allclose(rotation[2], forward, atol=1e-6)
    assert forward[1] == pytest.approx(np.sin(np.radians(20)))  # y is down
    assert np.degrees(np.arctan2(-forward[0], forward[2])) == pytest.approx(30)  # it stands on the right, looks left
    assert rotation[0, 1] == pytest.approx(0, abs=1e-6)  # the horizon is level


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="point_size must be a positive number of pixels, got 0"):
        render_points(cloud_of([]), camera(), point_size=0)
    with pytest.raises(ValueError, match="got 0 points and 1 cameras"):
        overview_camera(cloud_of([]), [camera()], (10, 10))
    with pytest.raises(ValueError, match="fov_y_deg must be between 0 and 180 degrees, got 180"):
        overview_camera(cloud_of([[0, 0, 1]]), [camera()], (10, 10), fov_y_deg=180)
