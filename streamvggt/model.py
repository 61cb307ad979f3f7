"""The network: encoder, aggregator and heads; one class for teacher (full attention) and student (causal)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .aggregator import Aggregator
from .attention import Attend, causal_attention, full_attention
from .config import StreamVGGTConfig
from .encoder import DinoV2, build_encoder
from .heads.camera import CameraHead
from .heads.dense import DenseHead, signed_expm1
from .heads.track import TrackHead
from .layers import RunBlock, run_block
from .matching import MatchMemory, SoftMatch
from .official import from_official
from .policies import CachePolicy, KeepAll
from .state import StreamState
from .static import require_compiler
from .stores import STORAGES, Storage
from .tracks import TrackMemory, TrackQuery
from .types import OUTPUTS, Predictions


class Encoded(NamedTuple):
    """Frames, each seen by itself.

    Attributes:
        patches: tokens of the encoder ``[B, S, N, C']``.
        early: tokens of an earlier layer, likewise, for :class:`~streamvggt.matching.SoftMatch` where there is one.
    """

    patches: Tensor
    early: Tensor | None

    @property
    def descriptors(self) -> Tensor:
        """What each frame shows, ``[B, S, C']``, see :meth:`StreamVGGT.describe`."""
        return self.patches.float().mean(2)


class StreamVGGT(nn.Module):
    """Predict cameras, depth, points and tracks of frames, each from itself and its past.

    With ``config.attention == "full"`` it is VGGT (Wang et al. 2025), with "causal" StreamVGGT (Zhuo et al. 2025).
    """

    def __init__(self, config: StreamVGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        widths = (config.encoder_width, config.embed_dim)
        self.encoder_proj = nn.Linear(*widths) if config.encoder_dim is not None else None
        self.soft_match = SoftMatch(config) if config.match_layer is not None else None
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.depth_head = DenseHead(config, 1)
        self.point_head = DenseHead(config, 3)
        self.track_head = TrackHead(config, config.track) if config.track else None
        self.apply(_initialise)

    def new_state(
        self,
        policy: CachePolicy = KeepAll(),  # noqa: B008 (frozen)
        *,
        storage: Storage = "native",
        camera_cache: Literal["per_iteration", "shared"] = "per_iteration",
        memory: int | str | None = None,
        compile: bool = False,
    ) -> StreamState:
        """Start the memory of new streams; pass it to every call on them.

        Args:
            policy: which frames are kept.
            storage: how keys and values are stored: "native", as they are computed, or "int8", in half the bytes of
                bfloat16.
            camera_cache: "per_iteration" for streams that equal a batch; "shared" reproduces the poses of the released
                streaming code, for comparison with published tables.
            memory: what the streams may take together, in bytes or as text such as "2GB"; it is never passed, and
                fewer frames are held than the policy asks for where they do not fit. None sets no limit.
            compile: run the blocks as compiled code, with caches of fixed size: the same numbers, to rounding. The
                first frames wait for the compiler, a minute or so, and again those of another size or number a call.

        Raises:
            ValueError: the network attends to all frames and cannot stream, or an argument is not one of the above.
        """
        if self.config.attention != "causal":
            raise ValueError(
                'a network with attention="full" needs all frames at once and cannot stream; '
                'build or load it with attention="causal"'
            )
        if storage not in STORAGES:
            raise ValueError(f"storage must be one of {STORAGES}, got {storage!r}")
        if camera_cache not in ("per_iteration", "shared"):
            raise ValueError(f'camera_cache must be "per_iteration" or "shared", got {camera_cache!r}')
        if compile:
            require_compiler(self.aggregator.camera_token.device.type)
        return StreamState(
            self.config,
            policy,
            storage=storage,
            camera_cache=camera_cache,
            memory=memory,
            head_bytes=self.camera_head.token_norm.weight.element_size(),
            static=compile,
        )

    def forward(
        self,
        images: Tensor,
        *,
        state: StreamState | None = None,
        query_points: Tensor | None = None,
        outputs: Collection[str] | None = None,
    ) -> Predictions:
        """Predict cameras, depth, points and tracks.

        Without a state the S frames are one batch. With one they extend its streams, without gradients: frame by
        frame, in chunks or all at once, the numbers are the same. Tracks are the one output that looks ahead in a
        batch, where a point's track is fitted to all S frames (as in the released networks); in a stream the track at
        frame t is that of a batch of the frames up to t.

        Args:
            images: RGB in [0, 1], ``[B, S, 3, H, W]``, H and W multiples of the patch size.
            state: memory of B streams from :meth:`new_state`; it is changed.
            query_points: points to follow, ``[B, N, 2]``, xy in pixels on the first of the S frames. Points given on
                later calls are followed beside the earlier ones, in the order in which they came.
            outputs: what is wanted of "camera", "depth", "points" and "tracks"; only the heads that it takes run, and
                the other fields of the result are None. None takes all that the network has; tracks need query points
                beside. Cameras and tracks look at those of earlier frames, so a stream has cameras from its first frame
                on or never, and tracks for as long as it follows points.

        Raises:
            ValueError: an argument does not fit the above, the network or the stream.
        """
        b, s, height, width = self._check_images(images)
        self._check_query_points(query_points, b, (height, width))
        wanted = self.check_outputs(outputs)
        if query_points is not None and "tracks" not in wanted:
            raise ValueError('query_points were given, but "tracks" are not among the outputs that are wanted')
        if state is None:
            attend = causal_attention if self.config.attention == "causal" else full_attention
            tokens = self._tokens(images, [attend] * self.config.depth, wanted)
            with full_precision(images.device.type):
                predictions = self._decode(tokens, (height, width), lambda _round, _block: attend, wanted)
                if query_points is not None and self.track_head is not None:
                    frames = self.track_head.features(tokens, (height, width))
                    tracks = self.track_head(query_points, frames)
                    predictions.tracks, predictions.track_visibility, predictions.track_conf = tracks
            return predictions
        with torch.no_grad():
            _check_continues(state, (b, height, width), s, wanted)
            before = state.num_frames
            taken = state.begin(s, (b, height, width), queries=query_points is not None)
            images, later = images[:, :taken], images[:, taken:]
            encoded = self._encode(images, state.run)
            tokens, matches, described = self._aggregate(
                encoded, (height, width), state.block_attends, state.num_frames, state.matches, wanted, state.run
            )
            with full_precision(images.device.type):
                predictions = self._decode(tokens, (height, width), state.camera_attend, wanted, state.run)
                tracks = self._track_in_stream(predictions, tokens, (height, width), state, query_points)
            predictions.descriptors, predictions.patch_descriptors = encoded.descriptors, described
            state.commit(matches, tracks)
            if taken == s:
                return predictions
            try:
                return _joined(predictions, self(later, state=state, outputs=outputs))
            except BaseException:
                state.abandon(before)
                raise

    @torch.no_grad()
    def describe(self, images: Tensor) -> Tensor:
        """Summarise what each frame shows by the mean of its patch features, to find places again.

        Args:
            images: RGB in [0, 1], ``[B, S, 3, H, W]``, H and W multiples of the patch size.

        Returns:
            ``[B, S, C]``, the encoder's width; compare by the cosine, less the mean over many frames.

        Raises:
            ValueError: the images are not as above.
        """
        self._check_images(images)
        return self._encode(images).descriptors

    def check_outputs(self, outputs: Collection[str] | None) -> Collection[str]:
        """Return what :meth:`forward` makes of ``outputs``.

        Raises:
            ValueError: they name what there is not, or nothing.
        """
        if outputs is None:
            return OUTPUTS if self.track_head is not None else OUTPUTS - {"tracks"}
        if isinstance(outputs, str) or not outputs or not OUTPUTS.issuperset(outputs):
            raise ValueError(f"outputs must name one or more of {sorted(OUTPUTS)}, got {outputs!r}")
        if "tracks" in outputs and self.track_head is None:
            raise ValueError('outputs name "tracks", but this network has no track head (config.track is None)')
        return outputs

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors under our names or those of the released checkpoints; see ``torch.nn.Module``."""
        return super().load_state_dict(from_official(state_dict), strict, assign)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network to a folder, see :func:`streamvggt.checkpoint.save_pretrained`."""
        from .checkpoint import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> StreamVGGT:
        """Load a network from the Hub or a folder, see :func:`streamvggt.checkpoint.from_pretrained`."""
        from .checkpoint import from_pretrained

        return from_pretrained(source, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the network to the Hub, see :func:`streamvggt.checkpoint.push_to_hub`."""
        from .checkpoint import push_to_hub

        return push_to_hub(self, repo_id, **options)

    def _tokens(
        self, images: Tensor, attends: Sequence[Attend], outputs: Collection[str] = OUTPUTS
    ) -> dict[int, Tensor]:
        """Tokens of the layers that the heads read, of frames that begin a stream or are a batch of their own."""
        image_hw = (images.shape[-2], images.shape[-1])
        return self._aggregate(self._encode(images), image_hw, attends, outputs=outputs)[0]

    def _encode(self, images: Tensor, run: RunBlock = run_block) -> Encoded:
        """Look at each frame by itself."""
        mean, std = _imagenet_statistics(images.device)
        pixels = ((images.float() - mean) / std).to(self.aggregator.camera_token.dtype).flatten(0, 1)
        if self.soft_match is None or not isinstance(self.encoder, DinoV2):
            return Encoded(self.encoder(pixels, run).unflatten(0, images.shape[:2]), None)
        levels = self.encoder.levels(pixels, sorted({self.config.match_layer or 0, self.config.encoder_depth}), run)
        return Encoded(*(x.unflatten(0, images.shape[:2]) for x in (levels[-1], levels[0])))

    def _patches(
        self, encoded: Encoded, matches: MatchMemory, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, MatchMemory, Tensor | None]:
        """Bring patches ``[B, S, N, C]`` to the width of the aggregator, with what soft matches add to them.

        Beside them the memory for the frames to come and the patches' descriptors ``[B, S, N, D]``, if there are any.
        """
        patches, described = encoded.patches, None
        if self.encoder_proj is not None:
            patches = self.encoder_proj(patches.to(self.encoder_proj.weight.dtype))
        if self.soft_match is not None and encoded.early is not None:
            described = self.soft_match.describe(encoded.early)
            with full_precision(patches.device.type):
                found, matches = self.soft_match(described, matches, grid_hw)
            patches = patches + found
        return patches.to(self.aggregator.camera_token.dtype), matches, described

    def _aggregate(
        self,
        encoded: Encoded,
        image_hw: tuple[int, int],
        attends: Sequence[Attend],
        first_frame: int = 0,
        matches: MatchMemory = MatchMemory(),  # noqa: B008 (frozen)
        outputs: Collection[str] = OUTPUTS,
        run: RunBlock = run_block,
    ) -> tuple[dict[int, Tensor], MatchMemory, Tensor | None]:
        """Look across frames; tokens of the layers that the heads read, in the heads' precision.

        Beside them what :meth:`_patches` gives out beside the patches.
        """
        grid_hw = (image_hw[0] // self.config.patch_size, image_hw[1] // self.config.patch_size)
        patches, matches, described = self._patches(encoded, matches, grid_hw)
        layers = {self.config.depth - 1} if "camera" in outputs else set()
        if not {"depth", "points", "tracks"}.isdisjoint(outputs):
            layers |= {*self.config.dense_layers}
        tokens = self.aggregator(patches, grid_hw, attends, layers, first_frame, run)
        dtype = self.camera_head.token_norm.weight.dtype
        return {layer: x.to(dtype) for layer, x in tokens.items()}, matches, described

    def _decode(
        self,
        tokens: Mapping[int, Tensor],
        image_hw: tuple[int, int],
        attend: Callable[[int, int], Attend],
        outputs: Collection[str] = OUTPUTS,
        run: RunBlock = run_block,
    ) -> Predictions:
        """Read what is wanted of cameras and dense maps off the tokens."""
        poses = self.camera_head(tokens[self.config.depth - 1], attend, run) if "camera" in outputs else None
        return self._dense(tokens, image_hw, poses, outputs)

    def _dense(
        self,
        tokens: Mapping[int, Tensor],
        image_hw: tuple[int, int],
        poses: Tensor | None,
        outputs: Collection[str] = OUTPUTS,
    ) -> Predictions:
        """Read what is wanted of dense maps off the tokens, beside poses of all rounds where there are any."""
        said = Predictions()
        if poses is not None:
            said.pose_enc_iterations = poses.float()
            said.pose_enc = said.pose_enc_iterations[-1]
        if "depth" in outputs:
            depth, conf = self.depth_head(tokens, image_hw)
            said.depth, said.depth_conf = depth[..., 0].float().exp(), conf.float()
        if "points" in outputs:
            points, conf = self.point_head(tokens, image_hw)
            said.world_points, said.world_points_conf = signed_expm1(points.float()), conf.float()
        return said

    def _track_in_stream(
        self,
        predictions: Predictions,
        tokens: Mapping[int, Tensor],
        image_hw: tuple[int, int],
        state: StreamState,
        query_points: Tensor | None,
    ) -> TrackMemory:
        """Follow the points of all queries to each of the coming frames, through the frames held by then.

        Returns:
            What is to be remembered for the frames that follow.
        """
        if self.track_head is None or (query_points is None and not state.tracks.queries):
            return state.tracks
        pyramids = self.track_head.features(tokens, image_hw)
        if len(pyramids) > 1:  # views of all frames at once, and some are kept longer than others
            pyramids = [tuple(level.clone() for level in levels) for levels in pyramids]
        queries, features = list(state.tracks.queries), dict(state.tracks.features)
        if query_points is not None:
            queries.append(TrackQuery(state.num_frames, query_points, pyramids[0]))
        results = []
        for frame, (step, pyramid) in enumerate(zip(state.slots.plan, pyramids, strict=True), state.num_frames):
            features = {i: levels for i, levels in features.items() if i in step.held} | {frame: pyramid}
            parts = []
            for query in queries:
                later = [levels for i, levels in sorted(features.items()) if i > query.frame]
                parts.append([x[:, -1] for x in self.track_head(query.points, [query.features, *later])])
            results.append([torch.cat(part, dim=1) for part in zip(*parts, strict=True)])
        predictions.tracks, predictions.track_visibility, predictions.track_conf = (
            torch.stack(frames, dim=1) for frames in zip(*results, strict=True)
        )
        return TrackMemory(queries, features)

    def _check_images(self, images: Tensor) -> tuple[int, int, int, int]:
        """Return B, S, H, W of images that the network can take; raise ValueError for others."""
        patch, shape = self.config.patch_size, list(images.shape)
        fits = len(shape) == 5 and shape[2] == 3 and min(shape) > 0
        if not fits or shape[3] % patch or shape[4] % patch:
            raise ValueError(
                f"images must be [B, S, 3, H, W] with H and W multiples of {patch}, got {shape}; use preprocess()"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}; use preprocess()")
        if images.device.type != "meta":
            low, high = (value.item() for value in images.detach().aminmax())
            if not (low >= -1e-4 and high <= 1 + 1e-4):
                raise ValueError(
                    f"images must lie in [0, 1], got values from {low:g} to {high:g}; divide 8-bit images by 255 and "
                    "do not normalise them, the network does"
                )
        return shape[0], shape[1], shape[3], shape[4]

    def _check_query_points(self, query_points: Tensor | None, streams: int, image_hw: tuple[int, int]) -> None:
        """Raise ValueError for query points that the network cannot follow."""
        if query_points is None:
            return
        track = self.config.track
        if track is None:
            raise ValueError("query_points were given, but this network has no track head (config.track is None)")
        smallest = track.stride * 2 ** (track.correlation_levels - 1)
        if min(image_hw) < smallest:
            raise ValueError(
                f"the tracker compares at {track.correlation_levels} scales and needs images of at least {smallest} "
                f"pixels a side, got {image_hw[0]}x{image_hw[1]}; take larger images, or no query_points"
            )
        shape = list(query_points.shape)
        if len(shape) != 3 or shape[0] != streams or shape[1] < 1 or shape[2] != 2:
            raise ValueError(f"query_points must be [{streams}, N, 2] with xy in pixels, got {shape}")
        if query_points.device.type != "meta" and not query_points.isfinite().all():
            raise ValueError("query_points must be finite; leave out points that are unknown")


def _joined(first: Predictions, later: Predictions) -> Predictions:
    """Put what is said about frames before what is said about the frames after them."""
    joined = Predictions()
    for name in (field.name for field in fields(Predictions)):
        parts = [getattr(said, name) for said in (first, later)]
        if parts[0] is not None:
            setattr(joined, name, torch.cat(parts, dim=2 if name == "pose_enc_iterations" else 1))
    return joined


def _check_continues(
    state: StreamState, shape: tuple[int, int, int], num_frames: int, outputs: Collection[str]
) -> None:
    """Raise ValueError for frames that cannot extend the streams of ``state``."""
    if state.num_frames and state.holds_cameras != ("camera" in outputs):
        was, now = ("with" if x else "without" for x in (state.holds_cameras, "camera" in outputs))
        raise ValueError(
            f'this stream was begun {was} "camera" among its outputs and cannot go on {now}: cameras look at those of '
            "earlier frames; start another stream"
        )
    if state.tracks.queries and "tracks" not in outputs:
        raise ValueError('this stream follows points, so "tracks" must be among its outputs; start another stream')
    if state.input_shape is not None and state.input_shape != shape:
        was, now = ("{} stream(s) of {}x{} pixels".format(*x) for x in (state.input_shape, shape))
        raise ValueError(f"this state holds {was}, got {now}; resize the frames, or start another stream")
    if state.camera_cache == "shared" and num_frames != 1:
        raise ValueError(
            f'camera_cache="shared" reproduces a path that takes one frame a call, got {num_frames}; '
            'pass frames one by one, or use camera_cache="per_iteration"'
        )


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Switch autocast off: heads regress, and matches average, numbers that half precision would round."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # see rope.rotary_table
def _imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of RGB that encoders are trained with, ``[3, 1, 1]`` each."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float32, device=device)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float32, device=device)
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def _initialise(module: nn.Module) -> None:
    """Draw fresh weights: a truncated normal of deviation 0.02, without which these networks do not start to learn."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    if isinstance(module, SoftMatch):
        # What it says must be as loud as the content of the patches, or training learns to overhear it.
        nn.init.trunc_normal_(module.embed.weight, std=0.5)
    if isinstance(module, CameraHead):
        # Rounds add up: a fresh network sees with one radian, looking ahead, not through a needle's eye.
        with torch.no_grad():
            module.pose_branch.fc2.weight.mul_(0.05)
            module.pose_branch.fc2.bias[6:] = 1 / module.num_rounds
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith(("_token", "_tokens", "pos_embed", "virtual_tracks")):
            nn.init.trunc_normal_(parameter, std=0.02)
