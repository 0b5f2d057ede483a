"""A Network says how photos are prepared and what classes are called; every function takes one or a plain module."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from tests import networks
from torchviz_cnn.core.errors import ModelError, TargetError
from torchviz_cnn.hooks.network import Network, category_name, class_index, module_of, preprocess_of
from torchviz_cnn.media.images import Preprocess

NAMES = ("tabby cat", "African_elephant", "crane", "crane", "3")


def network(categories: tuple[str, ...] | None = NAMES) -> Network:
    return Network(networks.vgg_like(), Preprocess((32, 48)), categories, name="small")


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("tabby cat", 0),
        (" Tabby Cat ", 0),
        ("african elephant", 1),
        ("African_elephant", 1),
        ("3", 4),
        ("2", 2),
        (2, 2),
        ("-1", -1),
    ],
)
def test_a_class_by_name_or_number(target: str | int, index: int) -> None:
    """A number that is the name of a class is that class."""
    assert network().class_index(target) == index
    assert class_index(NAMES, target) == index


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        (NAMES, "afrikan elephant", "small has no class 'afrikan elephant'; did you mean 'African_elephant'?"),
        (NAMES, "zebra", "small has no class 'zebra'; give a name or an index"),
        (NAMES, "crane", "2 classes of small are called 'crane': 2, 3; give the index"),
        (None, "zebra", "the class names of small are not known"),
    ],
)
def test_a_class_that_is_not_there(names: tuple[str, ...] | None, target: str, message: str) -> None:
    with pytest.raises(TargetError) as raised:
        network(names).class_index(target)
    assert message in str(raised.value)


def test_names_of_classes() -> None:
    assert network().category(1) == "African_elephant"
    assert [category_name(NAMES, index) for index in (0, 5, -1)] == ["tabby cat", "class 5", "class -1"]
    assert network(None).category(2) == "class 2"


def test_what_is_known_of_a_model() -> None:
    net = network()
    assert net.input_size == (32, 48)
    assert module_of(net) is net.model
    assert module_of(net.model) is net.model
    assert preprocess_of(net) is net.preprocess
    assert preprocess_of(net.model) is None
    changed = replace(net, preprocess=Preprocess((64, 64)))
    assert preprocess_of(changed) is changed.preprocess
    assert preprocess_of(net) is net.preprocess
    assert repr(net) == "Network(small, weights its own, input 32 x 48, 5 named classes)"
    assert "unnamed classes" in repr(network(None))


@pytest.mark.parametrize("wrong", ["vgg16", None, nn.ReLU])
def test_what_is_no_model(wrong: object) -> None:
    with pytest.raises(ModelError, match=r"a model is a torch\.nn.Module or a Network, not a"):
        module_of(wrong)  # type: ignore[arg-type]
