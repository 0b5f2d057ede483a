"""The grid pointing game and DiFull, on networks whose evidence is known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from torchviz_cnn.attribution.metrics.mosaics import Mosaics, disconnected, own_cell
from torchviz_cnn.attribution.metrics.mosaics.disconnected import Disconnected
from torchviz_cnn.attribution.metrics.mosaics.game import own_shares

SIDE = 8


def bands(classes: int = 4, *, neighbours: float = 0.0) -> nn.Sequential:
    """A class for each band of the input: its mean, and some of the next band's. The ReLU is layer 1."""
    model = nn.Sequential(
        nn.Conv2d(classes, classes, 1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(classes, classes, bias=False),
    )
    with torch.no_grad():
        model[0].weight.copy_(20 * torch.eye(classes)[..., None, None])  # type: ignore[union-attr, operator]
        model[4].weight.copy_(torch.eye(classes) + neighbours * torch.eye(classes).roll(1, 1))  # type: ignore[union-attr, operator]
    return model


def photos(classes: int = 4, side: int = SIDE) -> Tensor:
    """One input for each class, full of its band."""
    return torch.eye(classes)[..., None, None].expand(classes, classes, side, side).clone()


LABELS = range(4)


# --- which photos ----------------------------------------------------------------------------------------------------


def test_a_mosaic_is_made_of_its_photos_side_by_side() -> None:
    x = photos(6) * torch.linspace(0.9, 1, SIDE * SIDE).view(SIDE, SIDE)
    mosaics = Mosaics.of(bands(6), x, truth=range(6), count=5)
    assert (len(mosaics), mosaics.recognised, mosaics.looked_at, mosaics.labelled) == (5, 6, 6, True)
    for index in range(5):
        mosaic = mosaics.input(bands(6), index)
        assert mosaic.shape == (1, 6, 2 * SIDE, 2 * SIDE)
        quarters = mosaic[0].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert torch.equal(quarters, x[mosaics.cells[index]])
        assert mosaics.classes[index].tolist() == mosaics.cells[index].tolist()
        assert len(set(mosaics.classes[index].tolist())) == 4


def test_no_mosaic_is_made_twice_and_a_seed_makes_the_same_again() -> None:
    all_of_them = Mosaics.of(bands(), photos(), truth=LABELS, count=24)
    assert len({tuple(row) for row in all_of_them.cells.tolist()}) == 24
    again, other = (Mosaics.of(bands(), photos(), truth=LABELS, count=5, seed=seed) for seed in (0, 1))
    assert torch.equal(again.cells, all_of_them.cells[:5])
    assert not torch.equal(other.cells, all_of_them.cells[:5])


def test_only_photos_that_are_recognised_take_part() -> None:
    x = torch.cat([photos(5), 0.01 * photos(5), photos(5)])
    labels = [*range(5), *range(5), None, 0, 3, 4, 2]  # the last five are another's, or of no class
    mosaics = Mosaics.of(bands(5), x, truth=labels, count=100)
    assert (mosaics.recognised, mosaics.recognised_classes, mosaics.looked_at) == (5, 5, 14)
    assert set(mosaics.cells.flatten().tolist()) == set(range(5))
    assert "5 of 14 photos that the network recognises with a probability of at least 0.99, of 5 classes" in repr(
        mosaics
    )


def test_several_photos_of_a_class_all_take_part() -> None:
    x = torch.cat([photos(), 0.9 * photos(), 0.8 * photos()])
    mosaics = Mosaics.of(bands(), x, truth=[*LABELS] * 3, count=60)
    assert set(mosaics.cells.flatten().tolist()) == set(range(12))
    assert torch.equal(mosaics.cells % 4, mosaics.classes)


def test_without_labels_the_networks_own_class_counts_and_that_is_said() -> None:
    for labels in (None, "predicted"):
        mosaics = Mosaics.of(bands(), photos().flip(0), truth=labels, count=3)
        assert mosaics.labelled is False
        assert torch.equal(mosaics.classes, 3 - mosaics.cells)
        assert "those that the network takes them for" in repr(mosaics)
    assert "takes them for" not in repr(Mosaics.of(bands(), photos(), truth=LABELS, count=3))


def network(categories: tuple[str, ...] = ("red", "green", "blue", "dark blue")) -> tvc.Network:
    """Of photos in four colours, of which the last is half of blue."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(60 * torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0.25]])[..., None, None])  # type: ignore[union-attr, operator]
        model[0].bias.copy_(torch.tensor([0, 0, 0, 30.0]))  # type: ignore[union-attr, operator]
    preprocess = tvc.Preprocess((SIDE, SIDE), "stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return tvc.Network(model, preprocess, categories)


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "dark blue": (0, 0, 100)}


def in_colours() -> list[Any]:
    return [np.full((9, 9, 3), colour, np.uint8) for colour in COLOURS.values()]


def saved(folder: Path, form: str) -> Path:
    for number, (name, colour) in enumerate(COLOURS.items()):
        path = folder / form.format(number=number, name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), colour).save(path)
    return folder


@pytest.mark.parametrize("form", ["{name}/1.png", "{number}/1.png"])
def test_a_folder_with_a_folder_for_each_class_tells_the_classes(tmp_path: Path, form: str) -> None:
    mosaics = Mosaics.of(network(), saved(tmp_path, form), count=4)
    assert (mosaics.labelled, mosaics.recognised) == (True, 4)
    names = [mosaics.images.names[number] for number in mosaics.cells[0].tolist()]
    expected = [network().categories[number] for number in mosaics.classes[0].tolist()]  # type: ignore[index]
    assert [name.split("/")[0] for name in names] == (
        expected if "name" in form else list(map(str, mosaics.classes[0].tolist()))
    )
    assert mosaics.name(0) == ", ".join(expected)


def test_folders_of_other_names_are_refused_with_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path, "colour {name}/1.png")
    with pytest.raises(tvc.InputError, match=r"no class 'colour blue'.*truth= as .* a function of its path, or \"pred"):
        Mosaics.of(network(), tmp_path, count=4)
    assert Mosaics.of(network(), tmp_path, truth="predicted", count=4).labelled is False


def test_labels_are_a_function_of_the_path_or_names(tmp_path: Path) -> None:
    folder = saved(tmp_path, "{number:03}_{name}.png")
    by_number = Mosaics.of(network(), folder, truth=lambda path: int(path.name.split("_")[0]), count=4)
    by_name = Mosaics.of(network(), folder, truth=lambda path: path.stem.split("_")[1], count=4)
    listed = Mosaics.of(network(), sorted(folder.iterdir()), truth=list(COLOURS), count=4)
    tensor = Mosaics.of(network(), folder, truth=torch.arange(4), count=4)
    for mosaics in (by_number, by_name, listed, tensor):
        assert mosaics.labelled
        assert torch.equal(mosaics.classes, mosaics.cells)


def test_labels_of_a_dataset_are_taken() -> None:
    x = photos()
    data = [(x[i], i if i else 1) for i in (3, 2, 1, 0)]  # the last has another label
    with pytest.raises(tvc.InputError, match="of 4 photos with a class the network recognises 3, of 3 classes"):
        Mosaics.of(bands(), data, count=4)
    assert Mosaics.of(bands(), [(x[i], i) for i in (3, 2, 1, 0)], count=4).labelled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 3}, r"a mosaic of 3 x 3 is of 9 classes, and the network has 4"),
        ({"threshold": 1.5}, "recognises 0, of 0 classes, with a probability of at least 1.5"),
        ({"count": 25}, "count=25 is asked for, and of 4 recognised photos of 4 classes the number of mosaics is 24"),
        ({"n": 1}, "n is a whole number of at least 2"),
        ({"count": 0}, "count is a whole number"),
        ({"size": "shrink"}, "no size 'shrink'"),
        ({"truth": [0, 1]}, "there are 4 photos, and truth has 2 classes"),
        ({"truth": "predict"}, "did you mean 'predicted'"),
        ({"truth": [0.5, 1, 2, 3]}, "a class is a whole number"),
        ({"truth": ["cat", 1, 2, 3]}, "class names of the model are not known"),
    ],
)
def test_what_makes_no_mosaics_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((tvc.InputError, tvc.TargetError), match=message) as caught:
        tvc.metrics.grid_pointing_game(bands(), photos(), "saliency", **{"truth": LABELS, "count": 4, **options})
    assert "\n" not in str(caught.value)


# --- networks of one size --------------------------------------------------------------------------------------------


class OneSize(nn.Module):
    """As `bands`, of inputs of one size."""

    def __init__(self, error: type[Exception] | None = None, text: str = "") -> None:
        super().__init__()
        self.fc = nn.Linear(4 * SIDE * SIDE, 4, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(20 / SIDE**2 * torch.eye(4).repeat_interleave(SIDE * SIDE, 1))
        self.error, self.text = error, text

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None and x.shape[2] > SIDE:
            raise self.error(self.text)
        out: Tensor = self.fc(x.flatten(1))
        return out


def test_a_network_of_one_size_gets_mosaics_that_fit() -> None:
    with pytest.raises(tvc.InputError, match=r'OneSize does not take mosaics of 16 x 16, 2 times its own.*size="fit"'):
        tvc.metrics.grid_pointing_game(OneSize(), photos(), "input_x_gradient", truth=LABELS, count=4)
    measured = tvc.metrics.grid_pointing_game(
        OneSize(), photos(), "input_x_gradient", truth=LABELS, count=4, size="fit"
    )
    assert measured.mosaics.input(OneSize(), 0).shape == (1, 4, SIDE, SIDE)
    assert measured.mean > 0.9  # but for the border, where colours mix


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate a size of 2 GiB"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate a size of 4 bytes"),
        (RuntimeError, "something else is wrong"),
        (KeyError, "size"),
    ],
)
def test_another_error_than_of_the_size_is_not_hidden(error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tvc.metrics.grid_pointing_game(OneSize(error, text), photos(), "saliency", truth=LABELS, count=4)


# --- shares ------------------------------------------------------------------------------------------------------


def test_shares_of_cells_of_any_size() -> None:
    maps = torch.zeros(4, 3, 3)
    maps[0, 1, 1] = 4.0  # in the middle, which four cells share
    maps[1, 0, 2], maps[1, 0, 1], maps[1, 2, 2] = 2.0, 2.0, -9.0  # its own corner, and the half of an edge
    maps[2, 0, 0] = 1.0
    shares = own_shares(maps, 2)
    assert shares[:3].tolist() == pytest.approx([0.25, 0.75, 0])
    assert shares[3].isnan()
    assert own_shares(torch.ones(9, 7, 5), 3).tolist() == pytest.approx([1 / 9] * 9)
    rest = 6 / 49 / (6 / 7) ** 2  # 7 rows in thirds: the first band has two, and a third of the third
    assert rest > 0


@pytest.mark.parametrize("n", [2, 3])
def test_what_knows_its_photo_gets_all_and_what_knows_nothing_its_share(n: int) -> None:
    classes = n * n
    mosaics = Mosaics.of(bands(classes), photos(classes), truth=range(classes), n=n, count=6)
    for method in ("grad_cam", "input_x_gradient", tvc.hires_cam, partial(tvc.layer_cam, layer="0")):
        measured = own_cell(bands(classes), mosaics, method)
        assert measured.values.tolist() == pytest.approx([1] * 6)
        assert measured.details["cells"].shape == (6, classes)
        assert measured.median == pytest.approx(1)

    def nothing(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        assert target.shape == (1,)
        return torch.ones(1, 7, 7)

    measured = own_cell(bands(classes), mosaics, nothing)
    assert measured.values.tolist() == pytest.approx([1 / classes] * 6)
    assert measured.mosaics.chance == 1 / classes


def test_evidence_that_classes_share_lies_in_both_cells() -> None:
    """A class counts half of the next band too, which is in another cell: two thirds lie in its own."""
    measured = tvc.metrics.grid_pointing_game(bands(neighbours=0.5), photos(), "grad_cam", truth=LABELS, count=5)
    assert measured.values.tolist() == pytest.approx([2 / 3] * 5)
    competitive = tvc.metrics.grid_pointing_game(bands(neighbours=0.5), measured.mosaics, "competitive_cam")
    assert competitive.mosaics is measured.mosaics
    assert competitive.mean > measured.mean


def test_classes_at_once_get_what_each_gets_alone() -> None:
    model = bands(neighbours=0.3)
    mosaics = Mosaics.of(model, photos(), truth=LABELS, count=4)
    for method in (tvc.grad_cam, tvc.saliency):
        together = own_cell(model, mosaics, method)
        alone = own_cell(model, mosaics, lambda *args, method=method, **options: method(*args, **options))
        torch.testing.assert_close(together.details["cells"], alone.details["cells"])


def test_a_map_without_evidence_is_not_measured_and_says_which() -> None:
    mosaics = Mosaics.of(network(), in_colours(), truth=LABELS, count=4)

    def blind(model: tvc.Network, x: Tensor, target: Tensor) -> Tensor:
        return torch.ones(1, 4, 4) if int(target) else -torch.ones(1, 4, 4)

    measured = own_cell(network(), mosaics, blind)
    assert measured.values.tolist() == pytest.approx([0.25] * 4)  # of the other three
    assert measured.details["cells"].isnan().sum(1).tolist() == [1] * 4
    assert measured.reasons == dict.fromkeys(range(4), "the map of red has no positive value")
    nothing = own_cell(network(), mosaics, lambda *args, **options: torch.zeros(1, 2, 2))
    assert nothing.count == 0
    assert np.isnan(nothing.median)


@pytest.mark.parametrize("maps", [torch.ones(1, 1, 4, 4), torch.ones(2, 4, 4)])
def test_maps_that_are_not_of_the_mosaic_are_refused(maps: Tensor) -> None:
    mosaics = Mosaics.of(bands(), photos(), truth=LABELS, count=2)
    with pytest.raises(tvc.InputError, match="for one mosaic of 4 classes"):
        own_cell(bands(), mosaics, lambda *args, **options: maps)


def test_a_mosaic_whose_map_is_not_finite_is_left_out_with_its_reason() -> None:
    mosaics = Mosaics.of(bands(), photos(), truth=LABELS, count=4)
    broken = mosaics.input(bands(), 2)

    def method(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
        return x.abs().sum(1) * (math.nan if torch.equal(x, broken) else 1)

    measured = own_cell(bands(), mosaics, method)
    whole = own_cell(bands(), mosaics, lambda model, x, target: x.abs().sum(1))
    assert measured.values.isfinite().tolist() == [True, True, False, True]
    assert torch.equal(measured.values[[0, 1, 3]], whole.values[[0, 1, 3]])
    assert measured.reasons == {2: "its map has NaN or infinity in it"}
    with pytest.raises(tvc.InputError, match=r"no map can be used; class \d.*: its map has NaN or infinity in it"):
        own_cell(bands(), mosaics, lambda model, x, target: x.sum(1) * math.nan)


def test_photos_are_chosen_among_those_that_are_asked_for() -> None:
    mosaics = Mosaics.of(bands(5), photos(5).repeat(2, 1, 1, 1), truth=[*range(5)] * 2, count=20, among=[1, 2, 3, 4, 6])
    assert (mosaics.looked_at, mosaics.recognised) == (5, 5)
    assert set(mosaics.cells.flatten().tolist()) == {1, 2, 3, 4, 6}


def test_a_photo_of_a_mosaic_that_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "photos", "{name}.png")
    mosaics = Mosaics.of(network(), folder, truth="predicted", count=4)
    gone = mosaics.images.names[int(mosaics.cells[0, 0])]
    (folder / gone).write_bytes(b"")
    with pytest.raises(tvc.ImageError, match=gone):
        mosaics.input(network(), 0)


def test_a_result_is_saved_and_says_by_chance(tmp_path: Path) -> None:
    measured = tvc.metrics.grid_pointing_game(
        network(), saved(tmp_path / "photos", "{name}/1.png"), "grad_cam", count=4
    )
    assert "by chance 0.250; 4 mosaics of 2 x 2 photos, of 4 of 4 photos" in repr(measured)
    text = measured.save(tmp_path / "cells.json").read_text()
    assert '"cells"' in text
    assert "dark blue" in text


# --- DiFull --------------------------------------------------------------------------------------------------------


def test_scores_of_cells_stand_side_by_side() -> None:
    model = networks.vgg_like()
    x = networks.images(2, 64)
    scores = Disconnected(model, 2)(x).view(2, 4, networks.CLASSES)
    for place, cell in enumerate((x[..., :32, :32], x[..., :32, 32:], x[..., 32:, :32], x[..., 32:, 32:])):
        torch.testing.assert_close(scores[:, place], model(cell))


@pytest.mark.parametrize(
    "method",
    ["saliency", "input_x_gradient", "guided", "integrated_gradients", "hires_cam", "layer_cam", "guided_grad_cam"],
)
def test_a_faithful_method_puts_nothing_into_cells_that_cannot_count(method: str) -> None:
    """Also where a class shares evidence with another's photo, which is not in its cell here."""
    model = bands(neighbours=0.5)
    with unchanged(model):
        measured = tvc.metrics.difull(model, photos(), method, truth=LABELS, count=3)
    assert measured.details["cells"].tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("layer", ["1", None])
def test_grad_cam_weighs_other_cells_by_the_gradients_of_its_own(layer: str | None) -> None:
    model = bands(neighbours=0.5)
    measured = tvc.metrics.difull(model, photos(), "grad_cam", layer=layer, truth=LABELS, count=3)
    assert measured.values.tolist() == pytest.approx([2 / 3] * 3)
    named = tvc.metrics.difull(model, measured.mosaics, partial(tvc.grad_cam, layer=layer or "1"))
    torch.testing.assert_close(named.values, measured.values)
    alone = tvc.metrics.difull(bands(), photos(), "grad_cam", layer=layer, truth=LABELS, count=3)
    assert alone.values.tolist() == pytest.approx([1] * 3)  # no channel is shared


@pytest.mark.parametrize(
    ("method", "faithful"),
    [("score_cam", True), ("ablation_cam", True), ("smooth_grad", True), ("eigen_cam", False)],
)
def test_other_methods_are_measured_too(method: str, faithful: bool) -> None:
    """Without the next class's channel its cell's score stays, so that Score-CAM and Ablation-CAM see no weight."""
    measured = tvc.metrics.difull(bands(neighbours=0.5), photos(), method, truth=LABELS, count=1)
    assert (measured.mean == pytest.approx(1)) == faithful
    assert measured.mean >= 0.25 - 1e-6


def test_a_method_that_reads_layers_of_the_network_is_refused() -> None:
    with pytest.raises(tvc.LayerError, match="they cannot be told apart"):
        tvc.metrics.difull(network(), in_colours(), "full_grad", truth=LABELS, count=2)


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(tvc.LayerError, match="no layer 'relu'"):
        tvc.metrics.difull(bands(), photos(), "grad_cam", layer="relu", truth=LABELS, count=2)


# --- real photos ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_of_squeezenet(data: Path) -> None:
    """docs/cam.md has 0.693 and 0.935 over 40 mosaics; these are over the first 4 of them."""
    net = tvc.load_model("squeezenet1_0", data / "checkpoints" / "squeezenet1_0.pth")
    folder = data / "imagenet_samples"
    mosaics = Mosaics.of(net, folder, truth=lambda path: int(path.name.split("_")[0]), threshold=0.8, count=4)
    cam, competitive = (own_cell(net, mosaics, name) for name in ("grad_cam", "competitive_cam"))
    assert 0.55 < cam.mean < 0.85
    assert competitive.mean > 0.88
    assert disconnected(net, mosaics, "hires_cam").details["cells"].eq(1).all()
