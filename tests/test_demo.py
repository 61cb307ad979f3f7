"""The page: its handlers, and that it starts."""

import numpy as np
import pygltflib
import pytest
from PIL import Image

from demo import handlers
from demo.ui import build_demo


@pytest.fixture
def folder():
    path = handlers.open_folder()
    yield path
    handlers.close_folder(path)


def test_a_video_becomes_a_scene(tmp_path, folder):
    pictures = [Image.fromarray(np.full((60, 80, 3), 40 * i, np.uint8)) for i in range(4)]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=500)
    updates = list(handlers.reconstruct(str(tmp_path / "clip.gif"), 2.0, 3.0, 0.0, folder))
    assert [path is None for _, path, _ in updates] == [True, True, True, False]
    assert all(picture.shape == (168, 224) for picture, _, _ in updates)
    scene = pygltflib.GLTF2().load(updates[-1][1])
    assert sum(node.camera is not None for node in scene.nodes) == 3
    handlers.close_folder(folder)
    with pytest.raises(FileNotFoundError):
        pygltflib.GLTF2().load(updates[-1][1])


def test_a_missing_or_bad_video_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="Choose a video"):
        next(handlers.reconstruct(None, 2.0, 3.0, 0.0, folder))
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        next(handlers.reconstruct(str(tmp_path / "clip.mp4"), 2.0, 3.0, 0.0, folder))


def test_near_is_bright_in_a_depth_picture():
    picture = handlers.depth_picture(np.array([[1.0, 2.0], [4.0, 100.0]], np.float32))
    assert picture[0, 0] > picture[0, 1] > picture[1, 0] > picture[1, 1]


def test_the_page_starts_and_answers():
    import httpx

    demo = build_demo()
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, run_history=False)
    try:
        answer = httpx.get(url)
        assert answer.status_code == 200
        assert "StreamVGGT" in answer.text
    finally:
        demo.close()
