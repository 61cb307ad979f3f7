"""Write binary glTF 2.0 files (GLB): meshes without surfaces (points, lines), cameras and pictures, unlit.

Our own, because libraries lose what we need: trimesh writes sRGB colours where the format wants linear ones and drops
attributes of one's own. Source: Khronos, glTF 2.0 specification, and its extension KHR_materials_unlit.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS, LINES, LINE_STRIP = 0, 1, 3
"""Modes of a mesh (section 5.24 of the specification)."""

_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963
_UNSIGNED_INT = 5125
_COMPONENT_TYPES = {"<f4": 5126, "<u2": 5123}
_ELEMENT_TYPES = {(): "SCALAR", (3,): "VEC3"}


class GlbWriter:
    """Gather the parts of one file, then ask for its bytes.

    Coordinates are glTF's: y up, and a camera looks along its own -z axis.
    """

    def __init__(self) -> None:
        self._binary: list[bytes] = []
        self._parts: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("nodes", "meshes", "cameras", "images", "accessors", "bufferViews")
        }

    def add_mesh(self, name: str, vertices: NDArray[Any], mode: int, indices: NDArray[np.uint32] | None = None) -> None:
        """Add a node that draws points or lines.

        Args:
            name: of the node.
            vertices: structured ``[N]``, N > 0, little endian. Every field but ``padding`` is an attribute under its
                glTF name and begins at a multiple of 4 bytes; float32, or uint16 of which 0 to 65535 stands for 0 to 1.
            mode: POINTS, LINES or LINE_STRIP.
            indices: the vertices to draw, ``[M]``; None draws them in their order.
        """
        view = self._add_view(vertices.tobytes(), byteStride=vertices.dtype.itemsize, target=_VERTEX_TARGET)
        primitive: dict[str, Any] = {"mode": mode, "material": 0, "attributes": {}}
        for attribute, (field, offset, *_) in (vertices.dtype.fields or {}).items():
            if attribute == "padding":
                continue
            accessor: dict[str, Any] = {
                "bufferView": view,
                "byteOffset": offset,
                "componentType": _COMPONENT_TYPES[field.base.str],
                "type": _ELEMENT_TYPES[field.shape],
                "count": len(vertices),
            }
            if attribute == "POSITION":
                accessor["min"] = vertices[attribute].min(axis=0).tolist()
                accessor["max"] = vertices[attribute].max(axis=0).tolist()
            if field.base.str == "<u2":
                accessor["normalized"] = True
            primitive["attributes"][attribute] = self._add("accessors", **accessor)
        if indices is not None:
            view = self._add_view(indices.astype("<u4").tobytes(), target=_INDEX_TARGET)
            primitive["indices"] = self._add(
                "accessors", bufferView=view, componentType=_UNSIGNED_INT, type="SCALAR", count=len(indices)
            )
        self._add("nodes", name=name, mesh=self._add("meshes", name=name, primitives=[primitive]))

    def add_camera(
        self, name: str, pose: NDArray[np.float64], fov_y_rad: float, aspect: float, extras: dict[str, Any]
    ) -> None:
        """Add a camera node.

        Args:
            name: of the node.
            pose: ``[4, 4]``, camera-to-world.
            fov_y_rad: vertical field of view.
            aspect: width over height of what it sees at some distance.
            extras: anything to note at the node, as JSON.
        """
        # No far plane: the scale of a scene is not known.
        lens = {"yfov": fov_y_rad, "aspectRatio": aspect, "znear": 0.01}
        camera = self._add("cameras", type="perspective", perspective=lens)
        # The format lists a matrix column by column.
        self._add("nodes", name=name, camera=camera, matrix=pose.T.ravel().tolist(), extras=extras)

    def add_image(self, name: str, jpeg: bytes) -> None:
        """Add a picture that no mesh wears, for readers that look for its name."""
        self._add("images", name=name, mimeType="image/jpeg", bufferView=self._add_view(jpeg))

    def to_bytes(self, extras: dict[str, str]) -> bytes:
        """Return the file; ``extras`` are notes about all of it."""
        nodes = list(range(len(self._parts["nodes"])))
        document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "streamvggt", "extras": extras},
            "scene": 0,
            # The format allows no empty list and no empty buffer: they are left out.
            "scenes": [{"nodes": nodes} if nodes else {}],
        }
        document |= {name: part for name, part in self._parts.items() if part}
        binary_size = sum(map(len, self._binary))
        binary_chunk = []
        if binary_size:
            document["buffers"] = [{"byteLength": binary_size}]
            binary_chunk = [struct.pack("<I4s", binary_size, b"BIN\0"), *self._binary]
        if self._parts["meshes"]:
            # The factors are what the extension advises for readers that do not know it.
            fallback = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
            document["materials"] = [{"pbrMetallicRoughness": fallback, "extensions": {"KHR_materials_unlit": {}}}]
            document["extensionsUsed"] = ["KHR_materials_unlit"]
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks = [struct.pack("<I4s", len(text), b"JSON"), text, *binary_chunk]
        return b"".join([struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))), *chunks])

    def _add(self, kind: str, **properties: Any) -> int:
        self._parts[kind].append(properties)
        return len(self._parts[kind]) - 1

    def _add_view(self, data: bytes, **properties: Any) -> int:
        offset = sum(map(len, self._binary))
        self._binary.append(data + bytes(-len(data) % 4))  # every view must begin at a multiple of 4 bytes
        return self._add("bufferViews", buffer=0, byteOffset=offset, byteLength=len(data), **properties)
