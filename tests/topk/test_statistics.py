"""Statistics of every channel over a dataset are those of all its activations together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.topk.statistics import ChannelStatistics, depth_plot

LAYERS = ["features.1", "features.7", "features.8"]


def all_maps(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    return tvc.capture(model, images, layer)[layer].double()


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_they_are_those_of_all_activations_together(batch_size: int) -> None:
    model, images = networks.vgg_like(), networks.images(17)
    top = tvc.top_activations(model, images, LAYERS, 3, batch_size=batch_size)
    for layer in LAYERS:
        maps, of = all_maps(model, images, layer), top.statistics[layer]
        torch.testing.assert_close(of.mean, maps.mean((0, 2, 3)).float(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(of.maximum, maps.amax((0, 2, 3)).float(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(of.sparsity, maps.le(0).double().mean((0, 2, 3)).float(), rtol=1e-5, atol=1e-7)
        assert torch.equal(of.dead, maps.amax((0, 2, 3)) <= 0)
        assert of.selectivity is None
        assert of.favourite is None


def test_a_dead_channel_is_reported() -> None:
    model = networks.vgg_like()
    with torch.no_grad():
        model.features[0].bias[3] = -100  # type: ignore[index, union-attr, operator]
    top = tvc.top_activations(model, networks.images(6), ["features.0", "features.1"], 3)
    for layer in top.layers:
        assert top.statistics[layer].dead.nonzero()[:, 0].tolist() == [3]
        assert float(top.statistics[layer].sparsity[3]) == 1
    assert top.images["features.1"][3].tolist() == [0, 1, 2]
    assert 3 not in top.some_channels("features.1")
    assert "1 dead" in repr(top.statistics["features.1"])


def test_selectivity_is_that_of_morcos() -> None:
    model, images = networks.vgg_like(), networks.images(20)
    labels = torch.tensor([(i * i) % 7 for i in range(20)])  # 0, 1, 2 and 4 occur, not equally often
    statistics = tvc.top_activations(model, TensorDataset(images, labels), LAYERS, 3, batch_size=3).statistics
    for layer in LAYERS:
        means = all_maps(model, images, layer).mean((2, 3)).numpy()
        classes = sorted(set(labels.tolist()))
        by_class = np.stack([means[labels.numpy() == c].mean(0) for c in classes])
        selectivity, favourite = statistics[layer].selectivity, statistics[layer].favourite
        assert selectivity is not None
        assert favourite is not None
        for channel in range(means.shape[1]):
            here = by_class[:, channel]
            best = int(here.argmax())
            others = np.delete(here, best).mean()
            value = float(selectivity[channel])
            if here.min() < 0 or here.max() <= 0:
                assert np.isnan(value)
                continue
            assert int(favourite[channel]) == classes[best]
            assert value == pytest.approx((here[best] - others) / (here[best] + others), abs=1e-5)
    assert not statistics["features.8"].selectivity.isnan().all()  # type: ignore[union-attr]
    assert statistics["features.7"].selectivity.isnan().any()  # type: ignore[union-attr]  # a convolution: negative means


def test_images_without_a_label_count_for_all_but_selectivity() -> None:
    model, images = networks.vgg_like(), networks.images(12)
    labels = [0, None, 1, 1, None, 0, 0, 1, -1, 0, 1, 0]
    items = [(image, label) for image, label in zip(images, labels, strict=True)]
    some = [item for item in items if item[1] in (0, 1)]
    every, known = (
        tvc.top_activations(model, list(part), "features.8", 3).statistics["features.8"] for part in (items, some)
    )
    assert every.selectivity is not None
    assert known.selectivity is not None
    torch.testing.assert_close(every.selectivity, known.selectivity, equal_nan=True)
    torch.testing.assert_close(every.mean, all_maps(model, images, "features.8").mean((0, 2, 3)).float())
    one = tvc.top_activations(model, [(image, 3) for image in images], "features.8", 3).statistics["features.8"]
    assert one.selectivity is None  # of one class nothing can be said


def test_the_plot_shows_what_there_is() -> None:
    def made(channels: int, labelled: bool) -> ChannelStatistics:
        values = torch.linspace(0, 1, channels)
        return ChannelStatistics(values, values, values, values > 2, values if labelled else None, None)

    plain = depth_plot({"a": made(4, False), "b": made(8, False)})
    labelled = depth_plot({"a": made(4, True), "b": made(8, False)})
    assert labelled.width > plain.width
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 10
    assert depth_plot({f"features.{i}.a": made(4, True) for i in range(60)}).width < 4000
