"""The deconvnet: equal to unpooling, rectifying and transposed convolution written out, from every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images, seeded
from torchviz_cnn.deconv.deconvnet import _square


@seeded
def plain_pools() -> nn.Sequential:
    """2 x 2 pools; layers `0..7`, poolings `2` and `5`."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def explicit(layers: list[nn.Module], x: Tensor, keep: Callable[[Tensor], Tensor], adding: bool) -> Tensor:
    """Forward with the switches kept, all units but some set to zero, and back down: Zeiler & Fergus, step by step.

    `adding`: overlapping windows add what they put in one place; otherwise `max_unpool2d` keeps one of them.
    """
    signal: Any = x
    way: list[tuple[Any, Any, Any]] = []
    with torch.no_grad():
        for layer in layers:
            size, switches = signal.shape, torch.empty(0)
            if isinstance(layer, nn.MaxPool2d):
                signal, switches = F.max_pool2d(
                    signal,
                    layer.kernel_size,
                    layer.stride,
                    layer.padding,
                    ceil_mode=layer.ceil_mode,
                    return_indices=True,
                )
            else:
                signal = layer(signal.clone())
            way.append((layer, size, switches))
        signal = keep(signal)
        for layer, size, switches in reversed(way):
            if isinstance(layer, nn.MaxPool2d) and adding:
                signal = tvc.unpool(signal, switches, size)
            elif isinstance(layer, nn.MaxPool2d):
                signal = F.max_unpool2d(signal, switches, layer.kernel_size, layer.stride, layer.padding, size)  # type: ignore[arg-type]
            elif isinstance(layer, nn.ReLU):
                signal = signal.relu()
            elif isinstance(layer, nn.Conv2d):
                spare = [
                    size[d + 2]
                    - ((signal.shape[d + 2] - 1) * layer.stride[d] - 2 * int(layer.padding[d]) + layer.kernel_size[d])
                    for d in (0, 1)
                ]
                signal = F.conv_transpose2d(signal, layer.weight, None, layer.stride, layer.padding, spare)  # type: ignore[arg-type]
    projected: Tensor = signal
    return projected


def strongest(channel: int) -> Callable[[Tensor], Tensor]:
    def keep(maps: Tensor) -> Tensor:
        kept = torch.zeros_like(maps)
        for one, into in zip(maps[:, channel], kept[:, channel], strict=True):
            place = int(one.argmax())
            into.view(-1)[place] = one.reshape(-1)[place]
        return kept

    return keep


def at(channel: int, row: int, column: int) -> Callable[[Tensor], Tensor]:
    def keep(maps: Tensor) -> Tensor:
        kept = torch.zeros_like(maps)
        kept[:, channel, row, column] = maps[:, channel, row, column]
        return kept

    return keep


def everywhere(channel: int) -> Callable[[Tensor], Tensor]:
    return lambda maps: maps * (torch.arange(maps.shape[1]) == channel)[:, None, None]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max()) and bool(b.any())


UNITS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
    ("strongest", strongest(3)),
    ("all", everywhere(3)),
    ((1, 2), at(3, 1, 2)),
]


@pytest.mark.parametrize(("unit", "keep"), UNITS, ids=["strongest", "all", "position"])
@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "4", "5", "6", "7"])
@pytest.mark.parametrize("build", [plain_pools, networks.overlapping_pools])
def test_equals_the_explicit_construction(
    build: Callable[[], nn.Sequential], layer: str, unit: Any, keep: Callable[[Tensor], Tensor]
) -> None:
    model, x = build(), images(2)
    expected = explicit(list(model)[: int(layer) + 1], x, keep, adding=True)
    if not expected.any():
        pytest.skip("this unit is not active")
    assert close(tvc.deconvnet(model, x, layer, 3, unit=unit).values, expected)
    if build is plain_pools:
        assert close(
            tvc.deconvnet(model, x, layer, 3, unit=unit).values,
            explicit(list(model)[: int(layer) + 1], x, keep, adding=False),
        )


def test_overwriting_differs_where_windows_overlap() -> None:
    model, x = networks.overlapping_pools(), images(2)
    layers = list(model)[:7]
    adding, overwriting = (explicit(layers, x, everywhere(3), adding=way) for way in (True, False))
    assert close(tvc.deconvnet(model, x, "6", 3, unit="all").values, adding)
    assert float((adding - overwriting).abs().max()) > 0.01 * float(adding.abs().max())


def test_unpool_adds_what_meets() -> None:
    x = torch.zeros(1, 1, 1, 5)
    x[..., 2] = 1
    pooled, switches = tvc.max_pool_with_switches(x, (1, 3), (1, 2))
    assert pooled.flatten().tolist() == [1, 1]
    assert tvc.unpool(pooled, switches, (1, 5)).flatten().tolist() == [0, 0, 2, 0, 0]
    assert F.max_unpool2d(pooled, switches, (1, 3), (1, 2), output_size=(1, 5)).flatten().tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("options", [(2,), (3, 2), (3, 2, 1), (3, 1), (3, 2, 0, True)])
def test_unpool_is_the_gradient_of_pooling(options: tuple[Any, ...]) -> None:
    x = images(2).requires_grad_()
    pooled, switches = tvc.max_pool_with_switches(x, *options)
    signal = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(pooled, x, signal)
    assert torch.allclose(tvc.unpool(signal, switches, x.shape), gradient, atol=1e-6)
    assert torch.equal(tvc.unpool(signal[0], switches[0], (32, 32)), tvc.unpool(signal, switches, (32, 32))[0])


def test_unpool_errors() -> None:
    pooled, switches = tvc.max_pool_with_switches(images(1), 2)
    with pytest.raises(tvc.InputError, match="do not fit an output of 8 x 8"):
        tvc.unpool(pooled, switches, (8, 8))
    with pytest.raises(tvc.InputError, match=r"values \(1, 3, 16, 15\) and switches \(1, 3, 16, 16\)"):
        tvc.unpool(pooled[..., 1:], switches, (32, 32))


ANY: list[tuple[Callable[[], nn.Module], str]] = [
    (networks.vgg_like, "features.7"),
    (networks.functional_relu, "conv4"),
    (networks.reused, "relu#1"),
    (networks.reused, "pool"),
    (networks.residual, "layer2.1.bn2"),
    (networks.dense, "convs.2"),
    (networks.batch_norm, "5"),
    (networks.overlapping_pools, "5"),
    (networks.squeeze_like, "features"),
    (networks.checkpointed, "block.2"),
    (networks.tuple_output, "pair.left"),
    (networks.data_parallel, "features.8"),
    (networks.compiled, "features.5"),
]


@pytest.mark.parametrize(("build", "layer"), ANY)
def test_it_is_the_gradient_of_half_the_square_under_the_rule(build: Callable[[], nn.Module], layer: str) -> None:
    model, x = build(), images(2)
    kept: dict[str, Tensor] = {}
    leaf = x.clone().requires_grad_()

    def keep(name: str, output: Tensor) -> Tensor:
        kept[name] = output
        return output.clone()

    with tvc.relu_rule("deconvnet"), tvc.HookManager(build()) as hooks:
        hooks.on_forward(layer, keep)
        hooks.model.eval()
        hooks.run(leaf.clone(), stop_early=False)
        maps = kept[layer][:, 2].flatten(1)
        strength = maps.gather(1, maps.argmax(1, keepdim=True))
        (expected,) = torch.autograd.grad(strength.square().sum() / 2, leaf)
    with unchanged(model, x):
        result = tvc.deconvnet(model, x, layer, 2)
    assert close(result.values, expected)
    assert torch.allclose(result.activations, strength[:, 0], rtol=1e-4)


@pytest.mark.parametrize(("build", "layer"), ANY)
def test_each_image_and_unit_gets_what_it_would_get_alone(build: Callable[[], nn.Module], layer: str) -> None:
    model, x = build(), images(3)
    together = tvc.deconvnet(model, x, layer, [2, 0])
    assert together.values.shape == (3, 2, 3, 32, 32)
    for i in range(3):
        for k, channel in enumerate((2, 0)):
            alone = tvc.deconvnet(model, x[i : i + 1], layer, channel)
            assert torch.allclose(together.values[i, k], alone.values[0], rtol=1e-3, atol=1e-5)
            assert together.positions[i, k].tolist() == alone.positions[0].tolist()


def test_several_layers_in_one_forward() -> None:
    model, x, calls = networks.vgg_like(), images(2), []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    result = tvc.deconvnet(
        model, x, ["features.2", "features.8", "features.4"], {"features.2": [1, 5], "features.4": 3}, k=2
    )
    assert len(calls) == 1
    assert result.layers == ("features.2", "features.2", "features.8", "features.8", "features.4")
    for unit, (layer, channel) in enumerate(
        [("features.2", 1), ("features.2", 5), (None, None), (None, None), ("features.4", 3)]
    ):
        if layer is not None:
            assert close(result.values[:, unit], tvc.deconvnet(model, x, layer, channel).values)


def test_channels_by_layer_are_named_as_layers_are() -> None:
    model, x = networks.vgg_like(), images(1)
    expected = tvc.deconvnet(model, x, ["features.2", "features.8"], {"features.8": [3, 1]})
    result = tvc.deconvnet(model, x, [model.features[2], "features.8"], {model.features[8]: [3, 1]})
    assert torch.equal(result.values, expected.values)
    assert result.channels[0, 1:].tolist() == [3, 1]
    assert close(tvc.deconvnet(model, x, "features.8", {"features.8#0": 3}).values, expected.values[:, 1])


def test_top_units_over_channels() -> None:
    model, x = networks.vgg_like(), images(2)
    maps = tvc.capture(model, x, "features.8")["features.8"]
    result = tvc.deconvnet(model, x, "features.8", k=4)
    strength = maps.amax((2, 3))
    assert result.channels.tolist() == strength.topk(4, 1).indices.tolist()
    assert torch.allclose(result.activations, strength.topk(4, 1).values)
    for i in range(2):
        row, column = result.positions[i, 0].tolist()
        assert torch.isclose(maps[i, result.channels[i, 0], row, column], strength[i].max())
    one = tvc.deconvnet(model, x, "features.8")
    assert one.values.shape == (2, 3, 32, 32)
    assert torch.equal(one.channels, result.channels[:, 0])
    here = tvc.deconvnet(model, x, "features.8", unit=(3, 4), k=2)
    assert here.channels.tolist() == maps[:, :, 3, 4].topk(2, 1).indices.tolist()
    assert tvc.deconvnet(model, x, "features.8", 1, unit="all").positions.tolist() == [[-1, -1], [-1, -1]]


def test_the_pass_stops_at_the_layer() -> None:
    model, seen = networks.vgg_like(), []
    for name, module in model.features.named_children():
        module.register_forward_hook(lambda module, args, output, name=name: seen.append(name))
    tvc.deconvnet(model, images(1), "features.5", 0)
    assert seen == list("012345")


def test_a_dead_channel_projects_to_zeros() -> None:
    model = networks.vgg_like()
    with torch.no_grad():
        model.features[7].bias[3] = -100  # type: ignore[index, operator]
    result = tvc.deconvnet(model, images(1), "features.8", 3)
    assert not result.values.any()
    assert result.activations.tolist() == [0]
    assert np.asarray(result.image()).std() == 0
    assert result.patch() == (0, 0, 32, 32)


@pytest.mark.parametrize(
    ("layer", "options", "error", "message"),
    [
        ("features.9", {"channel": 12}, tvc.InputError, "channel 12 is out of range: layer 'features.9' has 12"),
        ("features.9", {"channel": []}, tvc.InputError, r"a channel is an index, or several, not \[\]"),
        ("features.9", {"channel": 1.5}, tvc.InputError, "a channel is an index, or several, not 1.5"),
        ("features.9", {"channel": True}, tvc.InputError, "a channel is an index, or several, not True"),
        ("features.9", {"unit": (True, 0)}, tvc.InputError, r"a unit is an index, or several, not \(True, 0\)"),
        ("features.9#*", {}, tvc.LayerError, "every call of 'features.9': name one"),
        (
            ["features.9"],
            {"channel": {"features.7": 1}},
            tvc.InputError,
            r"given for \['features.7'\]; the layers asked",
        ),
        ("features.9", {"unit": ("a", 0)}, tvc.InputError, "a unit is an index, or several"),
        ("features.9", {"unit": (1, 2, 3)}, tvc.InputError, "'strongest', 'all' or"),
        ("features.9", {"unit": (8, 0)}, tvc.InputError, "the maps of layer 'features.9' are 8 x 8"),
        ("features.9", {"unit": "top"}, tvc.InputError, "'strongest', 'all' or"),
        ("features.9", {"k": 0}, tvc.InputError, "k is a whole number of at least 1, not 0"),
        ("featurs.9", {}, tvc.LayerError, "did you mean 'features.9'"),
        ("classifier.0", {"unit": (1, 0)}, tvc.InputError, "the maps of layer 'classifier.0' are 1 x 1"),
        ([], {}, tvc.LayerError, "no layer at all"),
    ],
)
def test_errors(layer: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, x = networks.vgg_like(), images(1)
    with unchanged(model, x), pytest.raises(error, match=message):
        tvc.deconvnet(model, x, layer, **options)
    with pytest.raises(tvc.LayerError, match="Hardswish; other_activations='plain'"):
        tvc.deconvnet(networks.grouped(), x, "5")


def test_pictures_and_files(tmp_path: Path) -> None:
    model, x = networks.vgg_like(), images(2)
    result = tvc.deconvnet(model, x, ["features.0", "features.7"], k=3)
    photo = Image.new("RGB", (64, 64), "red")
    assert result.plot(photo, index=1).width > result.plot(index=1).width > 100
    left, top, right, bottom = result.patch(0, 0)
    assert (right - left, bottom - top) <= (3, 3)
    assert (result._repr_png_() or b"").startswith(b"\x89PNG")
    assert "features.0, features.7: 2 x 6 x 3 x 32 x 32" in repr(result)
    for place, message in (((0, 6), "unit 6 is out of range: there are 6"), ((0.5, 0), "image 0.5 is out of range")):
        with pytest.raises(tvc.InputError, match=message):
            result.image(*place)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(result.image(-1, -1)), np.asarray(result.image(1, 5)))
    with pytest.raises(tvc.InputError, match="side is a whole number of at least 1"):
        result.plot(side=0)
    with np.load(result.save(tmp_path / "deconvnet.npz")) as saved:
        assert np.array_equal(saved["values"], result.values.numpy())
        assert saved["layers"].tolist() == list(result.layers)


def test_compare_two_networks(tmp_path: Path) -> None:
    x = images(1)
    pools, other = networks.overlapping_pools(), plain_pools()
    with unchanged(pools, x):
        result = tvc.compare({"A": (pools, x), "B": (other, x)}, {"A": ["0", "3"]}, k=2)
    assert result.projections["A"].layers == ("0", "0", "3", "3")
    assert result.projections["B"].layers == ("0", "0", "3", "3", "6", "6")
    assert str(result).splitlines()[0] == "A: 6 filters at 0: 0% dead, 0% near-duplicates"
    assert result.plot(Image.new("RGB", (32, 32))).height > 400
    with pytest.raises(
        tvc.InputError, match=r"'A' is compared as a Network, or as \(module, input\), not as a Sequential"
    ):
        tvc.compare({"A": pools})  # type: ignore[dict-item]
    with pytest.raises(tvc.InputError, match=r"given for \['C'\]; the networks are A"):
        tvc.compare({"A": (pools, x)}, {"C": ["0"]})


def test_dead_and_repeated_filters_are_counted() -> None:
    model = plain_pools()
    convolution = model[0]
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight[1] *= 1e-4
        convolution.weight[4] = 3 * convolution.weight[2] + 0.01
        convolution.weight[5] = convolution.weight[1]
    result = tvc.first_filters(model)
    assert result.dead.tolist() == [False, True, False, False, False, True]
    assert result.duplicate.tolist() == [False, False, False, False, True, False]
    assert result.dead_share == pytest.approx(1 / 3)
    assert result.duplicate_share == pytest.approx(1 / 6)
    tiles = np.asarray(result.grid(10))
    assert abs(tiles[:10, 12:22].astype(int) - 127).max() <= 1  # a dead one is not stretched
    with pytest.raises(tvc.InputError, match="side is a whole number of at least 1, not 0"):
        result.grid(0)


def test_networks_without_filters_to_count_are_named() -> None:
    broken = nn.Conv2d(3, 2, 3)
    nn.init.constant_(broken.weight, torch.nan)
    for layer, message in (
        (nn.Linear(2, 2), "no 2-D convolution"),
        (nn.LazyConv2d(2, 2), "run the model once first"),
        (broken, "layer '0' of Sequential has weights that are NaN"),
    ):
        with pytest.raises(tvc.ModelError, match=message):
            tvc.first_filters(nn.Sequential(layer))
    with pytest.raises(tvc.InputError, match="threshold is a finite number, not 'high'"):
        tvc.first_filters(plain_pools(), "high")  # type: ignore[arg-type]


def test_first_filters_are_a_copy() -> None:
    plain = nn.Conv2d(3, 4, 3)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))  # in training, it changes as it is read
    for convolution in (plain, spectral):
        model = nn.Sequential(convolution).train()
        with unchanged(model, images()):
            tvc.first_filters(model).filters.zero_()


def test_patches_are_cut_out_square() -> None:
    for box, size, expected in (
        ((10, 10, 20, 30), (64, 64), (5, 10, 25, 30)),
        ((50, 0, 64, 40), (64, 64), (24, 0, 64, 40)),
        ((0, 0, 64, 20), (32, 64), (0, 0, 64, 32)),
    ):
        assert _square(box, *size) == expected


def test_a_network_that_gives_nan_is_refused() -> None:
    model = networks.vgg_like()
    with torch.no_grad():
        model.features[0].bias[1] = torch.nan  # type: ignore[index,union-attr,operator]
    with pytest.raises(tvc.ModelError, match=r"'features\.0' of VGGLike gives NaN"):
        tvc.deconvnet(model, images(1), ["features.0", "features.5"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tvc.unpool(x, torch.zeros(1, 1, 4, 4), (8, 8)), "one place, a whole number"),
        (lambda x: tvc.unpool(x, torch.zeros(1, 1, 2, 2).long(), (8, 8)), "one place, a whole number"),
        (lambda x: tvc.unpool(x, torch.full((1, 1, 4, 4), 64), (8, 8)), "do not fit an output of 8 x 8"),
        (lambda x: tvc.unpool(x, torch.zeros(1, 1, 4, 4).long(), (8,)), r"output_size is a side .* not \(8,\)"),
        (lambda x: tvc.unpool([x], [x], (8, 8)), "are tensors"),  # type: ignore[arg-type]
        (lambda x: tvc.max_pool_with_switches(x, 9), r"\(1, 1, 4, 4\) cannot be pooled in windows of 9"),
        (lambda x: tvc.max_pool_with_switches(x[0, 0], 2), r"\(4, 4\) cannot be pooled"),
        (lambda x: tvc.max_pool_with_switches(x, "2"), "cannot be pooled in windows of '2'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_pooled_or_put_back(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(tvc.InputError, match=message):
        call(torch.rand(1, 1, 4, 4))
