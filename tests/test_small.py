"""The bundled model: it is there, small enough, streams exactly, and sees what it was measured to see."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import naive_forward, relative_error

from streamvggt import StreamSession, load_model, read_frames
from streamvggt.checkpoint import BUNDLED_MODEL
from streamvggt.config import StreamVGGTConfig
from streamvggt.data import SyntheticSource
from streamvggt.evaluate import evaluate_clips
from streamvggt.validation import FIRST_HELD_OUT_SEED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small():
    return load_model()


def test_it_is_the_default_needs_no_network_and_fits_the_repository(small):
    assert small.config == StreamVGGTConfig.small()
    assert not small.training
    assert BUNDLED_MODEL.stat().st_size < 40e6
    if (ROOT / ".git").exists():
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]
        assert sum(file.stat().st_size for file in files) < 56e6


def test_its_card_says_where_it_comes_from():
    card = (BUNDLED_MODEL.parent / "README.md").read_text()
    assert all(word in card for word in ("Apache-2.0", "DINOv2", "AbsRel", "Limits"))


def test_a_stream_of_its_trained_weights_equals_the_batch_and_the_naive_network(small):
    video = SyntheticSource(5).clips([FIRST_HELD_OUT_SEED + 77], 5, (1, 1), (84, 112)).images
    want = naive_forward(small, video)
    with torch.no_grad():
        batch = small(video)
    state = small.new_state()
    frames = [small(frame, state=state) for frame in video.split([1, 2, 1, 1], dim=1)]
    for name in ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"):
        streamed = torch.cat([getattr(frame, name) for frame in frames], dim=1)
        assert relative_error(getattr(batch, name), getattr(want, name)) < 1e-4, name
        assert relative_error(streamed, getattr(want, name)) < 1e-4, name


def test_its_depth_of_scenes_that_it_never_saw_beats_every_answer_that_needs_no_image(small):
    seeds = range(FIRST_HELD_OUT_SEED + 5000, FIRST_HELD_OUT_SEED + 5012)
    clips = SyntheticSource(7).clips(seeds, 3, (2, 2), (126, 168)).normalized()
    rows = evaluate_clips(small, clips)["rows"]
    trivial = min(rows[name]["abs_rel_median"] for name in ("constant depth", "depth template"))
    assert rows["model"]["abs_rel_median"] < 0.9 * trivial


@pytest.mark.parametrize("clip", sorted((ROOT / "assets").glob("*.mp4")), ids=lambda path: path.stem)
def test_example_clips_come_out_with_their_depth(small, clip):
    truth = np.load(clip.with_suffix(".npz"))["depth"]
    session = StreamSession(small)
    errors, flat = [], []
    for i, frame in enumerate(read_frames(clip, max_frames=6)):
        depth = torch.as_tensor(session.step(frame).depth)[None, None]
        true = torch.as_tensor(truth[i].astype(np.float32))
        depth = torch.nn.functional.interpolate(depth, size=true.shape, mode="bilinear")[0, 0]
        seen = true.isfinite() & (true > 0)
        depth, true = depth[seen] * (true[seen].median() / depth[seen].median()), true[seen]
        errors.append(((depth - true).abs() / true).mean().item())
        flat.append(((true.median() - true).abs() / true).mean().item())
    assert np.mean(errors) < 0.8 * np.mean(flat)
