"""The network behind the page: where it runs, and one step of it at a time for all visitors."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any

import torch

from streamvggt import (
    CheckpointError,
    Frame,
    FramePrediction,
    LongSession,
    Similarity,
    StreamSession,
    StreamVGGT,
    in_groups,
    is_out_of_memory,
    load_model,
    preprocess,
)

from .settings import PATCH, RunSettings

logger = logging.getLogger(__name__)

GPU_SECONDS_AT_MOST = 120
"""Longest time that is asked of ZeroGPU for one run."""

_GPU_START_S = 15
_GPU_FRAME_S = 0.4  # of 518 pixels' width, with a wide margin: time asked for and not used is given back


class EngineError(RuntimeError):
    """Raised where the network cannot go on; the message is shown to the visitor."""


@dataclass(frozen=True)
class Step:
    """What the network says about one frame, and the bytes that the stream then holds."""

    prediction: FramePrediction
    cache_bytes: int


@dataclass(frozen=True)
class Moved:
    """Loops were closed: where the predictions so far belong by now, see :meth:`streamvggt.LongSession.corrections`."""

    corrections: Sequence[Similarity]


class Engine:
    """Networks, loaded when they are first needed; a lock lets frames of one visitor through at a time.

    The last network used stays loaded. Where Hugging Face's ZeroGPU lends a GPU by the call, a whole run is one call.
    """

    def __init__(self) -> None:
        self.on_zero_gpu = bool(os.environ.get("SPACES_ZERO_GPU")) and find_spec("spaces") is not None
        self._step_lock = threading.Lock()
        self._load_lock = threading.Lock()
        self._loaded: tuple[str, StreamVGGT] | None = None
        if self.on_zero_gpu:
            import spaces  # before anything touches CUDA

            # The server wants to see at its start which calls need a GPU, and the network that they share.
            self._lent = spaces.GPU(duration=_seconds)(self._arrays_on_gpu)
            self.preload()

    def preload(self) -> None:
        """Load the bundled network, so that the first visitor need not wait for it; one that is there stays."""
        if self._loaded is None:
            self._model("small")

    def stream(
        self, frames: Iterable[Frame], settings: RunSettings, notice: Callable[[str], None], *, live: bool = False
    ) -> Iterator[Step | Moved]:
        """Yield a step for each frame as soon as it is there, and where all of them belong if loops were closed.

        Args:
            frames: the first is taken alone, those behind it as :attr:`RunSettings.together` says; where a GPU is lent
                by the call, all before the first step.
            settings: the visitor's choices.
            notice: called with a remark for the visitor, such as that other weights were taken.
            live: each frame is worth more now than two of them sooner: they are taken one at a time.

        Raises:
            EngineError: memory ran out, or the weights cannot be loaded.
            ValueError: the frames differ in shape, or one cannot be decoded.
        """
        source, model = self._model_or_bundled(settings, notice)
        if self.on_zero_gpu:
            yield from self._stream_on_zero_gpu(frames, settings, source)
            return
        session = settings.session(model)
        try:
            yield from _said(session, frames, self._step_lock, 1 if live else settings.together)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            del session
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise _out_of_memory() from error

    def _model_or_bundled(self, settings: RunSettings, notice: Callable[[str], None]) -> tuple[str, StreamVGGT]:
        try:
            return settings.source, self._model(settings.source)
        except CheckpointError as error:
            if settings.source == "small":
                raise EngineError(f"The bundled network cannot be loaded: {error}.") from error
            logger.warning("the bundled network stands in: %s", error)
            notice(f"The weights {settings.source} could not be had, the bundled network stands in. ({error})")
            return "small", self._model("small")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory() from error

    def _model(self, source: str) -> StreamVGGT:
        with self._load_lock:
            if self._loaded is None or self._loaded[0] != source:
                self._loaded = None  # two large networks need not fit at once
                device = "cuda" if torch.cuda.is_available() else "cpu"
                self._loaded = (source, load_model(source, device=device))
            return self._loaded[1]

    def _stream_on_zero_gpu(
        self, frames: Iterable[Frame], settings: RunSettings, source: str
    ) -> Iterator[Step | Moved]:
        from gradio import Error

        # The worker is a forked process: what crosses its border is pickled, so arrays and numbers only.
        arrays = [_shrunk(frame, settings.seen_width_px) for frame in frames]
        try:
            yield from self._lent(arrays, settings.to_json(), source)
        except Error as error:
            raise _lender_error(error.message) from error

    def _arrays_on_gpu(
        self, arrays: list[dict[str, Any]], values: dict[str, Any], source: str
    ) -> Iterator[Step | Moved]:
        settings = RunSettings(**values)
        # A worker serves several calls and knows the network that was loaded when it was forked. It must not take the
        # lock: another thread may have held that at the fork.
        if self._loaded is None or self._loaded[0] != source:
            self._loaded = (source, load_model(source, device="cuda" if torch.cuda.is_available() else "cpu"))
        session = settings.session(self._loaded[1])
        yield from _said(session, (Frame(**fields) for fields in arrays), nullcontext(), settings.together)


def _said(
    session: StreamSession | LongSession, frames: Iterable[Frame], lock: AbstractContextManager[Any], together: int
) -> Iterator[Step | Moved]:
    frames = iter(frames)
    first = ([frame] for frame in islice(frames, 1))
    for group in chain(first, in_groups(frames, together, lambda frame: frame.image.shape)):
        with lock:
            predictions = session.step_many(group)
        for said in predictions:
            yield Step(replace(said, placement=None, descriptor=None, patch_descriptors=None), session.nbytes)
    if isinstance(session, LongSession):
        with lock:
            session.close_loops()
        if session.loops:
            yield Moved(session.corrections())


def gpu_seconds(num_frames: int, settings: RunSettings) -> int:
    """Estimate the seconds of a GPU that a run needs, for the quota of ZeroGPU; the time grows with the pixels."""
    size = settings.seen_width_px / (37 * PATCH)
    return min(GPU_SECONDS_AT_MOST, round(_GPU_START_S + num_frames * _GPU_FRAME_S * max(size, 0.25) ** 2))


def _seconds(arrays: list[dict[str, Any]], values: dict[str, Any], source: str) -> int:
    return gpu_seconds(len(arrays), RunSettings(**values))


def _shrunk(frame: Frame, width_px: int) -> dict[str, Any]:
    pixels, _ = preprocess(frame.image, width_px, PATCH)
    image = (pixels.transpose(1, 2, 0) * 255 + 0.5).astype("uint8")
    return {"image": image, "index": frame.index, "time_s": frame.time_s, "name": frame.name}


def _lender_error(message: str) -> EngineError:
    """Say for people what ZeroGPU reports: its own words, or the name of the error in its worker."""
    if message in ("OutOfMemoryError", "MemoryError"):
        return _out_of_memory()
    if message == "GPU task aborted":
        return EngineError("The time of the GPU ran out; this is what there is. Fewer or smaller frames need less.")
    return EngineError(f"The GPU could not be had: {re.sub('<[^>]*>', '', message)}")


def _out_of_memory() -> EngineError:
    return EngineError(
        "The memory is full. Three remedies: a smaller width, less that is remembered, or the bundled network."
    )
