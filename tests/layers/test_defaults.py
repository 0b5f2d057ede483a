"""Which layer is explained by default, channels-last maps, and the ways in which a layer is named."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute

import torchviz_cnn as tvc
from tests.networks import images, seeded, vgg_like
from torchviz_cnn import InputError, LayerError
from torchviz_cnn.layers.layout import channels_last

X = images(2, 16)


def default(model: nn.Module, x: Tensor = X) -> str:
    return tvc.grad_cam(model, x, target=1, relu=False).layer


class Trunk(nn.Module):
    """A trunk of 8 x 8 maps and a linear head, to which networks add what must not be explained."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 4)
        self.decoder = nn.Sequential(nn.Conv2d(8, 3, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 1))

    def scores(self, maps: Tensor) -> Tensor:
        scores: Tensor = self.fc(maps.mean((2, 3)))
        return scores

    def forward(self, x: Tensor) -> Any:
        return self.scores(self.trunk(x))


class WithDecoder(Trunk):
    def forward(self, x: Tensor) -> Any:
        maps = self.trunk(x)
        return self.scores(maps), self.decoder(maps)


class InADict(Trunk):
    def forward(self, x: Tensor) -> Any:
        maps = self.trunk(x)
        mask = self.decoder(maps)
        return {"mask": mask, "logits": self.scores(maps)}


class Unused(Trunk):
    def forward(self, x: Tensor) -> Any:
        maps = self.trunk(x)
        self.decoder(maps)
        return self.scores(maps)


class OfItsImage(Trunk):
    """The scores depend on an image that the network makes itself."""

    def forward(self, x: Tensor) -> Any:
        maps = self.trunk(x)
        return self.scores(maps) + self.decoder(maps).mean((1, 2, 3))[:, None]


class Siamese(Trunk):
    """Compares the batch to another that is part of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("other", torch.rand(2, 3, 16, 16))

    def forward(self, x: Tensor) -> Any:
        return self.scores(self.trunk(x)) - self.scores(self.trunk(self.other)).flip(0)


class FixedBatch(Trunk):
    def forward(self, x: Tensor) -> Any:
        return self.scores(self.trunk(x).view(2, 8, 8, 8))


class ComparesImages(Trunk):
    def forward(self, x: Tensor) -> Any:
        maps = self.trunk(x)
        return self.scores(maps) - self.scores(maps[1:2])


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (Trunk, "trunk"),
        (WithDecoder, "trunk"),
        (InADict, "trunk"),
        (Unused, "trunk"),
        (OfItsImage, "trunk"),
        (Siamese, "trunk"),
        (FixedBatch, "trunk"),
        (ComparesImages, "trunk"),
    ],
)
def test_the_default_is_the_last_map_that_the_score_depends_on(network: type[Trunk], layer: str) -> None:
    model = seeded(network)()
    assert default(model) == layer
    for explain in (tvc.grad_cam, tvc.guided_grad_cam):
        by_default, by_name = (explain(model, X, name, target=1).values for name in (None, layer))
        assert torch.equal(by_default, by_name)


@pytest.mark.parametrize("network", [FixedBatch, ComparesImages])
def test_a_network_that_takes_no_single_image_is_run_on_the_batch(
    network: type[Trunk], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "torchviz_cnn"):
        default(seeded(network)())
    assert "the layer is looked for on the whole batch, not on one image: " in caplog.text


def test_maps_as_large_as_the_image_are_taken_where_there_are_no_others() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert default(seeded(lambda: nn.Sequential(*flat, nn.Linear(4, 3)))()) == "1"


class Bottleneck(nn.Module):
    """Gives one pixel for 2 x 2: its first convolution gives a map of 2 x 2, which a shortcut goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 2, 2))
        self.shortcut = nn.Conv2d(8, 8, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def with_bottleneck(*trunk: nn.Module) -> nn.Sequential:
    return nn.Sequential(*trunk, Bottleneck(), nn.Flatten(), nn.Linear(8, 4))


class Bypassed(Trunk):
    """Its last map is added to the one before in the network's own forward: no block gives the sum."""

    def forward(self, x: Tensor) -> Any:
        maps = self.trunk[:2](x)
        return self.scores(F.pad(maps, (0, 0, 0, 0, 0, 2)) + self.trunk[2:](maps))


def test_what_comes_before_a_block_is_explained_rather_than_one_of_its_branches() -> None:
    convolution = nn.Conv2d(3, 8, 8, 8)
    assert default(seeded(with_bottleneck)(nn.Sequential(convolution, nn.ReLU()))) == "0"  # not "1.branch.1"
    assert default(seeded(with_bottleneck)(convolution, nn.MaxPool2d(1))) == "0"  # no pooling is explained
    assert default(seeded(Bypassed)()) == "trunk.3"


class ChannelsLast(nn.Module):
    """Maps of 4 x 8 from images of 16 x 32, with their channels last in the middle: as in ConvNeXt and Swin."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.body = nn.Sequential(Permute([0, 2, 3, 1]), nn.LayerNorm(4), nn.Linear(4, 9), nn.GELU())
        self.merge = nn.Linear(36, 6)
        self.back = Permute([0, 3, 1, 2]) if back else None
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self.stem(x))
        maps = self.merge(torch.cat([maps[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], 3))
        out: Tensor = self.head(maps.mean((1, 2)) if self.back is None else self.back(maps).mean((2, 3)))
        return out


WIDE = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("layer", ["body.0", "body.1", "body.2", "body.3", "body", "merge"])
def test_channels_last_maps_are_not_projected(layer: str) -> None:
    model = seeded(ChannelsLast)(True)
    words = rf"layer '{layer}' of ChannelsLast gives \(2, .*\) with its channels last"
    with pytest.raises(LayerError, match=words):
        tvc.deconvnet(model, WIDE, layer, other_activations="plain")


def test_the_default_is_the_last_map_wherever_its_channels_are() -> None:
    heat = tvc.grad_cam(seeded(ChannelsLast)(True), WIDE, target=1, relu=False)
    assert (heat.layer, tuple(heat.values.shape)) == ("back", (2, 4, 8))
    assert default(seeded(ChannelsLast)(False), WIDE) == "merge"


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        (nn.Linear(2, 8), (1, 8, 8, 8), True),
        (nn.LayerNorm(8), (1, 8, 8, 8), True),
        (nn.LayerNorm([4, 8]), (1, 9, 4, 8), False),
        (nn.Conv2d(1, 4, 1), (1, 4, 4, 9), False),
        (nn.BatchNorm2d(4), (1, 4, 4, 9), False),
        (nn.Identity(), (1, 4, 8, 12), True),
        (nn.Identity(), (1, 12, 4, 8), False),
        (nn.Identity(), (1, 7, 4, 5), False),
        (nn.Identity(), (1, 64, 1, 1), False),
        (nn.Identity(), (1, 8, 16), False),
    ],
)
def test_where_the_channels_are(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    assert channels_last(layer, torch.zeros(shape), (32, 64)) is last


class NormOfChannels(nn.LayerNorm):
    """Normalises channels of maps (B, C, h, w), as ConvNeXt's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_norm_that_turns_its_input_around_has_channels_first() -> None:
    layers = nn.Conv2d(3, 6, 3), NormOfChannels(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    model = seeded(lambda: nn.Sequential(*layers))()
    assert default(model) == "1"
    assert tvc.grad_cam(model, X, "1", target=1, relu=False).values.shape == (2, 14, 14)


@pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
def test_a_layer_is_named_or_given_as_a_module() -> None:
    model = vgg_like()
    x, part = images(), model.features
    for layer in (part[8], [part[8]], ("features.8",), ["features.8"]):
        heat = tvc.grad_cam(model, x, layer, target=1, relu=False)
        assert heat.layer == "features.8"
        assert torch.equal(heat.values, tvc.grad_cam(model, x, "features.8", target=1, relu=False).values)
    assert tvc.guided_grad_cam(model, x, part[8], 1).method == "guided Grad-CAM"
    assert list(tvc.capture(model, x, [part[0], part])) == ["features.0", "features"]
    assert list(tvc.capture(model, x, part)) == ["features"]
    single, listed = tvc.deconvnet(model, x, part[8]), tvc.deconvnet(model, x, ["features.5", part[8]])
    assert (single.layers, listed.layers) == (("features.8",), ("features.5", "features.8"))
    assert single.values.shape == (2, 3, 32, 32)
    assert tvc.filter_patterns(model, part[0], channels=[1], size=8, steps=1).layer == "features.0"
    assert list(tvc.top_activations(model, x, part[0], k=1).values) == ["features.0"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (["features.0", "features.2"], "one layer is explained at a time, and 2 were asked for"),
        ([], "one layer is explained at a time, and 0 were asked for"),
        ("features.2#*", r"'features\.2#\*' is every call of 'features\.2': name one"),
        (nn.Conv2d(1, 1, 1), "this Conv2d is not a layer of VGGLike: give one of its layers"),
        (nn.ReLU, "asked for as a module or by its dotted name"),
        (3, "asked for as a module or by its dotted name, not by an int"),
    ],
)
def test_a_layer_that_is_none_is_named_before_the_network_runs(layer: Any, words: str) -> None:
    model = vgg_like()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    with pytest.raises(LayerError, match=words):
        tvc.grad_cam(model, images(), layer)
    with pytest.raises(LayerError, match="this VGGLike is the whole model"):
        tvc.grad_cam(model, images(), model)


class TwoInputs(Trunk):
    def forward(self, x: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        return self.scores(self.trunk(x) - self.trunk(other))


@pytest.mark.parametrize("x", [[X, X], (X, X, X), {"x": X, "another": X}, X])
def test_several_inputs_are_told_how(x: Any) -> None:
    for call in (tvc.grad_cam, tvc.saliency, tvc.predict, tvc.capture):
        with pytest.raises(InputError, match="the inputs of a model of several are given as a tuple"):
            call(seeded(TwoInputs)(), x)


def test_a_mistake_inside_a_network_stays_its_own() -> None:
    class Wrong(Trunk):
        def forward(self, x: Tensor) -> Any:
            return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        tvc.predict(Wrong(), X)


class OnlyPairs(nn.Module):
    """Asserts that it gets two images, as what `torch.export` gives asserts the batch that it was made with."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Any:
        assert len(x) == 2, "a batch of two"
        return self.layers(x)


def test_a_network_that_asserts_its_batch_is_explained() -> None:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    plain = seeded(lambda: nn.Sequential(*layers))()
    heat = tvc.grad_cam(OnlyPairs(plain), X, target=1, relu=False)
    assert heat.layer == "layers.1"
    assert torch.equal(heat.values, tvc.grad_cam(plain, X, target=1, relu=False).values)
