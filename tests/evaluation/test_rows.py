"""Which methods are judged, at which layers, and the references beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.networks import images, vgg_like
from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.evaluation.rows import QUICK, centre, probed, random, rows_of


def mine(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
    return x.sum(1)


def test_all_are_all_of_the_table() -> None:
    assert {row.method for row in rows_of(vgg_like(), "all", None)} >= {*METHODS, "centre", "random"}
    assert [row.method for row in rows_of(vgg_like(), None, None)] == [*QUICK, "centre", "random"]
    assert set(QUICK) <= set(METHODS)


def test_names_and_functions_go_together() -> None:
    rows = rows_of(vgg_like(), ["grad_cam", {"peer": mine, "ours": "layer_cam"}, mine], None)
    assert [row.method for row in rows] == ["grad_cam", "peer", "ours", "mine", "centre", "random"]
    assert rows[1].explain is mine


def test_methods_of_a_layer_stand_at_every_layer() -> None:
    rows = rows_of(vgg_like(), ["grad_cam", "saliency"], ["features.2", "features.7"])
    assert [row.key for row in rows[:3]] == ["grad_cam@features.2", "grad_cam@features.7", "saliency"]
    assert rows[0].title == "Grad-CAM at features.2"
    heat = rows[0].explain(vgg_like(), images())
    assert getattr(heat, "layer", "") == "features.2"


def test_the_default_layer_is_named_once_and_kept() -> None:
    (row, *_) = probed(vgg_like(), rows_of(vgg_like(), "grad_cam", None), images(1), 2)
    assert row.key == "grad_cam@features.8"
    assert row.explain.keywords == {"layer": "features.8"}  # type: ignore[attr-defined]


def test_what_a_network_refuses_keeps_its_reason() -> None:
    rows = probed(vgg_like(), rows_of(vgg_like(), ["cam", "grad_cam"], None), images(1), 0)
    assert "global average pooling" in (rows[0].refused or "")
    assert rows[1].refused is None
    with pytest.raises(InputError, match="no method is left that explains this network: cam: VGGLike has no"):
        probed(vgg_like(), rows_of(vgg_like(), "cam", None), images(1), 0)


@pytest.mark.parametrize(
    ("methods", "layers", "words"),
    [
        ("grad_can", None, "no method 'grad_can'; did you mean 'grad_cam'"),
        (["grad_cam", "salience"], None, "did you mean 'saliency'"),
        ([], None, "methods is empty"),
        ({"centre": mine}, None, "'centre' is the name of a reference"),
        ({"x": "grad_can"}, None, "no method 'grad_can'"),
        ("grad_cam", [], "layers is empty"),
    ],
)
def test_a_wrong_choice_is_one_line(methods: object, layers: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows_of(vgg_like(), methods, layers)  # type: ignore[arg-type]


def test_a_layer_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LayerError, match=r"did you mean 'features\.8'"):
        rows_of(vgg_like(), "grad_cam", "featurs.8")


def test_references_know_nothing_of_the_network_and_the_batch() -> None:
    x = images(3)
    assert torch.equal(random(vgg_like(), x)[1:2], random(vgg_like(), x[1:2]))
    assert not torch.equal(random(vgg_like(), x)[0], random(vgg_like(), x)[1])
    blob = centre(vgg_like(), x)[0]
    assert torch.equal(blob, blob.flip(0).flip(1))
    assert blob[16, 16] == blob.max()
    several = torch.zeros(3, 4, dtype=torch.long)
    assert centre(vgg_like(), x, several).shape == random(vgg_like(), x, several).shape == (3, 4, 32, 32)
