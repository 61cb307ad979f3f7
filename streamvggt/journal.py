"""The log of a training run: JSON lines, TensorBoard, and a line for the person who watches."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .export import write_atomically

logger = logging.getLogger(__name__)


class Journal:
    """Write down what happens at the steps of a run; what a resumed run will do again is struck out first.

    A full disk costs lines, not the run.

    Args:
        folder: of the run; the lines are in its ``log.jsonl``, the curves in ``tensorboard``.
        step: steps that the run has behind it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "log.jsonl"
        self._strike(step)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        except ImportError:
            logger.warning("no curves for TensorBoard: it is not installed (pip install 'streamvggt[train]')")

    def write(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step.

        Args:
            step: steps taken.
            kind: "losses", whose numbers stand in the line themselves, or "validation", whose stand under that name.
            numbers: finite or not.
        """
        line = {"step": step, **numbers} if kind == "losses" else {"step": step, kind: dict(numbers)}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self._board is not None:
                for name, value in numbers.items():
                    self._board.add_scalar(f"{kind}/{name.replace('.', '/')}", value, step)
                self._board.flush()
        except OSError as error:
            logger.warning("the log of step %d could not be written: %s", step, error)

    def close(self) -> None:
        """Finish the curves."""
        if self._board is not None:
            self._board.close()

    def _strike(self, step: int) -> None:
        """Drop lines after a step, and a last one that was cut off in the middle."""
        if not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines(keepends=True) if _step_of(line) <= step]
        if "".join(kept) != text:
            write_atomically(self._path, "".join(kept).encode())


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite for what is no whole line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
