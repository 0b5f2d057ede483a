"""A Network and photos in, pictures on these photos out: results remember what they were given, and hands win."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.attribution.methods import METHODS

CLASSES = ("cat", "dog", "fish", "bird", "frog")


def network(**changes: Any) -> tvc.Network:
    net = tvc.Network(networks.gap_linear(), tvc.Preprocess((32, 32), "crop", 32), CLASSES, "tiny")
    return replace(net, **changes)


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_network_and_photos(name: str) -> None:
    net, method = network(), METHODS[name]
    options = {"patch": 8} if name == "occlusion" else {}
    result: Any = method.explain(net, [photo(), photo(64, 80, seed=1)], target="dog", **options)
    x = torch.stack([net.preprocess(photo()), net.preprocess(photo(64, 80, seed=1))])
    same = method.explain(net.model, x, target=1, **options)
    assert torch.equal(result.values, same.values)
    assert result.target.tolist() == [1, 1]
    assert result.overlay().size == (96, 64)
    assert result.overlay(index=1).size == (64, 80)
    assert result.image(index=1).size == (64, 80)
    assert "dog" in result.headline()
    assert result.plot(index=1).width > 300
    assert 0 <= result.peak(index=1)[0] < 64


@pytest.mark.parametrize("kind", ["path", "text", "array", "picture"])
def test_one_photo_of_any_kind(kind: str, tmp_path: Path) -> None:
    picture = photo()
    picture.save(tmp_path / "a.png")
    given: dict[str, Any] = {
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "array": np.asarray(picture),
        "picture": picture,
    }
    heat = tvc.grad_cam(network(), given[kind], target="fish", relu=False)
    assert heat.values.shape[0] == 1
    assert np.array_equal(np.asarray(heat.overlay()), np.asarray(heat.overlay(picture)))


def test_what_is_given_by_hand_wins() -> None:
    heat = tvc.grad_cam(network(), photo(), target="cat", relu=False)
    other = Image.new("RGB", (50, 40))
    assert heat.overlay(other).size == (50, 40)
    stretched = heat.image(geometry="stretch")
    assert not np.array_equal(np.asarray(stretched), np.asarray(heat.image()))
    assert "a tabby" in heat.headline(categories=["a tabby"] * 5)


def test_another_preprocessing_draws_where_it_looks() -> None:
    wide = photo(96, 32)
    cropped = np.asarray(tvc.grad_cam(network(), wide, relu=False).image())
    under = np.asarray(wide)[:, :30].astype(float)
    changed = network(preprocess=tvc.Preprocess((32, 32), "stretch", 32))
    stretched = np.asarray(tvc.grad_cam(changed, wide, relu=False).image())
    veiled = 0.58 * under + 0.42 * np.array((20, 22, 26))
    assert np.abs(cropped[:, :30] - veiled).max() <= 1
    assert np.abs(stretched[:, :30] - veiled).max() > 50


def test_a_tensor_of_a_network_is_drawn_on_a_photo_that_is_given() -> None:
    net = network()
    heat = tvc.grad_cam(net, net.preprocess(photo())[None], target="cat", relu=False)
    drawn = tvc.grad_cam(net, photo(), target="cat", relu=False)
    assert np.array_equal(np.asarray(heat.overlay(photo())), np.asarray(drawn.overlay()))
    with pytest.raises(tvc.InputError, match="the photo is not known, as the method was given a tensor"):
        heat.overlay()


@pytest.mark.parametrize(
    ("target", "expected"),
    [("dog", [1, 1]), (["dog", "frog"], [1, 4]), ([["dog", 0], [2, "bird"]], [[1, 0], [2, 3]]), ("2", [2, 2])],
)
def test_classes_by_name(target: Any, expected: list[Any]) -> None:
    heat = tvc.grad_cam(network(), [photo(), photo(seed=1)], target=target, relu=False)
    assert heat.target.tolist() == expected


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(tvc.TargetError, match="no class 'dgo'; did you mean 'dog'"):
        tvc.grad_cam(network(), photo(), target="dgo")
    with pytest.raises(tvc.TargetError, match="class names of the model are not known"):
        tvc.grad_cam(network(categories=None), photo(), target="dog")


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: tvc.capture(net, x)["features.3"],
        lambda net, x: tvc.predict(net, x),
        lambda net, x: tvc.deconvnet(net, x, "features.2").values,
        lambda net, x: tvc.compare({"a": net}, photo=x).projections["a"].values,
    ],
)
def test_other_functions_take_photos_too(call: Callable[[Any, Any], torch.Tensor], tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    assert torch.equal(call(network(), photo()), call(network(), tmp_path / "a.png"))
    with pytest.raises(tvc.ImageError, match=r"no image .*b\.png; did you mean 'a\.png'"):
        call(network(), tmp_path / "b.png")


def test_a_photo_for_a_plain_module_is_refused() -> None:
    with pytest.raises(tvc.InputError, match="or a Network, as load_model or Network"):
        tvc.grad_cam(networks.gap_linear(), photo())
