"""The released size, 1.26 billion weights, on a CPU."""

import json
import subprocess
import sys

import pytest

STREAM = """
import json, resource, torch
from streamvggt import StreamSession, StreamVGGT, StreamVGGTConfig
import numpy as np

with torch.device("meta"):
    model = StreamVGGT(StreamVGGTConfig.vggt_1b())
model.to_empty(device="cpu").eval()
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith(("weight", "gamma")) else 0.0)
session = StreamSession(model)
frames = np.random.default_rng(0).integers(0, 256, (3, 294, 518, 3), dtype=np.uint8)
said = [session.step(frame) for frame in frames]
print(json.dumps({
    "finite": all(bool(np.isfinite(p.depth).all() and np.isfinite(p.world_points).all()) for p in said),
    "size": said[-1].depth.shape,
    "held": session.held_frames,
    "cache_mib": session.nbytes / 2**20,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.slow
def test_the_released_size_streams_three_frames_within_12_gib():
    run = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    assert result["finite"]
    assert result["size"] == [294, 518]
    assert result["held"] == [0, 1, 2]
    # Three frames of 782 tokens, 24 layers 1024 wide, and 16 camera caches 2048 wide; K and V in float32. And each
    # frame's mean key, 1024 wide.
    assert result["cache_mib"] == pytest.approx(3 * (8 * (24 * 782 * 1024 + 16 * 2048) + 4 * 1024) / 2**20)
    assert result["peak_gib"] < 12
