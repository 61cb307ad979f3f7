"""Sessions as files, long ones above all: what follows a stop is bit for bit what follows without one."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from reference import lively

from streamvggt import (
    AnchorWindow,
    KeepAll,
    Keyframes,
    LongSession,
    SavedSessionError,
    StreamSession,
    StreamVGGTConfig,
    TokenBudget,
    load_model,
    save_model,
)

CUT = {"length": 8, "overlap": 3, "size": 70}  # sub-maps begin at 0, 5, 10, 15


@pytest.fixture(scope="module")
def tiny():
    """A network with every part of the bundled one, each as few times as can be."""
    few = {"depth": 2, "dense_layers": (0, 0, 1, 1), "encoder_depth": 1, "camera_depth": 1, "camera_iterations": 2}
    like_small = {"encoder_dim": 64, "match_layer": 1, "camera_reads_patches": True, "track": None}
    return lively(replace(StreamVGGTConfig.tiny(), **few, **like_small))


@pytest.fixture(scope="module")
def loops_everywhere():
    """Close whatever loop can be thought of, for an untrained network knows no place again."""
    bounds = {"atlas._ALIKE": -1, "atlas._MOST_STRAIN": np.inf, "loops._SURE": 0, "loops._OVERLAP": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**bounds, "posegraph._MAX_STEPS": 3}.items():
            patch.setattr(f"streamvggt.{name}", value)
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["as said", "refined"])
def unbroken(tiny, loops_everywhere, request):
    """A stream that is not stopped, its numbers, and whether cameras are refined: then noise closes no loop."""
    session = LongSession(tiny, **CUT, refine=request.param)
    return session, numbers(session.run(frames(24))), request.param


def frames(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8))


def numbers(predictions):
    return [np.concatenate([p.depth.ravel(), p.world_points.ravel(), p.extrinsics.ravel()]) for p in predictions]


def moves_of(session):
    return np.array([[m.scale, *m.rotation.ravel(), *m.translation] for m in session.corrections()])


@pytest.mark.parametrize("at", [0, 4, 6, 8, 9, 20, 22])
def test_a_resumed_long_stream_says_bit_for_bit_what_one_without_a_stop_says(tiny, at, unbroken, tmp_path):
    """Saved before the first frame; alone; within an overlap; where a sub-map is to end; after loops were closed."""
    video, path = frames(24), tmp_path / "stream.safetensors"
    whole, want, refine = unbroken
    session = LongSession(tiny, **CUT, refine=refine)
    got = numbers(session.step(image) for image in video[:at])
    session.save(path)
    resumed = LongSession.resume(tiny, path)
    for name in ("held_frames", "nbytes", "num_frames", "num_submaps", "length", "overlap"):
        assert getattr(resumed, name) == getattr(session, name), name
    assert len(resumed.loops) == len(session.loops)
    np.testing.assert_array_equal(moves_of(resumed), moves_of(session))
    got += numbers(resumed.run(video[at:]))
    np.testing.assert_array_equal(np.stack(got), np.stack(want))
    assert refine or (len(whole.loops) >= 3 and bool(session.loops) == (at > 15))
    assert [asdict(loop) for loop in resumed.loops] == [asdict(loop) for loop in whole.loops]
    np.testing.assert_array_equal(moves_of(resumed), moves_of(whole))
    assert [file.name for file in tmp_path.iterdir()] == ["stream.safetensors"]


@pytest.mark.parametrize(
    ("policy", "storage"),
    [(KeepAll(), "native"), (AnchorWindow(1, 4), "int8"), (Keyframes(1, 2, 2), "native"), (TokenBudget(120), "int8")],
    ids=str,
)
def test_policies_memory_and_storage_of_a_long_stream_survive(tiny, policy, storage, tmp_path):
    video, path = frames(14), tmp_path / "stream.safetensors"
    how = {**CUT, "storage": storage, "memory": 20 * tiny.config.cached_frame_bytes(70, 70), "loops": False}
    whole = LongSession(tiny, policy, **how, outputs={"camera", "depth", "points"})
    want = numbers(whole.run(video))
    session = LongSession(tiny, policy, **how, outputs={"camera", "depth", "points"})
    got = numbers(session.run(video[:7]))
    session.save(path)
    resumed = LongSession.resume(tiny, path)
    got += numbers(resumed.run(video[7:]))
    np.testing.assert_array_equal(np.stack(got), np.stack(want))
    assert (resumed.held_frames, resumed.nbytes) == (whole.held_frames, whole.nbytes)


@pytest.mark.parametrize(
    ("kind", "options"), [(StreamSession, {"storage": "int8", "size": 28}), (LongSession, CUT)], ids=["plain", "long"]
)
def test_a_stream_goes_on_in_another_process_after_the_first_was_killed(kind, options, tmp_path):
    """Saved within an overlap of the long one; the first process takes three more frames, which are lost."""
    code = """
import json, os, pathlib, signal, sys, numpy as np, streamvggt as sv
path, out, kind, options = pathlib.Path(sys.argv[1]), sys.argv[2], getattr(sv, sys.argv[3]), json.loads(sys.argv[4])
video = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 3), dtype=np.uint8)
model = sv.load_model("tiny")
if path.exists():
    session = kind.resume(model, path)
    np.save(out, np.stack([session.step(image).depth for image in video[session.num_frames:]]))
else:
    session = kind(model, **options)
    for i, image in enumerate(video):
        session.step(image)
        if i == 6:
            session.save(path)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    paths = [str(tmp_path / name) for name in ("stream.safetensors", "depth.npy")]
    command = [sys.executable, "-c", code, *paths, kind.__name__, json.dumps(options)]
    run = [subprocess.run(command, capture_output=True) for _ in range(2)]
    assert [result.returncode for result in run] == [-signal.SIGKILL, 0], run[1].stderr
    session = kind(load_model("tiny"), **options)
    want = [session.step(image).depth for image in frames(10)]
    np.testing.assert_allclose(np.load(paths[1]), np.stack(want[7:]), rtol=1e-5)


def test_files_that_are_no_long_session_of_this_model_are_told(tiny, tmp_path):
    path, plain = tmp_path / "long.safetensors", tmp_path / "plain.safetensors"
    session, stream = LongSession(tiny, **CUT), StreamSession(tiny, size=28)
    for image in frames(7):
        session.step(image)
        stream.step(image)
    session.save(path)
    stream.save(plain)
    with pytest.raises(SavedSessionError, match=r"holds a StreamSession; resume it with StreamSession.resume\(\)"):
        LongSession.resume(tiny, plain)
    with pytest.raises(SavedSessionError, match=r"holds a LongSession; resume it with LongSession.resume\(\)"):
        StreamSession.resume(tiny, path)
    whole = path.read_bytes()
    for length in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(SavedSessionError, match=r"damaged or no saved session .* take another save"):
            LongSession.resume(tiny, tmp_path / "cut.safetensors")
    save_model(tiny, tmp_path / "model.safetensors")
    with pytest.raises(SavedSessionError, match=r"is no session that LongSession.save\(\)"):
        LongSession.resume(tiny, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        LongSession.resume(tiny, tmp_path / "nowhere.safetensors")
    with pytest.raises(SavedSessionError, match="another model"):
        LongSession.resume(lively(tiny.config, seed=9), path)


def test_a_full_disk_leaves_the_last_save_and_the_long_stream_as_they_were(tiny, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on the size of files fails as a full disk does
    path, video = tmp_path / "stream.safetensors", frames(10)
    session = LongSession(tiny, **CUT)
    got = numbers(session.step(image) for image in video[:6])
    session.save(path)
    before = path.read_bytes()
    got += numbers([session.step(video[6])])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .* make room"):
            session.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["stream.safetensors"]
    got += numbers(session.step(image) for image in video[7:])
    np.testing.assert_array_equal(np.stack(got), np.stack(numbers(LongSession(tiny, **CUT).run(video))))
