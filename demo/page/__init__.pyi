"""What of the page Gradio has no part for: the stage that holds the viewer, the live camera, the cards of examples."""

from __future__ import annotations

import html
import json
from pathlib import Path

import gradio as gr

_HERE = Path(__file__).parent

from gradio.events import Dependency

class Stage(gr.HTML):
    """The 3D viewer. The value is the id of the run that it shows."""

    def __init__(self, *, elem_id: str, first: str | None) -> None:
        super().__init__(
            "",
            html_template='<div class="stage"></div>',
            js_on_load=_script("stage.js"),
            elem_id=elem_id,
            apply_default_css=False,
            first=first or "",
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Camera(gr.HTML):
    """Preview of the visitor's camera; sends its frames to the run whose id is the value."""

    def __init__(self) -> None:
        super().__init__(
            "",
            html_template='<div class="camera"><video muted playsinline aria-label="Your camera"></video>'
            '<p role="status">Frames go to this server one by one and are deleted with the run.</p></div>',
            js_on_load=_script("camera.js"),
            elem_id="camera",
            apply_default_css=False,
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Examples(gr.HTML):
    """A card for each finished example; a click shows it in the viewer."""

    def __init__(self, examples: list[dict[str, str]]) -> None:
        cards = "".join(
            f'<button type="button" data-run="{html.escape(example["run"])}">'
            f'<img alt="" loading="lazy" data-src="{html.escape(example["picture"])}">'
            f"<span>{html.escape(example['title'])}</span></button>"
            for example in examples
        )
        super().__init__(
            "",
            html_template=f'<h2>Or look at an example</h2><div class="cards">{cards}</div>',
            js_on_load=_script("examples.js"),
            elem_id="examples",
            apply_default_css=False,
            visible=bool(examples),
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def find_examples(folder: Path) -> list[dict[str, str]]:
    """List the examples in a folder: the ids of their runs, titles, and addresses of a picture below the page's."""
    found = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        run = f"example-{manifest.parent.name}"
        title = json.loads(manifest.read_text(encoding="utf-8"))["title"]
        found.append({"run": run, "title": title, "picture": f"runs/{run}/picture"})
    return found


def page_css() -> str:
    """Return the style sheet of what is around the viewer."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def page_theme() -> gr.themes.Base:
    """Return the colours and fonts of the page; no font is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="orange",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="md",
    )


def _script(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")