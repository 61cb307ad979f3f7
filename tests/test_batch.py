"""Many videos in one command: found, shared out, finished once, and whole after whatever went wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamvggt import load_model, save_model
from streamvggt.__main__ import main
from streamvggt.batch import Job, find_videos, plan_jobs, share

OPTIONS = ["--model", "tiny", "--size", "28", "--format", "tum"]


def write_images(folder, count, hw=(28, 28), seed=0):
    folder.mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(seed).integers(0, 256, (count, *hw, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def touch(path, size=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


@pytest.fixture
def videos(tmp_path):
    """Three folders of images, of 2, 3 and 4 frames, in one folder."""
    for i, name in enumerate("abc"):
        write_images(tmp_path / "videos" / name, 2 + i, seed=i)
    return tmp_path / "videos"


def frames_in(output):
    return sum(not line.startswith("#") for line in (output / "trajectory.txt").read_text().splitlines())


# --- which videos


def test_folders_and_lists_stand_for_the_videos_in_them(tmp_path):
    images = write_images(tmp_path / "clips" / "desk", 1)
    second, first = touch(tmp_path / "clips" / "b.MP4"), touch(tmp_path / "clips" / "a.mov")
    touch(tmp_path / "clips" / "notes.md")
    touch(tmp_path / "clips" / ".hidden.mp4")
    elsewhere = touch(tmp_path / "other" / "c.mkv")
    listing = tmp_path / "all.txt"
    listing.write_text(f"# mine\n\nclips\n{elsewhere}\nclips/a.mov\n")
    assert find_videos([listing]) == [first, second, images, elsewhere]
    assert find_videos([images]) == [images]
    assert find_videos([elsewhere, images]) == [elsewhere, images]
    assert find_videos([tmp_path / "missing.mp4"]) == [tmp_path / "missing.mp4"]  # for the reader to complain about


def test_what_is_not_clear_is_refused(tmp_path):
    mixed = write_images(tmp_path / "mixed", 1)
    touch(mixed / "a.mp4")
    with pytest.raises(ValueError, match=r"holds images and 1 videos \(a.mp4"):
        find_videos([mixed])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images, no folders of images and no videos"):
        find_videos([tmp_path / "empty"])
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="names no video"):
        find_videos([tmp_path / "none.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        find_videos([tmp_path / "binary.txt"])


def test_every_video_gets_a_folder_of_its_own():
    paths = [
        Path("/x/one/clip.mp4"),
        Path("/x/two/clip.mp4"),
        Path("/x/clip.mov"),
        Path("/x/three.d"),
        Path("/x/e.mp4"),
    ]
    names = [job.output.name for job in plan_jobs(paths, Path("out"))]
    assert names == ["one-clip.mp4", "two-clip.mp4", "clip.mov", "three.d", "e"]


def test_processes_share_all_videos_by_size(tmp_path):
    sizes = {"a": 100, "b": 60, "c": 50, "d": 1, "e": 0}
    jobs = [Job(touch(tmp_path / name, size), tmp_path / "out" / name) for name, size in sizes.items()]
    shares = [share(jobs, rank, 2) for rank in range(2)]
    # The largest first, each to whoever has less: 100 against 60 + 50, then the small ones to the first.
    assert [[job.video.name for job in jobs] for jobs in shares] == [["a", "d", "e"], ["b", "c"]]
    assert share(jobs, 0, 1) == jobs
    assert share(jobs[:1], 1, 2) == []


# --- the command


def test_each_video_has_its_results_and_a_second_run_does_nothing(videos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(videos), "-o", str(out), *OPTIONS]) == 0
    assert {name: frames_in(out / name) for name in "abc"} == {"a": 2, "b": 3, "c": 4}
    assert "3 videos: 3 finished, 0 skipped, 0 failed" in capsys.readouterr().out
    alone = tmp_path / "alone"
    assert main(["reconstruct", str(videos / "b"), "-o", str(alone), *OPTIONS]) == 0
    assert (alone / "trajectory.txt").read_bytes() == (out / "b" / "trajectory.txt").read_bytes()
    assert not (alone / "finished.json").exists()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main(["reconstruct", str(videos), "-o", str(out), *OPTIONS]) == 0
    assert "3 videos: 0 finished, 3 skipped, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_settings_another_video_or_a_lost_result_are_done_again(videos, tmp_path, capsys):
    out = tmp_path / "out"

    def summary(*options):
        capsys.readouterr()
        assert main(["reconstruct", str(videos), "-o", str(out), *OPTIONS, *options]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    summary()
    touch(out / "a" / "my notes.md")
    assert summary("--max-frames", "3", "--format", "ply") == "3 videos: 3 finished, 0 skipped, 0 failed"
    assert sorted(path.name for path in (out / "a").iterdir()) == ["finished.json", "my notes.md", "scene.ply"]
    assert summary() == "3 videos: 3 finished, 0 skipped, 0 failed"
    (out / "b" / "trajectory.txt").unlink()
    assert summary() == "3 videos: 1 finished, 2 skipped, 0 failed"
    (videos / "c" / "3.png").unlink()
    assert summary("--device", "cpu") == "3 videos: 1 finished, 2 skipped, 0 failed"
    assert frames_in(out / "c") == 3
    for text in ("", "[]", "{}", '{"files": ["trajectory.txt"]}', '{"files": 3}'):
        (out / "a" / "finished.json").write_text(text)
        assert summary() == "3 videos: 1 finished, 2 skipped, 0 failed"
    assert json.loads((out / "a" / "finished.json").read_text())["settings"]["size"] == "28"


def test_other_weights_under_the_same_name_are_another_model(videos, tmp_path, capsys):
    """The file is replaced by one of the same size, with one number of every tensor changed."""
    weights, out = tmp_path / "model.safetensors", tmp_path / "out"
    arguments = ["reconstruct", str(videos), "-o", str(out), *OPTIONS, "--model", str(weights)]
    model = load_model("tiny")
    said = []
    for change in (0, 0, 1e-3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[0] += change
        save_model(model, weights)
        assert main(arguments) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said == [f"3 videos: {n} finished, {3 - n} skipped, 0 failed" for n in (3, 0, 3)]


def test_an_image_for_colmap_that_is_gone_is_a_lost_result(videos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["reconstruct", str(videos), "-o", str(out), *OPTIONS, "--format", "colmap"]
    assert main(arguments) == 0
    (out / "b" / "colmap" / "images" / "frame_000001.png").unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "3 videos: 1 finished, 2 skipped, 0 failed" in capsys.readouterr().out
    assert (out / "b" / "colmap" / "images" / "frame_000001.png").exists()


def test_a_bad_video_is_told_of_and_does_not_stop_the_others(videos, tmp_path, capsys):
    (videos / "a" / "0.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((28, 56, 3), np.uint8)).save(videos / "b" / "2.png")
    out = tmp_path / "out"
    arguments = ["reconstruct", str(videos), str(tmp_path / "gone.mp4"), "-o", str(out), *OPTIONS]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "4 videos: 1 finished, 0 skipped, 3 failed" in told.out
    assert "gone.mp4 does not exist" in told.out
    assert "the 2 frames before it are written" in told.out
    assert "Traceback" not in told.out + told.err
    assert frames_in(out / "c") == 4
    assert frames_in(out / "b") == 2
    assert not (out / "b" / "finished.json").exists()

    (videos / "b" / "2.png").unlink()
    assert main(arguments) == 1
    assert "4 videos: 1 finished, 1 skipped, 2 failed" in capsys.readouterr().out


def test_ctrl_c_ends_the_whole_run(videos, tmp_path, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("streamvggt.cli.reconstruct.read_frames", interrupt)
    assert main(["reconstruct", str(videos), "-o", str(tmp_path / "out"), *OPTIONS]) == 130
    assert not list((tmp_path / "out").rglob("finished.json"))


def test_a_killed_run_starts_again_where_it_was(videos, tmp_path, capsys):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "streamvggt", "reconstruct", str(videos), "-o", str(out), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "a: finished\n"
        process.kill()
    # As if it had been hit in the middle of a file.
    left_over = touch(out / "c" / ".trajectory.txt.0123456789abcdef.tmp")
    touch(out / "c" / "colmap" / "images" / "frame_000099.png")
    assert main(["reconstruct", str(videos), "-o", str(out), *OPTIONS]) == 0
    assert "a: skipped" in capsys.readouterr().out
    assert {name: frames_in(out / name) for name in "abc"} == {"a": 2, "b": 3, "c": 4}
    assert not left_over.exists()
    assert not list(out.rglob("frame_*.png"))


def test_two_processes_do_each_video_once(videos, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "streamvggt", "reconstruct", str(videos), "-o", str(out), *OPTIONS]
    clean = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"}
    running = [
        subprocess.Popen(
            command,
            env=clean | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    # c is the largest; a and b together are more, but the next is always the larger of what is left.
    assert said[0] == ["c: finished", "1 videos: 1 finished, 0 skipped, 0 failed"]
    assert said[1] == ["a: finished", "b: finished", "2 videos: 2 finished, 0 skipped, 0 failed"]
    assert {name: frames_in(out / name) for name in "abc"} == {"a": 2, "b": 3, "c": 4}


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_processes_that_are_not_counted_right_are_refused(videos, tmp_path, monkeypatch, capsys, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["reconstruct", str(videos), "-o", str(tmp_path / "out"), *OPTIONS]) == 1
    assert f"RANK={rank} and WORLD_SIZE={size}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_launcher_ends_when_all_processes_have_ended(videos, tmp_path):
    """accelerate ends all processes when one fails: the bad video's must wait for the good ones'."""
    (videos / "a" / "0.png").write_bytes(b"no image")
    out = tmp_path / "out"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    work = ["-m", "streamvggt", "reconstruct", str(videos), "-o", str(out), *OPTIONS]
    done = subprocess.run([*launch, *work], capture_output=True, text=True)
    assert done.returncode != 0
    assert "3 videos: 2 finished, 0 skipped, 1 failed" in done.stdout
    assert {name: frames_in(out / name) for name in "bc"} == {"b": 3, "c": 4}
