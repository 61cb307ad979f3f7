"""Where the bytes of caches are counted, also for the moments between two calls."""

import weakref

from streamvggt import stores, tokens


class Ledger:
    """Counts the bytes of buffers that caches make and let go, at their worst moment."""

    def __init__(self, monkeypatch):
        self.now, self.most = 0, 0
        make = stores.new_buffer

        def counted(*args, **kwargs):
            buffer = make(*args, **kwargs)
            size = buffer.nbytes
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(buffer, self.gone, size)
            return buffer

        for module in (stores, tokens):
            monkeypatch.setattr(module, "new_buffer", counted)

    def gone(self, size):
        self.now -= size
