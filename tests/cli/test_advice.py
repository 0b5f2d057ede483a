"""Whatever a network gives, a command speaks of its own options, and not of parameters of Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import MEAN, STD
from tests.media.test_video import clip
from tests.test_advice import NETWORKS, layer_of
from torchviz_cnn.cli import commands
from torchviz_cnn.cli.main import _commands, _parser, main
from torchviz_cnn.core.warn import say_once

LINES: dict[str, tuple[str, ...]] = {
    "layers": ("",),
    "predict": ("PHOTOS",),
    "activations": ("PHOTOS --layers LAYER --out OUT",),
    "filters": tuple(f"--layers {layers} --k 2 --size 24 --steps 2 --out OUT" for layers in ("all", "LAYER")),
    "cam": (
        *("PHOTOS --layer LAYER --out OUT", "film.avi --out OUT.avi"),
        *(f"PHOTOS --method {method} --out OUT" for method in ("grad-cam", "ablation-cam", "cam", "competitive-cam")),
    ),
    "saliency": tuple(f"PHOTOS --method {method} --out OUT" for method in ("saliency", "guided", "guided-grad-cam")),
    "deconvnet": ("PHOTOS --out OUT", "PHOTOS --layers LAYER --out OUT"),
    "occlusion": ("PHOTOS --patch 16 --out OUT",),
    "top": tuple(
        f"FOLDER {options} --workers 0 --pages 1 --out OUT"
        for options in ("", "--layers LAYER", "--layers LAYER --by relevance")
    ),
    "merge": ("TOP --out OUT",),
    "survey": tuple(
        f"FOLDER {options} --workers 0 --out OUT"
        for options in ("", "--layer LAYER", "--method guided", "--method ablation-cam", "--method competitive-cam")
    ),
    "trust": (
        "FOLDER --methods guided --out OUT",
        "FOLDER --methods grad-cam cam guided ablation-cam --steps 2 --perturbed 1 --mosaics 1 --out OUT",
    ),
    "report": ("PHOTOS --budget 0 --out OUT.html",),
}
"""What is asked of each command that takes a network of the user's."""

REFUSED = (
    *("a dict", "a mean of sigmoids", "one output", "GELU", "a ReLU by hand", "tokens", "maps of three dimensions"),
    *("one image at a time", "no convolution", "one band"),
)
"""Networks of which each is told something else; that of one band is given a photo of 10 bits."""

FEW = ("predict", "cam", "survey")
"""Commands that are tried in the unit tests."""

PARSERS = _parser(_commands()).commands


def foreign(command: str, text: str) -> list[str]:
    """The options in a text that the command does not have, and the parameters of Python in it."""
    alone = re.sub(r"torchviz-cnn \w+ --[\w-]+|torchrun --[\w-]+", "", text)  # of another command, which is named
    options = set(re.findall(r"--[a-z][\w-]*", alone)) - set(PARSERS[command]._option_string_actions)
    return sorted(options) + re.findall(r"\b[a-z_]+=|\btvc\.\w+|\w+_cam\b|\(\.\.\.", text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos of 8 bits, one of 10, and a clip; the networks are those of the module `advised`."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(f"photos/{number}.png")
    Path("grey").mkdir()
    Image.fromarray(4 * noise[0, :, :, 0].astype(np.uint16)).save("grey/0.png")
    clip(tmp_path / "film.avi", list(noise), fps=8)
    module = ModuleType("advised")
    for number, case in enumerate(NETWORKS.values()):
        setattr(module, f"net{number}", case.build)
    monkeypatch.setitem(sys.modules, "advised", module)
    return tmp_path


def test_every_command_with_a_network_of_the_users_is_tried() -> None:
    assert set(LINES) == set(commands.ORDER) - {"demo"}


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in LINES]
)
def test_a_command_advises_its_own_options(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in REFUSED:
        number, case = list(NETWORKS).index(name), NETWORKS[name]
        bands, folder = (1, "grey") if name == "one band" else (3, "photos")
        net = ["--model", f"advised:net{number}", "--input-size", "32", "--geometry", "crop"]
        net += ["--mean", *MEAN[:bands], "--std", *STD[:bands]]
        layer, top = layer_of(case.build()), f"top{number}"
        if command == "merge":
            main(["top", folder, *net, "--workers", "0", "--pages", "0", "--out", top])
        for line, given in enumerate(LINES[command]):
            say_once.cache_clear()
            known = {"FOLDER": folder, "PHOTOS": f"{folder}/0.png", "LAYER": layer, "TOP": top}
            words = [known.get(word, word.replace("OUT", f"out/{number}_{line}")) for word in given.split()]
            main([command, *words, *net])
            said = capsys.readouterr()
            assert foreign(command, said.out + said.err) == [], said.out + said.err
