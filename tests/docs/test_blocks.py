"""Every block of Python in README and docs runs, page by page, from the first to the last.

A page's networks and photos are those that it loads; what it only speaks of is in `stand_ins.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torchviz_cnn as tvc
from tests.docs import stand_ins
from tests.docs.pages import ELSEWHERE, GALLERY, PAGES, blocks
from torchviz_cnn.models.keras.layers.table import BUILDERS

QUICK = {
    "docs/deconvnet.md",
    "docs/index.md",
    "docs/models.md",
    "docs/own_model.md",
    "docs/targets.md",
    "docs/watch.md",
}
"""Pages that take a second or two; the others are tested with what is slow."""
SHORTER: dict[str, dict[str, float]] = {
    "filter_atlas": {"steps": 2},
    "filter_patterns": {"steps": 2},
    "maximize": {"steps": 2},
    "report": {"budget": 4},
    "trust": {"steps": 2, "perturbed": 1, "mosaics": 0},
}
"""Functions that take as long as their reader lets them: the options that say so, and the most that they are here."""
RUN = [name for name, path in PAGES.items() if name not in ELSEWHERE and path.parent != GALLERY]


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_python_and_those_that_are_not_run_say_why(name: str) -> None:
    for block in blocks(PAGES[name]):
        compile(block.code, f"{name}, line {block.line}", "exec")
        assert block.reason is None or len(block.reason.split()) >= 3


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUN]
)
@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tvc, "load_model", stand_ins.load_model)
    monkeypatch.setattr(tvc, "load_keras_weights", lambda model, path: model)
    for function, most in SHORTER.items():
        monkeypatch.setattr(tvc, function, shorter(getattr(tvc, function), most))
    builders = dict(BUILDERS)
    names = {"tvc": tvc, **stand_ins.NAMES.get(name, dict)()}
    try:
        for block in blocks(PAGES[name]):
            if block.reason is None:
                code = "\n" * (block.line - 1) + block.code  # so that an error names the line of the page
                exec(compile(code, name, "exec", dont_inherit=True), names)
    finally:
        BUILDERS.clear()
        BUILDERS.update(builders)


def shorter(function: Callable[..., Any], most: dict[str, float]) -> Callable[..., Any]:
    """The function with options of at most so much, also where they are not given; their names are checked."""
    assert most.keys() <= inspect.signature(function).parameters.keys()

    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options | {name: min(options.get(name, end), end) for name, end in most.items()})

    return call
