"""Frames from a visitor's camera: the newest wins when the network is slower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from streamvggt import Frame

from .inputs import check_live_frame, decode_live_frame
from .settings import Limits, RunSettings


class LiveCamera:
    """A source of frames that a browser fills while the run goes on.

    Args:
        limits: what the server allows.
        clock: seconds, ever growing.
    """

    title = "Live camera"
    total = None
    note = ""
    live = True
    nbytes = 0

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._newest: tuple[float, bytes] | None = None
        self._closed = False
        self.dropped = 0

    def put(self, jpeg: bytes) -> int:
        """Hand in a frame; one that still waited gives way.

        Returns:
            Frames that gave way so far.

        Raises:
            InputError: it is no JPEG, or too large.
        """
        check_live_frame(jpeg, self._limits)
        with self._changed:
            if self._newest is not None:
                self.dropped += 1
            self._newest = (self._clock(), jpeg)
            self._changed.notify_all()
            return self.dropped

    def close(self) -> None:
        """End the stream after the frame that waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def kept_in(self, folder: Path) -> LiveCamera:
        """See :class:`demo.run.Source`: there is no file."""
        return self

    def frames(self, settings: RunSettings, limits: Limits, has_ended: Callable[[], bool]) -> Iterator[Frame]:
        """Yield the newest frame each time one is asked for, until none came for ``live_idle_s``."""
        first_s = None
        index = 0
        while index < limits.live_frames:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closed, limits.live_idle_s)
                if self._newest is None:
                    return
                (time_s, jpeg), self._newest = self._newest, None
            image = decode_live_frame(jpeg)
            if image is None:
                if has_ended():
                    return
                continue
            first_s = time_s if first_s is None else first_s
            yield Frame(image, index, time_s - first_s)
            index += 1
