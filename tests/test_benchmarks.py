"""The benchmark runs, and the scheme that it compares with is what the released code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import golden_model, relative_error
from torch.nn import Conv2d, ConvTranspose2d, Linear

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_recreated_scheme_gives_the_depths_and_poses_of_the_released_streaming_code():
    from released_scheme import ReleasedStream

    model, expected = golden_model("dinov2-landscape")
    stream = ReleasedStream(model)
    said = [stream.step(images) for images in expected["images"].split(1, dim=1)]
    depth, poses = (torch.cat([getattr(p, name) for p in said], dim=1) for name in ("depth", "pose_enc"))
    assert relative_error(depth, expected["official_stream.depth"][..., 0]) < 1e-5
    assert relative_error(poses, expected["official_stream.pose_enc"]) < 1e-5
    # One cache for all rounds: without it the poses would be those of all frames at once.
    assert relative_error(poses, expected["causal.pose_enc"]) > 0.01


@pytest.mark.parametrize("scheme", ["ours", "released"])
def test_a_frame_that_is_taken_back_leaves_no_trace(scheme):
    from streaming import SCHEMES, Setup

    setup = Setup("tiny", (28, 42), "cpu", "fp32")
    model, frames = setup.model(), setup.frames()
    first, second, third, other = (next(frames) for _ in range(4))
    straight, wavering = SCHEMES[scheme](model), SCHEMES[scheme](model)
    straight.step(first)
    wavering.step(first)
    with wavering.undone():
        wavering.step(other)
    straight.step(second)
    wavering.step(second)
    assert relative_error(wavering.step(third).pose_enc, straight.step(third).pose_enc) < 1e-6


def test_the_floor_makes_every_matrix_product_and_attention_call_of_a_frame():
    from streaming import SCHEMES, Floor, Setup

    setup = Setup("tiny", (28, 42), "cpu", "fp32")
    model = setup.model()
    stream, floor, products = SCHEMES["ours"](model), Floor(), []
    for module in model.modules():
        if isinstance(module, (Linear, Conv2d, ConvTranspose2d)):
            module.register_forward_hook(lambda *_: products.append(1))
    with floor:
        stream.step(next(setup.frames()))
    config = model.config
    attention_calls = config.encoder_depth + 2 * config.depth + config.camera_iterations * config.camera_depth
    assert len(floor.calls) == len(products) + attention_calls
    outputs = [call() for call in floor.calls]
    assert outputs[0].shape == (1, 48, 2, 3)  # patch embedding: 48 channels on a grid of 28x42 pixels in patches of 14


def test_the_command_writes_a_row_for_each_length(tmp_path):
    out = tmp_path / "table.md"
    options = ["--config", "tiny", "--size", "28", "42", "--lengths", "1", "2", "--repeats", "2", "--out"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # fast whatever else runs
    command = [sys.executable, "benchmarks/streaming.py", *options, str(out)]
    subprocess.run(command, cwd=ROOT, env=one_thread, check=True)
    text = out.read_text()
    assert "python benchmarks/streaming.py --config tiny --size 28 42 --lengths 1 2 --repeats 2" in text
    rows = [re.findall(r"[^| ]+", line) for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["1", "2"]
    for row in rows:
        ours, released, floor, over_floor, gain = (float(cell) for cell in row[1:6])
        # Times are rounded to 0.1 ms and ratios to 0.01.
        for ratio, above, below in ((over_floor, ours, floor), (gain, released, ours)):
            assert below > 0.05 and above > 0
            assert (above - 0.05) / (below + 0.05) - 0.006 < ratio < (above + 0.05) / (below - 0.05) + 0.006


def test_the_benchmark_stops_when_the_schemes_do_not_agree(monkeypatch):
    import released_scheme
    import streaming

    monkeypatch.setattr(released_scheme, "rotate", lambda x, _table: x)
    with pytest.raises(SystemExit, match="differ"):
        streaming.measure_times(streaming.Setup("tiny", (28, 42), "cpu", "fp32"), [1], 1)


def test_a_walk_through_a_room_comes_back_to_where_it_began():
    from long_loop import room_loop

    images, poses = room_loop(2147500000, 6, 2, (14, 28))
    assert images.shape == (12, 14, 28, 3)
    centres = -(poses[:, :, :3].transpose(0, 2, 1) @ poses[:, :, 3:])[..., 0]
    steps = np.linalg.norm(centres[1:] - centres[:-1], axis=1)
    back = np.linalg.norm(centres[6:] - centres[:-6], axis=1)
    assert back.max() < 0.25 < steps.min()  # metres; only the height of the second lap is another
    np.testing.assert_allclose(poses[6:, :, :3], poses[:-6, :, :3], atol=1e-6)
    assert len({image.tobytes() for image in images}) == 12


def test_the_gap_of_a_lap_is_what_a_second_lap_is_off_in_any_world_and_unit():
    from long_loop import loop_gap

    def cameras(centres):
        return np.concatenate([np.tile(np.eye(3), (24, 1, 1)), -centres[..., None]], axis=2)

    angle, height = np.arange(24) * (np.pi / 6), 0.2
    laps = np.stack([np.cos(angle), 0.05 * np.sin(angle / 2), np.sin(angle)], 1)
    truth = cameras(laps * (1, 0, 1))
    assert loop_gap(cameras(7 * laps[:, [1, 2, 0]]), cameras(laps), 12) < 1e-9
    off = laps * (1, 0, 1) + np.where(np.arange(24) < 12, 0, height)[:, None] * (0, 1, 0)
    scale = 1 / (1 + height**2 / 4)  # of the best similarity: the two laps lie at plus and minus half the height
    want = 100 * scale * height / (12 * 2 * np.sin(np.pi / 12))
    assert loop_gap(cameras(7 * off[:, [1, 2, 0]]), truth, 12) == pytest.approx(want)


def test_a_stream_that_holds_random_frames_is_measured_against_its_floor(capsys, monkeypatch):
    """By a clock that gives a frame 5 ms for each frame that it sees, and its floor 16 ms."""
    import floor

    def time_ms(_meter, call):
        call()
        stream = getattr(getattr(call, "func", None), "__self__", None)  # the floor has none
        return 16.0 if stream is None else 5.0 * len(stream.state.held_frames)

    monkeypatch.setattr(floor.Meter, "time_ms", time_ms)
    options = [
        "--config",
        "tiny",
        "--size",
        "28",
        "42",
        "--held",
        "3",
        "--repeats",
        "1",
        "--storages",
        "native",
        "int8",
    ]
    floor.main(options)
    rows = [re.findall(r"[^| ]+", line) for line in capsys.readouterr().out.splitlines() if re.match(r"\| [A-Z]", line)]
    # Whole frames of a bounded policy go one for one; a budget of tokens takes the frame beside what is left of others.
    fourth, bounded = ["3", "20.0", "16.0", "1.25"], ["3", "15.0", "16.0", "0.94"]
    names = {"KeepAll": fourth, "AnchorWindow": bounded, "Keyframes": bounded}
    names |= {"KeyDiversity": fourth, "QueryImportance": fourth}
    assert [row[:6] for row in rows] == [[name, s, *row] for name, row in names.items() for s in ("native", "int8")]


def test_int8_is_measured_beside_native_storage_on_the_same_walk(tmp_path):
    import int8

    out = tmp_path / "int8.md"
    int8.main(["--model", "tiny", "--width", "28", "--held", "2", "--frames", "2", "--out", str(out)])
    [line] = [line for line in out.read_text().splitlines() if line.startswith("| walk 3")]
    row = [cell.strip() for cell in line.split("|")[1:-1]]
    # 2 frames of 9 tokens: 4 layers of keys and values 48 wide in float32; in int8 a byte each, and scales of 2 bytes,
    # one for each of 4 heads of a value and for each channel of a frame's keys.
    numbers = 2 * 9 * 4 * 48
    native, as_bfloat16, stored = 2 * 4 * numbers, 2 * 2 * numbers, 2 * numbers + 2 * (2 * 9 * 4 * 4 + 2 * 4 * 48)
    assert row[:6] == ["walk 3", "2", f"{native:,}", f"{as_bfloat16:,}", f"{stored:,}", f"{stored / as_bfloat16:.4f}"]
    assert float(row[6].removesuffix(" %")) < 0.1
    assert float(row[7]) == pytest.approx(float(row[8].split()[0]), rel=1e-2)


@pytest.mark.parametrize(("model", "rows"), [("small", 6), ("tiny", 5)])
def test_the_stages_of_a_frame_are_timed_and_matches_where_the_network_makes_some(model, rows, capsys, monkeypatch):
    import stages

    monkeypatch.setattr(
        sys, "argv", ["stages.py", "--model", model, "--size", "28", "42", "--held", "2", "--frames", "2"]
    )
    stages.main()
    lines = capsys.readouterr().out.splitlines()[4:]
    assert len(lines) == rows and ("camera by matches" in lines[-2]) == (model == "small")
