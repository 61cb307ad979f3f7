"""Drift on long loops: bounded streams, plain and refined, against sub-maps, chained and with loops closed.

Three kinds of data: a network that drifts by a known amount (it is that of the tests), the bundled model on two laps
through made-up rooms with exact truth, and the bundled model on a real sequence, if one is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamvggt as sv
from streamvggt.geometry import align_similarity, compose, invert_pose
from streamvggt.metrics import trajectory_metrics
from streamvggt.sequences import load_frames, natural_hw, open_sequence
from streamvggt.synthetic import SyntheticConfig
from streamvggt.synthetic.sampling import sample_world
from streamvggt.synthetic.shading import expose, render
from streamvggt.synthetic.textures import procedural_bank

OUTPUTS = {"camera", "depth"}
WINDOW = sv.AnchorWindow(1, 15)
ROWS = ["plain", "refined", "chained", "loops"]
CLEARANCE_M = 0.25


def room_loop(seed: int, lap: int, laps: int, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Walk round a furnished room: images uint8 ``[S, H, W, 3]`` and world-to-camera ``[S, 3, 4]``, metres."""
    config = SyntheticConfig(
        num_frames=lap * laps, image_hw=image_hw, fov_deg=(70, 75), open_probability=0, moving_probability=0,
        roll_probability=0, closeup_probability=0, shadows=False,
    )  # fmt: skip
    world = sample_world([seed], config)
    half = world.half_sizes[0, 0, -1]
    angle = torch.arange(lap * laps, dtype=torch.float64) * (2 * np.pi / lap)
    # An ellipse at half way to the walls, looking ahead and a little inwards, at heights that no second lap repeats:
    # it must not show the same pictures.
    height = -0.15 + 0.1 * (0.7 * angle).sin()
    centre = torch.stack([0.55 * half[0] * angle.cos(), height, 0.55 * half[2] * angle.sin()], -1)
    heading = torch.atan2(-half[0] * angle.sin(), half[2] * angle.cos()) - 0.5
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [heading.cos(), zero, heading.sin(), zero, one, zero, -heading.sin(), zero, heading.cos()]
    in_room = torch.cat([torch.stack(rows, -1).unflatten(-1, (3, 3)), centre[..., None]], -1)
    room_to_world = world.poses[0, :, -1]
    camera_to_world = compose(room_to_world, in_room)

    solids = world.poses[0, 0, :-1]
    local = (solids[None, ..., :3] * (camera_to_world[:, None, :, 3] - solids[None, ..., 3])[..., None]).sum(-2)
    distance = (local.abs() - world.half_sizes[0, 0, :-1]).clamp_min(0).square().sum(-1).sqrt()
    active = world.active.clone()
    active[0, :, :-1] &= distance.amin(0) > CLEARANCE_M
    world = replace(world, extrinsics=invert_pose(camera_to_world)[None], active=active).to(torch.device("cpu"))
    bank = procedural_bank(torch.device("cpu"))
    radiance = [render(world.frames(i, i + 1), bank, image_hw, shadows=False)[0] for i in range(lap * laps)]
    images = expose(torch.cat(radiance)[None], world)[0]
    return (images.permute(0, 2, 3, 1) * 255).round().byte().numpy(), world.extrinsics[0].double().numpy()


def sequence(folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a posed sequence."""
    opened = open_sequence(folder)
    images, _, _, extrinsics, _ = load_frames(opened, range(len(opened)), natural_hw(opened, width))
    return (images.permute(0, 2, 3, 1) * 255).round().byte().numpy(), extrinsics.double().numpy()


def sessions(model: Callable[[], Any], length: int, overlap: int, size: int | None) -> dict[str, Callable[[], Any]]:
    """What begins the session of each row; cameras are refined where the network can."""
    options = {"outputs": OUTPUTS} | ({} if size is None else {"size": size})
    cut = {"length": length, "overlap": overlap, **options}
    rows = {
        "plain": lambda: sv.StreamSession(model(), WINDOW, **options),
        "refined": lambda: sv.StreamSession(model(), WINDOW, refine=True, **options),
        "chained": lambda: sv.LongSession(model(), WINDOW, loops=False, **cut),
        "loops": lambda: sv.LongSession(model(), WINDOW, **cut),
    }
    if not model().config.can_refine:
        del rows["refined"]
    return rows


def run(session: Any, frames: np.ndarray) -> np.ndarray:
    """World-to-camera of all frames as they are known at the end."""
    said = list(session.run(frames))
    if isinstance(session, sv.LongSession):
        said = [sv.move_prediction(p, move) for p, move in zip(said, session.corrections(), strict=True)]
    return np.stack([p.extrinsics for p in said]).astype(np.float64)


def loop_gap(poses: np.ndarray, truth: np.ndarray, lap: int) -> float:
    """Error of the way from each place to the one a lap later, over the length of a lap, median, percent.

    Ways are compared after the similarity that lays all places best on the true ones.
    """
    centres, true = (invert_pose(each)[..., 3] for each in (poses, truth))
    centres = align_similarity(centres, true).apply(centres)
    length = np.linalg.norm(np.diff(true[: lap + 1], axis=0), axis=1).sum()
    way, true_way = (each[lap:] - each[:-lap] for each in (centres, true))
    return 100 * float(np.median(np.linalg.norm(way - true_way, axis=1)) / length)


def table(name: str, frames: np.ndarray, truth: np.ndarray, rows: dict[str, Callable[[], Any]], lap: int) -> None:
    """Print one block of rows as soon as each is there."""
    still = np.tile(np.eye(3, 4), (len(truth), 1, 1))
    print(f"\n**{name}**, {len(frames)} frames\n")
    print("| | ATE | RPE, deg a frame | gap of a lap | loops | MiB at the end |")
    print("|---|--:|--:|--:|--:|--:|")
    print(f"| a camera that stands still | {trajectory_metrics(still, truth).ate_rmse:.3f} | | | | |", flush=True)
    for row, begin in rows.items():
        session = begin()
        poses = run(session, frames)
        scores = trajectory_metrics(poses, truth)
        gap = f"{loop_gap(poses, truth, lap):.2f} %" if lap else ""
        loops = len(session.loops) if isinstance(session, sv.LongSession) else ""
        print(
            f"| {row} | {scores.ate_rmse:.3f} | {scores.rpe_rotation_rmse_deg:.2f} | {gap} | {loops} "
            f"| {session.nbytes / 2**20:.1f} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--seeds", type=int, nargs="*", default=[2147500000, 2147500001])
    parser.add_argument("--lap", type=int, default=60, help="frames of a lap; there are two")
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--sequence", type=Path, nargs="*", default=[], help="posed sequences")
    parser.add_argument("--length", type=int, nargs="+", default=[32], help="frames of a sub-map")
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    options = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from drifting import LAP, Drift, KnowsTheTruth, picture, true_pose

    def print_rows(
        name: str, frames: np.ndarray, truth: np.ndarray, network: Callable[[], Any], size: int | None, lap: int
    ) -> None:
        for length in options.length:
            every = sessions(network, length, options.overlap, size)
            wanted = [row for row in options.rows if length == options.length[0] or row in ("chained", "loops")]
            rows = {row: every[row] for row in wanted if row in every}
            table(f"{name}, sub-maps of {length}", frames, truth, rows, lap)

    count = 2 * LAP + 20
    frames, truth = np.stack([picture(i) for i in range(count)]), np.stack([true_pose(i) for i in range(count)])
    print_rows("a network that drifts by a known amount", frames, truth, lambda: KnowsTheTruth(Drift()), None, LAP)
    network = sv.load_model(options.model)
    for seed in options.seeds:
        room = room_loop(seed, options.lap, 2, (options.width * 3 // 56 * 14, options.width))
        print_rows(f"made-up room {seed}", *room, lambda: network, options.width, options.lap)
    for folder in options.sequence:
        print_rows(folder.name, *sequence(folder, options.width), lambda: network, options.width, 0)


if __name__ == "__main__":
    main()
