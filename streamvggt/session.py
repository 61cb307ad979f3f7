"""A stream for people who have frames and want numbers: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cache import CachePolicy, KeepAll
from .geometry import decode_pose
from .images import preprocess
from .model import StreamVGGT
from .types import Frame, FramePrediction


class StreamSession:
    """Reconstruct a video frame by frame; each prediction uses the frames so far and no others.

    Args:
        model: a causal network; the session runs where its weights are.
        policy: which frames are kept in memory.
        storage: how keys and values are stored: "native", as they are computed.
        size: width in pixels to which frames are resized, a multiple of the patch size (see
            :func:`streamvggt.preprocess`); None takes ``model.config.image_size``.
        dtype: precision of encoder and aggregator, by autocast; the heads stay in float32. None takes bfloat16 (on old
            devices float16) on CUDA and float32 elsewhere.
        outputs: what is wanted of "camera", "depth", "points" and "tracks"; the other fields of the predictions are
            None, and what they would cost is saved. None takes all that the network has.

    Raises:
        ValueError: the network attends to all frames or has no such output, the size does not fit it, or the dtype is
            no such precision.
    """

    def __init__(
        self,
        model: StreamVGGT,
        policy: CachePolicy = KeepAll(),  # noqa: B008 (frozen)
        *,
        storage: Literal["native"] = "native",
        size: int | None = None,
        dtype: torch.dtype | None = None,
        outputs: Collection[str] | None = None,
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
        self._state = model.new_state(policy, storage=storage)

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
        """Bytes that the held frames take: keys, values and features of point tracks.

        With a policy that grows, as many more may be reserved: buffers double when they are full.
        """
        return self._state.nbytes

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
            ValueError: the frame is no 8-bit image, its size after resizing is not that of the stream, or the points
                are not ``[N, 2]`` or lie outside the image. The stream is as it was before the call.
        """
        index = self.num_frames
        if not isinstance(frame, Frame):
            frame = Frame(frame, time_s=float(index))
        pixels, placement = preprocess(frame.image, self.size, self.model.config.patch_size)
        height, width = placement.image_hw
        images = torch.from_numpy(pixels).to(self._device)[None, None]
        queries = None if query_points is None else self._query_tensor(query_points, (height, width))
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with torch.inference_mode(), autocast:
            said = self.model(images, state=self._state, query_points=queries, outputs=self._outputs)
        extrinsics, intrinsics = None, None
        if said.pose_enc is not None:
            extrinsics, intrinsics = (_numpy(x) for x in decode_pose(said.pose_enc[0, 0], (height, width)))
        return FramePrediction(
            index=index,
            time_s=frame.time_s,
            image=(pixels.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8),
            depth=_frame(said.depth),
            depth_conf=_frame(said.depth_conf),
            world_points=_frame(said.world_points),
            world_points_conf=_frame(said.world_points_conf),
            extrinsics=extrinsics,
            intrinsics=intrinsics,
            tracks=_frame(said.tracks),
            track_visibility=_frame(said.track_visibility),
            placement=placement,
        )

    def run(self, frames: Iterable[Frame | NDArray[np.uint8]]) -> Iterator[FramePrediction]:
        """Take frames one after the other and yield a prediction for each, as soon as it is there."""
        for frame in frames:
            yield self.step(frame)

    def _query_tensor(self, query_points: NDArray[np.floating[Any]], image_hw: tuple[int, int]) -> Tensor:
        """Bring query points to the form that the network takes, ``[1, N, 2]``; raise ValueError for bad ones."""
        points = np.asarray(query_points, np.float32)
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


def _autocast_dtype(device: torch.device) -> torch.dtype:
    """The precision that is fast and safe on a device."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _frame(tensor: Tensor | None) -> NDArray[np.float32] | None:
    """The one frame of the one stream in ``[B, S, ...]``."""
    return None if tensor is None else _numpy(tensor[0, 0])


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
