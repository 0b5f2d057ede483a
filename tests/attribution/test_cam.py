"""Grad-CAM and CAM: equal to their formulas, one map per image and class, on networks written in every way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from tests.networks import CLASSES, images

# Each network with a layer whose output nothing overwrites, so that a plain autograd computation is right too.
NETWORKS: list[tuple[Callable[[], nn.Module], str]] = [
    (networks.vgg_like, "features.8"),
    (networks.vgg_like, "features.4"),
    (networks.functional_relu, "conv2"),
    (networks.reused, "pool"),
    (networks.residual, "layer1"),
    (networks.dense, "stem"),
    (networks.grouped, "7"),
    (networks.batch_norm, "3"),
    (networks.overlapping_pools, "2"),
    (networks.gap_linear, "features"),
    (networks.squeeze_like, "features"),
]
ids = [f"{build.__name__}-{layer}" for build, layer in NETWORKS]


def by_hand(model: nn.Module, x: Tensor, layer: str, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM before its ReLU, by plain autograd through the whole network, one image at a time."""
    maps: list[Tensor] = []
    kept: list[Tensor] = []
    for i in range(len(x)):
        kept.clear()
        handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
        score = scores(model(x[i : i + 1].clone().requires_grad_()))
        handle.remove()
        (gradient,) = torch.autograd.grad(score.sum(), kept[0])
        maps.append((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).detach())
    return torch.cat(maps)


@pytest.mark.parametrize(("build", "layer"), NETWORKS, ids=ids)
def test_grad_cam_is_its_formula(build: Callable[[], nn.Module], layer: str) -> None:
    model, x = build(), images(3)
    expected = by_hand(model, x, layer, lambda logits: logits[:, 2])
    heat = tvc.grad_cam(model, x, layer, 2, relu=False)
    assert torch.allclose(heat.values, expected, rtol=1e-5, atol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvc.EmptyMapWarning)
        assert torch.equal(tvc.grad_cam(model, x, layer, 2).values, heat.values.relu())


@pytest.mark.parametrize("score", ["logit", "probability", "log_probability", "cross_entropy"])
def test_every_score(score: Any) -> None:
    formulas: dict[str, Callable[[Tensor], Tensor]] = {
        "logit": lambda logits: logits[:, 1],
        "probability": lambda logits: logits.softmax(1)[:, 1],
        "log_probability": lambda logits: logits.log_softmax(1)[:, 1],
        "cross_entropy": lambda logits: F.cross_entropy(logits, torch.tensor([1])),
    }
    model, x = networks.residual(), images(2)
    expected = by_hand(model, x, "layer2", formulas[score])
    assert torch.allclose(
        tvc.grad_cam(model, x, "layer2", 1, score=score, relu=False).values, expected, rtol=1e-4, atol=1e-8
    )


def test_gradient_is_of_the_convolution_even_under_an_in_place_relu() -> None:
    x = images(2)
    inplace = tvc.grad_cam(networks.vgg_like(inplace=True), x, "features.7", 0, relu=False)
    plain = tvc.grad_cam(networks.vgg_like(inplace=False), x, "features.7", 0, relu=False)
    assert torch.equal(inplace.values, plain.values)
    assert torch.equal(inplace.activations, plain.activations)
    assert bool((inplace.activations < 0).any())


def test_the_kth_call_of_a_reused_layer() -> None:
    model, x = networks.reused(), images(2)
    shapes = {name: tvc.grad_cam(model, x, name, 0, relu=False).values.shape for name in ("relu", "relu#1", "relu#2")}
    assert [tuple(shape) for shape in shapes.values()] == [(2, 32, 32), (2, 16, 16), (2, 8, 8)]


@pytest.mark.parametrize(("build", "layer"), NETWORKS, ids=ids)
def test_each_image_and_class_gets_what_it_would_get_alone(build: Callable[[], nn.Module], layer: str) -> None:
    model, x = build(), images(3)
    classes = torch.tensor([[0, 4], [1, 2], [3, 3]])
    together = tvc.grad_cam(model, x, layer, classes, relu=False)
    assert together.values.shape[:2] == (3, 2)
    for i in range(3):
        for k in range(2):
            alone = tvc.grad_cam(model, x[i : i + 1], layer, int(classes[i, k]), relu=False)
            assert torch.allclose(together.values[i, k], alone.values[0], atol=1e-5)


@pytest.mark.parametrize("method", [tvc.grad_cam, tvc.class_activation_map])
def test_shape_of_the_target_is_shape_of_the_result(method: Callable[..., tvc.Heatmap]) -> None:
    model, x = networks.gap_linear(), images(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvc.EmptyMapWarning)
        top = method(model, x)
        assert top.values.shape == (3, 16, 16)
        assert top.target.tolist() == model(x).argmax(1).tolist()
        assert method(model, x, target=1).target.tolist() == [1, 1, 1]
        several = method(model, x, target=torch.tensor([[0, 1]] * 3))
    assert several.values.shape == (3, 2, 16, 16)
    assert several.target.shape == (3, 2)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (networks.vgg_like, "features.8"),
        (networks.residual, "layer2"),
        (networks.dense, "norm"),
        (networks.gap_linear, "features"),
        (networks.squeeze_like, "classifier.2"),
        (networks.reused, "relu#2"),
        (networks.batch_norm, "6"),
    ],
)
def test_default_layer_is_the_last_with_the_last_convolutions_resolution(
    build: Callable[[], nn.Module], layer: str
) -> None:
    heat = tvc.grad_cam(build(), images(2), relu=False)
    assert heat.layer == layer
    assert layer in repr(heat)


def test_only_what_follows_the_layer_is_differentiated() -> None:
    """The convolution before the layer must not be recorded: its output never requires a gradient."""
    seen: dict[str, bool] = {}
    model = networks.vgg_like()
    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: seen.update({name: output.requires_grad}))
        for name, module in model.named_modules()
        if name.startswith("features.")
    ]
    tvc.grad_cam(model, images(1), "features.5", 0, relu=False)
    for handle in handles:
        handle.remove()
    assert {name for name, needs in seen.items() if needs} == {f"features.{i}" for i in range(6, 10)}


def test_a_map_without_evidence_is_zeros_and_a_warning() -> None:
    model = networks.gap_linear()
    with torch.no_grad():
        model.fc.weight.copy_(-model.fc.weight.abs())
    with pytest.warns(
        tvc.EmptyMapWarning, match=r"no positive evidence for class 3 at layer 'features' in image 0 \(and 1 more\)"
    ):
        heat = tvc.grad_cam(model, images(2), "features", 3)
    assert not heat.values.any()
    assert not heat.map().any()
    assert np.asarray(heat.image()).reshape(-1, 3).std(0).max() == 0  # one colour, not noise at full scale


def test_activation_checkpointing_changes_nothing() -> None:
    x = images(2)
    for layer in ("stem", "block.0", "block.1", "block"):
        checked = tvc.grad_cam(networks.checkpointed(True), x, layer, 1, relu=False)
        assert torch.allclose(
            checked.values, tvc.grad_cam(networks.checkpointed(False), x, layer, 1, relu=False).values
        )


@pytest.mark.parametrize("build", [networks.data_parallel, networks.compiled])
def test_wrapped_models_are_looked_through(build: Callable[[], nn.Module]) -> None:
    model = build()
    heat = tvc.grad_cam(model, images(2), target=0, relu=False)
    assert "module" not in heat.layer
    assert "_orig_mod" not in heat.layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    x = images(2)
    expected = tvc.grad_cam(networks.gap_linear(), x, target=0, relu=False).values
    heat = tvc.grad_cam(networks.gap_linear().to(dtype), x, target=0, relu=False)
    assert heat.values.dtype == torch.float32
    assert torch.allclose(heat.values, expected, atol=0.05 * float(expected.abs().max()))


def test_autocast() -> None:
    model, x = networks.gap_linear(), images(2)
    expected = tvc.grad_cam(model, x, target=0, relu=False).values
    with torch.autocast("cpu", torch.bfloat16):
        heat = tvc.grad_cam(model, x, target=0, relu=False)
        assert torch.is_autocast_enabled("cpu")
    assert heat.values.dtype == torch.float32
    assert not torch.equal(heat.values, expected)
    assert torch.allclose(heat.values, expected, atol=0.05 * float(expected.abs().max()))


class NoGradHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        with torch.no_grad():
            x = x.mean((2, 3))
        out: Tensor = self.fc(x)
        return out


def test_errors_of_grad_cam() -> None:
    model, x = networks.vgg_like(), images(2)
    with pytest.raises(tvc.LayerError, match=r"no layer 'featurs\.8' in VGGLike; did you mean 'features\.8'"):
        tvc.grad_cam(model, x, "featurs.8")
    with pytest.raises(tvc.LayerError, match=r"gives \(2, 16\), not maps"):
        tvc.grad_cam(model, x, "classifier.0")
    with pytest.raises(tvc.LayerError, match=r"'pair' of TupleOutput gives a tuple of several tensors \(0: \(2, 4"):
        tvc.grad_cam(networks.tuple_output(), x, "pair")
    with pytest.raises(tvc.LayerError, match="'aux' of Unreached was never reached"):
        tvc.grad_cam(networks.unreached(), x, "aux")
    with pytest.raises(tvc.LayerError, match="ran 3 times"):
        tvc.grad_cam(networks.reused(), x, "relu#3")
    with pytest.raises(tvc.ModelError, match=r"no gradient comes back to layer 'conv'.*torch.no_grad"):
        tvc.grad_cam(NoGradHead(), x, "conv")
    with pytest.raises(tvc.InputError, match=r"x\[None\]"):
        tvc.grad_cam(model, x[0])
    with pytest.raises(tvc.InputError, match="how photos are prepared for a plain module is not known"):
        tvc.grad_cam(model, "elephant.jpg")
    with pytest.raises(tvc.InputError, match="not a list of int"):
        tvc.grad_cam(model, [1, 2])  # type: ignore[list-item]
    with pytest.raises(tvc.InputError, match="has nothing in it"):
        tvc.grad_cam(model, x[:0])
    with pytest.raises(tvc.ModelError, match=r"not a SimpleNamespace; pass its \.model"):
        tvc.grad_cam(SimpleNamespace(model=model), x)  # type: ignore[arg-type]


def cam_weights(model: nn.Module, target: int) -> Tensor:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return linear.weight[target].detach()


@pytest.mark.parametrize("build", [networks.gap_linear, networks.residual, networks.batch_norm, networks.reused])
def test_cam_is_the_last_linear_layers_weights_times_the_last_map(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images(3)
    cam = tvc.class_activation_map(model, x, 2)
    expected = torch.einsum("c,bchw->bhw", cam_weights(model, 2), tvc.capture(model, x, cam.layer)[cam.layer])
    assert torch.allclose(cam.values, expected, rtol=1e-4, atol=1e-6)
    bias = [module for module in model.modules() if isinstance(module, nn.Linear)][-1].bias
    assert torch.allclose(cam.values.mean((1, 2)) + bias[2], model(x)[:, 2], rtol=1e-4, atol=1e-5)


def test_cam_behind_a_functional_relu() -> None:
    model, x = networks.dense(), images(2)
    cam = tvc.class_activation_map(model, x, 1)
    assert cam.layer == "norm"
    expected = torch.einsum("c,bchw->bhw", cam_weights(model, 1), tvc.capture(model, x, "norm")["norm"].relu())
    assert torch.allclose(cam.values, expected, rtol=1e-4, atol=1e-6)


def test_cam_of_a_convolution_followed_by_pooling_is_its_channel() -> None:
    model, x = networks.squeeze_like(), images(2)
    cam = tvc.class_activation_map(model, x, 3)
    assert torch.allclose(cam.values, tvc.capture(model, x, "classifier.2")["classifier.2"][:, 3], atol=1e-6)


class TwoLayerHead(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Sequential(nn.Linear(6, 6), activation, nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.conv(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize(
    "model",
    [
        networks.vgg_like(),
        networks.overlapping_pools(),
        networks.seeded(TwoLayerHead)(nn.ReLU()),
        networks.seeded(TwoLayerHead)(nn.Hardswish()),
        networks.seeded(TwoLayerHead)(nn.Tanh()),
    ],
)
def test_networks_without_an_exact_cam_are_refused(model: nn.Module) -> None:
    with unchanged(model), pytest.raises(tvc.ModelError, match=r"has no exact class activation map.*use grad_cam"):
        tvc.class_activation_map(model, images(2))


class RemembersBatch(nn.Module):
    """Reads the batch's size before the layer, and reshapes by it behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        out: Tensor = self.fc(self.conv(x).relu().mean((2, 3)).view(batch, 8))
        return out


def test_cam_never_runs_with_another_batch_than_was_sent() -> None:
    model, x = networks.seeded(RemembersBatch)(), images(3)
    expected = torch.einsum("c,bchw->bhw", model.fc.weight[1], model.conv(x).relu()).detach()
    assert torch.allclose(tvc.class_activation_map(model, x, 1).values, expected, rtol=1e-4, atol=1e-6)


def test_a_map_of_one_pixel_locates_nothing() -> None:
    with pytest.raises(tvc.LayerError, match="maps of a single pixel"):
        tvc.grad_cam(networks.gap_linear(), images(1), "gap")


def test_cam_and_grad_cam_agree_up_to_the_area() -> None:
    model, x = networks.gap_linear(), images(2)
    cam, grad = tvc.class_activation_map(model, x, 1), tvc.grad_cam(model, x, "features", 1, relu=False)
    assert torch.allclose(cam.values, grad.values * 16 * 16, rtol=1e-4, atol=1e-5)


def heatmap(values: Tensor, size: tuple[int, int] = (32, 32)) -> tvc.Heatmap:
    return tvc.Heatmap(
        values=values,
        target=torch.zeros(len(values), dtype=torch.long),
        layer="layer",
        method="Grad-CAM",
        logits=torch.zeros(len(values), 3),
        activations=values[:, None],
        input_size=size,
    )


def test_overlay_is_the_textbooks_sum() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    values = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    from matplotlib import colormaps

    scaled = (values[0].double().numpy() / float(values.max()) * 255).astype(np.uint8)
    jet = colormaps["jet"](np.arange(256), bytes=True)[:, :3][scaled].astype(float)
    expected = np.clip(np.asarray(photo) + 0.4 * jet, 0, 255)
    drawn = np.asarray(heatmap(values, (40, 40)).overlay(photo), dtype=float)
    assert np.abs(drawn - expected).max() <= 1
    mixed = np.asarray(heatmap(values, (40, 40)).overlay(photo, 0.3, blend="mix"), dtype=float)
    assert np.abs(mixed - (0.7 * np.asarray(photo) + 0.3 * jet)).max() <= 1


def test_overlay_covers_only_what_the_network_saw() -> None:
    net = tvc.Network(networks.gap_linear(), tvc.Preprocess((32, 32), "crop", 32))
    photo = Image.new("RGB", (300, 100), "white")
    heat = tvc.grad_cam(net, images(1), target=0, relu=False)
    drawn = np.asarray(heat.image(photo))
    assert drawn.shape == (100, 300, 3)
    veiled = (drawn == drawn[0, 0]).all((0, 2))
    assert np.array_equal(np.flatnonzero(~veiled), np.arange(100, 200))
    assert 0.5 < drawn[0, 0].mean() / 255 < 0.7  # of a white photo, under a veil that lets it through
    over = np.asarray(heat.overlay(photo, blend="mix"))
    assert (over[:, :100] == 255).all()
    assert (over[:, 200:] == 255).all()
    assert (over[:, 100:200] != 255).any()
    whole = np.asarray(heat.image(photo, geometry="stretch"))
    assert whole.any((0, 2)).all()
    padded = np.asarray(heat.image(photo, geometry=tvc.Preprocess((32, 32), "pad")))
    assert padded.any((0, 2)).all()


def test_a_photo_of_unknown_preprocessing_warns() -> None:
    heat = heatmap(torch.rand(1, 4, 4))
    with pytest.warns(tvc.GeometryWarning, match="300 x 100 photo became an input of 32 x 32 is not known"):
        heat.overlay(Image.new("RGB", (300, 100)))
    heat.overlay(Image.new("RGB", (300, 100)), geometry="crop")
    heat.overlay(Image.new("RGB", (100, 100)))


def test_peak_is_where_the_map_is_strongest() -> None:
    values = torch.zeros(1, 8, 8)
    values[0, 2, 6] = 1
    x, y = heatmap(values).peak(Image.new("RGB", (80, 80)))
    assert (60 <= x < 70, 20 <= y < 30) == (True, True)


def test_pictures_of_images_and_classes_are_chosen_and_checked() -> None:
    model, x = networks.gap_linear(), images(2)
    heat = tvc.grad_cam(model, x, target=torch.tensor([[0, 1], [2, 3]]), relu=False)
    photo = Image.new("RGB", (64, 64))
    assert heat.plot(photo, index=1, nth=1, truth="cat", categories=list("abcde")).width > 600
    assert heat.headline(1, 1, "cat", list("abcde")).startswith("true: cat, predicted: ")
    assert not np.array_equal(heat.map(0, 0), heat.map(1, 0))
    for wrong in (
        {"index": 2},
        {"nth": 2},
        {"alpha": 1.5},
        {"blend": "over"},
        {"colormap": "jett"},
        {"geometry": "zoom"},
    ):
        with pytest.raises(tvc.InputError):
            heat.overlay(photo, **wrong)  # type: ignore[arg-type]
    with pytest.raises(tvc.ImageError, match=r"no image photo\.jpg"):
        heat.overlay("photo.jpg")
    png = heat._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")


def test_save(tmp_path: Path) -> None:
    heat = tvc.grad_cam(networks.gap_linear(), images(2), target=1, relu=False)
    with np.load(heat.save(tmp_path / "new" / "cam.npz")) as saved:
        assert np.array_equal(saved["values"], heat.values.numpy())
        assert saved["target"].tolist() == [1, 1]
        assert str(saved["layer"]) == "features"
    with pytest.raises(tvc.OutputError, match=r"arrays are saved as \.npz"):
        heat.save(tmp_path / "cam.txt")


def test_the_feature_map_of_a_panel_is_one_that_is_alive() -> None:
    class Drawn(Exception):
        """Ends the drawing where the pictures are known."""

    values = torch.zeros(1, 40, 3, 3)
    values[0, [7, 23]] = torch.rand(2, 3, 3)
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 2))
    heat = tvc.grad_cam(model, values, "1", target=0, relu=False)
    shown = set()
    for seed in range(12):
        with pytest.MonkeyPatch.context() as patch:

            def panel(pictures: list[object], titles: list[str], headline: str, **options: object) -> None:
                shown.add(titles[3])
                raise Drawn

            patch.setattr("torchviz_cnn.attribution.result.figures.panel", panel)
            with pytest.raises(Drawn):
                heat.plot(Image.new("RGB", (9, 9)), seed=seed)
    assert shown == {"a random feature map: channel 7", "a random feature map: channel 23"}
