"""Muon against singular value decompositions and a step by hand; which parameter goes where."""

import copy

import pytest
import torch
from torch import nn

from streamvggt import StreamVGGTConfig
from streamvggt.distill import Pupil
from streamvggt.model import StreamVGGT
from streamvggt.optimizer import Muon, build_optimizers, orthogonalise


def conditioned(rows, columns, seed=0, smallest=0.05):
    """A matrix with known singular values from 1 down to `smallest`, and its singular vectors."""
    rng = torch.Generator().manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns, generator=rng), full_matrices=False)
    return 3 * u @ torch.diag(torch.linspace(1, smallest, min(rows, columns))) @ vt, u, vt


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_orthogonalising_keeps_the_directions_and_makes_all_as_long(shape):
    matrices, u, vt = zip(*(conditioned(*shape, seed=i) for i in range(3)), strict=True)
    found = orthogonalise(torch.stack(matrices))
    for i in range(3):
        inner = u[i].T @ found[i] @ vt[i].T  # diagonal, if the singular vectors are those of the matrix
        values = inner.diagonal()
        assert (inner - values.diag()).abs().max() < 1e-4
        assert values.min() > 0.6 and values.max() < 1.3
        expected = torch.linalg.svdvals(found[i])
        torch.testing.assert_close(values.sort(descending=True).values, expected, atol=1e-4, rtol=0)


def test_a_matrix_of_zeros_stays_one_and_a_scale_changes_nothing():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))
    matrix = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(1e3 * matrix), orthogonalise(matrix), atol=1e-4, rtol=0)


def test_two_steps_by_hand():
    rng = torch.Generator().manual_seed(1)
    start, grad_1, grad_2 = torch.randn(3, 4, 6, generator=rng).unbind(0)
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    for grad in (grad_1, grad_2):
        parameter.grad = grad.clone()
        optimizer.step()
    size = 0.2 * 6**0.5
    after_1 = start * (1 - 0.1 * 0.5) - 0.1 * size * orthogonalise((grad_1 + 0.9 * grad_1)[None])[0]
    momentum = 0.9 * grad_1 + grad_2
    expected = after_1 * 0.95 - 0.1 * size * orthogonalise((grad_2 + 0.9 * momentum)[None])[0]
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=0)


def test_updates_have_the_size_of_those_of_adam():
    matrix, _, _ = conditioned(32, 64)
    parameter = nn.Parameter(torch.zeros(32, 64))
    parameter.grad = matrix
    Muon([parameter], lr=1.0).step()
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_queries_keys_and_values_count_as_three_matrices():
    fused = nn.Parameter(torch.randn(24, 8, generator=torch.Generator().manual_seed(0)))
    grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 50, 0.1])[
        :, None
    ].repeat_interleave(8, 0)
    alone = [nn.Parameter(part.detach().clone()) for part in fused.chunk(3)]
    fused.grad = grad
    for parameter, part in zip(alone, grad.chunk(3), strict=True):
        parameter.grad = part.clone()
    other = nn.Parameter(torch.ones(8, 8))
    other.grad = torch.eye(8)
    Muon([fused, other], lr=0.3).step()
    for parameter in alone:
        Muon([parameter], lr=0.3).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in alone]), atol=1e-6, rtol=0)


def test_a_gradient_of_any_strides_will_do():
    grad = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    results = []
    for given in (grad.T, grad.T.contiguous()):
        parameter = nn.Parameter(torch.zeros(24, 8))
        parameter.grad = given
        Muon([parameter], lr=0.3).step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)


@pytest.fixture
def pupil():
    torch.manual_seed(0)
    pupil = Pupil(StreamVGGT(StreamVGGTConfig.tiny()))
    pupil.network.encoder.requires_grad_(False)
    return pupil


def build(model, muon_lr=1e-3):
    return build_optimizers(model, lr=1e-3, muon_lr=muon_lr, weight_decay=0.1, betas=(0.9, 0.95))


@pytest.mark.parametrize("muon_lr", [0.0, 1e-3])
def test_each_trainable_parameter_is_in_one_group_and_a_frozen_one_in_none(pupil, muon_lr):
    given = [id(p) for optimizer in build(pupil, muon_lr) for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in pupil.parameters() if p.requires_grad}
    assert any(not p.requires_grad for p in pupil.parameters())


def test_matrices_of_blocks_go_to_muon_and_what_is_no_matrix_is_not_decayed(pupil):
    names = {id(p): name.removeprefix("network.") for name, p in pupil.named_parameters()}
    adam, muon = build(pupil)
    by_muon = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert "aggregator.global_blocks.0.attn.qkv.weight" in by_muon
    assert all("blocks." in name and name.endswith("weight") for name in by_muon)
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in adam.param_groups)
    assert adam.param_groups[0]["weight_decay"] == 0.1 and adam.param_groups[1]["weight_decay"] == 0
    assert {"camera_head.embed_pose.weight", "displacement.weight"} <= decayed
    for name in ("aggregator.camera_token", "aggregator.register_token", "camera_head.initial_pose"):
        assert name in plain
    assert not any("norm" in name or name.endswith(("bias", "gamma")) for name in decayed | by_muon)
    [alone] = build(pupil, muon_lr=0.0)
    assert by_muon <= {names[id(p)] for p in alone.param_groups[0]["params"]}


def test_positions_of_a_trained_encoder_are_not_decayed(pupil):
    pupil.requires_grad_(True)
    names = {id(p): name for name, p in pupil.named_parameters()}
    decayed = {names[id(p)] for p in build(pupil)[0].param_groups[0]["params"]}
    plain = {names[id(p)] for p in build(pupil)[0].param_groups[1]["params"]}
    positions = {name for name in names.values() if name.endswith(("pos_embed", "virtual_tracks"))}
    assert len(positions) == 2 and positions <= plain and not positions & decayed


def test_saved_optimizers_go_on_bitwise():
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 4)]), "out": nn.Linear(4, 2)})

    def steps(model, optimizers, seeds):
        for seed in seeds:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            for layer in model["blocks"]:
                x = layer(x).relu()
            model["out"](x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    optimizers = build(model)
    assert len(optimizers) == 2
    steps(model, optimizers, range(3))
    other = copy.deepcopy(model)
    again = build(other)
    for fresh, old in zip(again, optimizers, strict=True):
        fresh.load_state_dict(copy.deepcopy(old.state_dict()))
    steps(model, optimizers, range(3, 6))
    steps(other, again, range(3, 6))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_last_layer_of_the_camera_head_learns_more_slowly_and_only_where_asked():
    pupil = Pupil(StreamVGGT(StreamVGGTConfig.tiny()))
    last = pupil.network.camera_head.pose_branch.fc2
    sizes = {"lr": 1e-3, "muon_lr": 0.0, "weight_decay": 0.1, "betas": (0.9, 0.98)}
    slow = build_optimizers(pupil, pose_lr=0.25, **sizes)[0].param_groups
    assert [group["lr"] for group in slow] == [1e-3, 1e-3, 2.5e-4]
    assert {id(p) for p in slow[2]["params"]} == {id(last.weight), id(last.bias)} and slow[2]["weight_decay"] == 0
    assert sum(len(g["params"]) for g in slow) == len(list(pupil.parameters()))
    assert len(build_optimizers(pupil, **sizes)[0].param_groups) == 2
