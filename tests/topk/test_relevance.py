"""Relevance of channels over a dataset: equal to plain automatic differentiation, whatever the network and the run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.topk.test_folder import StopsAt, same_files
from tests.topk.test_mining import assert_equal, assert_same
from tests.topk.test_ranks import Together
from torchviz_cnn.core.errors import InputError, ModelError, OutputError, SkippedWarning, TargetError
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.topk.exact import in_exact_order
from torchviz_cnn.topk.passes import RunState, probe, run_pass
from torchviz_cnn.topk.relevance.shares import Relevance

K = 4


def shares(
    model: nn.Module, images: Tensor, layer: str, target: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64
) -> Tensor:
    """Activation x gradient of a call of a layer, by plain PyTorch: (N, C, h, w)."""
    model = copy.deepcopy(model).to(dtype)
    name, _, call = layer.partition("#")
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # which a module that writes in place may write over

    model.get_submodule(name).register_forward_hook(keep)
    scores = target(model(images.to(dtype).requires_grad_()))
    activation = kept[int(call or 0)]
    (gradient,) = torch.autograd.grad(scores.sum(), activation)
    product = (activation * gradient).detach()
    return product if product.ndim == 4 else product[..., None, None]


def brute_force(shares: Tensor, k: int) -> tuple[Any, Any, Any]:
    """Values, images and positions of the k largest sums, by numpy."""
    maps = shares.numpy()
    flat = maps.reshape(*maps.shape[:2], -1)
    relevance, places = flat.sum(2), flat.argmax(2)
    order = np.argsort(-relevance, axis=0, kind="stable")[:k]
    rows, columns = np.divmod(np.take_along_axis(places, order, 0), maps.shape[3])
    return np.take_along_axis(relevance, order, 0).T, order.T, np.stack([rows.T, columns.T], -1)


def top_logit(output: Tensor) -> Tensor:
    return output.max(1).values


def class_3(output: Tensor) -> Tensor:
    return output[:, 3]


NETWORKS: list[tuple[Callable[[], nn.Module], list[str]]] = [
    (networks.vgg_like, ["features.0", "features.1", "features.5", "features.8"]),  # before in-place ReLUs, and behind
    (networks.functional_relu, ["conv2", "conv4"]),
    (networks.residual, ["layer1", "layer2"]),
    (networks.reused, ["relu", "relu#1"]),
    (networks.batch_norm, ["0", "1"]),
    (networks.grouped, ["0", "2"]),
    (networks.dense, []),
    (networks.checkpointed, []),
]


@pytest.mark.parametrize(("build", "layers"), NETWORKS)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_it_equals_plain_differentiation(build: Callable[[], nn.Module], layers: list[str], batch_size: int) -> None:
    model, images = build(), networks.images(23)
    with unchanged(model, images):
        top = tvc.top_activations(model, images, layers or None, K, by="relevance", batch_size=batch_size, exact=True)
    assert top.by == "relevance"
    assert len(top.layers) >= max(2, len(layers))
    for layer in top.layers:
        assert_equal(top, brute_force(shares(model, images, layer, top_logit), K), layer)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("target", "score", "same"),
    [
        (3, "logit", class_3),
        (class_3, "logit", class_3),
        (3, "probability", lambda output: output.softmax(1)[:, 3]),
        (3, "log_probability", lambda output: output.log_softmax(1)[:, 3]),
        (tvc.targets.contrast(3, 1), "logit", lambda output: output[:, 3] - output[:, 1]),
        ([i % 5 for i in range(23)], "logit", lambda output: output[range(23), [i % 5 for i in range(23)]]),
    ],
)
def test_of_any_target(target: Any, score: Any, same: Callable[[Tensor], Tensor], exact: bool) -> None:
    model, images = networks.vgg_like(), networks.images(23)
    how: dict[str, Any] = {"by": "relevance", "target": target, "score": score, "batch_size": 5, "exact": exact}
    top = tvc.top_activations(model, images, ["features.5", "features.8"], K, **how)
    for layer in top.layers:
        assert_equal(top, brute_force(shares(model, images, layer, same), K), layer)


def test_a_class_may_be_named_and_the_result_says_whose_score_it_is() -> None:
    model, images = networks.vgg_like(), networks.images(9)
    net = tvc.Network(model, tvc.Preprocess((32, 32)), ("a", "b", "c", "day", "night"))
    named = tvc.top_activations(net, images, "features.8", K, by="relevance", target="day")
    assert named.target == "day"
    assert "most relevant for day" in repr(named)
    assert_same(named, tvc.top_activations(model, images, "features.8", K, by="relevance", target=3))
    each = tvc.top_activations(net, images, "features.8", K, by="relevance", target=["day"] * 9)
    assert_same(named, each)
    assert tvc.top_activations(net, images, "features.8", K, by="relevance").target == "each image's top class"


def test_the_sum_over_the_channels_is_what_the_layer_adds_to_the_score() -> None:
    """Of a last layer before global pooling and a linear layer without a bias, that is the score itself."""
    model, images = networks.gap_linear(), networks.images(6)
    last = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ReLU))][-1]
    top = tvc.top_activations(model, images, last, 6, by="relevance", target=2)
    total = torch.zeros(6).index_add(0, top.images[last].flatten(), top.values[last].flatten())
    with torch.no_grad():
        bias = next((m.bias for m in model.modules() if isinstance(m, nn.Linear)), None)
        expected = model(images)[:, 2] - (0 if bias is None else bias[2])
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


def test_the_same_pass_gives_the_strongest_activations_and_their_statistics() -> None:
    model, images = networks.vgg_like(), networks.images(23)
    layers = ["features.0", "features.8"]
    both = tvc.top_activations(model, images, layers, K, by="relevance", batch_size=5)
    alone = tvc.top_activations(model, images, layers, K, batch_size=5)
    assert both.activation is not None
    assert alone.activation is None
    assert alone.by == "activation"
    assert_same(both.activation, alone)
    for layer in layers:
        for name, figures in alone.statistics[layer].tensors().items():
            torch.testing.assert_close(both.statistics[layer].tensors()[name], figures, equal_nan=True)
    assert any(not torch.equal(both.images[layer], alone.images[layer]) for layer in layers)


def test_fully_connected_layers_and_several_layers_in_one_pass_give_what_each_gives_alone() -> None:
    model, images = networks.vgg_like(), networks.images(11)
    linear = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    together = tvc.top_activations(model, images, ["features.3", linear], K, by="relevance", target=1)
    for layer in ("features.3", linear):
        one = tvc.top_activations(model, images, layer, K, by="relevance", target=1)
        assert torch.equal(one.images[layer], together.images[layer])
        assert_equal(together, brute_force(shares(model, images, layer, lambda output: output[:, 1]), K), layer)
    assert not together.positions[linear].any()


def test_it_works_inside_modes_without_gradients() -> None:
    model, images = networks.vgg_like(), networks.images(7)
    expected = tvc.top_activations(model, images, "features.8", K, by="relevance")
    with torch.no_grad():
        assert_same(expected, tvc.top_activations(model, images, "features.8", K, by="relevance"))
    with torch.inference_mode():
        assert_same(expected, tvc.top_activations(model, images, "features.8", K, by="relevance"))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    model, images = networks.vgg_like(), networks.images(23)
    how: dict[str, Any] = {"by": "relevance", "batch_size": 5}
    one = tvc.top_activations(model, images, "features.8", K, **how)
    assert_same(one, tvc.top_activations(model, images, "features.8", K, workers=workers, **how))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_together_come_to_what_one_has_alone(count: int, exact: bool) -> None:
    images = torch.cat([networks.images(9), networks.images(9), networks.images(5, seed=3)])  # with ties
    source = ImageSource(images)

    def run_shared(count: int) -> list[Any]:
        models = [networks.vgg_like() for _ in range(count)]

        def work(ranks: Any) -> Any:
            with untouched(models[ranks.rank]) as model:
                relevance = Relevance.of(model, len(source), None, "logit", None)
                state = RunState.new(probe(model, source, ["features.1", "features.8"], relevance), 6, True)
                run_pass(model, source, state, ranks, None, relevance, batch_size=3, save_every=4)
                tallies = state.tallies.items()
                kept = {layer: t.relevance.candidates for layer, t in tallies if t.relevance is not None}
                return in_exact_order(model, source, kept, ranks, 0, relevance) if exact else kept

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, Together(count).ranks()))

    (alone,) = run_shared(1)
    for shared in run_shared(count):
        for layer, whole in alone.items():
            for name, tensor in vars(whole).items():
                assert torch.equal(tensor, getattr(shared[layer], name)), (layer, name)


@pytest.mark.parametrize(("reads", "exact"), [(19, False), (31, False), (49, False), (60, True)])
def test_a_run_that_was_interrupted_ends_with_the_identical_result(reads: int, exact: bool, tmp_path: Path) -> None:
    model, images = networks.vgg_like(), networks.images(33)
    layers = ["features.3", "features.8"]
    how: dict[str, Any] = {"batch_size": 4, "save_every": 2, "exact": exact, "by": "relevance", "target": 2}
    whole = tvc.top_activations(model, StopsAt(images), layers, 4, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, StopsAt(images, reads), layers, 4, out=tmp_path / "part", **how)
    again = tvc.top_activations(model, StopsAt(images), layers, 4, out=tmp_path / "part", **how)
    assert same_files(tmp_path / "whole", tmp_path / "part")
    read = tvc.TopActivations.load(tmp_path / "part", images, model)
    for top in (again, read, tvc.top_activations(model, StopsAt(images), layers, 4, out=tmp_path / "part", **how)):
        assert (top.by, top.target, top.activation is None) == ("relevance", "class 2", False)
        assert_same(top, whole)
        assert top.activation is not None
        assert whole.activation is not None
        assert_same(top.activation, whole.activation)
        assert top.activation.by == "activation"
        assert top.activation.activation is None


@pytest.mark.parametrize("other", [{}, {"by": "relevance"}, {"by": "relevance", "target": 2, "score": "probability"}])
def test_a_run_of_another_relevance_is_not_gone_on_with(other: dict[str, Any], tmp_path: Path) -> None:
    model, images = networks.vgg_like(), networks.images(5)
    tvc.top_activations(model, images, "features.8", 2, by="relevance", target=2, out=tmp_path)
    with pytest.raises(OutputError):
        tvc.top_activations(model, images, "features.8", 2, out=tmp_path, **other)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    model, images = networks.vgg_like(), networks.images(7)
    top = tvc.top_activations(model, images, "features.8", 3, by="relevance", target=tvc.targets.contrast(0, 1))
    read = tvc.TopActivations.load(top.save(tmp_path / "saved"))
    assert_same(read, top)
    assert read.target == top.target
    assert read.activation is not None
    assert read.activation.source is None
    manifest = json.loads((tmp_path / "saved" / "manifest.json").read_text())
    assert manifest["identity"]["by"] == "relevance"


def test_pages_say_what_their_numbers_are_and_show_both() -> None:
    model, images = networks.vgg_like(), networks.images(12)
    top = tvc.top_activations(model, images, "features.8", 4, by="relevance")
    assert top.activation is not None
    channels = top.some_channels("features.8", 4)
    alone = top.activation.page("features.8", channels, columns=1, projection=None, side=40)
    both = top.page("features.8", channels, columns=1, projection=None, side=40)
    assert both.width > 1.8 * alone.width
    assert top.page("features.8", channels, columns=1, side=40).width > 2.7 * alone.width  # with the projections
    assert [patch.size for patch in top.patches("features.8", channels[0])]


def test_a_dead_channel_has_no_relevance() -> None:
    model, images = networks.vgg_like(), networks.images(6)
    with torch.no_grad():
        conv: Any = model.features[0]
        conv.weight[2], conv.bias[2] = 0, -1
    top = tvc.top_activations(model, images, ["features.1"], 3, by="relevance")
    assert bool(top.statistics["features.1"].dead[2])
    assert top.values["features.1"][2].tolist() == [0, 0, 0]
    assert top.images["features.1"][2].tolist() == [0, 1, 2]


class Auxiliary(nn.Module):
    """Has a second head, on which its class scores do not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.conv(x).relu()
        return {"out": maps.mean((2, 3)), "aux": self.side(maps).mean((2, 3))}


def test_a_layer_behind_the_score_has_no_relevance() -> None:
    model, images = networks.seeded(Auxiliary)(), networks.images(4)
    top = tvc.top_activations(model, images, None, 2, by="relevance", output="out")
    assert top.layers == ("conv",)
    other = tvc.top_activations(model, images, None, 2, by="relevance", output="aux")
    assert other.layers == ("conv", "side")
    with pytest.raises(ModelError, match="does not depend on layer 'side' of Auxiliary"):
        tvc.top_activations(model, images, ["conv", "side"], 2, by="relevance", output="out")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"by": "relevence"}, InputError, "did you mean 'relevance'"),
        ({"target": 2}, InputError, "target says whose relevance is meant.*by='relevance'"),
        ({"score": "probability"}, InputError, "score says whose"),
        ({"by": "relevance", "score": "logits"}, InputError, "logit"),
        ({"by": "relevance", "target": 7}, TargetError, "target 7 is out of range"),
        ({"by": "relevance", "target": "cat"}, TargetError, "class names of the model are not known"),
        ({"by": "relevance", "target": [1, 2]}, TargetError, "does not fit a dataset of 4 images"),
        ({"by": "relevance", "target": torch.zeros(4)}, TargetError, "torch.float32"),
        ({"by": "relevance", "target": lambda output: output[:, :2]}, TargetError, "gives 2 numbers for each image"),
    ],
)
def test_what_cannot_work_is_said_at_once(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tvc.top_activations(networks.vgg_like(), networks.images(4), "features.8", 2, **options)


class Overflow(nn.Module):
    """Its gradient is not a number where an input is zero everywhere; its activations are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = (self.conv(x) ** 2).sum((2, 3)).sqrt()
        return values


def test_relevance_that_is_not_a_number_is_left_out_with_a_warning() -> None:
    images = networks.images(5)
    images[2] = 0
    with pytest.warns(SkippedWarning, match="layer 'conv': 2 times the relevance is not a number"):
        top = tvc.top_activations(networks.seeded(Overflow)(), images, "conv", 5, by="relevance")
    assert 2 not in top.images["conv"]
    assert bool((top.images["conv"][:, -1] == -1).all())
    assert top.activation is not None
    assert 2 in top.activation.images["conv"]


def test_what_is_kept_does_not_grow_with_the_dataset() -> None:
    sizes = []
    for count in (8, 80):
        with untouched(networks.vgg_like()) as model:
            source = ImageSource(networks.images(count))
            relevance = Relevance.of(model, count, None, "logit", None)
            state = RunState.new(probe(model, source, "features.8", relevance), 6, True)
            (ranks,) = Together(1).ranks()
            run_pass(model, source, state, ranks, None, relevance, batch_size=4)
            sizes.append(sum(t.numel() for t in state.tallies["features.8"].tensors("x").values()))
    assert sizes[0] == sizes[1]
