"""Networks as files and on the Hub: load ours and the released ones, save ours."""

from __future__ import annotations

import logging
import pickle
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from .config import StreamVGGTConfig
from .model import StreamVGGT
from .official import from_official, to_official
from .safefiles import write_tensors
from .storage import pack_int8, unpack_int8

__all__ = [
    "CheckpointError",
    "from_official",
    "from_pretrained",
    "load_model",
    "push_to_hub",
    "save_model",
    "save_pretrained",
    "to_official",
]

logger = logging.getLogger(__name__)

BUNDLED_MODEL = Path(__file__).parent / "weights" / "small.safetensors"
MODEL_FILE = "model.safetensors"
SUFFIXES = (".safetensors", ".pt", ".pth")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Release:
    """Public weights on the Hub: their files in the order of preference, how they attend, what their licence allows."""

    repo_id: str
    files: tuple[str, ...]
    attention: Literal["causal", "full"]
    licence: str


RELEASES = (
    Release(
        "lch01/StreamVGGT",
        ("checkpoints.pth",),
        "causal",
        "a non-commercial research licence, since they were trained from VGGT-1B",
    ),
    Release("facebook/VGGT-1B", (MODEL_FILE, "model.pt"), "full", "CC BY-NC 4.0: no commercial use"),
    Release(
        "facebook/VGGT-1B-Commercial",
        ("vggt_1B_commercial.pt",),
        "full",
        "the VGGT licence: commercial use under its acceptable use policy, which rules out military use",
    ),
)

MODEL_CARD = """---
library_name: streamvggt
tags:
- streamvggt
- 3d-reconstruction
- depth-estimation
- camera-pose-estimation
---

# StreamVGGT

Cameras, depth and points for every frame of a video, from the frame itself and its past.

```python
from streamvggt import StreamVGGT

model = StreamVGGT.from_pretrained("owner/name")  # this repository, or a folder
```
"""


class CheckpointError(RuntimeError):
    """Weights cannot be found, read or fitted to the network."""


def load_model(
    source: str | Path = "small",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: Literal["causal", "full"] | None = None,
    config: StreamVGGTConfig | None = None,
) -> StreamVGGT:
    """Load a network, ready to predict (in evaluation mode).

    Args:
        source: one of

            * "small", the trained model that comes with this package;
            * "tiny", an untrained network of under a million weights for tests, always the same;
            * a file: from :func:`save_model`, or the weights of VGGT or StreamVGGT under released names or ours, as
              ``.safetensors``, ``.pt`` or ``.pth``;
            * a folder that holds ``model.safetensors`` or one such file;
            * "owner/name" or "owner/name@revision" on the Hub. A file or folder of that name goes first.
        device: where the weights go.
        dtype: precision of encoder and aggregator: float32 (as without one), bfloat16 or float16. The heads always
            compute in float32.
        attention: "causal" or "full"; without it what the configuration says, then what is known of the repository,
            then "causal".
        config: sizes to take instead of those that the file carries. Needed where it carries none and they are not
            those of ``StreamVGGTConfig.vggt_1b()``, with or without the tracker.

    Raises:
        CheckpointError: the source cannot be found, read or downloaded, or its tensors do not fit.
        ValueError: another ``dtype`` or ``attention``.
    """
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")
    tensors, carried, release = _obtain(source)
    sizes = config or carried or _released_config(tensors, release)
    with torch.device("meta"):
        model = StreamVGGT(replace(sizes, attention=attention or sizes.attention))
    mismatch = _mismatch(model, tensors)
    if mismatch:
        advice = (
            "the file was changed after it was saved, get it again"
            if carried and not config
            else "pass the config= that they were trained with (without one, the released sizes are taken)"
        )
        raise CheckpointError(f"the tensors of {source} do not fit the network: {mismatch}; {advice}")
    model.load_state_dict(_place(tensors, device, dtype or torch.float32, source), strict=True, assign=True)
    return model.eval()


def save_model(model: StreamVGGT, path: str | Path, *, storage: Literal["native", "int8"] = "native") -> None:
    """Write a network and its configuration to one file, for :func:`load_model`.

    The file appears when it is complete; if anything fails, what was there before stays.

    Args:
        model: what to write.
        path: a file that ends in ``.safetensors``, or a folder, where it is ``model.safetensors``. Missing folders
            above the file are made.
        storage: "native" writes the weights in their precision; "int8" the layers' in 8 bits a number
            (:func:`streamvggt.storage.pack_int8`), which :func:`load_model` turns back into floating point.

    Raises:
        ValueError: the path has another ending, or another ``storage``.
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors or be a folder, got {path}")
    if storage not in ("native", "int8"):
        raise ValueError(f'storage must be "native" or "int8", got {storage!r}')
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if storage == "int8":
        tensors = pack_int8(tensors)
    write_tensors(path, tensors, {"format": "streamvggt", "config": model.config.to_json()})


def save_pretrained(model: StreamVGGT, folder: str | Path) -> None:
    """Write a network to a folder as the Hub expects it: weights, ``config.json`` and a model card if there is none.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    (folder / "config.json").write_text(model.config.to_json() + "\n", encoding="utf-8")
    card = folder / "README.md"
    if not card.exists():
        card.write_text(MODEL_CARD, encoding="utf-8")


def from_pretrained(source: str | Path, *, revision: str | None = None, **options: Any) -> StreamVGGT:
    """Load a network from the Hub or a folder, with the arguments that are usual there; see :func:`load_model`.

    Args:
        source: "owner/name" on the Hub, or a folder.
        revision: branch, tag or commit of the repository.
        options: passed to :func:`load_model`.

    Raises:
        CheckpointError: see :func:`load_model`.
    """
    return load_model(f"{source}@{revision}" if revision else source, **options)


def push_to_hub(
    model: StreamVGGT,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str = "Upload StreamVGGT weights",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a network to the Hub; the repository is made if it is not there. A model card that it has is kept.

    Args:
        model: the network.
        repo_id: "owner/name".
        private: whether a new repository is private; without it, as the owner has set.
        commit_message: what the history says.
        revision: branch to upload to, made if it is not there; without it the main branch.
        token: access token that may write; without it the one stored by ``hf auth login``.

    Returns:
        URL of the repository.

    Raises:
        CheckpointError: the Hub cannot be reached or refuses.
        OSError: there is no room for a temporary copy.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api = HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision:
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
            has_card = api.file_exists(url.repo_id, "README.md", revision=revision)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                ignore_patterns=["README.md"] if has_card else None,
            )
        except Exception as error:
            raise CheckpointError(
                f"{repo_id} could not be uploaded ({_first_line(error)}); check the connection, and that you are "
                "logged in (`hf auth login`) with a token that may write there"
            ) from error
    return str(url)


def _draw_tiny() -> tuple[dict[str, Tensor], StreamVGGTConfig]:
    config = StreamVGGTConfig.tiny()
    # Whatever device the caller has made the default: another one draws other numbers.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also reach the accelerators' generators
        return StreamVGGT(config).state_dict(), config


def _released_config(tensors: Mapping[str, Tensor], release: Release | None) -> StreamVGGTConfig:
    """Sizes of the public weights, which carry none; the tracker is there if its tensors are."""
    config = StreamVGGTConfig.vggt_1b(release.attention if release else "causal")
    return config if any(name.startswith("track_head.") for name in tensors) else replace(config, track=None)


def _obtain(source: str | Path) -> tuple[dict[str, Tensor], StreamVGGTConfig | None, Release | None]:
    """Get the tensors of a source, the configuration that they carry and what is known of where they come from."""
    if source == "tiny":
        logger.warning('"tiny" is an untrained network for tests: its predictions mean nothing')
        return *_draw_tiny(), None
    try:
        path, release = _find(source)
        return *_read(path), release
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read ({error}); check the path and its permissions") from error


def _find(source: str | Path) -> tuple[Path, Release | None]:
    """Find the file that a source stands for, on disk or on the Hub, and what is known of its repository."""
    if source == "small":
        if not BUNDLED_MODEL.is_file():
            raise CheckpointError(
                f'the weights of "small" are missing ({BUNDLED_MODEL}); install the package again, or pass a file, a '
                'folder, a Hub id such as "lch01/StreamVGGT", or "tiny" for an untrained network'
            )
        return BUNDLED_MODEL, None
    path = Path(source)
    if path.is_dir():
        return path / _choose_file((file.name for file in path.iterdir() if file.is_file()), str(path)), None
    if path.exists():
        return path, None
    hub_id = HUB_ID.fullmatch(source) if isinstance(source, str) and path.suffix not in SUFFIXES else None
    if not hub_id:
        raise CheckpointError(
            f'there is no file or folder {source}; pass one that exists, a Hub id ("owner/name"), "small" or "tiny"'
        )
    repo_id, revision = hub_id.groups()
    release = next((known for known in RELEASES if known.repo_id.lower() == repo_id.lower()), None)
    path = _download(repo_id, revision, release.files if release else (MODEL_FILE,))
    if release:
        logger.warning("the weights of %s come under %s", release.repo_id, release.licence)
    return path, release


def _choose_file(names: Iterable[str], place: str) -> str:
    """Choose ``model.safetensors`` or the only checkpoint among the files of a folder or a repository."""
    names = sorted(names)
    checkpoints = [name for name in names if name.endswith(SUFFIXES)]
    if MODEL_FILE in names:
        return MODEL_FILE
    if len(checkpoints) != 1:
        raise CheckpointError(
            f"{place} holds {len(checkpoints)} checkpoints ({_some(checkpoints or names)}), one is needed "
            f"({', '.join(SUFFIXES)}); pass the path of the file itself"
        )
    return checkpoints[0]


def _download(repo_id: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Get the first of ``files`` that a Hub repository has, else its only checkpoint, from the cache if it is there."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        try:
            for name in files:
                with suppress(RemoteEntryNotFoundError):
                    return Path(hub.hf_hub_download(repo_id, name, revision=revision))
            name = _choose_file(hub.list_repo_files(repo_id, revision=revision), repo_id)
            return Path(hub.hf_hub_download(repo_id, name, revision=revision))
        except LocalEntryNotFoundError:  # without a connection; another file of the repository may be in the cache
            folder = Path(hub.snapshot_download(repo_id, revision=revision, local_files_only=True))
            names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            return folder / _choose_file(names, f"the Hub cannot be reached, and the cached part of {repo_id}")
    except CheckpointError:
        raise
    except Exception as error:
        elsewhere = 'or download the file elsewhere and pass its path; "tiny" needs no download'
        raise CheckpointError(f"{_hub_failure(error, repo_id)}, {elsewhere}") from error


def _hub_failure(error: Exception, repo_id: str) -> str:
    """Say why a download failed and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: accept its licence on its Hub page and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no file or folder {repo_id}, nor a repository of that name on the Hub that you may see: check "
            "the spelling, log in with `hf auth login` if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no such revision: check the name after the @"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{repo_id} is not in the cache and the Hub cannot be reached: check the connection, unset HF_HUB_OFFLINE"
        )
    return f"the download of {repo_id} failed ({_first_line(error)}): try again"


def _read(path: Path) -> tuple[dict[str, Tensor], StreamVGGTConfig | None]:
    """Read tensors under our names, and the configuration if the file carries one. What it is, its first bytes say."""
    with path.open("rb") as file:
        start = file.read(16)
    metadata: dict[str, str] = {}
    try:
        if start[8:9] == b"{":
            with safe_open(path, "pt") as archive:
                metadata = archive.metadata() or {}
                content: Any = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        elif start.startswith((b"PK", b"\x80")):
            # Only the zip format can be mapped into memory; torch before 1.6 wrote plain pickles.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
        else:
            came = f"starts with {start!r}" if start else "is empty"
            hint = (
                "it is a Git LFS pointer, run `git lfs pull`" if start.startswith(b"version https:") else "get it again"
            )
            raise CheckpointError(f"{path} is no checkpoint: it {came}, needed is .safetensors, .pt or .pth; {hint}")
        tensors = unpack_int8(_tensors(content, path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects beside tensors, which could run code when loaded, or is damaged; where it "
            "was trained, save its tensors alone: torch.save(model.state_dict(), ...)"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # the parsers meet arbitrary bytes here, and fail in as many ways
        raise CheckpointError(
            f"{path} is damaged, cut short or no checkpoint ({_first_line(error)}); download or copy it again"
        ) from error
    if "config" not in metadata:
        return tensors, None
    try:
        return tensors, StreamVGGTConfig.from_json(metadata["config"])
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} carries a configuration that this version cannot read ({error}); update streamvggt"
        ) from error


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Take the named tensors out of what a file held; training codes nest them and leave DDP's prefix."""
    if isinstance(content, Mapping):
        nested = (content.get(key) for key in ("model", "state_dict"))
        content = next((value for value in nested if isinstance(value, Mapping)), content)
        if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
            prefix = "module." if all(name.startswith("module.") for name in content) else ""
            return from_official({name.removeprefix(prefix): tensor for name, tensor in content.items()})
    keys = f" of {_some(map(str, content))}" if isinstance(content, Mapping) and content else ""
    raise CheckpointError(
        f"{path} holds a {type(content).__name__}{keys}; needed is a dictionary of named tensors, by itself or under "
        '"model" or "state_dict"'
    )


def _mismatch(model: StreamVGGT, tensors: Mapping[str, Tensor]) -> str:
    """Say how tensors differ from what the network needs; empty if they fit."""
    needed = model.state_dict()
    missing = [name for name in needed if name not in tensors]
    unexpected = [name for name in tensors if name not in needed]
    shapes = [
        f"{name} is {list(tensor.shape)}, needed {list(needed[name].shape)}"
        for name, tensor in tensors.items()
        if name in needed and tensor.shape != needed[name].shape
    ]
    integers = [f"{name} is {x.dtype}" for name, x in tensors.items() if name in needed and not x.is_floating_point()]
    parts = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("not floating point", integers),
    )
    return ", ".join(f"{len(names)} {what} ({_some(names)})" for what, names in parts if names)


def _place(
    tensors: dict[str, Tensor], device: str | torch.device, dtype: torch.dtype, source: str | Path
) -> dict[str, Tensor]:
    """Move tensors to their device and precision, one by one so that two copies of all are never held."""
    placed = {}
    for name in list(tensors):
        wanted = dtype if name.startswith(("encoder.", "aggregator.")) else torch.float32
        # A copy even where nothing changes: a weight that stays mapped to its file crashes when that is overwritten.
        tensor = tensors.pop(name).detach().to(device, wanted, copy=True)
        # The extremes carry every NaN and infinity, in a tenth of the time of a look at each number.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            wrong = tensor.numel() - int(tensor.isfinite().sum())
            raise CheckpointError(
                f"{wrong} of {tensor.numel()} numbers of {name} in {source} are not finite as {wanted}; get the file "
                "again, or choose another dtype if it overflowed"
            )
        placed[name] = tensor
    return placed


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _some(names: Iterable[str]) -> str:
    """List the first few names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
