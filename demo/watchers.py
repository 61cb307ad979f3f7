"""Who looks at a run: long polls that are open, and when the last one was."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchers:
    """Count the viewers of one run.

    Args:
        clock: seconds, ever growing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._present: Counter[str] = Counter()
        self._last_seen: dict[str, float] = {}
        self._since = clock()

    @contextmanager
    def watching(self, viewer: str) -> Iterator[None]:
        """Count a viewer as present for the time of the block."""
        with self._lock:
            self._present[viewer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._present -= Counter({viewer: 1})
                self._last_seen[viewer] = self._clock()

    @property
    def idle_s(self) -> float:
        """Seconds since the last viewer went away; 0 while there is one."""
        with self._lock:
            if self._present:
                return 0.0
            return self._clock() - max(self._last_seen.values(), default=self._since)

    def others(self, viewer: str, within_s: float) -> bool:
        """Tell whether anybody but one ``viewer`` is present, or was lately: between two polls nobody is.

        Viewers of one name, such as two windows of a browser, are only told apart while both are present.
        """
        with self._lock:
            if self._present[viewer] > 1:
                return True
            now = self._clock()
            lately = {who for who, when in self._last_seen.items() if now - when <= within_s}
            return bool((lately | set(+self._present)) - {viewer})
