"""How fast the page shows what a run makes, beside Gradio's own 3D component on the same points.

python benchmarks/page.py --out benchmarks/page.md    # some minutes; needs Chromium

A run of made-up frames (no network) goes through the real page in headless Chromium with software WebGL: a worst case.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from atexit import register
from contextlib import contextmanager
from pathlib import Path

os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp()  # Gradio reads it while it is imported

import gradio as gr
import httpx
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import launched, page_of  # noqa: E402
from runs import Still, free_port  # noqa: E402

import streamvggt as sv  # noqa: E402
from demo.engine import Engine  # noqa: E402
from demo.jobs import Runs  # noqa: E402
from demo.run import chunk_path  # noqa: E402
from demo.settings import RunSettings  # noqa: E402
from demo.ui import build_demo, launch_options  # noqa: E402

register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

STATS = "window.streamvggtPage?.viewer()?.stats()"
IMAGE_HW = (168, 224)


def frame(index: int, num_points: int) -> tuple[sv.FramePrediction, sv.PointCloud]:
    """Make a frame: a strip of a tube that the camera flies through."""
    rng = np.random.default_rng(index)
    angle = rng.uniform(0, 2 * np.pi, num_points)
    depth = rng.uniform(1, 2, num_points) + 0.05 * index
    points = np.stack([np.cos(angle), np.sin(angle), depth], axis=1).astype(np.float32)
    colors = (127 + 120 * np.stack([np.cos(angle), np.sin(angle), np.cos(depth)], axis=1)).astype(np.uint8)
    extrinsics = np.column_stack([np.eye(3), [0, 0, -0.05 * index]]).astype(np.float32)
    intrinsics = np.array([[200, 0, 112], [0, 200, 84], [0, 0, 1]], np.float32)
    image = np.full((*IMAGE_HW, 3), (index * 7 % 256, 90, 140), np.uint8)
    ramp = np.broadcast_to(np.linspace(1, 2, IMAGE_HW[1], dtype=np.float32), IMAGE_HW)
    prediction = sv.FramePrediction(index, index / 10, image, depth=ramp, extrinsics=extrinsics, intrinsics=intrinsics)
    frame_index = np.full(num_points, index, np.int32)
    return prediction, sv.PointCloud(points, colors, np.ones(num_points, np.float32), frame_index)


class MadeUpWork:
    """The work of a run: writes a chunk each ``1 / rate`` s and notes when."""

    def __init__(self, num_frames: int, num_points: int, rate: float) -> None:
        self.chunks = [sv.frame_glb_bytes(*frame(index, num_points)) for index in range(num_frames)]
        self.num_points, self.rate = num_points, rate
        self.may_begin = threading.Event()
        self.written_at: list[float] = []

    def __call__(self, run) -> None:
        self.may_begin.wait()
        self.written_at = []
        begin = time.monotonic()
        for index, chunk in enumerate(self.chunks):
            time.sleep(max(0, begin + index / self.rate - time.monotonic()))
            sv.write_atomically(chunk_path(run.folder, index), chunk)
            run.grown(cache_bytes=0, points=(index + 1) * self.num_points, conf_percentiles=[])
            self.written_at.append(time.time())


@contextmanager
def page_server(work):
    """Serve the app with made-up work; yields its address and its runs."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine()
        runs = Runs(Path(folder), Path(folder) / "none", work)
        demo = build_demo(runs, engine)
        demo.launch(prevent_thread_lock=True, quiet=True, server_port=(port := free_port()), **launch_options(runs))
        try:
            yield f"http://127.0.0.1:{port}", runs
        finally:
            runs.close()
            demo.close()


def count_bytes(page) -> list[int]:
    """Count what the browser receives from now on; the list grows by the bytes of each piece."""
    received: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.dataReceived", lambda event: received.append(event["encodedDataLength"] or event["dataLength"]))
    return received


def is_blank(png: bytes) -> bool:
    """Whether a picture of the scene has next to no colour in it."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    return bool((pixels.max(-1) - pixels.min(-1) > 40).mean() < 0.01)


def drag(page, box: dict) -> None:
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 30, steps=4)
    page.mouse.up()


def ours(browser, num_frames: int, num_points: int, rate: float) -> dict[str, str]:
    work = MadeUpWork(num_frames, num_points, rate)
    with page_server(work) as (url, runs), page_of(browser) as page:
        run = runs.start(Still(total=num_frames), RunSettings())
        page.goto(f"{url}/?run={run}")
        page.wait_for_function(f"{STATS}?.run === '{run}'")
        received, marks, blank, captures = count_bytes(page), {}, 0, 0
        work.may_begin.set()
        page.wait_for_function(f"{STATS}.frames >= 5", polling=50)
        scene = page.locator("#stage .stage canvas").first
        drag(page, scene.bounding_box())
        before, at_drag = page.evaluate(f"{STATS}.camera"), page.evaluate(f"{STATS}.frames")
        marks[at_drag] = page.evaluate(f"{STATS}.bytes")
        while (frames := page.evaluate(f"{STATS}.frames")) < num_frames:
            marks[frames] = page.evaluate(f"{STATS}.bytes")
            blank += is_blank(scene.screenshot())
            captures += 1
            page.wait_for_timeout(400)
        stats = page.evaluate(STATS)
        marks[num_frames] = stats["bytes"]
        delays_ms = np.array(stats["appended_at_ms"]) - 1000 * np.array(work.written_at)
        counts = sorted(marks)
        first, last = counts[: max(2, len(counts) // 3)], counts[-max(2, len(counts) // 3) :]
        rates = [(marks[part[-1]] - marks[part[0]]) / max(part[-1] - part[0], 1) for part in (first, last)]
        kept = np.allclose(before, stats["camera"], atol=1e-6)
        page.wait_for_timeout(300)
        return {
            "bytes received": f"{sum(received) / 1e6:.1f} MB",
            "bytes an update, first third": f"{rates[0] / 1e3:.1f} kB",
            "bytes an update, last third": f"{rates[1] / 1e3:.1f} kB",
            "frames shown": f"{stats['frames']} of {num_frames}",
            "written to in scene, median": f"{np.median(delays_ms):.0f} ms",
            "written to in scene, 95th percentile": f"{np.percentile(delays_ms, 95):.0f} ms",
            f"view kept after a drag at frame {at_drag}": "yes" if kept else "no",
            "captures without a scene": f"{blank} of {captures}",
        }


def model3d(browser, num_frames: int, num_points: int, rate: float) -> dict[str, str]:
    """The same points through ``gr.Model3D``: each update is a file with all points so far.

    At most 30 updates, for the files of 300 would be gigabytes. Gradio leaves updates out where the browser is behind.
    """
    step = max(1, num_frames // 30)
    written_at: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:

        def grow():
            clouds = []
            begin = time.monotonic()
            for index in range(num_frames):
                clouds.append(frame(index, num_points)[1])
                if (index + 1) % step:
                    continue
                names = ("points", "colors", "confidence", "frame_index")
                whole = sv.PointCloud(*(np.concatenate([getattr(cloud, name) for cloud in clouds]) for name in names))
                path = Path(folder) / f"{index:06d}.glb"
                path.write_bytes(sv.glb_bytes(whole))
                time.sleep(max(0, begin + index / rate - time.monotonic()))
                written_at[path.name] = time.time()
                yield str(path)

        with gr.Blocks() as demo:
            button, shown = gr.Button("Start"), gr.Model3D(elem_id="scene")
            button.click(grow, None, shown)
        demo.launch(prevent_thread_lock=True, quiet=True, server_port=(port := free_port()), allowed_paths=[folder])
        try:
            with page_of(browser) as page:
                page.goto(f"http://127.0.0.1:{port}/")
                page.get_by_role("button", name="Start").wait_for()
                done: list[tuple[str, float, int]] = []  # name, when, bytes
                session = page.context.new_cdp_session(page)
                session.send("Network.enable")
                files: dict[str, tuple[str, float]] = {}  # by request: name, and how far the browser's clock is off

                def sent(event):
                    if (url := event["request"]["url"]).endswith(".glb"):
                        name = url.rpartition("/")[2]
                        files[event["requestId"]] = name, event["wallTime"] - event["timestamp"]

                def finished(event):
                    if event["requestId"] in files:
                        name, offset = files[event["requestId"]]
                        done.append((name, event["timestamp"] + offset, int(event["encodedDataLength"])))

                session.on("Network.requestWillBeSent", sent)
                session.on("Network.loadingFinished", finished)
                page.get_by_role("button", name="Start").click()
                blank = captures = 0
                end = time.monotonic() + 2 * num_frames / rate + 60
                last = f"{num_frames // step * step - 1:06d}.glb"
                while not (done and done[-1][0] == last) and time.monotonic() < end:
                    canvas = page.locator("#scene canvas").first
                    if done and canvas.count():
                        blank += is_blank(canvas.screenshot())
                        captures += 1
                    page.wait_for_timeout(400)
                sizes = [size for *_, size in done]
                third = max(1, len(sizes) // 3)
                delays_ms = [1000 * (there - written_at[name]) for name, there, _ in done]
                return {
                    "bytes received": f"{sum(sizes) / 1e6:.1f} MB",
                    "bytes an update, first third": f"{np.mean(sizes[:third]) / 1e3:.1f} kB",
                    "bytes an update, last third": f"{np.mean(sizes[-third:]) / 1e3:.1f} kB",
                    "frames shown": f"in {len(sizes)} of {num_frames // step} updates",
                    "written to in scene, median": f"{np.median(delays_ms):.0f} ms until loaded, drawn later",
                    "written to in scene, 95th percentile": f"{np.percentile(delays_ms, 95):.0f} ms",
                    "captures without a scene": f"{blank} of {captures}",
                }
        finally:
            demo.close()


def large(browser, num_points: int) -> dict[str, str]:
    """A finished run of many points, from opening it until all are in the scene; and the server's memory over runs."""
    work = MadeUpWork(100, num_points // 100, 1e6)
    work.may_begin.set()
    with page_server(work) as (url, runs):
        memory = []
        for _ in range(5):
            run = runs.start(Still(total=100), RunSettings())
            while runs.manifest(run)["status"] != "done":
                time.sleep(0.05)
            memory.append(resident_mb())
        with page_of(browser) as page:
            page.goto(f"{url}/?run=none")
            page.wait_for_function(f"{STATS} !== undefined")
            begin = time.monotonic()
            page.evaluate(f"window.streamvggtPage.open('{run}')")
            page.wait_for_function(f"{STATS}.frames === 100 && {STATS}.pointsDrawn > 0", timeout=120_000)
            seconds = time.monotonic() - begin
            stats = page.evaluate(STATS)
    return {
        f"{stats['points']:,} points in the scene after": f"{seconds:.1f} s",
        "server's memory after each of 5 runs": ", ".join(f"{value:.0f}" for value in memory) + " MB",
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def first_point(browser, video: Path) -> float:
    """Seconds from the button to the first point, on a server that has just started; the bundled network."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "STREAMVGGT_RUNS": folder}
        server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    httpx.get(url)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            with page_of(browser) as page:
                page.goto(f"{url}/?run=none")
                page.wait_for_function(f"{STATS} !== undefined", timeout=60_000)
                page.set_input_files("input[type=file] >> nth=0", str(video))
                page.wait_for_function("!document.querySelector('#video-input progress')")
                page.wait_for_timeout(2000)
                begin = time.monotonic()
                page.locator("#start-video").click()
                page.wait_for_function(f"{STATS}?.points > 0", polling=20, timeout=60_000)
                return time.monotonic() - begin
        finally:
            server.terminate()
            server.wait(timeout=20)


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--points", type=int, default=2000, help="of each frame")
    parser.add_argument("--rate", type=float, default=5.0, help="frames a second")
    parser.add_argument("--large", type=int, default=2_000_000, help="points of the large scene; 0 leaves it out")
    parser.add_argument("--servers", type=int, default=2, help="fresh servers for the time to the first point")
    parser.add_argument("--without-model3d", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with launched() as browser:
        size = (arguments.frames, arguments.points, arguments.rate)
        mine = ours(browser, *size)
        theirs = {} if arguments.without_model3d else model3d(browser, *size)
        rest = large(browser, arguments.large) if arguments.large else {}
        times = [first_point(browser, ROOT / "assets" / "living_room.mp4") for _ in range(arguments.servers)]
    if times:
        rest["button to first point, fresh servers"] = ", ".join(f"{value:.1f}" for value in times) + " s"
    lines = [
        "# The page, measured in a browser",
        "",
        f"    python benchmarks/page.py {' '.join(sys.argv[1:])}".rstrip(),
        "",
        f"{arguments.frames} frames of {arguments.points:,} points, {arguments.rate:g} a second; Chromium, software "
        f"WebGL; {os.cpu_count()} CPU threads, load {load:.1f} before the run; "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        "| | this page | `gr.Model3D` |",
        "|---|--:|--:|",
        *(f"| {name} | {value} | {theirs.get(name, '-')} |" for name, value in mine.items()),
        *(f"| {name} | {value} | - |" for name, value in rest.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        sv.write_atomically(arguments.out, text.encode())


if __name__ == "__main__":
    main()
