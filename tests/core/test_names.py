"""Names of layers: wrappers left out, `name#k` for the k-th call, globs and types, the nearest name in errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests import networks
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.core.names import Call, all_modules, call_name, expand, is_compiled, named_layers, resolve, unwrap


def call(name: str) -> Call:
    model = networks.reused()
    return resolve(model, named_layers(model), name)


def calls(*patterns: Any) -> list[str]:
    model = networks.vgg_like()
    return [str(call) for call in expand(model, named_layers(model), patterns)]


def test_a_name_is_its_first_call() -> None:
    assert call("relu") == Call("relu", 0)
    assert call("relu#0") == Call("relu", 0)
    assert call("relu#2") == Call("relu", 2)
    assert call("relu#*") == Call("relu", None)
    assert [call_name("relu", index) for index in (0, 2, None)] == ["relu", "relu#2", "relu#*"]
    assert [str(call(name)) for name in ("relu#0", "relu#2", "relu#*")] == ["relu", "relu#2", "relu#*"]


def test_a_module_whose_name_looks_like_a_call() -> None:
    model = nn.Sequential()
    model.add_module("a#1", nn.ReLU())
    assert resolve(model, named_layers(model), "a#1") == Call("a#1", 0)


@pytest.mark.parametrize("name", ["rleu", "rleu#1", "relu#", "relu#-1", "relu#x", ""])
def test_an_unknown_name_raises(name: str) -> None:
    with pytest.raises(LayerError, match=r"no layer '.*' in Reused.*lists all 6\."):
        call(name)


def test_the_nearest_name_is_given() -> None:
    with pytest.raises(LayerError, match=r"no layer 'conv2d' in Reused; did you mean 'conv2'\?"):
        call("conv2d")
    with pytest.raises(LayerError, match="by its dotted name, not by an int"):
        call(3)  # type: ignore[arg-type]


def test_globs_and_types_ask_for_every_call() -> None:
    assert calls("features.0", "features.?") == ["features.0", *(f"features.{i}#*" for i in range(10))]
    assert calls(nn.MaxPool2d) == ["features.4#*", "features.9#*"]
    assert calls("classifier.[13]#*", "classifier.3#*") == ["classifier.1#*", "classifier.3#*"]
    assert calls("features.4", "features.4", nn.MaxPool2d) == ["features.4", "features.4#*", "features.9#*"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("conv*", "no layer of VGGLike matches 'conv\\*'"),
        (nn.Conv3d, "no layer of VGGLike matches Conv3d"),
        ("features.99", "no layer 'features.99' in VGGLike"),
        (3, "names, glob patterns or module types, not 3"),
        (int, "names, glob patterns or module types"),
    ],
)
def test_a_pattern_without_a_match_raises(pattern: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        calls(pattern)


def test_wrappers_are_left_out_of_names() -> None:
    plain = list(named_layers(networks.vgg_like()))
    for wrapped in (
        networks.data_parallel(),
        networks.averaged(),
        networks.compiled(),
        nn.DataParallel(networks.compiled()),
    ):
        assert list(named_layers(wrapped)) == plain
        assert type(unwrap(wrapped)).__name__ == "VGGLike"
    inside: Any = networks.vgg_like()
    inside.features = torch.compile(inside.features, backend="eager")
    assert is_compiled(inside.features)
    assert list(named_layers(inside)) == plain


@pytest.mark.parametrize("build", networks.NETWORKS.values())
def test_all_modules_are_those_of_pytorch_in_its_order(build: Callable[[], nn.Module]) -> None:
    model = build()
    assert list(all_modules(model).items()) == list(model.named_modules())


def test_a_module_in_two_places_has_its_first_name() -> None:
    shared = nn.ReLU()
    model = nn.ModuleDict({"b": nn.Sequential(nn.Identity(), shared), "a": shared, "c": nn.Sequential(shared)})
    model.register_module("none", None)
    assert list(all_modules(model)) == ["", "b", "b.0", "b.1", "c"]
