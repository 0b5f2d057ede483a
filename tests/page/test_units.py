"""What a report says of its units: filter patterns as time allows or from an atlas, strongest patches of a dataset."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.media.shards.server import serving
from tests.media.shards.tars import write_shards
from tests.networks import vgg_like
from tests.page.test_report import Page, network, photos
from torchviz_cnn.ascent.atlas import Atlas, filter_atlas
from torchviz_cnn.page.units import patterns


def picture(page: Page, block: int) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(page.inside[f"block-{block}"]))).convert("RGB")


def kept_up(layers: list[str], channels: int, folder: Path) -> tvc.Network:
    """A network, and an atlas of its first channels in a folder."""
    net = network(vgg_like())
    filter_atlas(net.model, folder, layers, k=channels, size=24, steps=1)
    return net


class Clock:
    """A clock on which each look is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.slow
def test_all_channels_shown_get_patterns_and_no_others(tmp_path: Path) -> None:
    layers: list[str | type[nn.Module]] = ["features.0", nn.MaxPool2d, "features.7"]
    written = tvc.report(network(vgg_like()), photos(1), tmp_path, layers=layers, k=3, budget=None)
    page = Page(written)
    for layer in page.data["layers"]:
        if layer["kind"] == "MaxPool2d":
            assert layer["patterns"] == {}
        else:
            assert set(layer["patterns"]) <= {str(c) for c in layer["channels"]}  # dead ones have none
    count = sum(len(layer["patterns"]) for layer in page.data["layers"])
    assert written.patterns == count > 0
    assert f"{count} of 6 channels have a filter pattern" in page.words
    assert "no time" not in str([layer["without"] for layer in page.data["layers"]])  # the dead are not late


def test_channels_that_there_was_no_time_for_are_told(tmp_path: Path) -> None:
    for budget, why in ((1e-6, "the 1e-06 seconds of the budget were over"), (0.0, "the budget was 0")):
        written = tvc.report(network(vgg_like()), [], tmp_path, layers=["features.7"], k=4, budget=budget)
        page = Page(written)
        layer = page.data["layers"][0]
        assert layer["without"] == dict.fromkeys(
            "0123", "There was no time to make this pattern. A larger budget makes it."
        )
        assert layer["patterns"] == {}
        assert written.patterns == 0
        said = f"0 of 4 channels have a filter pattern; 4 were not made, as {why}; a larger budget makes more."
        assert written.about_patterns == said
        assert page.words.count(said) == 2  # above the layers and in the provenance


@pytest.mark.slow
def test_the_deepest_layer_and_the_strongest_channels_come_first_while_there_is_time() -> None:
    wanted = {"features.0": [7, 1, 2, 3], "features.7": [5, 4, 0]}
    for until, made in (
        (1.5, {"features.0": [], "features.7": [5, 4]}),
        (5.0, {"features.0": [7, 1], "features.7": [5, 4]}),
    ):
        done: list[int] = []
        drawn = patterns.make_patterns(
            network(vgg_like()), wanted, until=until, seed=0, done=done.append, clock=Clock()
        )
        assert {layer: list(pictures) for layer, pictures in drawn.items()} == made
        assert sum(done) == sum(map(len, made.values()))


class Detached(nn.Module):
    """The input, without its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_layer_without_patterns_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    net = network(nn.Sequential(nn.Conv2d(3, 2, 3), Detached(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with caplog.at_level("INFO", logger="torchviz_cnn"):
        drawn = patterns.make_patterns(net, {"0": [0], "1": [0]}, until=math.inf, seed=0, done=lambda count: None)
    assert drawn["1"] == {0: None}
    assert drawn["0"][0] is not None
    assert "no patterns of layer '1'" in caplog.text


def test_patterns_come_from_an_atlas(tmp_path: Path) -> None:
    folder, out = tmp_path / "atlas", tmp_path / "page"
    net = kept_up(["features.7"], 3, folder)
    page = Page(tvc.report(net, photos(1), out, layers=["features.7", "features.5"], channels=[0, 1, 9], atlas=folder))
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


@pytest.mark.parametrize("by", ["activation", "relevance"])
def test_each_photo_of_a_dataset_is_read_once_for_patches_and_projections(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    net, read = network(vgg_like()), list[str]()
    layers = ["features.2", "features.7"]
    options: Any = {"preprocess": net.preprocess, "workers": 0, "by": by}
    top = tvc.top_activations(net.model, dataset, layers, k=9, **options)
    stored = tvc.PhotoFolder.stored

    def noted(folder: tvc.PhotoFolder, index: int) -> Any:
        read.append(folder.names[index])
        return stored(folder, index)

    monkeypatch.setattr(tvc.PhotoFolder, "stored", noted)
    page = Page(tvc.report(net, photos(1), tmp_path / "page", layers=layers, k=8, top=top))
    shown = [of for layer in page.data["layers"] for of in layer["top"].values()]
    assert shown
    assert all(of["projections"] is not None for of in shown)
    assert max(read.count(name) for name in read) == 1


@pytest.mark.parametrize("by", ["activation", "relevance"])
@pytest.mark.parametrize(("budget", "projected"), [(0.0, False), (None, True)])
def test_a_report_asks_a_server_together_and_once_for_what_it_shows(
    tmp_path: Path, budget: float | None, projected: bool, by: Any
) -> None:
    write_shards(tmp_path / "data", 2, 12)
    net, layer = network(vgg_like()), "features.2"
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-{{000000..000001}}.tar", index=tmp_path)
        top = tvc.top_activations(net.model, shards, layer, 9, preprocess=net.preprocess, workers=0, by=by)
        server.requests.clear()
        page = Page(tvc.report(net, photos(1), tmp_path / "page", layers=[layer], k=4, top=top, budget=budget))
    shown = [of for layer in page.data["layers"] for of in layer["top"].values()]
    assert shown
    assert all(of["patches"] is not None and (of["projections"] is not None) == projected for of in shown)
    images = {image for one in (top, top.activation or top) for c in range(4) for image, _ in one.units(layer, c)}
    assert len(images) > 9
    # Groups of 16 photos, each of two shards at most, for what excites channels and for what they are used for.
    assert len(server.requests) <= 2 * 2 * (1 if by == "activation" else 2)


@pytest.mark.slow
def test_strongest_patches_are_those_of_the_dataset(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    layers = ["features.2", "features.7"]
    top = tvc.top_activations(
        net.model, dataset, layers, k=9, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    out = tmp_path / "page"
    pages = [
        Page(tvc.report(net, photos(1), out, layers=layers, k=3, top=given, budget=None if given is top else 0.0))
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
                assert said["images"] == "12"
                assert said["mean, negative values included"] == pytest.approx(float(whole.mean[int(channel)]), 1e-3)
                assert said["sparsity"] == pytest.approx(float(whole.sparsity[int(channel)]), 1e-3)
                assert (of["projections"] is not None) == projected
                row = picture(page, of["patches"])
                assert row.size == (9 * row.height, row.height)
    layer = pages[0].data["layers"][0]
    first = layer["top"][str(layer["channels"][0])]
    # A patch within the photo is the receptive field of the unit.
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
    top = tvc.top_activations(
        net.model, dataset, ["features.7"], k=2, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    shown, out = photos(1), tmp_path / "page"
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(other, shown, out, top=top, budget=0)
    with pytest.raises(tvc.InputError, match="other weights"):
        tvc.report(other, shown, out, top=tmp_path / "top", budget=0)
    with pytest.raises(tvc.LayerError, match=r"are of features\.7, \.\.\.: none of them is shown"):
        tvc.report(net, shown, out, layers=["features.0"], top=tmp_path / "top", budget=0)
    with pytest.raises(tvc.OutputError):
        tvc.report(net, shown, out, top=dataset, budget=0)
    with pytest.raises(tvc.InputError, match="not an int"):
        tvc.report(net, shown, out, top=3, budget=0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_dataset_that_has_gone_leaves_its_numbers(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())
    tvc.top_activations(
        net.model, dataset, ["features.7"], k=2, preprocess=net.preprocess, workers=0, out=tmp_path / "top"
    )
    dataset.rename(tmp_path / "elsewhere")
    page = Page(tvc.report(net, [], tmp_path / "page", layers=["features.7"], top=tmp_path / "top", budget=None))
    layer = page.data["layers"][0]
    assert all(of["patches"] is None and len(of["values"]) == 2 for of in layer["top"].values())
