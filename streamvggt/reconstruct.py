"""Stream one video through a session and write what is asked for: the work of the command ``reconstruct``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

from .export import colmap_files, npz_bytes, ply_bytes, tum_trajectory, write_atomically
from .geometry import Similarity
from .glb import glb_bytes
from .longstream import move_prediction
from .memory import is_out_of_memory
from .scene import PointFilter, Scene
from .types import ByteArray, FramePrediction

FORMATS = ("glb", "ply", "colmap", "tum", "npz")
_COLMAP_IMAGES = "colmap/images"
_COLMAP_FRAMES = f"{_COLMAP_IMAGES}/frame_*.png"
_RESULTS = (
    "scene.glb",
    "scene.ply",
    "trajectory.txt",
    "predictions.npz",
    "colmap/sparse/0/*.bin",
    "colmap/sparse/0/*.txt",
    _COLMAP_FRAMES,
)
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")  # by a process that was killed while it wrote


@dataclass(frozen=True)
class Wanted:
    """What to write of a reconstruction.

    Attributes:
        formats: any of :data:`FORMATS`, at least one.
        geometry: where points come from, see :class:`streamvggt.Scene`.
        point_filter: which points are kept.
    """

    formats: tuple[str, ...] = ("glb", "tum")
    geometry: Literal["depth", "points"] = "depth"
    point_filter: PointFilter = field(default_factory=PointFilter)

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {self.formats}")


class CutShort(Exception):  # noqa: N818 (it need not be an error)
    """Raised by :func:`reconstruct` when a stream breaks off: what came before is written.

    Attributes:
        num_frames: frames that were written.
        files: paths that were written.
    """

    def __init__(self, reason: str, num_frames: int, files: list[Path]) -> None:
        super().__init__(reason)
        self.num_frames, self.files = num_frames, files


def reconstruct(
    predictions: Iterable[FramePrediction],
    output: Path,
    wanted: Wanted,
    corrections: Callable[[], Sequence[Similarity] | None] = lambda: None,
) -> list[Path]:
    """Gather the predictions of one video and write them as files.

    Args:
        predictions: of one stream, in order; they are taken one by one.
        output: a folder, made if it is not there. Images that an earlier run left for COLMAP are removed.
        wanted: what to write.
        corrections: asked at the end, where the predictions belong by then: see
            :meth:`streamvggt.LongSession.corrections`; None leaves them where they came.

    Returns:
        The paths written, in the order of ``FORMATS``; the images for COLMAP are not among them.

    Raises:
        CutShort: the stream broke off with a frame that cannot be read, out of memory, or by Ctrl-C; the cause is its
            ``__cause__`` and the frames before are written. If there are none, the cause itself is raised.
        ValueError: ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output needs a folder, which is made if it is not there")
    scene, raw, cause = Scene(wanted.geometry), list[FramePrediction](), None
    try:
        for prediction in predictions:
            if not scene.num_frames:
                for stale in output.glob(_COLMAP_FRAMES):
                    stale.unlink()
            scene.add(prediction)
            if "npz" in wanted.formats:
                raw.append(prediction)
            if "colmap" in wanted.formats:
                write_atomically(output / _COLMAP_IMAGES / f"frame_{prediction.index:06d}.png", _png(prediction.image))
    except BaseException as error:
        breaks_off = isinstance(error, (KeyboardInterrupt, ValueError)) or is_out_of_memory(error)
        if not breaks_off or not scene.num_frames:
            raise
        cause = error
    moves = corrections()
    if moves is not None:
        scene.correct(moves)
        raw = [move_prediction(prediction, moves[prediction.index]) for prediction in raw]
    files = []
    for name, data in list(_results(scene, raw, wanted)):
        write_atomically(output / name, data)
        files.append(output / name)
    if cause is not None:
        raise CutShort(_reason(cause), scene.num_frames, files) from cause
    return files


def _reason(cause: BaseException) -> str:
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted"
    return out_of_memory(cause) if is_out_of_memory(cause) else str(cause)


def out_of_memory(error: BaseException) -> str:
    """Say what to do about an error of which :func:`streamvggt.is_out_of_memory` is true."""
    detail = (str(error).splitlines() or ["no details"])[0]
    return (
        f"out of memory ({detail}); streams take less with a limit (--memory 2GB), with a --policy that holds fewer "
        "frames, or with a smaller --size"
    )


def result_files(output: Path) -> list[Path]:
    """All results that lie in a folder, the images for COLMAP among them."""
    return sorted(path for pattern in _RESULTS for path in output.glob(pattern))


def remove_results(output: Path) -> None:
    """Remove what an earlier :func:`reconstruct`, finished or killed, left in a folder; other files stay."""
    for path in result_files(output):
        path.unlink()
    for path in output.rglob("*.tmp"):
        if _LEFT_OVER.fullmatch(path.name):
            path.unlink()


def _results(scene: Scene, raw: list[FramePrediction], wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Relative paths and contents of the files that were asked for."""
    cloud = scene.point_cloud(wanted.point_filter)
    if "glb" in wanted.formats:
        yield "scene.glb", glb_bytes(cloud, scene.cameras)
    if "ply" in wanted.formats:
        yield "scene.ply", ply_bytes(cloud)
    if "colmap" in wanted.formats:
        for name, data in colmap_files(cloud, scene.cameras).items():
            yield f"colmap/{name}", data
    if "tum" in wanted.formats:
        yield "trajectory.txt", tum_trajectory(scene.cameras).encode()
    if "npz" in wanted.formats:
        yield "predictions.npz", npz_bytes(raw)


def _png(image: ByteArray) -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
