"""Similar channels: cosines equal to those written out, within what can be compared; the rest is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from torchviz_cnn.core.errors import InputError, LayerError, NotFiniteError


def cosine(one: Tensor, other: Tensor) -> float:
    """Written out, number by number."""
    a, b = one.flatten().tolist(), other.flatten().tolist()
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / lengths)


def ranked(vectors: Tensor, channel: int, among: range | None = None) -> list[tuple[int, float]]:
    others = [c for c in among or range(len(vectors)) if c != channel]
    pairs = [(c, cosine(vectors[channel], vectors[c])) for c in others]
    return sorted(pairs, key=lambda pair: -pair[1])


def assert_ranked(similar: tvc.SimilarChannels, expected: list[tuple[int, float]]) -> None:
    assert list(similar.channels) == [c for c, _ in expected]
    assert similar.cosines.tolist() == pytest.approx([value for _, value in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "vectors"),
    [
        (nn.Conv2d(3, 7, 3), lambda m: m.weight),
        (nn.Conv1d(3, 7, 3), lambda m: m.weight),
        (nn.Linear(4, 7), lambda m: m.weight),
        (nn.ConvTranspose2d(3, 7, 2), lambda m: m.weight.transpose(0, 1)),
    ],
)
def test_by_weights_it_is_the_cosine_of_each_pair(layer: nn.Module, vectors: Any) -> None:
    model = nn.Sequential(layer)
    with unchanged(model, torch.zeros(1)):
        similar = tvc.similar_channels(model, "0", 2)
    assert_ranked(similar, ranked(vectors(layer).detach(), 2))
    assert tvc.similar_channels(model, layer, 2, k=3).channels == similar.channels[:3]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_in_a_convolution_of_groups_a_channel_is_compared_with_those_of_its_group(kind: Any) -> None:
    layer = kind(6, 12, 3, groups=3)
    rows = layer.weight.detach()
    if kind is nn.ConvTranspose2d:  # (inputs, channels of a group, 3, 3)
        rows = torch.cat([group.transpose(0, 1) for group in rows.split(2)])
    assert_ranked(tvc.similar_channels(nn.Sequential(layer), "0", 5), ranked(rows, 5, range(4, 8)))


def test_by_activations_it_is_the_cosine_of_the_means_over_images() -> None:
    model, x = networks.vgg_like(), networks.images(21)
    means = tvc.capture(model, x, "features.8")["features.8"].mean((2, 3)).T
    alive = [c for c in range(len(means)) if bool(means[c].any())]
    with unchanged(model, x):
        similar = tvc.similar_channels(model, "features.8", alive[0], by="activations", x=x)
    assert_ranked(similar, [(alive[c], value) for c, value in ranked(means[alive], 0)][:8])


def test_by_activations_any_layer_will_do() -> None:
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))
    x = networks.images(5, 8)
    depthwise(x)
    for layer, channels in (("0", 3), ("1", 3), ("3", 4)):
        similar = tvc.similar_channels(depthwise, layer, 1, by="activations", x=x)
        assert len(similar.channels) == channels - 1
        assert 1 not in similar.channels


def test_with_a_network_photos_are_taken() -> None:
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32), "stretch"))
    photos = [torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8) for _ in range(3)]
    similar = tvc.similar_channels(net, "features.0", 1, 2, by="activations", x=photos)
    assert len(similar.channels) == 2
    assert "Channels like 1 of features.0, by the cosine of their activations" in repr(similar)


def test_channels_without_a_direction_are_left_out_and_cannot_be_asked_for() -> None:
    model = networks.vgg_like()
    conv: Any = model.features[0]
    with torch.no_grad():
        conv.weight[2], conv.bias[2] = 0, -1
    assert 2 not in tvc.similar_channels(model, "features.0", 0, 20).channels
    with pytest.raises(InputError, match=r"channel 2 of layer 'features.0' has no direction.*weights are zero"):
        tvc.similar_channels(model, "features.0", 2)
    x = networks.images(3)
    assert 2 not in tvc.similar_channels(model, "features.1", 0, 20, by="activations", x=x).channels
    with pytest.raises(InputError, match=r"channel 2 of layer 'features.1' has no direction.*nothing but zero"):
        tvc.similar_channels(model, "features.1", 2, by="activations", x=x)


@pytest.mark.parametrize(
    ("layer", "channel", "options", "error", "words"),
    [
        ("features.1", 0, {}, LayerError, "is ReLU, which has no weights of channels; 'features.0' before it has"),
        ("featurs.0", 0, {}, LayerError, "did you mean 'features.0'"),
        ("features.0", 8, {}, InputError, "channel 8 is out of range: layer 'features.0' has 8 channels"),
        ("features.0", -1, {}, InputError, "channel is a whole number of at least 0"),
        ("features.0", 0, {"k": 0}, InputError, "k is a whole number of at least 1"),
        ("features.0", 0, {"by": "weight"}, InputError, "did you mean 'weights'"),
        ("features.0", 0, {"by": "activations"}, InputError, "x= says of which, at least two"),
        ("features.0", 0, {"by": "activations", "x": networks.images(1)}, InputError, "x has one"),
        ("features.0", 9, {"by": "activations", "x": networks.images(2)}, InputError, "channel 9 is out of range"),
        ("features.0", 0, {"x": networks.images(2)}, InputError, "x is what activations are of"),
    ],
)
def test_what_cannot_work_is_said(
    layer: str, channel: int, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tvc.similar_channels(networks.vgg_like(), layer, channel, **options)


def test_weights_that_are_not_numbers_are_named_and_never_the_most_similar() -> None:
    first = nn.Conv2d(3, 6, 3)
    with torch.no_grad():
        first.weight[3, 0, 0, 0] = torch.nan
    model = nn.Sequential(first)
    alike = tvc.similar_channels(model, "0", 2)
    assert sorted(alike.channels) == [0, 1, 4, 5]
    assert bool(alike.cosines.isfinite().all())
    with pytest.raises(NotFiniteError, match="the weights of channel 3 of layer '0' hold NaN or infinity"):
        tvc.similar_channels(model, "0", 3)


def test_a_depthwise_convolution_has_no_weights_to_compare() -> None:
    with pytest.raises(LayerError, match=r"an input of its own for each of its 4 channels \(groups=4\).*activations"):
        tvc.similar_channels(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "0", 1)
    with pytest.raises(LayerError, match="one channel: there are no weights to compare"):
        tvc.similar_channels(nn.Sequential(nn.Conv2d(4, 1, 3)), "0", 0)
