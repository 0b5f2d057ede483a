"""Class heatmaps of signals, volumes, maps with channels last, and tokens, against plain autograd written out here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import CLASSES, seeded
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS

pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.EmptyMapWarning")
CLASSES_OF_BOTH = torch.tensor([[0, 3], [4, 1]])


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


# --- networks: each with a default layer, and how its tensor is turned into maps, written out -------------------------


def tokens(grid: tuple[int, ...], leading: int) -> Callable[[Tensor], Tensor]:
    """(B, N, C) -> (B, C, *grid), place by place."""

    def maps(tensor: Tensor) -> Tensor:
        out = torch.zeros(len(tensor), tensor.shape[2], *grid)
        for place, index in enumerate(np.ndindex(*grid)):
            out[(slice(None), slice(None), *index)] = tensor[:, leading + place]
        return out

    return maps


def channels_last(tensor: Tensor) -> Tensor:
    return torch.stack(list(tensor.unbind(-1)), 1)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@seeded
def vit(image: int = 32) -> VisionTransformer:
    model = VisionTransformer(image, 8, 2, 2, 16, 32, num_classes=CLASSES)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)  # the head is zeros
    return model


@seeded
def swin() -> SwinTransformer:
    return SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=CLASSES)


@seeded
def convnext() -> ConvNeXt:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=CLASSES)


@seeded
def signals() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Conv1d(6, 8, 5), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


@seeded
def volumes() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, 2), nn.ReLU(inplace=True), nn.Conv3d(4, 6, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
    )


class Patches(nn.Module):
    """Patches of 4 x 4 pixels, unfolded and made tokens by a linear layer: no convolution tells their grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 16, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(nn.functional.unfold(x, 4, stride=4).transpose(1, 2))
        return out


class Block(nn.Module):
    """As in Hugging Face's models: gives a tuple of its hidden states alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        inside = self.norm(hidden)
        hidden = hidden + self.attention(inside, inside, inside, need_weights=False)[0]
        return (hidden + self.mlp(hidden),)


@dataclass
class Output:
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class Registers(nn.Module):
    """A class token, four registers, and 4 x 8 places of a picture of 16 x 32; gives an object with `logits`."""

    def __init__(self, width: int = 12, leading: int = 5, pooled: bool = False) -> None:
        super().__init__()
        self.leading, self.pooled = leading, pooled
        self.embed = Patches(width)
        self.first = nn.Parameter(torch.randn(1, leading, width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Output:
        places = self.embed(x)
        hidden = torch.cat([self.first.expand(len(places), -1, -1), places], 1)
        for block in self.blocks:
            hidden = block(hidden)[0]
        return Output(self.classifier(hidden[:, self.leading :].mean(1) if self.pooled else hidden[:, 0]))


registers = seeded(Registers)


class ChannelsLast(nn.Module):
    """Turned to channels last behind its stem, and pooled as it is."""

    def __init__(self, *sides: int) -> None:
        super().__init__()
        kind: Any = nn.Conv2d if len(sides) == 2 else nn.Conv3d
        self.stem = kind(3, 6, sides, sides)
        self.norm = nn.LayerNorm(6)
        self.body = nn.Sequential(nn.Linear(6, 9), nn.GELU())
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self.norm(self.stem(x).movedim(1, -1)))
        out: Tensor = self.head(maps.flatten(1, -2).mean(1))
        return out


class SignalTokens(nn.Module):
    """Tokens (B, 1 + L, C) of a signal, behind convolutions, as in speech networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 12, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 12))
        self.block = Block(12)
        self.last = Block(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        places = self.stem(x).transpose(1, 2)
        hidden = torch.cat([self.cls.expand(len(places), -1, -1), places], 1)
        out: Tensor = self.head(self.last(self.block(hidden)[0])[0][:, 0])
        return out


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    layer: str
    maps: Callable[[Tensor], Tensor]
    is_default: bool = True


CASES = {
    "vit": Case(vit, (3, 32, 32), "encoder.layers.encoder_layer_1.ln_1", tokens((4, 4), 1)),
    "vit, block": Case(vit, (3, 32, 32), "encoder.layers.encoder_layer_0", tokens((4, 4), 1), False),
    "vit, attention": Case(vit, (3, 32, 32), "encoder.layers.encoder_layer_0.self_attention", tokens((4, 4), 1), False),
    "vit, embedding": Case(vit, (3, 32, 32), "conv_proj", as_it_is, False),
    "swin": Case(swin, (3, 32, 32), "permute", as_it_is),
    "swin, block": Case(swin, (3, 32, 32), "features.1.0", channels_last, False),
    "swin, norm": Case(swin, (3, 48, 32), "norm", channels_last, False),
    "convnext": Case(convnext, (3, 32, 48), "features", as_it_is),
    "convnext, norm": Case(convnext, (3, 32, 48), "features.1.0.block.2", channels_last, False),
    "signals": Case(signals, (2, 50), "4", as_it_is),
    "volumes": Case(volumes, (1, 9, 12, 10), "3", as_it_is),
    "registers": Case(registers, (3, 16, 32), "blocks.1.norm", tokens((4, 8), 5)),
    "registers, block": Case(registers, (3, 16, 32), "blocks.0", tokens((4, 8), 5), False),
    "no class token": Case(lambda: registers(leading=0, pooled=True), (3, 16, 32), "blocks.1", tokens((4, 8), 0)),
    "distilled": Case(lambda: registers(leading=2), (3, 16, 32), "blocks.1.norm", tokens((4, 8), 2)),
    "channels last": Case(lambda: seeded(ChannelsLast)(4, 4), (3, 16, 32), "body", channels_last),
    "channels last, volumes": Case(lambda: seeded(ChannelsLast)(2, 4, 4), (3, 8, 16, 24), "body", channels_last),
    "tokens of signals": Case(seeded(SignalTokens), (2, 64), "last.norm", tokens((16,), 1)),
}


def of_plain_autograd(
    model: nn.Module, x: Tensor, layer: str, maps: Callable[[Tensor], Tensor], classes: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's maps (B, C, *S) and the gradients (B, K, C, *S) of the logits, by a hook and one pass a class."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    handle = model.get_submodule(layer).register_forward_hook(keep)
    output = model(x.clone().requires_grad_())
    handle.remove()
    logits = output if isinstance(output, Tensor) else output.logits
    gradients = [
        torch.autograd.grad(logits.gather(1, classes[:, k : k + 1]).sum(), kept[0], retain_graph=True)[0]
        for k in range(classes.shape[1])
    ]
    return maps(kept[0].detach()), torch.stack([maps(one) for one in gradients], 1)


@pytest.mark.parametrize("case", CASES)
def test_all_formulas_equal_plain_autograd(case: str) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    activations, gradients = of_plain_autograd(model, x, one.layer, one.maps, CLASSES_OF_BOTH)
    assert gradients.any()
    # Before a normalisation the terms of HiResCAM cancel each other: what is left is the rounding of each.
    rounding = 1e-6 * float((gradients * activations[:, None]).abs().sum(2).max())
    for name, method in CAM_METHODS.items():
        with unchanged(model, x):
            heat = method.function(model, x, one.layer, CLASSES_OF_BOTH, relu=False)
        expected = method.formula(activations, gradients)
        near = max(1e-5 * float(expected.abs().max()), rounding)
        assert torch.allclose(heat.values, expected, rtol=1e-4, atol=near), name
        assert torch.allclose(heat.activations, activations, atol=1e-6 * max(1.0, float(activations.abs().max())))
        assert heat.input_size == one.size[1:]
        assert heat.values.shape == (2, 2, *activations.shape[2:])


@pytest.mark.parametrize("case", [name for name, one in CASES.items() if one.is_default])
def test_the_default_layer(case: str) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    with unchanged(model, x):
        heat = tvc.grad_cam(model, x, target=1, relu=False)
    assert heat.layer == one.layer
    assert bool((heat.values.flatten(1).std(1) > 0).all())
    alone = tvc.grad_cam(model, x[1:], target=1, relu=False)
    assert alone.layer == one.layer
    assert torch.allclose(alone.values, heat.values[1:], rtol=1e-4, atol=1e-7)


def test_grad_cam_written_out_for_tokens() -> None:
    model, x = vit(), rand(2, 3, 32, 32)
    kept: list[Tensor] = []
    model.encoder.layers[1].ln_1.register_forward_hook(lambda m, a, out: kept.append(out))
    logit = model(x)[:, 2].sum()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    expected = torch.zeros(2, 4, 4)
    for b in range(2):
        for channel in range(16):
            weight = sum(gradient[b, 1 + place, channel] for place in range(16)) / 16
            for place in range(16):
                expected[b, place // 4, place % 4] += (weight * kept[0][b, 1 + place, channel]).detach()
    heat = tvc.grad_cam(model, x, target=2, relu=False)
    assert torch.allclose(heat.values, expected, atol=1e-6)


# --- exact and competitive maps ---------------------------------------------------------------------------------------

POOLED = {
    "signals": "4",
    "volumes": "3",
    "channels last": "body",
    "channels last, volumes": "body",
    "no class token": "blocks.1",
    "swin": "permute",
    "swin, norm": "norm",
}


@pytest.mark.parametrize("case", POOLED)
def test_the_exact_map_accounts_for_the_logit(case: str) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    heat = tvc.class_activation_map(model, x, CLASSES_OF_BOTH, layer=POOLED[case])
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    expected = torch.einsum("bkc,bc...->bk...", head.weight[CLASSES_OF_BOTH], heat.activations)
    assert torch.allclose(heat.values, expected, rtol=1e-3, atol=1e-4)
    logits = heat.logits.gather(1, CLASSES_OF_BOTH) - head.bias[CLASSES_OF_BOTH]
    assert torch.allclose(heat.values.flatten(2).mean(2), logits, atol=1e-4)
    if one.is_default:
        assert tvc.class_activation_map(model, x, 1).layer == POOLED[case]


def test_a_map_behind_which_only_the_class_token_counts_is_not_exact() -> None:
    with pytest.raises(tvc.ModelError, match="has no exact class activation map"):
        tvc.class_activation_map(vit(), rand(1, 3, 32, 32), 1)


@pytest.mark.parametrize("case", POOLED)
def test_all_classes_compete_where_maps_are_pooled(case: str, caplog: pytest.LogCaptureFixture) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    with caplog.at_level("INFO", "torchviz_cnn"):
        heat = tvc.competitive_cam(model, x, POOLED[case], CLASSES_OF_BOTH, temperature=1.0)
    assert "classes compete, not all" not in caplog.text
    every = torch.arange(CLASSES).expand(2, -1)
    maps = tvc.grad_cam(model, x, POOLED[case], every, relu=False).values
    area = maps[0, 0].numel()
    constant = heat.logits - maps.flatten(2).sum(2)
    local = area * maps + constant.view(2, CLASSES, *[1] * (maps.ndim - 2))
    share = local.softmax(1)
    for b in range(2):
        for k, index in enumerate(CLASSES_OF_BOTH[b].tolist()):
            assert torch.allclose(heat.values[b, k], maps[b, index].relu() * share[b, index], atol=1e-5)


def test_rivals_compete_for_tokens_of_a_class_token() -> None:
    model, x = vit(), rand(2, 3, 32, 32)
    heat = tvc.competitive_cam(model, x, target=CLASSES_OF_BOTH)
    plain = tvc.grad_cam(model, x, target=CLASSES_OF_BOTH)
    assert heat.values.shape == (2, 2, 4, 4)
    assert bool((heat.values <= plain.values + 1e-6).all())
    assert not torch.allclose(heat.values, plain.values)


# --- the input's own gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["signals", "volumes", "channels last, volumes"])
def test_saliency_and_its_family_take_signals_and_volumes(case: str) -> None:
    one = CASES[case]
    model, x = one.build(), rand(2, *one.size)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, CLASSES_OF_BOTH[:, :1]).sum(), leaf)
    first = CLASSES_OF_BOTH[:, 0]
    sal = tvc.saliency(model, x, first)
    assert torch.allclose(sal.gradients, gradient, atol=1e-6)
    assert torch.equal(sal.values, sal.gradients.abs().amax(1))
    assert torch.allclose(tvc.input_x_gradient(model, x, first).gradients, gradient * x, atol=1e-6)
    assert tvc.smooth_grad(model, x, CLASSES_OF_BOTH, samples=2).values.shape == (2, 2, *one.size[1:])
    path = tvc.integrated_gradients(model, x, first, steps=64, baselines=torch.zeros(one.size))
    assert path.completeness_error is not None
    assert float(path.completeness_error.abs().max()) < 0.05
    assert bool((sal.clipped(50).values <= sal.values).all())
    assert sal.map(1).shape == one.size[1:]


def test_guided_grad_cam_of_signals_and_volumes() -> None:
    for case, mode in (("signals", "linear"), ("volumes", "trilinear")):
        one = CASES[case]
        model, x = one.build(), rand(2, *one.size)
        guided = tvc.saliency(model, x, 2, relu="guided").gradients
        cam = tvc.grad_cam(model, x, target=2, relu=False).values.relu()[:, None]
        large = nn.functional.interpolate(cam, x.shape[2:], mode=mode, align_corners=False)
        product = tvc.guided_grad_cam(model, x, target=2).gradients
        assert torch.allclose(product, guided * large, atol=1e-6)
        nearest = nn.functional.interpolate(cam, x.shape[2:], mode="nearest")
        product = tvc.guided_grad_cam(model, x, target=2, interpolation="nearest").gradients
        assert torch.allclose(product, guided * nearest, atol=1e-6)


# --- layout=, and what is refused -------------------------------------------------------------------------------------


def test_the_grid_is_said_where_the_count_makes_none() -> None:
    model, x = registers(leading=9), rand(2, 3, 16, 32)
    with pytest.raises(
        tvc.LayerError, match=r"'blocks\.0' of Registers gives 41 tokens \(2, 41, 12\) for an input of 16 x 32.*layout="
    ):
        tvc.grad_cam(model, x, "blocks.0")
    with unchanged(model, x):
        heat = tvc.grad_cam(model, x, "blocks.0", CLASSES_OF_BOTH, relu=False, layout=(4, 8))
    activations, gradients = of_plain_autograd(model, x, "blocks.0", tokens((4, 8), 9), CLASSES_OF_BOTH)
    assert torch.allclose(heat.values, CAM_METHODS["grad_cam"].formula(activations, gradients), atol=1e-6)
    assert tvc.grad_cam(model, x, target=1, relu=False, layout=(4, 8)).layer == "blocks.1.norm"
    assert tvc.competitive_cam(model, x, "blocks.0", 1, layout=(4, 8)).values.shape == (2, 4, 8)
    with pytest.raises(tvc.LayerError, match=r"not tokens \(B, N, C\) of which the last 48 make 6 x 8"):
        tvc.grad_cam(model, x, "blocks.0", layout=(6, 8))


def test_a_layout_that_is_said_wins() -> None:
    model, x = swin(), rand(2, 3, 32, 32)
    as_maps = tvc.grad_cam(model, x, "features.1.0", 1, relu=False, layout="channels_first")
    assert as_maps.values.shape == (2, 8, 12)
    assert as_maps.activations.shape == (2, 8, 8, 12)
    right = tvc.grad_cam(model, x, "features.1.0", 1, relu=False, layout="channels_last")
    assert torch.equal(right.activations, as_maps.activations.permute(0, 3, 1, 2))


@pytest.mark.parametrize("layout", ["tokens", (0, 4), (1.5, 2), (1, 2, 3, 4), 14, ()])
def test_a_wrong_layout_is_refused(layout: Any) -> None:
    with pytest.raises(tvc.InputError, match="layout is 'channels_first', 'channels_last' or the grid of tokens"):
        tvc.grad_cam(vit(), rand(1, 3, 32, 32), layout=layout)


def test_tokens_that_the_score_no_longer_depends_on() -> None:
    for layer in ("encoder.ln", "encoder.layers.encoder_layer_1"):
        with pytest.raises(tvc.ModelError, match=r"no gradient comes back to the 4 x 4 tokens of layer .*class token"):
            tvc.grad_cam(vit(), rand(1, 3, 32, 32), layer, 1)


def test_several_tensors_are_named() -> None:
    class Pair(Registers):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(12, 6, batch_first=True, bidirectional=True)
            self.split = Split()

        def forward(self, x: Tensor) -> Output:
            halves = self.split(self.recurrent(self.embed(x))[0])
            return Output(self.classifier((halves["left"] + halves["right"]).mean(1)))

    class Split(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"left": x, "right": x.relu()}

    model, x = seeded(Pair)(), rand(2, 3, 16, 32)
    with pytest.raises(
        tvc.LayerError,
        match=r"gives a dict of several tensors \('left': \(2, 32, 12\), 'right': \(2, 32, 12\)\), not maps; name the",
    ):
        tvc.grad_cam(model, x, "split")
    activations, gradients = of_plain_autograd(model, x, "recurrent", tokens((4, 8), 0), CLASSES_OF_BOTH)
    heat = tvc.grad_cam(model, x, "recurrent", CLASSES_OF_BOTH, relu=False)  # its output, and a tuple of its states
    assert torch.allclose(heat.values, CAM_METHODS["grad_cam"].formula(activations, gradients), atol=1e-6)


def test_an_image_without_its_batch_is_no_signal() -> None:
    with pytest.raises(tvc.InputError, match=r"not \(3, 32, 32\); x\[None\] makes one image a batch"):
        tvc.grad_cam(convnext(), rand(3, 32, 32))
    with pytest.raises(tvc.InputError, match=r"not \(2, 50\); x\[None\] makes one signal a batch"):
        tvc.grad_cam(signals(), rand(2, 50))
    with pytest.raises(tvc.InputError, match=r"a batch \(B, C, H, W\), not \(2, 2, 50\)"):
        tvc.occlusion(signals(), rand(2, 2, 50))


def test_half_precision_and_sizes_that_coincide() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 4, 2, 2), Columns(), nn.Linear(4, 4), Mean()))()
    x = rand(4, 4, 4, 4)  # four images of four channels, four tokens of four features
    heat = tvc.grad_cam(model, x, "2", target=torch.tensor([[0, 1, 2, 3]] * 4), relu=False)
    activations, gradients = of_plain_autograd(model, x, "2", tokens((2, 2), 0), torch.arange(4).expand(4, -1))
    assert torch.allclose(heat.values, CAM_METHODS["grad_cam"].formula(activations, gradients), atol=1e-6)
    for case in ("vit", "signals", "swin, norm"):
        one = CASES[case]
        x = rand(2, *one.size)
        full = tvc.grad_cam(one.build(), x, one.layer, 1, relu=False).values
        half = tvc.grad_cam(one.build().bfloat16(), x, one.layer, 1, relu=False).values
        assert half.dtype == torch.float32
        assert float((half - full).abs().max()) < 0.1 * float(full.abs().max())


class Columns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_signals() -> None:
    model, x = signals(), rand(2, 2, 50)
    heat = tvc.grad_cam(model, x, target=CLASSES_OF_BOTH)
    alone, over = heat.plot(index=1, nth=1), heat.plot(x[1], index=1, nth=1)
    assert alone.size == over.size
    assert np.asarray(alone).tobytes() != np.asarray(over).tobytes()
    assert heat.image(index=1).height < alone.height  # no headline
    assert (heat._repr_png_() or b"")[:4] == b"\x89PNG"
    sal = tvc.saliency(model, x, 1)
    assert np.asarray(sal.signed_image(x[0])).any()
    for call in (heat.overlay, heat.peak, heat.box, heat.mask, sal.overlay):
        with pytest.raises(tvc.InputError, match=r"a signal is not laid on a photo: plot\(x\[index\]\) draws it"):
            call()
    with pytest.raises(tvc.InputError, match=r"the signal \(2, 2, 50\) does not fit an input of 50"):
        heat.plot(x)  # type: ignore[arg-type]
    with pytest.raises(tvc.InputError, match="a signal is a tensor or an array"):
        heat.plot("photo.jpg")


def test_the_strongest_place_of_a_signal_is_the_reddest() -> None:
    model, x = signals(), rand(1, 2, 50)
    heat = tvc.grad_cam(model, x, target=1, relu=False)
    heat.values[:] = 0
    heat.values[0, 15] = 1
    row = np.asarray(heat.image())[30].astype(int)  # above the curve but at its peak
    red = np.flatnonzero((row[:, 0] > 90) & (row[:, 0] < 150) & (row[:, 1] < 30))
    axes = np.flatnonzero(row.sum(1) < 3 * 250)[[0, -1]]
    assert abs((red.mean() - axes[0]) / (axes[1] - axes[0]) - (15 + 0.5) / heat.values.shape[1]) < 0.02


def test_pictures_of_volumes() -> None:
    model, x = volumes(), rand(1, 1, 9, 12, 10)
    heat = tvc.grad_cam(model, x, target=1)
    alone, over = heat.plot(), heat.plot(x[0])
    assert alone.size == over.size
    assert np.asarray(alone).tobytes() != np.asarray(over).tobytes()
    assert np.asarray(heat.plot(x[0, 0].numpy())).tobytes() == np.asarray(over).tobytes()
    assert (heat._repr_png_() or b"")[:4] == b"\x89PNG"
    with pytest.raises(tvc.InputError, match="map of a volume or video is not laid on a photo"):
        heat.overlay()


class Spectrogram(nn.Module):
    """Makes a picture (B, 1, 5, L / 4) of a signal itself."""

    def forward(self, x: Tensor) -> Tensor:
        frames: Tensor = x.unfold(2, 8, 4)
        strength: Tensor = torch.fft.rfft(frames).abs()
        return strength.transpose(2, 3)


def test_maps_of_a_picture_that_a_network_makes_of_a_signal() -> None:
    model = seeded(
        lambda: nn.Sequential(
            *(Spectrogram(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        )
    )()
    x = rand(2, 1, 64)
    heat = tvc.grad_cam(model, x, "2", CLASSES_OF_BOTH, relu=False)
    activations, gradients = of_plain_autograd(model, x, "2", as_it_is, CLASSES_OF_BOTH)
    assert torch.allclose(heat.values, CAM_METHODS["grad_cam"].formula(activations, gradients), atol=1e-6)
    assert heat.image().size == heat.image(index=1).size
    with pytest.raises(tvc.InputError, match="it is drawn alone"):
        heat.plot(x[0])
    with pytest.raises(tvc.InputError, match="is not laid on a photo"):
        heat.peak()
    with pytest.raises(tvc.LayerError, match="maps of 2 spatial dimensions are not enlarged to an input of 1"):
        tvc.guided_grad_cam(model, x, "2", 1, other_activations="plain")
    with pytest.raises(tvc.LayerError, match=r"no layer with a spatial map \(B, C, l\)"):
        tvc.grad_cam(model, x)


# --- the real ones ----------------------------------------------------------------------------------------------------

REAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, Callable[[Tensor], Tensor]]] = {
    "vit_b_16": (
        lambda: torchvision.models.vit_b_16(),
        (3, 224, 224),
        "encoder.layers.encoder_layer_11.ln_1",
        tokens((14, 14), 1),
    ),
    "swin_t": (lambda: torchvision.models.swin_t(), (3, 96, 128), "features.7.1", channels_last),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(), (3, 96, 128), "features.5.2.block.2", channels_last),
    "r3d_18": (lambda: torchvision.models.video.r3d_18(), (3, 16, 64, 48), "layer4", as_it_is),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_networks_of_torchvision_equal_plain_autograd(name: str) -> None:
    build, size, layer, maps = REAL[name]
    model, x = seeded(build)(), rand(2, *size)
    if name == "vit_b_16":
        nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.02)
    classes = torch.tensor([[1, 2], [3, 300]])
    activations, gradients = of_plain_autograd(model, x, layer, maps, classes)
    heat = tvc.grad_cam(model, x, layer, classes, relu=False)
    expected = CAM_METHODS["grad_cam"].formula(activations, gradients)
    assert torch.allclose(heat.values, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
