"""How the published tables were made, as data: which frames, which depths, which alignment.

The facts come from the evaluation code that MonST3R (Zhang et al. 2025: ``datasets_preprocess``, ``eval_metadata``),
CUT3R (Wang et al. 2025: ``eval/mv_recon``) and StreamVGGT (Zhuo et al. 2025: ``src/eval``) released; what could not be
found there is marked "not confirmed". Two things differ from those programs in every protocol: predictions are compared
on the pixels of the processed image (theirs are first enlarged to the size of the depth file), and the size of the
processed image is the caller's choice (theirs is 512 or 518 pixels wide).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .metrics import DepthAlignment

Part = Literal["depth", "camera", "points", "tracks"]


@dataclass(frozen=True)
class Protocol:
    """Say what is scored, and how.

    Attributes:
        name: as on the command line.
        source: where the set-up comes from and where it is uncertain.
        layout: layout of the folders (see :mod:`streamvggt.sequences`), None to detect it.
        parts: what is scored, of "depth", "camera", "points" and "tracks".
        sequences: ends of the names of the sequences that belong to it; empty for all.
        first_frame: number of the first frame taken.
        stride: frames from one to the next; None for the smallest that gives at most ``num_frames``.
        num_frames: frames taken at most, None for all.
        single_frames: every frame is a stream of its own.
        depth_alignments: see :func:`streamvggt.metrics.fit_depth`; "median" aligns each frame on its own, the others a
            whole sequence.
        max_depth: true depths beyond it, in metres, are not compared; None for no limit.
        clip_max: aligned predictions are cut to it, metres; None for no limit.
        weigh_pixels: the mean over sequences weighs depth errors by compared pixels, as published; else all alike.
        points_crop: side of the square in the middle of each frame whose points count, pixels; None for all points.
        icp_distance: after the similarity, refine by iterated closest points no farther than this, metres; None for no
            refinement.
        max_points: points of a cloud at most, drawn at random; the same pixels of prediction and truth.
    """

    name: str
    source: str
    layout: str | None = None
    parts: tuple[Part, ...] = ("depth", "camera", "points")
    sequences: tuple[str, ...] = ()
    first_frame: int = 0
    stride: int | None = None
    num_frames: int | None = 32
    single_frames: bool = False
    depth_alignments: tuple[DepthAlignment, ...] = ("median", "scale", "scale_shift")
    max_depth: float | None = None
    clip_max: float | None = None
    weigh_pixels: bool = False
    points_crop: int | None = None
    icp_distance: float | None = None
    max_points: int = 50_000

    def frames(self, available: int) -> list[int]:
        """Choose frames out of ``available``, ascending."""
        rest = max(0, available - self.first_frame)
        stride = self.stride
        if stride is None:
            stride = 1 if self.num_frames is None else max(1, -(-rest // self.num_frames))
        return list(range(self.first_frame, available, stride))[: self.num_frames]

    def includes(self, sequence_name: str) -> bool:
        """Say whether a sequence belongs to the protocol."""
        return not self.sequences or sequence_name.endswith(self.sequences)


SEQUENCE = Protocol(
    "sequence", "This project's own: whole sequences, thinned out evenly, streamed as users stream them, all measures."
)
CLIPS = Protocol(
    "clips",
    "This project's own, for made-up clips and validation in training: fast, without clouds.",
    parts=("depth", "camera", "tracks"),
    num_frames=None,
    depth_alignments=("median", "scale"),
)

_SINTEL = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6", "shaman_3",
    "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
_BONN = ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
_7SCENES_TEST = {
    "chess": (3, 5), "fire": (3, 4), "heads": (1,), "office": (2, 6, 7, 9), "pumpkin": (1, 7),
    "redkitchen": (3, 4, 6, 12, 14), "stairs": (1, 4),
}  # fmt: skip

_POINTS_SOURCE = (
    "CUT3R and StreamVGGT, eval/mv_recon/launch.py: the middle 224x224 pixels of frames 512x384 (CUT3R) or 518x392 "
    "(StreamVGGT), true depth up to 10 m, ICP point to point within 0.1 m, and for clouds from depth and camera a "
    "similarity (Umeyama) before it. Point maps are aligned there by median scale and shift; here all clouds by the "
    "similarity. Which of the two the StreamVGGT table shows: not confirmed. Its normals are Open3D's, ours those of "
    "the pixel grid. "
)
_VIDEO_SOURCE = (
    "MonST3R, CUT3R and StreamVGGT, eval/video_depth: one scale, or one scale and shift, for a sequence; averages "
    "weighed by pixels. "
)
_FRAME_SOURCE = "MonST3R, dust3r/depth_eval.py: each frame alone, scaled to its median; averages weighed by pixels. "
_CAMERA_SOURCE = "MonST3R, CUT3R: ATE and RPE after Sim(3) as evo computes them, averages over sequences. "
_SINTEL_FRAMES = "14 sequences, all frames; depth up to 70 m, predictions cut to 70 m."
_BONN_FRAMES = "5 sequences, frames 30 to 139; depth up to 70 m."
_KITTI_FRAMES = (
    "The first 110 frames with depth of every validation drive of the depth completion set, image_02, as MonST3R's "
    "prepare_kitti.py gathers them; no limit on depth."
)

_VIDEO: tuple[DepthAlignment, ...] = ("scale", "scale_shift")

_VIDEO_DEPTH = (
    Protocol(
        "sintel-depth",
        _VIDEO_SOURCE + _SINTEL_FRAMES,
        layout="sintel",
        parts=("depth",),
        sequences=_SINTEL,
        num_frames=None,
        depth_alignments=_VIDEO,
        max_depth=70,
        clip_max=70,
        weigh_pixels=True,
    ),
    Protocol(
        "bonn-depth",
        _VIDEO_SOURCE + _BONN_FRAMES,
        layout="bonn",
        parts=("depth",),
        sequences=_BONN,
        first_frame=30,
        stride=1,
        num_frames=110,
        depth_alignments=_VIDEO,
        max_depth=70,
        weigh_pixels=True,
    ),
    Protocol(
        "kitti-depth",
        _VIDEO_SOURCE + _KITTI_FRAMES,
        layout="kitti_depth",
        parts=("depth",),
        stride=1,
        num_frames=110,
        depth_alignments=_VIDEO,
        weigh_pixels=True,
    ),
)


def _by_frame(protocol: Protocol) -> Protocol:
    """Take the frames and depths of a video protocol, each frame alone and scaled to its median."""
    return replace(
        protocol,
        name=protocol.name.replace("-depth", "-frame-depth"),
        source=protocol.source.replace(_VIDEO_SOURCE, _FRAME_SOURCE),
        single_frames=True,
        depth_alignments=("median",),
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        SEQUENCE,
        CLIPS,
        Protocol(
            "7scenes-points",
            _POINTS_SOURCE + "Every 200th frame of the 18 test sequences: 3 or 5 views. The released code reads depth "
            "projected into the colour camera (depth.proj.png) with a focal length of 525.",
            layout="7scenes",
            parts=("points",),
            sequences=tuple(f"{scene}/seq-{n:02d}" for scene, numbers in _7SCENES_TEST.items() for n in numbers),
            stride=200,
            num_frames=None,
            max_depth=10,
            points_crop=224,
            icp_distance=0.1,
            max_points=300_000,
        ),
        Protocol(
            "nrgbd-points",
            _POINTS_SOURCE + "Every 500th frame of each scene: 2 to 4 views.",
            layout="nrgbd",
            parts=("points",),
            stride=500,
            num_frames=None,
            max_depth=10,
            points_crop=224,
            icp_distance=0.1,
            max_points=300_000,
        ),
        *_VIDEO_DEPTH,
        *(_by_frame(protocol) for protocol in _VIDEO_DEPTH),
        Protocol(
            "nyuv2-frame-depth",
            _FRAME_SOURCE + "The 654 test pictures as MonST3R's prepare_nyuv2.py unpacks them, no limit on depth, the "
            "whole picture. Whether the papers leave out its white border: not confirmed.",
            layout="nyu",
            parts=("depth",),
            num_frames=None,
            single_frames=True,
            depth_alignments=("median",),
            weigh_pixels=True,
        ),
        Protocol(
            "sintel-camera",
            _CAMERA_SOURCE + "14 sequences, all frames.",
            layout="sintel",
            parts=("camera",),
            sequences=_SINTEL,
            num_frames=None,
        ),
        Protocol(
            "tum-camera",
            _CAMERA_SOURCE + "The dynamic sequences of freiburg3: of the frames that have depth and a pose within "
            "20 ms, every third, 90 at most (MonST3R asks for the pose alone, so a few frames differ). "
            "Which sequences: not confirmed (MonST3R takes those of its download script).",
            layout="tum",
            parts=("camera",),
            stride=3,
            num_frames=90,
        ),
        Protocol(
            "scannet-camera",
            _CAMERA_SOURCE + "Every third frame, 90 at most, from the first one on. Which scenes: not confirmed.",
            layout="scannet",
            parts=("camera",),
            stride=3,
            num_frames=90,
        ),
    )
}
