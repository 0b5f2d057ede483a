"""One table of methods: each is a function of the API, and the docs' table is made from it."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest
import torch

import torchviz_cnn as tvc
from tests import networks
from tests.networks import images
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS
from torchviz_cnn.attribution.methods import METHODS, methods_of

ROOT = Path(__file__).parents[2]


def test_every_cam_method_is_in_the_api_and_in_the_table() -> None:
    for name, method in CAM_METHODS.items():
        assert getattr(tvc, name) is method.function
        assert name in tvc.__all__
        assert METHODS[name].title == method.title
        assert method.function.__name__ == name
        doc = inspect.getdoc(method.function) or ""
        assert "\nArgs:\n" in doc
        assert ">>>" not in doc.partition("\nArgs:\n")[0]


def test_the_kinds_share_out_the_table() -> None:
    kinds = [methods_of(kind) for kind in ("cam", "saliency", "occlusion")]  # type: ignore[arg-type]
    assert sum(map(len, kinds)) == len(METHODS)
    assert all(kinds)


@pytest.mark.parametrize("name", CAM_METHODS)
def test_a_formula_gets_activations_and_gradients_of_every_class(name: str) -> None:
    activations = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    formula = CAM_METHODS[name].formula
    maps = formula(activations, gradients)
    assert maps.shape == (2, 3, 5, 6)
    alone = formula(activations[1:], gradients[1:, 2:])
    assert torch.allclose(maps[1:, 2:], alone, atol=1e-6)
    signal = formula(activations[..., 0], gradients[..., 0])
    assert signal.shape == (2, 3, 5)


@pytest.mark.parametrize("name", CAM_METHODS)
def test_a_method_is_its_formula_on_plain_gradients(name: str) -> None:
    model, x = networks.vgg_like(), images(2)
    heat = CAM_METHODS[name].function(model, x, "features.9", torch.tensor([[0, 3], [1, 2]]), relu=False)
    model.eval().requires_grad_(False)
    maps = model.features[:10](x).requires_grad_()
    logits = model.classifier(model.avgpool(maps).flatten(1))
    gradients = torch.stack(
        [
            torch.autograd.grad(logits[i, k], maps, retain_graph=True)[0][i]
            for i, row in enumerate([[0, 3], [1, 2]])
            for k in row
        ]
    ).view(2, 2, *maps.shape[1:])
    expected = CAM_METHODS[name].formula(maps.detach(), gradients)
    assert torch.allclose(heat.values, expected, rtol=1e-4, atol=1e-6)


def test_the_docs_table_is_the_librarys() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "methods_table.py"))
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == script["table"](), "docs/methods.md is out of date: run `make docs-table`"
