"""The film is read back by a decoder, and its boxes by hand."""

import struct

import numpy as np
import pytest

from streamvggt import describe_video, read_frames
from streamvggt.pictures import overview_camera, render_points
from streamvggt.turntable import turntable_mp4
from streamvggt.types import Camera, PointCloud

INTRINSICS = np.array([[100, 0, 32], [0, 100, 24], [0, 0, 1]], np.float32)
CAMERA = Camera(0, 0.0, np.eye(3, 4, dtype=np.float32), INTRINSICS, (48, 64))


@pytest.fixture(scope="module")
def cloud():
    """A red ball on the left and a blue one on the right, the blue one nearer."""
    ball = np.random.default_rng(0).normal(size=(400, 3))
    ball /= 4 * np.linalg.norm(ball, axis=1, keepdims=True)
    points = np.concatenate([ball + np.array(center) for center in ([-1, 0, 6], [1, 0, 4])]).astype(np.float32)
    colors = np.repeat(np.array([[220, 40, 40], [40, 60, 220]], np.uint8), 400, axis=0)
    return PointCloud(points, colors, np.ones(800, np.float32), np.zeros(800, np.int32))


def film(cloud, **arguments):
    return turntable_mp4(cloud, [CAMERA], image_hw=(96, 128), duration_s=1, fps=10, point_size=6, **arguments)


def boxes(data):
    """The names of the top-level boxes of an MP4 file (ISO 14496-12), in their order."""
    names = []
    while data:
        size, name = struct.unpack(">I4s", data[:8])
        names.append(name.decode())
        data = data[size:]
    return names


def test_it_is_an_h264_film_whose_index_comes_first(cloud, tmp_path):
    data = film(cloud)
    path = tmp_path / "turntable.mp4"
    path.write_bytes(data)
    info = describe_video(path)
    assert (info.codec, info.width, info.height, info.fps, info.num_frames) == ("h264", 128, 96, 10, 10)
    assert info.duration_s == pytest.approx(1)
    assert boxes(data).index("moov") < boxes(data).index("mdat")
    assert b"avc1" in data


def test_it_shows_the_angles_there_and_back_in_their_colors(cloud, tmp_path):
    path = tmp_path / "turntable.mp4"
    path.write_bytes(film(cloud, swing_deg=30))
    frames = [frame.image.astype(float) for frame in read_frames(path)]
    # Six angles to the right, four of them again on the way back: 0 1 2 3 4 5 4 3 2 1.
    for there, back in ((4, 6), (3, 7), (2, 8), (1, 9)):
        assert np.abs(frames[there] - frames[back]).mean() < 2
    assert np.abs(frames[0] - frames[5]).mean() > 10
    for number, yaw_deg in ((0, -30), (5, 30)):
        view = overview_camera(cloud, [CAMERA], (96, 128), yaw_deg=yaw_deg)
        drawn = render_points(cloud, view, point_size=6).astype(float)
        assert np.abs(frames[number] - drawn).mean() < 6
        # H.264 halves the resolution of colour, so look at the whole: a wrong matrix would shift it by more.
        np.testing.assert_allclose(frames[number].mean((0, 1)), drawn.mean((0, 1)), atol=1.5)


def test_progress_counts_up_to_one_and_can_stop_the_work(cloud):
    seen = []
    film(cloud, progress=seen.append)
    np.testing.assert_allclose(seen, np.arange(1, 7) / 6)

    def stop(part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film(cloud, progress=stop)


def test_wrong_arguments_are_named(cloud):
    with pytest.raises(ValueError, match=r"image_hw must be even .* got \(95, 128\)"):
        turntable_mp4(cloud, [CAMERA], image_hw=(95, 128))
    with pytest.raises(ValueError, match="duration_s and fps must be positive, got 0 s"):
        turntable_mp4(cloud, [CAMERA], duration_s=0)
    with pytest.raises(ValueError, match="got 800 points and 0 cameras"):
        turntable_mp4(cloud, [])
