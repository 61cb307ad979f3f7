"""Who may import whom, and what `import streamvggt` may cost."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "streamvggt"

# Each row may import the rows above it and its own modules marked so. A package named whole is one module.
HEADS = ("camera", "dense", "track")
LAYERS = [
    {"types", "config"},
    {
        "geometry",
        "rope",
        "attention",
        "layers",
        "matching",
        "memory",
        "official",
        "gltf",
        "storage",
        "safefiles",
        "tracks",
    },
    {
        "policies",
        "stores",
        "cache",
        "costs",
        "tokens",
        "static",
        "state",
        "encoder",
        "heads.camera",
        "heads.dense",
        "heads.track",
    },
    {"aggregator", "model"},
    {"follow", "images", "video", "losses", "metrics", "optimizer", "pictures", "posegraph", "submaps", "synthetic"},
    {"atlas", "checkpoint", "refinement", "saving", "session", "scene", "export", "glb", "thinning", "turntable"},
    {"colmap", "data", "layouts", "listings", "longstream", "loops", "notebook", "sequences", "sources"},
    {"batch", "distill", "evaluate", "predict", "protocols", "recipes", "reconstruct", "report", "scoring"},
    {"journal", "learner", "validation"},
    {"train"},
    {"cli"},
    {"__main__"},
]
# Within a row, the modules that build on others of it.
PEERS = {
    ("batch", "reconstruct"),
    ("layers", "attention"),
    ("layers", "rope"),
    ("heads.track", "heads.dense"),
    ("cache", "policies"),
    ("cache", "stores"),
    ("costs", "policies"),
    ("costs", "stores"),
    ("costs", "tokens"),
    ("tokens", "cache"),
    ("tokens", "policies"),
    ("tokens", "stores"),
    ("state", "cache"),
    ("state", "costs"),
    ("state", "static"),
    ("static", "cache"),
    ("static", "policies"),
    ("static", "stores"),
    ("state", "policies"),
    ("state", "stores"),
    ("state", "tokens"),
    ("model", "aggregator"),
    ("session", "refinement"),
    ("session", "saving"),
    ("video", "images"),
    ("glb", "export"),
    ("colmap", "listings"),
    ("layouts", "colmap"),
    ("layouts", "listings"),
    ("sequences", "layouts"),
    ("sequences", "listings"),
    ("longstream", "loops"),
    ("sources", "data"),
    ("sources", "sequences"),
    ("evaluate", "predict"),
    ("evaluate", "protocols"),
    ("evaluate", "report"),
    ("evaluate", "scoring"),
    ("predict", "scoring"),
    ("report", "scoring"),
    ("scoring", "protocols"),
}
# Imported inside a function, so that it costs nothing until it is called; the network's doors to the Hub.
LATE = {("model", "checkpoint")}
NETWORK = {"rope", "matching", "attention", "layers", "encoder", "aggregator", "model", "policies", "stores", "cache", "costs", "tokens", "tracks", "static", "state", *(f"heads.{n}" for n in HEADS)}  # fmt: skip  # noqa: E501
HEAVY = {"av", "trimesh", "huggingface_hub", "gradio", "matplotlib", "scipy", "PIL", "tqdm"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path, name):
    """Names imported by a module: (module, whether at its top level); our own without the package's name."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    package = name.split(".")[:-1]
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            found = [".".join([*base, node.module])] if node.module else [".".join([*base, a.name]) for a in node.names]
            found = [f"streamvggt.{module}" for module in found]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module]
        for module in found:
            yield module, id(node) in top


def place(name):
    package = name.split(".")[0]
    return package if any(package in layer for layer in LAYERS) else name


def rank(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_has_its_place():
    known = set().union(*LAYERS) | {"__init__", "heads.__init__"}
    assert {place(name) for name, _ in modules()} == known


@pytest.mark.parametrize(("name", "path"), [pair for pair in modules() if not pair[0].endswith("__init__")])
def test_a_module_imports_only_what_lies_below_it(name, path):
    for imported, at_top in imports(path, name):
        if not imported.startswith("streamvggt."):
            continue
        other = place(imported.removeprefix("streamvggt."))
        if (name, other) in LATE:
            assert not at_top, f"{name} must import {other} inside a function"
        else:
            below = rank(other) < rank(place(name))
            assert below or other == place(name) or (name, other) in PEERS, f"{name} must not import {other}"


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_heavy_packages_are_imported_where_they_are_used(name, path):
    for imported, at_top in imports(path, name):
        assert not (at_top and imported.split(".")[0] in HEAVY), f"{name} imports {imported} at the top"


def test_the_network_imports_torch_alone():
    allowed = {"torch", "streamvggt", *sys.stdlib_module_names}
    for name, path in modules():
        if name in NETWORK:
            assert {imported.split(".")[0] for imported, _ in imports(path, name)} <= allowed, name


def test_importing_the_package_loads_nothing_heavy():
    code = """
import json, sys, time, torch
start = time.perf_counter()
import streamvggt
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""
    seconds, loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    for package in ("av", "trimesh", "huggingface_hub", "gradio", "matplotlib", "scipy"):
        assert package not in loaded
    assert seconds < 10  # a hang or a download; the time itself is in benchmarks/


def test_public_names_exist_and_are_documented():
    import streamvggt

    for name in streamvggt.__all__:
        assert getattr(streamvggt, name).__doc__, name
    assert sorted(streamvggt.__all__, key=str) == streamvggt.__all__
