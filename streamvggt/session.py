"""A stream for people who have frames and want numbers: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import decode_pose
from .images import preprocess
from .model import StreamVGGT
from .policies import CachePolicy, KeepAll
from .refinement import FEWEST_MATCHES, Refiner, move_points
from .saving import Facts, Tensors, pack_state, read_session, unpack_state, write_session
from .stores import Storage
from .types import FloatArray, Frame, FramePrediction, Placement, Predictions, required

T = TypeVar("T")

_FIELDS = ("depth", "depth_conf", "world_points", "world_points_conf", "tracks", "track_visibility")


class Prepared(NamedTuple):
    """A frame as the network takes it: pixels ``[3, H, W]`` in [0, 1], where they come from, and when."""

    pixels: FloatArray
    placement: Placement
    time_s: float

    def image_hw(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.placement.image_hw

    @classmethod
    def of(cls, frame: Frame | NDArray[np.uint8], number: int, size: int, patch_size: int) -> Prepared:
        """Resize frame ``number`` of a stream; without a time stamp it counts as one a second.

        Raises:
            ValueError: it is no 8-bit image.
        """
        if not isinstance(frame, Frame):
            frame = Frame(frame, time_s=float(number))
        pixels, placement = preprocess(frame.image, size, patch_size)
        return cls(pixels, placement, frame.time_s)


class StreamSession:
    """Reconstruct a video frame by frame; each prediction uses the frames so far and no others.

    Args:
        model: a causal network; the session runs where its weights are.
        policy: which frames are kept in memory.
        storage: how keys and values are stored: "native", as they are computed, or "int8", in half the bytes of
            bfloat16.
        memory: what the stream may remember, in bytes or as text such as "2GB" (of 1000) or "512MiB" (of 1024); it is
            never passed. Where the policy asks for more, fewer frames are held; :class:`KeepAll` goes on as
            :class:`TokenBudget` when it is full, with one warning (with ``compile`` as :class:`Keyframes`). None sets
            no limit.
        size: width in pixels to which frames are resized, a multiple of the patch size (see
            :func:`streamvggt.preprocess`); None takes ``model.config.image_size``.
        dtype: precision of encoder and aggregator, by autocast; the heads stay in float32. None takes bfloat16 (on old
            devices float16) on CUDA and float32 elsewhere.
        outputs: what is wanted of "camera", "depth", "points" and "tracks"; the other fields of the predictions are
            None, and what they would cost is saved. None takes all that the network has.
        compile: run the blocks as compiled code: faster by a part, after the first frames have waited for the compiler
            about a minute; needs a policy with a limit, or a memory. On a CPU a C++ compiler must be there.
        refine: find each camera by what its frame shows of those before it, and not by the camera head, see
            :mod:`streamvggt.refinement`; for networks with soft matches, such as the bundled one, whose camera head is
            weak. Needs camera and depth among the outputs, and frames of 20 patches or more. World points move with
            their camera. Keeps two frames more, beside the memory: 0.2 MB at 224x168.

    Raises:
        ValueError: the network attends to all frames or has no such output, the size does not fit it, the dtype or
            memory is none of the above, there is no compiler, or cameras cannot be refined.
    """

    def __init__(
        self,
        model: StreamVGGT,
        policy: CachePolicy = KeepAll(),  # noqa: B008 (frozen)
        *,
        storage: Storage = "native",
        memory: int | str | None = None,
        size: int | None = None,
        dtype: torch.dtype | None = None,
        outputs: Collection[str] | None = None,
        compile: bool = False,
        refine: bool = False,
    ) -> None:
        self.model = model
        self.size = model.config.image_size if size is None else size
        patch = model.config.patch_size
        if self.size < patch or self.size % patch:
            raise ValueError(f"size must be a positive multiple of the patch size {patch}, got {self.size}")
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")
        self._device = next(model.parameters()).device
        self._dtype = _autocast_dtype(self._device) if dtype is None else dtype
        self._outputs = model.check_outputs(outputs)
        if refine and not model.config.can_refine:
            raise ValueError(
                "refine=True needs a network with soft matches (config.match_layer), and this one has none"
            )
        if refine and not {"camera", "depth"} <= set(self._outputs):
            raise ValueError(f'refine=True needs the outputs "camera" and "depth", got {sorted(self._outputs)}')
        self._refiner = Refiner(patch) if refine else None
        self._state = model.new_state(policy, storage=storage, memory=memory, compile=compile)

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return self._state.num_frames

    @property
    def held_frames(self) -> tuple[int, ...]:
        """Numbers of the frames that are held in memory, ascending."""
        return self._state.held_frames

    @property
    def nbytes(self) -> int:
        """Bytes that the held frames take: keys, values, features of point tracks, and what refining cameras keeps.

        With a policy that grows, as many more may be reserved, though never more than the memory allows: buffers
        double when they are full.
        """
        return self._state.nbytes + (0 if self._refiner is None else self._refiner.nbytes)

    @property
    def refine(self) -> bool:
        """Whether cameras are found by what frames have in common."""
        return self._refiner is not None

    @property
    def policy(self) -> CachePolicy:
        """Which frames are kept: what was asked for, with counts that the memory has room for.

        :class:`KeepAll` until its memory is full, and after that what took over.
        """
        return self._state.policy

    def set_policy(self, policy: CachePolicy, *, memory: int | str | None = None) -> None:
        """Go on with another policy and memory; frames that it would not hold are dropped at once.

        Args:
            policy: which frames are kept from here on.
            memory: as for a new session; None sets no limit.

        Raises:
            ValueError: there is no room for the least that the policy needs. The stream is as it was before. (Where the
                memory of the machine runs out in the middle of the change, the stream is lost, and says so when it is
                used again.)
        """
        self._state.set_policy(policy, memory=memory)

    def save(self, path: str | Path) -> None:
        """Write all that the stream remembers to one file; :meth:`resume` goes on from it.

        The file appears when it is complete; if anything fails, what was there before stays. What is held is copied
        once in memory while it is written.

        Args:
            path: of a safetensors file; missing folders are made.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
            ValueError: the policy is none of this package's, or the last frame failed and has not been repeated.
        """
        write_session(Path(path), "StreamSession", self.model, *pack_session(self))

    @classmethod
    def resume(cls, model: StreamVGGT, path: str | Path) -> StreamSession:
        """Go on with a saved stream, in this process or another, where the weights of ``model`` are.

        On the same kind of device the numbers that follow are those of a stream that was not stopped, bit for bit. One
        that ran compiled code goes on without it, with a warning, where there is no compiler.

        Args:
            model: with the weights that the stream was saved with.
            path: of the file.

        Raises:
            SavedSessionError: the file is no saved session, is damaged, or belongs to another model.
            OSError: the file is not there or cannot be read.
        """
        return read_session(Path(path), "StreamSession", model, partial(unpack_session, model))

    def reset(self) -> None:
        """Forget the stream: the next frame is the first of a new one."""
        self._state.reset()
        if self._refiner is not None:
            self._refiner = Refiner(self._refiner.patch_size)

    def another(self) -> StreamSession:
        """Begin another stream like this one, through the same lens."""
        other = StreamSession(self.model, self.policy, memory=self._state.memory, **session_options(self))
        if self._refiner is not None:
            other._refiner = self._refiner.restarted()
        return other

    def step(
        self, frame: Frame | NDArray[np.uint8], query_points: NDArray[np.floating[Any]] | None = None
    ) -> FramePrediction:
        """Take the next frame of the stream and say what it shows.

        Args:
            frame: a :class:`Frame`, or its pixels alone, RGB uint8 ``[h, w, 3]``; pixels without a time stamp count as
                one frame a second.
            query_points: points on this frame to follow from here on, ``[N, 2]``, xy in pixels of the processed image
                (``FramePrediction.image``; :func:`streamvggt.from_source_xy` takes points of the source there).
                Points of later calls are added behind those of earlier ones.

        Raises:
            ValueError: the frame is no 8-bit image, its size after resizing is not that of the stream or too small to
                refine cameras by, or the points are not ``[N, 2]`` or lie outside the image. The stream is as it was
                before the call.
        """
        return self.step_many([frame], query_points)[0]

    def step_many(
        self,
        frames: Sequence[Frame | NDArray[np.uint8] | Prepared],
        query_points: NDArray[np.floating[Any]] | None = None,
    ) -> list[FramePrediction]:
        """Take the next frames of the stream at once: the numbers of :meth:`step`, with more of them a second.

        Each prediction still uses the frames up to its own and no others; it only comes later.

        Args:
            frames: one or more, each as :meth:`step` takes it.
            query_points: as there, points on the first of these frames.

        Raises:
            ValueError: there is no frame, or as for :meth:`step`. The stream is as it was before the call.
        """
        prepared = [frame if isinstance(frame, Prepared) else self._prepare(frame, i) for i, frame in enumerate(frames)]
        return self._predict(prepared, query_points)

    def run(self, frames: Iterable[Frame | NDArray[np.uint8]], *, chunk: int = 1) -> Iterator[FramePrediction]:
        """Take frames one after the other and yield a prediction for each.

        Args:
            frames: each as :meth:`step` takes it.
            chunk: frames taken at once, see :meth:`step_many`. With 1 each prediction comes before the next frame is
                asked for, as a live camera needs; a finished video goes faster with about 8.

        Raises:
            ValueError: the chunk is not at least 1, or a frame is refused as by :meth:`step`. The frames before it are
                predicted first, as they are where ``frames`` itself fails.
        """
        prepared = (self._prepare(frame, i % chunk) for i, frame in enumerate(frames))
        for group in in_groups(prepared, chunk, Prepared.image_hw):
            yield from self._predict(group)

    def _prepare(self, frame: Frame | NDArray[np.uint8], ahead: int) -> Prepared:
        """Bring the frame that comes after ``ahead`` others to the form that the network takes."""
        return Prepared.of(frame, self.num_frames + ahead, self.size, self.model.config.patch_size)

    def _predict(
        self, frames: Sequence[Prepared], query_points: NDArray[np.floating[Any]] | None = None
    ) -> list[FramePrediction]:
        """Extend the stream by frames of one size."""
        require_one_size(frames)
        first, image_hw = self.num_frames, frames[0].image_hw()
        if self._refiner is not None:
            _require_patches(image_hw, self._refiner.patch_size)
        images = torch.from_numpy(np.stack([frame.pixels for frame in frames])).to(self._device)[None]
        queries = None if query_points is None else self._query_tensor(query_points, image_hw)
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with self._state.all_or_nothing():
            with torch.inference_mode(), autocast:
                said = self.model(images, state=self._state, query_points=queries, outputs=self._outputs)
            predictions = _frame_predictions(frames, first, said)
            refiner = self._refiner
            if refiner is not None:
                for i, (prediction, patches) in enumerate(zip(predictions, _patches(said), strict=True)):
                    # A copy: a frame that is kept must not keep the others of its chunk.
                    refiner, predictions[i] = _refined(refiner, replace(prediction, patch_descriptors=patches.copy()))
        self._refiner = refiner
        return predictions

    def _query_tensor(self, query_points: NDArray[np.floating[Any]], image_hw: tuple[int, int]) -> Tensor:
        """Bring query points to the form that the network takes, ``[1, N, 2]``; raise ValueError for bad ones."""
        points = np.array(query_points, np.float32)  # a copy: the caller's may change, or come again
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ValueError(f"query_points must be [N, 2] with xy in pixels, got {list(points.shape)}")
        height, width = image_hw
        # Pixel centres are at integers, so the image reaches half a pixel further.
        inside = ((points >= -0.5) & (points <= (width - 0.5, height - 0.5))).all(axis=1)
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            raise ValueError(
                f"query point {first} {points[first].tolist()} lies outside the processed image of {width}x{height} "
                "pixels; from_source_xy() takes points of the source there"
            )
        return torch.from_numpy(points).to(self._device)[None]


def pack_session(session: StreamSession) -> tuple[Tensors, Facts]:
    """Return all that a session remembers, see :mod:`streamvggt.saving`.

    Raises:
        ValueError: the policy is none of this package's, or the last frame failed and has not been repeated.
    """
    tensors, facts = pack_state(session._state)
    options = session_options(session)
    settings = {
        "size": options["size"],
        "dtype": str(options["dtype"]).removeprefix("torch."),
        "outputs": sorted(options["outputs"]),
    }
    facts = {"state": facts, "settings": settings}
    if session._refiner is not None:
        arrays, facts["refiner"] = session._refiner.pack()
        tensors |= {f"refiner.{name}": torch.from_numpy(array) for name, array in arrays.items()}
    return tensors, facts


def unpack_session(model: StreamVGGT, facts: Facts, tensors: Mapping[str, Tensor]) -> StreamSession:
    """Make a session of what :func:`pack_session` returned."""
    settings = facts["settings"]
    dtype = getattr(torch, settings["dtype"])
    session = StreamSession(model, size=settings["size"], dtype=dtype, outputs=settings["outputs"])
    if "refiner" in facts:
        prefix = "refiner."
        arrays = {name.removeprefix(prefix): x.numpy() for name, x in tensors.items() if name.startswith(prefix)}
        session._refiner = Refiner.unpack(model.config.patch_size, arrays, facts["refiner"])
    session._state = unpack_state(model, facts["state"], tensors)
    return session


def session_options(session: StreamSession) -> dict[str, Any]:
    """With what another session would be like this one, but for policy and memory."""
    state = session._state
    ways = {"storage": state.storage, "compile": state.compiled, "refine": session.refine}
    return ways | {"size": session.size, "dtype": session._dtype, "outputs": session._outputs}


def _autocast_dtype(device: torch.device) -> torch.dtype:
    """The precision that is fast and safe on a device."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def require_one_size(frames: Sequence[Prepared]) -> None:
    """Raise ValueError where there is no frame, or where they differ in size."""
    if not frames:
        raise ValueError("step_many() needs at least one frame, got none")
    image_hw = frames[0].image_hw()
    other = next((frame.image_hw() for frame in frames if frame.image_hw() != image_hw), None)
    if other is not None:
        was, now = (f"{height}x{width}" for height, width in (image_hw, other))
        raise ValueError(f"frames of {was} and of {now} pixels cannot be one stream; start another stream")


def in_groups(frames: Iterable[T], size: int, shape_of: Callable[[T], object]) -> Iterator[list[T]]:
    """Gather frames of one shape for ``step_many``; those that a source gave before it failed come before its error.

    Args:
        frames: taken one after the other, no more than a group needs.
        size: of a group; one that another shape or the end cuts short is smaller.
        shape_of: what frames of a group have in common.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"chunk must be at least 1 frame, got {size}")
    group: list[T] = []
    try:
        for frame in frames:
            if group and shape_of(frame) != shape_of(group[0]):
                yield group
                group = []
            group.append(frame)
            if len(group) == size:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _require_patches(image_hw: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError for frames by which no camera would ever move."""
    height, width = image_hw
    patches = height * width // patch_size**2
    if patches < FEWEST_MATCHES:
        raise ValueError(
            f"frames of {height}x{width} pixels have {patches} patches, too few to refine cameras by, which needs "
            f"{FEWEST_MATCHES}; take larger ones, or, from Python, refine=False"
        )


def _frame_predictions(frames: Sequence[Prepared], first: int, said: Predictions) -> list[FramePrediction]:
    """Bring what was said about frames, the ``first`` of which has that number, to NumPy."""
    maps = {name: _numpy(value[0]) for name in _FIELDS if (value := getattr(said, name)) is not None}
    if said.descriptors is not None:
        maps["descriptor"] = _numpy(said.descriptors[0])
    if said.pose_enc is not None:
        maps["extrinsics"], maps["intrinsics"] = map(_numpy, decode_pose(said.pose_enc[0], frames[0].image_hw()))
    return [
        FramePrediction(
            index=first + i,
            time_s=frame.time_s,
            image=(frame.pixels.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8),
            placement=frame.placement,
            # Copies: a frame that is kept must not keep the others of its chunk.
            **{name: values[i].copy() if len(frames) > 1 else values[i] for name, values in maps.items()},
        )
        for i, frame in enumerate(frames)
    ]


def _patches(said: Predictions) -> NDArray[np.float32]:
    """Descriptors of the patches of each frame, ``[S, N, D]``."""
    assert said.patch_descriptors is not None
    return _numpy(said.patch_descriptors[0])


def _refined(refiner: Refiner, said: FramePrediction) -> tuple[Refiner, FramePrediction]:
    """Replace the camera of a prediction by what its frame has in common with earlier ones; its points move along."""
    depth, patches = required(said.depth, "depth"), required(said.patch_descriptors, "camera")
    before = required(said.extrinsics, "camera")
    refiner, extrinsics, intrinsics = refiner.step(
        said.image, patches, depth, before, required(said.intrinsics, "camera")
    )
    points = None if said.world_points is None else move_points(said.world_points, before, extrinsics)
    return refiner, replace(said, extrinsics=extrinsics, intrinsics=intrinsics, world_points=points)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
