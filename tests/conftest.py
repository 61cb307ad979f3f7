"""Fixtures that several test files share."""

from __future__ import annotations

import browser as browsers
import pytest


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests of a session; see browser.py for pages and servers."""
    reason = browsers.missing()
    if reason:
        pytest.skip(reason)
    with browsers.launched() as started:
        yield started
