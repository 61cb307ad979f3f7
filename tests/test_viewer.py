"""The viewer's bundle in a real browser, fed by a small server of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from browser import page_of, served
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from streamvggt import FramePrediction, PointCloud, frame_glb_bytes

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "streamvggt" / "viewer.js"
GLB_DOWNLOAD = {"format": "glb", "name": "scene.glb", "label": "GLB"}
AXE = ROOT / "demo" / "viewer" / "node_modules" / "axe-core" / "axe.min.js"

PAGE = """<!doctype html><html lang="en"><title>Viewer</title><meta name="viewport" content="width=device-width">
<body style="margin:8px"><main><h1>Viewer</h1><div id="one"></div><div id="two"></div></main>
<script src="/viewer.js"></script></body></html>"""


@dataclass
class Run:
    """A run as the server tells it; tests let it grow."""

    chunks: list[bytes] = field(default_factory=list)
    status: str = "running"
    version: int = 1
    extra: dict = field(default_factory=dict)

    def add(self, *chunks):
        self.chunks.extend(chunks)
        self.version += 1

    def change(self, status=None, **extra):
        self.status = status or self.status
        self.extra |= extra
        self.version += 1

    def manifest(self, name):
        return {
            "run": name,
            "version": self.version,
            "status": self.status,
            "message": "",
            "queue_position": None,
            "title": "a clip",
            "total": None,
            "count": len(self.chunks),
            "live": False,
            "stats": {"frames_per_s": 2.0, "cache_bytes": 3 << 20, "points": 0, "conf_percentiles": []},
            "downloads": [],
            "settings": {},
            **self.extra,
        }


def wall_chunk(i, points=2000, rgb=(200, 60, 60), distance=3.0, picture=(10, 200, 10)):
    """Frame ``i``: a square wall, one unit wide, ``i`` units to the right, seen by a camera straight before it.

    Confidences are even over [1, 2).
    """
    rng = np.random.default_rng(i)
    extrinsics = np.eye(3, 4, dtype=np.float32)
    extrinsics[0, 3] = -i
    prediction = FramePrediction(
        index=i,
        time_s=i / 2,
        image=np.full((30, 40, 3), picture, np.uint8),
        depth=np.full((30, 40), distance, np.float32),
        extrinsics=extrinsics,
        intrinsics=np.array([[30, 0, 19.5], [0, 30, 14.5], [0, 0, 1]], np.float32),
    )
    cloud = PointCloud(
        points=(rng.uniform(-0.5, 0.5, (points, 3)) * [1, 1, 0] + [i, 0, distance]).astype(np.float32),
        colors=np.full((points, 3), rgb, np.uint8),
        confidence=(1 + rng.permutation(points) / points).astype(np.float32),
        frame_index=np.full(points, i, np.int32),
    )
    return frame_glb_bytes(prediction, cloud)


def walls(count, **properties):
    return [wall_chunk(i, **properties) for i in range(count)]


class Server:
    """The routes of a run, without the rest of the app."""

    def __init__(self):
        self.runs: dict[str, Run] = {}
        self.requests: list[str] = []
        self.refused = 0

    def run(self, name="run-one", **properties):
        return self.runs.setdefault(name, Run(**properties))

    async def manifest(self, request):
        run = self.runs.get(request.path_params["run"])
        if run is None:
            return JSONResponse({"error": "There is no such run"}, status_code=404)
        for _ in range(100):
            if run.version > int(request.query_params["version"]):
                break
            await asyncio.sleep(0.01)
        return JSONResponse(run.manifest(request.path_params["run"]))

    async def chunk(self, request):
        self.requests.append(request.url.path)
        if self.refused:
            self.refused -= 1
            return Response(status_code=503)
        return Response(self.runs[request.path_params["run"]].chunks[request.path_params["index"]])

    async def stop(self, request):
        self.runs[request.path_params["run"]].change("stopped")
        return JSONResponse({})

    def app(self):
        return Starlette(
            routes=[
                Route("/", lambda request: HTMLResponse(PAGE)),
                Route("/viewer.js", lambda request: Response(BUNDLE.read_bytes(), media_type="text/javascript")),
                Route("/runs/{run}/manifest", self.manifest),
                Route("/runs/{run}/chunks/{index:int}.glb", self.chunk),
                Route("/runs/{run}/stop", self.stop, methods=["POST"]),
            ]
        )


@pytest.fixture(scope="module")
def server():
    return Server()


@pytest.fixture(scope="module")
def address(server):
    with served(server.app()) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(server):
    server.runs.clear()
    server.requests.clear()


@contextmanager
def opened(browser, address, run="run-one", **options):
    """A page with the viewer ``v`` in the element ``one``, following a run."""
    with page_of(browser, **{"viewport": {"width": 800, "height": 700}, **options}) as page:
        page.goto(address)
        page.evaluate(
            "run => { window.v = StreamVGGT.mount(document.querySelector('#one'), {height: 300}); v.open(run); }", run
        )
        yield page


def wait(page, condition):
    """Wait until a condition on ``s``, the viewer's statistics, holds; returns them."""
    page.wait_for_function(f"() => {{ const s = v.stats(); return {condition}; }}", timeout=15_000, polling=40)
    return page.evaluate("v.stats()")


def test_chunks_arrive_one_by_one(browser, server, address):
    run = server.run()
    with opened(browser, address) as page:
        for number, piece in enumerate(walls(3), start=1):
            run.add(piece)
            stats = wait(page, f"s.frames === {number}")
            assert stats["points"] == stats["shown"] == 2000 * number
            assert stats["bytes"] == sum(map(len, run.chunks))
        run.change("done")
        assert wait(page, "s.status === 'done'")["frame"] == 2
    assert server.requests == [f"/runs/run-one/chunks/{i}.glb" for i in range(3)]


def control(page, label):
    return page.locator("#one").get_by_label(label, exact=True)


def button(page, name):
    return page.locator("#one").get_by_role("button", name=name)


def slide(page, label, value):
    """Move a slider as a script of the browser would: the keyboard test moves one with keys."""
    control(page, label).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


def drag(page, right=80, down=30):
    box = page.locator("#one canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=4)
    page.mouse.up()


def picture(page):
    """The scene as drawn, uint8 ``[H, W, 3]``."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    png = page.locator("#one .scene canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def middle(page):
    """The colour in the middle of the scene."""
    pixels = picture(page)
    height, width = pixels.shape[:2]
    return np.median(pixels[height // 2 - 9 : height // 2 + 9, width // 2 - 9 : width // 2 + 9], axis=(0, 1))


def test_once_touched_the_view_stays_while_the_scene_grows(browser, server, address):
    run = server.run()
    run.add(*walls(2))
    with opened(browser, address) as page:
        wait(page, "s.frames === 2")
        drag(page)
        turned = wait(page, "s.touched && !s.moving")["camera"]
        for number in range(2, 6):
            run.add(wall_chunk(number))
            assert wait(page, f"s.frames === {number + 1} && s.frame === {number}")["camera"] == turned
        # The drag did turn it: that the same drag turns further shows it.
        drag(page)
        assert not np.allclose(wait(page, "!s.moving")["camera"], turned, atol=0.05)


def test_scrubbing_shows_the_scene_as_it_was_and_the_edge_leads_back(browser, server, address):
    run = server.run()
    run.add(*walls(5))
    with opened(browser, address) as page:
        wait(page, "s.frames === 5")
        for position in (0, 3, 1):
            slide(page, "Frame", position)
            assert wait(page, f"s.frame === {position}")["shown"] == 2000 * (position + 1)
        run.add(wall_chunk(5))
        assert wait(page, "s.frames === 6")["frame"] == 1
        button(page, "New ones").click()
        assert wait(page, "s.frame === 1")["shown"] == 2000
        assert page.locator("#one figcaption").first.text_content() == "Frame 2, at 0:00.5"
        button(page, "All so far").click()
        button(page, "Newest").click()
        assert wait(page, "s.atEdge")["shown"] == 12_000
        button(page, "Play (Space)").click()
        assert wait(page, "s.playing || s.frame === 5")["frame"] < 5
        assert wait(page, "!s.playing")["frame"] == 5


def test_hiding_uncertain_points_hides_that_share_of_them(browser, server, address):
    server.run().add(*walls(4, points=8000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 4")
        for percent, tolerance in ((50, 0.05), (90, 0.03), (0, 0)):
            slide(page, "Hide uncertain", percent)
            picture(page)
            shown = page.evaluate("v.stats().shown") / 32_000
            assert shown == pytest.approx(1 - percent / 100, abs=tolerance)


def test_colours_are_those_of_the_image_and_each_mode_changes_them(browser, server, address):
    server.run().add(wall_chunk(0, points=20_000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 1")
        button(page, "Through camera").click()
        assert middle(page) == pytest.approx([200, 60, 60], abs=1)
        control(page, "Colour").select_option("time")
        assert middle(page) == pytest.approx([60, 100, 230], abs=1)
        seen = {(200, 60, 60), (60, 100, 230)}
        for mode in ("depth", "confidence"):
            control(page, "Colour").select_option(mode)
            seen.add(tuple(map(int, middle(page))))
        assert len(seen) == 4
        control(page, "Background").select_option("black")
        slide(page, "Point size", 0.3)
        assert (picture(page) == 0).all(-1).mean() > 0.3


def test_looking_through_a_camera_shows_the_wall_where_the_camera_saw_it(browser, server, address):
    server.run().add(*walls(3, points=20_000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 3")
        slide(page, "Frame", 1)
        button(page, "New ones").click()
        button(page, "Through camera").click()
        red = (np.abs(picture(page).astype(int) - [200, 60, 60]) < 3).all(-1)
        columns = np.flatnonzero(red.any(0))
        # The focal length is the height of the picture, so 1 unit at distance 3 spans a third of the height.
        width = (columns[-1] - columns[0] + 1) / red.shape[0]
        assert width == pytest.approx(1 / 3, abs=0.03)
        assert (columns[0] + columns[-1]) / 2 == pytest.approx(red.shape[1] / 2, abs=6)
        assert wait(page, "true")["camera"][12:15] == pytest.approx([1, 0, 0], abs=1e-6)
        slide(page, "Frame", 2)
        assert wait(page, "s.frame === 2")["camera"][12:15] == pytest.approx([2, 0, 0], abs=1e-6)
        drag(page)
        assert wait(page, "s.view === 'orbit'")["touched"]


def test_following_flies_along_with_the_camera(browser, server, address):
    server.run().add(*walls(4))
    with opened(browser, address, reduced_motion="reduce") as page:
        wait(page, "s.frames === 4")
        slide(page, "Frame", 0)
        button(page, "Follow").click()
        before = np.array(wait(page, "s.view === 'follow' && !s.moving")["camera"])
        slide(page, "Frame", 3)
        after = np.array(wait(page, "s.frame === 3 && !s.moving")["camera"])
        assert after[12:15] - before[12:15] == pytest.approx([3, 0, 0], abs=1e-5)


def test_without_webgl_pictures_and_downloads_still_work(browser, server, address):
    server.run(status="done", extra={"downloads": [GLB_DOWNLOAD]}).add(*walls(2))
    with page_of(browser) as page:
        page.add_init_script(
            "const get = HTMLCanvasElement.prototype.getContext;"
            "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
            "  return /webgl/.test(kind) ? null : get.call(this, kind, ...rest); };"
        )
        page.goto(address)
        page.evaluate("window.v = StreamVGGT.mount(document.querySelector('#one')); v.open('run-one')")
        stats = wait(page, "s.frames === 2 && s.status === 'done'")
        assert not stats["webgl"]
        assert "no WebGL 2" in page.locator("#one .message").inner_text()
        link = page.locator("#one").get_by_role("link", name="GLB")
        assert link.get_attribute("href") == "/runs/run-one/download/glb"
        slide(page, "Frame", 0)
        assert wait(page, "s.frame === 0")["shown"] == 2000
        assert button(page, "Through camera").is_disabled()
        button(page, "Newest").click()


def test_another_run_takes_the_place_of_the_one_before_and_frees_its_memory(browser, server, address):
    server.run("first", status="done").add(*walls(4, points=40_000))
    server.run("second", status="done").add(wall_chunk(0, points=100))
    with opened(browser, address, "first") as page:
        large = wait(page, "s.frames === 4 && s.geometries > 3")
        page.evaluate("v.open('second')")
        stats = wait(page, "s.run === 'second' && s.frames === 1 && s.drawCalls > 0")
        assert stats["points"] == stats["shown"] == 100
        assert stats["geometries"] < large["geometries"]
        page.evaluate("v.open(null)")
        assert page.evaluate("v.stats().frames") == 0
        assert "No scene yet" in page.locator("#one .message").inner_text()
        page.evaluate("v.dispose()")
        assert page.locator("#one canvas").count() == 0


def test_two_viewers_on_a_page_follow_their_own_runs(browser, server, address):
    server.run("first").add(*walls(2))
    second = server.run("second")
    second.add(wall_chunk(0, points=10))
    with opened(browser, address, "first") as page:
        page.evaluate("window.w = StreamVGGT.mount(document.querySelector('#two'), {height: 250}); w.open('second')")
        wait(page, "s.frames === 2 && w.stats().frames === 1")
        second.add(wall_chunk(1, points=10))
        wait(page, "w.stats().points === 20")
        assert page.evaluate("v.stats().points") == 4000
        assert page.locator("#two .stage").bounding_box()["height"] == 250


def test_what_the_manifest_says_is_text_and_never_markup(browser, server, address):
    evil = '<img src=x onerror="window.evil = true">'
    download = {"format": "glb/../../x", "name": evil, "label": evil}
    run = server.run(extra={"title": evil, "message": evil, "downloads": [download]}, status="failed")
    with opened(browser, address) as page:
        wait(page, "s.status === 'failed'")
        assert page.locator("#one img").count() == 0
        assert evil in page.locator("#one .badge").inner_text()
        assert evil in page.locator("#one .message").inner_text()
        link = page.locator("#one .downloads a")
        assert link.text_content() == evil
        assert link.get_attribute("href") == "/runs/run-one/download/glb%2F..%2F..%2Fx"
        assert page.evaluate("window.evil") is None
    assert run.chunks == []


def test_a_run_that_is_not_there_is_told(browser, server, address):
    with opened(browser, address, "gone") as page:
        page.locator("#one").get_by_text("This scene is not here any more").wait_for()
        assert "There is no such run" in page.locator("#one .message").inner_text()


def test_failures_on_the_way_are_survived_and_told(browser, server, address):
    run = server.run()
    server.refused = 2
    first, second, third = walls(3)
    run.add(first, second[: len(second) // 2], third)
    with opened(browser, address) as page:
        stats = wait(page, "s.frames === 3")
        assert stats["points"] == 4000
        problem = page.locator("#one .problem").inner_text()
        assert problem.startswith("Frame 2 is left out. This is not a readable GLB chunk: it should have")
        page.context.set_offline(True)
        page.locator("#one").get_by_text("Connection lost").wait_for()
        run.add(wall_chunk(3))
        page.context.set_offline(False)
        assert wait(page, "s.frames === 4")["points"] == 6000


def test_the_run_can_be_stopped_and_its_link_copied(browser, server, address):
    run = server.run(extra={"queue_position": 2}, status="queued")
    with opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        wait(page, "s.status === 'queued'")
        assert "Waiting, 2 ahead" in page.locator("#one .badge").inner_text()
        run.change("running")
        run.add(*walls(1))
        wait(page, "s.frames === 1")
        button(page, "Copy link").click()
        button(page, "Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == f"{address}/?run=run-one"
        button(page, "Stop").click()
        wait(page, "s.status === 'stopped'")
        assert button(page, "Stop").count() == 0
    assert run.status == "stopped"


def test_a_finished_run_is_shown_offline_in_a_sandboxed_frame(browser, server, address):
    server.run("here").add(wall_chunk(0))
    content = {
        "manifest": {"run": "kept", "status": "done", "title": "kept", "count": 3, "version": 1},
        "chunks": [base64.b64encode(piece).decode() for piece in walls(3)],
    }
    document = (
        f"<body><div id=v></div><script>{BUNDLE.read_text()}</script><script>"
        "const v = StreamVGGT.mount(document.querySelector('#v'));"
        f"v.load({json.dumps(content)});"
        "setTimeout(() => parent.postMessage(v.stats(), '*'), 300);</script>"
    )
    with page_of(browser) as page:
        page.goto(address)
        stats = page.evaluate(
            """(document_) => new Promise((done) => {
                addEventListener('message', (event) => done(event.data));
                const frame = document.createElement('iframe');
                frame.sandbox = 'allow-scripts';
                frame.srcdoc = document_;
                document.body.append(frame);
            })""",
            document,
        )
    assert (stats["run"], stats["frames"], stats["shown"], stats["webgl"]) == ("kept", 3, 6000, True)
    assert stats["draws"] > 0
    assert server.requests == []


def test_keys_work_inside_the_viewer_and_nowhere_else(browser, server, address):
    server.run(status="done").add(*walls(4))
    with opened(browser, address) as page:
        wait(page, "s.frames === 4")
        page.keyboard.press("Home")
        assert page.evaluate("v.stats().frame") == 3
        page.keyboard.press("Tab")
        for key, condition in [
            ("Home", "s.frame === 0"),
            ("ArrowRight", "s.frame === 1"),
            ("ArrowLeft", "s.frame === 0"),
            ("a", "s.shown === 2000"),
            ("End", "s.frame === 3 && s.shown === 2000"),
            ("a", "s.shown === 8000"),
            ("3", "s.view === 'through'"),
            ("2", "s.view === 'follow'"),
            ("1", "s.view === 'orbit'"),
            ("f", "s.touched"),
        ]:
            page.keyboard.press(key)
            wait(page, condition)
        before = wait(page, "!s.moving")["camera"]
        page.keyboard.press("Shift+ArrowRight")
        turned = wait(page, "!s.moving")["camera"]
        assert not np.allclose(turned, before, atol=0.01)
        page.keyboard.press("-")
        away = np.array(wait(page, "!s.moving")["camera"])
        assert away[:12] == pytest.approx(turned[:12])
        assert not np.allclose(away, turned, atol=0.01)
        page.keyboard.press("c")
        assert control(page, "Colour").input_value() == "depth"
        page.keyboard.press("x")
        page.wait_for_function("() => document.querySelector('#one').shadowRoot.querySelector('.viewer:fullscreen')")
        page.keyboard.press("x")
        page.wait_for_function("() => !document.fullscreenElement")
        page.keyboard.press("?")
        page.locator("#one").get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        assert page.locator("#one").get_by_role("dialog").count() == 0
        # A slider keeps the keys that it needs.
        control(page, "Frame").focus()
        page.keyboard.press("Home")
        wait(page, "s.frame === 0")
        control(page, "Point size").focus()
        page.keyboard.press("ArrowRight")
        assert control(page, "Point size").input_value() == "1.1"
        assert page.evaluate("v.stats().frame") == 0


def test_many_frames_cost_few_draw_calls_and_scrubbing_stays_exact(browser, server, address):
    server.run(status="done").add(*walls(50, points=1500))
    with opened(browser, address) as page:
        # Two pages of points, the path and the pyramids.
        wait(page, "s.frames === 50 && s.drawCalls === 4")
        for position in (0, 42, 43, 44, 48):
            slide(page, "Frame", position)
            assert wait(page, f"s.frame === {position}")["shown"] == 1500 * (position + 1)


def test_while_the_view_moves_fewer_points_are_drawn_and_then_all(browser, server, address):
    server.run(status="done").add(*walls(4, points=45_000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 4 && s.pointsDrawn === 180000")
        page.evaluate(
            """() => { window.least = Infinity; const look = () => { const s = v.stats();
                if (s.moving) least = Math.min(least, s.pointsDrawn); requestAnimationFrame(look); }; look(); }"""
        )
        drag(page)
        wait(page, "!s.moving && s.pointsDrawn === 180000")
        assert 0 < page.evaluate("least") < 150_000


def test_a_lost_graphics_card_comes_back_with_the_scene(browser, server, address):
    server.run(status="done").add(wall_chunk(0, points=20_000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 1")
        button(page, "Through camera").click()
        page.locator("#one .scene canvas").evaluate(
            "(canvas) => { window.card = canvas.getContext('webgl2').getExtension('WEBGL_lose_context');"
            " card.loseContext(); }"
        )
        page.locator("#one").get_by_text("graphics card was reset").wait_for()
        page.evaluate("card.restoreContext()")
        page.wait_for_function("() => v.stats().problem === ''")
        assert middle(page) == pytest.approx([200, 60, 60], abs=1)


def test_a_picture_of_the_scene_is_saved(browser, server, address):
    server.run(status="done").add(wall_chunk(0, points=20_000))
    with opened(browser, address) as page:
        wait(page, "s.frames === 1")
        with page.expect_download() as download:
            button(page, "Save a picture").click()
        assert download.value.suggested_filename == "streamvggt-0001.png"
        saved = np.asarray(Image.open(download.value.path()).convert("RGB"))
        assert (np.abs(saved.astype(int) - [200, 60, 60]) < 3).all(-1).any()


@pytest.mark.parametrize(("width", "color_scheme"), [(390, "light"), (1100, "dark")])
def test_nothing_sticks_out_and_axe_finds_nothing_serious(browser, server, address, color_scheme, width):
    if not AXE.exists():
        pytest.skip("demo/viewer/node_modules is not installed; 'make setup' does")
    title = "a-very-long-name-of-a-video-from-a-phone-2026…11-27.mp4"
    server.run(extra={"downloads": [GLB_DOWNLOAD], "message": "A note.", "title": title}).add(*walls(2))
    with opened(browser, address, viewport={"width": width, "height": 900}, color_scheme=color_scheme) as page:
        wait(page, "s.frames === 2")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        badge, tools = (page.locator(f"#one {part}").bounding_box() for part in (".badge", ".corner"))
        assert badge["x"] + badge["width"] < tools["x"]
        button(page, "Help (?)").click()
        assert page.locator("#one").get_attribute("data-theme") == color_scheme
        if color_scheme == "dark":
            page.evaluate("document.body.style.background = '#0b0f19'; document.body.style.color = '#fff'")
        page.evaluate(AXE.read_text())
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        serious = [entry for entry in violations if entry["impact"] in ("serious", "critical")]
        assert serious == [], [(entry["id"], [node["html"] for node in entry["nodes"]]) for entry in serious]


def test_every_change_is_told_to_the_page(browser, server, address):
    run = server.run()
    with page_of(browser) as page:
        page.goto(address)
        page.evaluate(
            """() => { const host = document.querySelector('#one'); window.told = [];
                host.addEventListener('streamvggt', (event) => told.push(event.detail));
                window.v = StreamVGGT.mount(host); v.open('run-one'); }"""
        )
        run.add(*walls(2))
        run.change("done")
        wait(page, "s.status === 'done' && s.frames === 2")
        told = page.evaluate("told")
    assert [entry["frames"] for entry in told if entry["kind"] == "frame"] == [1, 2]
    assert told[-1]["run"] == "run-one"
    assert {entry["kind"] for entry in told} == {"manifest", "frame"}


@pytest.mark.slow
def test_two_million_points_do_not_lose_the_page(browser, server, address):
    server.run(status="done").add(*walls(300, points=7000))
    with opened(browser, address) as page:
        page.wait_for_function("() => v.stats().frames === 300", timeout=300_000, polling=500)
        page.wait_for_function("() => !v.stats().moving && v.stats().pointsDrawn > 9e5", timeout=120_000)
        stats = page.evaluate("v.stats()")
        assert stats["points"] == stats["shown"] == 2_100_000
        assert stats["drawCalls"] <= 40
        assert stats["pointsDrawn"] <= 1_100_000
        assert stats["problem"] == ""
        slide(page, "Frame", 100)
        assert wait(page, "s.frame === 100")["shown"] == 7000 * 101
        drag(page)
        page.wait_for_function("() => v.stats().touched && !v.stats().moving", timeout=120_000)
