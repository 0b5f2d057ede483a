"""Every block of Python in README and docs runs, page by page, from the first to the last.

A page's networks and photos are those that it loads; what it only speaks of is in `stand_ins.py`.
"""

from __future__ import annotations

from pathlib import Path

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
SHORTER = {
    "budget=600": "budget=61",
    "budget=30)": "budget=5)",
    "budget=60)": "budget=5)",
    "budget=60,": "budget=5,",
    "steps=20)": "steps=2)",
}
"""What is replaced, so that a page does not take as long as its reader would let it."""
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
    builders = dict(BUILDERS)
    names = {"tvc": tvc, **stand_ins.NAMES.get(name, dict)()}
    try:
        for block in blocks(PAGES[name]):
            if block.reason is None:
                code = "\n" * (block.line - 1) + shorter(block.code)  # so that an error names the line of the page
                exec(compile(code, name, "exec", dont_inherit=True), names)
    finally:
        BUILDERS.clear()
        BUILDERS.update(builders)


def shorter(code: str) -> str:
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    return code
