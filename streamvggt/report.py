"""Show what an evaluation found: a table as Markdown, everything as JSON, trajectory and depth as PNG."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from .geometry import align_similarity, invert_pose
from .metrics import fit_depth
from .scoring import Answer, Scores, Truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Column(NamedTuple):
    """A column of the table: key of the score, head, decimals."""

    key: str
    head: str
    decimals: int = 3


COLUMNS = (
    Column("abs_rel_median", "AbsRel ↓ median"),
    Column("delta_1_25_median", "δ<1.25 ↑ median"),
    Column("abs_rel_scale", "AbsRel ↓ scale"),
    Column("delta_1_25_scale", "δ<1.25 ↑ scale"),
    Column("abs_rel_scale_shift", "AbsRel ↓ scale, shift"),
    Column("delta_1_25_scale_shift", "δ<1.25 ↑ scale, shift"),
    Column("rra_15", "RRA@15 ↑"),
    Column("rta_15", "RTA@15 ↑"),
    Column("auc_30", "AUC@30 ↑"),
    Column("ate_rmse", "ATE ↓ m"),
    Column("rpe_translation_rmse", "RPE ↓ m"),
    Column("rpe_rotation_rmse_deg", "RPE ↓ °", 2),
    Column("accuracy_mean", "Acc ↓ m"),
    Column("accuracy_median", "Acc ↓ m, median"),
    Column("completeness_mean", "Comp ↓ m"),
    Column("completeness_median", "Comp ↓ m, median"),
    Column("normal_consistency_mean", "NC ↑"),
    Column("normal_consistency_median", "NC ↑ median"),
    Column("average_jaccard", "AJ ↑"),
    Column("delta_avg", "tracks δ ↑"),
    Column("occlusion_accuracy", "OA ↑"),
)


def markdown_table(rows: Mapping[str, Scores]) -> str:
    """Write scores as a Markdown table: a line for each answer, a column for each measure that any of them has."""
    columns = [column for column in COLUMNS if any(column.key in scores for scores in rows.values())]
    lines = [
        "| " + " | ".join(["", *(column.head for column in columns)]) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for label, scores in rows.items():
        cells = [f"{scores[c.key]:.{c.decimals}f}" if c.key in scores else "" for c in columns]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """Write a report as Markdown: a table a sequence, their mean, the synthetic clips, and what failed.

    Args:
        report: what :func:`streamvggt.evaluate.evaluate_sequences` returns, and perhaps ``synthetic``, what
            :func:`streamvggt.evaluate.evaluate_clips` returns.
    """
    parts = []
    for one in report["sequences"]:
        height, width = one["image_hw"]
        skipped = f", {one['num_skipped']} unreadable left out" if one["num_skipped"] else ""
        parts += [
            f"### {one['name']} ({one['layout']}, {one['num_frames']} frames{skipped}, {width}x{height})",
            markdown_table(one["rows"]),
        ]
    if len(report["sequences"]) > 1:
        parts += [f"### Mean of {len(report['sequences'])} sequences", markdown_table(report["mean"])]
    if "synthetic" in report:
        clips = report["synthetic"]
        title = f"### Made-up scenes (mean of {clips['num_clips']} clips of {clips['num_frames']} frames)"
        parts += [title, markdown_table(clips["rows"])]
    parts += [f"**{name} is not scored:** {reason}" for name, reason in report["failures"].items()]
    return "\n\n".join(parts) + "\n"


def json_text(report: Mapping[str, Any]) -> str:
    """Write a report as JSON; scores that are not defined are not in it."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def trajectory_png(truth: Truth, answers: Mapping[str, Answer]) -> bytes | None:
    """Draw camera paths from above and from the side, each brought onto the true one by a similarity.

    Returns:
        A PNG; None without true poses or with fewer than three frames. Paths that leave the similarity open (a camera
            that stays, or a straight line) are not drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if truth.extrinsics is None or truth.num_frames < 3:
        return None
    centers = invert_pose(np.asarray(truth.extrinsics, np.float64))[..., 3]
    paths = {"truth": centers}
    for label, answer in answers.items():
        if answer.extrinsics is not None:
            path = invert_pose(np.asarray(answer.extrinsics, np.float64))[..., 3]
            try:
                paths[label] = align_similarity(path, centers).apply(path)
            except ValueError:  # a camera that stays, or walks on a line: nothing to see
                continue
    figure = _figure(10, 5)
    # The world is the sequence's own and may have its z axis up: show the two planes in which there is most motion.
    order = np.argsort(-np.ptp(centers, axis=0), kind="stable")
    for number, (first, second) in enumerate(((order[0], order[1]), (order[0], order[2])), 1):
        axes = figure.add_subplot(1, 2, number)
        for label, path in paths.items():
            (line,) = axes.plot(path[:, first], path[:, second], label=label, marker=".", linewidth=1)
            if label == "truth":
                line.set(color="black", linewidth=2)
        axes.set_xlabel(f"{'xyz'[first]} (m)")
        axes.set_ylabel(f"{'xyz'[second]} (m)")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend()
    return _png(figure)


def depth_png(images: Tensor, truth: Truth, answers: Mapping[str, Answer], num_shown: int = 4) -> bytes | None:
    """Draw some frames: picture, true depth, and the first answer's depth at the truth's median, in one colour scale.

    Returns:
        A PNG; None without true depth or an answer with depth.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found = next(((name, one.depth) for name, one in answers.items() if one.depth is not None), None)
    if found is None or truth.depth is None or truth.valid is None:
        return None
    label, depth = found
    seen = [i for i in range(truth.num_frames) if truth.valid[i].any()]
    chosen = [seen[i] for i in np.unique(np.linspace(0, len(seen) - 1, num_shown).round().astype(int))]
    height, width = truth.image_hw
    figure = _figure(9, (0.4 + 2.6 * height / width) * len(chosen))
    for row, i in enumerate(chosen):
        known = truth.valid[i]
        scale, _ = fit_depth(np.asarray(depth[i])[known], truth.depth[i][known], "median")
        low, high = np.percentile(truth.depth[i][known], [2, 98])
        true_depth = np.where(known, truth.depth[i], np.nan)
        panels = ((f"frame {i}", None), ("truth", true_depth), (label, scale * depth[i]))
        for column, (title, values) in enumerate(panels):
            axes = figure.add_subplot(len(chosen), 3, 3 * row + column + 1)
            axes.set_title(title)
            axes.axis("off")
            if values is None:
                axes.imshow(images[i].permute(1, 2, 0).clamp(0, 1).cpu().numpy())
            else:
                drawn = axes.imshow(values, cmap="turbo", vmin=low, vmax=high)
        figure.colorbar(drawn, ax=axes, label="m", fraction=0.04)
    return _png(figure)


def _figure(width_inches: float, height_inches: float) -> Figure:
    """Make a figure that knows no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'streamvggt[eval]'") from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
