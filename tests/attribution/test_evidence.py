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
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SIDE = 224


class Colours(nn.Module):
    """A class for each colour: how many places are full of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16, stride=16, bias=False)
        each = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0.5, 0.5, -1]])
        with torch.no_grad():
            self.conv.weight.copy_(each[..., None, None].expand_as(self.conv.weight) / 16**2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = 400 * (self.conv(x) - 0.9).relu().mean((2, 3))
        return scores


def net() -> tvc.Network:
    preprocess = tvc.Preprocess((SIDE, SIDE), "stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return tvc.Network(Colours(), preprocess, tuple(COLOURS), "colours")


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
    for number, (name, colour) in enumerate(COLOURS.items()):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[16:112, 16:112] = colour
        Image.fromarray(pixels).save(tmp_path / f"{number:03}_{name}.jpg", quality=95)
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "000_nothing.jpg")
    return tmp_path


def test_the_quarter_of_each_photo_is_measured_and_printed(
    scripts: tuple[ModuleType, ModuleType], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red and green are half of yellow's evidence to Grad-CAM; place by place, as in HiResCAM, they are none."""
    scripts[0].main([str(photos), "colours", "--mosaics", "2"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("colours: 2 mosaics of 2 x 2 photos, of 4 of 5 photos")
    assert len(lines) == len(scripts[0].NAMES) == 6
    shares = dict(zip(scripts[0].NAMES, lines, strict=True))
    assert shares["grad_cam"] == "Grad-CAM         mean 0.875  median 1.000"
    assert shares["hires_cam"] == "HiResCAM         mean 1.000  median 1.000"


def test_one_photo_of_each_class_is_taken_where_it_is_recognised(
    scripts: tuple[ModuleType, ModuleType], photos: Path
) -> None:
    known = scripts[1].recognised(net(), sorted(photos.glob("*.jpg")))
    assert {number: path.name for number, path in known.items()} == {
        number: f"{number:03}_{name}.jpg" for number, name in enumerate(COLOURS)
    }


def test_energy_on_the_animal_and_what_the_scripts_print(
    scripts: tuple[ModuleType, ModuleType], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets(photos)
    scripts[1].main(["colours", "--photos", str(photos), "--pets", str(photos), "--count", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("colours")] == ["colours: 2 photos", "colours: 1 pet"]
    for line, title in zip((*lines[1:3], *lines[4:]), ("Grad-CAM", "Competitive CAM") * 2, strict=True):
        assert line.startswith(title)
    assert lines[4].endswith("energy in the mask 0.500")


def test_peaks_on_the_animal_stand_beside_their_baselines(
    monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    known = tvc.Network(Colours(), net().preprocess, ("dog", "cat", "bird", "fish"), "colours")
    monkeypatch.setattr(tvc, "load_model", lambda model, weights: known)
    import localisation

    monkeypatch.setattr(localisation, "NAMES", {"Grad-CAM": "grad_cam"})  # this network has no exact map
    pets(photos, name="Pet", columns=112)
    localisation.main([str(photos), "--model", "colours"])
    assert capsys.readouterr().out.splitlines() == [
        "colours on 1 photo: 1.000 classified right",
        "  Grad-CAM on the animal        1.000",
        "  middle pixel on the animal    0.500",
        "  any pixel on the animal       0.500",
    ]


def pets(folder: Path, name: str = "pet", columns: int = 64) -> None:
    """The green photo as a pet, with a trimap whose first columns are the animal: 64 are half of the square."""
    for part in ("images", "trimaps"):
        (folder / part).mkdir()
    trimap = np.full((SIDE, SIDE), 2, np.uint8)
    trimap[:, :columns] = 1
    Image.fromarray(trimap).save(folder / "trimaps" / f"{name}.png")
    (folder / "images" / f"{name}.jpg").write_bytes((folder / "001_green.jpg").read_bytes())
