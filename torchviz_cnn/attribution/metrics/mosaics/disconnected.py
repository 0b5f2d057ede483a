"""DiFull: mosaics whose cells cannot influence each other's scores, so that a faithful method puts nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from torchviz_cnn.attribution.metrics.images import Images
from torchviz_cnn.attribution.metrics.mosaics.choice import Mosaics, Truth
from torchviz_cnn.attribution.metrics.mosaics.game import CellMeasurement, maps_of, measured_cells, takes_several
from torchviz_cnn.attribution.metrics.parts import Method, method_of
from torchviz_cnn.core.names import unwrap
from torchviz_cnn.hooks.calls import rows_of
from torchviz_cnn.hooks.inputs import Output, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.hooks.recorder import only_tensor, with_tensor
from torchviz_cnn.scores.reader import Reader
from torchviz_cnn.scores.targets import predict
from torchviz_cnn.scores.trace import layer_of, trace

MOSAIC = "mosaic"
"""The layer of `Disconnected` in which the maps of all cells lie side by side."""


def difull(
    model: Model,
    x: Images,
    method: Method | str,
    *,
    layer: str | None = None,
    truth: Truth = None,
    n: int = 2,
    count: int = 40,
    threshold: float = 0.99,
    output: Output = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> CellMeasurement:
    """Measure which share of the positive evidence lies where it can be: on the one photo that the network was given.

    As `grid_pointing_game`, but the network runs on each cell of the mosaic by itself, and the scores of all cells
    stand side by side. The score of a class in its own cell does not depend on the other cells at all: a method that
    is faithful to the network puts nothing there, and its value is exactly 1. What is less shows how much a method
    invents, as Grad-CAM does, which weighs the maps of all cells by gradients of one. Where a method reads a layer, the
    maps of the cells lie side by side in it too. A method that hides parts of the input in patches, which lie across
    borders, does not reach 1.

    Args:
        model, x, method, truth, n, count, threshold, output, batch_size, seed, progress: as for
            `grid_pointing_game`.
        layer: the layer that is explained, for methods that take one; by default that of `grad_cam`.

    Returns:
        A CellMeasurement: 0..1, higher is better, and 1 for a faithful method.

    Raises:
        InputError, TargetError: as for `grid_pointing_game`.
        LayerError: for a layer that the network does not have, or that gives no maps; and for a method that reads
            layers inside the network, as FullGrad, which here run for each cell.

    Rao et al., arXiv 2205.10435, section 3.1.

    >>> model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(20 * torch.eye(4)[..., None, None])
    >>> x = torch.eye(4)[..., None, None].expand(4, 4, 8, 8)
    >>> difull(model, x, "saliency", truth=[0, 1, 2, 3], count=8).mean
    1.0
    """
    options = {"truth": truth, "n": n, "count": count, "threshold": threshold, "output": output, "size": "fit"}
    options |= {"batch_size": batch_size, "seed": seed, "progress": progress}
    mosaics = x if isinstance(x, Mosaics) else Mosaics.of(model, x, **options)  # type: ignore[arg-type]
    return disconnected(model, mosaics, method, layer=layer, output=output, progress=progress)


def disconnected(
    model: Model,
    mosaics: Mosaics,
    method: Method | str,
    *,
    layer: str | None = None,
    output: Output = None,
    progress: bool = False,
) -> CellMeasurement:
    """Measure one method on mosaics that are there already, whose cells are disconnected: see `difull`.

    Args:
        model, method, layer, output, progress: as for `difull`.
        mosaics: as `Mosaics.of` makes them.

    Returns:
        A CellMeasurement.
    """
    explain, several = method_of(method), takes_several(method)
    if isinstance(explain, partial):
        layer = layer or explain.keywords.get("layer")
    chosen = {"layer": MOSAIC} if "layer" in signature(explain).parameters else {}
    first = mosaics.input(model, 0, size="grow")
    outputs = predict(model, _apart(first, mosaics.n)[:1], output=output).shape[1]
    classes = mosaics.classes + outputs * torch.arange(mosaics.n**2)
    with _disconnected(model, mosaics, layer, output, as_layer=bool(chosen)) as wrapped:

        def maps(index: int) -> Tensor:
            x = mosaics.input(model, index, size="grow")
            return maps_of(partial(explain, wrapped, x, **chosen), classes[index], several)

        return measured_cells("difull", mosaics, maps, progress)


class Disconnected(nn.Module):
    """A network that runs on each of the n x n cells of its input alone, and gives the scores of all side by side.

    An input (B, C, n * H, n * W) gives (B, n * n * classes), those of the first cell first.
    """

    def __init__(self, network: nn.Module, n: int, output: Output = None) -> None:
        super().__init__()
        self.network, self.n, self.reader = network, n, Reader(output)
        self.mosaic = nn.Identity()
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        given = self.network(_apart(x, self.n))
        logits = self.reader.read(given, rows_of(given)).logits
        return logits.reshape(-1, self.n**2 * logits.shape[1])


@contextmanager
def _disconnected(
    model: Model, mosaics: Mosaics, layer: str | None, output: Output, *, as_layer: bool
) -> Iterator[Disconnected]:
    """A network that runs cell by cell; with `as_layer`, what a layer gives for them lies in one map on the way."""
    wrapped = Disconnected(unwrap(module_of(model)), mosaics.n, output)
    if not as_layer:
        yield wrapped
        return
    cell = _apart(mosaics.input(model, 0, size="grow"), mosaics.n)[:1]
    with prepared(model, cell, dims=(2,), output=output) as given:
        name = layer_of(given, layer)
        with trace(given, [name]) as run:
            layout = run.layouts[name]

    def through_the_mosaic(_: str, given: Any) -> Any:
        own = only_tensor(given)
        assert own is not None  # as the trace has read it
        cells = _apart(wrapped.mosaic(_together(layout.maps(own), mosaics.n)), mosaics.n)
        return with_tensor(given, layout.own(cells, own))

    with HookManager(wrapped.network) as hooks:
        hooks.on_forward(name, through_the_mosaic)
        yield wrapped


def _apart(mosaics: Tensor, n: int) -> Tensor:
    """The cells of mosaics (B, C, n * h, n * w), those of the first one first, row by row: (B * n * n, C, h, w)."""
    batch, channels, height, width = mosaics.shape
    cells = mosaics.reshape(batch, channels, n, height // n, n, width // n).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch * n * n, channels, height // n, width // n)


def _together(cells: Tensor, n: int) -> Tensor:
    """The mosaics of cells: the inverse of `_apart`."""
    count, channels, height, width = cells.shape
    mosaics = cells.reshape(count // n**2, n, n, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return mosaics.reshape(count // n**2, channels, n * height, n * width)
