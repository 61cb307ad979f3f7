"""Evaluation of predictors whose errors are known by hand, of sequences with gaps, and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from streamvggt import Predictions, StreamVGGT, StreamVGGTConfig, encode_pose, unproject
from streamvggt.__main__ import main
from streamvggt.evaluate import EvaluationError, evaluate_clips, evaluate_sequence, evaluate_sequences
from streamvggt.policies import AnchorWindow, KeepAll
from streamvggt.predict import Keeping
from streamvggt.protocols import CLIPS, PROTOCOLS, SEQUENCE
from streamvggt.report import markdown
from streamvggt.scoring import Answer, Truth, iterate_closest_points, mean_scores, score, template_depth
from streamvggt.sequences import load_frames, open_sequence
from streamvggt.synthetic import SyntheticConfig, render_clips
from streamvggt.validation import Validation

H, W = 42, 56
DATA = Path(__file__).parents[2] / "shared" / "data"
POINTS = replace(SEQUENCE, parts=("points",))


def true_depth(num_frames):
    """A slope with a step: nothing that one number or plane would fit; metres."""
    y, x = np.mgrid[:H, :W]
    return np.stack([2 + x / W + 0.5 * y / H + (x > 30) + 0.1 * i for i in range(num_frames)])


def camera_path(num_frames):
    """Camera-to-world ``[S, 3, 4]``: a bent walk with turns."""
    i = np.arange(num_frames)
    turns = Rotation.from_euler("yx", np.stack([4.0 * i, 2.0 * i**2], -1), degrees=True).as_matrix()
    centers = np.stack([0.3 * i, 0.1 * np.sin(i), 0.05 * i**2], -1)
    return np.concatenate([turns, centers[..., None]], -1)


def write_sequence(folder, num_frames=4, *, poses=None, depth=True):
    """A folder of the generic layout whose frames are W x H, so that nothing is resampled or cropped."""
    (folder / "rgb").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(num_frames):
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(folder / "rgb" / f"{i:06d}.png")
    if depth:
        (folder / "depth").mkdir()
        for i, values in enumerate(true_depth(num_frames)):
            Image.fromarray((values * 1000).round().astype(np.uint16)).save(folder / "depth" / f"{i:06d}.png")
    poses = camera_path(num_frames) if poses is None else poses
    np.savetxt(folder / "poses.txt", poses.reshape(num_frames, 12), fmt="%.17g")
    meta = {"K": [50.0, 50.0, W / 2, H / 2], "depth_scale": 1000, "fps": 10}
    (folder / "meta.json").write_text(json.dumps(meta))
    return open_sequence(folder)


def knowing(sequence, change=lambda depth, extrinsics: (depth, extrinsics), *, points=lambda points: points):
    """A predictor that knows the truth and says it as ``change`` and ``points`` leave it, in units of three metres."""
    _, depth, _, extrinsics, intrinsics = (x.double() for x in load_frames(sequence, range(len(sequence)), (H, W)))
    first = torch.cat([extrinsics[0], torch.tensor([[0, 0, 0, 1.0]])])
    relative = extrinsics @ torch.linalg.inv(first)
    depth, relative = change(depth / 3, torch.cat([relative[..., :3], relative[..., 3:] / 3], -1))

    def predict(images):
        assert images.shape == (1, len(depth), 3, H, W)
        pose_enc = encode_pose(relative, intrinsics, (H, W))[None].float()
        cloud = points(unproject(depth, relative, intrinsics))[None].float()
        ones = torch.ones(1, *depth.shape)
        return Predictions(pose_enc, pose_enc[None], depth[None].float(), ones, cloud, ones)

    return predict


@pytest.fixture
def sequence(tmp_path):
    return write_sequence(tmp_path / "walk")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return StreamVGGT(StreamVGGTConfig.tiny()).eval()


def test_who_knows_the_truth_makes_no_error_in_any_unit(sequence):
    result = evaluate_sequence(knowing(sequence), sequence, width=W)
    for row in ("model", "model, point head"):
        scores = result["rows"][row]
        assert scores["accuracy_mean"] < 1e-5 and scores["completeness_mean"] < 1e-5
        assert scores["normal_consistency_mean"] == pytest.approx(1, abs=1e-5)
    scores = result["rows"]["model"]
    for align in ("median", "scale", "scale_shift"):
        assert scores[f"abs_rel_{align}"] < 1e-6
        assert scores[f"delta_1_25_{align}"] == 1
    assert scores["rra_5"] == scores["rta_5"] == scores["auc_30"] == 1
    assert scores["ate_rmse"] < 1e-5 and scores["rpe_translation_rmse"] < 1e-5
    assert scores["rpe_rotation_rmse_deg"] < 1e-3
    assert scores["num_pixels"] == 4 * H * W
    assert result["frames"] == [0, 1, 2, 3] and result["image_hw"] == [H, W] and result["num_skipped"] == 0


def test_one_frame_at_twice_the_depth_is_an_error_of_the_sequence_only(sequence):
    def change(depth, extrinsics):
        return torch.cat([depth[:3], 2 * depth[3:]]), extrinsics

    result = evaluate_sequence(knowing(sequence, change), sequence, width=W)
    scores = result["rows"]["model"]
    assert scores["abs_rel_median"] < 1e-6
    # The best scale is that of the three right frames, which outweigh the fourth; it is off by 100 %.
    assert scores["abs_rel_scale"] == pytest.approx(0.25, abs=1e-5)
    assert scores["delta_1_25_scale"] == 0.75
    np.testing.assert_allclose(result["per_frame"]["abs_rel_scale"], [0, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(result["per_frame"]["abs_rel_median"], 0, atol=1e-6)


def test_a_camera_turned_by_ten_and_a_half_degrees_is_counted_so(tmp_path):
    sequence = write_sequence(tmp_path / "pair", 2)

    def change(depth, extrinsics):
        turn = torch.from_numpy(Rotation.from_euler("y", 10.5, degrees=True).as_matrix())
        return depth, torch.stack([extrinsics[0], turn @ extrinsics[1]])

    result = evaluate_sequence(knowing(sequence, change), sequence, width=W)
    scores = result["rows"]["model"]
    assert (scores["rra_5"], scores["rra_15"], scores["rta_5"]) == (0, 1, 1)
    assert scores["auc_30"] == pytest.approx(20 / 30)  # right at 11, 12, ..., 30 degrees
    assert scores["rpe_rotation_rmse_deg"] == pytest.approx(10.5, abs=1e-3)
    assert scores["ate_rmse"] < 1e-6  # the centre has not moved
    assert result["per_frame"]["rotation_deg"] == [None, pytest.approx(10.5, abs=1e-3)]
    assert result["per_frame"]["direction_deg"] == [None, pytest.approx(0, abs=1e-3)]


def test_the_point_head_is_judged_apart_from_depth_and_camera(sequence):
    def mirrored(points):
        return points * torch.tensor([1.0, 1, -1])

    rows = evaluate_sequence(knowing(sequence, points=mirrored), sequence, width=W)["rows"]
    assert rows["model"]["accuracy_mean"] < 1e-5
    assert rows["model, point head"]["accuracy_mean"] > 0.05
    assert "ate_rmse" not in rows["model, point head"]


def test_trivial_answers_score_what_a_hand_calculation_gives(sequence):
    rows = evaluate_sequence(None, sequence, width=W)["rows"]
    assert list(rows) == ["constant depth", "depth template", "static camera", "constant velocity"]
    depth = (true_depth(4) * 1000).round() / 1000
    median = np.median(depth.reshape(4, -1), axis=1)[:, None, None]
    assert rows["constant depth"]["abs_rel_median"] == pytest.approx(np.mean(np.abs(median - depth) / depth), abs=1e-6)
    centers = camera_path(4)[..., 3]
    spread = np.sqrt(np.mean(np.sum((centers - centers.mean(0)) ** 2, -1)))
    assert rows["static camera"]["ate_rmse"] == pytest.approx(spread, rel=1e-5)
    assert rows["static camera"]["auc_30"] == 0
    assert 0 < rows["constant velocity"]["ate_rmse"] < spread
    assert rows["constant depth"]["completeness_mean"] > 0.1


def test_the_template_fits_any_frame_and_is_further_at_the_top():
    template = template_depth((70, 224))
    assert template.shape == (70, 224) and template.min() > 0
    assert template[:20].mean() > 1.1 * template[-20:].mean()  # floors are near, at the bottom of pictures


def test_a_world_that_begins_far_away_changes_no_score(tmp_path):
    far = camera_path(4)
    far[..., 3] += [500_000.0, -4_000_000.0, 90.0]
    protocol = replace(SEQUENCE, parts=("camera", "points"))
    sequences = write_sequence(tmp_path / "near"), write_sequence(tmp_path / "far", poses=far)
    near_rows, far_rows = (evaluate_sequence(None, one, protocol, width=W)["rows"] for one in sequences)
    for answer, scores in near_rows.items():
        assert far_rows[answer] == pytest.approx(scores, rel=1e-5, abs=1e-6)


def test_what_a_sequence_lacks_is_not_scored(tmp_path):
    no_depth = write_sequence(tmp_path / "no_depth", depth=False)
    rows = evaluate_sequence(knowing(no_depth, lambda depth, e: (depth + 1, e)), no_depth, width=W)["rows"]
    assert list(rows) == ["model", "static camera", "constant velocity"]
    assert "auc_30" in rows["model"] and "abs_rel_median" not in rows["model"]

    still = write_sequence(tmp_path / "still", poses=np.tile(camera_path(1), (4, 1, 1)))
    scores = evaluate_sequence(knowing(still), still, width=W)["rows"]["model"]
    assert scores["rra_5"] == 1
    assert not {"ate_rmse", "rpe_translation_rmse", "rta_15", "auc_30"} & set(scores)


def test_pictures_with_depth_and_no_poses_get_depth_scores_alone(tmp_path):
    for name in ("nyu_images", "nyu_depths"):
        (tmp_path / name).mkdir()
    for i, depth in enumerate(true_depth(3)):
        Image.fromarray(np.full((H, W, 3), 50 * i, np.uint8)).save(tmp_path / "nyu_images" / f"{i}.png")
        np.save(tmp_path / "nyu_depths" / f"{i}.npy", depth)
    result = evaluate_sequence(None, open_sequence(tmp_path), PROTOCOLS["nyuv2-frame-depth"], width=W)
    assert result["layout"] == "nyu" and result["num_frames"] == 3
    assert set(result["rows"]) == {"constant depth", "depth template"}
    assert set(result["rows"]["constant depth"]) == {
        "abs_rel_median", "delta_1_25_median", "rmse_median", "num_pixels",
    }  # fmt: skip


def test_unreadable_frames_are_left_out_and_counted(tmp_path, caplog):
    sequence = write_sequence(tmp_path / "gaps", 6)
    (tmp_path / "gaps" / "rgb" / "000000.png").write_bytes(b"no picture")
    (tmp_path / "gaps" / "depth" / "000002.png").write_bytes(b"no picture")
    report = evaluate_sequences(None, [sequence], width=W)
    result = report["sequences"][0]
    assert result["frames"] == [1, 3, 4, 5] and result["num_skipped"] == 2
    assert "000000.png" in caplog.text and "000002.png" in caplog.text
    assert "4 frames, 2 unreadable left out" in markdown(report)
    for path in (tmp_path / "gaps" / "depth").iterdir():
        path.write_bytes(b"")
    with pytest.raises(EvaluationError, match=r"gaps: none of 6 frames can be read \(.*000005"):
        evaluate_sequence(None, sequence, width=W)
    with pytest.raises(EvaluationError, match=r"gaps: none of 0 frames.*6 frames and the protocol 'late' starts at 30"):
        evaluate_sequence(None, sequence, replace(SEQUENCE, name="late", first_frame=30), width=W)


def test_a_sequence_that_fails_is_named_and_does_not_stop_the_others(tmp_path):
    good, bad = write_sequence(tmp_path / "good"), write_sequence(tmp_path / "bad")
    calls = iter([1.0, float("nan")])
    right = knowing(good)

    def sometimes(images):
        said = right(images)
        said.depth[0, 2] *= next(calls)
        return said

    report = evaluate_sequences(sometimes, [good, bad], width=W)
    assert [one["name"] for one in report["sequences"]] == ["good"]
    assert "bad: depth of model is not finite in 1 of 4 frames, first in frame 2" in report["failures"]["bad"]
    assert report["mean"] == report["sequences"][0]["rows"]


def test_depth_beyond_the_limit_is_not_compared_and_predictions_are_cut():
    depth = np.array([[[1.0, 2.0, 80.0], [4.0, 5.0, 6.0]]])
    truth = Truth(depth, depth > 0, None, np.eye(3)[None], (2, 3))
    said = depth.copy()
    said[0, 1, 2] = 100  # 6 in truth; cut to 9
    protocol = replace(SEQUENCE, parts=("depth",), depth_alignments=("none",), max_depth=70, clip_max=9)
    scores = score(Answer(depth=said), truth, protocol)
    assert scores["num_pixels"] == 5
    assert scores["abs_rel_none"] == pytest.approx(0.5 / 5)
    assert scores["delta_1_25_none"] == pytest.approx(4 / 5)


def test_only_the_middle_square_counts_where_a_protocol_says_so(sequence):
    _, depth, valid, extrinsics, intrinsics = (x.numpy() for x in load_frames(sequence, range(4), (H, W)))
    truth = Truth(depth, valid, extrinsics, intrinsics, (H, W))
    points = truth.world_points.copy()
    points[:, :, :10] += 5
    assert score(Answer(world_points=points), truth, POINTS)["accuracy_mean"] > 0.1
    middle = score(Answer(world_points=points), truth, replace(POINTS, points_crop=28))
    assert middle["accuracy_mean"] < 1e-6


def test_clouds_are_drawn_from_the_same_pixels_so_that_truth_stays_exact(sequence):
    _, depth, valid, extrinsics, intrinsics = (x.numpy() for x in load_frames(sequence, range(4), (H, W)))
    truth = Truth(depth, valid, extrinsics, intrinsics, (H, W))
    for max_points in (500, 100_000):
        scores = score(Answer(world_points=truth.world_points), truth, replace(POINTS, max_points=max_points))
        assert scores["accuracy_mean"] < 1e-9 and scores["completeness_mean"] < 1e-9


def test_iterated_closest_points_find_a_small_motion():
    points = np.random.default_rng(0).uniform(-1, 1, (400, 3))  # about 0.15 apart
    turn = Rotation.from_rotvec([0.01, -0.015, 0.01])
    target = turn.apply(points) + np.array([0.01, 0.02, -0.01])
    outliers = np.array([[9.0, 9, 9], [-9, 9, 9]])
    found = iterate_closest_points(np.concatenate([points, outliers]), target, 0.1)
    np.testing.assert_allclose(found.rotation, turn.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(found.apply(points), target, atol=1e-9)
    far = iterate_closest_points(points + 50, target, 0.1)
    np.testing.assert_array_equal(far.apply(points), points)


def test_averages_weigh_by_pixels_only_where_the_protocol_says_so():
    scores = [
        {"abs_rel_scale": 0.1, "num_pixels": 100, "ate_rmse": 1.0},
        {"abs_rel_scale": 0.4, "num_pixels": 300},
        {"ate_rmse": 4.0},
    ]
    expected = {"abs_rel_scale": 0.25, "num_pixels": 400, "ate_rmse": 2.5}
    assert mean_scores(scores) == pytest.approx(expected)
    assert mean_scores(scores, weigh_pixels=True) == pytest.approx(expected | {"abs_rel_scale": 0.325})


@pytest.mark.parametrize(
    ("name", "available", "frames"),
    [
        ("sequence", 20, list(range(20))),
        ("sequence", 179, list(range(0, 179, 6))),
        ("7scenes-points", 1000, [0, 200, 400, 600, 800]),
        ("nrgbd-points", 1443, [0, 500, 1000]),
        ("bonn-depth", 400, list(range(30, 140))),
        ("kitti-depth", 300, list(range(110))),
        ("sintel-depth", 50, list(range(50))),
        ("scannet-camera", 2000, list(range(0, 270, 3))),
        ("tum-camera", 100, list(range(0, 100, 3))),
        ("bonn-depth", 10, []),
    ],
)
def test_protocols_take_the_published_frames(name, available, frames):
    assert PROTOCOLS[name].frames(available) == frames


def test_protocols_take_the_published_sequences():
    assert len(PROTOCOLS["7scenes-points"].sequences) == 18
    assert PROTOCOLS["7scenes-points"].includes("data/7scenes/chess/seq-03")
    assert not PROTOCOLS["7scenes-points"].includes("data/7scenes/chess/seq-04")
    assert PROTOCOLS["bonn-depth"].includes("rgbd_bonn_crowd3")
    assert len(PROTOCOLS["sintel-depth"].sequences) == 14
    assert PROTOCOLS["sequence"].includes("anything")
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.source.endswith(".")


def test_a_protocol_knows_its_sequences_from_inside_their_folder(tmp_path, monkeypatch):
    write_sequence(tmp_path / "chess" / "seq-03")
    monkeypatch.chdir(tmp_path / "chess")
    protocol = replace(SEQUENCE, sequences=("chess/seq-03",), parts=("camera",))
    assert len(evaluate_sequences(None, [open_sequence("seq-03")], protocol, width=W)["sequences"]) == 1


def test_validation_keeps_sequences_of_the_same_name_apart(tmp_path):
    for place, num_frames in (("a", 3), ("b", 4)):
        write_sequence(tmp_path / place / "walk", num_frames)
    validation = Validation.of_folders(W, [tmp_path / "a" / "walk", tmp_path / "b" / "walk"])
    frames = {name: clips.images.shape[1] for name, clips in validation._sets.items() if name != "synthetic"}
    assert frames == {"walk/walk": 3, "walk/walk_2": 4}


def test_a_protocol_without_a_matching_sequence_says_what_it_takes(sequence):
    with pytest.raises(EvaluationError, match=r"none of the sequences \(walk\).*bonn-depth.*crowd2"):
        evaluate_sequences(None, [sequence], PROTOCOLS["bonn-depth"])


def test_a_stream_and_a_batch_score_the_same(sequence, tiny):
    stream, batch = (evaluate_sequence(tiny, sequence, width=W, mode=mode)["rows"] for mode in ("stream", "batch"))
    assert stream["model"].keys() == batch["model"].keys()
    for name, value in stream["model"].items():
        assert value == pytest.approx(batch["model"][name], rel=1e-3, abs=1e-4), name


def test_what_a_stream_forgets_shows_and_a_batch_cannot_forget(sequence, tiny):
    forgetful = AnchorWindow(1, 1)
    whole, short = (
        evaluate_sequence(tiny, sequence, width=W, keeping=Keeping(p))["rows"] for p in (KeepAll(), forgetful)
    )
    assert abs(whole["model"]["ate_rmse"] - short["model"]["ate_rmse"]) > 1e-4
    with pytest.raises(ValueError, match="for streams, and a batch sees all frames"):
        evaluate_sequence(tiny, sequence, width=W, mode="batch", keeping=Keeping(forgetful))


def test_single_frames_do_not_see_each_other(sequence, tiny):
    alone = replace(SEQUENCE, parts=("depth",), single_frames=True, depth_alignments=("none",))
    whole = evaluate_sequence(tiny, sequence, alone, width=W)["per_frame"]["abs_rel_median"]
    for i in range(4):
        one = evaluate_sequence(tiny, sequence, replace(alone, first_frame=i, num_frames=1, stride=1), width=W)
        assert one["per_frame"]["abs_rel_median"] == pytest.approx([whole[i]], rel=1e-5)


def test_full_attention_runs_as_a_batch_and_refuses_to_stream(sequence):
    full = StreamVGGT(replace(StreamVGGTConfig.tiny(), attention="full"))
    assert "ate_rmse" in evaluate_sequence(full, sequence, width=W)["rows"]["model"]
    assert full.training  # as it was
    with pytest.raises(ValueError, match="cannot stream"):
        evaluate_sequence(full, sequence, width=W, mode="stream")


@pytest.fixture(scope="module")
def clips():
    return render_clips([1, 2], SyntheticConfig(num_frames=3, image_hw=(H, W), shadows=False, open_probability=0))


def test_clips_are_scored_one_by_one_and_averaged(clips, tiny):
    result = evaluate_clips(tiny, clips)
    assert (result["num_clips"], result["num_frames"], result["image_hw"]) == (2, 3, [H, W])
    assert set(result["rows"]) == {
        "model", "constant depth", "depth template", "static camera", "constant velocity", "points stay",
    }  # fmt: skip
    halves = [
        evaluate_clips(tiny, SimpleNamespace(**{k: getattr(clips, k)[b : b + 1] for k in FIELDS}), trivial=False)
        for b in (0, 1)
    ]
    for name in ("abs_rel_median", "abs_rel_scale", "auc_30", "ate_rmse"):
        values = [half["rows"]["model"][name] for half in halves]
        assert result["rows"]["model"][name] == pytest.approx(np.mean(values), rel=1e-4)
    assert list(halves[0]["rows"]) == ["model"]
    assert len(result["per_frame"]["abs_rel_median"]) == 3
    assert result["per_frame"]["rotation_deg"][0] is None
    json.dumps(result, allow_nan=False)


FIELDS = ("images", "depth", "valid", "extrinsics", "intrinsics")


def test_tracks_are_scored_in_synthetic_clips(clips, tiny):
    for mode in ("batch", "stream"):
        scores = evaluate_clips(tiny, clips, mode=mode, trivial=False)["rows"]["model"]
        assert 0 <= scores["average_jaccard"] <= 1 and 0 <= scores["delta_avg"] <= 1
    tracks = clips.tracks(0, 32, seed=0)
    truth = Truth(None, None, None, np.zeros((3, 3, 3)), (H, W), tracks.xy[0].numpy(), tracks.visible[0].numpy())
    perfect = score(Answer(tracks=truth.tracks, visible=truth.visible), truth, CLIPS)
    assert perfect == {"average_jaccard": 1, "delta_avg": 1, "occlusion_accuracy": 1}


def test_the_command_line_writes_table_json_and_plots(tmp_path, capsys):
    write_sequence(tmp_path / "data" / "a", 5)
    write_sequence(tmp_path / "data" / "b", depth=False)
    output, plots = tmp_path / "out.json", tmp_path / "plots"
    arguments = ["evaluate", "--model", "tiny", "--data", str(tmp_path / "data"), "--width", str(W), "--frames", "4"]
    arguments += ["--device", "cpu", "--synthetic", "7", "--json", str(output), "--plots", str(plots)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "### a (generic, 3 frames, 56x42)" in text  # every second of 5
    assert "### Mean of 2 sequences" in text and "### Made-up scenes (mean of 1 clips of 4 frames)" in text
    assert "| tiny | " in text and "| static camera | " in text and "nan" not in text

    report = json.loads(output.read_text())
    assert report["model"] == "tiny" and report["protocol"]["num_frames"] == 4 and report["failures"] == {}
    first, second = report["sequences"]
    assert (first["frames"], second["frames"]) == ([0, 2, 4], [0, 1, 2, 3])
    assert set(first) == {
        "name", "layout", "num_frames", "num_skipped", "frames", "image_hw", "rows", "per_frame",
    }  # fmt: skip
    mean = np.mean([one["rows"]["tiny"]["ate_rmse"] for one in report["sequences"]])
    assert report["mean"]["tiny"]["ate_rmse"] == pytest.approx(mean)
    assert report["synthetic"]["seeds"] == [7]
    assert {path.name for path in plots.iterdir()} == {"a_trajectory.png", "a_depth.png", "b_trajectory.png"}
    for path in plots.iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 200
            assert len(np.unique(np.asarray(image))) > 10  # something is drawn


def test_the_command_line_streams_made_up_scenes_so_that_a_policy_counts(tmp_path, capsys):
    scores = []
    for policy in ("all", "window:1,1"):
        output = tmp_path / "out.json"
        arguments = ["evaluate", "--model", "tiny", "--synthetic", "7", "--frames", "4", "--width", str(W)]
        assert main([*arguments, "--device", "cpu", "--policy", policy, "--json", str(output)]) == 0
        scores.append(json.loads(output.read_text())["synthetic"]["rows"]["tiny"]["ate_rmse"])
    assert abs(scores[0] - scores[1]) > 1e-4
    assert main([*arguments, "--device", "cpu", "--policy", "window:1,1", "--mode", "batch"]) == 1
    assert "take the mode stream" in capsys.readouterr().err


def test_the_command_line_fails_where_a_sequence_fails(tmp_path, capsys):
    write_sequence(tmp_path / "good")
    write_sequence(tmp_path / "bad")
    for path in (tmp_path / "bad" / "rgb").iterdir():
        path.write_bytes(b"")
    assert main(["evaluate", "--model", "none", "--data", str(tmp_path), "--width", str(W)]) == 1
    text = capsys.readouterr().out
    assert "### good" in text and "**bad is not scored:**" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "--data"),
        (["--model", "none", "--data", "no/such/folder"], "no/such/folder"),
        (["--model", "no/such.pt", "--synthetic", "1"], "no/such.pt"),
        (["--model", "tiny", "--synthetic", "1", "--width", "100"], "multiple of the patch size 14, got 100; use 98"),
    ],
)
def test_requests_that_cannot_be_met_are_one_clear_line(capsys, arguments, message):
    assert main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value"), [("--synthetic", "5-3"), ("--synthetic", "x"), ("--frames", "0"), ("--protocol", "some")]
)
def test_bad_options_are_refused(capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", option, value])
    assert stop.value.code == 2 and option in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "tum_fr3_cabinet").is_dir(), reason="the real sequences are not here")
def test_the_static_camera_of_a_real_sequence_scores_the_spread_of_its_path():
    protocol = replace(SEQUENCE, parts=("camera",), num_frames=8)
    result = evaluate_sequence(None, open_sequence(DATA / "tum_fr3_cabinet"), protocol)
    centers = np.loadtxt(DATA / "tum_fr3_cabinet" / "poses.txt").reshape(-1, 3, 4)[result["frames"], :, 3]
    spread = np.sqrt(np.mean(np.sum((centers - centers.mean(0)) ** 2, -1)))
    assert result["rows"]["static camera"]["ate_rmse"] == pytest.approx(spread, rel=1e-4)
