"""One run: its folder, its manifest, and who may end it."""

from __future__ import annotations

import asyncio
import contextvars
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from streamvggt import Frame, write_atomically

from .settings import Limits, RunSettings
from .watchers import Watchers

FINISHED = ("done", "stopped", "failed")
MANIFEST, CHUNKS, PREDICTIONS, RESULTS = "manifest.json", "chunks", "predictions", "results"

DOWNLOADS = (
    {"format": "glb", "name": "scene.glb", "label": "GLB: points and cameras, for 3D viewers"},
    {"format": "ply", "name": "scene.ply", "label": "PLY: points, for mesh tools"},
    {"format": "colmap", "name": "colmap.zip", "label": "COLMAP: sparse model and images"},
    {"format": "tum", "name": "trajectory.txt", "label": "TUM: camera path as text"},
    {"format": "npz", "name": "predictions.npz", "label": "NPZ: raw predictions"},
    {"format": "mp4", "name": "turntable.mp4", "label": "MP4: a turn of the scene, as a film"},
)


class Source(Protocol):
    """Where the frames of a run come from."""

    @property
    def title(self) -> str:
        """A short name for people."""

    @property
    def total(self) -> int | None:
        """Number of frames that will come, if it is known."""

    @property
    def note(self) -> str:
        """A remark for the visitor, or ""."""

    @property
    def live(self) -> bool:
        """Whether frames come from a camera while the run goes on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the files that hold the frames."""

    def kept_in(self, folder: Path) -> Source:
        """Return a source of the same frames whose files lie in a folder, made if there are any."""

    def frames(self, settings: RunSettings, limits: Limits, has_ended: Callable[[], bool]) -> Iterator[Frame]:
        """Yield the frames, one at a time; look at ``has_ended`` wherever the next one may be long in coming."""

    def close(self) -> None:
        """Let a call of :meth:`frames` that waits for a frame come to its end."""


class Run:
    """A run that this process works on, or lately did.

    Args:
        run_id: unguessable name.
        folder: where its files go; made with the first one.
        source: of its frames.
        settings: the visitor's choices.
        limits: the server's.
        owner: whoever started it, for a fair queue.
        clock: seconds, ever growing.
    """

    def __init__(
        self,
        run_id: str,
        folder: Path,
        source: Source,
        settings: RunSettings,
        limits: Limits,
        *,
        owner: str,
        clock: Callable[[], float],
    ) -> None:
        self.id, self.folder, self.source, self.settings, self.limits = run_id, folder, source, settings, limits
        self.owner, self.nbytes = owner, source.nbytes
        self.watchers = Watchers(clock)
        # What a request set up, such as whose GPU quota it is, holds for the thread that does the work.
        self.context = contextvars.copy_context()
        self._clock = clock
        self._stop = threading.Event()
        self._started: float | None = None
        self._has_folder = True
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._notes = [source.note] if source.note else []
        self._manifest: dict[str, Any] = {
            "run": run_id,
            "version": 1,
            "status": "queued",
            "message": "Waiting for a free place.",
            "queue_position": None,
            "title": source.title,
            "total": source.total,
            "count": 0,
            "live": source.live,
            "edition": 0,  # of the chunks: another one when all of them were written anew
            "stats": {"frames_per_s": 0.0, "cache_bytes": 0, "points": 0, "conf_percentiles": []},
            "downloads": [],
            "settings": settings.to_json(),
        }

    @property
    def manifest(self) -> dict[str, Any]:
        """A copy of the manifest as it stands."""
        with self._lock:
            return dict(self._manifest)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._manifest["status"] in FINISHED

    def update(self, **changes: Any) -> None:
        """Change the manifest, write it and wake whoever waits for it.

        Raises:
            OSError: it cannot be written; those who wait get it all the same.
        """
        with self._writing:
            if all(self._manifest[key] == value for key, value in changes.items()):
                return
            manifest = {**self._manifest, **changes, "version": self._manifest["version"] + 1}
            content = json.dumps(manifest, allow_nan=False).encode()  # what is no JSON reaches nobody
            try:
                if self._has_folder:
                    write_atomically(self.folder / MANIFEST, content)
            finally:
                self._publish(manifest)

    def _publish(self, manifest: dict[str, Any]) -> None:
        with self._lock:
            self._manifest = manifest
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

    def waits_behind(self, num_runs: int) -> None:
        """Tell how many runs come first, unless this one has left the queue."""
        with self._writing:
            if self._manifest["status"] == "queued":
                self.update(queue_position=num_runs)

    async def newer_manifest(self, version: int, timeout_s: float) -> dict[str, Any]:
        """Return the manifest once its version is above ``version``, or as it is after ``timeout_s``."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._lock:
            if self._manifest["version"] > version:
                return dict(self._manifest)
            self._waiters.append(waiter)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
        finally:
            with self._lock, suppress(ValueError):
                self._waiters.remove(waiter)
        return self.manifest

    def stop(self) -> None:
        """Ask the work to end with what it has."""
        self._stop.set()
        self.source.close()

    def notice(self, text: str) -> None:
        """Add a remark for the visitor."""
        self._notes.append(text)
        self.update(message=self._with_notes(""))

    def begin(self) -> None:
        """Note that the work starts now."""
        self._started = self._clock()
        self.update(status="running", message=self._with_notes(""), queue_position=None)

    def grown(self, **stats: Any) -> None:
        """Announce one more chunk.

        Args:
            stats: see the manifest; the rate is added here.
        """
        count = self._manifest["count"] + 1
        elapsed_s = max(self._clock() - (self._started or 0), 1e-6)
        self.update(count=count, stats={"frames_per_s": round(count / elapsed_s, 3), **stats})

    def renewed(self, **stats: Any) -> None:
        """Announce that all chunks were written anew.

        Args:
            stats: those that changed.
        """
        self.update(edition=self.edition + 1, stats={**self.manifest["stats"], **stats})

    @property
    def edition(self) -> int:
        """How often all chunks were written anew."""
        return self._manifest["edition"]

    @property
    def count(self) -> int:
        """Chunks so far."""
        return self._manifest["count"]

    @property
    def ending(self) -> str | None:
        """Why the work must end before its time, for the visitor; None if it need not."""
        if self._stop.is_set():
            return f"Stopped after {_frames(self.count)}."
        if self.watchers.idle_s > self.limits.grace_s:
            return f"Stopped after {_frames(self.count)}, for nobody was watching."
        if self._started is not None and self._clock() - self._started > self.limits.run_s:
            of = f" of {self.source.total}" if self.source.total else ""
            minutes = f"{self.limits.run_s / 60:.3g}"
            return f"The time limit of {minutes} minutes came after {_frames(self.count)}{of}; this is what there is."
        return None

    def end(self, status: str, message: str) -> None:
        """Write the last word. A run without a frame leaves no file behind."""
        if not self.count:
            with self._writing:  # or an update in another thread would make the folder anew
                self._has_folder = False
                shutil.rmtree(self.folder, ignore_errors=True)
        changes = {
            "status": status,
            "message": self._with_notes(message),
            "queue_position": None,
            "total": self.count,
            "downloads": list(DOWNLOADS) if self.count else [],
        }
        with suppress(OSError):  # a full disk: what is in memory holds
            self.update(**changes)

    def _with_notes(self, message: str) -> str:
        return " ".join([*filter(None, [message]), *self._notes])


def edition_folder(folder: Path, edition: int) -> Path:
    """Return where the chunks of an edition lie, and the corrections that they follow."""
    return folder / (f"{CHUNKS}-{edition}" if edition else CHUNKS)


def chunk_path(folder: Path, index: int, edition: int = 0) -> Path:
    """Return where the chunk of a frame lies."""
    return edition_folder(folder, edition) / f"{index:06d}.glb"


def corrections_path(folder: Path, edition: int) -> Path:
    """Return where the corrections that an edition follows lie; the first one follows none."""
    return edition_folder(folder, edition) / "corrections.npz"


def prediction_path(folder: Path, index: int) -> Path:
    """Return where the raw prediction of a frame lies."""
    return folder / PREDICTIONS / f"{index:06d}.npz"


def _frames(count: int) -> str:
    return "one frame" if count == 1 else f"{count} frames"
