"""Which layers and channels a page shows, and what top activations and an atlas decide of that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import NETWORKS, seeded, vgg_like
from tests.page.test_report import Page, network, photos
from torchviz_cnn.ascent.atlas import filter_atlas
from torchviz_cnn.attribution.methods import MISSES
from torchviz_cnn.cli.main import main
from torchviz_cnn.page.choice import Shown, shown_layers
from torchviz_cnn.page.units.patterns import make_patterns

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def lines(model: nn.Module, layers: object = None, measured: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    """Of each layer shown its name, the call whose output is shown, and that of which patterns are made."""
    shown = shown_layers(network(model), X, layers, measured)  # type: ignore[arg-type]
    return [(one.name, one.call, one.pattern) for one in shown]


class Blocks(nn.Module):
    """A residual block, a function for an activation, one ReLU that runs twice, and channels that change places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
        )
        self.relu = nn.ReLU()
        self.conv3, self.conv4, self.shuffle = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.ChannelShuffle(2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.head(F.relu(self.shuffle(self.conv4(F.relu(self.conv3(x))))).mean((2, 3)))
        return out


def test_a_convolution_is_shown_with_its_normalisation_and_activation() -> None:
    assert lines(seeded(Blocks)()) == [
        ("stem.0", "stem", "stem.1"),  # the outermost name of the same maps
        ("conv1", "relu", "bn1"),
        ("conv2", "bn2", "bn2"),  # what comes after is the sum with the shortcut
        ("conv3", "conv3", "conv3"),  # its activation is a function, which has no name
        ("conv4", "conv4", "conv4"),  # behind it channels change places
    ]


@pytest.mark.parametrize(
    "name", ["vgg_like", "reused", "residual", "checkpointed", "frozen_norm", "dense", "data_parallel"]
)
def test_what_is_shown_is_above_zero_where_the_normalised_convolution_is(name: str) -> None:
    """Every convolution that runs is there, by its own name, and has as many channels."""
    model = NETWORKS[name]()
    shown = shown_layers(network(model), X, None)
    ran = [call for call in tvc.capture(model, X, [nn.Conv2d]) if call]
    assert [one.name for one in shown] == ran
    maps = tvc.capture(model, X, [*{one.call for one in shown}, *{one.pattern for one in shown}])
    for one in shown:
        assert torch.equal(maps[one.call] > 0, maps[one.pattern] > 0)


def test_layers_that_are_named_or_measured_are_shown_by_themselves() -> None:
    model = vgg_like()
    assert lines(model, ["features.0", "features.4"]) == [
        ("features.0", "features.1", "features.0"),
        ("features.4", "features.4", "features.4"),
    ]
    raw = [("features.0", "features.0", "features.0"), ("features.1", "features.1", "features.1")]
    assert lines(model, ["features.0", "features.1"]) == raw
    assert lines(model, None, measured=("features.4", "features.0")) == [
        ("features.4", "features.4", "features.4"),
        ("features.0", "features.1", "features.0"),  # a ReLU alone leaves the order of what is strong
    ]
    assert lines(seeded(Blocks)(), None, measured=("conv1",)) == [("conv1", "conv1", "conv1")]
    assert lines(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))) == []


def test_kinds_are_told_in_the_order_of_running() -> None:
    (first, *_) = shown_layers(network(seeded(Blocks)()), X, None)
    assert isinstance(first, Shown)
    assert (type(first.layer), first.after) == (nn.Conv2d, ("BatchNorm2d", "ReLU"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    noise = np.random.default_rng(3)
    (tmp_path / "data").mkdir()
    for i in range(4):
        Image.fromarray(noise.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
    return tmp_path / "data"


def test_top_activations_and_an_atlas_decide_on_layers_and_channels(dataset: Path, tmp_path: Path) -> None:
    net = network(vgg_like())  # features.7 has 12 channels
    top = tvc.top_activations(net, dataset, ["features.7"], k=2, workers=0, out=tmp_path / "top")
    filter_atlas(net, tmp_path / "atlas", ["features.2", "features.5"], channels=[1, 3, 6], size=16, steps=1)
    page = Page(
        tvc.report(net, photos(1), tmp_path / "page", k=2, top=tmp_path / "top", atlas=tmp_path / "atlas", budget=0)
    )
    layers = {layer["name"]: layer for layer in page.data["layers"]}
    assert list(layers) == ["features.2", "features.5", "features.7"]
    assert set(top.some_channels("features.7")) <= set(layers["features.7"]["channels"])
    assert set(layers["features.7"]["top"]) == {str(c) for c in layers["features.7"]["channels"]}
    for name in ("features.2", "features.5"):
        assert len(layers[name]["channels"]) == 2  # k, of those that the atlas has
        assert set(layers[name]["channels"]) <= {1, 3, 6}
    assert set(layers["features.7"]["without"].values()) == {"The atlas has no pattern of this channel."}
    assert page.words.count(f"the atlas {tmp_path / 'atlas'} has none of") == 2


def test_the_channels_that_the_command_drew_are_on_the_page(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, out = ["--model", "cats_and_dogs", "--input-size", "96"], str(tmp_path / "top")
    drawn = ["--layers", "conv2", "--channels", "1", "40", "--projection", "none"]
    assert main(["top", str(dataset), *net, *drawn, "--workers", "0", "--out", out]) == 0
    page = str(tmp_path / "page.html")
    photo = str(dataset / "0.png")
    assert main(["report", photo, *net, "--top", out, "--k", "1", "--budget", "0", "--out", page]) == 0
    layer = Page(page).data["layers"][0]
    assert layer["name"] == "conv2"
    assert {1, 40} <= set(layer["channels"])
    assert len(layer["channels"]) <= 3
    note = tmp_path / "top" / "pages" / "channels.json"
    assert json.loads(note.read_text()) == {"conv2": [1, 40]}
    note.write_text("[")
    capsys.readouterr()
    assert main(["report", photo, *net, "--top", out, "--budget", "0", "--out", page]) == 2
    assert "channels.json is broken" in capsys.readouterr().err


def test_what_does_not_fit_is_told_before_any_photo_runs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(vgg_like())
    top = tvc.top_activations(net, dataset, ["features.7"], k=2, workers=0)
    filter_atlas(net, tmp_path / "atlas", ["features.2"], k=1, size=16, steps=1)

    def not_yet(*args: object, **options: object) -> None:
        raise AssertionError("photos run")

    monkeypatch.setattr("torchviz_cnn.page.report.collect", not_yet)
    with pytest.raises(tvc.LayerError, match=r"are of features\.7, \.\.\.: none of them is shown"):
        tvc.report(net, photos(1), tmp_path / "page", layers=["features.2"], top=top)
    with pytest.raises(tvc.OutputError, match="none of the layers shown"):
        tvc.report(net, photos(1), tmp_path / "page", layers=["features.5"], atlas=tmp_path / "atlas")
    with pytest.raises(AssertionError, match="photos run"):
        tvc.report(net, photos(1), tmp_path / "page", top=top, atlas=tmp_path / "atlas")


def test_first_layers_have_patterns_by_the_textbooks_recipe() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    made = make_patterns(
        network(model), {"0": [1], "3": [2]}, sources={"0": "1", "3": "3"}, until=np.inf, seed=0, done=lambda n: None
    )
    recipes = {layer: {c: one and one.recipe for c, one in of.items()} for layer, of in made.items()}
    assert recipes == {"0": {1: "dlwp-2025"}, "3": {2: "clean"}}
    alone = tvc.filter_patterns(network(model), "1", [1], preset=tvc.Recipe.named("dlwp-2025", rectify=True))
    first = made["0"][1]
    assert first is not None
    assert first.picture.tobytes() == alone.image(0).tobytes()


def test_docs_and_page_say_the_same_of_what_a_method_does_not_show() -> None:
    text = (Path(tvc.__file__).parents[1] / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^\]]+\]\(gallery/(\w+)\.md\) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert {name: words.strip() for name, words in rows} == MISSES
