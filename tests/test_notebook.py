"""The view of a scene in a notebook, opened by a real browser that has no network."""

import io

import numpy as np
import pytest
from browser import page_of
from PIL import Image

from streamvggt import FramePrediction, PointFilter, Scene, scene_html, show

KEEP_ALL = PointFilter(conf_percentile=0, edge_rtol=None, max_points=None)


@pytest.fixture(scope="module")
def scene():
    """Three frames of walls, red, green and blue, side by side, each seen by a camera in front of it."""
    scene = Scene()
    for index in range(3):
        image = np.zeros((30, 40, 3), np.uint8)
        image[..., index] = 220
        scene.add(
            FramePrediction(
                index=index,
                time_s=index / 2,
                image=image,
                depth=np.full((30, 40), 2, np.float32),
                depth_conf=np.linspace(1, 5, 1200, dtype=np.float32).reshape(30, 40),
                extrinsics=np.column_stack([np.eye(3), [-3 * index, 0, 0]]).astype(np.float32),
                intrinsics=np.array([[40, 0, 20], [0, 40, 15], [0, 0, 1]], np.float32),
            )
        )
    return scene


def open_offline(page, content):
    """Show a page and return every address that it asked for, none of which it gets."""
    asked = []
    page.context.set_offline(True)
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(content, wait_until="load")
    return asked


def test_a_notebook_shows_the_scene_in_a_closed_frame_without_the_network(scene, browser):
    with page_of(browser) as page:
        asked = open_offline(page, f"<body>{show(scene, KEEP_ALL, title='a wall')._repr_html_()}</body>")
        frame = page.frames[1]
        frame.wait_for_function("view.stats().frames === 3 && view.stats().pointsDrawn > 0")
        stats = frame.evaluate("view.stats()")
        assert (stats["status"], stats["points"], stats["webgl"], stats["problem"]) == ("done", 3600, True, "")
        # The frame has no origin of its own, so that it cannot reach the notebook.
        assert frame.evaluate("origin") == "null"
        assert frame.title() == "a wall"
        assert page.locator("iframe").bounding_box()["height"] == 600
        frame.locator("button[aria-label='One frame back']").click()
        frame.wait_for_function("view.stats().frame === 1")
    assert [address for address in asked if not address.startswith(("data:", "blob:", "about:"))] == []


def test_without_scripts_and_frames_a_picture_stands_in(scene, browser):
    view = show(scene, KEEP_ALL)
    picture = np.asarray(Image.open(io.BytesIO(view._repr_jpeg_())))
    assert picture.shape == (480, 800, 3)
    for channel in range(3):  # the walls of the three frames, each in its colour
        assert (picture[..., channel].astype(int) - np.delete(picture, channel, axis=-1).max(-1) > 150).mean() > 0.05
    cleaned, _, _ = view._repr_html_().partition("<iframe")
    with page_of(browser, java_script_enabled=False) as page:
        open_offline(page, f"<body>{cleaned}</div></body>")
        image = page.get_by_role("img", name="Points of the scene")
        assert image.bounding_box()["height"] == 600
        shown = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB"))
        assert (shown.max(-1).astype(int) - shown.min(-1) > 150).mean() > 0.15


def test_a_view_is_no_larger_than_its_points_make_it(scene):
    whole, part = (show(scene, PointFilter(0, None, max_points=count)) for count in (3600, 600))
    # 24 bytes a point, four thirds of that as text.
    assert len(whole.page) - len(part.page) == pytest.approx(3000 * 32, rel=0.01)
    assert len(part.page) < 900_000


def test_a_page_of_its_own_opens_too_and_no_title_can_break_out(scene, browser):
    title = "</script><script>document.body.textContent = 'broken'</script><!--"
    with page_of(browser) as page:
        open_offline(page, scene_html(scene, KEEP_ALL, title=title))
        page.wait_for_function("view.stats().frames === 3")
        assert page.title() == title
        assert page.locator("#viewer").count() == 1


def test_a_scene_without_anything_to_show_is_refused(scene):
    with pytest.raises(ValueError, match="no frame"):
        scene_html(Scene())
    with pytest.raises(ValueError, match="got 0 points and 0 cameras"):
        show(Scene())
