"""Layout and wiring of the page."""

from __future__ import annotations

import asyncio
import html
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import gradio as gr

from . import handlers, page
from .engine import Engine
from .inputs import InputError
from .jobs import BusyError, Runs
from .results import NotReadyError
from .routes import address_of, run_routes, viewer_of
from .run import DOWNLOADS
from .settings import GEOMETRIES, MEMORIES, MODELS, WIDTHS, RunSettings, SettingsError

# Fills in what only the browser knows: the run that the page shows.
_WITH_FORMER = "(...values) => [...values.slice(0, -1), window.streamvggtPage.current()]"
_WITH_CAMERA = """async (...values) => {
  if (!(await window.streamvggtCamera.ready())) throw new Error("no camera");
  return [...values.slice(0, -1), window.streamvggtPage.current()];
}"""


def build_demo(runs: Runs, engine: Engine) -> gr.Blocks:
    """Build the page.

    Args:
        runs: where its runs go.
        engine: what they run on.
    """
    examples = page.find_examples(runs.examples)
    with gr.Blocks(title="StreamVGGT: live 3D from video", delete_cache=(600, 3600)) as demo:
        gr.HTML(
            "<h1>Turn a video into a 3D scene while it plays</h1>"
            "<p>Choose a clip, press the button, and turn the scene with the mouse as it grows frame by frame.</p>",
            elem_id="intro",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                with gr.Tabs():
                    with gr.Tab("Video"):
                        # Any other format or a silent track would be converted first.
                        video = gr.Video(
                            label="Video or GIF", sources=["upload", "webcam"], format=None, include_audio=True
                        )
                        video_button = gr.Button("Build the scene", variant="primary", elem_id="start-video")
                    with gr.Tab("Images"):
                        images = gr.File(
                            label="Images in the order of the path", file_count="multiple", file_types=["image"]
                        )
                        images_button = gr.Button("Build the scene", variant="primary", elem_id="start-images")
                    with gr.Tab("Live camera", visible=not engine.on_zero_gpu):
                        camera = page.camera()
                        camera_button = gr.Button("Start the camera", variant="primary", elem_id="start-camera")
                page.example_cards(examples)
                controls = _settings_controls()
            with gr.Column(scale=5, min_width=340):
                stage = page.stage(examples[0]["run"] if examples else None)
        inputs = [*controls.values(), gr.Textbox(visible="hidden", label="Run on the page")]
        video_button.click(_starter(runs, handlers.start_video), [video, *inputs], stage, js=_WITH_FORMER, **_INTERNAL)
        images_button.click(
            _starter(runs, handlers.start_images), [images, *inputs], stage, js=_WITH_FORMER, **_INTERNAL
        )
        camera_button.click(_camera_starter(runs), inputs, [stage, camera], js=_WITH_CAMERA, **_INTERNAL)
        demo.load(_in_background(engine.preload), queue=False, api_visibility="private")
        _public_endpoint(runs, video, list(controls.values()))
    return demo


def launch_options(runs: Runs) -> dict[str, Any]:
    """Return what ``Blocks.launch`` needs for this page."""
    return {
        "app_kwargs": {"routes": run_routes(runs)},
        "allowed_paths": [str(runs.folder)],  # for the files that /reconstruct returns
        "max_file_size": runs.limits.file_bytes,
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
        "css": page.page_css(),
        "theme": page.page_theme(),
    }


_INTERNAL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def _settings_controls() -> dict[str, gr.components.Component]:
    """Make the controls of a run's settings, by their names in the order of their fields."""
    default = RunSettings()
    with gr.Accordion("Settings", open=False):
        fps = gr.Slider(0.5, 30, default.fps, step=0.5, label="Frames a second of video")
        max_frames = gr.Slider(1, 300, default.max_frames, step=1, label="Frames at most, of a video or images")
        widths = [
            ("As the network was trained", 0),
            *((f"{width} pixels", width) for width in WIDTHS),
        ]
        width = gr.Dropdown(widths, value=default.width_px, label="Width of the frames")
        model = gr.Radio(
            [(choice.label, name) for name, choice in MODELS.items()], value=default.model, label="Network"
        )
        licence = gr.Markdown(handlers.model_note(default.model))
        memory = gr.Radio(
            [(choice.label, name) for name, choice in MEMORIES.items()],
            value=default.memory,
            label="What is remembered",
        )
        compress = gr.Checkbox(default.compress, label="Remember in 8 bits: half the memory, a little less exact")
        long = gr.Checkbox(default.long, label="Long video: correct the path where a place is seen again")
        geometry = gr.Radio(
            [(label, name) for name, label in GEOMETRIES.items()], value=default.geometry, label="Points from"
        )
        confidence = gr.Slider(0, 90, default.confidence, step=5, label="Least certain points to leave out, %")
        mask_sky = gr.Checkbox(default.mask_sky, label="Leave out sky")
        mask_black = gr.Checkbox(default.mask_black, label="Leave out a black background")
        mask_white = gr.Checkbox(default.mask_white, label="Leave out a white background")
    model.change(handlers.model_note, model, licence, **_INTERNAL)
    return {
        "fps": fps,
        "max_frames": max_frames,
        "width_px": width,
        "model": model,
        "memory": memory,
        "compress": compress,
        "long": long,
        "geometry": geometry,
        "confidence": confidence,
        "mask_sky": mask_sky,
        "mask_black": mask_black,
        "mask_white": mask_white,
    }


def _starter(runs: Runs, start: Callable[..., str]) -> Callable[..., str]:
    """Make the handler of a button that starts a run on an input."""

    def start_run(request: gr.Request, source: Any, *values: Any) -> str:
        with _page_errors():
            return start(runs, source, _settings(values[:-1]), **_visitor(request, values[-1]))

    return start_run


def _camera_starter(runs: Runs) -> Callable[..., tuple[str, str]]:
    """Make the handler of the button that starts a run on the live camera."""

    def start_run(request: gr.Request, *values: Any) -> tuple[str, str]:
        with _page_errors():
            run_id = handlers.start_camera(runs, _settings(values[:-1]), **_visitor(request, values[-1]))
        return run_id, run_id

    return start_run


def _settings(values: Sequence[Any]) -> RunSettings:
    return RunSettings.from_values(**dict(zip(_names_of_settings(), values, strict=True)))


def _names_of_settings() -> list[str]:
    return [field.name for field in fields(RunSettings)]


def _visitor(request: gr.Request, former: str = "") -> dict[str, str]:
    return {"owner": address_of(request.request), "former": former, "viewer": viewer_of(request.request)}


@contextmanager
def _page_errors() -> Iterator[None]:
    """Show what is wrong with the input as a message on the page."""
    try:
        yield
    except (InputError, SettingsError, BusyError, NotReadyError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def _in_background(action: Callable[[], None]) -> Callable[[], None]:
    def start() -> None:
        threading.Thread(target=action, daemon=True).start()

    return start


def _public_endpoint(runs: Runs, video: gr.Video, controls: list[gr.components.Component]) -> None:
    """Add ``/reconstruct``, the one endpoint for programs."""
    formats = gr.CheckboxGroup([entry["format"] for entry in DOWNLOADS], value=["glb"], visible=False, label="Formats")
    manifest, files = gr.JSON(visible=False, label="Manifest"), gr.Files(visible=False, label="Files")

    async def reconstruct(
        request: gr.Request,
        video: str,
        fps: float = 2.0,
        max_frames: int = 60,
        width_px: int = 0,
        model: str = "small",
        memory: str = "tokens",
        compress: bool = False,
        long: bool = False,
        geometry: str = "depth",
        confidence: float = 10.0,
        mask_sky: bool = False,
        mask_black: bool = False,
        mask_white: bool = False,
        formats: list[str] | None = None,
    ) -> AsyncIterator[tuple[dict[str, Any], list[str] | None]]:
        """Turn a video into a coloured 3D scene with a camera path, frame by frame.

        Args:
            video: a video file or an animated GIF.
            fps: frames taken a second of video, 0.5 to 30.
            max_frames: frames taken at most, 1 to 300.
            width_px: width to which frames are resized: 112, 168, 224, 294, 392 or 518; 0 for the network's own.
            model: "small", or "released" for the large weights, which may not be used commercially.
            memory: what the stream remembers: "window" (the first frame and the newest 15), "keyframes" (the 24 that
                differ most), "tokens" (the parts that stand out, of many frames) or "all" (every frame); 2 GiB at most.
            compress: remember it in 8 bits a number: half the memory or less.
            long: correct drift and close loops; scene and files follow at the end.
            geometry: "depth", or "points" for the network's point map, which the file "npz" then holds as well.
            confidence: percent of the least certain points to leave out, 0 to 90.
            mask_sky: leave out what looks like sky.
            mask_black: leave out a black background.
            mask_white: leave out a white background.
            formats: files wanted at the end, of "glb", "ply", "colmap", "tum", "npz" and "mp4".

        Returns:
            Each time something is new the manifest of the run: its status, the number of frames so far, statistics; at
            the end the files as well.
        """
        masks = (mask_sky, mask_black, mask_white)
        values = (fps, max_frames, width_px, model, memory, compress, long, geometry, confidence, *masks)
        with _page_errors():
            visitor = _visitor(request)
            run_id = await asyncio.to_thread(handlers.start_video, runs, video, _settings(values), **visitor)
            async for news in handlers.follow(runs, run_id):
                yield news, None
            if news["status"] == "failed":
                raise InputError(news["message"])
            yield news, await asyncio.to_thread(handlers.results, runs, run_id, formats or ["glb"])

    gr.Button(visible=False).click(
        reconstruct, [video, *controls, formats], [manifest, files], api_name="reconstruct", concurrency_limit=None
    )
