"""What a recorder keeps is what the layers gave, whatever is written over it later, with gradients and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.recorder import Recorder

LAYERS: dict[Callable[[], nn.Module], list[str]] = {
    networks.vgg_like: ["features.0", "features.1", "features.4", "features.7", "features"],
    networks.residual: ["stem", "layer1.0.bn2", "layer1.0", "layer2.1.relu"],
    networks.reused: ["conv1", "relu", "relu#1", "pool#1", "conv3"],
    networks.checkpointed: ["stem", "block.0", "block.2"],
    networks.functional_relu: ["conv1", "conv3", "conv4"],
}


def copies(model: nn.Module, layers: list[str], x: Tensor) -> dict[str, Tensor]:
    """What layers give, copied at once."""
    outputs: dict[str, Tensor] = {}
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(layers, lambda name, out: outputs.update({name: out.clone()}))
        hooks.run(x.clone())
    return outputs


def record(model: nn.Module, layers: Any, x: Tensor, **options: Any) -> Recorder:
    with HookManager(model) as hooks, hooks.record(layers, **options) as acts:
        hooks.run(x.clone())
    return acts


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("build", LAYERS)
def test_it_keeps_what_the_layers_gave(build: Callable[[], nn.Module], grad: bool) -> None:
    model, x, layers = build(), images(), LAYERS[build]
    with unchanged(model, x), torch.set_grad_enabled(grad):
        acts = record(model, layers, x)
    expected = copies(model, layers, x)
    assert list(acts) == list(expected)
    assert len(acts) == len(expected)
    for name, tensor in expected.items():
        assert torch.equal(acts[name], tensor), name
        assert acts[name].requires_grad == grad


def test_without_gradients_nothing_is_copied_that_is_not_overwritten() -> None:
    model, addresses = networks.vgg_like(inplace=False), {}
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("features.0", lambda name, out: addresses.update({name: out.data_ptr()}))
        with hooks.record("features.0") as acts:
            hooks.run(images(), stop_early=False)
    assert acts["features.0"].data_ptr() == addresses["features.0"]


class GivesItsBuffer(nn.Module):
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.table


def test_the_models_own_tensors_are_copied() -> None:
    model = nn.Sequential(GivesItsBuffer(), nn.ReLU())
    with torch.no_grad():
        acts = record(model, "0", images())
    acts["0"].zero_()
    assert bool(model.get_buffer("0.table").all())


def test_what_is_kept_is_part_of_the_graph() -> None:
    """The first layer is a leaf where nothing before it needs a gradient; gradients are those of the plain network."""
    model, x = networks.vgg_like().requires_grad_(False), images()
    with HookManager(model) as hooks, hooks.record(["features.2", "features.7"]) as acts:
        out = hooks.run(x, stop_early=False)
        gradients = torch.autograd.grad(out.square().sum(), list(acts.values()))
    assert acts["features.2"].is_leaf
    plain = networks.vgg_like(inplace=False).requires_grad_(False)
    leaf = plain.features[:3](x).requires_grad_()
    later = plain.features[3:8](leaf)
    expected = plain.classifier(torch.flatten(plain.avgpool(plain.features[8:](later)), 1)).square().sum()
    for ours, wanted in zip(gradients, torch.autograd.grad(expected, [leaf, later]), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_a_check_chooses_the_tensor_of_a_call_or_none() -> None:
    model = networks.tuple_output()

    def second(name: str, output: Any) -> Tensor | None:
        return output[1] if isinstance(output, tuple) else None

    with torch.no_grad():
        acts = record(model, ["conv", "pair"], images(), check=second)
        assert list(acts) == ["pair"]
        assert torch.equal(acts["pair"], copies(model, ["pair.right"], images())["pair.right"])
        with pytest.raises(LayerError, match="'pair' gives a tuple, not a tensor"):
            record(model, "pair", images())


def test_an_unknown_layer_raises_and_a_missing_one_is_a_missing_key() -> None:
    with pytest.raises(LayerError, match=r"did you mean 'features\.0'"):
        record(networks.vgg_like(), "featurs.0", images())
    with torch.no_grad():
        acts = record(networks.unreached(), "aux", images())
    assert "aux" not in acts
    with pytest.raises(KeyError):
        acts["aux"]


@pytest.mark.parametrize("close", ["recorder first", "manager first"])
def test_nothing_stays_on_after_the_block(close: str) -> None:
    model, x = networks.vgg_like(), images()
    with unchanged(model, x), torch.no_grad():
        hooks = HookManager(model)
        acts = hooks.record("features.0").__enter__()
        hooks.run(x)
        for end in (lambda: acts.__exit__(None, None, None), hooks.close)[:: 1 if close == "recorder first" else -1]:
            end()  # type: ignore[no-untyped-call]
