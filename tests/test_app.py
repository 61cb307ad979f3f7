"""The page as a server: it starts, offers one endpoint, and serves runs beside Gradio."""

import httpx
import pytest
from gradio_client import Client, handle_file
from runs import free_port, write_video

from demo.engine import Engine
from demo.handlers import open_runs
from demo.ui import build_demo, launch_options


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMVGGT_RUNS", str(folder / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        engine = Engine()
        runs = open_runs(engine)
        demo = build_demo(runs, engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **launch_options(runs))
        yield url.rstrip("/"), runs
        demo.close()
        runs.close()


def test_the_page_answers(page):
    url, _ = page
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert "StreamVGGT" in answer.text


def test_a_program_gets_a_manifest_for_each_frame_and_the_files(page, tmp_path):
    url, _ = page
    video = write_video(tmp_path / "clip.mp4", num_frames=3)
    client = Client(url, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/reconstruct"]
    job = client.submit(video=handle_file(video), fps=10, width_px=112, formats=["glb", "tum"], api_name="/reconstruct")
    updates = list(job)
    assert {manifest["count"] for manifest, _ in updates} >= {1, 2, 3}
    manifest, files = updates[-1]
    assert (manifest["status"], manifest["count"], manifest["total"]) == ("done", 3, 3)
    assert [name.rsplit("/", 1)[-1] for name in files] == ["scene.glb", "trajectory.txt"]
    chunk = httpx.get(f"{url}/runs/{manifest['run']}/chunks/2.glb")
    assert (chunk.status_code, chunk.headers["content-type"], chunk.content[:4]) == (200, "model/gltf-binary", b"glTF")
