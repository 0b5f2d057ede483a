"""Heatmaps with negative values, the difference of two, and two classes in one picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchviz_cnn as tvc
from tests import networks
from tests.networks import images
from torchviz_cnn.attribution.cam.heatmap import FOR_AND_AGAINST, TWO_COLOURS
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media import render

GREY = Image.new("RGB", (64, 64), (128, 128, 128))
pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.TorchvizWarning")


def heatmap(values: Any, kind: type[tvc.Heatmap] = tvc.SignedHeatmap) -> tvc.Heatmap:
    """A heatmap of these values (B, h, w) or (B, K, h, w), over an input of 64 x 64 pixels."""
    maps = torch.tensor(values, dtype=torch.float32)
    target = torch.arange(maps.shape[1]).expand(len(maps), -1) if maps.ndim == 4 else torch.zeros(len(maps)).long()
    return kind(
        values=maps,
        target=target,
        method="Grad-CAM",
        logits=torch.zeros(len(maps), 3),
        input_size=(64, 64),
        layer="conv",
        activations=torch.rand(len(maps), 2, 2, 2),
    )


def pixels(picture: Image.Image) -> list[list[int]]:
    """The colours in the middle of the four quarters, row by row."""
    return [[*np.asarray(picture)[y, x].tolist()] for y in (16, 48) for x in (16, 48)]


SIGNED = [[[2.0, 0.0], [-4.0, -1.0]]]


def test_a_signed_map_is_drawn_around_zero() -> None:
    heat = heatmap(SIGNED)
    assert heat.signed().tolist() == [[0.75, 0.5], [0.0, 0.375]]  # type: ignore[attr-defined]
    red, none, blue, bluish = pixels(heat.image(interpolation="nearest"))
    assert red[0] > red[2]
    assert min(none) > 250
    assert blue[2] > blue[0]
    assert sum(bluish) > sum(blue)
    of_page = np.asarray(Image.open(io.BytesIO(heat._repr_png_() or b"")))
    strong = (of_page.astype(int).max(2) - of_page.min(2)).argmax()
    assert of_page.reshape(-1, 3)[strong].tolist()[1] < 100  # in colours, red or blue, not in grey


def test_over_a_photo_red_is_for_and_blue_against_and_zero_leaves_the_photo() -> None:
    options: dict[str, Any] = {"interpolation": "nearest", "geometry": "stretch", "alpha": 0.5}
    heat = heatmap(SIGNED)
    red, none, blue, bluish = pixels(heat.overlay(GREY, **options))
    for colour, strength, kind in ((red, 0.25, 0), (blue, 0.5, 1), (bluish, 0.125, 1)):
        expected = (1 - strength) * 128 + strength * np.array(FOR_AND_AGAINST[kind])
        assert np.abs(np.array(colour) - expected).max() <= 0.5
    assert none == [128, 128, 128]
    added = pixels(heat.overlay(GREY, blend="add", **options))
    assert added[0] == [round(min(128 + 0.25 * c, 255)) for c in FOR_AND_AGAINST[0]]
    assert added[1] == none
    other = pixels(heat.overlay(GREY, colormap="gray", **options))
    assert other[1] == pixels(render.overlay(GREY, np.full((2, 2), 0.5), (0, 0, 64, 64), alpha=0.5, blend="mix",
                                             colormap_name="gray"))[1]  # fmt: skip


def test_peak_mask_and_box_are_those_of_the_evidence_for_the_class() -> None:
    signed, positive = heatmap(SIGNED), heatmap([[[2.0, 0.0], [0.0, 0.0]]], tvc.Heatmap)
    options: dict[str, Any] = {"photo": GREY, "geometry": "stretch"}
    assert signed.peak(**options) == positive.peak(**options)
    assert np.array_equal(signed.mask(**options), positive.mask(**options))
    assert signed.box(**options) == positive.box(**options)


def test_without_relu_every_method_gives_a_signed_map() -> None:
    model, x = networks.vgg_like(), images(1)
    for method in (tvc.grad_cam, tvc.layer_cam, tvc.score_cam, tvc.ablation_cam):  # type: ignore[attr-defined]
        assert type(method(model, x, "features.8", 1, relu=False)) is tvc.SignedHeatmap
        assert type(method(model, x, "features.8", 1)) is tvc.Heatmap


def test_the_figure_says_what_the_colours_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def panel(pictures: Any, titles: list[str], headline: str, *, bars: dict[int, Any]) -> None:
        said.append((titles[1], bars))

    monkeypatch.setattr("torchviz_cnn.media.figures.panel", panel)
    signed = heatmap(SIGNED)
    signed.plot(GREY, geometry="stretch")
    peak = float(signed.values[0].abs().max())
    assert said == [("Grad-CAM, conv: for (red), against (blue)", {1: ("seismic", (-peak, peak))})]


def test_the_difference_of_two_heatmaps() -> None:
    model, x = networks.vgg_like(), images(2)
    one, two = (tvc.grad_cam(model, x, "features.8", k) for k in (0, 3))
    less = one - two
    assert isinstance(less, tvc.SignedHeatmap)
    assert torch.equal(less.values, one.values - two.values)
    assert less.method == "Grad-CAM"
    assert less.headline().endswith("minus: class 3")
    assert (one - one).headline() == one.headline()
    methods = one - tvc.layer_cam(model, x, "features.8", 0)  # type: ignore[attr-defined]
    assert methods.method == "Grad-CAM - LayerCAM"
    assert methods.plot(GREY, geometry="stretch").width > 300


def test_only_heatmaps_of_one_layer_and_shape_are_compared() -> None:
    model, x = networks.vgg_like(), images(2)
    heat = tvc.grad_cam(model, x, "features.8", 1)
    with pytest.raises(InputError, match=r"one layer and one shape .* at 'features\.8' and .* at 'features\.6'"):
        heat - tvc.grad_cam(model, x, "features.6", 1)
    with pytest.raises(InputError, match="one layer and one shape"):
        heat - tvc.grad_cam(model, x[:1], "features.8", 1)
    with pytest.raises(TypeError):
        heat - 1  # type: ignore[operator]


def positive_evidence(output: torch.Tensor) -> torch.Tensor:
    return output[:, 0] + output[:, 1]


def both(output: torch.Tensor) -> torch.Tensor:
    return output[:, :2]


def test_what_functions_explain_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks.vgg_like(), images(2)
    contrast, function, of_class = (
        tvc.grad_cam(model, x, "features.8", target) for target in (tvc.targets.contrast(1, 2), positive_evidence, 3)
    )
    assert (contrast - function).headline().endswith("minus: positive_evidence")
    assert (of_class - contrast).headline().endswith("minus: contrast(class 1, class 2)")
    assert (contrast - of_class).headline().endswith("minus: class 3")
    assert repr(contrast - of_class).startswith("SignedHeatmap(Grad-CAM at features.8: 2 x ")
    for other in (function, of_class, contrast - function):
        with pytest.raises(InputError, match="same images and classes"):
            tvc.join_heatmaps([contrast, other])
    for one, two in ((contrast - function, of_class), (of_class, contrast - function)):
        with pytest.raises(InputError, match="a difference already"):
            one - two
    names: list[str] = []

    def with_legend(drawn: Image.Image, these: list[str], _: Any) -> Image.Image:
        names.extend(these)
        return drawn

    monkeypatch.setattr("torchviz_cnn.media.figures.with_legend", with_legend)
    tvc.grad_cam(model, x, "features.8", both).two_classes(GREY, geometry="stretch")
    assert names == ["both[0]", "both[1]"]


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "full_grad", "smoothed_cam"])
def test_an_empty_map_of_a_function_is_named_by_it(method: str) -> None:
    model, x = networks.vgg_like(), images(1)

    def nothing(output: torch.Tensor) -> torch.Tensor:
        return 0 * output[:, :2]

    options = {"samples": 1} if method == "smoothed_cam" else {}
    with pytest.warns(tvc.EmptyMapWarning, match=r"nothing\[0\]"):
        getattr(tvc, method)(model, x, target=nothing, **options)


TWO = [[[[1.0, 0.0], [0.5, 0.0]], [[0.0, 4.0], [2.0, 0.0]]]]


def test_two_classes_in_one_picture() -> None:
    heat = heatmap(TWO, tvc.Heatmap)
    options: dict[str, Any] = {"interpolation": "nearest", "geometry": "stretch", "alpha": 0.5}
    drawn = heat.two_classes(GREY, **options)
    assert drawn.width == 64
    assert drawn.height > 64  # a legend below
    first, second, both, none = pixels(drawn)
    for colour, expected in ((first, TWO_COLOURS[0]), (second, TWO_COLOURS[1])):
        assert np.abs(np.array(colour) - 64 - 0.5 * np.array(expected)).max() <= 1
    mixed = (np.array(TWO_COLOURS[0]) + np.array(TWO_COLOURS[1])) / 2
    assert np.abs(np.array(both) - 0.75 * 128 - 0.25 * mixed).max() <= 1
    assert none == [128, 128, 128]
    shared = pixels(heat.two_classes(GREY, scale="shared", **options))
    assert shared[1] == second
    assert np.abs(np.array(shared[0]) - 0.875 * 128 - 0.125 * np.array(TWO_COLOURS[0])).max() <= 1
    swapped = pixels(heat.two_classes(GREY, nth=(1, 0), **options))
    assert np.abs(np.array(swapped[1]) - 64 - 0.5 * np.array(TWO_COLOURS[0])).max() <= 1


def test_the_legend_names_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32)), ("ant", "bee", "cat", "dog", "elk"))
    said: list[Any] = []
    monkeypatch.setattr("torchviz_cnn.media.figures.with_legend", lambda picture, names, colours: said.append(names))
    heat = tvc.grad_cam(net, np.asarray(GREY), "features.8", [["dog", "ant", "elk"]])
    heat.two_classes()
    heat.two_classes(nth=(2, 0))
    assert said == [["dog", "ant"], ["elk", "dog"]]


def test_a_long_name_is_cut_to_the_picture() -> None:
    from torchviz_cnn.media.figures import with_legend

    short = with_legend(GREY, ["a", "b"], TWO_COLOURS)
    long = with_legend(GREY, ["a very long name of a class " * 20, "b"], TWO_COLOURS)
    assert short.size == long.size
    assert np.asarray(long)[70:, -8:].min() == 255  # a margin stays


def test_mistakes() -> None:
    heat = heatmap(TWO, tvc.Heatmap)
    with pytest.raises(InputError, match="class 2 is out of range"):
        heat.two_classes(GREY, nth=(0, 2), geometry="stretch")
    with pytest.raises(InputError, match="which two"):
        heat.two_classes(GREY, nth=(0,), geometry="stretch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which two"):
        heat.two_classes(GREY, nth=1, geometry="stretch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no scale 'common'"):
        heat.two_classes(GREY, scale="common", geometry="stretch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one class per image"):
        heatmap(SIGNED).two_classes(GREY, geometry="stretch")
