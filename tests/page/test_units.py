"""What a report says of its units: filter patterns as time allows or from an atlas, strongest patches of a dataset."""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests.networks import vgg_like
from tests.page.test_report import Page, network, photos
from torchviz_cnn.ascent.atlas import Atlas, filter_atlas
from torchviz_cnn.page import patterns


def picture(page: Page, block: int) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(page.inside[f"block-{block}"]))).convert("RGB")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Filter patterns that are quickly made, and what was asked for in turn."""
    calls: list[tuple[str, list[int]]] = []

    def quick(model: nn.Module, layer: str, channels: list[int], **options: Any) -> Any:
        calls.append((layer, channels))
        time.sleep(0.02)
        return tvc.filter_patterns(model, layer, channels, size=16, steps=1, seed=options["seed"])

    monkeypatch.setattr(patterns, "filter_patterns", quick)
    return calls


def test_all_channels_shown_get_patterns_and_no_others(asked: list[Any], tmp_path: Path) -> None:
    found = tvc.report(network(vgg_like()), photos(1), tmp_path, channels=5, budget=None)
    page = Page(found)
    by_layer: dict[str, list[int]] = {}
    for layer, channels in asked:
        by_layer.setdefault(layer, []).extend(channels)
        assert len(channels) <= patterns.AT_ONCE
    for layer in page.data["layers"]:
        pooled = layer["kind"] in ("MaxPool2d", "AdaptiveAvgPool2d")
        added = layer["name"] == page.data["explained"]  # for its heatmap; nobody asked for it
        if pooled or added:
            assert layer["name"] not in by_layer
            assert layer["patterns"] == {}
        else:
            assert sorted(by_layer[layer["name"]]) == layer["channels"]
            assert set(layer["patterns"]) <= {str(c) for c in layer["channels"]}  # dead ones have none
    assert asked[0][0] == "features.7"  # the deepest first
    count = sum(len(layer["patterns"]) for layer in page.data["layers"])
    assert found.patterns == count
    assert f"{count} of 20 channels shown" in page.words
    assert not any(layer["late"] for layer in page.data["layers"])  # the dead are not late


def test_channels_that_there_was_no_time_for_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = {"features.7": {2: Image.new("RGB", (8, 8)), 3: None}}
    monkeypatch.setattr(sys.modules["torchviz_cnn.page.report"], "make_patterns", lambda *args, **options: made)
    for budget, late in ((60.0, [0, 1]), (0.0, [])):
        found = tvc.report(network(vgg_like()), [], tmp_path, layers=["features.7"], channels=4, budget=budget)
        layer = Page(found).data["layers"][0]
        assert layer["late"] == late
        assert list(layer["patterns"]) == (["2"] if budget else [])
        assert found.patterns == len(layer["patterns"])


def test_the_strongest_channels_come_first_and_the_budget_ends_it(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, shown = vgg_like(), photos(2)
    tvc.report(network(model), shown, tmp_path, budget=0)
    assert asked == []
    clock = [0.0]

    def now() -> float:
        clock[0] += 1.0  # each look at the clock is a second later
        return clock[0]

    monkeypatch.setattr(time, "monotonic", now)
    wanted = {"features.0": [7, 1, 2, 3], "features.7": [5, 4, 0]}
    done: list[int] = []
    found = patterns.make_patterns(model, wanted, until=5.0, seed=0, done=done.append)
    assert asked == [("features.7", [5, 4]), ("features.0", [7, 1])]
    assert sum(done) == 4
    assert set(found["features.0"]) == {7, 1}


def test_patterns_come_from_an_atlas(asked: list[Any], tmp_path: Path) -> None:
    net, folder, out = network(vgg_like()), tmp_path / "atlas", tmp_path / "page"
    filter_atlas(net.model, folder, ["features.7"], channels=3, size=24, steps=1)
    page = Page(tvc.report(net, photos(1), out, layers=["features.7", "features.5"], channels=[0, 1, 9], atlas=folder))
    assert asked == []
    layers = {layer["name"]: layer for layer in page.data["layers"]}
    drawn = Atlas.read(folder).patterns("features.7")
    alive = {str(c) for c in (0, 1) if c not in drawn.dead}
    assert set(layers["features.7"]["patterns"]) == alive != set()
    assert layers["features.5"]["patterns"] == {}
    for channel in alive:  # each is most like its own, through lossy compression
        shown = np.asarray(picture(page, layers["features.7"]["patterns"][channel]).convert("L"), float)
        like = [
            np.corrcoef(shown.ravel(), np.asarray(drawn.image(i).convert("L"), float).ravel())[0, 1] for i in range(3)
        ]
        assert int(np.argmax(like)) == int(channel)
        assert max(like) > 0.8
    with pytest.raises(tvc.OutputError, match="none of the layers shown"):
        tvc.report(net, photos(1), out, layers=["features.0"], atlas=folder)
    with pytest.raises(tvc.OutputError):
        tvc.report(net, photos(1), out, atlas=tmp_path / "nothing")
    with torch.no_grad():
        next(net.model.parameters()).add_(1)
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(net, photos(1), out, layers=["features.7"], atlas=folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    noise = np.random.default_rng(3)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            values = noise.integers(0, 255, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_strongest_patches_are_those_of_the_dataset(asked: list[Any], dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    layers = ["features.2", "features.7"]
    top = tvc.top_activations(
        net.model, dataset, layers, k=9, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    out = tmp_path / "page"
    pages = [
        Page(
            tvc.report(net, photos(1), out, layers=layers, channels=3, top=given, budget=None if given is top else 0.0)
        )
        for given in (top, tmp_path / "top")
    ]
    for page, projected in zip(pages, (True, False), strict=True):
        for layer in page.data["layers"]:
            if layer["name"] not in layers:
                assert layer["top"] == {}
                continue
            assert set(layer["top"]) == {str(c) for c in layer["channels"]}
            for channel, of in layer["top"].items():
                values = top.values[layer["name"]][int(channel)]
                assert of["values"] == pytest.approx(values.tolist(), rel=1e-3)
                said, whole = of["statistics"], top.statistics[layer["name"]]
                assert said["images looked at"] == "12"
                assert said["mean over all, negative ones too"] == pytest.approx(float(whole.mean[int(channel)]), 1e-3)
                assert said["sparsity"] == pytest.approx(float(whole.sparsity[int(channel)]), 1e-3)
                assert (of["projections"] is not None) == projected
                row = picture(page, of["patches"])
                assert row.size == (9 * row.height, row.height)
    layer = pages[0].data["layers"][0]
    first = layer["top"][str(layer["channels"][0])]
    # A patch within the photo is the part of it that the unit saw.
    patches = top.patches("features.2", layer["channels"][0])
    inside = next(i for i, patch in enumerate(patches) if patch.size == (5, 5))
    row = picture(pages[0], first["patches"])
    shown = np.asarray(row.crop((inside * row.height, 0, (inside + 1) * row.height, row.height)).resize((5, 5)), float)
    truth = np.asarray(patches[inside].convert("RGB"), float)
    assert np.corrcoef(shown.ravel(), truth.ravel())[0, 1] > 0.9


def test_top_activations_of_something_else_are_refused(dataset: Path, tmp_path: Path) -> None:
    net, other = network(vgg_like()), network(vgg_like())
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    found = tvc.top_activations(
        net.model, dataset, ["features.7"], k=2, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    shown, out = photos(1), tmp_path / "page"
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(other, shown, out, top=found, budget=0)
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(other, shown, out, top=tmp_path / "top", budget=0)
    with pytest.raises(tvc.LayerError, match=r"are of features\.7, \.\.\.: of none of the layers shown"):
        tvc.report(net, shown, out, layers=["features.0"], top=tmp_path / "top", budget=0)
    with pytest.raises(tvc.OutputError):
        tvc.report(net, shown, out, top=dataset, budget=0)
    with pytest.raises(tvc.InputError, match="not a int"):
        tvc.report(net, shown, out, top=3, budget=0)  # type: ignore[arg-type]


def test_a_dataset_that_has_gone_leaves_its_numbers(asked: list[Any], dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    tvc.top_activations(
        net.model, dataset, ["features.7"], k=2, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    dataset.rename(tmp_path / "elsewhere")
    page = Page(tvc.report(net, [], tmp_path / "page", layers=["features.7"], top=tmp_path / "top", budget=None))
    layer = page.data["layers"][0]
    assert all(of["patches"] is None and len(of["values"]) == 2 for of in layer["top"].values())
