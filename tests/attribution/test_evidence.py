"""The scripts behind the figures of competitive CAM, on photos whose figures are known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc

SCRIPTS = Path(__file__).parents[2] / "scripts"
COLOURS = ("red", "green", "blue")
SIDE = 224


class Colours(nn.Module):
    """A class for each colour: how many places are full of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 16, stride=16, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[..., None, None].expand_as(self.conv.weight) / 16**2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = 400 * (self.conv(x) - 0.9).relu().mean((2, 3))
        return scores


def net() -> tvc.Network:
    preprocess = tvc.Preprocess((SIDE, SIDE), "stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return tvc.Network(Colours(), preprocess, COLOURS, "colours")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The scripts as modules, importable by their bare names as when they run; their network is that of colours."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(tvc, "load_model", lambda model, weights, **options: net())
    import mosaics
    import single_photos

    return mosaics, single_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A coloured square of 96 x 96 on black in the left upper corner, named by its class."""
    for number, name in enumerate(COLOURS):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[16:112, 16:112, number] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number:03}_{name}.png")
        Image.fromarray(pixels).save(tmp_path / f"{number:03}_{name}.jpg", quality=95)
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "000_nothing.jpg")
    return tmp_path


def test_only_photos_that_are_recognised_make_mosaics(scripts: tuple[ModuleType, ModuleType], photos: Path) -> None:
    inputs = scripts[0].recognised(net(), sorted(photos.glob("*.jpg")))
    assert sorted(inputs) == [0, 1, 2]
    inputs[3] = torch.zeros(3, SIDE, SIDE)
    first, second = scripts[0].mosaics(inputs, 2)
    assert first[0].shape == (1, 3, 2 * SIDE, 2 * SIDE)
    for x, classes in (first, second):
        quarters = x[0].unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert all(torch.equal(quarter, inputs[int(c)]) for quarter, c in zip(quarters, classes, strict=True))
    assert not torch.equal(first[1], second[1])


def test_shares_of_quarters(scripts: tuple[ModuleType, ModuleType]) -> None:
    values = torch.zeros(4, 4, 4)
    values[0, 0, 1] = 2.0  # all in its own
    values[1, 0, 3], values[1, 3, 0] = 3.0, 1.0  # three quarters in its own
    values[2, 1, 1] = 1.0  # all in another's
    assert scripts[0].own_shares(values).tolist() == pytest.approx([1, 0.75, 0, 0])
    assert float(scripts[0].own_shares(torch.ones(4, 7, 7)).mean()) == pytest.approx(0.25)


def test_a_map_of_the_right_place_is_better_than_its_opposite(
    scripts: tuple[ModuleType, ModuleType], photos: Path
) -> None:
    _, single = scripts
    model, x = net(), net().preprocess(tvc.read_image(photos / "000_red.png"))

    def opposite(*args: object, **options: object) -> tvc.Heatmap:
        heat = tvc.grad_cam(*args, **options)  # type: ignore[arg-type]
        return tvc.Heatmap(**{**vars(heat), "values": heat.values.max() - heat.values})

    inserted, deleted = single.insertion_and_deletion(model, x, 0, tvc.grad_cam)
    assert inserted > 0.9
    assert deleted < 0.6
    worse = single.insertion_and_deletion(model, x, 0, opposite)
    assert worse[0] < inserted
    assert worse[1] > deleted


def test_the_area_is_that_of_the_curve(scripts: tuple[ModuleType, ModuleType]) -> None:
    """The class of red changes by 16 equal steps from a logit of 0 to one of 4, whatever the order of the pixels."""
    start, end = torch.zeros(3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE)
    start[0], end[0] = 0.9, 0.91
    curve = torch.tensor([[4 * step / 16, 0, 0] for step in range(17)]).softmax(1)[:, 0]
    expected = float(((curve[1:] + curve[:-1]) / 2).mean())
    for order in (torch.arange(SIDE * SIDE), torch.randperm(SIDE * SIDE)):
        assert scripts[1].area(net(), start, end, order, 0) == pytest.approx(expected, abs=1e-4)


def test_energy_on_the_animal_and_what_the_scripts_print(
    scripts: tuple[ModuleType, ModuleType], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "trimaps"):
        (photos / name).mkdir()
    trimap = np.full((SIDE, SIDE), 2, np.uint8)
    trimap[:, :64] = 1  # the left half of the square is the animal's
    Image.fromarray(trimap).save(photos / "trimaps" / "pet.png")
    (photos / "images" / "pet.jpg").write_bytes((photos / "001_green.jpg").read_bytes())
    for method in (tvc.grad_cam, tvc.competitive_cam):
        share = scripts[1].energy_in_mask(net(), photos / "images" / "pet.jpg", photos / "trimaps" / "pet.png", method)
        assert share == pytest.approx(0.5, abs=0.02)
    scripts[1].main(["colours", "--photos", str(photos), "--pets", str(photos), "--count", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("colours")] == ["colours: 2 photos", "colours: 1 pets"]
    for line, title in zip((*lines[1:3], *lines[4:]), ("Grad-CAM", "Competitive CAM") * 2, strict=True):
        assert line.startswith(title)
    assert lines[4].endswith("energy in the mask 0.500")
