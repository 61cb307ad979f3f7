"""Render the example clips of this folder, each with exact depth and cameras beside it.

    pip install bpy==5.0.1 av miniworld robosuite scikit-image      (the last three with --no-deps: only their pictures)
    python assets/make_clips.py --clip living_room --out assets
    python assets/make_clips.py --clip living_room --preview --frames-dir look [--at 0 20 35]

Every clip is a scene of our own: meshes from the functions below, textures from the folders of the installed packages
(CREDITS.md names them), light traced by Blender's Cycles. Same seed, same clip. A frame takes two to five seconds on
one CPU core. Scenes have z up and metres; `turn` is a rotation about z in degrees unless said otherwise.

Output: NAME.mp4, and NAME.npz with
    depth        float16 [S, H/4, W/4], z in the camera, metres, 0 where there is none; pixel (x, y) of it is the exact
                 depth at the point (4 x + 1.5, 4 y + 1.5) of the video frame
    extrinsics   float64 [S, 3, 4], world-to-camera, OpenCV axes, metres
    intrinsics   float64 [3, 3], pixels of the video frame, integer coordinates are pixel centres
    time_s       float64 [S]
    credit       origin and licences, text
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import itertools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import bpy
import numpy as np
from mathutils import Euler, Matrix, Vector
from numpy.typing import NDArray

logger = logging.getLogger("make_clips")

WIDTH, HEIGHT, FPS = 320, 240, 12
DEPTH_STRIDE = 4
CREDIT = (
    "StreamVGGT example clip, Apache-2.0; rendered with Blender Cycles from scenes of assets/make_clips.py; textures: "
    "miniworld (Apache-2.0), robosuite (MIT), scikit-image (CC0, public domain); see assets/CREDITS.md"
)

Rgb = tuple[float, float, float]
Point = Sequence[float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shot:
    """Say where the camera goes: knots of smooth curves, evenly spaced in time.

    Attributes:
        eyes: positions, metres.
        targets: points looked at, metres.
        rolls_deg: about the line of sight, positive turns the picture anticlockwise.
        fov_deg: horizontal.
        animate: called with the time in seconds before each frame, where things move.
        num_frames: length of the clip.
        samples: rays a pixel.
    """

    eyes: list[Point]
    targets: list[Point]
    rolls_deg: list[float]
    fov_deg: float = 62.0
    animate: Callable[[float], None] | None = None
    num_frames: int = 36
    samples: int = 5


# Camera


def curve(knots: Sequence[Point] | Sequence[float], t: Floats) -> Floats:
    """Interpolate knots by a Catmull-Rom spline at ``t`` in [0, 1]."""
    values = np.asarray(knots, float).reshape(len(knots), -1)
    values = np.concatenate([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    at = t * (len(knots) - 1)
    i = np.minimum(at.astype(int), len(knots) - 2)
    u = (at - i)[:, None]
    a, b, c, d = (values[i + k] for k in range(4))
    return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def shake(rng: np.random.Generator, time_s: Floats, size: float) -> Floats:
    """Make the unrest of a hand, ``[S, 3]``: slow sines of three axes, about ``size`` in deviation."""
    hertz = rng.uniform(0.25, 1.6, (1, 3, 6))
    phase = rng.uniform(0, 2 * np.pi, (1, 3, 6))
    return size * (np.sin(2 * np.pi * hertz * time_s[:, None, None] + phase) * 0.35 / np.sqrt(hertz)).sum(-1)


def camera_poses(shot: Shot, rng: np.random.Generator) -> Floats:
    """Turn a shot into camera-to-world ``[S, 4, 4]``, OpenCV axes."""
    t = np.linspace(0, 1, shot.num_frames)
    time_s = np.arange(shot.num_frames) / FPS
    eyes = curve(shot.eyes, t) + shake(rng, time_s, 0.008)
    targets = curve(shot.targets, t) + shake(rng, time_s, 0.012)
    rolls = np.radians(curve(shot.rolls_deg, t)[:, 0] + shake(rng, time_s, 0.7)[:, 0])
    poses = np.tile(np.eye(4), (shot.num_frames, 1, 1))
    forward = targets - eyes
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(rolls)[:, None], np.sin(rolls)[:, None]
    poses[:, :3, 0], poses[:, :3, 1] = cos * right + sin * down, cos * down - sin * right
    poses[:, :3, 2], poses[:, :3, 3] = forward, eyes
    return poses


# Materials


def picture_file(name: str) -> str:
    """Find a picture of an installed package: "miniworld/brick_wall_1", "robosuite/clay", "skimage/coffee"."""
    folders = {
        "miniworld": "miniworld/textures",
        "portraits": "miniworld/textures/portraits",
        "robosuite": "robosuite/models/assets/textures",
        "skimage": "skimage/data",
    }
    package, stem = name.split("/")
    found = importlib.util.find_spec(folders[package].split("/")[0])
    if found is None or found.origin is None:
        raise SystemExit(f"{name}: not installed; pip install --no-deps miniworld robosuite scikit-image")
    folder = Path(found.origin).parents[1] / folders[package]
    return str(next(path for path in (folder / f"{stem}.png", folder / f"{stem}.jpg") if path.exists()))


class Nodes:
    """Build a node tree from calls: ``nodes("TexNoise", Scale=3)`` makes a node, sets inputs and links sockets."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree

    def __call__(self, kind: str, options: dict[str, object] | None = None, **inputs: object) -> bpy.types.Node:
        node = self.tree.nodes.new(f"ShaderNode{kind}")
        for name, value in (options or {}).items():
            setattr(node, name, value)
        for name, value in inputs.items():
            socket = node.inputs[int(name[1:])] if name[0] == "_" else node.inputs[name.replace("_", " ")]
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, socket)
            else:
                socket.default_value = value
        return node

    def multiply(self, a: object, b: object) -> bpy.types.NodeSocket:
        return self("Mix", {"data_type": "RGBA", "blend_type": "MULTIPLY"}, _0=1.0, _6=a, _7=b).outputs[2]

    def ramp(self, factor: bpy.types.NodeSocket, colors: Sequence[Rgb], *, steps: bool) -> bpy.types.NodeSocket:
        node = self("ValToRGB", Fac=factor)
        node.color_ramp.interpolation = "CONSTANT" if steps else "LINEAR"
        stops = node.color_ramp.elements
        stops.remove(stops[1])
        for k, color in enumerate(colors):
            stop = stops[0] if k == 0 else stops.new(k / (len(colors) if steps else len(colors) - 1))
            stop.color = (*color, 1)
        return node.outputs[0]


def make_material(
    texture: str | None = None,
    size_m: float = 1.0,
    *,
    tint: Rgb = (1, 1, 1),
    palette: Sequence[Rgb] = (),
    pattern: str = "random",
    fit: bool = False,
    rough: float = 0.65,
    bump: float = 0.3,
    metal: float = 0.0,
    glow: float = 0.0,
) -> bpy.types.Material:
    """Make a surface from a picture or a pattern of a palette, with a little dirt and relief.

    Args:
        texture: see :func:`picture_file`; laid on in object coordinates from three sides, once every ``size_m``.
        palette: colours of the pattern, where there is no texture (linear RGB).
        pattern: "random" (one colour an object), "stripes", "kilim", "spots", "grain" or "weave", period ``size_m``.
        fit: the texture fills the UV square instead.
    """
    made = bpy.data.materials.new(texture or pattern)
    made.use_nodes = True
    made.node_tree.nodes.clear()
    nodes = Nodes(made.node_tree)
    where = nodes("TexCoord").outputs["UV" if fit else "Object"]
    own = nodes("ObjectInfo").outputs["Random"]
    if not fit:  # objects of one material must not show the same piece of it
        offset = nodes("CombineXYZ", X=own, Y=own, Z=0.0137).outputs[0]
        where = nodes("VectorMath", {"operation": "ADD"}, _0=where, _1=offset).outputs[0]
        where = nodes("VectorMath", {"operation": "SCALE"}, _0=where, Scale=1 / size_m).outputs[0]
    if texture:
        image = bpy.data.images.load(picture_file(texture), check_existing=True)
        options = {"image": image} if fit else {"image": image, "projection": "BOX", "projection_blend": 0.1}
        color = nodes.multiply(nodes("TexImage", options, Vector=where).outputs[0], (*tint, 1))
    else:
        color = _pattern(nodes, pattern, palette, where, own)
    relief = nodes("RGBToBW", Color=color).outputs[0]
    if not fit:
        dirt = nodes("TexNoise", Vector=nodes("TexCoord").outputs["Object"], Scale=9.0, Detail=2.0).outputs[0]
        color = nodes.multiply(color, nodes.ramp(dirt, [(0.45,) * 3, (1.0,) * 3, (1.1,) * 3], steps=False))
    shader = nodes("BsdfPrincipled", Base_Color=color, Roughness=rough, Metallic=metal)
    if bump:
        normal = nodes("Bump", Height=relief, Strength=bump, Distance=0.02).outputs[0]
        nodes.tree.links.new(normal, shader.inputs["Normal"])
    if glow:
        nodes.tree.links.new(color, shader.inputs["Emission Color"])
        shader.inputs["Emission Strength"].default_value = glow
    nodes("OutputMaterial", Surface=shader.outputs[0])
    return made


def _pattern(
    nodes: Nodes, kind: str, palette: Sequence[Rgb], where: bpy.types.NodeSocket, own: bpy.types.NodeSocket
) -> bpy.types.NodeSocket:
    """Colour a surface by a pattern of :func:`make_material`."""
    if kind == "random":
        return nodes.ramp(own, palette, steps=True)
    if kind == "stripes":
        factor = nodes("TexWave", {"wave_profile": "SAW"}, Vector=where, Scale=0.314, Distortion=0.15).outputs[1]
    elif kind == "kilim":
        factor = nodes("TexVoronoi", {"distance": "MANHATTAN"}, Vector=where, Scale=1.0, Randomness=0.15).outputs[0]
    elif kind == "spots":
        factor = nodes("TexVoronoi", Vector=where, Scale=1.0, Randomness=0.8).outputs[0]
    elif kind == "weave":
        a = nodes("TexWave", Vector=where, Scale=0.314, Distortion=0.8).outputs[1]
        b = nodes("TexWave", {"bands_direction": "Z"}, Vector=where, Scale=0.314, Distortion=0.8).outputs[1]
        factor = nodes("Math", {"operation": "MULTIPLY"}, _0=a, _1=b).outputs[0]
    else:
        factor = nodes("TexNoise", Vector=where, Scale=1.0, Detail=3.0, Distortion=0.6).outputs[0]
    return nodes.ramp(factor, palette, steps=kind in ("stripes", "kilim", "spots"))


SURFACES: dict[str, dict[str, object]] = {
    "oak": {"texture": "miniworld/wood_1", "size_m": 0.6, "rough": 0.45},
    "pine": {"texture": "miniworld/wood_2", "size_m": 0.6, "rough": 0.5},
    "walnut": {"texture": "miniworld/wood_1", "size_m": 0.5, "tint": (0.42, 0.28, 0.2), "rough": 0.4},
    "planks": {"texture": "miniworld/wood_planks_1", "size_m": 1.0, "bump": 0.8},
    "floor": {"texture": "robosuite/wood-varnished-panels", "size_m": 1.3, "rough": 0.4, "tint": (1.0, 0.9, 0.8)},
    "parquet": {"texture": "robosuite/wood-tiles", "size_m": 0.9, "rough": 0.4},
    "brick": {"texture": "miniworld/brick_wall_1", "size_m": 1.5, "bump": 0.7, "tint": (2.0, 1.75, 1.6)},
    "white brick": {"texture": "robosuite/white-bricks", "size_m": 1.3, "bump": 0.8, "tint": (0.95, 0.9, 0.85)},
    "plaster": {"texture": "robosuite/cream-plaster", "size_m": 1.4, "rough": 0.9},
    "blue plaster": {"texture": "robosuite/gray-plaster", "size_m": 1.2, "tint": (0.42, 0.62, 0.78), "rough": 0.9},
    "white": {"texture": "miniworld/stucco_1", "size_m": 0.6, "tint": (1.15, 1.12, 1.05), "rough": 0.8},
    "marble": {"texture": "miniworld/marble_1", "size_m": 0.5, "rough": 0.25, "bump": 0.1},
    "clay": {"texture": "robosuite/clay", "size_m": 0.4, "rough": 0.8},
    "steel": {"texture": "robosuite/steel-scratched", "size_m": 0.4, "rough": 0.35, "metal": 0.9, "bump": 0.1},
    "brass": {"texture": "robosuite/brass-ambra", "size_m": 0.4, "rough": 0.35, "metal": 0.7, "bump": 0.1},
    "soil": {"texture": "robosuite/dirt", "size_m": 0.3, "bump": 1.0},
    "lemon": {"texture": "robosuite/lemon", "size_m": 0.2, "rough": 0.4},
    "books": {
        "palette": [(0.5, 0.05, 0.04), (0.03, 0.12, 0.3), (0.6, 0.4, 0.08), (0.04, 0.22, 0.14), (0.7, 0.62, 0.5),
                    (0.32, 0.05, 0.16), (0.08, 0.34, 0.42), (0.75, 0.24, 0.05), (0.25, 0.3, 0.36)],
    },
    "paper": {"palette": [(0.8, 0.76, 0.66), (0.6, 0.56, 0.46)], "pattern": "grain", "size_m": 0.02},
    "gilt": {"palette": [(0.8, 0.6, 0.25), (0.85, 0.8, 0.7)]},
    "leaves": {
        "palette": [(0.03, 0.14, 0.02), (0.08, 0.28, 0.05), (0.16, 0.4, 0.08)], "pattern": "grain", "size_m": 0.06,
    },
    "teal cloth": {
        "palette": [(0.01, 0.12, 0.14), (0.03, 0.3, 0.32)], "pattern": "weave", "size_m": 0.03, "rough": 0.95,
    },
    "ochre cloth": {
        "palette": [(0.45, 0.18, 0.02), (0.8, 0.42, 0.06)], "pattern": "weave", "size_m": 0.03, "rough": 0.95,
    },
    "striped cloth": {
        "palette": [(0.75, 0.7, 0.6), (0.5, 0.06, 0.04), (0.75, 0.7, 0.6), (0.05, 0.12, 0.25)],
        "pattern": "stripes", "size_m": 0.12, "rough": 0.95,
    },
    "kilim": {
        "palette": [(0.6, 0.5, 0.35), (0.42, 0.04, 0.03), (0.7, 0.35, 0.08), (0.03, 0.08, 0.2), (0.6, 0.5, 0.35)],
        "pattern": "kilim", "size_m": 0.34, "rough": 1.0, "bump": 0.5,
    },
    "kilim small": {
        "palette": [(0.65, 0.58, 0.45), (0.03, 0.1, 0.24), (0.6, 0.2, 0.08), (0.65, 0.58, 0.45), (0.1, 0.25, 0.25)],
        "pattern": "kilim", "size_m": 0.11, "rough": 1.0,
    },
    "apple": {
        "palette": [(0.45, 0.02, 0.02), (0.6, 0.1, 0.03), (0.55, 0.45, 0.05)], "pattern": "grain", "size_m": 0.08,
    },
    "spotted": {
        "palette": [(0.05, 0.25, 0.35), (0.6, 0.2, 0.06), (0.05, 0.25, 0.35), (0.75, 0.68, 0.55), (0.75, 0.68, 0.55)],
        "pattern": "spots", "size_m": 0.055, "rough": 0.35,
    },
    "lampshade": {"palette": [(0.9, 0.6, 0.3), (0.95, 0.75, 0.5)], "pattern": "weave", "size_m": 0.05, "glow": 1.6},
    "glass": {
        "palette": [(0.03, 0.05, 0.07), (0.12, 0.17, 0.22)], "pattern": "grain", "size_m": 0.7, "rough": 0.15,
    },
    "stone": {"texture": "miniworld/concrete_3", "size_m": 0.9, "tint": (1.0, 0.88, 0.72), "rough": 0.9},
    "cobbles": {"texture": "miniworld/cinder_blocks_1", "size_m": 1.1, "tint": (1.9, 1.65, 1.4), "bump": 0.8},
    "pink plaster": {"texture": "robosuite/pink-plaster", "size_m": 1.8, "tint": (0.95, 0.66, 0.5), "rough": 0.95},
    "yellow wall": {"texture": "robosuite/pink-plaster", "size_m": 1.6, "tint": (0.95, 0.74, 0.38), "rough": 0.95},
    "green wood": {"texture": "robosuite/green-wood", "size_m": 0.5, "rough": 0.6},
    "blue wood": {"texture": "robosuite/blue-wood", "size_m": 0.5, "rough": 0.6},
    "red wood": {"texture": "robosuite/red-wood", "size_m": 0.6, "rough": 0.6},
    "awning": {"palette": [(0.8, 0.75, 0.65), (0.5, 0.05, 0.04)], "pattern": "stripes", "size_m": 0.3, "rough": 0.9},
    "flags": {"palette": [(0.65, 0.06, 0.05), (0.8, 0.5, 0.05), (0.05, 0.3, 0.5), (0.8, 0.75, 0.65), (0.1, 0.4, 0.1)]},
    "red": {"palette": [(0.55, 0.02, 0.03), (0.8, 0.1, 0.08), (0.7, 0.05, 0.2)]},
    "violet": {"palette": [(0.3, 0.05, 0.45), (0.6, 0.2, 0.6), (0.8, 0.7, 0.8)]},
    "soft rug": {
        "palette": [(0.1, 0.3, 0.32), (0.62, 0.55, 0.42), (0.14, 0.36, 0.38), (0.2, 0.44, 0.45), (0.55, 0.46, 0.3)],
        "pattern": "spots", "size_m": 0.3, "rough": 1.0, "bump": 0.4,
    },
    "confetti": {"palette": [(0.7, 0.05, 0.04), (0.85, 0.55, 0.05), (0.05, 0.3, 0.6), (0.1, 0.5, 0.15)]},
    "toy red": {"texture": "robosuite/red-wood", "size_m": 0.2, "tint": (1.2, 0.7, 0.6), "rough": 0.4},
    "toy green": {"texture": "robosuite/green-wood", "size_m": 0.2, "rough": 0.4},
    "toy blue": {"texture": "robosuite/blue-wood", "size_m": 0.2, "rough": 0.4},
    "toy yellow": {"texture": "miniworld/wood_2", "size_m": 0.2, "tint": (1.4, 0.95, 0.2), "rough": 0.4},
    "beach ball": {
        "palette": [(0.8, 0.75, 0.65), (0.6, 0.04, 0.04), (0.8, 0.75, 0.65), (0.04, 0.2, 0.5), (0.8, 0.5, 0.04)],
        "pattern": "stripes", "size_m": 0.14, "rough": 0.35,
    },
    "blocks": {
        "palette": [(0.75, 0.6, 0.4), (0.6, 0.08, 0.05), (0.75, 0.6, 0.4), (0.05, 0.25, 0.5), (0.8, 0.5, 0.06)],
        "pattern": "kilim", "size_m": 0.11, "rough": 0.5,
    },
}  # fmt: skip


@functools.cache
def surface(name: str) -> bpy.types.Material:
    """Look a surface up in the table; made once."""
    return make_material(**SURFACES[name])


# Shapes

OUTLINES: dict[str, list[tuple[float, float]]] = {
    "jug": [(0, 0), (0.2, 0), (0.24, 0.02), (0.33, 0.2), (0.36, 0.38), (0.3, 0.58), (0.16, 0.74), (0.13, 0.86),
            (0.18, 1.0), (0.15, 1.0), (0.1, 0.86), (0, 0.6)],
    "bowl": [(0, 0), (0.45, 0), (0.5, 0.08), (0.85, 0.35), (1.0, 0.65), (0.96, 0.65), (0.8, 0.36), (0, 0.12)],
    "mug": [(0, 0), (0.4, 0), (0.43, 0.05), (0.43, 1), (0.38, 1), (0.38, 0.9), (0, 0.85)],
    "pot": [(0, 0), (0.7, 0), (1, 1.5), (1.1, 1.5), (1.1, 1.7), (0.95, 1.7), (0.9, 1.5)],
    "pouffe": [(0, 0), (0.26, 0), (0.3, 0.1), (0.3, 0.3), (0.26, 0.38), (0, 0.4)],
    "barrel": [(0, 0.94), (0.34, 0.94), (0.36, 1), (0.45, 0.5), (0.36, 0), (0, 0)],
    "basin": [(0, 0), (0.9, 0), (0.95, 0.1), (0.85, 0.15), (0.85, 0.5), (0.92, 0.55), (0.92, 0.62), (0.75, 0.62),
              (0.72, 0.5), (0, 0.5)],
}  # fmt: skip

_frames = [Matrix.Identity(4)]


@contextmanager
def placed(at: Point, turn: float = 0.0) -> Iterator[None]:
    """Put what is built inside at a place, turned about z by degrees."""
    _frames.append(_frames[-1] @ Matrix.Translation(Vector(at)) @ Matrix.Rotation(math.radians(turn), 4, "Z"))
    yield
    _frames.pop()


def solid(
    vertices: Sequence[Point],
    faces: Sequence[Sequence[int]],
    material: str | bpy.types.Material,
    at: Point,
    turn: float | Point = 0.0,
    *,
    smooth: bool = False,
    bevel: float = 0.0,
) -> bpy.types.Object:
    """Make an object from a mesh; ``turn`` is degrees about z, or three Euler angles in degrees."""
    mesh = bpy.data.meshes.new("mesh")
    mesh.from_pydata([tuple(v) for v in vertices], [], [tuple(f) for f in faces])
    mesh.materials.append(surface(material) if isinstance(material, str) else material)
    if smooth:
        mesh.shade_smooth()
    body = bpy.data.objects.new("body", mesh)
    angles = (0, 0, turn) if isinstance(turn, int | float) else turn
    body.matrix_world = _frames[-1] @ Matrix.LocRotScale(Vector(at), Euler([math.radians(a) for a in angles]), None)
    if bevel:
        rounding = body.modifiers.new("bevel", "BEVEL")
        rounding.width, rounding.segments = bevel, 3
        mesh.shade_smooth()
    bpy.context.scene.collection.objects.link(body)
    return body


def box(size: Point, at: Point, material: str, turn: float | Point = 0.0, bevel: float = 0.006) -> None:
    """Make a box that stands on ``at``, the centre of its bottom."""
    x, y, z = size[0] / 2, size[1] / 2, size[2]
    vertices = [(i, j, k) for i in (-x, x) for j in (-y, y) for k in (0, z)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    solid(vertices, faces, material, at, turn, bevel=min(bevel, 0.45 * min(size)))


def lathe(
    profile: str | Sequence[tuple[float, float]],
    at: Point,
    material: str,
    turn: float | Point = 0.0,
    sides: int = 28,
    scale: float = 1.0,
) -> None:
    """Turn a profile of (radius, height), or an outline of the table, about z."""
    profile = OUTLINES[profile] if isinstance(profile, str) else profile
    angles = np.arange(sides) * 2 * math.pi / sides
    vertices = [(scale * r * math.cos(a), scale * r * math.sin(a), scale * z) for r, z in profile for a in angles]
    faces = [
        (k * sides + i, k * sides + (i + 1) % sides, (k + 1) * sides + (i + 1) % sides, (k + 1) * sides + i)
        for k in range(len(profile) - 1)
        for i in range(sides)
    ]
    solid(vertices, faces, material, at, turn, smooth=True)


def rod(radius: float, length: float, at: Point, material: str, turn: float | Point = 0.0) -> None:
    """Make a closed cylinder that stands on ``at``."""
    edge = min(radius, length) * 0.12
    side = [(radius - edge, 0), (radius, edge), (radius, length - edge), (radius - edge, length)]
    lathe([(1e-4, 0), *side, (1e-4, length)], at, material, turn)


def ball(radius: float, at: Point, material: str, squash: float = 1.0) -> None:
    """Make a ball whose lowest point is at ``at``."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 15)
    lathe([(radius * math.cos(a) + 1e-4, radius * squash * (1 + math.sin(a))) for a in angles], at, material)


def print_on_wall(size: Point, at: Point, texture: str) -> None:
    """Hang a picture that faces -y, with its centre at ``at``."""
    x, z = size[0] / 2, size[1] / 2
    sheet = make_material(texture, fit=True, rough=0.4, bump=0.05)
    body = solid([(-x, 0, -z), (x, 0, -z), (x, 0, z), (-x, 0, z)], [(0, 1, 2, 3)], sheet, at)
    layer = body.data.uv_layers.new()
    for corner, uv in zip(layer.data, [(0, 0), (1, 0), (1, 1), (0, 1)], strict=True):
        corner.uv = uv


def monkey(size: float, at: Point, material: str, turn: float | Point = 0.0) -> None:
    """Make Blender's test head, ``size`` wide, that looks to -y."""
    import bmesh  # there only once bpy is loaded

    mesh = bmesh.new()
    bmesh.ops.create_monkey(mesh)
    vertices = [v.co * (size / 2.7) for v in mesh.verts]
    faces = [[v.index for v in f.verts] for f in mesh.faces]
    body = solid(vertices, faces, material, at, turn, smooth=True)
    body.modifiers.new("smooth", "SUBSURF").render_levels = 2
    return body


# Light


def sky(color: Rgb, strength: float) -> None:
    """Surround the scene with even light."""
    world = bpy.data.worlds.new("world")
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs[0].default_value, background.inputs[1].default_value = (*color, 1), strength
    bpy.context.scene.world = world


def light(kind: str, at: Point, toward: Point, power: float, color: Rgb, size: float) -> None:
    """Add a light: "SUN" (W/m2, size is its angle in degrees), "AREA" (W, metres) or "POINT" (W, metres)."""
    data = bpy.data.lights.new("light", kind)
    data.energy, data.color = power, color
    if kind == "SUN":
        data.angle = math.radians(size)
    elif kind == "AREA":
        data.size = size
    else:
        data.shadow_soft_size = size
    lamp = bpy.data.objects.new("light", data)
    direction = Vector(toward) - Vector(at)
    lamp.matrix_world = _frames[-1] @ Matrix.LocRotScale(Vector(at), direction.to_track_quat("-Z", "Y"), None)
    lamp.visible_camera = False
    bpy.context.scene.collection.objects.link(lamp)


# Furniture


def books(width: float, at: Point, rng: np.random.Generator, turn: float = 0.0, height: float = 0.24) -> None:
    """Stand books in a row along x, spines to -y, from -width/2 to width/2."""
    with placed(at, turn):
        x = -width / 2
        while x < width / 2 - 0.05:
            thick, deep, high = rng.uniform(0.018, 0.05), rng.uniform(0.15, 0.2), height * rng.uniform(0.72, 1.0)
            lean = rng.choice([0, 0, 0, 0, 0, 8])
            box((thick, deep, high), (x + thick / 2, 0, 0), "books", (0, lean, 0), 0.004)
            for z in rng.uniform(0.1, 0.9, 2) * high:
                band = (thick * 0.86, 0.004, high * rng.uniform(0.02, 0.14))
                box(band, (x + thick / 2, -deep / 2, z * 0.85), "gilt", (0, lean, 0), 0.001)
            x += thick + 0.002 + (0.03 if lean else 0)


def book_pile(count: int, at: Point, rng: np.random.Generator) -> float:
    """Lay books on each other and return the height of the pile."""
    z = 0.0
    for _ in range(count):
        wide, deep, thick = rng.uniform(0.16, 0.26), rng.uniform(0.2, 0.3), rng.uniform(0.02, 0.045)
        with placed((at[0], at[1], at[2] + z), rng.uniform(-25, 25)):
            box((wide, deep, thick), (0, 0, 0), "books", 0, 0.003)
            box((wide * 0.6, deep * 0.25, 0.0015), (0, deep * 0.2, thick), "gilt", 0, 0.0005)
            box((wide * 0.85, deep * 0.05, 0.0015), (0, -deep * 0.3, thick), "gilt", 0, 0.0005)
            box((wide, deep * 0.96, thick * 0.7), (0.006, 0, thick * 0.15), "paper", 0, 0.001)
        z += thick
    return z


def plant(at: Point, height: float, rng: np.random.Generator, pot: str = "clay", num_leaves: int = 40) -> None:
    """Put a leafy plant in a pot."""
    r = height * 0.17
    lathe("pot", at, pot, scale=r)
    lathe([(r * 0.95, r * 1.5), (0, r * 1.55)], at, "soil")
    vertices, faces = [], []
    for _ in range(num_leaves):
        turn, reach, top = rng.uniform(0, 2 * math.pi), height * rng.uniform(0.1, 0.42), height * rng.uniform(0.55, 1.0)
        wide = height * rng.uniform(0.04, 0.075)
        out, side = np.array([math.cos(turn), math.sin(turn), 0]), np.array([-math.sin(turn), math.cos(turn), 0])
        for k, w in enumerate((0.12, 0.12, 0.75, 1.0, 0.7, 0.05)):
            u = k / 5
            spine = out * reach * u**1.3 + [0, 0, r * 1.5 + (top - r * 1.5) * (1.5 * u - 0.6 * u * u)]
            vertices += [spine - side * wide * w, spine - np.array([0, 0, 0.25 * wide * w]), spine + side * wide * w]
            if k:
                n = len(vertices)
                faces += [(n - 6, n - 5, n - 2, n - 3), (n - 5, n - 4, n - 1, n - 2)]
    solid(vertices, faces, "leaves", at, smooth=True)


def table(size: Point, at: Point, wood: str, turn: float = 0.0) -> None:
    """Make a table of width, depth and height."""
    with placed(at, turn):
        x, y, z = size
        box((x, y, 0.035), (0, 0, z - 0.035), wood)
        box((x - 0.14, y - 0.14, 0.07), (0, 0, z - 0.105), wood)
        for i in (-1, 1):
            for j in (-1, 1):
                box((0.055, 0.055, z - 0.035), (i * (x / 2 - 0.07), j * (y / 2 - 0.07), 0), wood)


def chair(at: Point, wood: str, turn: float = 0.0) -> None:
    """Make a chair that faces -y."""
    with placed(at, turn):
        box((0.44, 0.42, 0.035), (0, 0, 0.43), wood, bevel=0.012)
        box((0.4, 0.36, 0.04), (0, 0, 0.46), "ochre cloth", bevel=0.02)
        for i in (-0.19, 0.19):
            box((0.04, 0.04, 0.44), (i, -0.18, 0), wood)
            box((0.04, 0.04, 0.92), (i, 0.19, 0), wood)
        for z in (0.6, 0.72, 0.84):
            box((0.36, 0.02, 0.06), (0, 0.19, z), wood)


def sofa(at: Point, cloth: str, turn: float, rng: np.random.Generator, width: float = 1.9) -> None:
    """Make a sofa that faces -y, with cushions."""
    with placed(at, turn):
        box((width, 0.85, 0.28), (0, 0, 0.1), cloth, bevel=0.05)
        seats = max(1, round((width - 0.3) / 0.75))
        each = (width - 0.36) / seats
        for k in range(seats):
            x = (k - (seats - 1) / 2) * each
            box((each - 0.01, 0.66, 0.17), (x, -0.07, 0.36), cloth, bevel=0.06)
            box((each - 0.01, 0.2, 0.48), (x, 0.27, 0.46), cloth, (-9, 0, 0), bevel=0.08)
            name = ("striped cloth", "ochre cloth", "spotted", "kilim")[int(rng.integers(4))]
            place = (x + rng.uniform(-0.1, 0.1), 0.06, 0.52)
            box((0.42, 0.13, 0.4), place, name, (-20, rng.uniform(-14, 14), 0), bevel=0.06)
        for i in (-1, 1):
            box((0.18, 0.85, 0.6), (i * (width / 2 - 0.08), 0, 0.06), cloth, bevel=0.07)
            box((0.06, 0.6, 0.1), (i * (width / 2 - 0.2), 0, 0), "walnut")
        box((width, 0.18, 0.8), (0, 0.4, 0.08), cloth, bevel=0.07)


def bookcase(size: Point, at: Point, turn: float, rng: np.random.Generator, wood: str = "oak", num: int = 5) -> None:
    """Make a bookcase that faces -y, filled with books and small things."""
    x, y, z = size
    with placed(at, turn):
        box((x, 0.02, z), (0, y / 2 - 0.01, 0), wood)
        for i in (-1, 1):
            box((0.03, y, z), (i * (x / 2 - 0.015), 0, 0), wood)
        step = (z - 0.08) / num
        for k in range(num + 1):
            base = 0.05 + k * step - (0.03 if k == num else 0)
            box((x - 0.06, y, 0.03), (0, 0, base), wood, bevel=0.003)
        for k in range(num):
            split = rng.uniform(-0.22, 0.22) * x
            for low, high in ((-x / 2 + 0.05, split), (split, x / 2 - 0.05)):
                middle, wide, base = (low + high) / 2, high - low, 0.08 + k * step
                if rng.uniform() < 0.7:
                    books(wide - 0.02, (middle, 0.02, base), rng, 0, step - 0.08)
                else:
                    trinket((middle, 0, base), step - 0.08, rng)


def trinket(at: Point, height: float, rng: np.random.Generator) -> None:
    """Put one small thing somewhere: a jug, a plant, a ball, a head or a pile of books."""
    kind = int(rng.integers(5))
    if kind == 0:
        jug(at, height * 0.85, ("clay", "spotted", "marble", "brass")[int(rng.integers(4))])
    elif kind == 1:
        plant(at, height * 1.05, rng, "white", 24)
    elif kind == 2:
        ball(height * 0.35, at, "marble")
    elif kind == 3:
        monkey(height * 0.8, (at[0], at[1], at[2] + height * 0.33), "brass", rng.uniform(-30, 30))
    else:
        top = book_pile(3, at, rng)
        jug((at[0], at[1], at[2] + top), max(height - top - 0.04, 0.06), "spotted")


def jug(at: Point, height: float, name: str) -> None:
    """Make a vase with a belly."""
    lathe("jug", at, name, sides=36, scale=height)


def bowl_of_fruit(at: Point, radius: float, rng: np.random.Generator, fruit: Sequence[str] = ("lemon",)) -> None:
    """Fill a bowl with round things."""
    lathe("bowl", at, "blue plaster", sides=36, scale=radius)
    for k in range(9):
        r, turn = (0.0, 0.0) if k == 8 else (radius * 0.52 * (1 if k < 5 else 0.5), k * 2.4)
        z = radius * (0.28 if k < 5 else 0.62 if k < 8 else 0.8)
        place = (at[0] + r * math.cos(turn), at[1] + r * math.sin(turn), at[2] + z)
        ball(radius * 0.27, place, fruit[k % len(fruit)], rng.uniform(0.85, 1.0))


def mug(at: Point, name: str, height: float = 0.1) -> None:
    """Put a mug with a handle."""
    lathe("mug", at, name, scale=height)
    for k in range(9):
        angle = math.radians(-80 + 20 * k)
        x, z = height * (0.4 + 0.3 * math.cos(angle)), height * (0.44 + 0.32 * math.sin(angle))
        ball(height * 0.06, (at[0] + x, at[1], at[2] + z), name)


def floor_lamp(at: Point) -> None:
    """Stand a lit lamp on the floor."""
    rod(0.16, 0.03, at, "brass")
    rod(0.015, 1.4, at, "brass")
    lathe([(0.24, 0), (0.15, 0.32)], (at[0], at[1], at[2] + 1.32), "lampshade")
    light("POINT", (at[0], at[1], at[2] + 1.45), at, 12, (1, 0.7, 0.4), 0.1)


def framed(size: Point, at: Point, texture: str, turn: float = 0.0, wood: str = "walnut") -> None:
    """Hang a framed picture that faces -y, with its centre at ``at``."""
    with placed(at, turn):
        w, h = size
        for sign in (-1, 1):
            box((w + 0.08, 0.035, 0.04), (0, 0, sign * (h / 2 + 0.02) - 0.02), wood)
            box((0.04, 0.035, h), (sign * (w / 2 + 0.02), 0, -h / 2), wood)
        print_on_wall(size, (0, 0, 0), texture)


def room(size: Point, floor: str, wall: str, accent: str, window: tuple[float, float]) -> None:
    """Build floor, ceiling and four walls round x in [0, X], y in [0, Y]; the wall x = 0 has a window, y0 to y1."""
    x, y, z = size
    box((x + 1, y + 1, 0.1), (x / 2, y / 2, -0.1), floor, bevel=0)
    box((x + 1, y + 1, 0.1), (x / 2, y / 2, z), "white", bevel=0)
    box((x + 1, 0.1, z), (x / 2, y + 0.05, 0), accent, bevel=0)
    box((x + 1, 0.1, z), (x / 2, -0.05, 0), wall, bevel=0)
    box((0.1, y + 1, z), (x + 0.05, y / 2, 0), wall, bevel=0)
    y0, y1 = window
    low, high = 0.85, 2.25
    box((0.1, y0, z), (-0.05, y0 / 2, 0), wall, bevel=0)
    box((0.1, y - y1, z), (-0.05, (y + y1) / 2, 0), wall, bevel=0)
    box((0.1, y1 - y0, low), (-0.05, (y0 + y1) / 2, 0), wall, bevel=0)
    box((0.1, y1 - y0, z - high), (-0.05, (y0 + y1) / 2, high), wall, bevel=0)
    box((0.2, y1 - y0 + 0.1, 0.04), (0.02, (y0 + y1) / 2, low - 0.03), "pine")
    for k in range(4):
        box((0.05, 0.05, high - low), (-0.03, y0 + (y1 - y0) * k / 3, low), "pine")
    for h in (low, (low + high) / 2, high - 0.05):
        box((0.05, y1 - y0, 0.05), (-0.03, (y0 + y1) / 2, h), "pine")
    for base in ((x / 2, y - 0.01, 0, x, 0.02), (x - 0.01, y / 2, 0, 0.02, y), (x / 2, 0.01, 0, x, 0.02)):
        box((base[3], base[4], 0.09), base[:3], "white")


# Scenes


def living_room(rng: np.random.Generator) -> Shot:
    """Walk through a furnished room in the afternoon."""
    room((5.0, 6.0, 2.7), "floor", "plaster", "brick", (2.2, 4.6))
    sky((0.55, 0.75, 1.0), 1.2)
    light("SUN", (-4, 2.6, 4.0), (1, 3.6, 0.6), 9, (1, 0.85, 0.65), 0.8)
    light("AREA", (0.15, 3.4, 1.6), (2.5, 3.4, 1.0), 90, (0.85, 0.93, 1.0), 1.5)
    light("AREA", (2.8, 2.6, 2.6), (2.8, 2.6, 0), 110, (1, 0.88, 0.72), 2.5)
    box((2.3, 3.0, 0.012), (2.45, 3.7, 0), "kilim", bevel=0.004)
    sofa((2.4, 5.4, 0), "teal cloth", 0, rng)
    sofa((4.15, 3.7, 0), "ochre cloth", -72, rng, 0.95)
    table((1.1, 0.6, 0.42), (2.4, 3.95, 0), "oak", 6)
    book_pile(4, (2.1, 3.95, 0.42), rng)
    bowl_of_fruit((2.6, 4.0, 0.42), 0.15, rng)
    jug((2.35, 3.78, 0.42), 0.2, "marble")
    bookcase((1.5, 0.32, 2.1), (4.82, 1.85, 0), -90, rng)
    floor_lamp((3.75, 5.45, 0))
    plant((0.55, 5.3, 0), 1.5, rng, "clay", 60)
    plant((0.45, 1.6, 0), 1.1, rng, "white", 50)
    table((0.45, 0.45, 0.5), (1.05, 5.5, 0), "walnut")
    jug((1.05, 5.5, 0.5), 0.32, "spotted")
    framed((0.72, 0.62), (2.0, 5.97, 1.65), "skimage/coffee")
    framed((0.5, 0.5), (2.85, 5.97, 1.75), "portraits/giovanni_bellini1", wood="brass")
    framed((0.45, 0.45), (1.3, 5.97, 1.55), "portraits/hayez_francesco1", wood="oak")
    framed((0.4, 0.4), (3.5, 5.97, 1.9), "portraits/hans_holbein1", wood="oak")
    framed((0.9, 0.7), (4.97, 4.6, 1.6), "skimage/chelsea", -90)
    for k in range(4):
        jug((0.0, 2.5 + 0.45 * k, 0.86), 0.2 + 0.04 * (k % 2), ("clay", "brass", "spotted", "marble")[k])
    chair((1.25, 2.35, 0), "walnut", 150)
    lathe("pouffe", (3.3, 2.75, 0), "striped cloth")
    box((0.32, 0.44, 0.3), (3.95, 2.5, 0), "planks", 25)
    ball(0.11, (3.92, 2.5, 0.3), "spotted")
    rod(0.01, 0.75, (2.4, 3.8, 1.95), "brass")
    lathe([(0.3, 0), (0.22, 0.12), (0.04, 0.22)], (2.4, 3.8, 1.75), "brass")
    eyes = [(1.55, 0.55, 1.5), (1.75, 1.1, 1.45), (2.1, 1.65, 1.4), (2.45, 2.1, 1.35), (2.55, 2.6, 1.3)]
    targets = [(3.4, 4.2, 0.75), (2.9, 4.6, 0.8), (2.4, 4.9, 0.85), (1.9, 5.0, 0.85), (1.6, 5.1, 0.85)]
    return Shot(eyes, targets, [0, 2.5, -1.5, -3, 1], 68, num_frames=48, samples=10)


def still_life(rng: np.random.Generator) -> Shot:
    """Go round a table with fruit, books and a head of marble."""
    room((4.0, 4.0, 2.7), "parquet", "blue plaster", "white brick", (1.0, 3.0))
    sky((0.6, 0.75, 1.0), 1.0)
    light("AREA", (0.2, 2.0, 1.7), (2, 2, 0.8), 50, (1, 0.93, 0.82), 1.0)
    light("AREA", (2.6, 1.6, 2.6), (2, 2, 0.8), 30, (1, 0.85, 0.68), 0.7)
    with placed((2.0, 2.0, 0)):
        rod(0.62, 0.04, (0, 0, 0.7), "oak")
        rod(0.06, 0.7, (0, 0, 0), "oak")
        rod(0.33, 0.04, (0, 0, 0), "oak")
        box((0.85, 0.5, 0.004), (0, 0, 0.741), "kilim small", 20, 0.001)
        top = 0.745
        pile = book_pile(3, (-0.06, 0.06, top), rng)
        monkey(0.26, (-0.06, 0.06, top + pile + 0.105), "clay", -15)
        bowl_of_fruit((0.27, -0.1, top), 0.14, rng, ("lemon", "apple", "apple"))
        jug((-0.36, 0.12, top), 0.27, "spotted")
        jug((0.24, 0.3, top), 0.2, "brass")
        plant((-0.08, 0.42, top), 0.34, rng, "clay", 26)
        book_pile(2, (0.05, -0.34, top), rng)
        mug((-0.18, -0.35, top), "striped cloth")
        for k in range(3):
            ball(0.035, (0.36 - 0.09 * k, -0.32 + 0.02 * k, top), "apple" if k % 2 else "lemon")
    bookcase((1.6, 0.32, 2.0), (3.8, 2.0, 0), -90, rng, "walnut")
    bookcase((1.2, 0.32, 1.2), (1.0, 3.8, 0), 0, rng, "oak", 3)
    plant((3.5, 3.5, 0), 1.5, rng, "clay", 60)
    framed((0.6, 0.6), (1.0, 3.97, 1.75), "skimage/coffee")
    framed((0.5, 0.5), (2.1, 3.97, 1.6), "portraits/giovanni_bellini1", wood="brass")
    framed((0.5, 0.5), (2.8, 3.97, 1.75), "skimage/chelsea", wood="oak")
    chair((2.1, 3.1, 0), "walnut", 10)
    chair((3.15, 2.5, 0), "walnut", -70)
    sofa((2.0, 0.5, 0), "teal cloth", 180, rng)
    angles = np.radians(np.linspace(95, 225, 6))
    radii, heights = (0.98, 0.92, 0.9, 0.9, 0.95, 1.0), (1.3, 1.27, 1.22, 1.2, 1.24, 1.3)
    circle = zip(angles, radii, heights, strict=True)
    eyes = [(2 - r * math.sin(a), 2 + r * math.cos(a), h) for a, r, h in circle]
    targets = [(2.0 + 0.03 * math.sin(3 * a), 2.02, 0.87) for a in angles]
    return Shot(eyes, targets, [-2, 1, 3, 0, -3, 1], 58, samples=8)


@contextmanager
def collected() -> Iterator[list[tuple[bpy.types.Object, Matrix]]]:
    """Collect what is built inside, each with its place at rest, to move it together."""
    objects = bpy.context.scene.collection.objects
    before, parts = set(objects), []
    yield parts
    parts += [(body, body.matrix_world.copy()) for body in objects if body not in before]


def move(parts: list[tuple[bpy.types.Object, Matrix]], motion: Matrix) -> None:
    """Move collected parts as one body, from where they were built."""
    for body, rest in parts:
        body.matrix_world = motion @ rest


def flowers(length: float, at: Point, rng: np.random.Generator, color: str) -> None:
    """Put a box of flowers along x."""
    box((length, 0.16, 0.14), at, "clay")
    for _ in range(int(length * 34)):
        x, y, z = rng.uniform(-length / 2, length / 2), rng.uniform(-0.13, 0.08), rng.uniform(0.12, 0.3)
        bloom = rng.uniform() < 0.45
        name = color if bloom else "leaves"
        size = rng.uniform(0.02, 0.035) * (1 if bloom else 1.6)
        ball(size, (at[0] + x, at[1] + y, at[2] + z - 0.03 * (not bloom)), name, 0.7)


def house_window(at: Point, shutter: str, rng: np.random.Generator, bloom: str) -> None:
    """Put a window with shutters on a wall that faces -y."""
    with placed(at):
        w, h = 0.85, 1.25
        box((w, 0.03, h), (0, -0.005, 0), "glass")
        for i in (-1, 0, 1):
            box((0.06, 0.06, h), (i * w / 2, -0.03, 0), "pine")
        for z in (0, h * 0.62, h):
            box((w, 0.055, 0.06), (0, -0.03, z - 0.03), "pine")
        box((w + 0.3, 0.2, 0.07), (0, -0.07, -0.09), "stone")
        box((w + 0.26, 0.08, 0.16), (0, -0.03, h + 0.04), "stone")
        for i in (-1, 1):
            with placed((i * (w / 2 + 0.03), -0.03, 0), -i * rng.uniform(4, 35)):
                box((0.44, 0.035, h), (i * 0.23, 0, 0), shutter)
                for k in range(9):
                    box((0.36, 0.02, 0.07), (i * 0.23, -0.025, 0.08 + k * 0.125), shutter, (-25, 0, 0))
        if rng.uniform() < 0.75:
            flowers(w, (0, -0.15, -0.02), rng, bloom)


Style = tuple[str, str, str]


def house(width: float, height: float, at: Point, turn: float, style: Style, rng: np.random.Generator) -> None:
    """Build a front that faces -y, of a wall, a colour of wood and a colour of flowers."""
    wall, wood, bloom = style
    with placed(at, turn):
        box((width, 0.6, height), (0, 0.3, 0), wall, bevel=0)
        box((width, 0.1, 0.55), (0, -0.04, 0), "stone", bevel=0.02)
        box((width, 0.14, 0.14), (0, -0.05, 2.95), "stone", bevel=0.02)
        box((width + 0.1, 0.5, 0.15), (0, -0.1, height), "clay", bevel=0.02)
        columns = max(2, round(width / 1.7))
        for k in range(columns):
            x = (k - (columns - 1) / 2) * width / columns
            for floor in range(1, int(height / 2.9)):
                house_window((x, 0, 0.85 + 2.7 * floor), wood, rng, bloom)
            if k % 2 == 0:
                box((1.05, 0.12, 2.15), (x, -0.03, 0.1), wood, bevel=0.02)
                for z in (0.35, 1.15):
                    for i in (-0.22, 0.22):
                        box((0.34, 0.05, 0.6), (x + i, -0.09, z), wood, bevel=0.02)
                for i in (-0.6, 0.6):
                    box((0.16, 0.2, 2.3), (x + i, -0.06, 0), "stone", bevel=0.02)
                box((1.4, 0.22, 0.2), (x, -0.06, 2.28), "stone", bevel=0.02)
                box((1.5, 0.45, 0.12), (x, -0.25, 0), "stone", bevel=0.02)
                ball(0.035, (x + 0.4, -0.12, 1.05), "brass")
            else:
                house_window((x, 0, 1.0), wood, rng, bloom)
                edge = [(-0.85, -0.75, 2.35), (0.85, -0.75, 2.35), (0.85, -0.76, 2.17), (-0.85, -0.76, 2.17)]
                slope = [(-0.85, 0, 2.75), (0.85, 0, 2.75), (0.85, -0.75, 2.35), (-0.85, -0.75, 2.35)]
                for cloth in (slope, edge):
                    solid(cloth, [(0, 1, 2, 3)], "awning", (x, 0, 0))


def barrel(at: Point, height: float = 0.8) -> None:
    """Stand a barrel with iron hoops somewhere."""
    lathe("barrel", at, "oak", scale=height)
    for z in (0.08, 0.3, 0.66, 0.88):
        r = 0.365 - 0.29 * abs(z - 0.5) ** 1.6
        hoop = [(r - 0.02, 0), (r, 0), (r, 0.05), (r - 0.02, 0.05)]
        lathe(hoop, (at[0], at[1], at[2] + z * height - 0.02), "steel")


def crate(at: Point, turn: float, fruit: str, rng: np.random.Generator) -> None:
    """Put an open crate of fruit."""
    with placed(at, turn):
        x, y, z = 0.6, 0.4, 0.26
        box((x, y, 0.02), (0, 0, 0), "pine")
        for k in range(3):
            for i in (-1, 1):
                box((x, 0.015, 0.07), (0, i * y / 2, 0.01 + k * 0.085), "pine")
                box((0.015, y, 0.07), (i * x / 2, 0, 0.01 + k * 0.085), "pine")
        for _ in range(46):
            size = rng.uniform(0.035, 0.05)
            ball(size, (rng.uniform(-0.25, 0.25), rng.uniform(-0.16, 0.16), z * rng.uniform(0.6, 0.95)), fruit)


def bunting(start: Point, end: Point, rng: np.random.Generator) -> None:
    """Hang a line of small flags."""
    points = [np.array(start) * (1 - u) + np.array(end) * u - [0, 0, 1.2 * u * (1 - u)] for u in np.linspace(0, 1, 12)]
    for a, b in itertools.pairwise(points):
        c = (a + b) / 2 - [0, rng.uniform(-0.08, 0.08), 0.34]
        solid([a * 0.97 + b * 0.03, b * 0.97 + a * 0.03, c], [(0, 1, 2)], "flags", (0, 0, 0))


def street(rng: np.random.Generator) -> Shot:
    """Walk up a narrow street in the morning."""
    sky((0.62, 0.78, 1.0), 2.6)
    light("SUN", (-0.9, -4, 5.2), (0, 0, 0), 7, (1, 0.86, 0.68), 0.6)
    box((7, 22, 0.1), (0, 8, -0.1), "cobbles", bevel=0)
    for i in (-1, 1):
        box((0.5, 22, 0.1), (i * 2.15, 8, -0.02), "stone", bevel=0.02)
    styles = [
        ("pink plaster", "green wood", "red"), ("yellow wall", "blue wood", "violet"),
        ("white brick", "red wood", "red"), ("brick", "green wood", "violet"),
        ("blue plaster", "red wood", "red"), ("yellow wall", "green wood", "red"),
    ]  # fmt: skip
    for k in range(3):
        house(4.6, 6.0 + 0.5 * (k % 2), (2.4, 0.6 + 4.6 * k, 0), -90, styles[2 * k], rng)
        house(4.6, 6.4 - 0.4 * (k % 2), (-2.4, 0.9 + 4.6 * k, 0), 90, styles[2 * k + 1], rng)
    house(7.0, 8.5, (0.4, 12.5, 0), 0, ("pink plaster", "blue wood", "violet"), rng)
    for at in ((1.75, 3.0, 0), (1.7, 3.75, 0), (-1.7, 6.4, 0), (-1.75, 1.9, 0)):
        barrel(at)
    plant((-1.75, 1.9, 0.76), 0.9, rng, "clay", 40)
    pots = [(-1.75, 3.2), (1.8, 5.5), (-1.8, 4.9), (1.75, 7.6), (-1.7, 8.0), (0.9, 11.6), (-0.9, 11.7)]
    for k, (x, y) in enumerate(pots):
        plant((x, y, 0), 0.8 + 0.15 * (k % 3), rng, ("clay", "blue plaster")[k % 2], 40)
    box((1.5, 0.8, 0.6), (-1.45, 4.0, 0), "planks", 90)
    for k, fruit in enumerate(("lemon", "apple", "red")):
        crate((-1.4, 3.6 + 0.44 * k, 0.6), 0, fruit, rng)
    crate((1.55, 4.45, 0), 15, "apple", rng)
    crate((1.55, 4.45, 0.27), -8, "lemon", rng)
    table((0.6, 0.6, 0.72), (1.3, 6.5, 0), "walnut", 12)
    chair((1.35, 5.95, 0), "oak", 175)
    chair((1.25, 7.1, 0), "oak", 8)
    jug((1.3, 6.5, 0.72), 0.26, "spotted")
    lathe("basin", (0, 9.8, 0), "marble", sides=40)
    lathe([(0.2, 0), (0.13, 0.6), (0.12, 1.1), (0.5, 1.3), (0.5, 1.36), (0, 1.3)], (0, 9.8, 0.4), "marble")
    for k in range(4):
        bunting((-2.35, 2.8 + 2.3 * k, 4.4), (2.35, 3.4 + 2.3 * k, 4.2), rng)
    for y in (2.7, 6.9):
        rod(0.02, 0.4, (2.3, y, 3.2), "steel", (0, -90, 0))
        lathe([(0.07, 0), (0.12, 0.25), (0.14, 0.27), (0.02, 0.38)], (1.95, y, 2.92), "steel")
    eyes = [(-0.5, -1.1, 1.6), (-0.2, -0.2, 1.57), (0.25, 0.8, 1.62), (0.35, 1.7, 1.58), (0.05, 2.6, 1.6)]
    targets = [(-0.6, 6, 1.6), (0.1, 7, 1.7), (0.7, 7, 1.75), (0.2, 8, 1.6), (-0.7, 8, 1.5)]
    return Shot(eyes, targets, [1, -2, 1.5, 3, -1], 70)


def toy_car(rng: np.random.Generator, color: str, engine: bool) -> None:
    """Build a wagon or an engine on the rails, at the origin, heading along +x."""
    box((0.2, 0.1, 0.025), (0, 0, 0.045), "walnut")
    for x in (-0.06, 0.06):
        for y in (-1, 1):
            rod(0.032, 0.016, (x, y * 0.05 + 0.008, 0.034), "red", (90, 0, 0))
    if engine:
        rod(0.042, 0.15, (-0.03, 0, 0.115), color, (0, 90, 0))
        box((0.075, 0.1, 0.13), (-0.065, 0, 0.07), "toy red")
        box((0.1, 0.125, 0.016), (-0.065, 0, 0.2), "toy yellow")
        lathe([(0.016, 0), (0.016, 0.05), (0.026, 0.075), (0, 0.075)], (0.075, 0, 0.145), "toy yellow")
        ball(0.017, (0.02, 0, 0.145), "brass")
    else:
        box((0.18, 0.1, 0.06), (0, 0, 0.07), color)
        for _ in range(7):
            size = rng.uniform(0.018, 0.026)
            ball(size, (rng.uniform(-0.07, 0.07), rng.uniform(-0.03, 0.03), 0.12), "confetti")


def furnish_playroom(rng: np.random.Generator) -> None:
    """Put what stands and hangs along the walls."""
    bookcase((1.5, 0.3, 1.3), (1.2, 4.22, 0), 0, rng, "pine", 3)
    bookcase((1.2, 0.3, 1.0), (4.22, 3.3, 0), -90, rng, "pine", 3)
    sofa((3.1, 3.85, 0), "ochre cloth", -15, rng, 1.15)
    plant((0.5, 3.7, 0), 1.2, rng, "clay", 50)
    plant((4.0, 2.3, 0), 0.9, rng, "white", 40)
    table((0.6, 0.5, 0.45), (0.7, 2.6, 0), "pine", 5)
    jug((0.7, 2.6, 0.45), 0.25, "spotted")
    monkey(0.42, (0.75, 1.7, 0.2), "teal cloth", (0, 0, 60))
    framed((0.6, 0.5), (2.6, 4.37, 1.55), "skimage/chelsea", wood="pine")
    framed((0.45, 0.6), (3.4, 4.37, 1.6), "skimage/rocket", wood="oak")
    framed((0.5, 0.5), (4.37, 3.3, 1.5), "skimage/coffee", -90, "pine")


def playroom(rng: np.random.Generator) -> Shot:
    """Watch a toy train go round while a ball rolls past and the lamp swings."""
    room((4.4, 4.4, 2.6), "parquet", "plaster", "blue plaster", (1.0, 3.2))
    sky((0.6, 0.78, 1.0), 1.2)
    light("SUN", (-4, 0.6, 4.4), (1, 1.8, 0.0), 8, (1, 0.86, 0.68), 0.8)
    light("AREA", (0.2, 2.1, 1.7), (2.2, 2.2, 0.3), 70, (0.9, 0.95, 1.0), 1.4)
    light("AREA", (2.2, 1.4, 2.5), (2.2, 2.2, 0), 70, (1, 0.88, 0.72), 1.8)
    radius, center = 0.62, (2.2, 2.25, 0.0)
    lathe([(0, 0.0), (1.15, 0.0), (1.15, 0.014), (0, 0.014)], center, "soft rug", sides=64)
    with placed(center):
        for k in range(48):
            angle = 7.5 * k
            with placed((0, 0, 0.014), angle):
                box((0.13, 0.028, 0.012), (radius, 0, 0), "oak", bevel=0.003)
        for r in (radius - 0.04, radius + 0.032):
            rail = [(r, 0.026), (r, 0.042), (r + 0.012, 0.042), (r + 0.012, 0.026)]
            lathe(rail, (0, 0, 0), "steel", sides=96)
    cars = []
    for k, color in enumerate(("toy green", "toy yellow", "toy blue", "toy red")):
        with collected() as parts, placed((0, -radius, 0), 0):
            toy_car(rng, color, k == 0)
        cars.append(parts)
    with collected() as ball_parts:
        ball(0.14, (0, 0, -0.14), "beach ball")
    with collected() as lamp_parts:
        rod(0.008, 1.35, (0, 0, -1.35), "steel")
        lathe([(0.26, -0.2), (0.2, -0.08), (0.04, 0)], (0, 0, -1.38), "toy red")
        ball(0.06, (0, 0, -1.58), "lampshade")
        light("POINT", (0, 0, -1.56), (0, 0, -2), 10, (1, 0.75, 0.45), 0.06)
    with placed(center):
        z = 0.014
        for x, y, lift in ((0.05, 0.1, 0), (0.16, 0.06, 0), (0.09, 0.08, 0.1), (-0.22, -0.1, 0), (-0.3, 0.12, 0)):
            box((0.1, 0.1, 0.1), (x, y, z + lift), "blocks", rng.uniform(0, 90))
        lathe([(0.07, 0), (0.07, 0.06), (0.01, 0.19)], (0.22, -0.18, z), "toy red")
        monkey(0.24, (-0.08, 0.3, z + 0.1), "spotted", 10)
    for _ in range(16):
        angle, away = rng.uniform(0.15, 2.9), rng.uniform(1.15, 1.6)
        side = rng.uniform(0.09, 0.15)
        place = (center[0] + away * math.cos(angle), center[1] + away * math.sin(angle), 0.012)
        box((side, side, side), place, "blocks", rng.uniform(0, 90))
    furnish_playroom(rng)

    def animate(time_s: float) -> None:
        for k, parts in enumerate(cars):
            angle = 0.9 * time_s - 0.36 * k + 0.3
            move(parts, Matrix.Translation(center) @ Matrix.Rotation(angle, 4, "Z"))
        way = 0.6 * time_s
        move(ball_parts, Matrix.Translation((3.1 - way, 3.08, 0.154)) @ Matrix.Rotation(-way / 0.14, 4, "Y"))
        swing = math.radians(14) * math.sin(2 * math.pi * time_s / 2.3)
        move(lamp_parts, Matrix.Translation((2.45, 2.95, 2.6)) @ Matrix.Rotation(swing, 4, "Y"))

    eyes = [(0.85, 1.0, 0.95), (1.3, 0.68, 0.9), (1.9, 0.52, 0.86), (2.5, 0.52, 0.88), (3.15, 0.75, 0.95)]
    targets = [(2.3, 2.4, 0.3), (2.3, 2.4, 0.32), (2.25, 2.4, 0.35), (2.2, 2.4, 0.34), (2.1, 2.4, 0.3)]
    return Shot(eyes, targets, [0, -2, 2, 3, -1], 66, animate)


SCENES: dict[str, Callable[[np.random.Generator], Shot]] = {
    "living_room": living_room,
    "playroom": playroom,
    "still_life": still_life,
    "street": street,
}


# Rendering


def set_up_render(samples: int) -> bpy.types.Object:
    """Set Cycles up for speed and add the camera."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.threads_mode, scene.render.threads = "FIXED", len(os.sched_getaffinity(0))
    scene.cycles.samples = samples
    scene.cycles.use_adaptive_sampling = True
    scene.cycles.adaptive_threshold = 0.05
    scene.cycles.use_denoising = True
    scene.cycles.denoiser = "OPENIMAGEDENOISE"
    scene.cycles.denoising_prefilter = scene.cycles.denoising_quality = "FAST"
    scene.cycles.use_fast_gi, scene.cycles.ao_bounces_render = True, 1  # skylight by occlusion, not by more bounces
    scene.cycles.max_bounces, scene.cycles.diffuse_bounces, scene.cycles.glossy_bounces = 3, 2, 1
    scene.cycles.caustics_reflective = scene.cycles.caustics_refractive = False
    scene.cycles.sample_clamp_indirect = 3.0
    scene.render.use_persistent_data = True
    scene.view_settings.view_transform = "AgX"
    scene.view_settings.look = "AgX - Punchy"
    scene.view_settings.exposure = 0.7
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    return camera


def render_frames(
    shot: Shot, camera_to_world: Floats, hw: tuple[int, int], numbers: Sequence[int], folder: Path, suffix: str
) -> list[Path]:
    """Render frames to files, one a pose."""
    scene, camera = bpy.context.scene, bpy.context.scene.camera
    scene.render.resolution_y, scene.render.resolution_x = hw
    scene.render.resolution_percentage = 100
    camera.data.sensor_fit, camera.data.angle = "HORIZONTAL", math.radians(shot.fov_deg)
    camera.data.clip_start = 0.02
    paths = []
    for number in numbers:
        camera.matrix_world = Matrix(camera_to_world[number] @ np.diag([1, -1, -1, 1]))  # Blender looks along -z
        if shot.animate:
            shot.animate(number / FPS)
        paths.append(folder / f"{number:03d}{suffix}")
        scene.render.filepath = str(paths[-1])
        bpy.ops.render.render(write_still=True)
        logger.info("%s", paths[-1])
    return paths


def set_up_depth() -> None:
    """Replace every surface by light as strong as its depth, at one ray through each pixel's centre."""
    scene = bpy.context.scene
    surface = bpy.data.materials.new("depth")
    surface.use_nodes = True
    surface.node_tree.nodes.clear()
    nodes = Nodes(surface.node_tree)
    glow = nodes("Emission", Strength=nodes("CameraData").outputs["View Z Depth"])
    glow.inputs["Color"].default_value = (1, 1, 1, 1)
    nodes("OutputMaterial", Surface=glow.outputs[0])
    scene.view_layers[0].material_override = surface
    scene.render.film_transparent = True
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = 1, False, False
    scene.cycles.denoising_prefilter = scene.cycles.denoising_quality = "FAST"
    scene.cycles.use_fast_gi, scene.cycles.ao_bounces_render = True, 1  # skylight by occlusion, not by more bounces
    scene.cycles.max_bounces, scene.cycles.filter_width, scene.cycles.pixel_filter_type = 0, 0.01, "BOX"
    scene.cycles.sample_clamp_direct = scene.cycles.sample_clamp_indirect = 0
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_mode, scene.render.image_settings.color_depth = "RGBA", "32"


def read_depth(path: Path) -> Floats:
    """Read a rendered depth map, metres, 0 where no surface is seen."""
    image = bpy.data.images.load(str(path))
    image.colorspace_settings.name = "Non-Color"
    width, height = image.size
    pixels = np.array(image.pixels[:], float).reshape(height, width, 4)[::-1]  # Blender's first row is the lowest
    bpy.data.images.remove(image)
    return np.where(pixels[..., 3] > 0.5, pixels[..., 0], 0)


def encode_video(pictures: Sequence[Path], path: Path, quality: int) -> None:
    """Encode pictures as H.264 in an MP4 that plays while it loads."""
    temporary = path.with_name(
        f".{path.name}.tmp"
    )  # to start fast, the writer reads its file again: no bytes in memory
    with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": str(quality), "preset": "veryslow"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, limited
        for picture in pictures:
            with av.open(str(picture)) as file:
                pixels = next(file.decode(video=0)).to_ndarray(format="rgb24")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    temporary.replace(path)


def write(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def make_clip(name: str, out: Path, preview: bool, frames: Sequence[int], keep: Path) -> None:
    """Build a scene, render it and write its clip and truth; a preview is a few small pictures instead."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    seed = list(SCENES).index(name)  # append scenes: the others keep their seeds
    shot = SCENES[name](np.random.default_rng(seed))
    set_up_render(4 if preview else shot.samples)
    poses = camera_poses(shot, np.random.default_rng(100 + seed))
    keep.mkdir(parents=True, exist_ok=True)
    if preview:
        render_frames(shot, poses, (HEIGHT // 2, WIDTH // 2), frames or range(0, shot.num_frames, 12), keep, ".png")
        return
    numbers = range(shot.num_frames)
    pictures = render_frames(shot, poses, (HEIGHT, WIDTH), numbers, keep, ".png")
    set_up_depth()
    maps = render_frames(shot, poses, (HEIGHT // DEPTH_STRIDE, WIDTH // DEPTH_STRIDE), numbers, keep, ".exr")
    focal = WIDTH / 2 / math.tan(math.radians(shot.fov_deg) / 2)
    truth = io.BytesIO()
    np.savez_compressed(
        truth,
        depth=np.stack([read_depth(path) for path in maps]).astype(np.float16),
        extrinsics=np.linalg.inv(poses)[:, :3],
        intrinsics=np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]]),
        time_s=np.arange(shot.num_frames) / FPS,
        credit=np.array(CREDIT),
    )
    write(out / f"{name}.npz", truth.getvalue())
    encode_video(pictures, out / f"{name}.mp4", quality=17)


def main() -> None:
    """Read the command line and make the clip."""
    parser = argparse.ArgumentParser(description="Render the example clips of this folder.")
    parser.add_argument("--clip", choices=sorted(SCENES), required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the clip and its truth")
    parser.add_argument("--frames-dir", type=Path, help="keep the single pictures in this folder")
    parser.add_argument("--preview", action="store_true", help="only a few pictures of half size, to --frames-dir")
    parser.add_argument("--at", type=int, nargs="*", default=[], help="frames of the preview")
    arguments = parser.parse_args()
    if arguments.preview and arguments.frames_dir is None:
        parser.error("--preview needs --frames-dir, the folder for its pictures")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        keep = arguments.frames_dir or Path(folder)
        make_clip(arguments.clip, arguments.out, arguments.preview, arguments.at, keep)


if __name__ == "__main__":
    main()
