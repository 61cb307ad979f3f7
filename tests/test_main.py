"""The command line, run as a user runs it: a video goes in, files come out that other programs read."""

import argparse
import re
import subprocess
import sys

import av
import numpy as np
import pycolmap
import pygltflib
import pytest
import torch
from PIL import Image
from plyfile import PlyData

from streamvggt import (
    AnchorWindow,
    KeepAll,
    KeyDiversity,
    Keyframes,
    QueryImportance,
    TokenBudget,
    load_model,
    save_model,
    stores,
)
from streamvggt.__main__ import main
from streamvggt.cli.arguments import parse_policy


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of a moving pattern at 10 frames a second."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    y, x = np.mgrid[0:96, 0:128]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(20):
            image = np.stack([128 + 100 * np.sin((x + 3 * i) / 9), 128 + 100 * np.cos(y / 7), 2 * x], axis=-1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8))))
        container.mux(stream.encode())
    return path


def test_reconstruct_writes_every_format(video, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["reconstruct", str(video), "-o", str(out), "--format", "glb,ply,colmap,tum,npz", "--fps", "4"]) == 0
    printed = capsys.readouterr()
    for line in printed.out.splitlines():
        assert line.startswith(str(out))
    raw = np.load(out / "predictions.npz", allow_pickle=False)
    np.testing.assert_allclose(raw["time_s"], np.arange(8) / 4, atol=0.051)  # frames exist every 0.1 s
    assert raw["depth"].shape == (8, 168, 224)

    points = PlyData.read(out / "scene.ply")["vertex"]
    # Of 168 x 224 pixels in 8 frames the least certain fifth and the depth edges are dropped.
    assert 0 < len(points) <= 0.8 * 8 * 168 * 224 + 10  # ties stay
    scene = pygltflib.GLTF2().load(str(out / "scene.glb"))
    assert sum(node.camera is not None for node in scene.nodes) == 8

    model = pycolmap.Reconstruction(out / "colmap" / "sparse" / "0")
    assert model.num_images() == 8
    assert model.num_points3D() == len(points)
    for image in model.images.values():
        with Image.open(out / "colmap" / "images" / image.name) as picture:
            assert picture.size == (224, 168)
    lines = [line for line in (out / "trajectory.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 8
    assert not list(out.rglob("*.tmp"))


def test_options_change_what_they_say(video, tmp_path):
    def run(name, *options):
        assert (
            main(
                [
                    "reconstruct",
                    str(video),
                    "-o",
                    str(tmp_path / name),
                    "--model",
                    "tiny",
                    "--format",
                    "ply,npz",
                    *options,
                ]
            )
            == 0
        )
        with np.load(tmp_path / name / "predictions.npz") as raw:
            depth = raw["depth"]
        return depth, PlyData.read(tmp_path / name / "scene.ply")["vertex"]

    depth, points = run("plain")
    assert depth.shape == (4, 84, 112)  # two frames a second
    assert run("all", "--fps", "all")[0].shape[0] == 20
    assert run("few", "--max-frames", "3")[0].shape[0] == 3
    assert run("narrow", "--size", "56")[0].shape == (4, 42, 56)
    assert len(run("budget", "--max-points", "100")[1]) == 100
    assert len(run("sure", "--confidence", "90")[1]) < 0.11 * 4 * 84 * 112 < len(points)
    window, _ = run("window", "--policy", "window:1,1")
    np.testing.assert_array_equal(window[:2], depth[:2])
    assert not np.array_equal(window[2:], depth[2:])
    maps = run("maps", "--geometry", "points", "--confidence", "0")[1]
    assert not np.allclose(maps["x"][:50], points["x"][:50])


def test_a_long_session_writes_every_frame_once(video, tmp_path):
    options = ["--model", "tiny", "--size", "28", "--fps", "all", "--long", "--format", "tum,npz,ply"]
    assert main(["reconstruct", str(video), "-o", str(tmp_path), *options]) == 0
    with np.load(tmp_path / "predictions.npz") as raw:
        np.testing.assert_array_equal(raw["index"], np.arange(20))
        assert np.isfinite(raw["world_points"]).all()
    lines = [line for line in (tmp_path / "trajectory.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 20


def test_a_network_with_full_attention_streams_causally(video, tmp_path, capsys):
    model = load_model("tiny", attention="full")
    save_model(model, tmp_path / "teacher.safetensors")
    options = ["--model", str(tmp_path / "teacher.safetensors"), "--dtype", "bfloat16"]
    assert main(["reconstruct", str(video), "-o", str(tmp_path / "out"), *options]) == 0


def test_a_second_run_leaves_no_images_of_the_first(video, tmp_path):
    for count in (4, 2):
        options = ["--format", "colmap", "--max-frames", str(count)]
        assert main(["reconstruct", str(video), "-o", str(tmp_path), *options]) == 0
    assert len(list((tmp_path / "colmap" / "images").iterdir())) == 2


def test_interruption_ends_quietly(video, tmp_path, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("streamvggt.cli.reconstruct.load_model", interrupt)
    assert main(["reconstruct", str(video), "-o", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_must_not_be_a_file(video, capsys):
    assert main(["reconstruct", str(video), "-o", str(video)]) == 1
    assert "is a file" in capsys.readouterr().err


def test_a_folder_of_images_is_a_stream(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((60, 80, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    assert main(["reconstruct", str(tmp_path), "-o", str(tmp_path / "out"), "--format", "tum"]) == 0
    assert len((tmp_path / "out" / "trajectory.txt").read_text().splitlines()) > 3


def test_one_frame_is_a_video(video, tmp_path):
    assert main(["reconstruct", str(video), "-o", str(tmp_path), "--max-frames", "1", "--format", "glb,colmap"]) == 0
    assert pycolmap.Reconstruction(tmp_path / "colmap" / "sparse" / "0").num_images() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing.mp4"), (b"", "empty"), (b"no video" * 99, "missing.mp4"), (b"\0" * 4096, "missing.mp4")],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(tmp_path, capsys, content, message):
    path = tmp_path / "missing.mp4"
    if content is not None:
        path.write_bytes(content)
    assert main(["reconstruct", str(path), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_frames_before_a_fault_are_kept(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((60, 80, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(tmp_path / "3.png")
    out = tmp_path / "out"
    assert main(["reconstruct", str(tmp_path), "-o", str(out), "--format", "npz"]) == 1
    assert "the 3 frames before it are written" in capsys.readouterr().err
    assert len(np.load(out / "predictions.npz")["depth"]) == 3


@pytest.mark.parametrize("videos", [1, 2])
def test_frames_before_the_memory_ran_out_are_kept(tmp_path, capsys, monkeypatch, videos):
    """The cache of nine frames cannot be made: the machine refuses, in the words of PyTorch."""
    for name in "ab"[:videos]:
        (tmp_path / name).mkdir()
        for i in range(9):
            Image.fromarray(np.full((28, 28, 3), 20 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    make = stores.new_buffer

    def with_room_for_eight(shape, *args):
        return make((2**50,) if shape[2] > 8 * 9 else shape, *args)

    monkeypatch.setattr(stores, "new_buffer", with_room_for_eight)
    out = tmp_path / "out"
    named = [str(tmp_path / name) for name in "ab"[:videos]]
    options = ["--model", "tiny", "--size", "28", "--format", "npz", "--fps", "all"]
    assert main(["reconstruct", *named, "-o", str(out), *options]) == 1
    said = "".join(capsys.readouterr())
    assert re.search(
        r"out of memory \(.*can't allocate memory.*\); streams take less with a limit \(--memory 2GB\)", said
    )
    assert said.count("the 8 frames before it are written") >= videos
    for folder in [out] if videos == 1 else [out / "a", out / "b"]:
        assert len(np.load(folder / "predictions.npz")["depth"]) == 8
    with monkeypatch.context() as patch:
        patch.setattr(stores, "new_buffer", lambda *_args: make((2**50,), torch.empty(0)))
        assert main(["reconstruct", *named, "-o", str(out), *options]) == 1
    assert "".join(capsys.readouterr()).count("streams take less with a limit") >= videos


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--format", "glb,obj"),
        ("--format", ""),
        ("--policy", "some"),
        ("--policy", "window:0,3"),
        ("--policy", "window:1,2,3"),
        ("--fps", "0"),
        ("--fps", "x"),
        ("--mask", "green"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(["reconstruct", "video.mp4", "-o", str(tmp_path / "out"), option, value])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "100"],
        ["--max-points", "0"],
        ["--confidence", "100"],
        ["--model", "no/such.pt"],
        ["--device", "abacus"],
    ],
)
def test_values_that_do_not_fit_are_one_clear_line(video, tmp_path, capsys, options):
    assert main(["reconstruct", str(video), "-o", str(tmp_path / "out"), *options]) == 1
    assert options[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_prints_the_true_figures(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "1,256,537,516" in text
    # 24 layers, K and V, 1374 tokens, 1024 wide; in float32 4 rounds x 4 blocks of the camera head, 2048 wide, and a
    # prototype, 1024 wide.
    half = (24 * 2 * 1374 * 1024 * 2 + 16 * 2 * 2048 * 4 + 1024 * 4) / 2**20
    assert f"{half:.2f} MiB" in text
    assert f"{(24 * 2 * 1374 * 1024 * 4 + 16 * 2 * 2048 * 4 + 1024 * 4) / 2**20:.2f} MiB" in text


def test_info_knows_what_int8_takes(capsys):
    assert main(["info", "small"]) == 0
    # 4 layers of 261 tokens 256 wide in 4 heads: a byte a number, bfloat16 for a value in a head and a key's channel.
    camera_and_prototype = 2 * 512 * 4 + 256 * 4
    size = 2 * 4 * 261 * 256 + 2 * 4 * (261 * 4 + 256) + camera_and_prototype
    assert f"{size / 2**20:.2f} MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", KeepAll()),
        ("window", AnchorWindow(1, 15)),
        ("keyframes", Keyframes()),
        ("keyframes:2,9,4", Keyframes(2, 9, 4)),
        ("tokens", TokenBudget()),
        ("tokens:4096", TokenBudget(4096, KeyDiversity())),
        ("tokens:importance", TokenBudget(None, QueryImportance())),
        ("tokens:4096,diversity", TokenBudget(4096, KeyDiversity())),
    ],
)
def test_policies_can_be_named(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["keyframes:1", "keyframes:0,1,1", "tokens:1,2", "tokens:beauty", "window:1,2,3", "all:1"]
)
def test_what_names_no_policy_is_told(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"needs|invalid literal|at least"):
        parse_policy(text)


def test_a_limit_of_memory_holds_on_the_command_line(video, tmp_path, caplog):
    arguments = ["reconstruct", str(video), "-o", str(tmp_path), "--model", "tiny", "--device", "cpu", "--size", "112"]
    assert main([*arguments, "--fps", "all", "--memory", "1.5MB", "--storage", "int8", "--policy", "keyframes"]) == 0
    assert (tmp_path / "scene.glb").exists()
    assert main([*arguments, "--memory", "100kB", "--policy", "keyframes"]) == 1


def test_the_module_runs_as_a_program():
    run = subprocess.run([sys.executable, "-m", "streamvggt", "info", "tiny"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "untrained" not in run.stdout
    assert "869,284" in run.stdout
