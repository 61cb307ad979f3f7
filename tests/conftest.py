"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile

import browser as browsers
import pytest


def pytest_configure(config):
    """Give what servers, clients, browsers and other processes leave behind a folder that goes away with the tests.

    pytest's own temporary folders stay where they are: those of tests that failed are worth a look.
    """
    if hasattr(config, "workerinput"):  # a process of xdist has that of its parent
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.TemporaryDirectory(prefix="sv-", ignore_cleanup_errors=True)  # short: sockets lie in it
    config.add_cleanup(folder.cleanup)
    os.environ["TMPDIR"] = tempfile.tempdir = folder.name


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests of a session; see browser.py for pages and servers."""
    reason = browsers.missing()
    if reason:
        pytest.skip(reason)
    with browsers.launched() as started:
        yield started
