"""Many clients at the page's server at once: nothing crashes, no run gets another's frames, every folder goes away.

Each client uploads a clip of its own through ``/reconstruct``, fetches every chunk and compares the picture in it with
its clip; every third one vanishes in mid-run. At the end the folders are swept.

    python benchmarks/crowd.py --clients 20 --minutes 10
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import tempfile
import threading
import time
from atexit import register
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp()  # Gradio reads it while it is imported
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import av
import httpx
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from demo import engine as engines
from demo.engine import Engine
from demo.handlers import EXAMPLES
from demo.jobs import Runs
from demo.reconstruction import reconstruct
from demo.settings import Limits
from demo.ui import build_demo, launch_options
from streamvggt import load_model

# The client leaves a folder behind for each file that it fetches.
tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"]
register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

FRAMES = 6


def clip(path: Path, shade: int) -> Path:
    """Write a clip whose frames all have one grey of their own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for _ in range(FRAMES):
            picture = np.full((84, 112, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def shade_of(chunk: bytes) -> float:
    """Mean grey of the picture in a chunk."""
    size = struct.unpack_from("<I", chunk, 12)[0]
    document = json.loads(chunk[20 : 20 + size])
    image = next(image for image in document["images"] if image["name"] == "image")
    view = document["bufferViews"][image["bufferView"]]
    start = 20 + size + 8 + view.get("byteOffset", 0)
    with Image.open(io.BytesIO(chunk[start : start + view["byteLength"]])) as picture:
        return float(np.asarray(picture).mean())


def visit(url: str, folder: Path, number: int, deadline: float, seen: Counter[str], problems: list[str]) -> None:
    """Be one client until the time is up."""
    shade = 20 + 10 * number
    video = clip(folder / f"{number}.mp4", shade)
    client = Client(url, verbose=False)
    visits = 0
    while time.monotonic() < deadline:
        visits += 1
        try:
            job = client.submit(video=handle_file(video), fps=2, api_name="/reconstruct")
            manifest = None
            for manifest, _files in job:
                if number % 3 == 2 and manifest["count"] >= 2:
                    job.cancel()
                    break
            if manifest is None:
                raise job.exception() or RuntimeError("no manifest came")
            for index in range(manifest["count"]):
                chunk = httpx.get(f"{url}runs/{manifest['run']}/chunks/{index}.glb", timeout=60).raise_for_status()
                again = httpx.get(f"{url}runs/{manifest['run']}/chunks/{index}.glb", timeout=60).raise_for_status()
                if chunk.content != again.content:
                    problems.append(f"client {number}: chunk {index} changed")
                if abs(shade_of(chunk.content) - shade) > 4:
                    problems.append(f"client {number}: a frame of {shade_of(chunk.content):.0f}, not {shade}")
                seen["chunks"] += 1
            seen["runs vanished from" if number % 3 == 2 else f"runs {manifest['status']}"] += 1
        except Exception as error:  # whatever it is, it counts
            if "visitors wait already" in str(error):
                seen["refused, for the queue was full"] += 1
                time.sleep(1)
            else:
                problems.append(f"client {number}: {type(error).__name__}: {error}")


def main() -> None:
    """Run the crowd and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    engines.load_model = lambda source, **options: load_model("tiny", **options)  # the server is tried, not the network
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        engine = Engine()
        limits = replace(Limits(), grace_s=5, waiting=arguments.clients)
        runs = Runs(folder / "runs", EXAMPLES, partial(reconstruct, engine=engine), limits)
        demo = build_demo(runs, engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(runs))
        seen: Counter[str] = Counter()
        problems: list[str] = []
        memory = [held_mib()]
        deadline = time.monotonic() + 60 * arguments.minutes
        clients = [
            threading.Thread(target=visit, args=(url, folder, number, deadline, seen, problems))
            for number in range(arguments.clients)
        ]
        for client in clients:
            client.start()
        for part in range(4):
            time.sleep(15 * arguments.minutes)
            memory.append(held_mib())
            print(f"after {(part + 1) / 4:.0%} of the time: memory {memory[-1]} MiB, {dict(seen)}", flush=True)
        for client in clients:
            client.join()
        runs.limits = replace(limits, keep_s=0)
        left_at_work = [run_id for run_id, run in runs._runs.items() if not run.finished]
        runs.close()
        runs.tidy()
        runs.tidy()
        left = [path.name for path in (folder / "runs").glob("*/*")]
        demo.close()
    print(f"{arguments.clients} clients, {arguments.minutes:g} minutes: {dict(seen)}")
    print(f"problems: {len(problems)} {problems[:5]}; runs still at work at the end: {len(left_at_work)}")
    print(f"folders left after the sweep: {len(left)}; memory, MiB: {memory}")
    raise SystemExit(bool(problems or left))


def held_mib() -> int:
    """Memory of this process now (clients and server share it); Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    main()
