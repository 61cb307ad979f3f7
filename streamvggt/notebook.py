"""Show a scene in a notebook or a page of its own: interactive, without a server and without the network."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import dataclass, field
from importlib.resources import files

from streamvggt.glb import frame_glb_bytes
from streamvggt.pictures import overview_camera, render_points
from streamvggt.scene import PointFilter, Scene

# 150,000 points are some 5 MB of a notebook, and turn smoothly on a laptop without a graphics card.
_SHOWN = PointFilter(max_points=150_000)
_PICTURE_HW = (480, 800)
_CONTROLS_HEIGHT = 170  # of the viewer's rows below the scene, pixels
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body {{ margin: 0 }}</style><body><div id="viewer"></div>
<script>{viewer}</script>
<script>
const view = StreamVGGT.mount(document.getElementById("viewer"), {{height: Math.max(200, innerHeight - {controls})}});
view.load({content});
</script></body></html>"""


@dataclass(frozen=True, eq=False)
class SceneView:
    """A scene as a notebook displays it: the interactive viewer, or a picture where scripts do not run.

    Attributes:
        page: the viewer and the scene as one HTML page.
        picture: the scene as JPEG.
        height: of the view, pixels.
    """

    page: str = field(repr=False)
    picture: bytes = field(repr=False)
    height: int

    def _repr_html_(self) -> str:
        # The picture lies behind the frame: it shows where a page that cleans its notebooks takes the frame out.
        source = base64.b64encode(self.picture).decode()
        return (
            f'<div style="position: relative; height: {self.height}px; overflow: hidden">'
            f'<img src="data:image/jpeg;base64,{source}" alt="Points of the scene" '
            'style="width: 100%; height: 100%; object-fit: contain">'
            '<iframe title="3D scene" sandbox="allow-scripts allow-downloads" allow="fullscreen" '
            'style="position: absolute; inset: 0; width: 100%; height: 100%; border: 0" '
            f'srcdoc="{html.escape(self.page)}"></iframe></div>'
        )

    def _repr_jpeg_(self) -> bytes:
        return self.picture


def show(scene: Scene, point_filter: PointFilter = _SHOWN, *, height: int = 600, title: str = "") -> SceneView:
    """Show a scene in a notebook: the app's viewer, in a frame that can neither reach the notebook nor the network.

    Leave it as the last line of a cell. A notebook grows by 0.7 MB for the viewer, 32 bytes a point and some 15 kB a
    frame. Where scripts do not run, as on GitHub or before a notebook is trusted, a picture of the scene shows instead.

    Args:
        scene: with at least one frame.
        point_filter: which points to show; by default those of :class:`PointFilter`, but 150,000 at most.
        height: of the view, pixels.
        title: of the page.

    Raises:
        ValueError: the scene has no frame, or no point passes the filter.
    """
    from PIL import Image

    cloud = scene.point_cloud(point_filter)
    view = overview_camera(cloud, scene.cameras, _PICTURE_HW)
    buffer = io.BytesIO()
    Image.fromarray(render_points(cloud, view)).save(buffer, "JPEG", quality=85)
    return SceneView(scene_html(scene, point_filter, title=title), buffer.getvalue(), height)


def scene_html(scene: Scene, point_filter: PointFilter = _SHOWN, *, title: str = "") -> str:
    """Write a scene and the viewer as one HTML page that opens in a browser, without a server and without the network.

    Args:
        scene: with at least one frame.
        point_filter: which points to show; by default those of :class:`PointFilter`, but 150,000 at most.
        title: of the page.

    Raises:
        ValueError: the scene has no frame.
    """
    if not scene.num_frames:
        raise ValueError("the scene has no frame to show; add predictions first")
    cloud = scene.point_cloud(point_filter)
    frames = [scene.frame(position) for position in range(scene.num_frames)]
    chunks = [frame_glb_bytes(frame, cloud.select(cloud.frame_index == frame.index)) for frame in frames]
    content = {
        "manifest": {"status": "done", "title": title, "message": "", "count": len(chunks)},
        "chunks": [base64.b64encode(chunk).decode() for chunk in chunks],
    }
    viewer = files("streamvggt").joinpath("viewer.js").read_text(encoding="utf-8")
    return _PAGE.format(
        title=html.escape(title or "StreamVGGT"),
        # Nothing in them may end the script early.
        viewer=viewer.replace("</script", "<\\/script"),
        controls=_CONTROLS_HEIGHT,
        content=json.dumps(content).replace("<", "\\u003c"),
    )
