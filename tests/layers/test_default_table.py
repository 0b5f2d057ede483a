"""docs/layers.md: the layers that are explained by default in torchvision's networks, as the script writes them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("default_layers")


def table_of(text: str) -> dict[str, str]:
    """The layer of each network."""
    rows = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \|", text, re.MULTILINE)
    return {network: layer for networks, layer in rows for network in networks.split(", ")}


def test_the_table_has_all_networks(script: Any) -> None:
    assert set(table_of(script.PAGE.read_text(encoding="utf-8"))) == set(script.names())


def test_networks_in_a_row_share_it(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    places, size = torch.zeros(3, 4), (96, 128)
    chosen = [script.Choice(name, size, layer, places) for name, layer in (("a", "x"), ("b", "x"), ("c", "y"))]
    script.write([*chosen, script.Choice("video/d", (8, 96, 96), "y", torch.zeros(4, 3, 3))])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| a, b | `x` | 3 × 4 for 96 × 128 |" in text
    assert table_of(text) == {"a": "x", "b": "x", "c": "y", "video/d": "y"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convnext_tiny", "maxvit_t", "squeezenet1_0", "swin_v2_t", "vit_b_32", "video/r3d_18", "video/swin3d_t"]
)
def test_a_row_of_the_table(name: str, script: Any) -> None:
    (chosen,) = script.choices([name])
    assert table_of(script.PAGE.read_text(encoding="utf-8"))[name] == chosen.layer
    assert float(chosen.values.std()) > 1e-3 * float(chosen.values.abs().max()) > 0
