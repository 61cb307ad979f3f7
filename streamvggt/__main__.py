"""Command line: ``python -m streamvggt`` and a verb: ``reconstruct``, ``evaluate``, ``train`` or ``info``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .checkpoint import CheckpointError
from .cli import evaluate, info, reconstruct, train
from .memory import is_out_of_memory
from .reconstruct import out_of_memory
from .train import TrainingError
from .video import VideoError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 after an error that is printed, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("streamvggt: interrupted", file=sys.stderr)
        return 130
    except (VideoError, CheckpointError, TrainingError, ValueError, OSError, ImportError) as error:
        print(f"streamvggt: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"streamvggt: {out_of_memory(error)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamvggt", description="Live 3D from video: poses, depth and points of every new frame."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in (reconstruct, evaluate, train, info):
        verb.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
