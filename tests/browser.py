"""A real browser and a small server for tests of pages.

The session's browser is the fixture ``browser`` (conftest.py). Its synchronous API keeps an event loop running in the
main thread, so a test that calls ``asyncio.run`` must do so in a thread of its own.
"""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# WebGL without a graphics card, and no traffic of the browser's own.
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-pings",
    "--disable-features=Translate,OptimizationHints,MediaRouter,AutofillServerCommunication",
]


def missing() -> str | None:
    """Say why there is no browser, or None where there is one."""
    if CHROMIUM is None:
        return "Chromium is not installed; 'make browser' tries to"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright is not installed; 'make setup' does"
    return None


@contextmanager
def launched() -> Iterator[Any]:
    """Start Chromium; yields Playwright's ``Browser``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Any, **options: Any) -> Iterator[Any]:
    """Open a page in a fresh context (own storage, own cache) and fail at the end if a script of it threw.

    Args:
        browser: the fixture.
        options: of ``Browser.new_context``, such as ``viewport`` or ``color_scheme``.
    """
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    assert not errors, errors


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port; yields its address, without a slash at the end."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
    assert not thread.is_alive(), "the server did not stop"
