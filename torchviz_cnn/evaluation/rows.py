"""The rows of the table: methods, at layers where they look at one, and two references that know nothing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchviz_cnn.attribution.cam.heatmap import Heatmap
from torchviz_cnn.attribution.methods import all_methods, methods_of
from torchviz_cnn.attribution.metrics.parts import REFUSALS, Method, at_size
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import EmptyMapWarning, InputError, NotFiniteError, kind_of, one_line
from torchviz_cnn.core.names import EVERY_CALL, LayerPattern, expand, named_layers, one_or_several
from torchviz_cnn.hooks.inputs import Output
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.scores.targets import Target

Methods = str | Method | Sequence[Any] | Mapping[str, Any] | None
"""Names of methods, `"all"`, a mapping from a name of yours to a function, or a list of these."""

QUICK = (
    "grad_cam",
    "hires_cam",
    "layer_cam",
    "grad_cam_plus_plus",
    "competitive_cam",
    "saliency",
    "input_x_gradient",
    "guided",
    "guided_grad_cam",
    "full_grad",
)
"""The methods that are judged by default: those that take a few passes through the network."""

CENTRE = "centre"
RANDOM = "random"
_GRID = 7
"""Places a side of a random map: as few as the last maps of many networks have."""


@dataclass(frozen=True)
class Row:
    """A method, at a layer where it looks at one."""

    method: str
    """Its name."""
    title: str
    """As papers write it, with the layer where several are compared."""
    explain: Method
    """(model, x, target=...) -> maps."""
    layer: str | None = None
    reference: bool = False
    """Whether it knows nothing of the network, and the methods are compared with it."""
    refused: str | None = None
    """Why it cannot explain this network."""

    @property
    def key(self) -> str:
        """Its name and layer in one word."""
        return self.method if self.layer is None else f"{self.method}@{self.layer}"


def centre(model: Model, x: Tensor, target: Target = None, output: Output = None) -> Tensor:
    """Give a blob in the middle, whatever the photo: a Gaussian with a deviation of a quarter of each side (B, H, W).

    >>> centre(torch.nn.ReLU(), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 8])
    """
    down, across = (torch.linspace(-2, 2, side) for side in x.shape[2:])
    return _for_all(torch.exp(-0.5 * (down[:, None] ** 2 + across**2)).expand(len(x), -1, -1), target)


def random(model: Model, x: Tensor, target: Target = None, output: Output = None) -> Tensor:
    """Give random numbers at 7 x 7 places, enlarged to the photo (B, H, W); of the same photo always the same ones.

    >>> random(torch.nn.ReLU(), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 8])
    """
    maps = []
    for image in x.detach().float().cpu():
        seed = int.from_bytes(hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:7], "big")
        maps.append(torch.rand(1, _GRID, _GRID, generator=torch.Generator().manual_seed(seed)))
    return _for_all(at_size(torch.stack(maps), tuple(x.shape[2:]))[:, 0], target)


def _for_all(maps: Tensor, target: Target) -> Tensor:
    """The same map (B, H, W) for all classes, where several are asked for: (B, K, H, W)."""
    several = isinstance(target, Tensor) and target.ndim == 2
    return (maps[:, None].expand(-1, target.shape[1], -1, -1) if several else maps).contiguous()  # type: ignore[union-attr]


REFERENCES = (
    Row(CENTRE, "Centre (reference)", centre, reference=True),
    Row(RANDOM, "Random (reference)", random, reference=True),
)


def rows_of(
    model: Model,
    methods: Methods,
    layers: LayerPattern | Sequence[LayerPattern] | None,
    output: Output = None,
) -> list[Row]:
    """The rows that are asked for. Raises InputError for what is no method, LayerError for what is no layer."""
    if not (methods is None or isinstance(methods, (str, Sequence, Mapping)) or callable(methods)):
        raise InputError(f"methods are names, functions or a mapping of these, not {kind_of(methods)}")
    chosen = _chosen(methods)
    known = all_methods()
    names: list[str | None] = [None]
    if layers is not None:
        module = module_of(model)
        patterns = one_or_several(layers)
        if not patterns:
            raise InputError("layers is empty: name at least one, or leave it out")
        names = [str(call).removesuffix(f"#{EVERY_CALL}") for call in expand(module, named_layers(module), patterns)]
    rows = []
    for name, method in chosen.items():
        if callable(method):
            rows.append(Row(name, name, method))
            continue
        row, at = known[method], names if "layer" in known[method].options else [None]
        for layer in at:
            explain = row.explain if layer is None else partial(row.explain, layer=layer)
            title = row.title if layer is None or len(at) == 1 else f"{row.title} at {layer}"
            rows.append(Row(name, title, explain, layer))
    rows = [*rows, *REFERENCES]
    return rows if output is None else [replace(row, explain=partial(row.explain, output=output)) for row in rows]


def _chosen(methods: Methods) -> dict[str, Any]:
    """A method's name in the table, or a function, by the name it is given here."""
    known = all_methods()
    if methods is None:
        return {name: name for name in QUICK}
    chosen: dict[str, Any] = {}
    for one in [methods] if isinstance(methods, (str, Mapping)) or callable(methods) else list(methods):
        if isinstance(one, str) and one == "all":
            chosen |= {name: name for name in known}
        elif isinstance(one, Mapping):
            chosen |= {str(name): _method(method, known) for name, method in one.items()}
        elif callable(one):
            chosen[getattr(one, "__name__", kind_of(one))] = one
        else:
            chosen[checks.one_of("method", one, known)] = one
    taken = sorted({CENTRE, RANDOM} & set(chosen))
    if taken:
        raise InputError(f"{taken[0]!r} is the name of a reference, which is always there: name the method otherwise")
    if not chosen:
        raise InputError("methods is empty: name at least one, or leave it out")
    return chosen


def _method(method: Any, known: Iterable[str]) -> Any:
    return method if callable(method) else checks.one_of("method", method, known)


def probed(model: Model, rows: Sequence[Row], x: Tensor, target: Target) -> list[Row]:
    """The rows after a run on one image, which tells their layer, or why they refuse the network.

    Raises InputError where no method is left.
    """
    after = []
    for row in rows:
        try:
            with quiet():
                maps = row.explain(model, x, target=target)
        except NotFiniteError:  # of another photo the map may be finite
            after.append(row)
            continue
        except REFUSALS as error:
            after.append(replace(row, refused=one_line(error)))
            continue
        if isinstance(maps, Heatmap) and row.layer is None:  # named from here on, so that it is not looked for again
            own = row.explain if row.method not in methods_of("cam") else partial(row.explain, layer=maps.layer)
            row = replace(row, layer=maps.layer, explain=own)
        after.append(row)
    if all(row.refused for row in after if not row.reference):
        first = next(row for row in after if row.refused)
        raise InputError(f"no method is left that explains this network: {first.method}: {first.refused}")
    return after


class quiet(warnings.catch_warnings):
    """Say nothing of maps that are all zeros: the table has the reason."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", EmptyMapWarning)


__all__ = ["CENTRE", "QUICK", "RANDOM", "REFERENCES", "Methods", "Row", "probed", "quiet", "rows_of"]
