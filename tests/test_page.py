"""The app in a real browser: what a visitor does, from the upload to the files, with reload, cut and deep link."""

import json
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import plyfile
import pycolmap
import pytest
from browser import page_of
from evo.tools import file_interface
from runs import free_port, wait_for, write_video
from test_export import validate

from demo import engine as engines
from demo.engine import Engine, Moved
from demo.handlers import EXAMPLES, open_runs
from demo.settings import MEMORIES
from demo.ui import build_demo, launch_options
from streamvggt import Similarity, load_model

AXE = Path(__file__).parents[1] / "demo" / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
STATS = "window.streamvggtPage?.viewer()?.stats()"
VIEWER = "#stage .stage"


class Pace:
    """Lets steps of the network through: all of them, or as many as a test says."""

    def __init__(self):
        self._changed = threading.Condition()
        self._left = None

    def let(self, number):
        """Let so many more steps through, None for all."""
        with self._changed:
            self._left = None if number is None else number + (self._left or 0)
            self._changed.notify_all()

    def hold(self):
        with self._changed:
            self._left = 0

    def step(self):
        with self._changed:
            assert self._changed.wait_for(lambda: self._left is None or self._left > 0, 60)
            if self._left is not None:
                self._left -= 1


class PacedEngine(Engine):
    """An untrained network whose steps wait for the test's word, and whose camera goes on to a new place each time."""

    def __init__(self):
        super().__init__()
        self.pace = Pace()

    def stream(self, frames, settings, notice, *, live):
        for step in super().stream(frames, settings, notice, live=live):
            self.pace.step()
            pose = step.prediction.extrinsics.copy()
            pose[0, 3] = 2 * step.prediction.index * np.median(step.prediction.depth)
            yield replace(step, prediction=replace(step.prediction, extrinsics=pose))
        if settings.long:
            places = 5 * np.arange(step.prediction.index + 1.0)
            yield Moved([Similarity(1.0, np.eye(3), np.array([0, 0, place])) for place in places])


class App:
    def __init__(self, folder):
        self.engine = PacedEngine()
        self.pace = self.engine.pace
        self.runs = open_runs(self.engine)
        self.folder = folder
        self.video = str(write_video(folder / "clip.mp4", num_frames=6, rate=2))
        self.demo = build_demo(self.runs, self.engine)
        _, url, _ = self.demo.launch(
            prevent_thread_lock=True, quiet=True, server_port=free_port(), **launch_options(self.runs)
        )
        self.url = url.rstrip("/")

    def close(self):
        self.pace.let(None)
        self.runs.close()
        self.demo.close()


@pytest.fixture(scope="module")
def app(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMVGGT_RUNS", str(folder / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr("demo.handlers.EXAMPLES", folder / "examples")
        patch.setattr(engines, "load_model", lambda source, **options: load_model("tiny", **options))
        app = App(folder)
        yield app
        app.close()


@pytest.fixture(autouse=True)
def free_pace(app):
    app.pace.let(None)
    yield
    app.pace.let(None)


@contextmanager
def visit(browser, app, path="/", **options):
    with page_of(browser, **{"viewport": {"width": 1280, "height": 900}, **options}) as page:
        page.set_default_timeout(40_000)
        page.goto(app.url + path)
        wait(page, f"{STATS} !== undefined")
        yield page


def stats(page):
    return page.evaluate(STATS)


def wait(page, condition):
    page.wait_for_function(condition, polling=50)


def wait_frames(page, number):
    wait(page, f"{STATS}?.frames === {number}")


def wait_status(page, status):
    wait(page, f"{STATS}?.status === '{status}'")


def upload(page, path):
    page.set_input_files("input[type=file] >> nth=0", path)
    page.wait_for_selector("video[src], video source")


def start(page, app, path=None):
    upload(page, path or app.video)
    page.click("#start-video")


def run_shown(page):
    return stats(page)["run"]


def test_a_scene_grows_frame_by_frame_and_the_view_turned_meanwhile_stays(browser, app):
    app.pace.hold()
    with visit(browser, app) as page:
        start(page, app)
        counts = []
        for number in (1, 2, 3):
            app.pace.let(1)
            wait_frames(page, number)
            counts.append(stats(page)["points"])
        assert counts[0] > 0
        assert counts == sorted(counts)
        before = stats(page)["camera"]
        box = page.locator(VIEWER).locator("canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 120, y + 30, steps=4)
        page.mouse.up()
        wait(page, f"!{STATS}.moving")
        turned = stats(page)["camera"]
        assert not np.allclose(turned, before, atol=1e-3)
        app.pace.let(None)
        wait_status(page, "done")
        wait_frames(page, 6)
        np.testing.assert_allclose(stats(page)["camera"][:12], turned[:12], atol=1e-6)


@pytest.fixture(scope="module")
def finished(browser, app):
    """The id of a finished run of six frames."""
    app.pace.let(None)
    with visit(browser, app) as page:
        start(page, app)
        wait_status(page, "done")
        return run_shown(page)


def test_time_can_be_scrubbed_and_confidence_hides_points(browser, app, finished):
    with visit(browser, app, f"/?run={finished}") as page:
        wait_frames(page, 6)
        everything = stats(page)["shown"]
        page.locator(VIEWER).get_by_label("Frame", exact=True).focus()
        page.keyboard.press("Home")
        wait(page, f"{STATS}.frame === 0")
        assert 0 < stats(page)["shown"] < everything
        page.keyboard.press("End")
        wait(page, f"{STATS}.shown === {everything}")
        slider = page.locator(VIEWER).get_by_label("Hide uncertain")
        slider.focus()
        for _ in range(5):
            page.keyboard.press("PageUp")
        wait(page, f"{STATS}.shown < {everything}")


def check_glb(path):
    assert [issue for issue in validate(path)["messages"] if issue["severity"] <= 1] == []


def check_colmap(path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent / "model")
    assert len(pycolmap.Reconstruction(path.parent / "model" / "sparse" / "0").images) == 6


def check_film(path):
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 20


READERS = {
    "scene.glb": check_glb,
    "scene.ply": lambda path: plyfile.PlyData.read(path)["vertex"][0],
    "colmap.zip": check_colmap,
    "trajectory.txt": lambda path: file_interface.read_tum_trajectory_file(path).num_poses,
    "predictions.npz": lambda path: np.load(path, allow_pickle=False)["depth"],
    "turntable.mp4": check_film,
}


def test_every_download_opens_in_another_program(browser, app, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("demo.results.FILM_HW", (48, 64))
    with visit(browser, app, f"/?run={finished}") as page:
        wait_frames(page, 6)
        links = page.locator(VIEWER).locator(".downloads a")
        assert links.count() == len(READERS)
        for index in range(links.count()):
            with page.expect_download() as coming:
                links.nth(index).click()
            name = coming.value.suggested_filename
            coming.value.save_as(tmp_path / name)
            READERS[name](tmp_path / name)


def test_stop_ends_the_run_with_what_it_has(browser, app):
    app.pace.hold()
    with visit(browser, app) as page:
        start(page, app)
        app.pace.let(2)
        wait_frames(page, 2)
        page.locator(VIEWER).get_by_role("button", name="Stop").click()
        app.pace.let(None)
        wait_status(page, "stopped")
        assert 2 <= stats(page)["frames"] < 6


def test_a_reload_in_mid_run_loses_nothing(browser, app):
    app.pace.hold()
    with visit(browser, app) as page:
        start(page, app)
        app.pace.let(2)
        wait_frames(page, 2)
        run = run_shown(page)
        page.reload()
        wait_frames(page, 2)
        assert run_shown(page) == run
        app.pace.let(None)
        wait_frames(page, 6)
        wait_status(page, "done")


def test_a_cut_connection_loses_nothing(browser, app):
    app.pace.hold()
    with visit(browser, app) as page:
        start(page, app)
        app.pace.let(2)
        wait_frames(page, 2)
        run = run_shown(page)
        page.context.set_offline(True)
        app.pace.let(2)
        page.context.set_offline(False)
        wait_frames(page, 4)
        app.pace.let(None)
        wait_status(page, "done")
        wait_frames(page, 6)
        assert run_shown(page) == run


def test_an_example_is_there_at_first_and_another_comes_by_a_click(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("demo.handlers.EXAMPLES", EXAMPLES)
    monkeypatch.setenv("STREAMVGGT_RUNS", str(tmp_path / "runs"))
    app = App(tmp_path)
    try:
        with visit(browser, app) as page:
            wait_status(page, "done")
            assert run_shown(page) == "example-living_room"
            page.get_by_role("button", name="Up a narrow street").click()
            wait(page, f"{STATS}.run === 'example-street' && {STATS}.frames === 9")
    finally:
        app.close()


def test_two_browsers_each_have_a_scene_of_their_own(browser, app, tmp_path):
    other_video = str(write_video(tmp_path / "other.mp4", num_frames=4, size_wh=(112, 112), rate=2))
    with visit(browser, app) as first, visit(browser, app) as second:
        start(first, app)
        start(second, app, other_video)
        wait_status(first, "done")
        wait_status(second, "done")
        wait_frames(first, 6)
        wait_frames(second, 4)
        assert run_shown(first) != run_shown(second)
        assert app.runs.manifest(run_shown(first))["title"] == "clip.mp4"
        assert app.runs.manifest(run_shown(second))["title"] == "other.mp4"


def test_a_new_run_takes_the_place_of_the_visitors_former_one(browser, app):
    app.pace.hold()
    with visit(browser, app) as page:
        start(page, app)
        app.pace.let(1)
        wait_frames(page, 1)
        former = run_shown(page)
        page.click("#start-video")
        wait(page, f"{STATS}.run !== '{former}'")
        app.pace.let(None)
        wait_status(page, "done")
        assert app.runs.manifest(former)["status"] == "stopped"


def test_a_link_opens_the_run_in_a_fresh_browser_and_fits_a_phone(browser, app, finished):
    with visit(browser, app, f"/?run={finished}", viewport={"width": 390, "height": 844}) as page:
        wait_frames(page, 6)
        assert run_shown(page) == finished
        assert page.locator(VIEWER).get_by_text("Finished").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_reload_shows_the_run_that_was_started_and_not_that_of_the_link(browser, app, finished):
    with visit(browser, app, f"/?run={finished}") as page:
        wait_frames(page, 6)
        start(page, app)
        wait(page, f"{STATS}.run !== '{finished}'")
        own = run_shown(page)
        wait_status(page, "done")
        page.reload()
        wait(page, f"{STATS}?.frames === 6")
        assert run_shown(page) == own


def test_a_link_to_no_run_says_so(browser, app):
    with visit(browser, app, f"/?run={'x' * 22}") as page:
        for run in ("x" * 22, "../../etc/passwd", "%3Cimg src=x onerror=alert(1)%3E"):
            page.goto(f"{app.url}/?run={run}")
            page.locator(VIEWER).get_by_text("no such run").first.wait_for()


def test_a_bad_video_is_refused_on_the_page_and_markup_in_its_name_stays_text(browser, app, tmp_path):
    bad = tmp_path / "<img src=x onerror=document.title='hacked'>.mp4"
    bad.write_bytes(b"no video at all")
    with visit(browser, app) as page:
        page.set_input_files("input[type=file] >> nth=0", bad)
        page.wait_for_selector("video")
        page.click("#start-video")
        page.get_by_text("cannot be opened").first.wait_for()
        assert page.title() != "hacked"
        assert stats(page)["run"] is None


def test_every_rule_for_the_memory_can_be_chosen_and_the_manifest_says_which_was(browser, app):
    with visit(browser, app) as page:
        upload(page, app.video)
        page.get_by_role("button", name="Settings ▼").click()
        page.get_by_label("Remember in 8 bits").check()
        used, former = [], None
        for choice in MEMORIES.values():
            page.get_by_label(choice.label).check()
            page.click("#start-video")
            wait(page, f"{STATS}.run !== {json.dumps(former)} && {STATS}.status === 'done'")
            former = run_shown(page)
            settings = app.runs.manifest(former)["settings"]
            used.append((settings["memory"], settings["compress"]))
        assert used == [(memory, True) for memory in MEMORIES]


def test_the_scene_on_the_page_follows_a_path_that_was_corrected_at_the_end(browser, app):
    with visit(browser, app) as page:
        fetched = []
        page.on("request", lambda request: fetched.append(request.url) if "/chunks/" in request.url else None)
        page.get_by_role("button", name="Settings ▼").click()
        page.get_by_label("Long video").check()
        app.pace.hold()
        start(page, app)
        app.pace.let(5)
        wait_frames(page, 5)
        app.pace.let(None)
        wait_status(page, "done")
        page.wait_for_function(f"{STATS}.frames === 6")
        page.locator(VIEWER).get_by_text("follow the corrected path").first.wait_for()
        assert [url.endswith("?edition=1") for url in fetched[-6:]] == [True] * 6
        assert not any("?edition" in url for url in fetched[:5])


def test_images_become_a_scene(browser, app, tmp_path):
    from PIL import Image

    for index in range(3):
        Image.new("RGB", (64, 48), (60 * index, 90, 120)).save(tmp_path / f"{index}.png")
    with visit(browser, app) as page:
        page.get_by_role("tab", name="Images").click()
        page.locator("input[type=file][multiple]").set_input_files(sorted(tmp_path.glob("*.png")))
        page.locator(".file-preview").wait_for()
        page.click("#start-images")
        wait_status(page, "done")
        wait_frames(page, 3)


FAKE_CAMERA = """
navigator.mediaDevices.getUserMedia = async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 112, height: 84 });
  const pen = canvas.getContext("2d");
  let shade = 0;
  setInterval(() => { pen.fillStyle = `rgb(${shade = (shade + 9) % 256}, 90, 120)`; pen.fillRect(0, 0, 112, 84); }, 50);
  return canvas.captureStream(20);
};
"""


def test_the_live_camera_grows_a_scene_until_it_is_stopped_and_without_one_nothing_starts(browser, app):
    with visit(browser, app) as page:
        page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('denied'); }; }")
        page.get_by_role("tab", name="Live camera").click()
        page.click("#start-camera")
        page.get_by_text("There is no camera: denied").wait_for()
        assert stats(page)["run"] is None
        page.evaluate(f"() => {{ {FAKE_CAMERA} }}")
        page.click("#start-camera")
        wait(page, f"{STATS}?.frames >= 3")
        page.locator(VIEWER).get_by_role("button", name="Stop").click()
        wait_status(page, "stopped")
        page.get_by_text("the camera is off").wait_for()


def test_the_camera_goes_off_when_another_scene_is_opened(browser, app, finished):
    with visit(browser, app) as page:
        page.evaluate(f"() => {{ {FAKE_CAMERA} }}")
        page.get_by_role("tab", name="Live camera").click()
        page.click("#start-camera")
        wait(page, f"{STATS}?.frames >= 1")
        live = run_shown(page)
        page.evaluate(f"window.streamvggtPage.open('{finished}')")
        page.get_by_text("Another scene is shown; the camera is off.").wait_for()
        assert page.evaluate("document.querySelector('#camera video').srcObject") is None
        wait_for(app.runs, live, lambda manifest: manifest["status"] == "stopped")


def test_the_keyboard_alone_is_enough(browser, app):
    with visit(browser, app) as page:
        with page.expect_file_chooser() as coming:
            for _ in range(30):
                page.keyboard.press("Tab")
                if "Click to Upload" in page.evaluate("document.activeElement.textContent"):
                    page.keyboard.press("Enter")
                    break
        coming.value.set_files(app.video)
        page.wait_for_selector("video[src], video source")
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "start-video":
                page.keyboard.press("Enter")
                break
        wait_status(page, "done")
        wait_frames(page, 6)
        before = stats(page)["camera"]
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.querySelector('{VIEWER}').shadowRoot.activeElement?.className") == "scene":
                break
        page.keyboard.press("Shift+ArrowLeft")
        wait(page, f"!{STATS}.moving")
        assert not np.allclose(stats(page)["camera"], before, atol=1e-3)


def test_axe_finds_no_serious_fault_in_what_is_ours(browser, app, finished):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: run 'make setup'")
    with visit(browser, app, f"/?run={finished}") as page:
        wait_frames(page, 6)
        page.evaluate(AXE.read_text())
        for scheme in ("light", "dark"):
            page.evaluate(f"document.body.classList.toggle('dark', {str(scheme == 'dark').lower()})")
            report = page.evaluate("axe.run({include: [['#intro'], ['#stage'], ['#camera'], ['#examples']]})")
            serious = [fault for fault in report["violations"] if fault["impact"] in ("serious", "critical")]
            assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious] == [], scheme


def test_without_webgl_there_is_a_message_and_the_files(browser, app, finished):
    with page_of(browser) as page:
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.goto(f"{app.url}/?run={finished}")
        wait(page, f"{STATS}?.status === 'done'")
        assert stats(page)["webgl"] is False
        page.locator(VIEWER).get_by_text("WebGL").first.wait_for()
        assert page.locator(VIEWER).locator(".downloads a").count() == 6
