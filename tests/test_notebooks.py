"""docs/notebooks: each runs without an error or a warning, and stands there with small outputs of such a run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("notebooks")


def shown(notebook: Any) -> list[list[str]]:
    """What kinds of output each cell has; a picture is a picture, whatever its format."""
    return [
        [
            "picture" if any(kind.startswith("image/") for kind in output.get("data", {})) else output.output_type
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@by_name
def test_what_is_kept_is_small_and_whole(path: Path, script: Any) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert script.problems(notebook) == []
    assert path.stat().st_size <= script.LARGEST_NOTEBOOK
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert 10 <= len(notebook.cells) <= 28


@pytest.mark.slow
@by_name
def test_it_runs_and_shows_what_is_kept(path: Path, script: Any) -> None:
    notebook = script.tidy(script.executed(path))
    assert script.problems(notebook) == []
    assert shown(notebook) == shown(nbformat.read(path, as_version=4))


def test_each_is_in_the_list() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in listed] == []


def test_problems_are_noticed(script: Any) -> None:
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("1", execution_count=1)
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("stream", name="stdout", text="in /home/reader/photos"),
        nbformat.v4.new_output("display_data", {"image/png": "A" * 100_000}),
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]),
    ]
    notebook.cells = [cell, nbformat.v4.new_code_cell("2")]
    words = "\n".join(script.problems(notebook))
    for one in ("stderr", "/home/reader", "bytes, more than 60000", "ValueError: no", "cell 2 was not run"):
        assert one in words
