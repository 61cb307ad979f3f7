"""The viewer's bundle in a real browser, fed by a small server of its own."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from browser import page_of, served
from chunks import chunk, moved, wall
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "streamvggt" / "viewer.js"

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


def frames(count, points=2000, start=0):
    """Chunks of walls side by side, each seen by a camera in front of it."""
    return [chunk(i, wall(i, points), moved(x=i)) for i in range(start, start + count)]


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
    with page_of(browser, **options) as page:
        page.goto(address)
        page.evaluate("run => { window.v = StreamVGGT.mount(document.querySelector('#one')); v.open(run); }", run)
        yield page


def wait(page, condition):
    """Wait until a condition on ``s``, the viewer's statistics, holds; returns them."""
    page.wait_for_function(f"() => {{ const s = v.stats(); return {condition}; }}", timeout=15_000)
    return page.evaluate("v.stats()")


def test_chunks_arrive_one_by_one(browser, server, address):
    run = server.run()
    with opened(browser, address) as page:
        for number, piece in enumerate(frames(3), start=1):
            run.add(piece)
            stats = wait(page, f"s.frames === {number}")
            assert stats["points"] == stats["shown"] == 2000 * number
            assert stats["bytes"] == sum(map(len, run.chunks))
        run.change("done")
        assert wait(page, "s.status === 'done'")["frame"] == 2
    assert server.requests == [f"/runs/run-one/chunks/{i}.glb" for i in range(3)]
