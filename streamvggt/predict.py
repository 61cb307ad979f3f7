"""Run a model over the frames of one sequence, as a stream or as a batch, and bring what it says into one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .geometry import decode_pose, unproject
from .model import StreamVGGT
from .policies import CachePolicy, KeepAll
from .refinement import Refiner, move_points
from .scoring import Answer
from .stores import Storage
from .types import Predictions, required

Predictor = Callable[..., Predictions]
Array = NDArray[Any]
Mode = Literal["stream", "batch"]


@dataclass(frozen=True)
class Keeping:
    """What a stream keeps, see :meth:`streamvggt.StreamVGGT.new_state`; and whether its cameras are refined by that.

    See :class:`streamvggt.StreamSession` for ``refine``.
    """

    policy: CachePolicy = KeepAll()  # noqa: RUF009 (frozen)
    storage: Storage = "native"
    memory: int | None = None
    refine: bool = False


def predict(
    model: Predictor,
    images: Tensor,
    *,
    mode: Mode | None = None,
    keeping: Keeping = Keeping(),
    single_frames: bool = False,
    query_points: Tensor | None = None,
) -> tuple[Answer, Answer]:
    """Run a model over the frames of one sequence.

    Args:
        model: a network, or any function from images ``[1, S, 3, H, W]`` to :class:`Predictions`.
        images: ``[S, 3, H, W]`` in [0, 1].
        mode: "stream" (frame by frame) or "batch" (all at once); None streams causal networks. Functions that are no
            network get all frames at once.
        keeping: what a stream keeps; a network that runs on all frames at once keeps them all.
        single_frames: every frame is a stream of its own.
        query_points: ``[N, 2]``, xy in pixels of frame 0, for networks with a track head.

    Returns:
        The answer, with the cloud from depth and camera, and one with the cloud of the point maps alone.

    Raises:
        ValueError: a network with full attention is to stream, one that does not stream is to drop frames, or one
            without soft matches is to refine its cameras.
    """
    device, streams = images.device, False
    if isinstance(model, nn.Module):
        device = next(model.parameters()).device
    if isinstance(model, StreamVGGT):
        streams = (model.config.attention == "causal") if mode is None else mode == "stream"
        if not (streams or single_frames or keeping == Keeping()):
            raise ValueError(f"{keeping} is for streams, and a batch sees all frames; take the mode stream")
        if keeping.refine and not model.config.can_refine:
            raise ValueError("cameras can be refined for networks with soft matches alone; leave refine out")
    kept: defaultdict[str, list[Tensor]] = defaultdict(list)
    with torch.no_grad(), _evaluating(model):
        for said in _steps(model, images.to(device)[None], streams, keeping, single_frames, query_points):
            poses, depth = required(said.pose_enc, "camera")[0], required(said.depth, "depth")[0]
            extrinsics, intrinsics = decode_pose(poses.float(), (images.shape[-2], images.shape[-1]))
            if said.patch_descriptors is not None:
                kept["patches"].append(said.patch_descriptors[0].cpu())
            parts = {
                "extrinsics": extrinsics,
                "intrinsics": intrinsics,
                "depth": depth,
                "cloud": unproject(depth, extrinsics, intrinsics),
                "points": required(said.world_points, "points")[0],
            }
            if said.tracks is not None and said.track_visibility is not None:
                parts |= {"tracks": said.tracks[0], "visible": said.track_visibility[0] > 0.5}
            for name, part in parts.items():
                kept[name].append(part.cpu())
    whole = {name: torch.cat(frames).numpy() for name, frames in kept.items()}
    patches, lenses = whole.pop("patches", None), whole.pop("intrinsics")
    if keeping.refine and patches is not None and isinstance(model, StreamVGGT):
        _refine(whole, Refiner(model.config.patch_size), images, patches, lenses)
    points = Answer(world_points=whole.pop("points"))
    return Answer(world_points=whole.pop("cloud"), **whole), points


def _refine(said: dict[str, Array], refiner: Refiner, images: Tensor, patches: Array, intrinsics: Array) -> None:
    """Find the cameras anew; clouds and points move with them."""
    before, depth, found = said["extrinsics"], said["depth"], []
    pixels = (images.permute(0, 2, 3, 1).cpu().numpy() * 255 + 0.5).astype(np.uint8)
    for frame in zip(pixels, patches, depth, before, intrinsics, strict=True):
        refiner, *camera = refiner.step(*frame)
        found.append(camera)
    after, lens = (np.stack(parts) for parts in zip(*found, strict=True))
    moved = [move_points(*each) for each in zip(said["points"], before, after, strict=True)]
    said |= {"extrinsics": after, "cloud": unproject(depth, after, lens), "points": np.stack(moved)}


def _steps(
    model: Predictor,
    images: Tensor,
    streams: bool,
    keeping: Keeping,
    single_frames: bool,
    query_points: Tensor | None,
) -> Iterator[Predictions]:
    """Call a model on images ``[1, S, 3, H, W]`` as often as it takes."""
    queries = {} if query_points is None else {"query_points": query_points.to(images.device)[None]}
    if single_frames:
        yield from (model(frame) for frame in images.split(1, dim=1))
    elif streams and isinstance(model, StreamVGGT):
        state = model.new_state(keeping.policy, storage=keeping.storage, memory=keeping.memory)
        for i, frame in enumerate(images.split(1, dim=1)):
            yield model(frame, state=state, **(queries if i == 0 else {}))
    else:
        yield model(images, **queries)


@contextmanager
def _evaluating(model: Predictor) -> Iterator[None]:
    """Put a network into evaluation mode, and back."""
    if not (isinstance(model, nn.Module) and model.training):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
