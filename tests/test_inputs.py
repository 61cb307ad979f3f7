"""What visitors hand in: each bad input has its message, and is refused before a network is asked."""

import errno
import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from runs import TINY, never, write_video

from demo.inputs import InputError, check_images, check_live_frame, check_video, decode_live_frame, short_name
from demo.settings import Limits, RunSettings

LIMITS = Limits()


def write_image(path, size_wh=(64, 48), **options):
    Image.new("RGB", size_wh, (200, 120, 40)).save(path, **options)
    return str(path)


def jpeg(size_wh=(64, 48)):
    buffer = io.BytesIO()
    Image.new("RGB", size_wh, (200, 120, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_video_tells_how_many_frames_will_come(tmp_path):
    path = str(write_video(tmp_path / "clip.mp4", num_frames=20, rate=10))
    assert check_video(path, RunSettings(fps=5), LIMITS).total == 10
    clip = check_video(path, RunSettings(fps=5, max_frames=4), LIMITS)
    assert (clip.total, clip.title) == (4, "clip.mp4")
    assert clip.note == "The first 4 of about 10 frames are taken."
    assert len(list(clip.frames(RunSettings(fps=5, max_frames=4), LIMITS, never))) == 4


@pytest.mark.parametrize("fps", [1, 3, 10, 25])
def test_the_announced_number_is_within_one_of_what_comes(tmp_path, fps):
    path = str(write_video(tmp_path / "clip.mp4", num_frames=23, rate=10))
    settings = RunSettings(fps=fps)
    clip = check_video(path, settings, LIMITS)
    assert abs(clip.total - len(list(clip.frames(settings, LIMITS, never)))) <= 1


def write_sound(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 800, "NONE", ""))
        file.writeframes(bytes(1600))


def write_8k(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuvj420p"
        frame = av.VideoFrame(7680, 4320, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def write_long(path):
    """Two frames, two hours apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for second in (0, 7200):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = second
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def truncate(path):
    """The index of an MP4 is at its end."""
    write_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("nothing.mp4", lambda path: path.write_bytes(b""), "nothing.mp4 is empty"),
        ("text.mp4", lambda path: path.write_text("no video, but words " * 50), "text.mp4"),
        ("noise.mp4", lambda path: path.write_bytes(bytes(range(256)) * 40), "noise.mp4 cannot be opened"),
        ("cut.mp4", truncate, "cut.mp4 cannot be opened"),
        ("sound.wav", write_sound, "sound.wav has no video stream"),
        ("large.avi", write_8k, "large.avi has 7680x4320 pixels; at most 4K"),
        ("long.mp4", write_long, "long.mp4 is 120 minutes long; at most 10 minutes"),
        ("flat.mp4", lambda path: write_video(path, size_wh=(640, 16)), "flat.mp4 is 640x16 pixels, too narrow"),
    ],
)
def test_a_bad_video_is_refused_with_a_message_that_names_it(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        check_video(str(tmp_path / name), TINY, LIMITS)
    assert str(tmp_path) not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(InputError, match=r"huge\.mp4 has 300 MB; at most 200 MB"):
        check_video(str(tmp_path / "huge.mp4"), TINY, LIMITS)


def test_no_video_and_no_images_are_asked_for():
    with pytest.raises(InputError, match="Choose or record a video first"):
        check_video(None, TINY, LIMITS)
    with pytest.raises(InputError, match="Choose some images first"):
        check_images([], TINY, LIMITS)


def test_a_missing_file_is_no_crash(tmp_path):
    with pytest.raises(InputError, match=r"gone\.mp4"):
        check_video(str(tmp_path / "gone.mp4"), TINY, LIMITS)


def test_a_video_and_a_gif_of_one_frame_are_taken_with_a_remark(tmp_path):
    write_video(tmp_path / "one.mp4", num_frames=1)
    write_image(tmp_path / "one.gif")
    for name in ("one.mp4", "one.gif"):
        clip = check_video(str(tmp_path / name), TINY, LIMITS)
        assert clip.total == 1
        assert "One frame only" in clip.note
        assert len(list(clip.frames(TINY, LIMITS, never))) == 1


def test_a_gif_does_not_tell_its_length_and_is_taken(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4)]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=500)
    clip = check_video(str(tmp_path / "clip.gif"), TINY, LIMITS)
    assert clip.total is None
    assert len(list(clip.frames(TINY, LIMITS, never))) == 4


def test_a_recording_without_a_length_is_cut_at_the_limit(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(6)]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=1000)
    limits = Limits(duration_s=2.5)
    clip = check_video(str(tmp_path / "clip.gif"), TINY, limits)
    assert [frame.time_s for frame in clip.frames(TINY, limits, never)] == [0, 1, 2]


def test_images_are_taken_in_their_order(tmp_path):
    paths = [write_image(tmp_path / f"{name}.png") for name in "cab"]
    clip = check_images(paths, TINY, LIMITS)
    assert (clip.total, clip.title) == (3, "3 images")
    assert [frame.name for frame in clip.frames(TINY, LIMITS, never)] == ["c.png", "a.png", "b.png"]
    assert check_images(paths, RunSettings(max_frames=2), LIMITS).note == "The first 2 of 3 images are taken."
    assert "One image only" in check_images(paths[:1], TINY, LIMITS).note


def test_too_many_images_are_refused_unread():
    with pytest.raises(InputError, match="5,000 images are too many; at most 300"):
        check_images(["missing.png"] * 5000, TINY, LIMITS)


def test_images_that_are_too_large_together_are_refused(tmp_path):
    paths = []
    for number in range(3):
        paths.append(write_image(tmp_path / f"{number}.png"))
        with Path(paths[-1]).open("ab") as file:
            file.truncate(2**20)
    assert check_images(paths, TINY, Limits(upload_bytes=3 * 2**20)).total == 3
    with pytest.raises(InputError, match="The images have 3 MB together; at most 2 MB are taken"):
        check_images(paths, TINY, Limits(upload_bytes=2 * 2**20))


def test_images_of_one_name_are_kept_apart_and_read_after_the_uploads_are_gone(tmp_path):
    paths = []
    for shade in range(3):
        (tmp_path / str(shade)).mkdir()
        paths.append(tmp_path / str(shade) / "frame.png")
        Image.new("RGB", (64, 48), (80 * shade, 0, 0)).save(paths[-1])
    clip = check_images(list(map(str, paths)), TINY, LIMITS).kept_in(tmp_path / "kept")
    for path in paths:
        path.unlink()
    assert [int(frame.image[0, 0, 0]) for frame in clip.frames(TINY, LIMITS, never)] == [0, 80, 160]


def test_where_no_link_can_be_made_a_video_is_copied(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = write_video(tmp_path / "clip.mp4", num_frames=3)
    clip = check_video(str(path), TINY, LIMITS).kept_in(tmp_path / "kept")
    assert clip.paths[0].read_bytes() == path.read_bytes()
    assert clip.paths[0].stat().st_ino != path.stat().st_ino


def test_whether_to_end_is_asked_at_every_frame_of_a_video_also_between_the_samples(tmp_path):
    path = write_video(tmp_path / "dense.mkv", num_frames=60, rate=60)
    asked = []

    def at_the_tenth():
        asked.append(len(asked))
        return len(asked) == 10

    clip = check_video(str(path), RunSettings(fps=1), LIMITS)
    assert [frame.time_s for frame in clip.frames(RunSettings(fps=1), LIMITS, at_the_tenth)] == [0]
    assert len(asked) == 10


def test_images_of_mixed_shapes_are_refused_and_of_mixed_sizes_taken(tmp_path):
    wide, same, tall = (write_image(tmp_path / f"{w}.png", (w, h)) for w, h in ((640, 480), (321, 240), (300, 400)))
    assert check_images([wide, same], TINY, LIMITS).total == 2
    with pytest.raises(InputError, match=r"640\.png has 640x480, 300\.png has 300x400 pixels"):
        check_images([wide, tall], TINY, LIMITS)


def test_a_bad_image_is_named(tmp_path):
    good = write_image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(InputError, match=r"bad\.png"):
        check_images([good, str(tmp_path / "bad.png")], TINY, LIMITS)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/srv/uploads/../../etc/passwd", "passwd"),
        (r"C:\Users\me\clip.mp4", "clip.mp4"),
        ("<img src=x onerror=alert(1)>.mp4", "img src=x onerror=alert(1) .mp4"),
        ("&lt;b&gt;.mp4", "b .mp4"),
        ("a\nb\x1b[31m.mp4", "a b [31m.mp4"),
        ("x" * 200 + ".mp4", "x" * 45 + "…" + "x" * 10 + ".mp4"),
    ],
)
def test_names_are_shown_without_paths_markup_and_control_characters(name, shown):
    assert short_name(name) == shown


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be a JPEG"),
        (b"GIF89a", "must be a JPEG"),
        (jpeg()[:20], "must be a JPEG"),
        (bytes(Limits().live_jpeg_bytes + 1), "bytes; at most"),
        (jpeg((8, 8)), "8x8 pixels cannot be used"),
    ],
)
def test_a_bad_live_frame_is_refused(body, message):
    with pytest.raises(InputError, match=message):
        check_live_frame(body, LIMITS)


def test_what_breaks_while_decoding_is_told_without_the_folder_of_the_upload(tmp_path):
    paths = [write_image(tmp_path / f"{i}.jpg") for i in range(2)]
    content = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(content[:-20])  # the size is there, not all pixels are
    clip = check_images(paths, RunSettings(), LIMITS)
    with pytest.raises(InputError, match=r"1\.jpg is not a readable image") as caught:
        list(clip.frames(RunSettings(), LIMITS, never))
    assert str(tmp_path) not in str(caught.value)


def test_a_live_frame_is_decoded_and_a_damaged_one_is_none():
    check_live_frame(jpeg(), LIMITS)
    assert decode_live_frame(jpeg()).shape == (48, 64, 3)
    assert decode_live_frame(jpeg()[:300]) is None
