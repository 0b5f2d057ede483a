"""How maps lie in the tensor of a layer, and how that is recognised."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import Permute

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import images, seeded
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.layers.layout import Layout, Layouts, channels_last

FIRST, LAST, TOKENS = Layout(2), Layout(2, True), Layout(2, True, (3, 4), 2)
SHAPES = {FIRST: (2, 5, 3, 4), LAST: (2, 3, 4, 5), TOKENS: (2, 14, 5)}


def counted(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@pytest.mark.parametrize("layout", SHAPES, ids=["first", "last", "tokens"])
def test_maps_are_read_and_written_back(layout: Layout) -> None:
    own = counted(*SHAPES[layout])
    maps = layout.maps(own)
    assert maps.shape == (2, 5, 3, 4)
    assert maps.data_ptr() in (own.data_ptr(), own[:, 2:].data_ptr())  # a view
    assert torch.equal(layout.own(maps, own), own)
    several = torch.stack([own, -own, own + 1], 1)
    assert torch.equal(layout.maps(several), torch.stack([maps, -maps, maps + 1], 1))
    assert own.shape[layout.channel_dim] == 5
    assert several.shape[layout.channel_dim] == 5
    one = layout.own(maps[:1, :, :1, :1] * torch.ones(3, 1, 1, 1), own[:1])
    assert len(one) == 3
    everywhere = layout.maps(one)
    assert torch.equal(everywhere, maps[:1, :, :1, :1].expand_as(everywhere))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_in_every_dimension(dims: int) -> None:
    sides = (2, 3, 4)[:dims]
    maps = counted(2, 5, *sides)
    for layout, own in ((Layout(dims), maps), (Layout(dims, True), maps.movedim(1, -1))):
        assert torch.equal(layout.maps(own), maps)
        assert torch.equal(layout.own(maps, own), own)
        assert own.shape[layout.channel_dim] == 5
    tokens = Layout(dims, True, sides, 1)
    own = torch.cat([torch.zeros(2, 1, 5), maps.flatten(2).mT], 1)
    assert torch.equal(tokens.maps(own), maps)
    assert torch.equal(tokens.own(maps, own), own)


def recognised(layer: nn.Module, shape: tuple[int, ...], image: tuple[int, ...], *sizes: tuple[int, ...]) -> Layout:
    """The layout of what a layer gives for an image, behind convolutions that gave maps of these sizes."""
    known = Layouts(nn.Sequential(layer), torch.zeros(shape[0], 3, *image))
    for size in sizes:
        known.note("conv", torch.zeros(1, 1, *size))
    return known.of("0", torch.zeros(shape))


@pytest.mark.parametrize(
    ("count", "image", "sizes", "grid", "leading"),
    [
        (196, (224, 224), [], (14, 14), 0),
        (197, (224, 224), [], (14, 14), 1),
        (198, (224, 224), [], (14, 14), 2),
        (201, (224, 224), [], (14, 14), 5),
        (200, (224, 224), [], (14, 14), 4),
        (204, (224, 224), [], (14, 14), 8),
        (50, (224, 224), [], (7, 7), 1),
        (37, (16, 32), [], (4, 8), 5),  # not (4, 9) and 1, which is nearly in proportion
        (14 * 19, (224, 304), [], (14, 19), 0),
        (14 * 18 + 1, (224, 300), [(14, 18)], (14, 18), 1),
        (2 * 6 * 6 + 1, (32, 96, 96), [], (2, 6, 6), 1),
        (197, (224, 224), [(14, 14)], (14, 14), 1),
        (1212 + 2, (128, 1024), [(12, 101)], (12, 101), 2),  # overlapping patches of a spectrogram
        (49, (224, 224), [(112, 112), (56, 56), (28, 28), (14, 14)], (7, 7), 0),
        (16, (224, 224), [(14, 14)], (4, 4), 0),  # 14 -> 7 -> 4
        (8 * 7 * 7 + 1, (16, 224, 224), [(8, 56, 56)], (8, 7, 7), 1),
        (4 * 6 * 6, (8, 96, 96), [(4, 24, 24)], (4, 6, 6), 0),
    ],
)
def test_the_grid_of_tokens(
    count: int, image: tuple[int, ...], sizes: list[tuple[int, ...]], grid: tuple[int, ...], leading: int
) -> None:
    for layer in (nn.Identity(), nn.Linear(6, 6), nn.LayerNorm(6)):
        layout = recognised(layer, (2, count, 6), image, *sizes)
        assert (layout.grid, layout.leading, layout.channel_dim) == (grid, leading, -1)


@pytest.mark.parametrize(
    ("count", "image", "sizes"),
    [
        (150, (224, 224), [(14, 14)]),
        (100, (224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),  # queries, as of a detector, that are no places
        (150, (224, 224), []),
        (100, (224, 224), []),
        (72, (8, 96, 96), []),
    ],
)
def test_a_count_that_makes_no_grid_is_refused(
    count: int, image: tuple[int, ...], sizes: list[tuple[int, ...]]
) -> None:
    size = " x ".join(map(str, image))
    with pytest.raises(
        LayerError, match=rf"gives {count} tokens .* for an input of {size}, which make no grid.*layout="
    ):
        recognised(nn.Identity(), (2, count, 6), image, *sizes)


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        (nn.Conv1d(2, 6, 1), (2, 6, 40), False),
        (nn.ReLU(), (2, 6, 40), False),
        (nn.Sequential(nn.Conv1d(2, 6, 1), nn.Linear(40, 40)), (2, 6, 40), False),
        (nn.Linear(6, 6), (2, 40, 6), True),
        (nn.LayerNorm(6), (2, 40, 6), True),
        (nn.LSTM(6, 3, batch_first=True, bidirectional=True), (2, 40, 6), True),
        (nn.TransformerEncoderLayer(6, 2, batch_first=True), (2, 40, 6), True),
        (nn.Sequential(nn.Linear(6, 6), nn.GELU()), (2, 6, 40), False),
    ],
)
def test_where_the_channels_of_signals_are(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    assert recognised(layer, shape, (40,)) == Layout(1, last)


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        (nn.Identity(), (2, 4, 8, 12, 6), True),
        (nn.Identity(), (2, 6, 4, 8, 12), False),
        (nn.Linear(6, 12), (2, 12, 12, 12, 12), True),
        (nn.Conv3d(1, 12, 1), (2, 4, 8, 12, 12), False),
        (Permute([0, 2, 3, 4, 1]), (2, 4, 8, 12, 6), True),
        (Permute([0, 4, 1, 2, 3]), (2, 6, 4, 8, 12), False),
        (nn.Sequential(nn.Linear(12, 12), nn.GELU()), (2, 4, 8, 8, 12), True),  # of which the shape alone says nothing
    ],
)
def test_where_the_channels_of_volumes_are(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    image = (8, 16, 24) if shape[2:4] != (8, 8) else (8, 12, 12)
    assert channels_last(layer, torch.zeros(shape), image) is last


@pytest.mark.parametrize("shape", [(2, 6), (2,), (2, 3, 4, 5, 6, 7), ()])
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    known = Layouts(nn.Sequential(nn.Identity()), torch.zeros(2, 3, 8, 8))
    with pytest.raises(LayerError, match="not maps"):
        known.of("0", torch.zeros(shape))


class Pair(NamedTuple):
    hidden: Tensor
    sizes: Any


class Wrapped(nn.Module):
    """A layer that gives its maps in a tuple, a list, a named tuple or a dict, with what is no tensor beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        maps, size = self.conv(x), tuple(x.shape)
        outputs: dict[str, Any] = {
            "tuple": (maps, None),
            "list": [size, maps],
            "named tuple": Pair(maps, size),
            "dict": OrderedDict(hidden=maps, sizes=size),
        }
        return outputs[self.kind]


class Unwraps(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.wrapped = Wrapped(kind)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Any = self.wrapped(x)
        if self.wrapped.kind == "dict":
            assert list(out) == ["hidden", "sizes"]
            maps = out["hidden"]
        else:
            kinds: dict[str, Any] = {"tuple": tuple, "list": list, "named tuple": Pair}
            assert type(out) is kinds[self.wrapped.kind]
            maps = out[1] if self.wrapped.kind == "list" else out[0]
        scores: Tensor = self.fc(torch.relu_(maps).mean((2, 3)))
        return scores


@pytest.mark.parametrize("kind", ["tuple", "list", "named tuple", "dict"])
def test_the_only_tensor_of_an_output_is_taken(kind: str) -> None:
    model, x = seeded(Unwraps)(kind), images(2, 8)
    with unchanged(model, x):
        heat = tvc.grad_cam(model, x, "wrapped", 1, relu=False)
    plain = tvc.grad_cam(model, x, "wrapped.conv", 1, relu=False)
    assert torch.equal(heat.values, plain.values)
    assert torch.equal(heat.activations, model.wrapped.conv(x))
    assert tvc.grad_cam(model, x, target=1, relu=False).layer == "wrapped"
    doubled = torch.cat([heat.activations, 2 * heat.activations])
    with torch.no_grad(), HookManager(model) as hooks:
        scores = hooks.run_from("wrapped", doubled, x[:1])
    assert torch.allclose(scores, model.fc(doubled.relu().mean((2, 3))), atol=1e-6)
