"""Layout and wiring of the page."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr
from torch import OutOfMemoryError

from streamvggt import CheckpointError

from . import handlers

NOTE = "The bundled model is small: expect coarse shapes and a rough camera path. The released weights are larger."


def build_demo() -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="StreamVGGT", delete_cache=(3600, 3600)) as demo:
        gr.Markdown("# StreamVGGT: live 3D from video\nUpload a video, press the button, turn the scene.")
        gr.Markdown(NOTE)
        folder = gr.State(None, time_to_live=3600, delete_callback=handlers.close_folder)
        demo.load(handlers.open_folder, None, folder, api_visibility="private")
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload", "webcam"])
                fps = gr.Slider(0.5, 10, 2, step=0.5, label="Frames a second")
                max_frames = gr.Slider(1, 200, 40, step=1, label="Frames at most")
                confidence = gr.Slider(0, 90, 20, step=5, label="Least certain points to drop, %")
                button = gr.Button("Reconstruct", variant="primary")
            with gr.Column():
                status = gr.Textbox(label="Status", interactive=False)
                depth = gr.Image(label="Depth of the newest frame", interactive=False, height=240)
                scene = gr.Model3D(label="Scene", height=420)
        inputs = [video, fps, max_frames, confidence, folder]
        button.click(_as_page_errors, inputs, [depth, scene, status], api_visibility="private")
    return demo


def _as_page_errors(*arguments: object) -> Iterator[handlers.Update]:
    """Show what is wrong with the input as a message on the page."""
    try:
        yield from handlers.reconstruct(*arguments)  # type: ignore[arg-type]
    except (ValueError, OSError, CheckpointError, MemoryError, OutOfMemoryError) as error:
        raise gr.Error(str(error)) from error
