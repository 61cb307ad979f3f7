"""A room with exact truth, a camera that goes round in it, and a network that errs by a known amount."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from streamvggt import StreamVGGTConfig, encode_pose, invert_pose
from streamvggt.types import OUTPUTS, Predictions

SIDE = 28
LAP = 100  # frames of a lap of the camera
RADIUS = 4.0
ROOM = np.array([7.0, 2.0, 6.0])  # half of its size
INTRINSICS = np.array([[SIDE / 2, 0, SIDE / 2], [0, SIDE / 2, SIDE / 2], [0, 0, 1]])


def true_pose(frame):
    """World-to-camera of a frame: round and round a room, looking ahead and outwards."""
    angle = 2 * np.pi * frame / LAP
    centre = np.array([RADIUS * np.cos(angle), 0.3 * np.sin(3 * angle), RADIUS * np.sin(angle)])
    camera_to_world = Rotation.from_euler("y", -angle + 0.6).as_matrix()
    return invert_pose(np.concatenate([camera_to_world, centre[:, None]], axis=1))


def true_depth(pose):
    """Depth of the walls, floor and ceiling around."""
    camera_to_world = invert_pose(pose)
    y, x = np.mgrid[:SIDE, :SIDE]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(INTRINSICS).T @ camera_to_world[:, :3].T
    rays += 1e-9  # none runs along a wall for ever
    return ((np.sign(rays) * ROOM - camera_to_world[:, 3]) / rays).min(-1)


def picture(frame):
    """Four grey squares that tell the number of the frame, also after JPEG."""
    digits = [frame >> 12 & 15, frame >> 8 & 15, frame >> 4 & 15, frame & 15]
    grey = np.array(digits).reshape(2, 2) * 16 + 8
    return np.repeat(np.kron(grey, np.ones((SIDE // 2, SIDE // 2)))[..., None], 3, axis=2).astype(np.uint8)


def frame_of(image):
    squares = image.mean(0).unflatten(0, (2, SIDE // 2)).unflatten(2, (2, SIDE // 2)).mean((1, 3)) * 255
    digits = ((squares - 8) / 16).round().int().flatten().tolist()
    return sum(digit << 4 * (3 - i) for i, digit in enumerate(digits))


@dataclass
class Drift:
    """How a network errs: each by the frame since its stream began, noise on top."""

    scale: float = 0.002
    yaw_deg: float = 0.15
    ahead: float = 0.01  # units of the room
    depth_noise: float = 0.02
    outliers: float = 0.05
    pose_noise: float = 0.002


class KnowsTheTruth(torch.nn.Module):
    """A stand-in for the network: the truth, in the first frame's world and some unit of its own, plus drift.

    Frames with the numbers ``broken`` are not finite, and with ``lasting`` nor is what their stream says ever after, as
    with keys and values that are not.
    """

    def __init__(self, drift, broken=(), *, lasting=False):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = replace(StreamVGGTConfig.tiny(), image_size=SIDE)
        self.drift, self.rng = drift, np.random.default_rng(0)
        self.broken, self.lasting = frozenset(broken), lasting
        self._waves = np.random.default_rng(1).normal(0, 0.6, (6, 64))

    def check_outputs(self, outputs):
        return OUTPUTS - {"tracks"} if outputs is None else outputs

    def new_state(self, policy, **_options):
        return _Held(policy, unit=float(np.exp(self.rng.normal(0, 0.3))))

    def describe(self, number):
        pose = invert_pose(true_pose(number))
        phases = np.concatenate([pose[:, 3], 3 * pose[:, 2]]) @ self._waves
        return torch.from_numpy(np.concatenate([np.cos(phases), np.sin(phases)])).float()

    def __call__(self, images, state, **_options):
        said = [self.see(frame_of(image), state) for image in images[0]]
        pose_enc, depth, descriptors = (torch.stack(parts)[None] for parts in zip(*said, strict=True))
        conf = torch.full_like(depth, 5.0)
        return Predictions(pose_enc=pose_enc, depth=depth, depth_conf=conf, descriptors=descriptors)

    def see(self, number, state):
        """Camera, depth and descriptor of the next frame of a stream."""
        drift, pose = self.drift, true_pose(number)
        if state.first is None:
            state.first = pose
        age = state.num_frames
        state.num_frames += 1
        relative = np.vstack([invert_pose(pose), [0, 0, 0, 1]])
        relative = np.vstack([state.first, [0, 0, 0, 1]]) @ relative  # camera to the first camera
        scale = state.unit * np.exp(-drift.scale * age)
        turn = Rotation.from_euler("y", drift.yaw_deg * age, degrees=True).as_matrix()
        noise = self.rng.normal(0, drift.pose_noise, (2, 3)) * (age > 0)
        camera_to_world = np.empty((3, 4))
        camera_to_world[:, :3] = turn @ relative[:3, :3] @ Rotation.from_rotvec(noise[0]).as_matrix()
        camera_to_world[:, 3] = scale * (turn @ relative[:3, 3] + [0, 0, drift.ahead * age] + noise[1])
        depth = true_depth(pose) * np.exp(self.rng.normal(0, drift.depth_noise, (SIDE, SIDE)))
        wrong = self.rng.random((SIDE, SIDE)) < drift.outliers
        depth = np.where(wrong, depth * self.rng.uniform(0.3, 3, depth.shape), depth) * scale
        extrinsics, intrinsics = torch.from_numpy(invert_pose(camera_to_world)), torch.from_numpy(INTRINSICS)
        encoded = encode_pose(extrinsics, intrinsics, (SIDE, SIDE)).float()
        bad = number in self.broken
        state.broken |= bad and self.lasting
        fault = torch.nan if bad or state.broken else 0.0
        return encoded + fault, torch.from_numpy(depth).float() + fault, self.describe(number)


class _Held:
    def __init__(self, policy, unit):
        self.slots, self.first, self.unit, self.num_frames, self.nbytes = policy, None, unit, 0, 1000
        self.policy, self.memory, self.storage, self.compiled = policy, None, "native", False
        self.broken = False

    @property
    def held_frames(self):
        return tuple(range(self.num_frames))

    def all_or_nothing(self):
        return nullcontext()
