"""Runs without a page for the tests of the app: inputs, a clock that is turned by hand, work that waits for a nod."""

import asyncio
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np

from demo.jobs import Runs
from demo.run import FINISHED
from demo.settings import Limits, RunSettings

LIMITS = Limits()
TINY = RunSettings(fps=10, model="tiny", width_px=56)


class Clock:
    """Seconds that pass when told so."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now

    def pass_s(self, seconds):
        self.now += seconds


class Still:
    """A source of grey frames for work that looks at none."""

    title, total, note, live = "still", None, "", False

    def __init__(self, title="still", total=None, nbytes=0):
        self.title, self.total, self.nbytes = title, total, nbytes
        self.closed = False

    def kept_in(self, folder):
        return self

    def frames(self, settings, limits, has_ended):
        return iter(())

    def close(self):
        self.closed = True


class Work:
    """Does the work of a run step by step: each ``nod`` lets one run make one chunk, or end."""

    def __init__(self):
        self.begun = queue.Queue()
        self._nods = {}
        self._lock = threading.Lock()

    def nods(self, run_id):
        with self._lock:
            return self._nods.setdefault(run_id, queue.Queue())

    def nod(self, run_id, what="chunk"):
        self.nods(run_id).put(what)

    def settle(self, run_id):
        """Wait until every nod is done, and so is the look at whether the run must end."""
        self.nods(run_id).join()

    def __call__(self, run):
        self.begun.put(run.id)
        while True:
            what = self.nods(run.id).get(timeout=20)
            try:
                if isinstance(what, BaseException):
                    raise what
                if what == "end":
                    return None
                if what == "chunk":
                    run.grown(cache_bytes=1, points=1, conf_percentiles=[])
                if run.ending is not None:
                    return run.ending
            finally:
                self.nods(run.id).task_done()


def make_runs(folder, work, limits=LIMITS, **options):
    options = {"workers": 1, "clock": Clock(), "tidy_in_background": False} | options
    return Runs(folder / "runs", folder / "examples", work, limits, **options)


def run_async(coroutine):
    """Run a coroutine in a thread of its own: Playwright keeps an event loop running in the main one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def wait_for(runs, run_id, is_so, viewer="test"):
    """Follow a run as a page does until its manifest is as wanted, and return that."""

    async def follow():
        manifest = await runs.newer_manifest(run_id, 0, viewer)
        while not is_so(manifest):
            assert manifest["status"] not in FINISHED, manifest
            manifest = await runs.newer_manifest(run_id, manifest["version"], viewer)
        return manifest

    return run_async(asyncio.wait_for(follow(), 60))


def wait_for_end(runs, run_id):
    return wait_for(runs, run_id, lambda manifest: manifest["status"] in FINISHED)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def write_video(path, num_frames=4, size_wh=(112, 84), rate=10, codec="libx264"):
    """Write a video of a bright square that wanders over a chequered wall."""
    width, height = size_wh
    y, x = np.mgrid[:height, :width]
    wall = np.where((x // 14 + y // 14) % 2, 90, 150).astype(np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = np.repeat(wall[..., None], 3, axis=2)
            left = 7 * index % max(1, width - 28)
            picture[height // 3 : height // 3 + 28, left : left + 28] = (250, 180, 60)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def never():
    return False


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
