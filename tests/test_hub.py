"""Networks on the Hub: downloads by the real client from a small server on this machine, uploads to a fake."""

import http.server
import importlib
import json
import logging
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.hf_api import api
from reference import GOLDEN, golden_case
from safetensors import safe_open

from streamvggt.checkpoint import CheckpointError, load_model, save_model
from streamvggt.config import StreamVGGTConfig
from streamvggt.model import StreamVGGT

CONV = GOLDEN / "conv-batch" / "weights.safetensors"
# The client's own HTTP library: httpx in its versions 1, httpx2 later.
httpx = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny():
    """Not to be changed."""
    return load_model("tiny")


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download needs, over the folder ``owner/name`` of a root."""

    root: Path
    requests: list
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            owner, name = self.path.split("/")[3:5]
            files = (self.root / owner / name).rglob("*")
            names = [path.relative_to(self.root / owner / name).as_posix() for path in files if path.is_file()]
            listing = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            return self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        self.requests.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo == "owner/gated":
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if not (self.root / repo).is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v2"):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if not (self.root / repo / name).is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = (self.root / repo / name).read_bytes()
        return self.answer(200, data, {"ETag": f'"{repo}-{len(data)}"'.replace("/", "-"), "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status, data, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A root folder that the real client sees as the Hub; requests for files are noted in ``hub.requests``."""
    root = tmp_path / "hub"
    handler = type("Handler", (Hub,), {"root": root, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(api, "endpoint", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    huggingface_hub.close_session()
    yield handler
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def put(hub, model, path):
    (hub.root / path).parent.mkdir(parents=True, exist_ok=True)
    save_model(model, hub.root / path)


def go_offline(monkeypatch):
    """Be as under HF_HUB_OFFLINE=1, which is read when the client is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


# Downloads


def test_a_repository_loads_by_its_name_and_again_without_a_connection(hub, monkeypatch, tiny):
    put(hub, tiny, "owner/net/model.safetensors")
    put(hub, tiny, "owner/net/other.safetensors")
    loaded = load_model("owner/net")
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    go_offline(monkeypatch)
    asked = len(hub.requests)
    assert load_model("owner/net").config == tiny.config
    assert len(hub.requests) == asked


def test_the_only_checkpoint_of_a_repository_needs_no_usual_name(hub, monkeypatch, tiny):
    put(hub, tiny, "owner/net/weights/last.safetensors")
    (hub.root / "owner/net/README.md").write_text("a network")
    assert load_model("owner/net").config == tiny.config
    go_offline(monkeypatch)
    assert load_model("owner/net").config == tiny.config
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    put(hub, tiny, "owner/net/weights/first.safetensors")
    with pytest.raises(CheckpointError, match=r"owner/net holds 2 checkpoints \(weights/first.safetensors, weights/l"):
        load_model("owner/net")


def test_a_revision_is_asked_for(hub, tiny):
    put(hub, tiny, "owner/net/model.safetensors")
    load_model("owner/net@v2")
    assert hub.requests[-1].endswith("/owner/net/resolve/v2/model.safetensors")
    load_model("owner/net")
    StreamVGGT.from_pretrained("owner/net", revision="v2")
    assert hub.requests[-1].endswith("/owner/net/resolve/v2/model.safetensors")
    with pytest.raises(CheckpointError, match="owner/net has no such revision: check the name after the @"):
        load_model("owner/net@v9")


@pytest.mark.parametrize(
    ("source", "file", "attention", "licence"),
    [
        ("lch01/StreamVGGT", "checkpoints.pth", "causal", "lch01/StreamVGGT .* non-commercial research licence"),
        ("facebook/VGGT-1B", "model.safetensors", "full", "facebook/VGGT-1B .* CC BY-NC 4.0"),
        ("facebook/vggt-1b", "model.pt", "full", "facebook/VGGT-1B .* CC BY-NC 4.0"),
        ("facebook/VGGT-1B-Commercial", "vggt_1B_commercial.pt", "full", "VGGT-1B-Commercial .* acceptable use policy"),
        ("facebook/VGGT-1B-Commercial", "renamed.pt", "full", "VGGT-1B-Commercial .* acceptable use policy"),
    ],
)
def test_released_repositories_tell_their_licence_and_how_they_attend(
    hub, monkeypatch, caplog, source, file, attention, licence
):
    config, weights, _ = golden_case("conv-batch")
    monkeypatch.setattr(StreamVGGTConfig, "vggt_1b", lambda attention="causal": replace(config, attention=attention))
    (hub.root / source).mkdir(parents=True)
    if file.endswith(".safetensors"):
        shutil.copy(CONV, hub.root / source / file)
    else:
        torch.save(weights, hub.root / source / file)
    with caplog.at_level(logging.WARNING, "streamvggt"):
        model = load_model(source)
    assert model.config == replace(config, attention=attention)
    assert re.search(licence, caplog.text)
    assert load_model(source, attention="causal").config.attention == "causal"
    go_offline(monkeypatch)
    assert load_model(source).config.attention == attention


def test_a_local_folder_goes_before_a_repository_of_its_name(hub, monkeypatch, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    Path("owner/net").mkdir(parents=True)
    save_model(tiny, "owner/net")
    assert load_model("owner/net").config == tiny.config
    assert hub.requests == []


def test_a_gated_repository_says_how_to_get_in(hub):
    with pytest.raises(
        CheckpointError, match=r"owner/gated is gated: accept its licence .* `hf auth login`.*pass its pa"
    ):
        load_model("owner/gated")


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(CheckpointError, match="no file or folder owner/nothing, nor a repository of that name"):
        load_model("owner/nothing")


def test_without_connection_and_copy_it_says_what_works(hub, monkeypatch, tiny):
    go_offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r'owner/net is not in the cache .*"tiny" needs no download'):
        load_model("owner/net")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("[Errno 111] Connection refused"),
        ConnectionResetError("connection reset"),
        OSError("Consistency check failed: file should be of size 10 but has size 5"),
        errors.XetDownloadError("no shard"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_breaks_off_is_worth_another_try(hub, monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"the download of owner/net failed .*try again, or download") as caught:
        load_model("owner/net")
    assert caught.value.__cause__ is error


# Folders and uploads


def test_a_folder_for_the_hub_holds_weights_configuration_and_card(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = (tmp_path / "net/config.json").read_text()
    with safe_open(tmp_path / "net/model.safetensors", "pt") as file:
        assert json.loads(config) == json.loads(file.metadata()["config"])
    assert StreamVGGTConfig.from_json(config) == tiny.config
    assert (tmp_path / "net/README.md").read_text().startswith("---\nlibrary_name: streamvggt\ntags:\n- streamvggt\n")
    (tmp_path / "net/README.md").write_text("my own card")
    tiny.save_pretrained(tmp_path / "net")
    assert (tmp_path / "net/README.md").read_text() == "my own card"
    loaded = StreamVGGT.from_pretrained(tmp_path / "net", attention="full", dtype=torch.bfloat16)
    assert loaded.config == replace(tiny.config, attention="full")
    assert loaded.encoder.cls_token.dtype == torch.bfloat16


class FakeApi:
    """Repositories in memory: name -> branch -> file -> bytes."""

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.token != "may write":
            request = httpx.Request("POST", "https://hub/api/repos/create")
            raise errors.HfHubHTTPError("401 Unauthorized\nInvalid", response=httpx.Response(401, request=request))
        assert exist_ok
        self.repos.setdefault(repo_id, {"main": {}, "private": private})
        return huggingface_hub.RepoUrl(f"https://hub/{repo_id}", endpoint="https://hub")

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        self.repos[repo_id].setdefault(branch, {})

    def file_exists(self, repo_id, filename, *, revision):
        return filename in self.repos[repo_id][revision or "main"]

    def upload_folder(self, *, repo_id, folder_path, commit_message, revision, ignore_patterns):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        for name in ignore_patterns or ():
            del files[name]
        self.repos[repo_id][revision or "main"].update(files, message=commit_message)


@pytest.fixture
def repos(monkeypatch):
    repos = {}
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (FakeApi,), {"repos": repos}))
    return repos


def test_an_upload_can_be_loaded_and_keeps_a_card_that_is_there(tmp_path, repos, tiny):
    assert tiny.push_to_hub("owner/net", private=True, token="may write") == "https://hub/owner/net"
    repo = repos["owner/net"]
    assert repo["private"] is True
    assert repo["main"].keys() == {"model.safetensors", "config.json", "README.md", "message"}
    assert repo["main"]["message"] == "Upload StreamVGGT weights"
    (tmp_path / "model.safetensors").write_bytes(repo["main"]["model.safetensors"])
    loaded = load_model(tmp_path)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    repo["main"] = {"README.md": b"my own card"}
    tiny.push_to_hub("owner/net", commit_message="Better", revision="next", token="may write")
    assert repo["main"] == {"README.md": b"my own card"}
    assert repo["next"]["message"] == "Better"
    tiny.push_to_hub("owner/net", token="may write")
    assert repo["main"]["README.md"] == b"my own card"
    assert "model.safetensors" in repo["main"]


def test_an_upload_without_rights_says_to_log_in(repos, tiny):
    with pytest.raises(CheckpointError, match=r"owner/net could not be uploaded .*401 Unauthorized.*`hf auth login`"):
        tiny.push_to_hub("owner/net")
    assert repos == {}
