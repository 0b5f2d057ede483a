"""A quarter of the zoo (`scripts/zoo.py`, docs/compatibility.md) with the script's checks, and the checks checked."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCRIPTS = Path(__file__).parents[1] / "scripts"
QUARTER = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "vgg11_bn",
    "segmentation/fcn_resnet50",
    "segmentation/lraspp_mobilenet_v3_large",
    "video/r3d_18",
    "detection/ssdlite320_mobilenet_v3_large",
    "timm/convnext_atto",
    "timm/deit_tiny_patch16_224",
    "timm/dla34",
    "timm/efficientnet_lite0",
    "timm/fastvit_t8",
    "timm/ghostnet_100",
    "timm/levit_128s",
    "timm/mixer_s16_224",
    "timm/mobileone_s0",
    "timm/regnety_002",
    "timm/resnest14d",
    "timm/resnet10t",
    "timm/skresnet18",
    "timm/starnet_s1",
]


@pytest.fixture(scope="module")
def zoo() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("zoo")


@pytest.fixture(scope="module")
def checks(zoo: Any) -> Any:
    return importlib.import_module("zoo_checks")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUARTER)
def test_a_network_of_the_zoo(name: str, zoo: Any) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    outcome = zoo.outcome_of(name)
    assert outcome["verdict"] != "fault", zoo.note(outcome)
    if name.partition("/")[0] not in ("segmentation", "video", "detection"):
        assert outcome["verdict"] in ("works", "works with option"), zoo.note(outcome)
        assert outcome["layer"]


def test_what_is_tested_here_is_a_quarter_of_the_zoo(zoo: Any) -> None:
    assert set(QUARTER) <= set(zoo.names())
    assert len(QUARTER) >= len(zoo.names()) / 4


def test_the_table_has_a_row_for_each_outcome(zoo: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{zoo.BEGIN}\nold\n{zoo.END}\nafter\n")
    works = {"verdict": "works", "input": [96, 96], "layer": "layer4", "seconds": 1, "checks": {"capture": "ok"}}
    refused = {
        "verdict": "refused",
        "input": [96, 96],
        "layer": "",
        "seconds": 1,
        "checks": {"Grad-CAM": "refused: a|b"},
    }
    zoo.write_table({"resnet18": works, "vit_b_16": refused}, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| resnet18 | 96 × 96 | works | `layer4` | capture |  |" in text
    assert "| vit_b_16 | 96 × 96 | refused |  |  | Grad-CAM: a\\|b |" in text


def test_a_difference_is_a_fault(checks: Any) -> None:
    expected = torch.tensor([1.0, -2.0])
    assert checks.close(expected + 1e-5, expected, "it") == "ok"
    with pytest.raises(AssertionError, match=r"it is off by 5.0e-04"):
        checks.close(expected + 1e-3, expected, "it")
    with pytest.raises(AssertionError, match="zero everywhere"):
        checks.close(torch.zeros(2), torch.zeros(2), "it")


def test_a_change_of_the_network_is_named(checks: Any) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), torch.ones(1, 3, 8, 8)
    before = checks.state_of(model)
    assert checks.changed(before, checks.state_of(model)) == []
    model(x)
    assert checks.changed(before, checks.state_of(model)) == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    model[0].register_forward_hook(lambda *_: None)
    model[1].eval()
    assert {"0 (module)", "1 (module)"} <= set(checks.changed(before, checks.state_of(model)))


def test_the_pixels_that_a_unit_depends_on(checks: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )
    assert checks.is_convolutional(model)
    # The map has 5 units a side (32 -> 15 -> 7 -> 5): the middle one, 2, begins at pixel 2 * 4, and sees 1 + 2 + 2 + 8.
    assert checks.seen_pixels(model, torch.rand(1, 3, 32, 32), ["4"]) == {"4": [(8, 21), (8, 21)]}
    assert checks.agrees((8, 21), (8, 21), 32, 4)
    assert not checks.agrees((8, 20), (8, 21), 32, 4)
    assert checks.agrees((8, 40), (8, 30), 32, 4)
    assert not checks.agrees((8, 40), (8, 28), 32, 4)


def test_the_guided_reference_is_the_formula(checks: Any) -> None:
    x = torch.tensor([[-1.0, 2.0, 3.0]], requires_grad=True)
    y = checks.guided_relu(x)
    (gradient,) = torch.autograd.grad(y, x, torch.tensor([[1.0, 1.0, -1.0]]))
    assert y.tolist() == [[0, 2, 3]]
    assert gradient.tolist() == [[0, 1, 0]]


class WithFunction(nn.Module):
    """One score, which the positive part of the input is taken from, by a function as in torchvision's Inception."""

    def rectified(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return -self.rectified(x).sum((1, 2, 3))[:, None]


class WithModule(WithFunction):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def rectified(self, x: Tensor) -> Tensor:
        positive: Tensor = self.relu(x)
        return positive


@pytest.mark.parametrize("network", [WithFunction, WithModule])
def test_the_guided_reference_has_the_rule_in_every_relu(network: type[WithFunction], checks: Any) -> None:
    x = torch.tensor([[[[-2.0, 3.0]]]])
    assert checks.guided_gradient(network(), x, lambda out: out[:, 0]).flatten().tolist() == [
        0,
        0,
    ]  # the plain gradient is 0, -1
    assert network()(x).tolist() == [[-3]]
