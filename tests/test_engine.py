"""The network behind the page: what happens where weights or memory are missing, and on a GPU lent by the call."""

import pickle
import sys
import types
import weakref
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
import torch
from drifting import Drift, KnowsTheTruth, picture
from runs import TINY

from demo import engine as engines
from demo.engine import Engine, EngineError, Moved, gpu_seconds
from demo.settings import RunSettings
from streamvggt import AnchorWindow, CheckpointError, Frame, FramePrediction, StreamSession, load_model

FRAMES = [Frame(np.full((42, 56, 3), 40 * i, np.uint8), i, i / 2) for i in range(3)]


def stream(engine, settings=TINY, frames=FRAMES, notices=None):
    return list(engine.stream(iter(frames), settings, (notices if notices is not None else []).append))


def test_a_stream_through_the_engine_is_a_session_of_the_library():
    steps = stream(Engine())
    session = StreamSession(load_model("tiny"), AnchorWindow(1, 15), size=56)
    for step, frame in zip(steps, FRAMES, strict=True):
        expected = session.step(frame)
        for name in ("depth", "extrinsics"):
            value, want = getattr(step.prediction, name), getattr(expected, name)
            np.testing.assert_allclose(value, want, atol=1e-5 * np.abs(want).max(), rtol=0)
        assert step.cache_bytes > 0


@pytest.mark.parametrize(
    ("width_px", "live", "taken_by_then"),
    [(56, False, [1, 5, 5, 5, 5, 9, 9, 9, 9, 10]), (56, True, range(1, 11)), (238, False, range(1, 11))],
    ids=["finished", "live", "wide"],
)
def test_the_first_frame_comes_alone_and_narrow_ones_of_a_finished_video_four_at_a_time(width_px, live, taken_by_then):
    taken, then = [], []

    def frames():
        for i in range(10):
            taken.append(i)
            yield Frame(FRAMES[i % 3].image, i, i / 2)

    settings = replace(TINY, width_px=width_px)
    for i, step in enumerate(Engine().stream(frames(), settings, print, live=live)):
        assert step.prediction.index == i
        then.append(len(taken))
    assert then == list(taken_by_then)


@pytest.mark.parametrize("long", [False, True])
def test_frames_before_a_failure_come_first_and_a_stream_that_is_closed_lets_go_of_its_session(monkeypatch, long):
    sessions, begin = [], RunSettings.session

    def kept(*arguments):
        session = begin(*arguments)
        sessions.append(weakref.ref(session))
        return session

    def frames():
        yield from (Frame(FRAMES[i % 3].image, i, i / 2) for i in range(7))
        raise ValueError("frame 7 is damaged")

    monkeypatch.setattr(RunSettings, "session", kept)
    settings, seen = replace(TINY, long=long), []
    with pytest.raises(ValueError, match="frame 7 is damaged"):
        for step in Engine().stream(frames(), settings, print):
            seen.append(step.prediction.index)
    assert seen == list(range(7))
    steps = Engine().stream(frames(), settings, print)
    assert [next(steps).prediction.index for _ in range(3)] == [0, 1, 2]
    assert sessions[1]() is not None
    steps.close()
    assert sessions[1]() is None


def test_two_streams_at_once_do_not_mix():
    engine = Engine()
    alone = [step.prediction.depth for step in stream(engine)]
    other = [Frame(np.random.default_rng(i).integers(0, 255, (42, 56, 3), np.uint8), i, i / 2) for i in range(3)]
    streams = [engine.stream(iter(frames), TINY, print) for frames in (FRAMES, other)]
    together = [first.prediction.depth for first, _ in zip(*streams, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_a_network_is_loaded_once(monkeypatch):
    loads = []
    monkeypatch.setattr(engines, "load_model", lambda source, **options: loads.append(source) or load_model(source))
    engine = Engine()
    assert loads == []
    stream(engine), stream(engine)
    assert loads == ["tiny"]


def test_a_page_that_is_opened_does_not_take_away_the_network_in_use(monkeypatch):
    loads = []
    monkeypatch.setattr(engines, "load_model", lambda source, **options: loads.append(source) or load_model("tiny"))
    engine = Engine()
    engine.preload()
    assert loads == ["small"]
    stream(engine)
    engine.preload()
    stream(engine)
    assert loads == ["small", "tiny"]


def without_hub(source, **options):
    if source != "small":
        raise CheckpointError(f"{source} is not in the cache and the Hub cannot be reached: check the connection")
    return load_model("tiny")


def test_without_the_hub_the_bundled_network_stands_in_with_a_notice(monkeypatch):
    monkeypatch.setattr(engines, "load_model", without_hub)
    notices = []
    steps = stream(Engine(), RunSettings(model="released", width_px=56), notices=notices)
    assert len(steps) == 3
    (notice,) = notices
    assert "lch01/StreamVGGT could not be had, the bundled network stands in" in notice
    assert "the Hub cannot be reached" in notice


def test_without_the_bundled_network_the_error_is_for_people(monkeypatch):
    def broken(source, **options):
        raise CheckpointError("the weights are missing")

    monkeypatch.setattr(engines, "load_model", broken)
    with pytest.raises(EngineError, match="the weights are missing"):
        stream(Engine(), RunSettings(width_px=56))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_full_memory_names_three_remedies_and_the_next_run_goes_on(monkeypatch, error):
    engine = Engine()

    def full(self, frames):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(StreamSession, "step_many", full)
        with pytest.raises(EngineError, match="smaller width, less that is remembered, or the bundled network"):
            stream(engine)
    assert len(stream(engine)) == 3


class LentGPU:
    """Stands for the package ``spaces``: what crosses the border to the worker is pickled."""

    def __init__(self):
        self.asked_s = []
        self.before_work = lambda: None

    def module(self):
        module = types.ModuleType("spaces")
        module.__spec__ = types.SimpleNamespace(name="spaces")
        module.GPU = self.gpu
        return module

    def gpu(self, duration):
        def decorate(function):
            def call(*arguments):
                crossed = pickle.loads(pickle.dumps(arguments))
                assert not tensors_in(crossed)
                self.asked_s.append(duration(*arguments))
                self.before_work()
                for answer in function(*crossed):
                    assert not tensors_in(answer)
                    yield pickle.loads(pickle.dumps(answer))

            return call

        return decorate


def tensors_in(value):
    if isinstance(value, dict):
        return any(map(tensors_in, value.values()))
    if isinstance(value, list | tuple):
        return any(map(tensors_in, value))
    return isinstance(value, torch.Tensor | torch.nn.Module)


@pytest.fixture
def lent(monkeypatch):
    lent = LentGPU()
    monkeypatch.setitem(sys.modules, "spaces", lent.module())
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return lent


def test_a_gpu_lent_by_the_call_gives_the_same_stream_with_arrays_only_across_the_border(lent, monkeypatch):
    engine = Engine()
    assert engine.on_zero_gpu
    steps = stream(engine)
    monkeypatch.delenv("SPACES_ZERO_GPU")
    expected = stream(Engine())
    assert all(isinstance(step.prediction, FramePrediction) for step in steps)
    np.testing.assert_array_equal([s.prediction.depth for s in steps], [s.prediction.depth for s in expected])
    assert [step.cache_bytes for step in steps] == [step.cache_bytes for step in expected]
    assert lent.asked_s == [gpu_seconds(3, TINY)]


def test_corrections_of_a_long_stream_cross_the_border_too(lent, monkeypatch):
    monkeypatch.setattr(engines, "load_model", lambda source, **options: KnowsTheTruth(Drift()))
    settings = RunSettings(model="tiny", width_px=0, long=True)
    monkeypatch.setattr(RunSettings, "seen_width_px", 28)
    *steps, moved = stream(Engine(), settings, [Frame(picture(i), i, i / 5) for i in range(130)])
    assert len(steps) == 130
    assert isinstance(moved, Moved)
    assert len(moved.corrections) == 130


def test_a_worker_that_was_forked_with_another_network_takes_the_one_that_was_chosen(lent):
    engine = Engine()

    def forked_earlier():
        engine._loaded = ("small", None)

    lent.before_work = forked_earlier
    steps, expected = stream(engine), stream(Engine())
    np.testing.assert_array_equal([s.prediction.depth for s in steps], [s.prediction.depth for s in expected])


@pytest.mark.parametrize(
    ("reported", "told"),
    [
        ("OutOfMemoryError", "Three remedies"),
        ("GPU task aborted", "time of the GPU ran out"),
        ("You have exceeded your <a href='x'>GPU quota</a>.", r"could not be had: You have exceeded your GPU quota\.$"),
    ],
)
def test_what_the_lender_of_the_gpu_reports_reaches_the_visitor(lent, reported, told):
    def refuse():
        raise gr.Error(reported)

    lent.before_work = refuse
    with pytest.raises(EngineError, match=told):
        stream(Engine())


def test_the_time_asked_for_grows_with_frames_and_width_up_to_a_limit():
    wide, narrow = RunSettings(width_px=518), RunSettings(width_px=224)
    assert gpu_seconds(10, wide) < gpu_seconds(50, wide)
    assert gpu_seconds(50, narrow) < gpu_seconds(50, wide)
    assert gpu_seconds(10_000, wide) == 120


def test_without_the_package_spaces_nothing_is_lent(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert not Engine().on_zero_gpu
