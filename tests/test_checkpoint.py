"""Networks as files: released and own weights load exactly, and every way a file can be wrong has its message."""

import argparse
import errno
import json
import logging
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from reference import CASES, GOLDEN, golden_case, relative_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from streamvggt import checkpoint
from streamvggt.checkpoint import CheckpointError, from_official, load_model, save_model, to_official
from streamvggt.config import StreamVGGTConfig
from streamvggt.model import StreamVGGT
from streamvggt.storage import pack_int8, unpack_int8

CONV = GOLDEN / "conv-batch" / "weights.safetensors"


@pytest.fixture(scope="module")
def golden():
    config, weights, _ = golden_case("conv-batch")
    return config, weights


@pytest.fixture(scope="module")
def tiny():
    """Not to be changed."""
    return load_model("tiny")


def assert_same_weights(model, official):
    """Bitwise, against tensors under official names."""
    state = to_official(model.state_dict())
    assert state.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(state[name], tensor), name


# Names


def test_the_released_names_and_shapes_are_those_of_the_1b_network_one_to_one():
    released = json.loads((GOLDEN / "official_state_dict.json").read_text())
    with torch.device("meta"):
        model = StreamVGGT(StreamVGGTConfig.vggt_1b())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_256_537_516
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(released) == len(ours) == 1797
    assert to_official(ours) == released
    assert from_official(released) == ours


def test_renaming_twice_changes_nothing_more():
    released = json.loads((GOLDEN / "official_state_dict.json").read_text())
    ours = from_official(released)
    assert ours != released
    assert from_official(ours) == ours
    assert to_official(released) == released


# Loading


@pytest.mark.parametrize("case", CASES)
def test_a_released_file_predicts_what_the_released_network_predicts(case):
    config, _, expected = golden_case(case)
    model = load_model(GOLDEN / case / "weights.safetensors", config=config)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # stored as float16
    with torch.no_grad():
        depth = model(expected["images"]).depth
    assert relative_error(depth, expected["causal.depth"][..., 0]) < 1e-5


@pytest.mark.parametrize(
    ("wrap", "zipped"),
    [
        (lambda weights: weights, True),
        (lambda weights: weights, False),
        (from_official, True),
        (lambda weights: {"model": weights, "epoch": 3}, True),
        (lambda weights: {"state_dict": weights, "optimizer": {"state": [1.0]}}, False),
        (lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}}, True),
    ],
    ids=["zip", "before torch 1.6", "our names", "model", "state_dict", "DDP"],
)
def test_pickled_weights_load_from_what_training_codes_write(tmp_path, golden, wrap, zipped):
    config, weights = golden
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=zipped)
    assert_same_weights(load_model(path, config=config), weights)


def test_weights_without_configuration_have_the_released_sizes_with_or_without_tracker(tmp_path, golden, monkeypatch):
    config, weights = golden
    monkeypatch.setattr(StreamVGGTConfig, "vggt_1b", lambda attention="causal": replace(config, attention=attention))
    assert load_model(CONV).config == config
    save_file({n: x for n, x in weights.items() if not n.startswith("track_head.")}, tmp_path / "a.safetensors")
    model = load_model(tmp_path / "a.safetensors")
    assert model.track_head is None
    assert model.config == replace(config, track=None)


def test_saving_and_loading_is_bitwise_and_keeps_the_configuration(tmp_path):
    torch.manual_seed(1)
    config = replace(StreamVGGTConfig.tiny(), attention="full", track=None, dense_layers=(0, 1, 2, 2))
    saved = StreamVGGT(config)
    save_model(saved, tmp_path / "net.safetensors")
    loaded = load_model(str(tmp_path / "net.safetensors"))
    assert loaded.config == config
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(type(p) is torch.nn.Parameter and p.requires_grad and p.is_leaf for p in loaded.parameters())
    assert not loaded.training
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata() == {"format": "streamvggt", "config": config.to_json()}


def test_eight_bits_a_weight_take_a_quarter_and_round_by_half_a_step_at_most(tmp_path, tiny):
    save_model(tiny, tmp_path / "whole.safetensors")
    save_model(tiny, tmp_path / "small.safetensors", storage="int8")
    loaded = load_model(tmp_path / "small.safetensors").state_dict()
    packed = 0
    for name, weight in tiny.state_dict().items():
        if name.endswith("weight") and weight.ndim > 1 and weight.numel() >= 1024:
            packed += weight.numel()
            step = weight.flatten(1).abs().amax(1) / 127
            error = (loaded[name] - weight).flatten(1).abs().amax(1)
            assert (error <= 0.5001 * step).all() and error.max() > 0, name
        else:
            assert torch.equal(loaded[name], weight), name
    saved = (tmp_path / "whole.safetensors").stat().st_size - (tmp_path / "small.safetensors").stat().st_size
    assert packed > 0.8 * sum(p.numel() for p in tiny.parameters())
    assert saved > 2.8 * packed  # 3 bytes each, less the scales and their names


def test_a_row_of_zeros_and_a_row_of_extremes_survive_eight_bits():
    weight = torch.zeros(64, 32)
    weight[1], weight[2, 5] = 3.0, -1e-3
    back = unpack_int8(pack_int8({"layer.weight": weight}))
    assert list(back) == ["layer.weight"]
    torch.testing.assert_close(back["layer.weight"], weight, rtol=1e-6, atol=0)


def test_half_precision_reaches_encoder_and_aggregator_and_survives_saving(tmp_path, tiny):
    model = load_model("tiny", dtype=torch.bfloat16)
    save_model(model, tmp_path / "half.safetensors")
    again = load_model(tmp_path / "half.safetensors", dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        body = name.startswith(("encoder.", "aggregator."))
        assert tensor.dtype == (torch.bfloat16 if body else torch.float32), name
        assert torch.equal(again.state_dict()[name], tensor), name
    wide = load_model(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in wide.state_dict().values()} == {torch.float32}
    images = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        half, full = model(images), tiny(images)
    assert half.depth.dtype == torch.float32
    assert relative_error(half.depth, full.depth) < 0.05
    with pytest.raises(ValueError, match=r"dtype must be .* got torch\.float64"):
        load_model("tiny", dtype=torch.float64)


def test_an_argument_goes_before_what_the_file_says_about_attention(tmp_path, golden):
    config, _ = golden
    save_model(load_model("tiny", attention="full"), tmp_path / "full.safetensors")
    assert load_model(tmp_path / "full.safetensors").config.attention == "full"
    assert load_model(tmp_path / "full.safetensors", attention="causal").config.attention == "causal"
    assert load_model(CONV, config=replace(config, attention="full")).config.attention == "full"
    assert load_model(CONV, config=config, attention="full").config.attention == "full"
    assert load_model(CONV, config=config).config.attention == "causal"
    with pytest.raises(ValueError, match="attention must be one of"):
        load_model("tiny", attention="sparse")


def test_a_given_configuration_goes_before_that_of_the_file(tmp_path, tiny):
    save_model(tiny, tmp_path / "net.safetensors")
    given = replace(tiny.config, camera_iterations=2)
    assert load_model(tmp_path / "net.safetensors", config=given).config == given


def test_tiny_is_always_the_same_and_leaves_the_global_generator_alone(caplog):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "streamvggt"):
        first = load_model("tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert "untrained" in caplog.text
    torch.manual_seed(8)
    with torch.device("meta"):
        second = load_model("tiny")
    assert first.config == StreamVGGTConfig.tiny()
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    assert first.encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)  # drawn, not zeros


def test_small_is_the_bundled_file(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(checkpoint, "BUNDLED_MODEL", tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r'"small" are missing.*"tiny"'):
        load_model()
    save_model(tiny, tmp_path / "small.safetensors")
    assert load_model().config == StreamVGGTConfig.tiny()


def test_a_folder_stands_for_its_model_or_its_only_checkpoint(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="holds 0 checkpoints"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(CheckpointError, match=r"0 checkpoints \(notes\.txt\)"):
        load_model(tmp_path)
    save_model(tiny, tmp_path / "b.safetensors")
    assert load_model(tmp_path).config == tiny.config
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"2 checkpoints \(a\.safetensors, b\.safetensors\)"):
        load_model(tmp_path)
    save_model(tiny, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert load_model(str(tmp_path)).config == tiny.config


def test_weights_stay_what_they_were_when_their_file_is_overwritten(tmp_path, tiny):
    path = tmp_path / "net.safetensors"
    save_model(tiny, path)
    model = load_model(path)
    path.write_bytes(bytes(path.stat().st_size))
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_importing_it_does_not_load_the_hub():
    code = "import sys, streamvggt.checkpoint; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files that are wrong


def half_of(write):
    def write_half(path):
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def write_legacy(path):
    torch.save(dict(load_file(CONV)), path, _use_new_zipfile_serialization=False)


WRONG_FILES = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("these are not the weights"), "starts with b'these are not t"),
    "image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), r"starts with b'\\x89PNG"),
    "pointer": (lambda path: path.write_text("version https://git-lfs\noid sha256:0\n"), "git lfs pull"),
    "zip": (write_zip, "no checkpoint .*download or copy it again"),
    "half a safetensors file": (half_of(lambda path: path.write_bytes(CONV.read_bytes())), "cut short"),
    "half a zip": (half_of(lambda path: torch.save(load_file(CONV), path)), "cut short"),
    "half a pickle": (half_of(write_legacy), "cut short"),
    "objects": (
        lambda path: torch.save({"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, path),
        "holds Python objects beside tensors",
    ),
    "code": (lambda path: path.write_bytes(pickle.dumps(print)), "holds Python objects beside tensors"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "holds a list; needed is a dictionary"),
    "numbers": (lambda path: torch.save({"epoch": 3, "loss": 0.1}, path), "holds a dict of epoch, loss; needed"),
    "nothing": (lambda path: torch.save({}, path), "holds a dict; needed"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_named_with_what_it_holds(tmp_path, kind):
    write, message = WRONG_FILES[kind]
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nothing/here/model", "weights/model.safetensors", "../model", "model"])
def test_a_missing_file_is_no_hub_id(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"there is no file or folder {source}; pass"):
        load_model(source)


def test_other_tensors_than_needed_are_counted_and_named(tmp_path, golden):
    config, weights = golden
    path = tmp_path / "w.safetensors"
    changed = dict(weights)
    for i in range(7):
        changed[f"extra.{i}"] = torch.zeros(1)
    del changed["camera_head.token_norm.bias"]
    changed["depth_head.norm.weight"] = torch.zeros(3)
    changed["depth_head.norm.bias"] = torch.zeros(64, dtype=torch.int8)
    save_file(changed, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, config=config)
    message = str(caught.value)
    assert "1 missing (camera_head.token_norm.bias)" in message
    assert "7 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, ...)" in message
    assert "1 of another shape (depth_head.pyramid.norm.weight is [3], needed [64])" in message
    assert "1 not floating point (depth_head.pyramid.norm.bias is torch.int8)" in message
    assert "pass the config=" in message


def test_weights_of_unknown_sizes_ask_for_their_configuration():
    with pytest.raises(CheckpointError, match=r"do not fit.*pass the config= .*without one, the released sizes"):
        load_model(CONV)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"wings": 2}', r"unknown sizes \['wings'\].*update streamvggt"),
        ('{"track": {"wings": 2}}', "wings"),
        ("not json", "cannot read"),
        ("3", "cannot read"),
        ('{"patch_size": 0}', "cannot read"),
        ('{"embed_dim": 1022}', "embed_dim 1022"),
    ],
)
def test_a_configuration_from_another_version_asks_for_an_update(tmp_path, config, message):
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"format": "streamvggt", "config": config})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "new.safetensors")


def test_weights_that_are_not_finite_are_named_and_counted(tmp_path):
    model = load_model("tiny")
    with torch.no_grad():
        model.camera_head.token_norm.weight[3:5] = torch.tensor([torch.nan, torch.inf])
    save_model(model, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"2 of 96 numbers of camera_head\.token_norm\.weight .*not finite"):
        load_model(tmp_path / "w.safetensors")


def test_weights_that_overflow_in_half_precision_are_named(tmp_path):
    model = load_model("tiny")
    with torch.no_grad():
        model.aggregator.camera_token[0, 0, 0, 0] = 1e5  # float16 ends at 65,504
    save_model(model, tmp_path / "w.safetensors")
    assert load_model(tmp_path / "w.safetensors").aggregator.camera_token[0, 0, 0, 0] == 1e5
    with pytest.raises(CheckpointError, match=r"1 of 96 numbers of aggregator\.camera_token .*as torch\.float16"):
        load_model(tmp_path / "w.safetensors", dtype=torch.float16)


# Saving


def test_a_path_without_the_ending_is_refused_and_missing_folders_are_made(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or be a folder, got .*model\.pt"):
        save_model(tiny, tmp_path / "model.pt")
    save_model(tiny, tmp_path / "runs" / "1" / "last.safetensors")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["last.safetensors"]


def test_others_may_read_a_saved_file_as_any_other_file(tmp_path, tiny):
    save_model(tiny, tmp_path / "net.safetensors")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "net.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def fail_to_sync(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["while writing", "at the end"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, tiny, where):
    resource = pytest.importorskip("resource")  # a limit on the size of files fails as a full disk does; not on Windows
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"the file before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if where == "while writing":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    else:
        monkeypatch.setattr(os, "fsync", fail_to_sync)
    try:
        with pytest.raises(OSError, match=r"cannot write .*net\.safetensors|No space left"):
            save_model(tiny, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"the file before"
    assert list(tmp_path.iterdir()) == [path]
