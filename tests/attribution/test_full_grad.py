"""FullGrad: complete on piecewise linear networks, and equal to its formula written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.networks import CLASSES, images
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, TargetError

PIECEWISE_LINEAR: list[Callable[[], nn.Module]] = [
    networks.vgg_like,
    networks.functional_relu,
    networks.reused,
    networks.residual,
    networks.dense,
    networks.batch_norm,
    networks.gap_linear,
    networks.overlapping_pools,
]


@pytest.mark.parametrize("build", PIECEWISE_LINEAR)
def test_the_terms_of_all_layers_add_up_to_the_score(build: Callable[[], nn.Module]) -> None:
    model, x, classes = build(), images(3), torch.tensor([[0, 3], [1, 2], [4, 4]])
    full = tvc.full_grad(model, x, classes)
    scores = full.logits.gather(1, classes)
    assert full.completeness_error is not None
    assert float(full.completeness_error.abs().max()) < 1e-5 * float(scores.abs().max())


def test_where_the_terms_do_not_add_up_the_result_says_by_how_much() -> None:
    full = tvc.full_grad(networks.grouped(), images(2), 1)  # hard-swish is not piecewise linear
    assert full.completeness_error is not None
    assert float(full.completeness_error.abs().min()) > 1e-6


def biased() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 36, CLASSES),
        )
        norm: Any = model[1]
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def terms(model: nn.Sequential, x: Tensor, index: int) -> tuple[list[np.ndarray[Any, Any]], float]:
    """Input x gradient and the bias gradients of one image, from plain autograd, and what the last bias adds."""
    norm: Any = model[1]
    head: Any = model[9]
    biases: dict[int, Tensor] = {
        0: model[0].bias,  # type: ignore[dict-item]
        1: norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt(),
        6: model[6].bias,  # type: ignore[dict-item]
    }
    outputs, h = {}, x.clone().requires_grad_()
    first = h
    for place, layer in enumerate(model):
        h = layer(h)
        outputs[place] = h
    gradients = torch.autograd.grad(h[0, index], [first, *(outputs[place] for place in biases)])
    parts = [gradients[0] * x]
    parts += [part * bias[:, None, None] for part, bias in zip(gradients[1:], biases.values(), strict=True)]
    return [part[0].detach().double().numpy() for part in parts], float(head.bias.detach()[index])


def test_the_map_is_its_formula_written_out() -> None:
    model, x = biased(), images(2)
    full = tvc.full_grad(model, x, torch.tensor([[1, 4], [0, 2]]))
    for i, row in enumerate([[1, 4], [0, 2]]):
        for k, index in enumerate(row):
            parts, constant = terms(model, x[i : i + 1], index)
            expected, signed = np.zeros((32, 32)), np.zeros((32, 32))
            for part in parts:
                strength = np.abs(part)
                strength = (strength - strength.min()) / (strength.max() - strength.min())
                expected += larger(strength.sum(0))
                signed += larger(part.sum(0)) * part[0].size / 32**2
            assert np.abs(full.values[i, k].numpy() - expected).max() < 1e-4 * expected.max()
            assert np.abs(full.gradients[i, k, 0].numpy() - signed).max() < 1e-4 * np.abs(signed).max()
            total = sum(part.sum() for part in parts) + constant
            assert abs(total - float(full.logits[i, index])) < 1e-4


def larger(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tensor = torch.tensor(values)[None, None]
    return np.asarray(F.interpolate(tensor, (32, 32), mode="bilinear", align_corners=False)[0, 0])


def test_the_bias_gradients_are_grad_cams() -> None:
    """grad-cam scales each channel by itself, here as in the paper's program each layer: terms are equal, not maps."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = biased(), images(1)
    with grad_cam.FullGrad(model, [model[0]]) as reference:
        reference(x.clone(), [targets.ClassifierOutputTarget(2)])
        gradients = [kept.numpy()[0] for kept in reference.activations_and_grads.gradients]
        theirs = [bias[:, None, None] * part for bias, part in zip(reference.bias_data, gradients, strict=True)]
    ours, _ = terms(model, x, 2)
    assert len(ours) == 1 + len(theirs)
    for one, other in zip(ours[1:], theirs, strict=True):
        assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


def test_one_forward_pass_gives_all_classes() -> None:
    model, runs = networks.residual(), []
    model.fc.register_forward_hook(lambda module, args, out: runs.append(len(out)))
    classes = torch.tensor([[0, 1, 2, 3, 4]] * 2)
    full = tvc.full_grad(model, images(2), classes)
    assert runs == [2]
    assert full.values.shape == (2, 5, 32, 32)
    for k in range(5):
        alone = tvc.full_grad(model, images(2), k)
        torch.testing.assert_close(full.values[:, k], alone.values, rtol=1e-3, atol=1e-5)


def test_a_constant_network_has_an_empty_map() -> None:
    head = nn.Linear(2, 3)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with torch.no_grad():
        head.weight.zero_()
    with pytest.warns(EmptyMapWarning, match="FullGrad map is all zeros"):
        assert not tvc.full_grad(model, images(1), 1).values.any()


def test_mistakes() -> None:
    with pytest.raises(InputError, match="did you mean 'probability'"):
        tvc.full_grad(networks.vgg_like(), images(1), score="probabilty")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="out of range"):
        tvc.full_grad(networks.vgg_like(), images(1), 9)
