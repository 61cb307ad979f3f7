"""The folders of servers, one each below a common place; a lock tells which of them are in use.

A server's folder has nothing but runs, for Gradio serves it; the lock and what visitors sent lie beside it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from .settings import Limits

RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")


def uploads_of(folder: Path) -> Path:
    """Return where the files lie that visitors of a server sent, until the runs on them end."""
    return folder.with_name(f"{folder.name}-uploads")


def lock_folder(folder: Path) -> BaseFileLock | None:
    """Take the folder of a server, until the lock is released or the process ends; None where another has it.

    Raises:
        OSError: the lock cannot be written.
    """
    lock = FileLock(f"{folder}.lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


@contextmanager
def left_beside(folder: Path) -> Iterator[list[Path]]:
    """Hold the folders beside ``folder`` whose servers are gone."""
    with ExitStack() as held:
        folders = []
        for path in folder.parent.glob("[0-9]*.lock"):
            other = path.with_suffix("")
            with suppress(OSError):  # that of another user
                if other != folder and (lock := lock_folder(other)):
                    held.callback(lock.release)
                    folders.append(other)
        yield folders


def delete_old_runs(folders: Iterable[Path], is_held: Callable[[str], bool], limits: Limits, now_s: float) -> None:
    """Delete runs that are too old, then the oldest until all together are small enough.

    Args:
        folders: of servers.
        is_held: whether the run of this id stays in any case; it does not count.
        limits: the server's.
        now_s: seconds since 1970.
    """
    finished = []
    for run in (run for folder in folders if folder.is_dir() for run in folder.iterdir()):
        if RUN_ID.fullmatch(run.name) and not is_held(run.name):
            with suppress(OSError):
                finished.append((run.stat().st_mtime, _size(run), run))
    total = sum(size for _, size, _ in finished)
    for modified_s, size, run in sorted(finished):
        if now_s - modified_s > limits.keep_s or total > limits.keep_bytes:
            shutil.rmtree(run, ignore_errors=True)
            total -= size


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
