"""Which layers a network has, and which of them a method takes where none is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchviz_cnn.core.errors import LayerError, ModelError
from torchviz_cnn.core.graph import graph_nodes
from torchviz_cnn.core.names import LayerPattern, named_layers, one_or_several, resolve, unwrap
from torchviz_cnn.hooks.calls import Inputs
from torchviz_cnn.hooks.inputs import LayoutName, input_for
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model, module_of
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.layout import CONVOLUTIONS, Layout, Layouts, changes_size, is_permutation

POOLINGS: tuple[type[nn.Module], ...] = (
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
    *(nn.modules.pooling._LPPoolNd, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
)
LayerTypes = type[nn.Module] | tuple[type[nn.Module], ...]
Layers = LayerPattern | Sequence[LayerPattern] | None
"""Names, glob patterns and module types; None for those that the method takes by default."""


def layer_names(
    model: Model, images: Tensor | None = None, *, types: LayerTypes = (*CONVOLUTIONS, *POOLINGS)
) -> list[str]:
    """List the names of the convolution and pooling layers, as defined or, given images, as they run.

    Args:
        model: a module or a Network.
        images: a batch (B, C, H, W); the model then runs once: layers that it does not reach are left out, and a
            layer that runs several times is listed as `pool`, `pool#1`, ...
        types: the kinds of layers to list; `torch.nn.Module` lists every layer there is.

    Returns:
        The names, in the order of definition or of running.

    Raises:
        ModelError: for what is not a model.

    >>> layer_names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)))
    ['0', '2']
    """
    module = module_of(model)
    names = [name for name, layer in named_layers(module).items() if isinstance(layer, types)]
    if images is None:
        return names
    ran: list[str] = []
    with untouched(module) as frozen:
        run_with(frozen, images, names, lambda name, output: ran.append(name))
    return ran


def chosen_patterns(
    model: nn.Module, layers: Layers, kinds: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *POOLINGS)
) -> list[LayerPattern]:
    """The layers that were asked for as a list; by default the kinds of layers that the model has of these.

    Raises LayerError where no layer was asked for, or the model has none of the kinds.
    """
    hint = "layer_names(model, types=torch.nn.Module) lists its layers"
    if layers is None:
        present = [kind for kind in kinds if any(isinstance(m, kind) for m in named_layers(model).values())]
        if not present:
            what = "convolution or pooling layer" if set(kinds) & set(POOLINGS) else "convolution"
            raise LayerError(f"{type(model).__name__} has no {what}; {hint}")
        return list(present)
    patterns = one_or_several(layers)
    if not patterns:
        raise LayerError(f"{type(model).__name__} was asked for no layer at all; {hint}")
    return patterns


def convolutions(model: Model, x: Tensor, *, first: bool = False) -> list[str]:
    """Names of the convolutions in the order in which an input (1, C, H, W) meets them, each once.

    With `first`, only the first at each size of the map, the largest first: VGG16's first of each block.
    """
    module = module_of(model)
    names = [name for name, layer in named_layers(module).items() if isinstance(layer, CONVOLUTIONS)]
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        sizes.setdefault(name.partition("#")[0], tuple(output.shape[2:]))

    try:
        with untouched(module) as frozen:
            run_with(frozen, x, names, note)
    except RuntimeError as error:
        shape = " x ".join(map(str, x.shape[1:]))
        raise ModelError(f"{type(unwrap(module)).__name__} does not run on an image of {shape}: {error}") from error
    if not sizes:
        raise LayerError(f"{type(unwrap(module)).__name__} runs no convolution on this input; name layers")
    if not first:
        return list(sizes)
    return list({size: name for name, size in reversed(sizes.items())}.values())[::-1]


def explained_layer(
    model: nn.Module,
    x: Tensor,
    read: Callable[[Any], Tensor] | None = None,
    *,
    pooled: bool = False,
    reached: bool = False,
    inputs: Callable[[Tensor], Inputs] | None = None,
    layout: LayoutName = None,
) -> str:
    """The layer that a class heatmap is of by default: the last with the last convolution's resolution.

    That is the map of the last convolution larger than one pixel, under the outermost name, after the normalisation,
    the sums or concatenations and the activation that follow it, and before any pooling: `features.29` in VGG16,
    `layer4` in a ResNet, `features` in a DenseNet. Layers that the model's scores do not depend on are left out, and,
    where there are others, maps as large as the image. Where that map is in one of several branches of a block that
    gives another size, what comes before the block is taken. With `pooled`, the last layer with a map larger than one
    pixel, whatever gives it. Where tokens or maps with their channels last follow, it is the last of these on whose
    places the scores depend: the normalisation before the last attention of a ViT that reads its class token. With
    `reached`, layers are left out to which no gradient comes back, as from a box of another scale, or to one channel
    alone, as to the maps of scores of a segmentation, which Grad-CAM would show as they are. Runs the model, which is
    frozen (see `untouched`), on `x` once, with what `inputs` makes of it; `read` gives the scores in its output, and
    `layout` says how what layers give is read. Raises LayerError where there is no such layer.
    """
    calls = _SpatialCalls(model, x, read, inputs or (lambda image: image), layout)
    first = calls.with_channels_first(reached)
    if not pooled:
        first = [call for call in first if call.size != tuple(x.shape[2:])] or first
    explained: _SpatialCall | None = None
    for call in first:
        same = explained is not None and call.size == explained.size and not isinstance(call.layer, POOLINGS)
        if pooled or same or isinstance(call.layer, CONVOLUTIONS) or is_permutation(call.layer):
            explained = call
    last = calls.last_with_channels_last(explained)
    if last is not None:
        return last.name
    if explained is None:
        sides = {1: "(B, C, l)", 2: "(B, C, h, w)", 3: "(B, C, d, h, w)"}[x.ndim - 2]
        raise LayerError(
            f"{type(unwrap(model)).__name__} has no layer with a spatial map {sides} that its scores depend on, "
            "on this input; layer=, as grad_cam has it, names one"
        )
    if pooled:
        return explained.name
    of_size = [call for call in first if call.size == explained.size and not isinstance(call.layer, POOLINGS)]
    return _before_branches(of_size[: of_size.index(explained) + 1], calls.is_bypassed)


def _before_branches(calls: Sequence[_SpatialCall], is_bypassed: Callable[[_SpatialCall], bool]) -> str:
    """The last of the calls; where it is one branch of a block, the last before the block, if nothing bypasses that."""
    others = list(calls)
    while others and is_bypassed(others[-1]):
        block = others[-1].name.partition("#")[0].rpartition(".")[0]
        others = [call for call in others if block and not call.name.startswith(f"{block}.")]
    return (others or calls)[-1].name


class _SpatialCall(NamedTuple):
    """A call of a layer that gives maps of more than one place, of as many dimensions as the input."""

    name: str
    layer: nn.Module
    layout: Layout
    size: tuple[int, ...]
    node: Any
    """The graph node that made the maps; None where they do not depend on the input."""
    edge: Any
    """The edge of the graph by which gradients come back to the maps; None with the node."""


class _SpatialCalls:
    """The calls with maps in one forward pass, in execution order, and which of them the scores depend on."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        read: Callable[[Any], Tensor] | None,
        inputs: Callable[[Tensor], Inputs],
        layout: LayoutName,
    ) -> None:
        layers, known = named_layers(model), Layouts(model, x, layout)
        self._calls = list[_SpatialCall]()

        def note(name: str, output: Any) -> None:
            layer = layers[resolve(model, layers, name).name]
            if changes_size(layer):
                known.note(name, output)
            try:
                tensor = known.tensor(name, output)
                own = known.of(name, tensor)
            except LayerError:
                return
            size = tuple(own.maps(tensor).shape[2:])
            if own.dims == x.ndim - 2 and any(side > 1 for side in size):
                edge = torch.autograd.graph.get_gradient_edge(tensor) if tensor.grad_fn is not None else None
                self._calls.append(_SpatialCall(name, layer, own, size, tensor.grad_fn, edge))

        with HookManager(model) as hooks:
            hooks.on_forward([f"{name}#*" for name in layers], note)
            image = x.detach().requires_grad_().clone()
            self._start = image.grad_fn
            output = hooks.run_on(inputs(image), stop_early=False)
            self._scores = output if read is None else read(output)
        self._nodes = set(graph_nodes(self._scores))

    def with_channels_first(self, reached: bool) -> list[_SpatialCall]:
        """The calls with maps (B, C, *S) that the scores depend on; all such calls where no dependence shows.

        With `reached`, those with a gradient in several channels or, without any such, those with one.
        """
        calls = [call for call in self._calls if not call.layout.last]
        depending = [call for call in calls if call.node in self._nodes] or calls
        if not reached or any(call.edge is None for call in depending):
            return depending
        gradients = zip(depending, self._gradients(depending), strict=True)
        counts = {call: 0 if one is None else int(one.flatten(2).any(2).any(0).sum()) for call, one in gradients}
        several = [call for call, count in counts.items() if count > 1]
        return several or [call for call, count in counts.items() if count] or depending

    def last_with_channels_last(self, behind: _SpatialCall | None) -> _SpatialCall | None:
        """The last call with tokens or maps (B, *S, C), behind another call, on whose places the scores depend.

        A linear layer in a block that gives no such maps itself, as those of an attention's keys and values, is left
        out.
        """
        later = self._calls[0 if behind is None else self._calls.index(behind) + 1 :]
        for call in later[::-1]:
            inner = isinstance(call.layer, nn.Linear) and "." in call.name
            if call.layout.last and call.node in self._nodes and not inner and self._reaches_places(call):
                return call
        return None

    def is_bypassed(self, call: _SpatialCall) -> bool:
        """Whether the scores depend on the input by a path around a call, as a shortcut is."""
        return self._start in graph_nodes(self._scores, but_not_through=call.node)

    def _reaches_places(self, call: _SpatialCall) -> bool:
        if not call.layout.grid:
            return True
        (gradient,) = self._gradients([call])
        return gradient is not None and bool(call.layout.maps(gradient).any())

    def _gradients(self, calls: Sequence[_SpatialCall]) -> Sequence[Tensor | None]:
        """The gradients of the highest score with respect to what calls gave."""
        tensors = [part for part in tree_leaves(self._scores) if isinstance(part, Tensor) and part.requires_grad]
        highest = torch.stack([part.float().max() for part in tensors]).sum()
        return torch.autograd.grad(highest, [call.edge for call in calls], retain_graph=True, allow_unused=True)


def input_channels(model: nn.Module) -> int:
    """How many channels the first convolution takes; 3 where there is none."""
    convolutions = (m for m in named_layers(model).values() if isinstance(m, CONVOLUTIONS))
    first = next(convolutions, None)
    return int(first.in_channels) if first is not None else 3  # type: ignore[arg-type]


def run_with(model: nn.Module, x: Tensor, names: Iterable[str], hook: Callable[[str, Any], None]) -> None:
    """Run a frozen model to its end without gradients, with a hook on every call of these layers."""
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward([f"{name}#*" for name in names], hook)
        hooks.run(input_for(model, x), stop_early=False)
