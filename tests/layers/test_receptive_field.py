"""Receptive fields of random networks against the textbook's rules, on large maps and on maps of a few places."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchviz_cnn.layers.describe import describe

Field = tuple[int, int, int]
"""Size, stride and start along one dimension."""
CHANNELS = 4


class Branches(nn.Module):
    """What two branches give, added or concatenated; an empty branch is the identity."""

    def __init__(self, one: nn.Module, other: nn.Module, join: str) -> None:
        super().__init__()
        self.one, self.other, self.join = one, other, join
        self.last = nn.Conv2d(CHANNELS * (1 if join == "sum" else 2), CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x), self.other(x)
        joined: Tensor = self.last(one + other if self.join == "sum" else torch.cat([one, other], 1))
        return joined


def by_rule(module: nn.Module, field: Field) -> Field:
    """The field behind a module: windows in a row multiply strides and add sizes, branches give the widest of both."""
    size, stride, start = field
    if isinstance(module, nn.Sequential):
        for part in module:
            field = by_rule(part, field)
        return field
    if isinstance(module, Branches):
        fields = [by_rule(module.one, field), by_rule(module.other, field)]
        first, end = min(f[2] for f in fields), max(f[2] + f[0] for f in fields)
        assert fields[0][1] == fields[1][1]
        return end - first, fields[0][1], first
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        numbers = [getattr(module, name, 1) for name in ("kernel_size", "stride", "padding", "dilation")]
        kernel, step, padding, dilation = (n[0] if isinstance(n, tuple) else n for n in numbers)
        return size + dilation * (kernel - 1) * stride, stride * step, start - padding * stride
    return field


def conv(kernel: int, stride: int = 1, dilation: int = 1, padding: int | None = None) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2 if padding is None else padding
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation)


def a_network(seed: int) -> nn.Sequential:
    """Three to eight parts, each drawn from convolutions, poolings, residual sums and concatenations."""
    draw = random.Random(seed)
    stride = draw.choice([2, 2, 3])
    parts: Sequence[Callable[[], nn.Module]] = [
        lambda: conv(draw.choice([1, 3, 5]), stride),
        lambda: conv(3, 1, draw.choice([1, 2, 3])),
        lambda: conv(2, 2, padding=1),
        lambda: nn.MaxPool2d(3, 2, 1),
        lambda: nn.MaxPool2d(2, ceil_mode=True),
        lambda: nn.AvgPool2d(3, 1, 1),
        lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)),
        lambda: Branches(nn.Sequential(conv(3), nn.ReLU(), conv(3)), nn.Identity(), "sum"),
        lambda: Branches(conv(3, stride), conv(1, stride), "sum"),
        lambda: Branches(conv(3, 1, 2), nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(1)), "cat"),
        lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), conv(2, padding=0)),
    ]
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *(draw.choice(parts)() for _ in range(draw.randint(3, 8))))


def padded_by_rule(module: nn.Module, field: Field) -> Field:
    """As `by_rule`, with the padding modules that `a_network` puts before a convolution."""
    for part in module.children():
        inner = list(part.children())
        if inner and isinstance(inner[0], nn.ZeroPad2d):
            field = field[0], field[1], field[2] - field[1]
        field = by_rule(part, field)
    return field


def network_with_map(seed: int, places: int) -> tuple[nn.Module, int]:
    """A random network and the side of an input that it turns into a map of so many places along each side."""
    for attempt in range(100):
        model = a_network(seed + 1000 * attempt).eval()
        for side in range(3, 80):
            try:
                with torch.no_grad():
                    if model(torch.zeros(1, 3, side, side)).shape[2] == places:
                        return model, side
            except RuntimeError:  # too small for one of the windows
                continue
    raise AssertionError("no such network")


@pytest.mark.parametrize("places", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(15))
def test_fields_of_random_networks_are_those_of_the_rules_on_small_maps_too(seed: int, places: int) -> None:
    model, side = network_with_map(seed, places)
    field = describe(model, (side, side)).layers[-1].receptive_field
    assert field is not None
    measured = (field.size[0], field.stride[0], field.start[0])
    expected = padded_by_rule(model, (1, 1, 0))
    if field.whole:  # a window without padding took in a whole map at once: the field is the input
        assert places == 1
        assert expected[2] <= 0
        assert expected[0] >= side
    else:
        assert measured == expected


@pytest.mark.parametrize("side", [16, 32, 48, 64, 200])
def test_strided_convolutions_see_the_same_whatever_the_input(side: int) -> None:
    parts = [part for i in range(4) for part in (nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1), nn.ReLU())]
    field = describe(nn.Sequential(*parts), (side, side)).layers[-1].receptive_field
    assert field is not None
    assert (field.size, field.stride, field.start) == ((31, 31), (16, 16), (-15, -15))


def test_units_on_small_maps_see_their_field_and_nothing_beyond() -> None:
    """Against gradients with positive weights: the part of the field that lies on the input is what reaches a unit."""
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, 2, 1) for _ in range(4)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    x = torch.ones(1, 1, 32, 32, requires_grad=True)
    maps = model(x)
    field = describe(model, (32, 32)).layers[-1].receptive_field
    assert field is not None
    for unit in range(maps.shape[2]):
        (gradient,) = torch.autograd.grad(maps[0, 0, unit, unit], x, retain_graph=True)
        rows = gradient[0, 0].sum(1).nonzero()[:, 0].tolist()
        start = int(field.start[0] + unit * field.stride[0])
        assert rows == list(range(max(start, 0), min(start + field.size[0], 32)))


def test_what_pools_a_whole_small_map_sees_everything() -> None:
    down = [nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(4)]
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2)):
        field = describe(nn.Sequential(*down, pool), (32, 32)).layers[-1].receptive_field
        assert field is not None
        assert field.whole
        assert field.size == (32, 32)


UPSAMPLINGS: dict[str, tuple[nn.Module, float]] = {
    "transposed, kernel 2": (nn.ConvTranspose2d(1, 1, 2, 2), 1 / 2),
    "transposed, kernel 3": (nn.ConvTranspose2d(1, 1, 3, 2), 1 / 2),
    "transposed, kernel 3, padded": (nn.ConvTranspose2d(1, 1, 3, 2, 1, 1), 1 / 2),
    "transposed, kernel 5": (nn.ConvTranspose2d(1, 1, 5, 2, 2), 1 / 2),
    "transposed, stride 3": (nn.ConvTranspose2d(1, 1, 4, 3), 1 / 3),
    "nearest, 3": (nn.Upsample(scale_factor=3), 1 / 3),
    "nearest, 1.5": (nn.Upsample(scale_factor=1.5), 2 / 3),
    "bilinear, 4 / 3": (nn.Upsample(scale_factor=4 / 3, mode="bilinear"), 3 / 4),
}


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize("name", UPSAMPLINGS)
def test_units_behind_an_upsampling_are_a_fraction_of_a_pixel_apart(name: str, side: int) -> None:
    """Against gradients with positive weights: the middle unit's field exactly, its neighbours' but for a pixel."""
    layer, stride = UPSAMPLINGS[name]
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer, nn.Conv2d(1, 1, 3, padding=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    x = torch.ones(1, 1, side, side, requires_grad=True)
    for depth in (2, 3):
        maps = model[:depth](x)
        field = describe(model[:depth], (side, side)).layers[-1].receptive_field
        assert field is not None
        assert field.stride == pytest.approx((stride, stride), abs=1e-4)
        middle = (maps.shape[2] - 1) // 2
        for unit in range(middle - 8, middle + 9):
            (gradient,) = torch.autograd.grad(maps[0, 0, unit, unit], x, retain_graph=True)
            rows = gradient[0, 0].sum(1).nonzero()[:, 0].tolist()
            start = math.floor(field.start[0] + unit * field.stride[0] + 0.01)
            slack = 0 if unit == middle else 1
            assert abs(rows[0] - max(start, 0)) <= slack
            assert abs(rows[-1] - min(start + field.size[0] - 1, side - 1)) <= slack


def test_units_of_a_mirrored_map_run_backwards() -> None:
    class Mirrored(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(-1)

    field = describe(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Mirrored()), (9, 12)).layers[-1].receptive_field
    assert field is not None
    assert (field.size, field.stride, field.start) == ((3, 3), (1, -1), (-1, 10))


def test_a_decoder_with_shortcuts_comes_back_to_one_unit_a_pixel() -> None:
    class Decoder(nn.Module):
        """Three times down and up again, with a shortcut at each size."""

        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(4))
            self.up = nn.ModuleList(nn.ConvTranspose2d(1, 1, 2, 2) for _ in range(3))
            self.join = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            maps = [self.down[0](x)]
            for layer in self.down[1:]:
                maps.append(layer(nn.functional.max_pool2d(maps[-1], 2)))
            out = maps.pop()
            for layer in self.up:
                out = self.join(layer(out) + maps.pop())
            return out

    field = next(row for row in describe(Decoder(), (128, 128)).layers if row.name == "join#2").receptive_field
    assert field is not None
    assert field.stride == (1, 1)


# --- channels last ---------------------------------------------------------------------------------------------


class Permute(nn.Module):
    """As torchvision's."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = list(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


def convnext_like(blocks: int) -> nn.Sequential:
    """A patch of 4 pixels, then convolutions of 7 x 7, each with a normalisation and a linear layer of its places."""
    last = [Permute(0, 2, 3, 1), nn.LayerNorm(8), nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8), Permute(0, 3, 1, 2)]
    block = [nn.Conv2d(8, 8, 7, padding=3, groups=8), *last]
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), *(copy.deepcopy(layer) for _ in range(blocks) for layer in block))


def test_layers_with_their_channels_last_have_the_field_of_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, gradients = 0, torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return gradients(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    rows = describe(convnext_like(2), (96, 96)).layers
    expected = [4] + 7 * [4 + 6 * 4] + 7 * [4 + 12 * 4]
    for row, size in zip(rows, expected, strict=True):
        assert row.receptive_field is not None
        assert (row.receptive_field.size, row.receptive_field.stride) == ((size, size), (4, 4)), row
    assert passes <= 3 * len(rows)  # a few units of a layer tell its field


class Windows(nn.Module):
    """Each place of a map with its channels last gets the mean of its window of 4 x 4 places, padded where needed."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = nn.functional.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))
        batch, down, across, channels = x.shape
        x = x.view(batch, down // 4, 4, across // 4, 4, channels)
        mean = x.mean((2, 4), keepdim=True).expand_as(x)
        return mean.reshape(batch, down, across, channels)[:, :height, :width]


@pytest.mark.parametrize("side", [64, 56])
def test_windows_of_maps_with_their_channels_last(side: int) -> None:
    patches = [nn.Conv2d(3, 8, 2, 2), Permute(0, 2, 3, 1), nn.LayerNorm(8)]
    rows = describe(
        nn.Sequential(*patches, Windows(), nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU()), (side, side)
    ).layers
    fields = [row.receptive_field for row in rows]
    assert [field.size for field in fields if field] == 3 * [(2, 2)] + 4 * [(8, 8)]
    assert len(set(fields[3:])) == 1
