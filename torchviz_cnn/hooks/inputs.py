"""What a method is given, a model or a Network, a tensor or photos, made ready for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torchviz_cnn.core.errors import InputError, ModelError, NotFiniteError, TorchvizWarning, counted, kind_of
from torchviz_cnn.core.names import all_modules
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.calls import OF_FRAMES, SEVERAL_INPUTS
from torchviz_cnn.hooks.network import Model, Network
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.media.datasets.photo_folder import preprocess_of_transform
from torchviz_cnn.media.origin import Origin, Photo, inputs_and_pictures, is_photo

Input = Tensor | Photo | Sequence[Photo] | tuple[Any, ...] | Mapping[str, Any]
"""What every function takes as its `x`: a batch (B, C, H, W) on the model's scale or, with a Network, photos. Class
heatmaps and gradients also take signals (B, C, L), and volumes or videos (B, C, D, H, W). Of a model of several inputs
a tuple, or a dict for keyword inputs, of which a tensor of as many rows is a batch too."""
Output = str | int | Callable[[Any], Any] | None
"""What of a model's output is explained: a key, an index or the name of an attribute, also several with dots in between
(`"heads.0.logits"`), or a function that picks the tensor; None where the output is that of classes already."""
Wrt = str | int | None
"""Which of several inputs is explained: an index or a key; None for the first batch of images."""
LayoutName = Literal["channels_first", "channels_last"] | tuple[int, ...] | None
"""How layers' tensors are read: with their channels first or last, or as tokens of this grid; None: recognised."""


@dataclass(frozen=True, eq=False)
class Given:
    """A model that is frozen for the length of a block, a batch for it, and where the batch comes from."""

    model: nn.Module
    x: Tensor
    """(B, C, H, W), a copy on the model's device and in its dtype; of several inputs, the one that is explained."""
    origin: Origin
    output: Output = None
    """What of the model's output is explained."""
    others: tuple[Any, ...] | dict[str, Any] | None = None
    """The other inputs of a model of several, copies too, with `x` in its place left out (None)."""
    wrt: str | int = 0
    """Which of the inputs `x` is."""
    layout: LayoutName = None
    """How layers' tensors are read."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """The spatial sides of the batch: (H, W) of images, (L,) of signals, (D, H, W) of volumes and videos."""
        return tuple(self.x.shape[2:])

    def inputs(self, x: Tensor) -> Tensor | tuple[Any, ...] | dict[str, Any]:
        """What the model is called with, where `x` takes the place of the batch; the other inputs are copies."""
        if self.others is None:
            return x
        copies = tree_map_only(Tensor, Tensor.clone, self.others)
        if isinstance(copies, dict):
            return {**copies, self.wrt: x}
        return tuple(x if place == self.wrt else part for place, part in enumerate(copies))

    def of_images(self, images: Tensor | Sequence[int], x: Tensor) -> Given:
        """The same for other images: `x` in place of the batch, and of the other inputs the rows that belong to it.

        `images` says for each row of `x` which image of the batch it is made from.
        """
        rows = torch.as_tensor(images, device=self.x.device)

        def own_rows(part: Tensor) -> Tensor:
            return part[rows] if part.ndim and len(part) == len(self.x) else part

        others = tree_map_only(Tensor, own_rows, self.others)
        return replace(self, x=x, others=others)


@contextmanager
def prepared(
    model: Model,
    x: Input,
    *,
    images: bool = True,
    dims: Sequence[int] = (1, 2, 3),
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Iterator[Given]:
    """Freeze a model (see `untouched`) and make a batch from what was given: the way in of every method.

    Args:
        model: a module, or a Network, which says how photos are prepared and what the classes are called.
        x: a batch (B, C, H, W) on the model's scale or, with a Network, a photo or several; a tuple or dict of the
            inputs of a model of several.
        images: whether the batch must be images, or the like, of finite numbers.
        dims: how many spatial dimensions these may have.
        output: what of the model's output is explained.
        wrt: which of several inputs the batch is.
        layout: how layers' tensors are read.

    Raises:
        ModelError: for a model that cannot be explained.
        InputError: for a batch of another shape or kind, and for photos without a Network.
        ImageError: for a photo that cannot be read.
    """
    others: Any = None
    place: str | int = 0
    if several_inputs(x):
        others, place, x = _chosen_input(x, wrt)
    elif wrt is not None:
        raise InputError(f"wrt={wrt!r} chooses one of several inputs, and the model is given one alone")
    batch, origin = batch_of(model, x)
    with untouched(model) as module:
        if images:
            _require_images(batch, module, dims)
        if isinstance(batch, Tensor) and batch.ndim and len(batch) > 1:
            warn_of_batch_statistics(module)
        others = tree_map_only(Tensor, lambda part: input_for(module, part), others)
        yield Given(module, input_for(module, batch), origin, output, others, place, layout)


def several_inputs(x: Any) -> bool:
    """Whether what was given is the inputs of a model of several: a tuple or dict that holds a tensor of numbers."""
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else ()
    return any(isinstance(part, Tensor) for part in parts) and not (isinstance(x, tuple) and all(map(is_photo, x)))


def _chosen_input(x: Any, wrt: Wrt) -> tuple[Any, str | int, Any]:
    """The other inputs, which one is explained, and that one. Raises InputError for one that is not there."""
    parts = dict(x) if isinstance(x, Mapping) else dict(enumerate(x))
    if isinstance(wrt, int) and wrt < 0 and len(parts) + wrt in parts:
        wrt += len(parts)
    batches = [place for place, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()]
    images = [place for place in batches if parts[place].ndim > 2]
    place = wrt if wrt is not None else next(iter(images or batches), None)
    if place not in batches or type(place) not in (int, str):
        listed = ", ".join(map(repr, batches)) or "none"
        raise InputError(f"wrt={place!r} is none of the inputs of floating point: {listed}")
    others = {name: None if name == place else part for name, part in parts.items()}
    return (others if isinstance(x, Mapping) else tuple(others.values())), place, parts[place]


def batch_of(model: Model, x: Any) -> tuple[Tensor, Origin]:
    """The batch that was given, or that is made from the photos given, and where it comes from."""
    categories = model.categories if isinstance(model, Network) else None
    known = Origin(None, preprocess_of_transform(model.preprocess) if isinstance(model, Network) else None, categories)
    if isinstance(x, Tensor) and not (isinstance(model, Network) and is_photo(x)):
        return x, known
    several = isinstance(x, (list, tuple)) and len(x) > 0 and all(map(is_photo, x))
    if not several and not is_photo(x):
        tensors = isinstance(x, list) and any(isinstance(part, Tensor) for part in x)
        hint = f"; {SEVERAL_INPUTS}" if tensors else ""
        raise InputError(f"the input is one tensor (B, C, H, W), or photos (with a Network), not {_described(x)}{hint}")
    if not isinstance(model, Network):
        raise InputError(
            "how photos are prepared for a plain module is not known: give a tensor (B, C, H, W), or a Network, as "
            "load_model or Network(model, Preprocess(...)) make it"
        )
    batch, photos = inputs_and_pictures(x, model.preprocess)
    return batch.to(working_dtype(model.model)), Origin(photos, known.preprocess, categories)


def input_for(model: nn.Module, x: Tensor) -> Tensor:
    """A copy of a batch on the model's device and in its dtype, so that nothing can write into the caller's.

    Raises InputError for what is not a tensor, or has no images in it.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"the input is a tensor of shape (B, C, H, W), not {kind_of(x)}")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"the input of shape {tuple(x.shape)} has nothing in it")
    if x.dtype == torch.uint8 and not any(isinstance(module, nn.Embedding) for module in model.modules()):
        raise InputError(
            "the input is uint8; networks take floating point: preprocess(photo) gives it, or x.float() / 255"
        )
    floating = floating_parameters(model)
    if not floating:
        return x.detach().clone()
    if floating[0].is_meta:
        raise ModelError(f"{type(model).__name__} is on the meta device, where its weights have no values: load them")
    # A network of several precisions takes its input in one of them; which, its caller knows.
    as_given = not x.is_floating_point() or x.dtype in {p.dtype for p in floating}
    return x.detach().to(floating[0].device, x.dtype if as_given else working_dtype(model), copy=True)


def floating_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that are of floating point, in the order of its modules."""
    all_of_them = (p for module in all_modules(model).values() for p in module._parameters.values())
    return [p for p in all_of_them if p is not None and p.is_floating_point()]


def working_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a network's first weight, as of its first convolution; where it has none, of its first parameter."""
    floating = floating_parameters(model)
    first = next((p for p in floating if p.ndim > 1), next(iter(floating), None))
    return torch.get_default_dtype() if first is None else first.dtype


def warn_of_batch_statistics(model: nn.Module) -> None:
    """Say once where a normalisation has no statistics of its own, so that images of a batch depend on each other."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            warn(
                f"{name!r} normalises by the batch (track_running_stats=False): a result depends on the other images",
                TorchvizWarning,
            )
            return


def _require_images(x: Tensor, model: nn.Module, dims: Sequence[int]) -> None:
    """Raise InputError unless this is a batch (B, C, *S) of finite numbers, with as many spatial dimensions as may be.

    Three dimensions are those of one image without its batch where a network of images takes its first side for the
    channels.
    """
    first = next((layer for layer in model.modules() if isinstance(layer, nn.modules.conv._ConvNd)), None)
    alone = x.ndim == 3 and isinstance(first, nn.Conv2d) and len(x) == first.in_channels != x.shape[1]
    if alone or x.ndim - 2 not in dims:
        kinds = "(B, C, H, W)" if alone or tuple(dims) == (2,) else "(B, C, L), (B, C, H, W) or (B, C, D, H, W)"
        hints = {2: "; x[None] makes one signal a batch", 3: "; x[None] makes one image a batch", 5: f"; {OF_FRAMES}"}
        hint = hints.get(x.ndim, "") if x.ndim > 2 or 1 in dims else ""
        raise InputError(f"the input is a batch {kinds}, not {tuple(x.shape)}{hint}")
    if x.dtype == torch.uint8:
        return  # reported by `input_for`
    if not x.is_floating_point():
        raise InputError(f"the input is {str(x.dtype).removeprefix('torch.')}; networks take floating point")
    # The sum first: it takes a fraction of the time, and no number that is not finite leaves it so.
    if bool(x.sum().isfinite()):
        return
    wrong = (~x.isfinite()).flatten(1).sum(1)
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0, 0])
        values = counted(int(wrong[image]), "value that is", "values that are")
        raise NotFiniteError(f"image {image} of the input has {values} NaN or infinite")


def _described(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        kinds = sorted({type(part).__name__ for part in x})
        return f"{kind_of(x)} of {', '.join(kinds)}" if kinds else f"an empty {type(x).__name__}"
    return f"{kind_of(x)}"
