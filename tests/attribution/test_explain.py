"""Several heatmaps from one call: each is what its method gives alone, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.networks import images
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS
from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.attribution.smoothing import gaussian
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, LayerError
from torchviz_cnn.scores import gradients

LAYERS = ["features.3", "features.6", "features.8"]
CLASSES = torch.tensor([[0, 3, 1], [4, 2, 2]])
quiet = pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")


@quiet
def test_every_map_is_what_its_method_gives_alone() -> None:
    model, x, methods = networks.gap_linear(), images(2), list(methods_of("cam"))
    maps = tvc.explain(model, x, CLASSES, ["features"], methods)
    assert list(maps) == [(name, "features") for name in methods]
    for name, method in methods_of("cam").items():
        alone: Any = method.explain(model, x, layer="features", target=CLASSES)
        torch.testing.assert_close(maps[name, "features"].values, alone.values, rtol=1e-4, atol=1e-7)
        assert maps[name, "features"].method == alone.method


@quiet
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_layers_and_classes_together(relu: bool, score: Any) -> None:
    model, x = networks.vgg_like(), images(2)
    maps = tvc.explain(model, x, CLASSES, LAYERS, score=score, relu=relu)
    assert maps.methods == tuple(CAM_METHODS)
    assert maps.layers == tuple(LAYERS)
    for (name, layer), heat in maps.items():
        alone = CAM_METHODS[name].function(model, x, layer, CLASSES, score=score, relu=relu)
        torch.testing.assert_close(heat.values, alone.values, rtol=1e-4, atol=1e-8)
        assert type(heat) is type(alone)
        assert heat.layer == layer


def test_one_forward_and_one_backward_pass_give_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward, backward = networks.vgg_like(), [], []
    model.features[0].register_forward_hook(lambda module, args, out: forward.append(len(out)))
    pass_back = gradients._pass_back

    def counted(scores: Tensor, inputs: Sequence[Tensor], *rest: Any) -> list[Tensor | None]:
        backward.append(len(inputs))
        return pass_back(scores, inputs, *rest)

    monkeypatch.setattr(gradients, "_pass_back", counted)
    tvc.explain(model, images(2), CLASSES, LAYERS, relu=False)
    assert forward == [2]
    assert backward == [3]


@quiet
def test_a_few_classes_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks.vgg_like(), images(2)
    expected = tvc.explain(model, x, CLASSES, LAYERS)
    monkeypatch.setattr(gradients.score_gradients, "__defaults__", (False, 1))
    for key, heat in tvc.explain(model, x, CLASSES, LAYERS).items():
        torch.testing.assert_close(heat.values, expected[key].values, rtol=1e-4, atol=1e-8)


@quiet
def test_what_is_taken_by_default() -> None:
    model, x = networks.vgg_like(), images(2)
    maps, alone = tvc.explain(model, x), tvc.grad_cam(model, x)
    assert maps.layers == (alone.layer,)
    assert torch.equal(maps["grad_cam", alone.layer].target, alone.target)
    assert list(tvc.explain(model, x, methods="layer_cam")) == [("layer_cam", alone.layer)]


@quiet
def test_mistakes() -> None:
    model, x = networks.vgg_like(), images(1)
    with pytest.raises(InputError, match="no method 'gradcam'; did you mean 'grad_cam'"):
        tvc.explain(model, x, methods=["layer_cam", "gradcam"])
    with pytest.raises(InputError, match="competitive_cam takes no score"):
        tvc.explain(model, x, methods=["competitive_cam"], score="probability")
    with pytest.raises(LayerError, match=r"did you mean 'features\.8'"):
        tvc.explain(model, x, layers=["features.2", "featurs.8"])
    maps = tvc.explain(model, x, layers=LAYERS)
    with pytest.raises(LayerError, match=r"no heatmap .*; did you mean 'layer_cam, features.8'"):
        maps["layer_cam", "feature.8"]
    with pytest.raises(KeyError, match="methods are grad_cam, "):
        maps["layer_cam"]  # type: ignore[index]
    with pytest.raises(InputError, match="layers is empty"):
        tvc.explain(model, x, layers=[])
    with pytest.raises(InputError, match="methods is empty"):
        tvc.explain(model, x, methods=())
    for function in (tvc.smoothed_cam, tvc.smooth_grad):
        with pytest.raises(InputError, match="seed is a whole number"):
            function(model, x, seed="seven", samples=2)  # type: ignore[arg-type]


def test_all_maps_in_one_picture() -> None:
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32)), tuple("abcde"))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    maps = tvc.explain(net, photo, "b", LAYERS, ["grad_cam", "layer_cam"], relu=False)
    one, two = maps.plot(), tvc.explain(net, photo, "b", LAYERS[:1], ["grad_cam"], relu=False).plot()
    assert one.height > two.height
    assert repr(maps) == "Explanation(grad_cam, layer_cam at features.3, features.6, features.8)"


def test_joined_maps_are_the_mean_or_the_largest_of_the_scaled_and_enlarged() -> None:
    model, x = networks.vgg_like(), images(2)
    maps = tvc.explain(model, x, CLASSES, LAYERS, ["grad_cam", "hires_cam"], relu=False)
    several = [maps["hires_cam", layer] for layer in LAYERS]
    scaled = []
    for heat in several:
        values = heat.values / heat.values.abs().amax((2, 3), keepdim=True)
        scaled.append(F.interpolate(values, several[0].values.shape[2:], mode="bilinear", align_corners=False))
    mean = tvc.join_heatmaps(several)
    assert torch.allclose(mean.values, torch.stack(scaled).mean(0), atol=1e-6)
    assert mean.layer == "features.3 + features.6 + features.8"
    assert isinstance(mean, tvc.SignedHeatmap)
    farthest = tvc.join_heatmaps(several, "max")
    assert torch.allclose(farthest.values.abs(), torch.stack(scaled).abs().amax(0), atol=1e-6)
    everything = tvc.join_heatmaps(maps)
    assert everything.method == "Grad-CAM + HiResCAM"
    one_class = [tvc.grad_cam(model, x, layer, CLASSES[:, 0], relu=False) for layer in LAYERS]
    assert tvc.join_heatmaps(one_class).values.shape == several[0].values[:, 0].shape


@quiet
def test_a_map_that_is_all_zeros_joins_as_zeros() -> None:
    model, x = networks.vgg_like(), images(1)
    heat = tvc.grad_cam(model, x, "features.8", 1, relu=False)
    empty = tvc.join_heatmaps([heat - heat, heat])
    assert torch.allclose(empty.values, heat.values / heat.values.abs().max() / 2)


def test_only_maps_of_the_same_images_and_classes_are_joined() -> None:
    model, x = networks.vgg_like(), images(2)
    one, two = (tvc.grad_cam(model, x, "features.8", k, relu=False) for k in (1, 2))
    for wrong in ([], [one, two], [one, "features.8"], one):
        with pytest.raises(InputError, match=r"joined|at least one"):
            tvc.join_heatmaps(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no how 'median'"):
        tvc.join_heatmaps([one], "median")  # type: ignore[arg-type]


@quiet
@pytest.mark.parametrize("method", ["grad_cam", "score_cam"])
@pytest.mark.parametrize("relu", [True, False])
def test_a_smoothed_map_is_the_mean_over_copies(method: str, relu: bool) -> None:
    model, x = networks.vgg_like(), images(2)
    function = getattr(tvc, method)
    plain = function(model, x, "features.8", relu=False)
    total = plain.values + function(model, x.flip(-1), "features.8", plain.target, relu=False).values.flip(-1)
    for noise in gaussian(5, 2, x[0]):
        spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
        total += function(model, x + 0.2 * spread * noise, "features.8", plain.target, relu=False).values
    expected = (total / 4).relu() if relu else total / 4
    heat = tvc.smoothed_cam(model, x, "features.8", method=method, samples=2, noise=0.2, seed=5, relu=relu)
    torch.testing.assert_close(heat.values, expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(heat.target, plain.target)
    assert isinstance(heat, tvc.SignedHeatmap) is not relu


@quiet
def test_smoothing_takes_several_classes_and_photos_and_every_method() -> None:
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32)), tuple("abcde"))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    heat = tvc.smoothed_cam(net, photo, "features.8", [["a", "d"]])
    assert heat.values.shape[:2] == (1, 2)
    assert heat.overlay(nth=1).size == (60, 40)
    assert "competitive" in tvc.smoothed_cam(net, photo, method="competitive_cam").method.lower()
    with pytest.raises(InputError, match="nothing to average"):
        tvc.smoothed_cam(net, photo, flips=False)
    with pytest.raises(InputError, match="did you mean 'grad_cam'"):
        tvc.smoothed_cam(net, photo, method="gradcam")


def test_no_mirror_image_of_signals_and_functions_unless_asked_for() -> None:
    signals = torch.rand(2, 2, 40, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()

    def function(output: torch.Tensor) -> torch.Tensor:
        return output[:, 1]

    for net, x, target in ((model, signals, 1), (networks.vgg_like(), images(2), function)):
        with pytest.raises(InputError, match="nothing to average"):
            tvc.smoothed_cam(net, x, target=target)
        plain, mirrored = (
            tvc.smoothed_cam(net, x, target=target, samples=2, flips=flips, relu=False).values for flips in (None, True)
        )
        assert torch.equal(plain, tvc.smoothed_cam(net, x, target=target, samples=2, flips=False, relu=False).values)
        assert not torch.allclose(plain, mirrored)


@quiet
def test_maps_of_signals_are_drawn_together() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(2, 2, 40, generator=torch.Generator().manual_seed(0))
    maps = tvc.explain(model, x, 1, ["0", "1"], ["grad_cam", "layer_cam"])
    assert maps.plot(x[1], index=1).size == maps.plot().size
    assert maps.plot(x[1], index=1) != maps.plot(x[0], index=1)


def test_a_smoothed_map_without_evidence_warns_once() -> None:
    model, x = networks.gap_linear(), images(1)
    with torch.no_grad():
        model.fc.weight[2] = -1
    with pytest.warns(EmptyMapWarning) as caught:
        tvc.smoothed_cam(model, x, "features", 2, samples=2)
    assert len(caught) == 1
