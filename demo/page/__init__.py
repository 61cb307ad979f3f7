"""What of the page Gradio has no part for: the stage that holds the viewer, the live camera, the cards of examples.

They are made by functions: for a subclass of its components Gradio writes a stub file beside the source.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

import gradio as gr

_HERE = Path(__file__).parent


def stage(first: str | None) -> gr.HTML:
    """Make the place of the 3D viewer. Its value is the id of the run to show.

    Args:
        first: run to show before the visitor chooses anything, if there is one.
    """
    return gr.HTML(
        "",
        html_template='<div class="stage"></div>',
        js_on_load=_script("stage.js"),
        elem_id="stage",
        apply_default_css=False,
        first=first or "",
    )


def camera() -> gr.HTML:
    """Make a preview of the visitor's camera. It sends frames to the run whose id is the value."""
    return gr.HTML(
        "",
        html_template='<div class="camera"><video muted playsinline aria-label="Your camera"></video>'
        '<p role="status">Frames go to this server one by one and are deleted with the run.</p></div>',
        js_on_load=_script("camera.js"),
        elem_id="camera",
        apply_default_css=False,
    )


def example_cards(examples: list[dict[str, str]]) -> gr.HTML:
    """Make a card for each finished example; a click shows it in the viewer."""
    cards = "".join(
        f'<button type="button" data-run="{html.escape(example["run"])}">'
        f'<img alt="" loading="lazy" data-src="{html.escape(example["picture"])}">'
        f"<span>{html.escape(example['title'])}</span></button>"
        for example in examples
    )
    return gr.HTML(
        "",
        html_template=f'<h2>Or look at an example</h2><div class="cards">{cards}</div>',
        js_on_load=_script("examples.js"),
        elem_id="examples",
        apply_default_css=False,
        visible=bool(examples),
    )


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
        font=[gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "monospace")],
        radius_size="md",
    ).set(
        # Deep enough for white letters on it.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def _script(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
