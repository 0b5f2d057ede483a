"""Maps that stay in the layout a CPU's convolutions compute in, from an image to the end of a chain of convolutions.

oneDNN computes convolutions on maps in blocks of channels. PyTorch hands it maps in the usual order, so that each convolution
reorders what comes in and what goes out, and max pooling, in the usual order, runs slower than in blocks. Inside
`blocked_maps` the maps of a chain of convolutions, ReLUs and max pools stay in blocks, forward and backward. The
kernels, and with them the values, are the same.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from torchviz_cnn.hooks import HookManager
from torchviz_cnn.methods.layout import ordinary
from torchviz_cnn.names import named_layers

_KNOWN = ("torch.nn.", "torchvision.", "torchviz_cnn.")
_IMAGE_CHANNELS = 4
"""A chain begins at images: their copy into oneDNN's keeping is small beside what is gained."""
_LARGE = 2**20
"""Values in the first maps, of all images, from which on it is faster."""
_SMALL = 20480
"""Values of the maps of a single image up to which PyTorch may convolve them without oneDNN."""
_BOUND = 1e30
"""oneDNN's ReLU makes zero of NaN. Maps that could grow beyond this, on the way to infinity and NaN, leave the chain."""


@contextlib.contextmanager
def blocked_maps(model: nn.Module, hooks: HookManager, x: Tensor) -> Iterator[None]:
    """A block in which a lent model, about to run on images (B, C, H, W), keeps its maps as oneDNN has them, where that is
    faster: VGG-like networks, float32, on a CPU.

    Code of the user's never meets such a map: it lives inside modules of torch and torchvision that have no hooks but
    these, and is an ordinary tensor when it leaves them. Results are ordinary tensors.
    """
    available = torch.backends.mkldnn.is_available() and getattr(torch.backends.mkldnn, "enabled", True)  # type: ignore[no-untyped-call]
    places = list(_places(model, x)) if available and not _hooked_everywhere() else []
    if not places:
        yield
        return
    mode = _Chains()
    if places == [""]:
        mode.depth = 1
    else:
        hooks.around(places, mode.enter, mode.leave)
    with mode:
        yield


def _places(model: nn.Module, x: Tensor) -> Iterator[str]:
    """The largest parts of a model (`""`: all of it) that run known code alone, and in which a chain pays."""
    modules = list(model.modules())
    if not any(map(_links, modules)):
        return  # in a fraction of the time
    known: dict[nn.Module, bool] = {}
    for module in reversed(modules):  # children come before what holds them
        known[module] = _plain(module) and all(known.get(child, False) for child in module.children())
    inside: set[nn.Module] = set()
    for name, module in (("", model), *named_layers(model).items()):
        if known.get(module) and module not in inside:
            inside.update(module.modules())
            if _pays(module, x):
                yield name


def _pays(place: nn.Module, x: Tensor) -> bool:
    """Whether at least half of the convolutions follow another, with nothing but ReLUs and pools between, and the maps
    of the first, on images, are large: what runs here costs some time for every operation."""
    convolutions = [module for module in place.modules() if isinstance(module, nn.Conv2d)]
    links = sum(map(_links, place.modules()))
    if not links or 2 * links < len(convolutions) or x.ndim != 4:
        return False
    first = convolutions[0]
    if len(first.stride) != 2 or min(first.stride) < 1:
        return False
    values = len(x) * first.out_channels * math.prod(x.shape[2 + i] // first.stride[i] for i in (0, 1))
    return first.in_channels <= _IMAGE_CHANNELS and first.weight.device.type == "cpu" and values >= _LARGE


def _links(module: nn.Module) -> int:
    """How many convolutions of a sequence follow another, with nothing but ReLUs and pools between."""
    found = 0
    open_ = False
    for child in module._modules.values() if isinstance(module, nn.Sequential) else ():
        if isinstance(child, nn.Conv2d):
            found += open_
            open_ = True
        elif open_:
            open_ = isinstance(child, (nn.ReLU, nn.MaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity))
    return found


def _plain(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    patched = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return type(module).__module__.startswith(_KNOWN) and not any(hooks) and not patched


def _hooked_everywhere() -> bool:
    kinds = (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
    return any(getattr(nn_module, kind, None) for kind in kinds)


class _Chains(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Begins a chain where an image meets a convolution inside one of the places."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.depth = 0
        """How many of the places are running."""
        self._thread = threading.get_ident()

    def enter(self, name: str) -> None:
        self.depth += threading.get_ident() == self._thread

    def leave(self, name: str, output: Any) -> Any:
        self.depth -= threading.get_ident() == self._thread
        return tree_map(_ordinary_tensor, output)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.depth and func is _CONVOLUTION and not kwargs:
            begun = _begin(*args)
            if begun is not None:
                return begun
        return func(*args, **(kwargs or {}))


@dataclass
class _Cell:
    """What maps hold: one for all that share memory."""

    maps: Tensor
    """In blocks or, once something asked for that, in the usual order."""
    bound: float
    """No value of a map is further from 0; of a gradient, the sum of all is not."""
    gains: dict[int, float] = field(default_factory=dict)
    """How much each convolution that read these maps can enlarge them; and, the sum, the gradients that come back."""


class BlockedMaps(Tensor):
    """Maps (B, C, H, W) in float32 that oneDNN keeps. To everything else it is a tensor like any other: what is no part of
    a chain finds it in the usual order."""

    cell: _Cell

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, cell: _Cell) -> BlockedMaps:
        made: BlockedMaps = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, cell.maps.shape, dtype=torch.float32, device=torch.device("cpu")
        )
        made.cell = cell
        return made

    def usual(self) -> Tensor:
        """The maps in the usual order, from now on: views of it and writes into it are this tensor's."""
        if self.cell.maps.is_mkldnn:
            self.cell.maps = self.cell.maps.to_dense()
        return self.cell.maps

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _IN_BLOCKS and not any(value is not None for value in (kwargs or {}).values()):
            try:
                found = _IN_BLOCKS[func](*args)
            except (RuntimeError, ValueError):  # oneDNN has no kernel for it
                found = None
            if found is not None:
                return found
        return _as_usual(func, args, kwargs or {})


class _Indices(Tensor):
    """Where a max pool in blocks found its maxima: oneDNN knows that by itself when it goes back, so they are made only for
    those who ask."""

    pooled: tuple[Tensor, Tensor, tuple[Any, ...]]
    """Its input and output in blocks, and its arguments."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, pooled: tuple[Tensor, Tensor, tuple[Any, ...]]) -> _Indices:
        made: _Indices = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, pooled[1].shape, dtype=torch.int64, device=torch.device("cpu")
        )
        made.pooled = pooled
        return made

    def usual(self) -> Tensor:
        source, _, options = self.pooled
        indices: Tensor = torch.ops.aten.max_pool2d_with_indices(source.to_dense(), *options)[1]
        return indices

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return BlockedMaps.__torch_dispatch__(func, types, args, kwargs)


class _Leave(torch.autograd.Function):
    """An ordinary tensor of its own, for code that is not known."""

    @staticmethod
    def forward(ctx: Any, maps: BlockedMaps) -> Tensor:
        held = maps.cell.maps
        return held.to_dense() if held.is_mkldnn else held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _ordinary_tensor(value: Any) -> Any:
    if isinstance(value, _Indices):
        return value.usual()
    return _Leave.apply(value) if isinstance(value, BlockedMaps) else value  # type: ignore[no-untyped-call]


def _as_usual(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run any operation on the maps in the usual order. One that writes into them gives them back."""
    owners: dict[int, Tensor] = {}

    def unwrap(value: Any) -> Any:
        if not isinstance(value, (BlockedMaps, _Indices)):
            return value
        usual = value.usual()
        owners[id(usual)] = value
        return usual

    found = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    return tree_map(lambda value: owners.get(id(value), value), found) if func._schema.is_mutable else found


def _begin(x: Tensor, *convolution: Any) -> BlockedMaps | None:
    if type(x) is not Tensor or x.ndim != 4 or x.shape[1] > _IMAGE_CHANNELS or not _ordinary(x):
        return None
    return _convolve(BlockedMaps(_Cell(x.to_mkldnn(), float(x.abs().max()))), *convolution)


def _convolve(
    x: Any, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool, _: Any,
    groups: int,
) -> BlockedMaps | None:  # fmt: skip
    if not _held(x) or transposed or weight.ndim != 4 or not _ordinary(weight):
        return None
    pointwise = weight.shape[2:] == (1, 1) and max(stride) == max(dilation) == 1
    small = len(x) == 1 and x.numel() <= _SMALL
    if small or (pointwise and torch.get_num_threads() == 1 and len(x) < 16):
        return None  # PyTorch leaves these to another kernel than oneDNN's, which rounds in another way
    gain = x.cell.gains[id(weight)] = _gain(weight)
    bound = x.cell.bound * gain + (0.0 if bias is None else float(bias.abs().max()))
    if not bound < _BOUND:
        return None
    return BlockedMaps(
        _Cell(_aten.mkldnn_convolution(x.cell.maps, weight, bias, padding, stride, dilation, groups), bound)
    )


def _convolve_back(
    gradient: Any, x: Any, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, mask: list[bool],
) -> tuple[Tensor, None, None] | None:  # fmt: skip
    if list(mask) != [True, False, False] or transposed or gradient.ndim != 4 or len(gradient) != len(x):
        return None
    if isinstance(x, BlockedMaps):
        gain, held = x.cell.gains.get(id(weight), math.inf), x.cell.maps
    elif _held(gradient) and _ordinary(x) and _ordinary(weight) and x.shape[1] <= _IMAGE_CHANNELS:
        gain, held = _gain(weight), x
    else:
        return None
    taken = _taken(gradient)
    if taken is None or not (bound := taken.bound * gain) < _BOUND:
        return None
    source = held if held.is_mkldnn else held.to_mkldnn()
    found = _aten.convolution_backward(
        taken.maps, source, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask
    )[0]
    # The gradient of an ordinary tensor is one.
    return (BlockedMaps(_Cell(found, bound)) if isinstance(x, BlockedMaps) else found.to_dense()), None, None


def _relu(x: Any) -> BlockedMaps | None:
    return BlockedMaps(_Cell(_aten.relu(x.cell.maps), x.cell.bound)) if _held(x) else None


def _relu_(x: Any) -> BlockedMaps | None:
    if not _held(x):
        return None
    _aten.relu_(x.cell.maps)
    return x  # type: ignore[no-any-return]


def _relu_back(gradient: Any, output: Any, threshold: float) -> BlockedMaps | None:
    if not _held(output) or threshold != 0 or gradient.shape != output.shape:
        return None
    taken = _taken(gradient)
    if taken is None:
        return None
    return BlockedMaps(_Cell(_aten.threshold_backward(taken.maps, output.cell.maps, 0), taken.bound))


def _pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1), ceil: bool = False
) -> tuple[BlockedMaps, _Indices] | None:
    inside = all(0 <= 2 * p <= k for p, k in zip((padding[0], padding[-1]), (kernel[0], kernel[-1]), strict=True))
    if not _held(x) or not inside or max(dilation) != 1 or min(stride or (1,)) < 1:
        return None
    options = (kernel, stride, padding, dilation, ceil)
    with torch.enable_grad():  # or oneDNN does not keep what going back takes
        out = _aten.mkldnn_max_pool2d(x.cell.maps.detach().requires_grad_(), *options).detach()
    return BlockedMaps(_Cell(out, x.cell.bound)), _Indices((x.cell.maps, out, options))


def _pool_back(
    gradient: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Any
) -> BlockedMaps | None:
    if not isinstance(indices, _Indices) or not isinstance(x, BlockedMaps) or gradient.shape != indices.shape:
        return None
    taken = _taken(gradient)
    if taken is None:
        return None
    source, out, options = indices.pooled
    return BlockedMaps(_Cell(_aten.mkldnn_max_pool2d_backward(taken.maps, out, source, *options), taken.bound))


def _share(x: Any) -> BlockedMaps | None:
    return BlockedMaps(x.cell) if isinstance(x, BlockedMaps) else None


def _clone(x: Any) -> BlockedMaps | None:
    return BlockedMaps(replace(x.cell, maps=x.cell.maps.clone(), gains={})) if _held(x) else None


def _held(x: Any) -> bool:
    return isinstance(x, BlockedMaps) and x.cell.maps.is_mkldnn


def _taken(gradient: Tensor) -> _Cell | None:
    """A gradient in blocks, or None where it cannot be."""
    if isinstance(gradient, BlockedMaps):
        if gradient.cell.maps.is_mkldnn:
            return gradient.cell
        gradient = gradient.cell.maps
    bound = float(gradient.abs().sum()) if _ordinary(gradient) else _BOUND
    return _Cell(gradient.to_mkldnn(), bound) if bound < _BOUND else None


def _gain(weight: Tensor) -> float:
    return float(weight.flatten(1).abs().sum(1).max())


def _ordinary(x: Tensor) -> bool:
    return ordinary(x) and x.is_contiguous()


_aten = torch.ops.aten
_CONVOLUTION = torch.ops.aten.convolution.default

_IN_BLOCKS: dict[Any, Callable[..., Any]] = {
    _CONVOLUTION: _convolve,
    torch.ops.aten.convolution_backward.default: _convolve_back,
    torch.ops.aten.relu.default: _relu,
    torch.ops.aten.relu_.default: _relu_,
    torch.ops.aten.threshold_backward.default: _relu_back,
    torch.ops.aten.max_pool2d_with_indices.default: _pool,
    torch.ops.aten.max_pool2d_with_indices_backward.default: _pool_back,
    torch.ops.aten.detach.default: _share,
    torch.ops.aten.alias.default: _share,
    torch.ops.aten.clone.default: _clone,
}
"""What a chain is made of. Each gives None where it is not for oneDNN."""
