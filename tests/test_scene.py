"""The scene against hand-made frames of a few pixels, whose points are worked out on paper."""

import weakref

import numpy as np
import pytest

from streamvggt.scene import PointFilter, Scene
from streamvggt.types import FramePrediction

KEEP_ALL = PointFilter(conf_percentile=0, edge_rtol=None, max_points=None)
IDENTITY = np.eye(3, 4, dtype=np.float32)
# Focal length 2, principal point between the rows of a 2 x 3 image and on its middle column.
INTRINSICS = np.array([[2, 0, 1], [0, 2, 0.5], [0, 0, 1]], np.float32)


def predict(depth, *, index=0, conf=None, image=None, extrinsics=IDENTITY, world_points=None, points_conf=None):
    depth = np.array(depth, np.float32)
    conf = np.full(depth.shape, 2.0) if conf is None else conf
    return FramePrediction(
        index=index,
        time_s=index / 10,
        image=np.full((*depth.shape, 3), 128, np.uint8) if image is None else np.array(image, np.uint8),
        depth=depth,
        depth_conf=np.array(conf, np.float32),
        world_points=np.zeros((*depth.shape, 3), np.float32) if world_points is None else world_points,
        world_points_conf=np.array(conf if points_conf is None else points_conf, np.float32),
        extrinsics=np.array(extrinsics, np.float32),
        intrinsics=INTRINSICS,
    )


def scene_of(*predictions, geometry="depth"):
    scene = Scene(geometry)
    for prediction in predictions:
        scene.add(prediction)
    return scene


def pixels_kept(prediction, point_filter):
    """The filter's verdict as an image: points of the map carry the number of their pixel."""
    height, width = prediction.depth.shape
    numbered = np.zeros((height, width, 3), np.float32)
    numbered[..., 0] = np.arange(height * width).reshape(height, width)
    prediction = FramePrediction(**{**vars(prediction), "world_points": numbered})
    cloud = scene_of(prediction, geometry="points").point_cloud(point_filter)
    mask = np.zeros(height * width, int)
    mask[cloud.points[:, 0].astype(int)] = 1
    return mask.reshape(height, width).tolist()


def test_depth_becomes_the_points_worked_out_by_hand():
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    cloud = scene_of(predict([[2, 4, 2], [4, 2, 8]], image=image, conf=[[1, 2, 3], [4, 5, 6]])).point_cloud(KEEP_ALL)
    # x = (u - 1) / 2 * depth, y = (v - 0.5) / 2 * depth
    expected = [[-1, -0.5, 2], [0, -1, 4], [1, -0.5, 2], [-2, 1, 4], [0, 0.5, 2], [4, 2, 8]]
    np.testing.assert_array_equal(cloud.points, np.array(expected, np.float32))
    np.testing.assert_array_equal(cloud.colors, image.reshape(6, 3))
    np.testing.assert_array_equal(cloud.confidence, [1, 2, 3, 4, 5, 6])
    assert [a.dtype for a in (cloud.points, cloud.colors, cloud.confidence, cloud.frame_index)] == [
        np.float32,
        np.uint8,
        np.float32,
        np.int32,
    ]


def test_points_of_a_moved_camera_lie_in_the_world_of_the_first():
    # This camera stands at (10, 0, 0) and looks along the world's x: its x axis is the world's -z.
    turned = [[0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, -10]]
    first, second = predict(np.full((2, 3), 2)), predict(np.full((2, 3), 2), index=7, extrinsics=turned)
    scene = scene_of(first, second)
    cloud = scene.point_cloud(KEEP_ALL)
    # Its pixel (2, 0) is at (1, -0.5, 2) in the camera: 2 ahead is +x, 1 right is -z.
    np.testing.assert_allclose(cloud.points[6 + 2], [12, -0.5, -1], atol=1e-6)
    np.testing.assert_array_equal(cloud.frame_index, [0] * 6 + [7] * 6)
    np.testing.assert_array_equal(scene.frame_points(1, KEEP_ALL).points, cloud.points[6:])
    np.testing.assert_array_equal(scene.frame_points(-1, KEEP_ALL).frame_index, [7] * 6)
    assert [camera.index for camera in scene.cameras] == [0, 7]
    np.testing.assert_array_equal(scene.cameras[1].extrinsics, np.array(turned, np.float32))
    assert (scene.cameras[1].time_s, scene.cameras[1].image_hw) == (0.7, (2, 3))


def test_point_maps_are_taken_as_they_are_with_their_own_confidence():
    points = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    conf = [[9, 8, 7], [6, 5, 4]]
    prediction = predict(np.ones((2, 3)), world_points=points, points_conf=conf)
    cloud = scene_of(prediction, geometry="points").point_cloud(KEEP_ALL)
    np.testing.assert_array_equal(cloud.points, points.reshape(6, 3))
    np.testing.assert_array_equal(cloud.confidence, np.ravel(conf))


def test_the_percentile_is_that_of_the_scene_or_of_the_one_frame():
    low = predict(np.ones((1, 5)), index=0, conf=[[1, 2, 3, 4, 5]])
    high = predict(np.ones((1, 5)), index=1, conf=[[10, 9, 8, 7, 6]])
    scene = scene_of(low, high)
    fifth = PointFilter(conf_percentile=20, edge_rtol=None)
    assert scene.point_cloud(fifth).confidence.tolist() == [3, 4, 5, 10, 9, 8, 7, 6]
    assert scene.frame_points(0, fifth).confidence.tolist() == [2, 3, 4, 5]
    assert scene.frame_points(1, fifth).confidence.tolist() == [10, 9, 8, 7]


def test_equal_confidences_all_stay():
    cloud = scene_of(predict(np.ones((2, 3)), conf=np.full((2, 3), 1.1))).point_cloud(PointFilter(conf_percentile=50))
    assert len(cloud) == 6


def test_both_sides_of_a_depth_edge_are_dropped():
    depth = [[1, 1, 1, 2, 2, 2]] * 2
    assert pixels_kept(predict(depth), PointFilter(conf_percentile=0)) == [[1, 1, 0, 0, 1, 1]] * 2
    # 1 to 2 is a step of 100 %.
    assert pixels_kept(predict(depth), PointFilter(conf_percentile=0, edge_rtol=1.5)) == [[1] * 6] * 2


def test_black_and_white_backgrounds_are_masked_by_all_three_channels():
    image = [[[15, 15, 15], [15, 15, 16], [0, 0, 0], [241, 241, 241], [255, 255, 240], [255, 255, 255]]]
    prediction = predict(np.ones((1, 6)), image=image)
    plain = {"conf_percentile": 0, "edge_rtol": None}
    assert pixels_kept(prediction, PointFilter(mask_black=True, **plain)) == [[0, 1, 0, 1, 1, 1]]
    assert pixels_kept(prediction, PointFilter(mask_white=True, **plain)) == [[1, 1, 1, 0, 1, 0]]


def test_sky_is_far_plain_or_bright_and_connected_to_the_top():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 120, (8, 8, 3))  # dark and rough
    depth = np.full((8, 8), 1.0)
    sky = np.zeros((8, 8), bool)
    sky[:3, :5] = True  # at the border
    sky[3:5, 3] = sky[4, 3:7] = sky[3, 6] = True  # down, along, and up again behind the ridge
    window = np.zeros((8, 8), bool)
    window[6:, :3] = True  # as far and bright, but enclosed
    depth[sky | window] = 10
    image[sky | window] = rng.integers(180, 250, (int((sky | window).sum()), 3))
    image[0, 7], depth[0, 7] = 250, 1.0  # bright at the border, and near
    depth[0, 6] = 10  # far at the border, but dark and rough
    kept = pixels_kept(predict(depth, image=image), PointFilter(conf_percentile=0, edge_rtol=None, mask_sky=True))
    np.testing.assert_array_equal(kept, ~sky)


def test_an_even_dark_sky_is_masked_too():
    image = np.random.default_rng(0).integers(0, 120, (6, 6, 3))
    image[:2] = 40  # night
    depth = np.repeat([[9.0], [9.0], [1.0], [1.0], [1.0], [1.0]], 6, axis=1)
    kept = pixels_kept(predict(depth, image=image), PointFilter(conf_percentile=0, edge_rtol=None, mask_sky=True))
    assert kept[0] == [0] * 6
    assert kept[2:] == [[1] * 6] * 4


def test_far_is_measured_by_the_frames_that_have_depth():
    # The median is 1, so 1.5 at the bright top is not far; a frame counted as 0 would make it 0.5.
    good = predict([[1.5] * 3, [1] * 3, [1] * 3], image=np.full((3, 3, 3), 200))
    scene = scene_of(good, predict(np.full((3, 3), np.nan), index=1))
    assert len(scene.point_cloud(PointFilter(conf_percentile=0, edge_rtol=None, mask_sky=True))) == 9


def test_the_budget_is_a_fixed_uniform_subset_in_order():
    rng = np.random.default_rng(1)
    scene = scene_of(*(predict(rng.uniform(1, 2, (40, 50)), index=i) for i in range(3)))
    everything = scene.point_cloud(KEEP_ALL)
    budget = PointFilter(conf_percentile=0, edge_rtol=None, max_points=600)
    some = scene.point_cloud(budget)
    assert (len(everything), len(some)) == (6000, 600)
    np.testing.assert_array_equal(scene.point_cloud(budget).points, some.points)
    position = {tuple(point): i for i, point in enumerate(everything.points.tolist())}
    chosen = np.array([position[tuple(point)] for point in some.points.tolist()])
    assert (np.diff(chosen) > 0).all()
    # 200 expected of each frame and 75 of each block of 750, standard deviations 11 and 8: five of them.
    assert np.abs(np.histogram(chosen, 3, (0, 6000))[0] - 200).max() < 55
    assert np.abs(np.histogram(chosen, 8, (0, 6000))[0] - 75).max() < 40
    assert len(scene.point_cloud(PointFilter(conf_percentile=0, edge_rtol=None, max_points=6000))) == 6000
    assert len(scene.frame_points(2, budget)) == 600


def test_points_that_are_not_finite_or_not_in_front_are_dropped():
    depth = [[1, np.nan, np.inf], [0, -1, 2]]
    cloud = scene_of(predict(depth, conf=[[1, 1, 1], [1, 1, 3]])).point_cloud(KEEP_ALL)
    assert cloud.points[:, 2].tolist() == [1, 2]
    assert len(scene_of(predict(np.ones((2, 3)), conf=np.full((2, 3), np.nan))).point_cloud()) == 0
    assert len(scene_of(predict(np.ones((2, 3)), extrinsics=np.full((3, 4), np.nan))).point_cloud(KEEP_ALL)) == 0
    points = np.zeros((2, 3, 3), np.float32)
    points[0, 1, 2] = np.inf
    assert len(scene_of(predict(np.ones((2, 3)), world_points=points), geometry="points").point_cloud(KEEP_ALL)) == 5


@pytest.mark.filterwarnings("error")
def test_no_frames_and_no_valid_depth_give_a_cloud_without_points():
    everything = PointFilter(mask_black=True, mask_white=True, mask_sky=True)
    for scene in (Scene(), Scene("points"), scene_of(predict(np.full((2, 3), np.nan)))):
        cloud = scene.point_cloud(everything)
        assert (cloud.points.shape, cloud.colors.shape) == ((0, 3), (0, 3))
        assert (cloud.points.dtype, cloud.frame_index.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("geometry", ["depth", "points"])
def test_a_scene_gives_back_what_it_kept_of_a_frame(geometry):
    rng = np.random.default_rng(0)
    first, second = (
        predict(
            rng.uniform(1, 2, (4, 5)), index=i, conf=rng.uniform(1, 9, (4, 5)), world_points=rng.normal(size=(4, 5, 3))
        )
        for i in (0, 3)
    )
    scene = scene_of(first, second, geometry=geometry)
    kept = scene.frame(-1)
    assert (kept.index, kept.time_s, kept.image_hw) == (3, 0.3, (4, 5))
    np.testing.assert_array_equal(kept.depth, second.depth)
    assert (kept.world_points is None, kept.depth_conf is None) == (geometry == "depth", geometry == "points")
    again = scene_of(scene.frame(0), scene.frame(1), geometry=geometry)
    np.testing.assert_array_equal(again.point_cloud(KEEP_ALL).points, scene.point_cloud(KEEP_ALL).points)
    np.testing.assert_array_equal(again.point_cloud(KEEP_ALL).confidence, scene.point_cloud(KEEP_ALL).confidence)
    with pytest.raises(IndexError, match="the scene has 2 frames, there is no frame 2"):
        scene.frame(2)


def test_frames_of_different_sizes_share_a_scene():
    cloud = scene_of(predict(np.ones((2, 3))), predict(np.ones((4, 5)), index=1)).point_cloud(KEEP_ALL)
    assert np.bincount(cloud.frame_index).tolist() == [6, 20]


@pytest.mark.parametrize(("geometry", "bytes_per_pixel"), [("depth", 11), ("points", 23)])
def test_a_frame_costs_its_own_pixels_and_holds_on_to_nothing_else(geometry, bytes_per_pixel):
    scene = Scene(geometry)
    matrices = 4 * (12 + 9)
    for count in (1, 2, 3):
        stream = np.ones((100, 20, 30), np.float32)  # the prediction is a view of a whole batch
        prediction = predict(np.ones((20, 30)), index=count)
        batch = {"depth": stream[3], "depth_conf": stream[4], "world_points_conf": stream[5]}
        prediction = FramePrediction(**{**vars(prediction), **batch})
        scene.add(prediction)
        alive = weakref.ref(stream)
        stream[:] = np.nan
        del prediction, batch, stream
        assert alive() is None
        assert scene.nbytes == count * (20 * 30 * bytes_per_pixel + matrices)
        assert scene.num_frames == count
    assert len(scene.point_cloud(KEEP_ALL)) == 3 * 600


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="geometry must be 'depth' or 'points', got 'mesh'"):
        Scene("mesh")
    with pytest.raises(ValueError, match=r"frame 0: .*\(2, 2\), \(2, 3\)"):
        Scene().add(predict(np.ones((2, 3)), conf=np.ones((2, 2))))
    with pytest.raises(IndexError, match="the scene has 1 frames, there is no frame 1"):
        scene_of(predict(np.ones((2, 3)))).frame_points(1)
    for wrong in ({"conf_percentile": 100}, {"conf_percentile": np.nan}, {"edge_rtol": 0}, {"max_points": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PointFilter(**wrong)


def test_a_prediction_without_what_the_scene_takes_is_refused_and_one_with_no_more_is_enough():
    whole = vars(predict([[2, 4, 2], [4, 2, 8]]))
    points = {"world_points": None, "world_points_conf": None}
    lean = FramePrediction(**{**whole, **points})
    np.testing.assert_array_equal(
        scene_of(lean).point_cloud(KEEP_ALL).points, scene_of(FramePrediction(**whole)).point_cloud(KEEP_ALL).points
    )
    for geometry, missing, name in (
        ("points", points, "points"),
        ("depth", {"depth": None, "depth_conf": None}, "depth"),
        ("depth", {"extrinsics": None, "intrinsics": None}, "camera"),
    ):
        scene = Scene(geometry)
        with pytest.raises(ValueError, match=f"has no {name}.*add '{name}' to outputs"):
            scene.add(FramePrediction(**{**whole, **missing}))
        assert scene.num_frames == 0
