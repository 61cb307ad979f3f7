"""The HTTP side of runs: manifest, chunks, downloads, stop, and frames of a live camera.

All of it is under ``/runs/``, as routes that any Starlette application can take.
"""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import streamvggt

from .inputs import InputError
from .jobs import EXAMPLE_ID, RunNotFoundError, Runs
from .results import MEDIA_TYPES, NotReadyError, result_path
from .run import chunk_path

_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
_CHECKED = {"Cache-Control": "no-cache"}  # kept, but asked for anew by its tag
_NEVER = {"Cache-Control": "no-store"}
_MAKING_AT_ONCE = 4  # downloads that may wait for their file in a thread; the page shares its threads with all else

VIEWER = Path(streamvggt.__file__).parent / "viewer.js"
PICTURE = "picture.jpg"

Endpoint = Callable[[Request], Awaitable[Response]]


def run_routes(runs: Runs) -> list[Route]:
    """Make the routes of ``runs``."""
    making = CapacityLimiter(_MAKING_AT_ONCE)

    async def manifest(request: Request) -> Response:
        run_id = request.path_params["run"]
        version = _whole_number(request, "version", -1)
        poll = asyncio.ensure_future(runs.newer_manifest(run_id, version, viewer_of(request)))
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait((poll, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not poll.done():  # who went away in mid-poll does not watch any more
            poll.cancel()
            return Response(status_code=499)
        return JSONResponse(poll.result(), headers=_NEVER)

    async def chunk(request: Request) -> Response:
        run_id, index = request.path_params["run"], request.path_params["index"]
        path = chunk_path(runs.find(run_id), index, _whole_number(request, "edition", 0))
        # The id of an example outlives a change of the example.
        headers = _CHECKED if EXAMPLE_ID.fullmatch(run_id) else _FOREVER
        return _file(path, "model/gltf-binary", headers)

    async def download(request: Request) -> Response:
        run_id, result = request.path_params["run"], request.path_params["format"]
        if result not in MEDIA_TYPES:
            return _refusal(404, f"There is no format {result[:20]!r}; choose one of {', '.join(MEDIA_TYPES)}.")
        folder, manifest = runs.find(run_id), runs.manifest(run_id)
        path = await to_thread.run_sync(result_path, folder, manifest, result, limiter=making)
        return _file(path, MEDIA_TYPES[result], _NEVER, path.name)

    async def picture(request: Request) -> Response:
        return _file(runs.find(request.path_params["run"]) / PICTURE, "image/jpeg", _CHECKED)

    async def viewer(request: Request) -> Response:
        return _file(VIEWER, "text/javascript; charset=utf-8", _CHECKED)

    async def stop(request: Request) -> Response:
        runs.stop(request.path_params["run"])
        return JSONResponse({"stopping": True}, headers=_NEVER)

    async def frames(request: Request) -> Response:
        camera = runs.camera(request.path_params["run"])
        if camera is None:
            return _refusal(409, "This run takes no frames: it has ended, or has no live camera.")
        jpeg = await _body(request, runs.limits.live_jpeg_bytes)
        if jpeg is None:
            return _refusal(413, f"A frame may have {runs.limits.live_jpeg_bytes:,} bytes at most.")
        return JSONResponse({"dropped": camera.put(jpeg)}, headers=_NEVER)

    return [
        _route("/runs/viewer.js", viewer),
        _route("/runs/{run}/picture", picture),
        _route("/runs/{run}/manifest", manifest),
        _route("/runs/{run}/chunks/{index:int}.glb", chunk),
        _route("/runs/{run}/download/{format}", download),
        _route("/runs/{run}/stop", stop, "POST"),
        _route("/runs/{run}/frames", frames, "POST"),
    ]


def viewer_of(request: HTTPConnection) -> str:
    """Tell viewers apart: by address and browser."""
    return f"{address_of(request)} {request.headers.get('user-agent', '')[:200]}"


def address_of(request: HTTPConnection) -> str:
    """Return the address that a request comes from, as far as it is known."""
    return request.client.host if request.client else ""


def _whole_number(request: Request, name: str, default: int) -> int:
    try:
        return int(request.query_params.get(name, default))
    except ValueError as error:
        raise InputError(f"{name} must be a whole number.") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RunNotFoundError:
            return _refusal(404, "There is no such run: the link is wrong, or the run was deleted.")
        except NotReadyError as error:
            return _refusal(409, str(error))
        except InputError as error:
            return _refusal(400, str(error))
        except FileNotFoundError:
            return _refusal(404, "There is no such file: the run was deleted meanwhile.")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return _refusal(507, "The disk of the server is full. Try again later.")
        except ClientDisconnect:
            return Response(status_code=499)

    return Route(path, guarded, methods=[method])


async def _body(request: Request, limit: int) -> bytes | None:
    """Read a body of at most ``limit`` bytes; None if it has more."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _file(path: Path, media_type: str, headers: dict[str, str], name: str | None = None) -> Response:
    if not path.is_file():
        return _refusal(404, "There is no such file, or not yet.")
    return FileResponse(path, media_type=media_type, headers=headers, filename=name)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=_NEVER)
