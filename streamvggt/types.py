"""What travels between the stages: frames in, predictions out, cameras and points on the way to a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

# What a network can be asked for; each has a head of its own.
OUTPUTS = frozenset({"camera", "depth", "points", "tracks"})

Value = TypeVar("Value")


def required(value: Value | None, output: str) -> Value:
    """Return a field of a prediction that a consumer cannot do without.

    Args:
        value: the field.
        output: the one of :data:`OUTPUTS` that fills it.

    Raises:
        ValueError: the network was not asked for it.
    """
    if value is None:
        raise ValueError(f"the prediction has no {output}: the network was not asked for it; add {output!r} to outputs")
    return value


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video.

    Attributes:
        image: RGB, uint8 ``[h, w, 3]``.
        index: position in its source, from 0; a stream counts its own frames.
        time_s: seconds since the first frame of the source; exported trajectories carry it.
        name: file name, where the frame is a file of its own.
    """

    image: ByteArray
    index: int = 0
    time_s: float = 0.0
    name: str | None = None


@dataclass(eq=False)
class Predictions:
    """What the network says about ``B`` streams of ``S`` frames (torch tensors, float32).

    What it was not asked for is None.

    Attributes:
        pose_enc: ``[B, S, 9]``: translation 3, quaternion xyzw 4 (not normalised), vertical and horizontal field of
            view in radians; camera-from-world. Decode it with :func:`streamvggt.decode_pose`.
        pose_enc_iterations: ``[I, B, S, 9]``, every refinement round; the last is ``pose_enc``.
        depth: ``[B, S, H, W]``, z in the camera, > 0, scene units (the scale is relative).
        depth_conf: ``[B, S, H, W]``, >= 1.
        world_points: ``[B, S, H, W, 3]`` in the first camera's frame, OpenCV axes, scene units.
        world_points_conf: ``[B, S, H, W]``, >= 1.
        tracks: ``[B, S, N, 2]``, xy in pixels, or None without query points.
        track_visibility: ``[B, S, N]``, probability in [0, 1], or None.
        track_conf: ``[B, S, N]``, probability in [0, 1], or None.
        descriptors: ``[B, S, C']`` in a stream, by which a place is known again, see
            :meth:`streamvggt.StreamVGGT.describe`.
        patch_descriptors: ``[B, S, N, D]``, of length 1, in a stream of a network with soft matches: by which its
            patches are found again, see :class:`streamvggt.matching.SoftMatch`.
    """

    pose_enc: Tensor | None = None
    pose_enc_iterations: Tensor | None = None
    depth: Tensor | None = None
    depth_conf: Tensor | None = None
    world_points: Tensor | None = None
    world_points_conf: Tensor | None = None
    tracks: Tensor | None = None
    track_visibility: Tensor | None = None
    track_conf: Tensor | None = None
    descriptors: Tensor | None = None
    patch_descriptors: Tensor | None = None


class PosedCamera(Protocol):
    """What the exporters ask of a camera; :class:`Camera` has it, and so has :class:`FramePrediction` with a camera."""

    @property
    def index(self) -> int: ...
    @property
    def time_s(self) -> float: ...
    @property
    def extrinsics(self) -> FloatArray: ...
    @property
    def intrinsics(self) -> FloatArray: ...
    @property
    def image_hw(self) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
class Camera:
    """A posed pinhole camera.

    Attributes:
        index: number of its frame in the stream.
        time_s: seconds since the first frame.
        extrinsics: world-to-camera ``[3, 4]``, OpenCV axes (x right, y down, z forward), scene units.
        intrinsics: ``[3, 3]``, pixels of an image of ``image_hw``; integer coordinates are pixel centres.
        image_hw: height and width of that image, pixels.
    """

    index: int
    time_s: float
    extrinsics: FloatArray
    intrinsics: FloatArray
    image_hw: tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a processed image come from: the source was resized, then cropped or padded.

    Attributes:
        source_hw: size of the image as it came.
        resized_hw: size after resizing.
        offset_xy: position of the processed image's first pixel in the resized image (negative where padded).
        image_hw: size of the processed image.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    offset_xy: tuple[int, int]
    image_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """What a stream says about one frame (numpy arrays on the CPU, float32). ``H x W`` is the processed image.

    What the session was not asked for is None.

    Attributes:
        index: number of the frame in the stream, from 0.
        time_s: its time stamp in seconds.
        image: the processed image, RGB, uint8 ``[H, W, 3]``.
        depth: ``[H, W]``, z in the camera, > 0, scene units (the scale is relative, set by frame 0).
        depth_conf: ``[H, W]``, >= 1.
        world_points: ``[H, W, 3]`` in the first camera's frame, OpenCV axes, scene units.
        world_points_conf: ``[H, W]``, >= 1.
        extrinsics: world-to-camera ``[3, 4]``, OpenCV axes.
        intrinsics: ``[3, 3]``, pixels of the processed image.
        tracks: ``[N, 2]``, xy in pixels of the processed image, or None without query points.
        track_visibility: ``[N]``, probability in [0, 1], or None.
        placement: how the processed image was cut from the frame, the way back to its pixels.
        descriptor: ``[C']``, the mean of the encoder's patches, by which a place is known again, see
            :meth:`streamvggt.StreamVGGT.describe`.
        patch_descriptors: ``[N, D]``, of length 1, by which its patches are found again, row by row; None where the
            session does not refine cameras.
    """

    index: int
    time_s: float
    image: ByteArray
    depth: FloatArray | None = None
    depth_conf: FloatArray | None = None
    world_points: FloatArray | None = None
    world_points_conf: FloatArray | None = None
    extrinsics: FloatArray | None = None
    intrinsics: FloatArray | None = None
    tracks: FloatArray | None = None
    track_visibility: FloatArray | None = None
    placement: Placement | None = None
    descriptor: FloatArray | None = None
    patch_descriptors: FloatArray | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the processed image, pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def camera(self) -> Camera:
        """The camera alone, with arrays of its own.

        Raises:
            ValueError: the session was not asked for cameras.
        """
        return Camera(
            index=self.index,
            time_s=self.time_s,
            extrinsics=np.array(required(self.extrinsics, "camera"), dtype=np.float32),
            intrinsics=np.array(required(self.intrinsics, "camera"), dtype=np.float32),
            image_hw=self.image_hw,
        )


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points in the first camera's frame (OpenCV axes, scene units of relative scale).

    Attributes:
        points: ``[N, 3]`` float32.
        colors: ``[N, 3]`` uint8, sRGB.
        confidence: ``[N]`` float32, >= 1.
        frame_index: ``[N]`` int32, the frame that saw the point.
    """

    points: FloatArray
    colors: ByteArray
    confidence: FloatArray
    frame_index: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.points)

    def select(self, which: NDArray[np.bool_] | NDArray[np.integer]) -> PointCloud:
        """Return the points of a mask ``[N]``, or of row numbers in their order."""
        return PointCloud(self.points[which], self.colors[which], self.confidence[which], self.frame_index[which])
