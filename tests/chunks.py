"""Chunks for tests of the viewer: small GLB files as the package writes them, one a frame."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
from PIL import Image

VERTEX = np.dtype([("POSITION", "<f4", 3), ("COLOR_0", "<u2", 3), ("padding", "<u2"), ("_CONFIDENCE", "<f4")])


def jpeg(rgb, hw=(30, 40)):
    """A picture of one colour, as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.full((*hw, 3), rgb, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def chunk(frame, vertices, pose=None, *, fov_y_rad=0.9, image_hw=(30, 40), pictures=None):
    """One frame as GLB.

    Args:
        frame: its number.
        vertices: ``[N]`` of ``VERTEX``, in random order; glTF axes, linear colours.
        pose: camera-to-world ``[4, 4]``, glTF axes; None for the origin.
        pictures: JPEG files by name, ``image`` and ``depth``.
    """
    pictures = pictures or {"image": jpeg((200, 60, 60), image_hw), "depth": jpeg((60, 60, 200), image_hw)}
    binary, views = bytearray(), []

    def add_view(data, **properties):
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), **properties})
        binary.extend(data + bytes(-len(data) % 4))
        return len(views) - 1

    height, width = image_hw
    focal = height / (2 * np.tan(fov_y_rad / 2))
    pose = np.eye(4) if pose is None else np.asarray(pose, float)
    camera = {
        "name": f"frame_{frame:06d}",
        "camera": 0,
        "matrix": pose.T.ravel().tolist(),
        "extras": {
            "frame": frame,
            "time_s": frame / 2,
            "image_hw": list(image_hw),
            "intrinsics": [focal, focal, width / 2 - 0.5, height / 2 - 0.5],
        },
    }
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [camera],
        "cameras": [
            {"type": "perspective", "perspective": {"yfov": fov_y_rad, "aspectRatio": width / height, "znear": 0.01}}
        ],
    }
    if len(vertices):
        view = add_view(vertices.tobytes(), byteStride=VERTEX.itemsize, target=34962)
        common = {"bufferView": view, "count": len(vertices)}
        position = vertices["POSITION"]
        document["accessors"] = [
            {**common, "componentType": 5126, "type": "VEC3"}
            | {"min": position.min(0).tolist(), "max": position.max(0).tolist()},
            {**common, "byteOffset": 12, "componentType": 5123, "normalized": True, "type": "VEC3"},
            {**common, "byteOffset": 20, "componentType": 5126, "type": "SCALAR"},
        ]
        attributes = {"POSITION": 0, "COLOR_0": 1, "_CONFIDENCE": 2}
        document["meshes"] = [{"primitives": [{"mode": 0, "attributes": attributes}]}]
        document["nodes"].append({"name": "points", "mesh": 0})
        document["scenes"][0]["nodes"].append(1)
    document["images"] = [
        {"name": name, "mimeType": "image/jpeg", "bufferView": add_view(data)} for name, data in pictures.items()
    ]
    document["bufferViews"] = views
    document["buffers"] = [{"byteLength": len(binary)}]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def wall(frame, count=2000, rgb=(200, 60, 60), seed=0):
    """Points of a square wall, one unit wide, ``frame`` units to the right and 3 ahead; confidence even over [0, 1)."""
    rng = np.random.default_rng(seed + frame)
    vertices = np.zeros(count, VERTEX)
    vertices["POSITION"] = rng.uniform(-0.5, 0.5, (count, 3)) * [1, 1, 0] + [frame, 0, -3]
    vertices["COLOR_0"] = np.round(65535 * (np.array(rgb) / 255) ** 2.2)
    vertices["_CONFIDENCE"] = rng.permutation(count) / count
    return vertices


def moved(x=0.0, y=0.0, z=0.0):
    """The pose of a camera that looks along -z."""
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose
