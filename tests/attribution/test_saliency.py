"""Saliency and its family: equal to plain autograd, one map per image and class, raw until drawn."""

from __future__ import annotations

import dataclasses
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
from tests.networks import images
from torchviz_cnn.attribution.smoothing import gaussian

EVERY: list[Callable[[], nn.Module]] = [
    networks.vgg_like,
    networks.functional_relu,
    networks.reused,
    networks.residual,
    networks.dense,
    networks.grouped,
    networks.batch_norm,
    networks.overlapping_pools,
    networks.gap_linear,
    networks.squeeze_like,
    networks.checkpointed,
    networks.tuple_output,
    networks.data_parallel,
    networks.compiled,
    networks.counting,
]
METHODS: dict[str, Callable[..., tvc.Saliency]] = {
    "saliency": tvc.saliency,
    "guided": lambda *args, **options: tvc.saliency(*args, relu="guided", **options),
    "deconvnet": lambda *args, **options: tvc.saliency(*args, relu="deconvnet", **options),
    "input x gradient": tvc.input_x_gradient,
    "SmoothGrad": lambda *args, **options: tvc.smooth_grad(*args, samples=3, **options),
    "VarGrad": lambda *args, **options: tvc.smooth_grad(*args, samples=3, statistic="variance", **options),
    "integrated gradients": lambda *args, **options: tvc.integrated_gradients(*args, steps=4, **options),
    "guided Grad-CAM": lambda model, x, target=None, **options: tvc.guided_grad_cam(model, x, None, target, **options),
}
quiet = pytest.mark.filterwarnings(
    "ignore::torchviz_cnn.core.errors.EmptyMapWarning"
)  # of classes that Grad-CAM is against
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def gradient(model: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(score(model.eval()(leaf.clone())).sum(), leaf)[0]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max()) and bool(b.any())


@pytest.mark.parametrize("build", EVERY)
def test_saliency_is_the_gradient(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images(3)
    expected = gradient(build(), x, lambda logits: logits[:, 3])
    result = tvc.saliency(model, x, 3)
    assert close(result.gradients, expected)
    assert torch.equal(result.values, result.gradients.abs().amax(1))
    assert torch.equal(tvc.saliency(model, x, 3, reduce="sum").values, result.gradients.abs().sum(1))
    assert close(tvc.input_x_gradient(model, x, 3).gradients, x * expected)


@pytest.mark.parametrize("score", ["logit", "probability", "log_probability", "cross_entropy"])
def test_every_score(score: Any) -> None:
    formulas: dict[str, Callable[[Tensor], Tensor]] = {
        "logit": lambda logits: logits[:, 1],
        "probability": lambda logits: logits.softmax(1)[:, 1],
        "log_probability": lambda logits: logits.log_softmax(1)[:, 1],
        "cross_entropy": lambda logits: F.cross_entropy(logits, torch.tensor([1, 1]), reduction="none"),
    }
    expected = gradient(networks.residual(), images(2), formulas[score])
    assert close(tvc.saliency(networks.residual(), images(2), 1, score=score).gradients, expected)


@every_method
@pytest.mark.parametrize("build", [networks.residual, networks.overlapping_pools, networks.functional_relu])
@quiet
def test_each_image_and_class_gets_what_it_would_get_alone(
    method: Callable[..., tvc.Saliency], build: Callable[[], nn.Module]
) -> None:
    model, x = build(), images(3)
    classes = torch.tensor([[3, 4], [1, 3], [3, 3]])
    with unchanged(model, x):
        together = method(model, x, classes)
    assert together.gradients.shape == (3, 2, 3, 32, 32)
    assert together.values.shape == (3, 2, 32, 32)
    for i in range(3):
        for k in range(2):
            alone = method(model, x[i : i + 1], int(classes[i, k]))
            assert torch.allclose(together.gradients[i, k], alone.gradients[0], atol=1e-5)
    scale = float(together.gradients[0, 0].abs().max())
    assert torch.allclose(together.gradients[:1, 0], method(model, x[:1], 3).gradients, rtol=0, atol=1e-3 * scale)


@every_method
@quiet
def test_shape_of_the_target_is_shape_of_the_result(method: Callable[..., tvc.Saliency]) -> None:
    model, x = networks.vgg_like(), images(3)
    top = method(model, x)
    assert top.gradients.shape == (3, 3, 32, 32)
    assert top.target.tolist() == model(x).argmax(1).tolist()
    assert torch.allclose(top.logits, model(x).detach(), atol=1e-5)
    assert method(model, x, torch.tensor([1, 2, 0])).target.tolist() == [1, 2, 0]
    with pytest.raises(tvc.TargetError):
        method(model, x, torch.tensor([1, 2]))


def test_smooth_grad_is_the_mean_over_noisy_copies() -> None:
    model, x = networks.residual(), images(2)
    noise = gaussian(7, 5, x[0])
    assert torch.equal(noise, gaussian(7, 5, x[1]))
    each = []
    for n in noise:
        noisy = torch.stack([one + 0.2 * (one.max() - one.min()) * n for one in x])
        each.append(gradient(model, noisy, lambda logits: logits[:, 1]))
    samples = torch.stack(each)

    def smooth(statistic: Any, **options: Any) -> Tensor:
        return tvc.smooth_grad(model, x, 1, samples=5, noise=0.2, seed=7, statistic=statistic, **options).gradients

    assert close(smooth("mean"), samples.mean(0))
    assert close(smooth("mean", batch_size=2), samples.mean(0))
    assert close(smooth("square"), samples.square().mean(0))
    assert close(smooth("variance"), samples.var(0, unbiased=False), 1e-3)
    assert not close(smooth("mean"), tvc.smooth_grad(model, x, 1, samples=5, noise=0.2, seed=8).gradients, 0.01)


def test_integrated_gradients_of_a_polynomial_are_exact() -> None:
    class Cubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(x**3).sum((1, 2, 3)), (x * x.flip(1)).sum((1, 2, 3))], 1)

    x, start = images(2, 4), images(2, 4, seed=1)
    result = tvc.integrated_gradients(Cubic(), x, 0, baselines=start, steps=2)
    assert torch.allclose(result.gradients, x**3 - start**3, atol=1e-4)
    assert result.completeness_error is not None
    assert float(result.completeness_error.abs().max()) < 1e-3
    rough = tvc.integrated_gradients(Cubic(), x, 0, baselines=start, steps=1)
    assert rough.completeness_error is not None
    assert float(rough.completeness_error.abs().max()) > 1


def test_several_baselines_are_averaged() -> None:
    model, x = networks.vgg_like(), images(2)
    starts: list[Any] = [0.0, torch.ones(3, 32, 32), images(2, seed=3)]
    each = [tvc.integrated_gradients(model, x, 2, baselines=start, steps=8) for start in starts]
    result = tvc.integrated_gradients(model, x, torch.tensor([[2, 1]] * 2), baselines=starts, steps=8, batch_size=3)
    assert close(result.gradients[:, 0], torch.stack([one.gradients for one in each]).mean(0))
    assert result.completeness_error is not None
    assert result.completeness_error.shape == (2, 2)
    model.eval()
    gap = model(x)[:, 2] - torch.stack([model(torch.zeros_like(x) + s)[:, 2] for s in starts]).mean(0)
    missed = result.gradients[:, 0].sum((1, 2, 3)) - gap
    assert torch.allclose(result.completeness_error[:, 0], missed, atol=1e-5)


@quiet
@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (networks.vgg_like, "features.8"),
        (networks.vgg_like, "features.7"),
        (networks.residual, "layer2"),
        (networks.reused, "relu#2"),
        (networks.checkpointed, "block.2"),
    ],
)
def test_guided_grad_cam_is_the_product_of_both_in_one_forward(build: Callable[[], nn.Module], layer: str) -> None:
    x, calls = images(2), []
    classes = torch.tensor([[0, 3], [1, 2]])
    guided = tvc.saliency(build(), x, classes, relu="guided").gradients
    cam = tvc.grad_cam(build(), x, layer, classes, relu=False).values.relu()
    model = build()
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    for mode, options in (("nearest", {}), ("bilinear", {"align_corners": False})):
        large = F.interpolate(cam, x.shape[2:], mode=mode, **options)  # type: ignore[arg-type]
        result = tvc.guided_grad_cam(model, x, layer, classes, interpolation=mode)  # type: ignore[arg-type]
        assert close(result.gradients, guided * large[:, :, None], 1e-3)
    assert len(calls) == 2


class Overwritten(nn.Module):
    """Writes into its last map, as a DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(F.relu(self.features(x), inplace=True).mean((2, 3)))
        return scores


@quiet
@pytest.mark.parametrize("build", [networks.vgg_like, networks.residual, networks.functional_relu, Overwritten])
def test_guided_grad_cam_of_its_default_layer(build: Callable[[], nn.Module]) -> None:
    x, calls = images(2), []
    model = build()
    layer = tvc.grad_cam(model, x).layer
    expected = tvc.guided_grad_cam(model, x, layer).gradients
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    with unchanged(model):
        sal = tvc.guided_grad_cam(model, x)
    assert torch.equal(sal.gradients, expected)
    assert calls == [1, 2]  # one image to find the layer, then all of them once


@quiet
@pytest.mark.parametrize("classes", [torch.tensor([1, 2]), torch.tensor([[0, 3], [1, 2]])])
@pytest.mark.parametrize("layer", ["layer2.0", "layer2.1.bn2"])
def test_guided_grad_cam_is_guided_backpropagation_times_grad_cam(layer: str, classes: Tensor) -> None:
    x = images(2)
    result = tvc.guided_grad_cam(networks.residual(), x, layer, classes, interpolation="nearest").gradients
    guided = tvc.saliency(networks.residual(), x, classes, relu="guided").gradients
    cam = tvc.grad_cam(networks.residual(), x, layer, classes).values
    assert close(result, guided * F.interpolate(cam.view(2, -1, 8, 8), (32, 32)).view(*cam.shape[:-2], 1, 32, 32))


@pytest.mark.parametrize("relu", ["standard", "guided", "deconvnet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "strided"])
def test_the_layout_of_the_input_does_not_matter(layout: Any, relu: Any) -> None:
    given = images(2, 64)[..., ::2, ::2] if layout == "strided" else images(2).contiguous(memory_format=layout)
    plain = tvc.saliency(networks.overlapping_pools(), given.contiguous(), 1, relu=relu).gradients
    result = tvc.saliency(networks.overlapping_pools(), given, 1, relu=relu)
    assert close(result.gradients, plain, 1e-5)
    assert result.gradients.is_contiguous()


@every_method
@quiet
def test_odd_inputs_are_refused_in_one_line(method: Callable[..., tvc.Saliency]) -> None:
    model, x = networks.vgg_like(), images(3)
    for value in (torch.nan, torch.inf):
        odd = x.clone()
        odd[1, 0, 0, :2] = value
        with unchanged(model, odd), pytest.raises(tvc.InputError, match="image 1 of the input has 2 values that are"):
            method(model, odd, 0)
    with (
        unchanged(model),
        pytest.raises(tvc.InputError, match="VGGLike takes images of 3 channels, and the input has 1"),
    ):
        method(model, x[:, :1], 0)
    with unchanged(model), pytest.raises(tvc.InputError, match="the input is int64; networks take floating point"):
        method(model, x.long(), 0)
    with torch.no_grad():
        model.features[5].bias[2] = torch.nan  # type: ignore[index, operator, union-attr]
    with unchanged(model), pytest.raises(tvc.ModelError, match="the model gives NaN for image 0"):
        method(model, x, 0)


def test_a_map_of_nothing_is_zeros_and_a_warning() -> None:
    model = networks.squeeze_like()
    with torch.no_grad():
        model.classifier[1].bias.fill_(-100)  # type: ignore[union-attr, operator]
    with pytest.warns(tvc.EmptyMapWarning, match=r"no pixel of image 0 matters for class 2 \(and 1 more\)"):
        result = tvc.saliency(model, images(2), 2)
    assert not result.map().any()
    assert (result.signed() == 0.5).all()
    assert np.asarray(result.colour_image()).std() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    expected = tvc.saliency(networks.gap_linear(), images(2), 0, relu="guided").gradients
    result = tvc.saliency(networks.gap_linear().to(dtype), images(2), 0, relu="guided").gradients
    assert result.dtype == torch.float32
    # a maximum of two values alike in bfloat16 may be the other one: near, all in all
    assert float((result - expected).norm() / expected.norm()) < (0.5 if dtype == torch.bfloat16 else 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tvc.saliency(networks.gap_linear(), images(2), 0, relu="guided").gradients
    assert cast.dtype == torch.float32
    assert float((cast - expected).norm() / expected.norm()) < 0.5


WRONG: Any = "mean"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: tvc.saliency(m, x, reduce=WRONG), "no reduce 'mean'; there are max, sum"),
        (lambda m, x: tvc.saliency(m, x, relu=WRONG), "no ReLU rule 'mean'"),
        (lambda m, x: tvc.saliency(m, x, score=WRONG), "no score 'mean'"),
        (lambda m, x: tvc.saliency(m, x[0]), r"x\[None\]"),
        (lambda m, x: tvc.smooth_grad(m, x, samples=0), "samples is a whole number of at least 1, not 0"),
        (
            lambda m, x: tvc.smooth_grad(m, x, samples=1, statistic="variance"),
            "samples is a whole number of at least 2, not 1",
        ),
        (lambda m, x: tvc.smooth_grad(m, x, noise=-1), "noise is a finite number of at least 0, not -1"),
        (lambda m, x: tvc.integrated_gradients(m, x, steps=0), "at least 1, not 0"),
        (lambda m, x: tvc.integrated_gradients(m, x, baselines=torch.zeros(3, 8, 8)), r"not \(3, 8, 8\) for an input"),
        (lambda m, x: tvc.smooth_grad(m, x, samples=2.5), "samples is a whole number of at least 1, not 2.5"),  # type: ignore[arg-type]
        (lambda m, x: tvc.smooth_grad(m, x, noise=torch.nan), "noise is a finite number of at least 0, not nan"),
        (lambda m, x: tvc.integrated_gradients(m, x, baselines=torch.nan), "a baseline is a finite number"),
        (lambda m, x: tvc.integrated_gradients(m, x, steps=2.5), "steps is a whole number of at least 1, not 2.5"),  # type: ignore[arg-type]
        (lambda m, x: tvc.integrated_gradients(m, x, baselines=[]), "at least one baseline"),
        (
            lambda m, x: tvc.guided_grad_cam(m, x, interpolation=WRONG),
            "no interpolation 'mean'; there are bilinear, nearest",
        ),
    ],
)
def test_wrong_options(call: Callable[[nn.Module, Tensor], object], message: str) -> None:
    model, x = networks.vgg_like(), images(2)
    with unchanged(model, x), pytest.raises(tvc.InputError, match=message):
        call(model, x)


def test_errors_of_the_network() -> None:
    x = images(1)
    with pytest.raises(tvc.LayerError, match="'aux' of Unreached was never reached"):
        tvc.guided_grad_cam(networks.unreached(), x, "aux")
    with pytest.raises(tvc.LayerError, match=r"gives \(1, 16\), not maps"):
        tvc.guided_grad_cam(networks.vgg_like(), x, "classifier.0")

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    with pytest.raises(tvc.ModelError, match="no gradient comes back to the input of Detached"):
        tvc.saliency(Detached(), x)


def test_the_grey_picture_is_the_textbooks() -> None:
    result = tvc.saliency(networks.vgg_like(), images(2), 1, score="cross_entropy", reduce="sum")
    values = np.abs(result.gradients[1].numpy()).sum(0)
    expected = ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
    drawn = result.grey(1)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert (drawn.min(), drawn.max()) == (0, 255)
    shown = np.asarray(result.image(index=1, interpolation="nearest"))
    assert np.abs(shown.astype(int) - drawn[..., None]).max() <= 1


def test_pictures() -> None:
    net = tvc.Network(networks.gap_linear(), tvc.Preprocess((32, 32), "crop", 32))
    result = tvc.saliency(net, images(2), torch.tensor([[0, 1], [2, 3]]), relu="guided")
    photo = Image.new("RGB", (300, 100), "white")
    over = np.asarray(result.overlay(photo, blend="mix"))
    assert (over[:, :100] == 255).all()  # what the network did not see
    assert (over[:, 100:200] != 255).any()
    assert result.plot(photo, index=1, nth=1, truth="cat", categories=list("abcde")).width > 1000
    assert result.colour_image(1, 1).size == (32, 32)
    signed = np.asarray(result.signed_image(interpolation="nearest")).astype(int)
    total = result.gradients[0, 0].sum(0).numpy()
    assert (
        np.sign(signed[..., 0] - signed[..., 2])[np.abs(total) > np.abs(total).max() / 10]
        == np.sign(total)[np.abs(total) > np.abs(total).max() / 10]
    ).all()
    clipped = result.clipped(90)
    assert bool((clipped.values <= result.values).all())
    assert not np.array_equal(clipped.map(), result.map())
    with pytest.raises(tvc.InputError, match="a percentile is more than 0"):
        result.clipped(0)
    with pytest.raises(tvc.InputError, match="image 2 is out of range"):
        result.map(2)
    assert (result._repr_png_() or b"").startswith(b"\x89PNG")
    assert "guided backpropagation: 2 x 2 x 3 x 32 x 32" in repr(result)


def test_save(tmp_path: Path) -> None:
    result = tvc.saliency(networks.gap_linear(), images(2), 1)
    with np.load(result.save(tmp_path / "new" / "saliency.npz")) as saved:
        assert np.array_equal(saved["gradients"], result.gradients.numpy())
        assert str(saved["method"]) == "saliency"
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.values = result.values  # type: ignore[misc]


def test_red_speaks_for_the_class_whatever_the_score() -> None:
    model, x = networks.vgg_like(), images(1)
    sure = tvc.saliency(model, x, 2, score="log_probability")
    loss = tvc.saliency(model, x, 2, score="cross_entropy")
    assert torch.equal(loss.gradients, -sure.gradients)
    assert np.array_equal(loss.signed(), sure.signed())
