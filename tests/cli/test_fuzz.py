"""Anything as a layer, a class, a network, an option, a manifest: exit code 0 or 2, and one line for what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import torchviz_cnn as tvc
from tests.cli.conftest import FACTORY, PREPARED
from tests.conftest import within_limits
from torchviz_cnn.cli import class_maps
from torchviz_cnn.cli.main import main
from torchviz_cnn.runs.folder import ResultFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("workplace"),
    pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning"),
]
NET = ["--model", "fuzzed:NET", *PREPARED]
TEXT = st.text(st.characters(blacklist_categories=()), max_size=30)
"""Any text, lone surrogates too: arguments are bytes, of which some are no UTF-8."""
NAMES = st.sampled_from(["0", "3", "0#1", "0#*", "*", "#", "[", "0.", "tusker", "-1", "3.5", "1e400", "²", "--", "nan"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "format", "identity", "progress", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a photo and a network; pictures are not drawn."""
    here = tmp_path_factory.mktemp("fuzz")
    labels = 'NET = tvc.load_model(net(), labels=["African elephant", "tusker", "3"])\n'
    (here / "fuzzed.py").write_text(f"import torchviz_cnn as tvc\n{FACTORY}\n{labels}")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(here / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(class_maps, "_draw", lambda *arguments: None)
        yield here


def require_orderly(arguments: list[str]) -> None:
    """Exit code 0 and nothing wrong, or 2 and one line."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    error = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with within_limits(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = main(arguments)
        except SystemExit as stop:  # as argparse ends
            code = int(stop.code or 0)
    error.seek(0)
    lines = [line for line in error.read().split("\n") if line]
    assert (code, len(lines)) in ((0, 0), (2, 1)), (code, lines)


@given(layer=TEXT | NAMES)
def test_any_layer(layer: str) -> None:
    require_orderly(["cam", "photo.png", *NET, "--layer", layer])


@given(target=TEXT | NAMES | st.integers().map(str))
def test_any_target(target: str) -> None:
    require_orderly(["cam", "photo.png", *NET, f"--target={target}"])


@given(model=TEXT | NAMES | st.tuples(TEXT, TEXT).map(":".join) | TEXT.map("fuzzed:{}".format))
def test_any_model(model: str) -> None:
    require_orderly(["layers", "--model", model])


@given(
    option=st.sampled_from(["--mean", "--alpha", "--input-size", "--crop", "--labels", "--colormap"]),
    value=TEXT | NAMES,
)
def test_any_value_of_an_option(option: str, value: str) -> None:
    require_orderly(["cam", "photo.png", *NET[:2], option, value])


@given(content=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_any_manifest(workplace: Path, content: bytes) -> None:
    """The commands that read a folder of results read it by these."""
    folder = workplace / "results"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    for read in (tvc.Atlas.read, tvc.TopActivations.load, lambda path: ResultFolder.open(path, "kind", {"x": 1})):
        with within_limits(), contextlib.suppress(tvc.OutputError):
            read(folder)
    assert (folder / "manifest.json").read_bytes() == content
