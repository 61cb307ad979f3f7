"""Clips of tiny folders whose pictures say where they come from; photographs for textures."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamvggt.data import ClipStream, Stage
from streamvggt.geometry import compose, invert_pose, project
from streamvggt.sequences import SequenceError, find_sequences, open_sequence
from streamvggt.sources import SequenceSource, load_photos
from streamvggt.synthetic import TextureBank

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
HW = (28, 42)
K = (60.0, 60.0, 31.5, 23.5)
FAR_AWAY = np.array([500_000.0, -4_000_000.0, 90.0])


def camera_to_world(i, origin, step=0.25):
    """Camera i: turned by i tenths of a radian about y, a step to the right of the one before."""
    c, s = np.cos(0.1 * i), np.sin(0.1 * i)
    center = origin + np.array([step * i, 0, 0.5])
    return np.array([[c, 0, s, center[0]], [0, 1, 0, center[1]], [-s, 0, c, center[2]]])


def write_sequence(folder, num_frames, *, depth=True, origin=(0, 0, 0), step=0.25, shade=0):
    """Frames whose gray tells the number: shade + 10 i; the depth is 2 m + a tenth a frame."""
    (folder / "rgb").mkdir(parents=True)
    for i in range(num_frames):
        Image.fromarray(np.full((48, 64, 3), shade + 10 * i, np.uint8)).save(folder / "rgb" / f"{i:06d}.png")
        if depth:
            (folder / "depth").mkdir(exist_ok=True)
            Image.fromarray(np.full((48, 64), 2000 + 100 * i, np.uint16)).save(folder / "depth" / f"{i:06d}.png")
    poses = [camera_to_world(i, np.array(origin), step) for i in range(num_frames)]
    (folder / "poses.txt").write_text("\n".join(" ".join(repr(float(x)) for x in p.reshape(-1)) for p in poses))
    (folder / "meta.json").write_text(json.dumps({"K": K, "depth_scale": 1000, "fps": 10}))
    return open_sequence(folder)


@pytest.fixture
def sequence(tmp_path):
    return write_sequence(tmp_path / "walk", 8)


def numbers(clips, shade=0):
    """Which frames a clip is made of, by their gray."""
    return ((clips.images[:, :, 0, 5, 5] * 255 - shade) / 10).round().long()


def test_clips_are_what_the_folder_holds_seen_from_the_first_frame(sequence):
    clips = SequenceSource([sequence], zoom=1.0).clips(range(20), 3, (1, 3), HW)
    assert clips.images.shape == (20, 3, 3, *HW) and clips.valid.all()
    frames = numbers(clips)
    strides = frames.diff(dim=1)
    assert torch.equal(strides[:, 0], strides[:, 1])
    assert set(strides[:, 0].tolist()) == {-3, -2, -1, 1, 2, 3}
    torch.testing.assert_close(clips.depth[:, :, 9, 9], 2 + frames / 10, atol=1e-4, rtol=0)
    for clip, order in enumerate(frames.tolist()):
        poses = [np.vstack([camera_to_world(i, np.zeros(3)), [0, 0, 0, 1]]) for i in order]
        expected = np.stack([np.linalg.inv(pose) @ poses[0] for pose in poses])[:, :3]
        np.testing.assert_allclose(clips.extrinsics[clip], expected, atol=1e-6)
    torch.testing.assert_close(clips.extrinsics[:, 0], torch.eye(3, 4).expand(20, 3, 4), atol=1e-7, rtol=0)


def test_a_world_that_begins_far_away_costs_no_digits(tmp_path):
    near, far = (write_sequence(tmp_path / name, 6, origin=at) for name, at in (("near", np.zeros(3)), ("far", FAR_AWAY)))  # fmt: skip  # noqa: E501
    a, b = (SequenceSource([s]).clips([1, 2, 3], 3, (1, 2), HW).extrinsics for s in (near, far))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_seed_means_the_same_clip_in_any_company(sequence):
    source = SequenceSource([sequence])
    together, alone = source.clips([7, 8], 3, (1, 2), HW), source.clips([8], 3, (1, 2), HW)
    for name, value in vars(alone).items():
        assert torch.equal(value[0], getattr(together, name)[1])


def test_zoom_changes_the_focal_length_as_much_as_the_picture_and_keeps_the_middle(tmp_path):
    folder = tmp_path / "marked"
    write_sequence(folder, 2)
    marked = np.zeros((48, 64, 3), np.uint8)
    marked[33:37, 45:49] = 255  # about pixel (46.5, 34.5): 15 right and 11 down of the principal point
    for i in range(2):
        Image.fromarray(marked).save(folder / "rgb" / f"{i:06d}.png")
    clips = SequenceSource([open_sequence(folder)], zoom=1.4).clips(range(30), 2, (1, 1), HW)
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(42.0), indexing="ij")
    zooms = []
    for image, intrinsics in zip(clips.images[:, 0, 0], clips.intrinsics[:, 0], strict=True):
        assert intrinsics[0, 0] == intrinsics[1, 1]
        assert intrinsics[0, 2].item() == pytest.approx(21, abs=1e-4)
        assert intrinsics[1, 2].item() == pytest.approx(14, abs=1e-4)
        seen = torch.stack([(image * x).sum(), (image * y).sum()]) / image.sum()
        expected = intrinsics[:2, 2] + intrinsics[0, 0] * torch.tensor([15.0, 11.0]) / 60
        torch.testing.assert_close(seen, expected, atol=0.1, rtol=0)
        zooms.append(intrinsics[0, 0].item())
    assert 1.2 < max(zooms) / min(zooms) <= 1.41
    assert torch.equal(clips.intrinsics[:, 0], clips.intrinsics[:, 1])


def test_sequences_are_chosen_as_often_as_they_have_frames_and_only_if_they_are_long_enough(tmp_path):
    long, short, stub = (write_sequence(tmp_path / str(n), n, shade=shade) for n, shade in ((9, 0), (3, 101), (2, 202)))
    source = SequenceSource([long, short, stub])
    first = source.clips(range(200), 3, (1, 4), HW).images[:, 0, 0, 5, 5] * 255
    assert not (first > 180).any()
    assert 30 <= (first > 95).sum() <= 70  # a quarter
    with pytest.raises(ValueError, match="4 frames with stride 3 need sequences of 10, the longest has 9"):
        source.clips([0], 4, (3, 4), HW)


def test_without_depth_nothing_is_valid_and_neighbouring_frames_are_a_few_hundredths_apart(tmp_path):
    sequence = write_sequence(tmp_path / "photos", 6, depth=False)
    clips = SequenceSource([sequence]).clips(range(5), 3, (2, 2), HW)
    assert not clips.valid.any() and (clips.depth == 0).all()
    steps = invert_pose(clips.extrinsics)[..., 3].diff(dim=1).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full((5, 2), 2 * 0.03), atol=1e-6, rtol=1e-5)
    kept = clips.normalized()
    assert torch.equal(kept.extrinsics, clips.extrinsics) and kept.pose_enc.isfinite().all()
    still = write_sequence(tmp_path / "still", 4, depth=False, step=0.0)
    assert SequenceSource([still]).clips([0], 2, (1, 1), HW).extrinsics.isfinite().all()


def test_a_first_frame_without_depth_takes_the_scale_of_the_others(tmp_path):
    folder = tmp_path / "walk"
    write_sequence(folder, 2)
    for i in (0, 1):
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(folder / "depth" / f"{i:06d}.png")
        clips = SequenceSource([open_sequence(folder)], zoom=1.0).clips(range(4), 2, (1, 1), HW)
        for clip in range(4):
            if clips.valid[clip, 0].any():
                assert clips.depth[clip, 0].max().item() in (pytest.approx(2.0), pytest.approx(2.1))
            elif i == 0:
                distance = clips.world_points[clip, 1].norm(dim=-1)
                assert distance.mean().item() == pytest.approx(1, abs=1e-5)
                # Motion and depth shrink alike.
                moved = invert_pose(clips.extrinsics[clip, 1])[:, 3].norm()
                assert (moved / clips.depth[clip, 1, 0, 0]).item() == pytest.approx(0.25 / 2.1, rel=1e-4)
        if i == 0:
            assert {bool(clips.valid[clip, 0].any()) for clip in range(4)} == {True, False}
        else:
            assert not clips.valid.any()


def test_frames_that_cannot_be_read_are_skipped_counted_and_named_once(sequence, caplog):
    broken = sequence.folder / "rgb" / "000003.png"
    broken.write_bytes(b"no picture")
    source = SequenceSource([sequence])
    with caplog.at_level(logging.WARNING):
        clips = source.clips(range(30), 3, (1, 2), HW)
    assert len(clips.images) == 30 and not (numbers(clips) == 3).any()
    assert source.skipped > 5
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and str(broken) in warnings[0]
    again = SequenceSource([sequence]).clips(range(30), 3, (1, 2), HW)
    assert torch.equal(clips.images, again.images)


def test_a_source_of_which_nothing_can_be_read_says_so_in_the_end(sequence):
    for path in (sequence.folder / "rgb").iterdir():
        path.write_bytes(b"")
    source = SequenceSource([sequence])
    with pytest.raises(SequenceError, match=r"100 clips in a row cannot be read; the last: .*\.png"):
        source.clips([0], 2, (1, 1), HW)
    assert source.skipped == 100


def test_sequences_without_poses_and_none_at_all_are_refused(sequence):
    with pytest.raises(ValueError, match="at least one sequence"):
        SequenceSource([])
    with pytest.raises(ValueError, match=r"zoom must be at least 1, got 0\.9"):
        SequenceSource([sequence], zoom=0.9)
    sequence.has_poses = False
    with pytest.raises(ValueError, match="walk"):
        SequenceSource([sequence])


def test_a_stream_mixes_them_in(sequence):
    stream = ClipStream((SequenceSource([sequence]),), (1.0,), (Stage(1.0, (3,), (1, 2), (HW,), 36),), 4)
    clips = stream[2]
    assert clips.images.shape == (2, 3, 3, *HW)  # 36 patches are two clips of three times six
    distance = clips.world_points[:, 0].norm(dim=-1).mean((1, 2))
    torch.testing.assert_close(distance, torch.ones(2))


@pytest.mark.skipif(not (REAL / "tum_fr1_rpy").is_dir(), reason="the recorded sequences are not here")
def test_points_of_a_recorded_desk_land_where_the_next_frame_sees_them():
    [sequence] = find_sequences(REAL / "tum_fr1_rpy")
    clips = SequenceSource([sequence]).clips(range(6), 2, (1, 3), (84, 112))
    to_first = invert_pose(clips.extrinsics[:, :1])
    torch.testing.assert_close(compose(clips.extrinsics[:, :1], to_first), torch.eye(3, 4).expand(6, 1, 3, 4))
    xy, z = project(clips.world_points[:, 0], clips.extrinsics[:, 1, None, None], clips.intrinsics[:, 1, None, None])
    x, y = xy.round().long().unbind(-1)
    inside = (x >= 0) & (x < 112) & (y >= 0) & (y < 84) & clips.valid[:, 0]
    there = clips.depth[:, 1].flatten(1).gather(1, (y.clamp(0, 83) * 112 + x.clamp(0, 111)).flatten(1)).view_as(z)
    known = inside & (there > 0)
    agree = ((z - there).abs() < 0.05 * z)[known].float().mean()
    assert known.float().mean() > 0.3 and agree > 0.85


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def test_photographs_are_found_shrunk_and_told_apart(tmp_path, caplog):
    save(tmp_path / "b" / "large.jpg", np.full((600, 900, 3), (200, 10, 10)))
    save(tmp_path / "a.png", np.full((20, 30), 77))
    save(tmp_path / "clear.png", np.zeros((20, 20, 4)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save(tmp_path / "turned.jpg", np.full((300, 600, 3), 90), exif=exif)
    (tmp_path / "broken.JPG").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        photos = load_photos(tmp_path)
    assert [photo.shape for photo in photos] == [(20, 30, 3), (256, 384, 3), (20, 20, 3), (512, 256, 3)]
    assert all(photo.dtype == np.uint8 for photo in photos)
    assert (photos[0] == 77).all() and (photos[2] == 255).all()
    assert np.abs(photos[1].astype(int) - (200, 10, 10)).max() < 6
    [warning] = [record.getMessage() for record in caplog.records]
    assert "1 of 5" in warning and "broken.JPG" in warning
    assert TextureBank(photos).num_textures == TextureBank().num_textures + 4


def test_a_limit_takes_photographs_from_all_over(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", np.full((4, 4, 3), i))
    assert [photo[0, 0, 0] for photo in load_photos(tmp_path, limit=4)] == [0, 2, 5, 7]
    assert len(load_photos(tmp_path, limit=10)) == 10
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_photos(tmp_path, limit=0)


def test_a_folder_without_photographs_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no photograph that can be read"):
            load_photos(folder)
