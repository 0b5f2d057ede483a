"""`Watch`: a network while it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from torchviz_cnn.ascent.recipes import Preset, Recipe, chosen_recipe
from torchviz_cnn.attribution.methods import methods_of
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import InputError, ModelError, TargetError, TorchvizError, kind_of
from torchviz_cnn.core.names import Call, LayerName, expand, named_layers, one_call, unwrap
from torchviz_cnn.hooks.inputs import Input, Output
from torchviz_cnn.hooks.network import Model, Network, class_index, listed_names, module_of
from torchviz_cnn.layers.defaults import Layers, chosen_patterns, layer_names
from torchviz_cnn.layers.layout import CONVOLUTIONS
from torchviz_cnn.runs import files
from torchviz_cnn.runs.ranks import this_rank
from torchviz_cnn.watch import callbacks
from torchviz_cnn.watch.history import History
from torchviz_cnn.watch.page import html
from torchviz_cnn.watch.photos import watched_photos
from torchviz_cnn.watch.strip import strip
from torchviz_cnn.watch.subject import Subject

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
)
"""Modules whose output is above zero where their input is."""
PATTERN_SIZE, PATTERN_STEPS = 64, 24


class Watch:
    """Look at a network while it is trained, every so many steps, and leave the training exactly as it would be.

    Each watched step adds a column to `strip.png` and a place on the slider of `index.html`: for each photo the
    heatmap of its class, on one scale over all steps, with the probability of the class; filter patterns of chosen
    channels; how many channels of each layer are dead. Both files are whole at any moment, and can be looked at while
    the training goes on. The network is looked at in evaluation mode, without autocast; its weights, gradients,
    BatchNorm statistics, training flags and the random states are then what they were: the trained weights are those
    of a training that nobody watches, bit by bit. Of several processes, the first alone looks and writes.

    A folder that holds steps of the same photos, classes and options is gone on with. The first step that is written
    then drops those at its number and beyond, which training has left.

    Args:
        model: the module that is trained, or a Network; a `DistributedDataParallel`, an `AveragedModel` or what
            `torch.compile` gives is looked through.
        photos: up to 32 photos, or their folder, with a `preprocess` or a Network; or a batch (B, C, H, W) on the
            model's scale.
        out: the folder that is written.
        every: how many steps lie between two that are watched (100), or a `datetime.timedelta`. The first call is
            watched too.
        target: the class by index or name, one for all photos or a list with one for each; by default the likeliest of
            each photo at each step, which changes as the network learns.
        layer: the layer of the heatmaps; by default the one that `grad_cam` takes.
        method: the name of a function that gives heatmaps (`grad_cam`).
        channels: the channels of which filter patterns are made, by layer: `{"layer4": [3, 7]}`; by default none are
            made, and the weights of the first convolution are shown.
        layers: whose dead channels are counted: names, glob patterns or types; by default the activation modules
            (ReLU and its kind) or, of a network that has none, the normalisations or else the convolutions.
        preprocess: how photos are prepared for a plain module: a `Preprocess`, or a function of a PIL image.
        categories: the names of the classes; by default the Network's.
        output: as for `grad_cam`.
        keep: at most as many steps are kept, spread evenly over the training (60), of which the strip shows up to 12.
        preset: as for `filter_patterns`; by default `clean` with 24 steps at 64 pixels.
        seed: seed of the filter patterns' noise (0).

    Raises:
        InputError, ImageError, LayerError, TargetError: for what cannot be watched, before the training begins.
        OutputError: for a folder that holds something else.

    >>> import tempfile, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
    >>> with Watch(net, torch.rand(2, 3, 16, 16), tempfile.mkdtemp(), every=10, target=1) as watch:
    ...     for step in range(21):
    ...         loss = nn.functional.cross_entropy(net(torch.rand(4, 3, 16, 16)), torch.tensor([0, 1, 0, 1]))
    ...         optimizer.zero_grad()
    ...         torch.autograd.backward(loss)
    ...         optimizer.step()
    ...         _ = watch.step(loss=loss)
    >>> watch.steps
    [0, 10, 20]
    """

    def __init__(
        self,
        model: Model,
        photos: Input,
        out: str | Path,
        *,
        every: int | timedelta = 100,
        target: int | str | Sequence[int | str] | Tensor | None = None,
        layer: LayerName | None = None,
        method: str = "grad_cam",
        channels: Mapping[str, int | Sequence[int]] | None = None,
        layers: Layers = None,
        preprocess: Callable[[Any], Tensor] | None = None,
        categories: Sequence[str] | None = None,
        output: Output = None,
        keep: int = 60,
        preset: Preset | Recipe | None = None,
        seed: int = 0,
    ) -> None:
        self.path = checks.path("out", out)
        self.every = every if isinstance(every, timedelta) else checks.whole_number("every", every)
        self.keep = checks.whole_number("keep", keep, 2)
        given = None if categories is None else listed_names(categories)
        model = _named(model, preprocess, given)
        names = model.categories if isinstance(model, Network) else given
        module = unwrap(module_of(model))
        _refuse_sharded(module)
        x, watched = watched_photos(model, photos)
        chosen = {one_call(module, name): _channels(of_layer) for name, of_layer in _by_layer(channels).items()}
        self._subject = Subject(
            model,
            x,
            watched,
            _target(target, names, len(x)),
            checks.one_of("method", method, methods_of("cam")),
            None if layer is None else one_call(module, layer),
            chosen,
            None if chosen else next(iter(layer_names(module, types=nn.Conv2d)), None),
            tuple(_counted(module, layers)),
            names,
            output,
            _brief() if preset is None else chosen_recipe(preset, None),
            checks.whole_number("seed", seed, 0),
        )
        self._history = self._opened() if this_rank() == 0 else None
        self._looked = self._closed = False
        self._last: tuple[int, Any] | None = None
        self._due_at = 0.0

    @property
    def steps(self) -> list[int]:
        """The steps that are kept."""
        return [] if self._history is None else [one.step for one in self._history.kept]

    def step(self, step: int | None = None, *, loss: Any = None) -> bool:
        """Say that the training has made a step; the network is looked at where it is one of those that are watched.

        Args:
            step: its number over the whole training; by default one more than that of the last call, beginning with 0
                or behind the last step in the folder. The number of the last call again is ignored, as where gradients
                are accumulated.
            loss: the loss to write beside it: a number or a tensor of one, which is read where the step is watched.

        Returns:
            Whether this step was watched.

        Raises:
            InputError: for a number below that of the last call, or after `close`.
            LayerError, TargetError, ModelError: at the first step, as for the method.
            OutputError: where the folder cannot be written.
        """
        if self._closed:
            raise InputError(f"this Watch of {self.path} is closed: make a new one to go on")
        before = None if self._last is None else self._last[0]
        number = self._next() if step is None else checks.whole_number("step", step, 0)
        if before is not None and number < before:
            raise InputError(f"step {number} comes after step {before}: count steps over the whole training")
        if number == before:
            return False
        self._last = (number, loss.detach() if isinstance(loss, Tensor) else loss)
        due = self._is_due(number)
        if due:
            self._look()
        return due

    __call__ = step

    def close(self) -> None:
        """Look at the network as it is after the last step, where that was not watched. A second call does nothing."""
        if not self._closed and self._last is not None and this_rank() == 0 and self.steps[-1:] != [self._last[0]]:
            self._look()
        if self._history is not None:
            self._history.close()
        self._closed = True

    def lightning(self) -> Any:
        """Give a callback for the `Trainer` of Lightning. Raises InputError where that is not there."""
        return callbacks.callback(self, callbacks.LightningHooks, callbacks.LIGHTNING, "Callback")

    def transformers(self) -> Any:
        """Give a callback for the `Trainer` of transformers. Raises InputError where that is not there."""
        return callbacks.callback(self, callbacks.TransformersHooks, callbacks.TRANSFORMERS, "TrainerCallback")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._history is not None:
            self._history.close()

    def __repr__(self) -> str:
        return f"Watch({self._subject.name}, {len(self._subject.photos)} photos, {self.path}: {len(self.steps)} steps)"

    def _opened(self) -> History:
        return History(self.path, self._subject.identity(), self.keep)

    def _next(self) -> int:
        if self._last is not None:
            return self._last[0] + 1
        return self.steps[-1] + 1 if self.steps else 0

    def _is_due(self, number: int) -> bool:
        if this_rank() != 0:
            return False
        if not self._looked:
            return True
        if isinstance(self.every, timedelta):
            return time.monotonic() >= self._due_at
        return number // self.every > self.steps[-1] // self.every

    def _look(self) -> None:
        """Look at the network, keep what is seen, and write the strip and the page anew."""
        assert self._last is not None
        self._history = self._history or self._opened()
        number, loss = self._last
        layer = self._subject.layer or self._history.facts.get("layer")
        try:
            seen, layer = self._subject.look(number, _number(loss), layer, again=self._looked)
        except TorchvizError:
            self._history.folder.abandon()
            raise
        self._history.add(seen, {"layer": layer})
        kept = self._history.kept
        files.save_image(self.path / "strip.png", strip(self._subject, kept))
        page = html(self._subject, kept, layer).encode()
        files.write(self.path / "index.html", lambda file: file.write(page))
        self._looked = True
        if isinstance(self.every, timedelta):
            self._due_at = time.monotonic() + self.every.total_seconds()


def _named(model: Model, preprocess: Callable[[Any], Tensor] | None, categories: tuple[str, ...] | None) -> Model:
    """A module as a Network, where it is said how photos are prepared for it."""
    if isinstance(model, Network):
        known, names = model.preprocess, model.categories
    elif preprocess is None:
        return model
    else:
        known, names = None, None
    how: Any = preprocess or known
    return Network(module_of(model), how, categories or names, getattr(model, "name", "network"))


def _target(target: Any, categories: tuple[str, ...] | None, photos: int) -> int | list[int] | None:
    """The classes by index. Raises TargetError for those that are not one, or one for each photo."""
    if target is None:
        return None
    if isinstance(target, str):
        return class_index(categories, target)
    if callable(target) and not isinstance(target, Tensor):
        raise TargetError("watched is a class, by index or name, not a function: its probability stands below each map")
    if isinstance(target, Sequence):
        target = [class_index(categories, one) if isinstance(one, str) else one for one in target]
    try:
        index = checks.indices("class", target)
    except InputError as error:
        raise TargetError(str(error)) from error
    if isinstance(index, list) and len(index) != photos:
        raise TargetError(f"target has {len(index)} classes for {photos} photos: give one for each, or one for all")
    return index


def _by_layer(channels: Any) -> Mapping[str, int | Sequence[int]]:
    if channels is not None and not isinstance(channels, Mapping):
        raise InputError(f"channels are given by layer, as {{'layer4': [3, 7]}}, not {kind_of(channels)}")
    return channels or {}


def _channels(channels: int | Sequence[int]) -> list[int]:
    index = checks.indices("channel", channels)
    return [index] if isinstance(index, int) else index


def _counted(module: nn.Module, layers: Layers) -> list[Call]:
    """The calls of layers whose dead channels are counted; none of a network without any of the default kinds."""
    kinds = (ACTIVATIONS, (nn.modules.batchnorm._NormBase, nn.GroupNorm), CONVOLUTIONS)
    known = named_layers(module)
    if layers is not None:
        return expand(module, known, chosen_patterns(module, layers))
    present = next((kind for kind in kinds if any(isinstance(layer, kind) for layer in known.values())), ())
    return [Call(name, None) for name, layer in known.items() if isinstance(layer, present)]


def _brief() -> Recipe:
    return Recipe.named("clean", size=PATTERN_SIZE, steps=PATTERN_STEPS)


def _refuse_sharded(module: nn.Module) -> None:
    """Raise ModelError for a network that no single process has all of."""
    kinds = {type(part).__name__ for part in (*module.modules(), *module.parameters())}
    if kinds & {"FullyShardedDataParallel", "DTensor"}:
        raise ModelError(
            f"the weights of {type(module).__name__} are spread over several processes (FSDP), none of which can run "
            "it alone: watch a copy that one process has"
        )


def _number(loss: Any) -> float | None:
    """A loss as a number. Raises InputError for what is none."""
    if loss is None:
        return None
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"loss is a number or a tensor of one, not {loss!r}") from None
