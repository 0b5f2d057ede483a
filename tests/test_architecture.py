"""The house plan: imports point down, one file registers hooks, the public names are these."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchviz_cnn as tvc

PACKAGE = Path(tvc.__file__).parent
ROOT = PACKAGE.parent

# Lowest first: a module may import only from lines above its own. (CONTRIBUTING.md shows the floors.)
ORDER = [
    "errors",
    "names",
    "render",
    "images",
    "photo_folder",
    "image_source",
    "results",
    "result_folder",
    "ranks",
    "interrupts",
    "hooks",
    "untouched",
    "receptive_field",
    "layers",
    "capture",
    "relu_rules",
    "methods.scores",
    "methods.maps",
    "methods.cam",
    "methods.saliency",
    "methods.averaged",
    "methods.occlusion",
    "methods.deconvnet",
    "methods.reading",
    "methods.top_tally",
    "methods.top_pass",
    "methods.near_ties",
    "methods.channel_statistics",
    "methods.top_patches",
    "methods.top_results",
    "methods.mining",
    "methods.compare",
    "methods.objectives",
    "methods.image_parameters",
    "methods.transformations",
    "methods.recipes",
    "methods.patterns",
    "methods.twins",
    "methods.workers",
    "methods.climb",
    "methods.ascent_run",
    "methods.ascent",
    "methods.atlas",
    "models.convnets",
    "models.xception",
    "models.zfnet",
    "models.keras_files",
    "models.keras_import",
    "models.bundled",
    "models.catalogue",
    "models.checkpoints",
    "models.loading",
    "models",
    "report.encode",
    "report.measure",
    "report.patterns",
    "report.strongest",
    "report.content",
    "report.provenance",
    "report.page",
    "report",
    "demo",
    "",
    "commands.shared",
    "commands.layers",
    "commands.maps",
    "commands.filters",
    "commands.report",
    "commands.top",
    "cli",
    "__main__",
]

PACKAGES = {"methods", "commands"}
"""Folders whose own `__init__` holds a docstring alone."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, at its top or inside functions, as names below the package."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torchviz_cnn":
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torchviz_cnn"]
        below = [name.partition(".")[2] for name in names]
        inner = {name for name in below if name in known and name}
        found |= inner if inner else ({""} & set(below))
    return found


def test_every_module_has_its_place() -> None:
    assert set(modules()) - PACKAGES == set(ORDER)


@pytest.mark.parametrize("name", sorted(set(modules()) - PACKAGES))
def test_imports_point_down(name: str) -> None:
    place = {module: i for i, module in enumerate(ORDER)} | dict.fromkeys(PACKAGES, -1)
    upward = {other for other in imports(modules()[name]) if place[other] >= place[name]}
    assert not upward, f"{name or '__init__'} imports {upward}, which stand above it"


def test_only_one_file_registers_hooks() -> None:
    calls = {"register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_hook"}
    files = {
        path.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in calls
    }
    assert files == {"hooks.py"}


def test_nothing_calls_backward() -> None:
    for path in modules().values():
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "backward" not in attributes or path.name == "hooks.py", path
    assert ".backward()" not in modules()["hooks"].read_text()


def test_public_names_exist_and_are_sorted() -> None:
    assert list(tvc.__all__) == sorted(tvc.__all__)
    assert all(getattr(tvc, name, None) is not None for name in tvc.__all__)
    assert (PACKAGE / "py.typed").exists()


def test_every_public_function_has_a_docstring() -> None:
    missing = [name for name in tvc.__all__ if not (getattr(tvc, name).__doc__ or "").strip()]
    assert not missing


def test_importing_the_package_does_not_import_what_only_some_calls_need() -> None:
    heavy = ["matplotlib", "torchvision", "h5py", "safetensors.torch", "torch._dynamo", "skimage"]
    code = f"import sys, torch; before = set(sys.modules); import torchviz_cnn; print([m for m in {heavy} if m in sys.modules and m not in before])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_for_a_technique_are_short() -> None:
    for name in (
        "activations",
        "grad_cam",
        "saliency",
        "saliency_methods",
        "deconvnet",
        "report",
        "occlusion",
        "compare",
        "filter_patterns",
        "top_activations",
    ):
        assert len((ROOT / "scripts" / f"{name}.py").read_text().splitlines()) < 40
