"""All runs: a fair queue in front of worker threads, their folders, and what becomes of runs that nobody wants.

A run outlives the request that started it: pages come and go, look at the manifest and fetch chunks by number. While
this process works on a run its manifest is in memory, and on disk for after a restart; a finished one is only on disk.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import EngineError
from .folders import RUN_ID, delete_old_runs, left_beside, uploads_of
from .inputs import InputError
from .live import LiveCamera
from .run import DOWNLOADS, FINISHED, MANIFEST, PREDICTIONS, Run, Source
from .settings import Limits, RunSettings

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

EXAMPLE_ID = re.compile(r"example-([a-z0-9][a-z0-9_-]{0,40})")

_TIDY_EVERY_S = 5.0
_POLL_S = 20.0  # a proxy may cut what is silent for longer
_STAYS_S = 300.0  # a failed run without files is still told of for so long


class RunNotFoundError(LookupError):
    """Raised for a run that never was, or is no more."""


class BusyError(RuntimeError):
    """Raised where the queue is full; the message is shown to the visitor."""


class Runs:
    """Start runs, find them, end them.

    Args:
        folder: that of all runs; uploads lie beside it, see :mod:`demo.folders`.
        examples: folder of finished runs that come with the page; each is there under ``example-<its name>``.
        work: does the work of one run in a worker thread; it returns a message where it ended before its time, and
            raises whatever goes wrong.
        limits: what the server allows.
        workers: runs that are worked on at once.
        clock: seconds since 1970.
        tidy_in_background: whether a thread calls :meth:`tidy` every few seconds.
        lock: on the folder; :meth:`close` gives it back.
    """

    def __init__(
        self,
        folder: Path,
        examples: Path,
        work: Callable[[Run], str | None],
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        *,
        workers: int = 2,
        clock: Callable[[], float] = time.time,
        tidy_in_background: bool = True,
        lock: BaseFileLock | None = None,
    ) -> None:
        self.folder, self.examples, self.limits = folder, examples, limits
        self._work, self._clock, self._lock = work, clock, lock
        self._runs: dict[str, Run] = {}  # at work, or lately finished
        self._queue: list[Run] = []
        self._at_work: set[str] = set()
        self._services = itertools.count(1)
        self._last_served: dict[str, int] = {}  # by owner
        self._changed = threading.Condition()
        self._closed = threading.Event()
        shutil.rmtree(uploads_of(folder), ignore_errors=True)  # of a server that was killed
        targets = [self._work_forever] * workers + [self._tidy_forever] * tidy_in_background
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def start(self, source: Source, settings: RunSettings, *, owner: str = "", former: str | None = None,
              viewer: str = "") -> str:  # fmt: skip
        """Put a run in the queue.

        Args:
            source: of its frames.
            settings: the visitor's choices.
            owner: who starts it; the queue takes turns between owners.
            former: the run that ``viewer`` watched until now; it is stopped unless others watch it.
            viewer: who starts it, as :meth:`newer_manifest` knows viewers.

        Returns:
            The run's id, unguessable.

        Raises:
            BusyError: too many wait, or their uploads are too large together.
        """
        run_id = secrets.token_urlsafe(16)
        uploads = uploads_of(self.folder) / run_id
        self._require_room(source, former)
        try:
            source = source.kept_in(uploads)  # whoever took it in may delete it before its turn comes
            with self._changed:
                self._require_room(source, former)  # others may have come meanwhile
                run = Run(run_id, self.folder / run_id, source, settings, self.limits, owner=owner, clock=self._clock)
                self._runs[run_id] = run
                self._queue.append(run)
                self._changed.notify_all()
        except BaseException:
            shutil.rmtree(uploads, ignore_errors=True)
            raise
        self._tell_positions()
        if former:  # only now: whoever is refused keeps it
            self.leave(former, viewer)
        return run_id

    def find(self, run_id: str) -> Path:
        """Return the folder of a run.

        Raises:
            RunNotFoundError: there is none.
        """
        example = EXAMPLE_ID.fullmatch(run_id)
        if example:
            folder = self.examples / example[1]
        elif RUN_ID.fullmatch(run_id):
            folder = self.folder / run_id
        else:
            raise RunNotFoundError(run_id)
        if run_id not in self._runs and not (folder / MANIFEST).is_file():
            raise RunNotFoundError(run_id)
        return folder

    def manifest(self, run_id: str) -> dict[str, Any]:
        """Return the manifest of a run as it stands.

        Raises:
            RunNotFoundError: there is none.
        """
        run = self._runs.get(run_id)
        if run is not None:
            return run.manifest
        try:
            manifest = json.loads((self.find(run_id) / MANIFEST).read_bytes())
        except OSError as error:
            raise RunNotFoundError(run_id) from error
        if manifest["status"] not in FINISHED:
            interrupted = "The server was started anew while this run was at work; this is what there is."
            manifest |= {"status": "stopped", "message": interrupted, "queue_position": None}
            manifest |= {"version": manifest["version"] + 1, "downloads": list(DOWNLOADS) if manifest["count"] else []}
        return manifest | {"run": run_id}

    async def newer_manifest(self, run_id: str, version: int, viewer: str = "") -> dict[str, Any]:
        """Return the manifest of a run once it is newer than ``version``, or as it is after some 20 s.

        Meanwhile ``viewer`` counts as one who watches.

        Raises:
            RunNotFoundError: there is none.
        """
        run = self._runs.get(run_id)
        if run is None:
            return self.manifest(run_id)
        with run.watchers.watching(viewer):
            return await run.newer_manifest(version, _POLL_S)

    def stop(self, run_id: str) -> None:
        """End a run with what it has; nothing happens where it has ended.

        Raises:
            RunNotFoundError: there is none.
        """
        self.find(run_id)
        run = self._runs.get(run_id)
        if run is not None:
            run.stop()
            self._drop_unwanted()

    def leave(self, run_id: str, viewer: str) -> None:
        """Stop a run that ``viewer`` turns away from, unless others watch it."""
        run = self._runs.get(run_id)
        if run is not None and not run.finished and not run.watchers.others(viewer, _POLL_S):
            self.stop(run_id)

    def camera(self, run_id: str) -> LiveCamera | None:
        """Return the live camera of a run, None where it has none or has ended.

        Raises:
            RunNotFoundError: there is no such run.
        """
        self.find(run_id)
        run = self._runs.get(run_id)
        if run is None or run.finished or not isinstance(run.source, LiveCamera):
            return None
        return run.source

    def tidy(self) -> None:
        """Drop queued runs that nobody waits for, forget finished ones, delete old folders."""
        self._drop_unwanted()
        for run_id, run in list(self._runs.items()):
            if run.finished and run.watchers.idle_s > (0 if run.count else _STAYS_S):
                self._runs.pop(run_id, None)
        self._sweep()

    def close(self) -> None:
        """Stop all runs and threads; for tests and the end of the server."""
        self._closed.set()
        for run in list(self._runs.values()):
            run.stop()
        self._drop_unwanted()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._lock is not None:
            self._lock.release()

    def _require_room(self, source: Source, former: str | None) -> None:
        """Raise BusyError where a run on ``source`` cannot wait here."""
        with self._changed:
            if sum(run.id != former for run in self._queue) >= self.limits.waiting:
                raise BusyError(f"{len(self._queue)} visitors wait already. Please come back in some minutes.")
            held = sum(run.nbytes for run in self._runs.values() if not run.finished and run.id != former)
            if held + source.nbytes > self.limits.upload_bytes:
                raise BusyError(
                    f"The videos and images that wait already have {held / 2**20:,.0f} MB. "
                    "Please come back in some minutes, or take something smaller."
                )

    def _tidy_forever(self) -> None:
        while not self._closed.wait(_TIDY_EVERY_S):
            try:
                self.tidy()
            except Exception:
                logger.exception("tidying failed")

    def _work_forever(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed.is_set())
                if not self._queue:
                    continue
                run = self._in_turn()[0]
                self._queue.remove(run)
                self._at_work.add(run.id)
                waiting = {run.owner for run in self._queue}
                self._last_served = {who: when for who, when in self._last_served.items() if who in waiting}
                self._last_served[run.owner] = next(self._services)
            self._tell_positions()
            try:
                run.context.run(self._do, run)
            finally:
                with self._changed:
                    self._at_work.discard(run.id)

    def _do(self, run: Run) -> None:
        try:
            if (ending := run.ending) is None:
                run.begin()
                ending = self._work(run)
            self._end(run, *(("done", "") if ending is None else ("stopped", ending)))
        except Exception as error:
            self._end(run, "stopped" if run.count else "failed", _for_people(error))
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                self._make_room(run)

    def _end(self, run: Run, status: str, message: str) -> None:
        shutil.rmtree(uploads_of(self.folder) / run.id, ignore_errors=True)
        run.end(status, message)

    def _make_room(self, run: Run) -> None:
        """Give up what only downloads need, so that other runs can go on."""
        shutil.rmtree(run.folder / PREDICTIONS, ignore_errors=True)
        with suppress(OSError):
            run.update(downloads=[])

    def _in_turn(self) -> list[Run]:
        """The queue in the order of service: owners take turns, each in the order of coming."""
        turns: Counter[str] = Counter(self._runs[run_id].owner for run_id in self._at_work if run_id in self._runs)
        turn_of = {}
        for run in self._queue:
            turn_of[run.id] = turns[run.owner]
            turns[run.owner] += 1
        return sorted(self._queue, key=lambda run: (turn_of[run.id], self._last_served.get(run.owner, 0)))

    def _tell_positions(self) -> None:
        with self._changed:
            waiting = list(enumerate(self._in_turn()))
        for position, run in waiting:
            with suppress(OSError):  # a full disk: the visitor sees it when the run begins
                run.waits_behind(position)

    def _drop_unwanted(self) -> None:
        with self._changed:
            unwanted = [(run, ending) for run in self._queue if (ending := run.ending) is not None]
            self._queue = [run for run in self._queue if all(run is not other for other, _ in unwanted)]
        for run, ending in unwanted:
            self._end(run, "stopped", ending)
        if unwanted:
            self._tell_positions()

    def _sweep(self) -> None:
        """Delete what is too old or too much, also of servers that are gone."""
        with left_beside(self.folder) as left:
            for folder in left:
                shutil.rmtree(uploads_of(folder), ignore_errors=True)
            delete_old_runs([self.folder, *left], self._runs.__contains__, self.limits, self._clock())


def _for_people(error: Exception) -> str:
    """Say to a visitor what went wrong; what is no fault of the input goes to the log."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk of the server is full. Try again later, with fewer frames."
    if isinstance(error, InputError | EngineError | ValueError):
        return str(error)
    logger.error("a run failed", exc_info=error)
    return "Something went wrong on the server; its log tells more."
