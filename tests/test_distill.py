"""What a network in training says is what it says in use; what it is told leaves frozen parts and teachers alone."""

from dataclasses import replace

import pytest
import torch

from streamvggt import StreamVGGTConfig
from streamvggt.data import ClipBatch
from streamvggt.distill import Pupil, matching_losses, teacher_losses, truth_losses
from streamvggt.losses import LossConfig, patch_matches
from streamvggt.model import StreamVGGT
from streamvggt.synthetic import SyntheticConfig, render_clips

MAPS = ("depth", "depth_conf", "world_points", "world_points_conf")
PLAIN = LossConfig(feature=1.0)


def config(attention="causal"):
    """A few parameters, with all the optional parts that the bundled model has."""
    return StreamVGGTConfig(
        image_size=56, embed_dim=16, depth=2, num_heads=2, encoder_depth=2, encoder_num_heads=2, encoder_dim=12,
        match_layer=1, match_dim=6, camera_depth=1, camera_num_heads=2, camera_reads_patches=True, dense_features=8,
        dense_channels=(4, 4, 8, 8), dense_layers=(0, 0, 1, 1), track=None, attention=attention,
    )  # fmt: skip


def pupil(attention="causal", seed=0):
    torch.manual_seed(seed)
    made = Pupil(StreamVGGT(config(attention)))
    for readout in (made.displacement, made.patch_depth):  # zero when fresh
        torch.nn.init.normal_(readout.weight, std=0.1)
    return made


@pytest.fixture(scope="module")
def clips():
    torch.set_num_threads(1)
    made = render_clips([3, 4], SyntheticConfig(num_frames=3, image_hw=(56, 56), shadows=False)).normalized()
    return ClipBatch(made.images, made.depth, made.valid, made.extrinsics, made.intrinsics)


FRAMES = torch.tensor([0, 2])


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_it_says_what_the_network_says_for_the_chosen_frames(attention, autocast, clips):
    student = pupil(attention)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = student(clips.images, FRAMES)
        said = student.network(clips.images)
    for name in ("pose_enc", "pose_enc_iterations"):
        torch.testing.assert_close(getattr(seen.predictions, name), getattr(said, name), atol=1e-6, rtol=0)
    for name in MAPS:
        torch.testing.assert_close(getattr(seen.predictions, name), getattr(said, name)[:, FRAMES], atol=1e-6, rtol=0)
    assert seen.displacement.dtype == seen.patch_depth.dtype == torch.float32


def test_a_tracker_is_no_obstacle():
    torch.manual_seed(0)
    student = Pupil(StreamVGGT(StreamVGGTConfig.tiny()))
    images = torch.rand(1, 2, 3, 28, 28)
    with torch.no_grad():
        seen, said = student(images, torch.tensor([1])), student.network(images)
    torch.testing.assert_close(seen.predictions.depth, said.depth[:, [1]], atol=1e-6, rtol=0)
    assert seen.descriptors is None


def test_the_past_does_not_see_the_future_in_training_either(clips):
    student = pupil()
    changed = clips.images.clone()
    changed[:, 2] = 1 - changed[:, 2]
    with torch.no_grad():
        a, b = (student(images, torch.tensor([0, 1])) for images in (clips.images, changed))
    for name in MAPS:
        assert torch.equal(getattr(a.predictions, name), getattr(b.predictions, name))
    assert torch.equal(a.predictions.pose_enc[:, :2], b.predictions.pose_enc[:, :2])
    assert torch.equal(a.displacement[:, :2], b.displacement[:, :2])
    assert not torch.equal(a.displacement[:, 2], b.displacement[:, 2])


def test_what_the_encoder_said_before_gives_the_same_as_running_it(clips):
    student = pupil()
    with torch.no_grad():
        a = student(clips.images, FRAMES)
        b = student(clips.images, FRAMES, student.network._encode(clips.images))
    assert torch.equal(a.predictions.pose_enc, b.predictions.pose_enc)
    assert torch.equal(a.predictions.depth, b.predictions.depth)
    assert torch.equal(a.descriptors, b.descriptors)


def test_the_recorded_queries_and_keys_are_those_of_the_first_global_block(clips):
    student, given = pupil(), {}
    block = student.network.aggregator.global_blocks[0].attn
    for name in ("q_norm", "k_norm"):
        getattr(block, name).register_forward_hook(lambda _m, _x, out, name=name: given.setdefault(name, out))
    with torch.no_grad():
        seen = student(clips.images, FRAMES)
    tokens = config().tokens_per_frame(56, 56)
    assert seen.queries.shape == seen.keys.shape == (2, 2, 3, tokens, 8)
    # The camera token stands at (0, 0) and is not turned.
    torch.testing.assert_close(seen.queries[..., 0, :], given["q_norm"][..., 0, :])
    torch.testing.assert_close(seen.keys[..., 0, :], given["k_norm"][..., 0, :])
    # Turned keys keep their length.
    torch.testing.assert_close(seen.keys.norm(dim=-1), given["k_norm"].norm(dim=-1), atol=1e-5, rtol=1e-5)


def all_losses(student, clips, teacher=None, loss=PLAIN):
    seen = student(clips.images, FRAMES)
    parts = truth_losses(seen, clips, FRAMES, loss) | matching_losses(seen, clips, student.network, loss)
    if teacher is not None:
        told = teacher(clips.images, FRAMES)
        taught = teacher_losses(seen, told, clips.valid[:, FRAMES], loss)
        parts |= {f"teacher_{name}": value for name, value in taught.items()}
    return parts


def test_no_gradient_reaches_a_frozen_encoder_or_a_teacher(clips):
    student, teacher = pupil(), pupil("full", seed=1)  # the teacher's parameters could take gradients
    student.network.encoder.requires_grad_(False)
    torch.stack(list(all_losses(student, clips, teacher).values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None for p in student.network.encoder.parameters())
    missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_every_loss_has_a_weight_of_its_name_and_a_gradient(clips):
    student = pupil()
    parts = all_losses(student, clips)
    assert set(parts) == {"camera", "depth", "points", "displacement", "patch_depth", "guide", "descriptor"}
    for name, value in parts.items():
        assert getattr(PLAIN, name) > 0 and value.isfinite()
        grads = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads), name


@pytest.mark.parametrize("loss", [PLAIN, replace(LossConfig.published(), feature=0.5)], ids=["plain", "published"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(loss, clips):
    student = pupil("full")
    seen = student(clips.images, FRAMES)
    # The last round is what is told; a student that says so in each round has no error left.
    rounds = seen.predictions.pose_enc.expand_as(seen.predictions.pose_enc_iterations)
    sure = {name: torch.ones_like(getattr(seen.predictions, name)) for name in ("depth_conf", "world_points_conf")}
    perfect = replace(seen, predictions=replace(seen.predictions, pose_enc_iterations=rounds, **sure))
    parts = teacher_losses(perfect, seen, clips.valid[:, FRAMES], loss)
    assert set(parts) == {"camera", "depth", "points", "feature"}
    for name, value in parts.items():
        assert value.item() == pytest.approx(0, abs=1e-4 if name == "points" and loss.align else 1e-5), name
    other = teacher_losses(pupil("full", seed=1)(clips.images, FRAMES), seen, clips.valid[:, FRAMES], loss)
    assert all(value.item() > 1e-3 for name, value in other.items() if name != "depth")


def test_all_nine_numbers_of_the_pose_are_distilled(clips):
    student = pupil("full")
    seen = student(clips.images, FRAMES)
    for number in range(9):
        rounds = seen.predictions.pose_enc.expand_as(seen.predictions.pose_enc_iterations).clone()
        rounds[..., number] += 0.5
        wrong = replace(seen, predictions=replace(seen.predictions, pose_enc_iterations=rounds))
        assert teacher_losses(wrong, seen, clips.valid[:, FRAMES], LossConfig.published())["camera"] > 1e-3


def test_the_truth_has_no_loss_when_it_is_said(clips):
    student = pupil()
    seen = student(clips.images, FRAMES)
    points = clips.world_points[:, FRAMES]
    said = replace(
        seen.predictions,
        pose_enc_iterations=clips.pose_enc.expand(4, -1, -1, -1),
        depth=torch.where(clips.valid, clips.depth, 5.0)[:, FRAMES],
        world_points=points,
        depth_conf=torch.ones_like(points[..., 0]),
        world_points_conf=torch.ones_like(points[..., 0]),
    )
    parts = truth_losses(replace(seen, predictions=said), clips, FRAMES, PLAIN)
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in parts.values())

    matches = patch_matches(clips.depth, clips.valid, clips.world_points, clips.extrinsics, clips.intrinsics, 14)
    known = replace(
        seen,
        displacement=(matches.xy[:, :, 0] - matches.centres) / 28,
        patch_depth=matches.depth.clamp_min(1e-4).log(),
    )
    parts = matching_losses(known, clips, student.network, PLAIN)
    assert parts["displacement"].item() == pytest.approx(0, abs=1e-5)
    assert parts["patch_depth"].item() == pytest.approx(0, abs=1e-5)


def test_clips_without_depth_teach_cameras_alone(clips):
    student = pupil()
    blind = replace(clips, depth=torch.zeros_like(clips.depth), valid=torch.zeros_like(clips.valid))
    parts = all_losses(student, blind)
    assert parts["camera"] > 0
    assert all(value.item() == 0 for name, value in parts.items() if name != "camera")
    torch.stack(list(parts.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_one_frame_has_nothing_to_match_and_no_weights_ask_for_nothing(clips):
    student = pupil()
    single = clips.frames(torch.zeros(2, 1, dtype=torch.long))
    seen = student(single.images, torch.tensor([0]))
    assert set(matching_losses(seen, single, student.network, PLAIN)) == {"displacement", "patch_depth"}
    assert matching_losses(seen, single, student.network, LossConfig.published()) == {}
    only_camera = replace(PLAIN, depth=0.0, points=0.0)
    assert set(truth_losses(seen, single, torch.tensor([0]), only_camera)) == {"camera"}
