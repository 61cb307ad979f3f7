"""Streams as files: all that a session remembers, so that it goes on in another process or on another device.

What is remembered is packed as tensors by name and *facts*, which JSON can hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .matching import MatchMemory
from .model import StreamVGGT
from .policies import AnchorWindow, KeepAll, KeyDiversity, Keyframes, QueryImportance, TokenBudget
from .safefiles import write_tensors
from .state import StreamState
from .static import require_compiler
from .tokens import TokenCache
from .tracks import TrackQuery

_VERSION = 4  # of what is packed
_FORMATS = {
    "StreamSession": f"streamvggt session {_VERSION}",
    "LongSession": f"streamvggt long session {_VERSION}",
}
_RULES = {
    rule.__name__: rule for rule in (AnchorWindow, KeepAll, KeyDiversity, Keyframes, QueryImportance, TokenBudget)
}
_SAMPLES = 64  # numbers of each tensor that tell a model from another

Tensors = dict[str, Tensor]
Facts = dict[str, Any]
Session = TypeVar("Session")

logger = logging.getLogger(__name__)


class SavedSessionError(RuntimeError):
    """A file is no saved session, is damaged, or belongs to another model."""


def write_session(path: Path, kind: str, model: StreamVGGT, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Write what a session remembers to one file.

    Args:
        path: of the file; missing folders are made.
        kind: name of the session's class.
        model: that the session runs.
        tensors: packed; on any device.
        facts: packed.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was there before stays.
    """
    metadata = {"format": _FORMATS[kind], "model": fingerprint(model)}
    metadata |= {name: json.dumps(fact) for name, fact in facts.items()}
    write_tensors(path, {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)


def read_session(path: Path, kind: str, model: StreamVGGT, unpack: Callable[[Facts, Tensors], Session]) -> Session:
    """Read what :func:`write_session` wrote.

    Args:
        path: of the file.
        kind: name of the session's class.
        model: that the session is to run.
        unpack: makes a session of facts and tensors, which are on the CPU.

    Raises:
        SavedSessionError: the file is no saved session of this kind, is damaged, or belongs to another model.
        OSError: the file is not there or cannot be read.
    """
    path.stat()  # safetensors tells a missing file less clearly
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            _check_kind(path, kind, metadata.pop("format", None))
            if metadata.pop("model") != fingerprint(model):
                raise SavedSessionError(
                    f"{path} was saved with another model (other sizes, weights or precision); resume it with that one"
                )
            facts = {name: json.loads(fact) for name, fact in metadata.items()}
            # Copies: a tensor that stays mapped would need the file for as long as the stream runs.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return unpack(facts, tensors)
    except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
        raise SavedSessionError(f"{path} is damaged or no saved session ({error}); take another save") from error


def _check_kind(path: Path, kind: str, found: str | None) -> None:
    """Raise SavedSessionError for a file of another format."""
    if found == _FORMATS[kind]:
        return
    for other, name in _FORMATS.items():
        if found == name:
            raise SavedSessionError(f"{path} holds a {other}; resume it with {other}.resume()")
    raise SavedSessionError(f"{path} is no session that {kind}.save() of this version wrote")


def pack_state(state: StreamState) -> tuple[Tensors, Facts]:
    """Return what streams remember.

    Raises:
        ValueError: a policy is none of this package's, or the last call failed and has not been repeated.
    """
    state.slots.check_settled()
    frames = state.slots.frames
    tensors = {f"{name}.{key}": part for name, cache in state.caches.items() for key, part in cache.content().items()}
    tensors |= {f"prototype.{frame}": prototype for frame, prototype in state.slots.prototypes.items()}
    tensors |= {
        f"match.{name}": part
        for name, part in (("first", state.matches.first), ("previous", state.matches.previous))
        if part is not None
    }
    pyramids = {query.frame: query.features for query in state.tracks.queries} | state.tracks.features
    tensors |= {f"pyramid.{frame}.{i}": level for frame, levels in pyramids.items() for i, level in enumerate(levels)}
    tensors |= {f"query.{i}": query.points for i, query in enumerate(state.tracks.queries)}
    facts = {
        "asked": rule_facts(state.asked_policy),
        "policy": rule_facts(state.slots.policy),
        "full": state.full,
        "memory": state.memory,
        "storage": state.storage,
        "camera_cache": state.camera_cache,
        "compile": state.compiled,
        "shape": state.input_shape,
        "key_bytes": state.key_bytes,
        "num_frames": state.num_frames,
        "frames": frames,
        "shares": {name: cache.share for name, cache in state.caches.items() if isinstance(cache, TokenCache)},
        "followed": sorted(state.tracks.features),
        "queries": [query.frame for query in state.tracks.queries],
    }
    return tensors, facts


def fingerprint(model: StreamVGGT) -> str:
    """Tell a model by its configuration and a sample of every tensor, on any device."""
    digest = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        sample = tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLES)]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def unpack_state(model: StreamVGGT, facts: Facts, tensors: Mapping[str, Tensor]) -> StreamState:
    """Put a state together from what :func:`pack_state` returned, where the model is."""
    device = next(model.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    options = {name: facts[name] for name in ("storage", "camera_cache", "memory")}
    compiled = facts["compile"] and _can_compile(model)
    state = model.new_state(rule_of(facts["asked"]), compile=compiled, **options)
    state.start(rule_of(facts["policy"]))
    state.full, slots = facts["full"], state.slots
    slots.frames, slots.num_frames = list(facts["frames"]), facts["num_frames"]
    slots.prototypes = {frame: tensors[f"prototype.{frame}"] for frame in slots.frames}
    state.input_shape = None if facts["shape"] is None else tuple(facts["shape"])
    state.key_bytes = facts["key_bytes"]
    for name, cache in state.caches.items():
        if isinstance(cache, TokenCache):
            cache.share = facts["shares"][name]
        content = {key.removeprefix(f"{name}."): part for key, part in tensors.items() if key.startswith(f"{name}.")}
        if content:
            cache.load(content)
    state.matches = MatchMemory(tensors.get("match.first"), tensors.get("match.previous"))

    def pyramid(frame: int) -> list[Tensor]:
        return [tensors[f"pyramid.{frame}.{i}"] for i in range(sum(n.startswith(f"pyramid.{frame}.") for n in tensors))]

    followed = {*facts["followed"], *facts["queries"]}
    pyramids = {frame: pyramid(frame) for frame in followed}
    state.tracks.features = {frame: pyramids[frame] for frame in facts["followed"]}
    state.tracks.queries = [
        TrackQuery(frame, tensors[f"query.{i}"], pyramids[frame]) for i, frame in enumerate(facts["queries"])
    ]
    return state


def _can_compile(model: StreamVGGT) -> bool:
    """Whether a compiled stream can go on so where the model is; a warning if not."""
    try:
        require_compiler(next(model.parameters()).device.type)
    except ValueError as error:
        logger.warning("%s; the stream goes on without", error)
        return False
    return True


def rule_facts(rule: object) -> Facts:
    """A policy or score as JSON has it."""
    if type(rule).__name__ not in _RULES or not is_dataclass(rule):
        raise ValueError(f"{rule} is none of this package's policies and scores, and cannot be saved")
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return {"rule": type(rule).__name__} | {
        name: rule_facts(value) if is_dataclass(value) else value for name, value in values.items()
    }


def rule_of(facts: Mapping[str, Any]) -> Any:
    """The policy or score that :func:`rule_facts` describes."""
    values = {name: rule_of(value) if isinstance(value, dict) else value for name, value in facts.items()}
    return _RULES[values.pop("rule")](**values)
