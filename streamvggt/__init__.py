"""Live 3D from video: poses, depth, point maps and tracks of every new frame, from the past alone.

>>> import streamvggt
>>> model = streamvggt.load_model("tiny")                            # doctest: +SKIP
>>> session = streamvggt.StreamSession(model)                        # doctest: +SKIP
>>> for frame in streamvggt.read_frames("video.mp4", fps=2):         # doctest: +SKIP
...     prediction = session.step(frame)

Symbols: ``B`` streams, ``S`` frames of a call, ``P`` tokens of a frame, ``C`` width of a token, ``D`` width of an
attention head, ``F`` frames that a cache can hold, ``I`` refinement rounds, ``N`` query points, ``H x W`` pixels of the
processed image, ``h x w`` of the image as it came.

Conventions: images are RGB; ``xy`` are pixels with centres at integers (principal points lie at ``(W / 2, H / 2)`` all
the same: so the released networks were trained); ``extrinsics`` are world-to-camera ``[3, 4]`` with OpenCV axes (x
right, y down, z forward); ``intrinsics`` are in pixels of the processed image; ``depth`` is z in the camera. The world
is the first frame's camera and its unit is relative, for the network sees no scale. Confidences are >= 1.
"""

from .atlas import Loop
from .checkpoint import (
    CheckpointError,
    from_official,
    from_pretrained,
    load_model,
    push_to_hub,
    save_model,
    to_official,
)
from .config import StreamVGGTConfig, TrackConfig
from .export import colmap_files, npz_bytes, ply_bytes, tum_trajectory, write_atomically
from .geometry import (
    Similarity,
    align_similarity,
    decode_pose,
    depth_edges,
    encode_pose,
    invert_pose,
    project,
    unproject,
)
from .glb import frame_glb_bytes, glb_bytes
from .images import from_source_xy, preprocess, to_rgb, to_source_intrinsics, to_source_map, to_source_xy
from .longstream import LongSession, move_prediction
from .memory import is_out_of_memory
from .model import StreamVGGT
from .notebook import SceneView, scene_html, show
from .pictures import depth_picture, overview_camera, render_points
from .policies import AnchorWindow, CachePolicy, KeepAll, KeyDiversity, Keyframes, QueryImportance, TokenBudget
from .saving import SavedSessionError
from .scene import PointFilter, Scene
from .session import StreamSession, in_groups
from .state import StreamState
from .thinning import VoxelThinning
from .turntable import turntable_mp4
from .types import Camera, Frame, FramePrediction, Placement, PointCloud, Predictions
from .video import VideoError, VideoInfo, describe_video, read_frames

__all__ = [
    "AnchorWindow",
    "CachePolicy",
    "Camera",
    "CheckpointError",
    "Frame",
    "FramePrediction",
    "KeepAll",
    "KeyDiversity",
    "Keyframes",
    "LongSession",
    "Loop",
    "Placement",
    "PointCloud",
    "PointFilter",
    "Predictions",
    "QueryImportance",
    "SavedSessionError",
    "Scene",
    "SceneView",
    "Similarity",
    "StreamSession",
    "StreamState",
    "StreamVGGT",
    "StreamVGGTConfig",
    "TokenBudget",
    "TrackConfig",
    "VideoError",
    "VideoInfo",
    "VoxelThinning",
    "align_similarity",
    "colmap_files",
    "decode_pose",
    "depth_edges",
    "depth_picture",
    "describe_video",
    "encode_pose",
    "frame_glb_bytes",
    "from_official",
    "from_pretrained",
    "from_source_xy",
    "glb_bytes",
    "in_groups",
    "invert_pose",
    "is_out_of_memory",
    "load_model",
    "move_prediction",
    "npz_bytes",
    "overview_camera",
    "ply_bytes",
    "preprocess",
    "project",
    "push_to_hub",
    "read_frames",
    "render_points",
    "save_model",
    "scene_html",
    "show",
    "to_official",
    "to_rgb",
    "to_source_intrinsics",
    "to_source_map",
    "to_source_xy",
    "tum_trajectory",
    "turntable_mp4",
    "unproject",
    "write_atomically",
]
