"""Muon (Jordan et al. 2024) for the matrices of transformer blocks, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_NOT_DECAYED = ("_token", "_tokens", "pos_embed", "virtual_tracks", "initial_pose")


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalised momentum of matrices, so that all directions of a matrix learn equally fast.

    In float32, matrices of one shape together: ``torch.optim.Muon`` orthogonalises in bfloat16, one after the other,
    which is slow on CPUs. A fused ``[3 C, C]`` of queries, keys and values counts as three matrices. Updates have the
    size of AdamW's (root mean square 0.2; Liu et al. 2025, section 2.2).

    Args:
        params: matrices.
        lr: learning rate.
        momentum: of the Nesterov kind.
        weight_decay: decoupled, as a share of the learning rate.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; there is no closure."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.mul_(group["momentum"]).add_(parameter.grad)
                rows, columns = parameter.shape
                update = parameter.grad + group["momentum"] * momentum
                parts = update.reshape(-1, columns, columns) if rows == 3 * columns else update[None]
                alike.setdefault((parts.shape[1], parts.shape[2]), []).append((parameter, parts))
            for shape, members in alike.items():
                size = 0.2 * max(shape) ** 0.5
                steps = orthogonalise(torch.cat([parts for _, parts in members])).split([len(p) for _, p in members])
                for (parameter, _), change in zip(members, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change.reshape(parameter.shape), alpha=-group["lr"] * size)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of ``[N, rows, columns]`` towards 1 (Newton-Schulz); they end between 0.7 and 1.2.

    Those below 0.002 of the matrix's Frobenius norm get only part of the way.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-1, -2) if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.transpose(-1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(-1, -2) if tall else x


def build_optimizers(
    model: nn.Module,
    *,
    lr: float,
    muon_lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    pose_lr: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """Share the trainable parameters out: with ``muon_lr`` the matrices of blocks go to Muon, the rest to AdamW.

    Biases, norms, tokens and positions are not decayed. The camera head's last layer learns at ``pose_lr`` of the rate
    and is not decayed: AdamW moves all of its inputs at once, and at the full rate a step turns a fresh camera by more
    than there is to learn, so that it stays a constant.
    """
    matrices, decayed, plain, pose = [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "camera_head.pose_branch.fc2." in name and pose_lr != 1:
            pose.append(parameter)
        elif muon_lr and parameter.ndim == 2 and "blocks." in name:
            matrices.append(parameter)
        elif parameter.ndim >= 2 and not name.endswith(_NOT_DECAYED):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if pose:
        groups.append({"params": pose, "weight_decay": 0.0, "lr": pose_lr * lr})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas)]
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
    return optimizers
