"""The house plan: rooms on floors, small files, one place for hooks, and the public names, which are all documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import torchviz_cnn as tvc

PACKAGE = Path(tvc.__file__).parent
ROOT = PACKAGE.parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

LONG_FILES: dict[str, str] = {}
"""Files of more than 400 lines, each with its reason."""

LARGE_ROOMS: dict[str, str] = {"cli/commands": "one file a command, which a newcomer looks for by its name"}
"""Rooms of more than eight modules, each with its reason."""


def attributes(path: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_rooms_import_downwards_only() -> None:
    """The contracts in pyproject.toml, which `make check` runs too."""
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as check; check()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_and_no_room_is_large() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name for name, count in lines.items() if count > 400} == set(LONG_FILES)
    rooms = Counter(str(Path(name).parent) for name in MODULES if not name.endswith("__init__.py"))
    assert {room for room, count in rooms.items() if count > 8} == set(LARGE_ROOMS)


def test_the_quick_tests_look_into_every_room() -> None:
    """Those of `make quick`; each is there."""
    _, _, rest = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nQUICK = ")
    paths = [Path(word) for word in rest.partition("\n\n")[0].replace("\\", " ").split()]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.parts[1] for path in paths} == rooms


def test_one_file_registers_hooks() -> None:
    names = {name for name in vars(importlib.import_module("torch.nn").Module) if re.match(r"register_.*hook", name)}
    names |= {"register_hook", "register_module_forward_hook", "register_module_forward_pre_hook"}
    assert {name for name, path in MODULES.items() if names & attributes(path)} == {"hooks/manager.py"}


def test_nothing_calls_backward() -> None:
    assert [name for name, path in MODULES.items() if "backward" in attributes(path)] == ["hooks/manager.py"]
    assert ".backward(" not in MODULES["hooks/manager.py"].read_text()


def test_importing_the_package_does_not_import_what_only_some_calls_need() -> None:
    heavy = ["matplotlib", "torchvision", "h5py", "safetensors.torch", "torch._dynamo", "skimage", "cv2"]
    code = (
        "import sys, torch; before = set(sys.modules); import torchviz_cnn; "
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "activations",
        "grad_cam",
        "explain",
        "saliency",
        "saliency_methods",
        "deconvnet",
        "report",
        "hooks",
        "occlusion",
        "compare",
        "filter_patterns",
        "top_activations",
        "relevance",
        "trust",
        "watch",
    ],
)
def test_scripts_for_a_technique_are_short(name: str) -> None:
    assert len((ROOT / "scripts" / f"{name}.py").read_text().splitlines()) < 40


# --- the public names -----------------------------------------------------------------------------------------


def test_public_names_exist_and_are_sorted() -> None:
    assert [name for name in tvc.__all__ if getattr(tvc, name, None) is None] == []
    assert len(set(tvc.__all__)) == len(tvc.__all__)
    (written,) = (
        node.value.elts
        for node in ast.parse((PACKAGE / "api.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    )
    names = [str(node.value) for node in written if isinstance(node, ast.Constant)]
    assert names == sorted(names)
    assert (PACKAGE / "py.typed").exists()


def test_everything_public_is_in_all() -> None:
    """What stands in the package without an underscore, apart from its rooms, and what other modules gave it to use."""
    public = {
        name
        for name, value in vars(tvc).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
        if getattr(value, "__module__", "").startswith("torchviz_cnn")
    }
    assert public - set(tvc.__all__) == set()


def test_no_room_hides_a_public_name() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms & set(tvc.__all__) == set()


def public_functions() -> Iterator[tuple[str, object]]:
    """The functions of the API, and the methods of its classes that are its own."""
    for name in tvc.__all__:
        value = getattr(tvc, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for key, method in vars(value).items():
                if not key.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{key}", method
        elif isinstance(value, ModuleType):
            offered = getattr(value, "__all__", None)  # of a package, whose functions stand in its modules
            for key, function in vars(value).items():
                own = getattr(function, "__module__", "") == value.__name__ if offered is None else key in offered
                if not key.startswith("_") and inspect.isfunction(function) and own:
                    yield f"{name}.{key}", function


PUBLIC = dict(public_functions())
NO_VERBS = {"A", "All", "An", "Each", "Every", "How", "In", "One", "The", "What", "Where", "Whether", "Which"}


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in tvc.__all__ if not (getattr(tvc, name).__doc__ or "").strip()] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_begins_with_a_sentence(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n\n")[0].replace("\n", " ")
    word = first.partition(" ")[0]
    assert re.match(r"[A-Z`]", word), first
    assert "." in name or word not in NO_VERBS, first
    assert first.endswith((".", ":")), first


@pytest.mark.parametrize("name", [name for name in PUBLIC if "." not in name])
def test_many_parameters_are_listed(name: str) -> None:
    """Each of them, wherever a function has more than four."""
    function = PUBLIC[name]
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    if len(parameters) <= 4:
        return
    _, _, listed = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    listed = listed.partition("\n\n")[0]
    described = {word for row in re.findall(r"^    ([\w, *]+):", listed, re.M) for word in re.findall(r"\w+", row)}
    assert set(parameters) - described == set()
