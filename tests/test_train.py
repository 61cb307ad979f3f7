"""Training: what a run promises to someone who starts it and walks away."""

import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamvggt import StreamVGGT, StreamVGGTConfig, load_model, save_model
from streamvggt.__main__ import main
from streamvggt.data import ClipBatch, ClipStream, Stage, SyntheticSource
from streamvggt.distill import Pupil, teacher_losses
from streamvggt.journal import Journal
from streamvggt.learner import Learner, Lesson
from streamvggt.losses import LossConfig
from streamvggt.recipes import recipe
from streamvggt.train import Run, TrainConfig, TrainingError, build_network, memorise
from streamvggt.types import Predictions
from streamvggt.validation import FIRST_HELD_OUT_SEED, Validation, likeness

# A server with everything imported, from which processes start at once and without this one's threads.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["streamvggt.train", "accelerate", "torch.distributed.fsdp"])

# A grid of 2 x 3 patches and no Muon, whose Newton-Schulz iteration enlarges rounding errors.
CONFIG = replace(
    TrainConfig.tiny(),
    stages=(Stage(1.0, (2,), (1, 1), ((28, 42),), 48),),
    muon_lr=0.0,
    num_steps=4,
    log_every=1,
    save_every=2,
)


class Noise:
    """Clips of random numbers, made at once; what learns from them learns nothing."""

    def clips_per_seed(self, num_frames):
        return 1

    def clips(self, seeds, num_frames, stride, image_hw):
        parts = []
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            h, w = image_hw
            extrinsics = torch.eye(3, 4).repeat(num_frames, 1, 1)
            extrinsics[1:, :, 3] = 0.3 * torch.rand((num_frames - 1, 3), generator=rng)
            intrinsics = torch.tensor([[w, 0.0, w / 2], [0.0, w, h / 2], [0.0, 0.0, 1.0]]).repeat(num_frames, 1, 1)
            depth = 1 + torch.rand((num_frames, h, w), generator=rng)
            images = torch.rand((num_frames, 3, h, w), generator=rng)
            parts.append((images, depth, torch.ones_like(depth, dtype=torch.bool), extrinsics, intrinsics))
        return ClipBatch(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))


NOISE = ((Noise(), 1.0),)


def start(config, folder, **options):
    return Run(config, folder, sources=NOISE, device="cpu", **options)


def log_of(folder):
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "frames_per_s"} for line in lines]


def same_weights(one, other, atol=0.0):
    one, other = load_model(one).state_dict(), load_model(other).state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol, msg=name)


# --- recipes


def test_the_published_recipe_has_the_numbers_of_the_paper():
    config = TrainConfig.published(num_processes=4)
    assert (config.num_steps, config.warmup_steps, config.accumulation) == (97_500, 4_875, 1)  # 10 x 39,000 / 4
    assert (config.lr, config.lr * config.final_lr) == (1e-5, pytest.approx(1e-7))
    assert (config.betas, config.weight_decay, config.clip_norm) == ((0.9, 0.95), 0.05, 1.0)
    assert (config.precision, config.muon_lr, config.ema) == ("bf16", 0.0, 0.0)
    assert config.stages[0].clip_lengths == (10,)
    # Whoever has one GPU takes the same steps; eight take half as many of twice the size.
    assert (TrainConfig.published(num_processes=1).num_steps, TrainConfig.published(num_processes=1).accumulation) == (
        97_500,
        4,
    )
    assert TrainConfig.published(num_processes=8).num_steps == 48_750


@pytest.mark.parametrize("world", [1, 4])
def test_the_published_recipe_draws_one_clip_of_ten_frames_a_process(world):
    config = TrainConfig.published()
    stream = ClipStream((Noise(),), (1.0,), config.stages, 8, augment=None, world=world)
    assert {stream[step].images.shape[:2] for step in range(1)} == {(1, 10)}


def test_settings_are_changed_by_name_and_wrong_ones_are_named():
    config = TrainConfig.tiny().with_settings(
        {"num_steps": "7", "lr": "1e-4", "recompute": "true", "precision": "bf16", "loss.depth": "2"}
    )
    assert (config.num_steps, config.lr, config.recompute, config.precision) == (7, 1e-4, True, "bf16")
    assert config.loss == replace(LossConfig(), depth=2.0)
    wrong = {
        "nmu_steps": "num_steps",
        "network": "can be",
        "init": "can be",
        "loss.dept": "loss.depth can be",
    }
    for name, told in wrong.items():
        with pytest.raises(ValueError, match=told):
            config.with_settings({name: "3"})
    for name, text, told in [
        ("num_steps", "1.5", "whole number"),
        ("lr", "nan", "finite"),
        ("recompute", "maybe", "true or false"),
        ("precision", "fp16", "no, bf16"),
        ("num_steps", "0", "at least 1"),
        ("ema", "1", "plain weights"),
        ("loss.camera", "-1", "loss.camera must be at least 0"),
        ("loss.camera_huber", "0", "above 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            config.with_settings({name: text})
    with pytest.raises(ValueError, match="log or linear, got 'logarithm'"):
        LossConfig(depth_space="logarithm")


def test_a_recipe_says_which_weights_it_lacks():
    with pytest.raises(ValueError, match="--encoder FILE"):
        recipe("small-teacher")
    with pytest.raises(ValueError, match="--teacher W"):
        recipe("small-student")
    with pytest.raises(ValueError, match="--encoder is for"):
        recipe("tiny", encoder="x")
    student = recipe("small-student", teacher="t")
    assert (student.init, student.teacher, student.network.attention) == ("t", "t", "causal")
    with pytest.raises(ValueError, match="--init W"):
        recipe("small-camera")
    network = StreamVGGT(recipe("small-camera", init="s").network)
    learns = [n for n, _ in network.named_parameters() if not n.startswith(recipe("small-camera", init="s").frozen)]
    assert {name.partition(".")[0] for name in learns} == {"camera_head"}


@pytest.mark.slow
def test_the_published_recipe_goes_through_the_network_of_full_size():
    """On the meta device: shapes and gradients of 1.26 billion weights, without a number."""
    config = TrainConfig.published()
    with torch.device("meta"):
        pupil = Pupil(StreamVGGT(replace(config.network, track=None)))
        clips = ClipBatch(
            torch.empty(1, 2, 3, 294, 518),
            torch.empty(1, 2, 294, 518),
            torch.empty(1, 2, 294, 518, dtype=torch.bool),
            torch.empty(1, 2, 3, 4),
            torch.empty(1, 2, 3, 3),
        )
        frames = torch.arange(2)
    with torch.no_grad():
        told = pupil(clips.images, frames)
    for name, parameter in pupil.network.named_parameters():
        parameter.requires_grad_(not name.startswith(config.frozen))
    losses = Lesson(pupil, replace(config, precision="no"))(clips, frames, None, told)
    assert set(losses) == {"camera", "depth", "points"}
    torch.stack(list(losses.values())).sum().backward()
    learns = [name for name, parameter in pupil.network.named_parameters() if parameter.grad is not None]
    assert not any(name.startswith(config.frozen) for name in learns)
    assert {name.split(".")[0] for name in learns} == {"aggregator", "camera_head", "depth_head", "point_head"}


# --- learning by heart


def test_thirty_steps_on_one_made_up_clip_halve_the_losses():
    config = replace(TrainConfig.tiny(), stages=(Stage(1.0, (2,), (1, 1), ((56, 84),), 48),))
    before, after = memorise(config, device="cpu", num_steps=30, seconds=600)
    assert after < before / 2


def test_a_fault_of_the_optimisation_is_found_before_the_run():
    with pytest.raises(TrainingError, match="More data will not help"):
        memorise(replace(CONFIG, lr=1e-9), sources=NOISE, device="cpu", num_steps=8)


def test_learning_by_heart_leaves_no_trace_in_the_run(tmp_path):
    config = replace(CONFIG, num_steps=1)
    start(config, tmp_path / "without").train()
    with pytest.raises(TrainingError):
        memorise(config, sources=NOISE, device="cpu", num_steps=2)
    start(config, tmp_path / "with").train()
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")
    same_weights(tmp_path / "with", tmp_path / "without")


# --- stopping and going on


def _train_in_child(config, folder, threads):
    os.setpgrp()  # a group of its own
    multiprocessing.set_start_method("fork", force=True)  # workers are its children, not the server's
    torch.set_num_threads(threads)
    start(config, folder).train()


def _is_empty(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _in_child(target, *arguments):
    child = processes.Process(target=target, args=arguments)
    child.start()
    return child


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_been(tmp_path, workers):
    config = replace(CONFIG, num_steps=7, save_every=3, log_every=2, workers=workers)
    start(config, tmp_path / "whole").train()
    killed = tmp_path / "killed"
    child = _in_child(_train_in_child, config, killed, torch.get_num_threads())
    while not (killed / "checkpoint.pt").exists():
        assert child.is_alive()
        time.sleep(0.02)
    time.sleep(random.random() * 0.5)
    os.killpg(child.pid, signal.SIGKILL)  # its workers too
    child.join()
    until = time.monotonic() + 10
    while not (gone := _is_empty(child.pid)) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone, "the run left processes behind"
    (killed / "checkpoint.pt.new").write_bytes(b"what was being written")
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "camera": 1.0}\n{"step": 7, "cam')  # written after the checkpoint, and cut off
    start(config, killed).train()
    assert log_of(killed) == log_of(tmp_path / "whole")
    same_weights(killed, tmp_path / "whole")
    names = {path.name for path in killed.iterdir()}
    assert names == {"config.json", "log.jsonl", "tensorboard", "checkpoint.pt", "model.safetensors"}


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, caplog):
    run = start(replace(CONFIG, num_steps=2, save_every=1), tmp_path)
    save, kept = torch.save, []

    def fill_up(content, file):
        if kept:
            file.write(b"a part of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)
        kept.append(True)

    monkeypatch.setattr(torch, "save", fill_up)
    run.train()
    assert "step 2 could not be written" in caplog.text
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not list(tmp_path.glob("*.new"))
    monkeypatch.undo()
    assert start(replace(CONFIG, num_steps=2, save_every=1), tmp_path).step == 1


def test_a_damaged_checkpoint_and_a_folder_of_another_run_are_refused(tmp_path):
    config = replace(CONFIG, num_steps=1)
    start(config, tmp_path, data={"data": []}).train()
    with pytest.raises(TrainingError, match=r"loss.depth was 1.0, now 2.0; lr was 0.003, now 0.1"):
        start(replace(config, lr=0.1, loss=LossConfig(depth=2.0)), tmp_path, data={"data": []})
    with pytest.raises(TrainingError, match=r"data.data was \[\], now"):
        start(config, tmp_path, data={"data": [["elsewhere", 1.0]]})
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"PK" + whole[2:100]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="is damaged"):
            start(config, tmp_path, data={"data": []})
    path.write_bytes(whole)
    assert start(config, tmp_path, data={"data": []}).step == 1


def test_a_loss_that_is_no_number_stops_the_run_and_its_clips_are_kept(tmp_path):
    config = replace(CONFIG, num_steps=3, save_every=1)
    run = start(config, tmp_path)
    good, stream = run._clips[0], run._clips
    bad = replace(good, extrinsics=good.extrinsics * torch.nan)
    run._clips = [stream[0], bad, stream[2]]
    with pytest.raises(TrainingError, match=r"loss of step 1 is not finite \(camera nan.*bad-batch-1.pt"):
        run.train()
    (kept,) = torch.load(tmp_path / "bad-batch-1.pt", weights_only=True)
    assert torch.equal(kept["images"], bad.images)
    assert kept["extrinsics"].isnan().all()
    assert start(config, tmp_path).step == 1


def test_a_gradient_that_is_no_number_stops_the_run_before_any_weight_changes(tmp_path):
    run = start(CONFIG, tmp_path)
    before = {name: x.clone() for name, x in run.network.state_dict().items()}
    next(run.network.camera_head.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match="gradients are not"):
        run.train()
    assert all(torch.equal(x, before[name]) for name, x in run.network.state_dict().items())
    assert (tmp_path / "bad-batch-0.pt").exists()


# --- steps


def test_two_accumulated_batches_are_one_large_batch(tmp_path):
    clips = [start(replace(CONFIG, seed=seed), tmp_path / str(seed))._clips[0] for seed in (1, 2)]
    together = ClipBatch(*(torch.cat(pair) for pair in zip(*(vars(c).values() for c in clips), strict=True)))
    one, two = Learner(replace(CONFIG, ema=0.0), "cpu"), Learner(replace(CONFIG, ema=0.0, accumulation=2), "cpu")
    for learner in (one, two):  # gradients are compared: AdamW's first step takes even the smallest one at full size
        learner.optimizers.clear()
        learner._peaks.clear()
    norms = one.take_step(0, [(together, None)]), two.take_step(0, [(c, None) for c in clips])
    assert float(norms[0]["grad_norm"]) == pytest.approx(float(norms[1]["grad_norm"]), rel=1e-5)
    for name, loss in norms[0].items():
        torch.testing.assert_close(norms[1][name], loss, rtol=1e-5, atol=1e-6)
    for (name, x), y in zip(one.pupil.named_parameters(), two.pupil.parameters(), strict=True):
        if x.grad is None:
            assert y.grad is None, name
        else:
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_averaged_weights_follow_their_definition(tmp_path):
    clips = start(CONFIG, tmp_path)._clips
    learner = Learner(replace(CONFIG, ema=0.9), "cpu")
    name = "camera_head.token_norm.weight"
    expected = learner.network.state_dict()[name].clone()
    for step in range(2):
        learner.take_step(step, [(clips[step], None)])
        keep = (1 + step) / (10 + step)  # 1/10, then 2/11
        expected = keep * expected + (1 - keep) * learner.network.state_dict()[name]
    torch.testing.assert_close(learner.averaged().state_dict()[name], expected)
    plain = Learner(replace(CONFIG, ema=0.0), "cpu")
    plain.take_step(0, [(clips[0], None)])
    weights = plain.network.state_dict()
    assert all(torch.equal(x, weights[key]) for key, x in plain.averaged().state_dict().items())


def test_recomputing_activations_gives_the_same_gradients(tmp_path):
    clips = start(CONFIG, tmp_path)._clips[0]
    gradients = []
    for recompute in (False, True):
        learner = Learner(replace(CONFIG, recompute=recompute), "cpu")
        torch.stack(list(learner.losses(clips).values())).sum().backward()
        gradients.append({n: p.grad for n, p in learner.pupil.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(x, gradients[1][name]) for name, x in gradients[0].items())


def test_a_student_learns_from_its_teacher_in_half_precision(tmp_path):
    save_model(StreamVGGT(StreamVGGTConfig.tiny()), tmp_path / "teacher.safetensors")
    config = replace(CONFIG, teacher=str(tmp_path / "teacher.safetensors"), precision="bf16", truth=0.3)
    clips = start(CONFIG, tmp_path / "run")._clips[0]
    half, full = Learner(config, "cpu").losses(clips), Learner(replace(config, precision="no"), "cpu").losses(clips)
    assert {"camera", "truth_camera", "depth", "truth_depth", "points", "truth_points"} <= half.keys()
    for name, loss in full.items():
        assert float(half[name]) == pytest.approx(float(loss), rel=0.05, abs=0.02), name
        assert half[name].dtype == torch.float32


@pytest.mark.parametrize("own_encoder", [False, True])
def test_a_teacher_sees_with_its_own_encoder_where_the_students_is_another(tmp_path, own_encoder):
    config = replace(CONFIG, frozen=("encoder.",), truth=0.0, teacher=str(tmp_path / "teacher.safetensors"))
    teacher = StreamVGGT(replace(config.network, attention="full"))
    if not own_encoder:
        teacher.encoder.load_state_dict(build_network(config).encoder.state_dict())
    save_model(teacher, config.teacher)
    clips = start(CONFIG, tmp_path / "run")._clips[0]
    learner, frames = Learner(config, "cpu"), torch.arange(2)
    found = learner.losses(clips)
    with torch.no_grad():
        expected = teacher_losses(learner.pupil(clips.images, frames), Pupil(teacher)(clips.images, frames), clips.valid, config.loss)  # noqa: E501  # fmt: skip
    assert learner._shares_encoder is not own_encoder
    for name in ("camera", "depth"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


# --- many processes


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _train_together(rank, port, sharded, config, folder):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_FSDP": str(sharded).lower(),
    }
    torch.set_num_threads(1)
    run = start(config, folder)
    gradients = _gradients(run)
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    run.train()
    torch.distributed.destroy_process_group()


def _gradients(run):
    torch.stack(list(run.learner.losses(run._clips[0]).values())).sum().backward()
    gradients = {n: p.grad for n, p in run.learner.pupil.named_parameters() if p.grad is not None}
    gradients = {n: getattr(g, "full_tensor", g.clone)() for n, g in gradients.items()}
    for parameter in run.learner.pupil.parameters():
        parameter.grad = None
    return gradients


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_are_one_with_the_same_clips(tmp_path, sharded):
    """The tracker and the point head have no loss: weights without a gradient must not hold anyone up."""
    config = replace(CONFIG, num_steps=2, loss=LossConfig(points=0.0))
    folder = tmp_path / "two"
    port = _free_port()
    children = [_in_child(_train_together, rank, port, sharded, config, folder) for rank in range(2)]
    run = start(config, tmp_path / "one")
    gradients = _gradients(run)
    run.train()
    for child in children:
        child.join(600)
        assert child.exitcode == 0
    together = torch.load(folder / "gradients.pt", weights_only=True)
    assert together.keys() == gradients.keys()
    assert not any("point_head" in name or "track_head" in name for name in together)
    for name, gradient in gradients.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    same_weights(folder, tmp_path / "one", atol=1e-5)
    for mine, theirs in zip(log_of(tmp_path / "one"), log_of(folder), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5)
    # Checkpoints hold whole tensors: one process goes on where two have stopped.
    resumed = start(config, folder)
    assert resumed.step == 2
    torch.testing.assert_close(
        resumed.learner.optimizers[0].state_dict(), run.learner.optimizers[0].state_dict(), rtol=1e-3, atol=1e-5
    )


def test_sharding_says_what_it_cannot_do(monkeypatch):
    from streamvggt.learner import _shard

    with pytest.raises(TrainingError, match="muon_lr=0"):
        _shard(Lesson(Pupil(StreamVGGT(CONFIG.network)), CONFIG), replace(CONFIG, muon_lr=1e-3))


@pytest.mark.slow
def test_accelerate_launches_the_command_line(tmp_path):
    command = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command += f" --dynamo_backend no -m streamvggt train --config tiny -o {tmp_path} --device cpu --skip-check"
    command += " --set num_steps=2 log_every=1 validate_every=2 save_every=1"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(log_of(tmp_path)) == 3
    assert done.stdout.count("model.safetensors") == 1


# --- watching


def test_no_training_clip_is_ever_validated_on():
    drawn = []

    class Spy(Noise):
        def clips(self, seeds, *options):
            drawn.extend(seeds)
            return super().clips(seeds, *options)

    stream = ClipStream((Spy(),), (1.0,), (Stage(1.0, (2,), (1, 1), ((14, 14),), 2000),), 3, augment=None)
    for step in range(3):
        stream[step]
    assert len(drawn) == 3000
    # Drawn below 2**30 (so half of them are expected above 2**29), and replaced by at most a hundred further on.
    assert 2**30 * 0.99 < max(drawn) < 2**30 < FIRST_HELD_OUT_SEED - 100


class Knows(torch.nn.Module):
    """A network that answers with the truth, off by a scale and, if asked, in the cameras of the wrong clip."""

    def __init__(self, clips, poses):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.clips, self.poses, self.number = clips, poses, 0

    def forward(self, images):
        b = self.number
        self.number += 1
        poses, depth = self.poses[b : b + 1], 3 * self.clips.depth[b : b + 1].clamp_min(0.1)
        points = torch.zeros(*depth.shape, 3)
        return Predictions(poses, poses[None], depth, depth + 1, points, depth + 1, None, None, None)


def test_validation_gives_the_truth_no_error_and_a_still_camera_that_of_the_trivial_answer():
    validation = Validation(56, num_clips=3, num_frames=5)
    clips = validation._sets["synthetic"]
    numbers = validation(Knows(clips, clips.pose_enc))
    assert numbers["synthetic.depth_ratio"] < 1e-3
    assert numbers["synthetic.rotation_ratio"] < 1e-3
    assert numbers["synthetic.ate_ratio"] < 1e-3
    assert numbers["synthetic.delta_1_25"] == pytest.approx(1)
    for part in ("translation", "rotation", "fov"):
        assert numbers[f"synthetic.r_{part}"] == pytest.approx(1, abs=1e-5)
        assert numbers[f"synthetic.sd_{part}"] == pytest.approx(1, abs=1e-5)
    still = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0.8, 1.0]).expand_as(clips.pose_enc)
    numbers = validation(Knows(clips, still))
    assert numbers["synthetic.rotation_ratio"] == pytest.approx(1, abs=1e-4)
    assert numbers["synthetic.ate_ratio"] == pytest.approx(1, abs=1e-4)
    assert numbers["synthetic.sd_rotation"] == 0


def test_likeness_is_correlation_and_ratio_of_deviations():
    truth = torch.randn((3, 5, 9), generator=torch.Generator().manual_seed(0))
    predicted = truth.clone()
    predicted[..., 0:3] *= 0.5
    predicted[..., 3:6] *= -2
    predicted[:, 0] = 100.0  # frame 0 is given
    numbers = likeness(predicted, truth)
    assert numbers == pytest.approx(
        {
            "r_translation": 1,
            "sd_translation": 0.5,
            "r_rotation": -1,
            "sd_rotation": 2,
            "r_fov": 1,
            "sd_fov": 1,
        }
    )


def test_real_sequences_are_validated_on_by_name():
    folder = Path(__file__).parent.parent.parent / "shared" / "data" / "tum_fr3_cabinet"
    if not folder.is_dir():
        pytest.skip("the real sequences are not here")
    numbers = Validation.of_folders(84, [folder])
    numbers._sets.pop("synthetic")
    scores = numbers(load_model("tiny"))
    assert {"tum_fr3_cabinet.depth_ratio", "tum_fr3_cabinet.ate_ratio", "tum_fr3_cabinet.auc_30"} <= scores.keys()


def test_curves_of_a_resumed_run_have_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, value in ((0, 4, 1.0), (2, 4, 2.0)):
        journal = Journal(tmp_path, first)
        for step in range(first + 1, last + 1):
            journal.write(step, "losses", {"camera": value})
        journal.close()
        time.sleep(1.1)  # the files are told apart by the second
    assert [line["camera"] for line in log_of(tmp_path)] == [1.0, 1.0, 2.0, 2.0]
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [(e.step, e.value) for e in curves.Scalars("losses/camera")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_run_without_tensorboard_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    journal = Journal(tmp_path, 0)
    journal.write(1, "losses", {"camera": 1.0})
    journal.write(2, "losses", {"camera": 1.0})
    assert caplog.text.count("streamvggt[train]") == 1
    assert len(log_of(tmp_path)) == 2


# --- command line


def test_the_command_line_trains_goes_on_and_refuses_other_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("streamvggt.cli.train.Validation.of_folders", lambda *_: lambda _network: {"synthetic.x": 0.5})
    monkeypatch.setattr(SyntheticSource, "clips", Noise.clips)
    command = f"train --config tiny -o {tmp_path} --device cpu --skip-check --set num_steps=2 log_every=1".split()
    assert main(command) == 0
    assert (tmp_path / "model.safetensors").as_posix() in capsys.readouterr().out
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["num_steps"] == 2
    assert settings["data"] == {"data": [], "synthetic_weight": 1.0, "textures": None, "validate": []}
    before = log_of(tmp_path)
    assert before[-1] == {"step": 2, "validation": {"synthetic.x": 0.5}}
    assert main(command) == 0
    assert log_of(tmp_path) == before
    assert main([*command, "lr=0.5"]) == 1
    assert "lr was 0.003, now 0.5" in capsys.readouterr().err
    assert load_model(tmp_path).config == StreamVGGTConfig.tiny()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--set steps=3", "num_steps"),
        ("--set num_steps", "NAME=VALUE"),
        ("--data x:0", "weight above 0"),
        ("--data /no/such/folder", "not a folder"),
        ("--synthetic-weight 0", "nothing to learn from"),
        ("--synthetic-weight 0 --textures x", "--textures are for"),
        ("--config small-teacher", "--encoder FILE"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, capsys, arguments, told):
    try:
        status = main(["train", "--config", "tiny", "-o", str(tmp_path / "new"), *arguments.split()])
    except SystemExit as exit_:
        status = exit_.code
    assert status != 0
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
