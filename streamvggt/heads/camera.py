"""Camera head: poses and fields of view by iterative refinement (VGGT, Wang et al. 2025, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, silu

from ..attention import Attend
from ..config import StreamVGGTConfig
from ..layers import Block, Mlp, RunBlock, run_block

POSE_NUMBERS = 9  # translation 3, quaternion 4, field of view 2


class CameraHead(nn.Module):
    """Refine one pose a frame from its camera token, a few times over.

    Each round modulates the token by the pose so far (adaptive layer norm, Peebles & Xie 2023, DiT, section 3.2), lets
    the tokens of all frames look at each other and adds what it reads to the pose. With ``camera_reads_patches`` the
    token comes with the mean of what the patches of its frame say: their motion is where a small network sees its pose
    first.
    """

    def __init__(self, config: StreamVGGTConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.num_rounds = config.camera_iterations
        self.num_special = config.special_tokens
        self.patch_read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) if config.camera_reads_patches else None
        self.token_norm = nn.LayerNorm(dim)
        self.initial_pose = nn.Parameter(torch.zeros(1, 1, POSE_NUMBERS))
        self.embed_pose = nn.Linear(POSE_NUMBERS, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.trunk = nn.ModuleList(Block(dim, config.camera_num_heads) for _ in range(config.camera_depth))
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, POSE_NUMBERS)

    def forward(self, tokens: Tensor, attend: Callable[[int, int], Attend], run: RunBlock = run_block) -> Tensor:
        """Read poses off camera tokens.

        Args:
            tokens: of the aggregator's last layer ``[B, S, P, 2 C]``.
            attend: for a round and a block, how frames see each other.
            run: how blocks are run.

        Returns:
            Pose encodings of every round ``[I, B, S, 9]``, see :class:`streamvggt.Predictions`.
        """
        camera = tokens[:, :, 0]
        if self.patch_read is not None:
            norm, linear = self.patch_read  # linear of a mean is the mean of what it makes of each
            camera = camera + linear(norm(tokens[:, :, self.num_special :]).mean(2))
        tokens = self.token_norm(camera)
        normed = layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        pose = torch.zeros_like(self.initial_pose)
        rounds = []
        for i in range(self.num_rounds):
            # No gradient through earlier rounds: each learns to improve on what it is given (RAFT, Teed & Deng 2020).
            before = self.initial_pose if i == 0 else pose.detach()
            shift, scale, gate = self.modulation(silu(self.embed_pose(before))).chunk(3, dim=-1)
            x = (gate * (normed * (1 + scale) + shift) + tokens)[:, :, None]
            for b, block in enumerate(self.trunk):
                x = run(block, x, attend(i, b), None)
            pose = pose.detach() + self.pose_branch(self.trunk_norm(x[:, :, 0]))
            rounds.append(torch.cat([pose[..., :7], relu(pose[..., 7:])], dim=-1))
        return torch.stack(rounds)
