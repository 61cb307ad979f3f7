"""Frames from files: every clip is made here, and each of its frames carries its number as a grey level."""

import logging
import math
import struct
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from streamvggt.video import VideoError, describe_video, read_frames

LOSSLESS_MATROSKA = {"codec": "ffv1", "pix_fmt": "bgr0"}
VFR_MS = [0, 100, 250, 260, 900, 1000, 1700]


def grey(number, hw=(16, 24)):
    return np.full((*hw, 3), 4 * number, np.uint8)


def number(frame):
    return round(frame.image.mean() / 4)


def numbers(frames):
    return [number(frame) for frame in frames]


def write_clip(
    path,
    images,
    *,
    stamps_ms=None,
    codec="png",
    pix_fmt="rgb24",
    array_format="rgb24",
    container=None,
    metadata=None,
    **codec_settings,
):
    """Write a clip of 10 frames a second, or with the given time stamps; PNG in QuickTime is lossless and all key."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV is built without the encoder {codec}")
    with av.open(str(path), "w", options=container or {}) as output:
        output.metadata.update(metadata or {})
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in codec_settings.items():
            setattr(stream.codec_context, name, value)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=array_format)
            frame.pts = stamps_ms[i] if stamps_ms else 100 * i
            frame.time_base = Fraction(1, 1000)
            for name, value in codec_settings.items():
                if name.startswith("color"):
                    setattr(frame, name, value)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_audio(path, cover=False):
    with av.open(str(path), "w") as output:
        audio = output.add_stream("aac", rate=8000, layout="mono")
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            output.mux(picture.encode(av.VideoFrame.from_ndarray(grey(9, (32, 32)), format="rgb24")))
            output.mux(picture.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        output.mux(audio.encode(sound))
        output.mux(audio.encode())
    return path


def packet_places(path):
    """Position and size in bytes of each packet."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def overwrite(path, places):
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    return path


# Time


def test_every_frame_of_a_variable_rate_clip_comes_with_its_own_time(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(7)], stamps_ms=[500 + ms for ms in VFR_MS])
    frames = list(read_frames(path))
    assert numbers(frames) == [0, 1, 2, 3, 4, 5, 6]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4, 5, 6]
    assert [frame.time_s for frame in frames] == [0, 0.1, 0.25, 0.26, 0.9, 1.0, 1.7]
    assert all(frame.image.dtype == np.uint8 and frame.image.shape == (16, 24, 3) for frame in frames)
    assert frames[0].name is None


@pytest.mark.parametrize(
    ("fps", "taken"),
    [
        (0.5, [0]),
        (1, [0, 5]),  # 1.7 s has not reached 2 s
        (2, [0, 4, 5, 6]),  # 0.9 reaches 0.5, 1.0 reaches 1.0, 1.7 reaches 1.5
        (4, [0, 2, 4, 5, 6]),  # 0.26 is still before 0.5
        (1000, [0, 1, 2, 3, 4, 5, 6]),  # nothing comes twice
    ],
)
def test_sampling_takes_the_first_frame_to_reach_each_multiple_of_the_period(tmp_path, fps, taken):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(7)], stamps_ms=VFR_MS)
    frames = list(read_frames(path, fps=fps))
    assert numbers(frames) == taken
    assert [frame.time_s for frame in frames] == [VFR_MS[i] / 1000 for i in taken]
    assert [frame.index for frame in frames] == list(range(len(taken)))


def test_time_stamps_rounded_to_milliseconds_lose_no_frame_at_the_rate_of_the_source(tmp_path):
    stamps_ms = [1000 * i // 30 for i in range(30)]
    images = [grey(i) for i in range(30)]
    path = write_clip(tmp_path / "clip.mkv", images, stamps_ms=stamps_ms, **LOSSLESS_MATROSKA)
    assert numbers(read_frames(path, fps=30)) == list(range(30))
    assert numbers(read_frames(path, fps=10)) == list(range(0, 30, 3))


def test_a_bare_stream_without_time_stamps_counts_on_at_its_nominal_rate(tmp_path):
    images = [grey(i, (32, 32)) for i in range(5)]
    path = write_clip(tmp_path / "clip.h264", images, codec="libx264", pix_fmt="yuv420p")
    with av.open(str(path)) as container:
        assert all(frame.pts is None for frame in container.decode(video=0))
    rate = describe_video(path).fps
    assert [frame.time_s for frame in read_frames(path)] == pytest.approx([i / rate for i in range(5)])


def test_time_goes_on_where_joined_recordings_begin_their_stamps_anew(tmp_path):
    images = [grey(5 * i, (32, 32)) for i in range(5)]
    part = write_clip(tmp_path / "part.ts", images, codec="mpeg4", pix_fmt="yuv420p")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    times = [frame.time_s for frame in read_frames(joined)]
    assert times == pytest.approx([i / 10 for i in range(10)])
    assert len(list(read_frames(joined, fps=5))) == 5


def test_stop_ends_the_reading_between_the_samples_without_a_warning(tmp_path, caplog):
    images = [grey(i) for i in range(20)]
    first, *others = map(Image.fromarray, images)
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=100)
    for source in (write_clip(tmp_path / "clip.mov", images), tmp_path / "clip.gif"):
        asked = []

        def at_the_eighth(asked=asked):
            asked.append(True)
            return len(asked) == 8

        assert numbers(read_frames(source, fps=0.1, stop=at_the_eighth)) == [0]
        assert len(asked) == 8
        assert not list(read_frames(source, stop=lambda: True))
    assert not caplog.records


def test_max_frames_ends_the_stream_after_sampling(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)])
    assert numbers(read_frames(path, max_frames=3)) == [0, 1, 2]
    assert numbers(read_frames(path, fps=5, max_frames=3)) == [0, 2, 4]
    assert len(list(read_frames(path, max_frames=100))) == 12


# Containers and codecs


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mp4", "mpeg4", "yuv420p"),
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mp4", "libx265", "yuv420p"),
        ("clip.webm", "libvpx", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.ts", "libx264", "yuv420p"),
        ("clip.mkv", "ffv1", "yuv422p10le"),
    ],
)
def test_common_codecs_yield_all_frames_in_order(tmp_path, name, codec, pix_fmt):
    path = write_clip(tmp_path / name, [grey(5 * i, (64, 64)) for i in range(8)], codec=codec, pix_fmt=pix_fmt)
    frames = list(read_frames(path))
    assert [frame.image.mean() for frame in frames] == pytest.approx([20 * i for i in range(8)], abs=3)
    assert [frame.time_s for frame in frames] == pytest.approx([i / 10 for i in range(8)], abs=1e-3)


def test_a_live_recording_without_duration_is_read_to_its_end(tmp_path):
    path = write_clip(
        tmp_path / "live.webm",
        [grey(5 * i, (32, 32)) for i in range(8)],
        codec="libvpx",
        pix_fmt="yuv420p",
        container={"live": "1"},
    )
    info = describe_video(path)
    assert (info.duration_s, info.num_frames, info.codec) == (None, None, "vp8")
    assert len(list(read_frames(path))) == 8


def test_a_clip_of_one_frame_is_a_clip(tmp_path):
    (frame,) = read_frames(write_clip(tmp_path / "clip.mov", [grey(7)]), fps=2)
    assert (number(frame), frame.index, frame.time_s) == (7, 0, 0.0)


def test_titles_in_another_encoding_do_not_stop_a_video(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", [grey(3)], metadata={"title": "holiday"}, **LOSSLESS_MATROSKA)
    path.write_bytes(path.read_bytes().replace(b"holiday", b"holid\xff\xfe"))
    assert numbers(read_frames(path)) == [3]


# Rotation, aspect, dynamic range

MATRICES = {  # QuickTime: x' = a x + c y, y' = b x + d y; written a b u, c d v, x y w
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


def turn_clockwise(path, degrees):
    """Patch the display matrix of the track header (ISO 14496-12, 8.3.2): 40 bytes behind the box's name."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (65536 * value for value in MATRICES[degrees])
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_a_phone_video_is_turned_upright(tmp_path, degrees, corner):
    image = np.zeros((16, 24, 3), np.uint8)
    image[:4, :4] = 255  # clockwise, the top left corner goes to the top right, and on
    path = turn_clockwise(write_clip(tmp_path / "clip.mov", [image]), degrees)
    (frame,) = read_frames(path)
    assert frame.image.shape == ((16, 24, 3) if degrees == 180 else (24, 16, 3))
    assert frame.image[corner].tolist() == [255, 255, 255]
    assert frame.image.mean() == pytest.approx(image.mean())
    assert frame.image.flags.c_contiguous
    info = describe_video(path)
    assert (info.height, info.width) == frame.image.shape[:2]


def test_wide_pixels_are_made_square_before_turning(tmp_path):
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, :6] = 255
    path = write_clip(tmp_path / "clip.mov", [image], sample_aspect_ratio=Fraction(2, 1))
    (frame,) = read_frames(path)
    assert frame.image.shape == (16, 48, 3)
    assert frame.image[8, [0, 10, 13, 47], 0].tolist() == [255, 255, 0, 0]  # the edge moved from 6 to 12
    turn_clockwise(path, 90)
    (frame,) = read_frames(path)
    assert frame.image.shape == (48, 16, 3)
    assert frame.image[[0, 10, 13, 47], 8, 0].tolist() == [255, 255, 0, 0]
    assert describe_video(path).height == 48


def pq_code(nits):
    """SMPTE ST 2084, the encoding direction."""
    y = (nits / 10_000) ** 0.1593017578125
    return round(65535 * ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375)


def srgb_code(light):
    return 255 * (1.055 * light ** (1 / 2.4) - 0.055)


def write_deep_clip(path, codes, **tags):
    """Write one frame of 16-bit RGB columns, 8 pixels each."""
    image = np.repeat(np.array(codes, np.uint16)[None], 16, axis=0).repeat(8, axis=1)
    return write_clip(path, [image], codec="ffv1", pix_fmt="gbrp16le", array_format="rgb48le", **tags)


def columns(path):
    (frame,) = read_frames(path)
    return frame.image[8, 4::8].astype(int)


def test_perceptual_quantiser_video_keeps_its_mid_tones_and_rolls_off_its_highlights(tmp_path):
    nits = [0, 5, 36, 100, 203, 400, 1000]
    path = write_deep_clip(tmp_path / "hdr.mkv", [[pq_code(value)] * 3 for value in nits], color_trc=16)
    shown = columns(path)[:, 1]
    assert shown[0] == 0
    assert shown[1:4] == pytest.approx([srgb_code(value / 203) for value in (5, 36, 100)], abs=1)
    assert 225 < shown[4] < shown[5] < 255 == shown[6]


def test_hybrid_log_gamma_video_meets_the_same_tones(tmp_path):
    # ITU-R BT.2408, table 1: a white sheet of 203 nits has signal 75 %, an 18 % grey card of 26 nits 38 %.
    path = write_deep_clip(tmp_path / "hdr.mkv", [[0] * 3, [round(65535 * 0.38)] * 3, [49151] * 3], color_trc=18)
    quantised = write_deep_clip(tmp_path / "pq.mkv", [[0] * 3, [pq_code(26)] * 3, [pq_code(203)] * 3], color_trc=16)
    assert columns(path) == pytest.approx(columns(quantised), abs=2)


def test_wide_gamut_red_becomes_the_screens_red(tmp_path):
    red = [0.6274, 0.0691, 0.0164]  # ITU-R BT.2087: red of BT.709 in BT.2020
    path = write_deep_clip(tmp_path / "hdr.mkv", [[pq_code(60 * value) for value in red]], color_trc=16)
    assert columns(path)[0] == pytest.approx([srgb_code(60 / 203), 0, 0], abs=2)


def test_deep_video_of_standard_range_is_only_scaled(tmp_path):
    path = write_deep_clip(tmp_path / "deep.mkv", [[0] * 3, [128 * 257] * 3, [65535] * 3])
    assert columns(path)[:, 0] == pytest.approx([0, 128, 255], abs=1)


# Damage


def test_damaged_packets_cost_their_own_frames_only(tmp_path, caplog):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)])
    places = packet_places(path)
    overwrite(path, [places[5], places[9]])
    with caplog.at_level(logging.WARNING):
        frames = list(read_frames(path))
    assert numbers(frames) == [0, 1, 2, 3, 4, 6, 7, 8, 10, 11]
    assert frames[5].time_s == 0.6
    assert "skipped 2 damaged packets" in caplog.text


def test_a_video_cut_short_behind_its_index_yields_what_is_there(tmp_path, caplog):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)], container={"movflags": "faststart"})
    position, size = packet_places(path)[7]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    with caplog.at_level(logging.WARNING):
        assert numbers(read_frames(path)) == [0, 1, 2, 3, 4, 5, 6]
    assert "may be cut short" in caplog.text


def test_a_whole_video_gives_no_warning(tmp_path, caplog):
    for name, settings in (("clip.mov", {}), ("clip.mkv", LOSSLESS_MATROSKA), ("clip.avi", LOSSLESS_MATROSKA)):
        images = [grey(i) for i in range(7)]
        path = write_clip(tmp_path / name, images, stamps_ms=[900 + ms for ms in VFR_MS], **settings)
        assert len(list(read_frames(path))) == 7
    assert not caplog.records


def test_a_video_cut_short_before_its_index_names_the_file_and_the_way_out(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)])
    path.write_bytes(path.read_bytes()[: packet_places(path)[7][0]])
    for read in (describe_video, lambda path: list(read_frames(path))):
        with pytest.raises(VideoError, match=r"clip\.mov cannot be opened .* cut short before its index"):
            read(path)


def test_a_video_without_one_readable_frame_is_an_error(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(4)])
    overwrite(path, packet_places(path))
    for read in (describe_video, lambda path: list(read_frames(path))):
        with pytest.raises(VideoError, match=r"no frame of .*clip\.mov could be decoded"):
            read(path)


def test_an_unknown_codec_is_named_as_the_reason(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(1)])
    path.write_bytes(path.read_bytes().replace(b"png ", b"zzz1"))
    with pytest.raises(VideoError, match="no decoder"):
        list(read_frames(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.mp4", b"no video at all\n" * 40, "cannot be opened"),
        ("notes.txt", b"no video at all\n" * 40, "text file"),
        ("noise.mp4", np.random.default_rng(1).bytes(20_000), "cannot be opened"),
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "broken.png"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        list(read_frames(path))
    with pytest.raises(VideoError, match=message):
        describe_video(path)


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_no_video_even_with_a_cover_picture(tmp_path, cover):
    path = write_audio(tmp_path / "sound.mp4", cover)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == cover
    with pytest.raises(VideoError, match=r"no video stream .*audio"):
        list(read_frames(path))


def test_a_playlist_cannot_make_the_reader_open_another_file(tmp_path):
    write_clip(tmp_path / "secret.mov", [grey(1)])
    playlist = tmp_path / "upload.mp4"
    playlist.write_text("ffconcat version 1.0\nfile secret.mov\n")
    with av.open(str(playlist)) as container:
        assert len(list(container.decode(video=0))) == 1  # so ffmpeg does it unless told not to
    with pytest.raises(VideoError, match=r"upload\.mp4"):
        list(read_frames(playlist))


# Animated images


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animated_image_keeps_its_own_durations(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    first, *rest = [Image.fromarray(grey(10 * i)) for i in range(1, 6)]
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=[100, 200, 0, 50, 300], **options)
    frames = list(read_frames(path))
    assert numbers(frames) == [10, 20, 30, 40, 50]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.3, 0.4, 0.45])  # 0 counts as 100 ms
    assert numbers(read_frames(path, fps=5)) == [10, 30, 40]  # 0.3 reaches 0.2, 0.4 reaches 0.4
    assert numbers(read_frames(path, max_frames=2)) == [10, 20]
    info = describe_video(path)
    assert (info.width, info.height, info.num_frames, info.codec) == (24, 16, 5, suffix)


def test_the_poster_of_an_animated_png_is_no_frame(tmp_path):
    path = tmp_path / "moving.png"
    first, *rest = [Image.fromarray(grey(10 * i)) for i in range(1, 5)]
    first.save(path, save_all=True, append_images=rest, duration=200, default_image=True)
    assert numbers(read_frames(path)) == [20, 30, 40]
    assert describe_video(path).num_frames == 3


def test_the_pages_of_a_document_are_no_frames(tmp_path):
    path = tmp_path / "pages.tif"
    Image.fromarray(grey(1)).save(path, save_all=True, append_images=[Image.fromarray(grey(2))])
    assert numbers(read_frames(path)) == [1]


def test_an_image_is_known_by_its_content_not_its_name(tmp_path):
    path = tmp_path / "moving.mp4"
    Image.fromarray(grey(5)).save(path, "gif", save_all=True, append_images=[Image.fromarray(grey(9))], duration=500)
    assert [(number(frame), frame.time_s) for frame in read_frames(path)] == [(5, 0.0), (9, 0.5)]


# Still images, folders, lists

ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6  # the camera was held upright: turn clockwise to show


@pytest.mark.parametrize(
    ("name", "image", "options", "pixel", "hw"),
    [
        ("grey.png", Image.new("L", (24, 16), 90), {}, (90, 90, 90), (16, 24)),
        ("deep.png", Image.fromarray(np.full((16, 24), 200 * 257, np.uint16)), {}, (200, 200, 200), (16, 24)),
        ("alpha.png", Image.new("RGBA", (24, 16), (255, 0, 0, 128)), {}, (255, 127, 127), (16, 24)),
        ("palette.png", Image.new("RGB", (24, 16), (10, 200, 30)).quantize(4), {}, (10, 200, 30), (16, 24)),
        ("print.tif", Image.new("CMYK", (24, 16), (0, 255, 0, 0)), {}, (255, 0, 255), (16, 24)),
        ("wide.png", Image.new("RGB", (10_000, 4), (1, 2, 3)), {}, (1, 2, 3), (4, 10_000)),
        ("upright.png", Image.new("RGB", (24, 16), (1, 2, 3)), {"exif": ORIENTED}, (1, 2, 3), (24, 16)),
    ],
)
def test_a_still_image_of_any_kind_becomes_one_rgb_frame(tmp_path, name, image, options, pixel, hw):
    path = tmp_path / name
    image.save(path, **options)
    (frame,) = read_frames(str(path))
    assert frame.image.shape == (*hw, 3)
    assert frame.image[1, 1].tolist() == pytest.approx(pixel, abs=1)
    assert (frame.image.dtype, frame.index, frame.time_s, frame.name) == (np.uint8, 0, 0.0, name)
    info = describe_video(path)
    assert (info.height, info.width, info.num_frames) == (*hw, 1)


def test_a_folder_is_read_in_natural_order_without_what_is_no_image(tmp_path):
    for i in (10, 2, 1, 33):
        Image.fromarray(grey(i)).save(tmp_path / f"frame{i}.png")
    Image.fromarray(grey(3, (8, 8))).save(tmp_path / "FRAME3.BMP")
    Image.fromarray(grey(50)).save(tmp_path / ".frame0.png")
    (tmp_path / "poses.txt").write_text("0 0 0")
    (tmp_path / "frame5.png").mkdir()
    frames = list(read_frames(tmp_path))
    assert numbers(frames) == [1, 2, 3, 10, 33]
    assert [frame.name for frame in frames] == ["frame1.png", "frame2.png", "FRAME3.BMP", "frame10.png", "frame33.png"]
    assert [frame.image.shape[:2] for frame in frames] == [(16, 24), (16, 24), (8, 8), (16, 24), (16, 24)]
    assert [frame.time_s for frame in frames] == [0, 1, 2, 3, 4]


def test_fps_is_the_clock_of_a_folder_and_drops_nothing(tmp_path):
    for i in range(5):
        Image.fromarray(grey(i)).save(tmp_path / f"{i}.png")
    assert [frame.time_s for frame in read_frames(tmp_path, fps=4)] == [0, 0.25, 0.5, 0.75, 1.0]
    assert numbers(read_frames(tmp_path, fps=4, max_frames=3)) == [0, 1, 2]


def test_a_list_may_mix_paths_and_arrays(tmp_path):
    path = tmp_path / "four.png"
    Image.fromarray(grey(4)).save(path)
    frames = list(read_frames([grey(9), str(path), path, grey(2)[..., 0]], fps=2))
    assert numbers(frames) == [9, 4, 4, 2]
    assert [frame.name for frame in frames] == [None, "four.png", "four.png", None]
    assert [frame.time_s for frame in frames] == [0, 0.5, 1.0, 1.5]
    assert frames[3].image.shape == (16, 24, 3)


def test_a_broken_image_is_named_after_the_ones_before_it_came_out(tmp_path):
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    assert len(list(read_frames(tmp_path, max_frames=2))) == 2
    frames = read_frames(tmp_path)
    assert [next(frames).name, next(frames).name] == ["0.png", "1.png"]
    with pytest.raises(VideoError, match=r"2\.png is not a readable image"):
        next(frames)


def test_an_image_that_would_fill_the_memory_is_refused_unopened(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(path)
    for read in (read_frames, describe_video, lambda path: list(read_frames([path]))):
        with pytest.raises(VideoError, match=r"bomb\.png is too large an image"):
            read(path)


# What is wrong at the call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be .* got 0"),
        ({"fps": -1.0}, "fps must be"),
        ({"fps": math.nan}, "fps must be"),
        ({"fps": math.inf}, "fps must be"),
        ({"max_frames": 0}, "max_frames must be at least 1.* got 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        read_frames([grey(0)], **options)


def test_bad_sources_are_refused_at_the_call(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "readme.md").touch()
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.png").touch()
    for source, message in [
        (tmp_path / "nowhere.mp4", r"nowhere\.mp4 does not exist"),
        (empty, r"empty\.mp4 is empty \(0 bytes\)"),
        (folder, "folder .* holds no images"),
        (images, r"0\.png is empty \(0 bytes\)"),
        ([], "list of images is empty"),
        ([tmp_path / "nowhere.png"], r"nowhere\.png does not exist"),
        ([grey(0), grey(0).astype(np.float32)], "item 1 .* uint8 array .* float32"),
        ([None], "item 0 .* NoneType"),
    ]:
        with pytest.raises(VideoError, match=message):
            read_frames(source)
    with pytest.raises(TypeError, match=r"path or a list .* got int"):
        read_frames(7)
    with pytest.raises(VideoError, match="item 1 of the list"):
        list(read_frames([grey(0), np.zeros((4, 4, 7), np.uint8)]))
    with pytest.raises(VideoError, match="not a file"):
        describe_video(folder)


# Resources


def open_paths():
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc to list the open files")
    paths = []
    for descriptor in descriptors.iterdir():
        try:
            paths.append(str(descriptor.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return paths


def test_a_file_is_closed_with_its_generator_and_on_errors(tmp_path):
    video = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)])
    animation = tmp_path / "moving.gif"
    Image.fromarray(grey(1)).save(animation, save_all=True, append_images=[Image.fromarray(grey(9))])
    for path in (video, animation):
        frames = read_frames(path)
        assert str(path) not in open_paths()
        next(frames)
        assert str(path) in open_paths()
        frames.close()
        assert str(path) not in open_paths()
        frames = read_frames(path)
        next(frames)
        del frames
        assert str(path) not in open_paths()
        frames = read_frames(path, max_frames=1)
        assert len(list(frames)) == 1
        assert str(path) not in open_paths()
    describe_video(video)
    overwrite(video, packet_places(video))
    with pytest.raises(VideoError) as error:
        list(read_frames(video))
    assert str(video) not in open_paths()
    del error


def test_frames_already_used_are_not_kept(tmp_path):
    path = write_clip(tmp_path / "clip.mov", [grey(i) for i in range(30)])
    seen = []
    for frame in read_frames(path):
        seen.append(weakref.ref(frame.image))
        assert sum(image() is not None for image in seen) <= 2
    assert len(seen) == 30


def test_a_description_tells_what_the_header_holds(tmp_path):
    info = describe_video(write_clip(tmp_path / "clip.mov", [grey(i) for i in range(12)]))
    assert (info.width, info.height, info.num_frames, info.codec) == (24, 16, 12, "png")
    assert (info.duration_s, info.fps) == pytest.approx((1.2, 10.0))
