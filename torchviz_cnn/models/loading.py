"""`load_model`: a network by name with its weights, and all that is known of how to use it."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import CheckpointError, InputError, ModelError, did_you_mean, kind_of
from torchviz_cnn.hooks.network import Network, module_of
from torchviz_cnn.layers.defaults import input_channels
from torchviz_cnn.media.images import Geometry, Preprocess
from torchviz_cnn.models.catalogue import BUNDLED, CATALOGUE, Entry, bundled_path
from torchviz_cnn.models.checkpoints import read_checkpoint, read_metadata
from torchviz_cnn.models.fitting import class_options, load_state, renamed, sketch
from torchviz_cnn.models.keras_files import MAX_SIDE
from torchviz_cnn.models.keras_import import load_keras_weights

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")


def load_model(
    model: str | nn.Module | Network,
    weights: str | os.PathLike[str] | None = None,
    *,
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

    Args:
        model: a bundled network (`"cats_and_dogs"`), torchvision's or another of this library's by name (`"vgg16"`,
            `"xception"`), your own as `"package.module:factory"`, or a module or a Network itself, which stays in the
            mode it is in.
        weights: a checkpoint file (`.pth`, `.pt`, `.safetensors`: a state_dict or a dict that holds one, read as data
            and never executed; Keras' `.h5`, `.keras` for this library's networks), `"random"`, or for torchvision's
            networks `"DEFAULT"` or a version's name, which downloads. By default a bundled network's own, and what
            your factory or module has. The number of classes is the checkpoint's (a Keras file's must be the
            network's own).
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
    if isinstance(model, str):
        name = model
        load = _from_factory if ":" in name else _from_catalogue if name in CATALOGUE else _from_torchvision
        with torch.random.fork_rng(devices=[]):  # random weights are the same each time
            torch.default_generator.manual_seed(0)  # `torch.manual_seed` would seed GPUs, too
            module, preprocess, categories, source = load(name, source)
        module = module.eval()
    else:
        name = model.name if isinstance(model, Network) else type(module_of(model)).__name__
        module, preprocess, categories, source = _from_object(model, name, source)
    if device is not None:
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"no device {str(device)!r} here: {str(error).splitlines()[0]}") from error
    guessed = preprocess is None or (isinstance(model, Network) and model.guessed)
    preprocess = _adapted(preprocess or _usual(module), input_size, mean, std, geometry)
    if labels is not None:
        categories = _labels(labels)
        _require_outputs(module, name, len(categories))
    return Network(module, preprocess, categories, name, source, guessed)


def model_names() -> list[str]:
    """List the names that `load_model` knows: the networks of this library, then torchvision's."""
    import torchvision

    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return [*CATALOGUE, *sorted(listed)]


_Loaded = tuple[nn.Module, Preprocess | None, tuple[str, ...] | None, str]
"""A network, how photos are prepared for it where that is known, its class names, and where its weights are from."""


def _from_catalogue(name: str, weights: str | None) -> _Loaded:
    entry = CATALOGUE[name]
    if weights is None and name not in BUNDLED:
        trained = ", ".join(BUNDLED)
        raise ModelError(f"{name} needs weights: a checkpoint file or 'random' (bundled with weights: {trained})")
    if weights == "random":
        model = entry.factory()
    elif weights is not None and Path(weights).suffix.lower() in KERAS_SUFFIXES:
        model = load_keras_weights(entry.factory(), weights, input_size=entry.preprocess.size)
    else:
        source = bundled_path(name) if weights is None else weights
        state = read_checkpoint(source)
        metadata = {} if weights is None else read_metadata(source)
        with _metadata_of(str(source)):
            factory = partial(entry.factory, **_variant(entry.factory, state, metadata))
            model = factory(**class_options(factory, state))
        load_state(model, state, str(source))
        if metadata:
            entry = _trained(entry, metadata, str(source))
    categories = entry.categories or (imagenet_categories() if entry.imagenet else None)
    return model, entry.preprocess, _matching(categories, model), "bundled" if weights is None else weights


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
        categories = _class_names(json.loads(metadata["categories"]))
        return Entry(entry.factory, Preprocess((size, size), "crop", size, mean, std), categories)


@contextmanager
def _metadata_of(source: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"the metadata of {source} cannot be read: {error!r}") from error


def _from_torchvision(name: str, weights: str | None) -> _Loaded:
    import torchvision

    known = model_names()
    if name not in known:
        if name in torchvision.models.list_models():
            raise ModelError(
                f"torchvision's {name} is not a classifier of images in floating point: make it yourself, and "
                "wrap it in a module whose forward returns scores of classes (B, n)"
            )
        near = did_you_mean(name, known) or "; torchviz_cnn.model_names() lists them"
        if Path(name).suffix in (".pth", ".pt", ".ckpt", ".safetensors", *KERAS_SUFFIXES):
            near = "; this is a file of weights: name the network that it is for, and give the file as its weights"
        raise ModelError(f"no model {name!r}{near} (your own: 'package.module:factory')")
    if weights is None:
        raise ModelError(f"{name} needs weights: a checkpoint file, 'random', or 'DEFAULT', which downloads them")
    entries = list(torchvision.models.get_model_weights(name))
    entry = entries[0] if entries else None
    versions = {"DEFAULT": torchvision.models.get_model_weights(name).DEFAULT} if entries else {}
    versions |= {version.name: version for version in entries}
    if weights == "random":
        model = _build(name)
    elif weights in versions and not Path(weights).exists():
        entry = versions[weights]
        try:
            model = torchvision.models.get_model(name, weights=entry)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"the weights {entry} could not be downloaded from {entry.url}: {error}") from error
        weights = str(entry)
    else:
        _require_weights_file(name, weights, ["random", *versions])
        state = read_checkpoint(weights)
        official = next((version for version in entries if version.url.endswith(f"/{Path(weights).name}")), None)
        entry = official or entry
        model = _build_for(name, state, official is not None)
        load_state(model, state, weights)
    return model, _preset(entry), _matching(_categories(entry), model), weights


def _require_weights_file(name: str, weights: str, offered: list[str]) -> None:
    """Raise ModelError for what is neither a file of PyTorch's nor one of the names that are offered."""
    if not Path(weights).exists() and not Path(weights).suffix:
        raise ModelError(
            f"{name} has no weights {weights!r}{did_you_mean(weights, offered)} (a file, or {', '.join(offered)})"
        )
    if Path(weights).suffix.lower() in KERAS_SUFFIXES:
        raise ModelError(
            f"{weights} is a Keras file, whose networks want other inputs than torchvision's {name}: build the "
            "network, call load_keras_weights(model, path), and prepare the photos as Keras does"
        )


def _from_factory(name: str, weights: str | None) -> _Loaded:
    target = _imported(name)
    if not isinstance(target, nn.Module | Network):
        if not callable(target):
            raise ModelError(f"{name!r} is {kind_of(target)}, not a function or class that makes a network")
        state = {} if weights in (None, "random") else read_checkpoint(str(weights))
        classes = class_options(target, state)
        try:
            target = target(**classes)
        except (Exception, SystemExit) as error:  # a user's factory may raise anything
            raise ModelError(f"{name!r} failed: {type(error).__name__}: {error}") from error
    return _from_object(target, name, weights)


def _from_object(target: Any, name: str, weights: str | None) -> _Loaded:
    """A module or a Network, with the weights of a file if there is one."""
    if isinstance(target, Network):
        model, preprocess, categories, source = target.model, target.preprocess, target.categories, target.weights
    elif isinstance(target, nn.Module):
        model, preprocess, categories, source = target, None, None, "its own"
    else:
        raise ModelError(f"{name!r} gave {kind_of(target)}, not a torch.nn.Module")
    if weights not in (None, "random"):
        load_state(model, read_checkpoint(str(weights)), str(weights))
        source = str(weights)
    return model, preprocess, categories, source


def _imported(name: str) -> Any:
    """What `package.module:attribute` names."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py"):
        dotted = ".".join(part for part in Path(module_name).with_suffix("").parts if part not in (".", "..", "/"))
        raise ModelError(f"{name!r} names a file: a module is named with dots, as '{dotted}:{attribute}'")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(f"no module {error.name!r} to import for {name!r}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ModelError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        public = [known for known in dir(target) if not known.startswith("_")]
        if not hasattr(target, part):
            raise ModelError(f"{module_name!r} has no {attribute!r}{did_you_mean(part, public)}")
        target = getattr(target, part)
    return target


def _build(name: str, **options: Any) -> nn.Module:
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the way an unused initialisation will change
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _build_for(name: str, state: dict[str, Tensor], official: bool) -> nn.Module:
    """The network a checkpoint was saved from: its number of classes, its auxiliary heads."""
    build = partial(_build, name)
    options: dict[str, Any] = class_options(build, state)
    outline = sketch(build, **options)
    accepted = inspect.signature(type(outline).__init__).parameters
    if "init_weights" in accepted:
        options["init_weights"] = False  # slow, and overwritten
    if "aux_logits" in accepted:
        own = outline.state_dict()
        tensors, _ = renamed(state, own)
        auxiliary = [key for key in own if key.lower().startswith("aux")]
        options["aux_logits"] = all(k in tensors and tensors[k].shape == own[k].shape for k in auxiliary)
    if "transform_input" in accepted:
        options["transform_input"] = official  # those weights were trained on inputs of another scale
    return _build(name, **options)


def _usual(model: nn.Module) -> Preprocess:
    """The preprocessing that is assumed for a network of which nothing is known."""
    return Preprocess(mean=(0.5,), std=(0.5,)) if input_channels(model) == 1 else Preprocess()


def _preset(entry: Any) -> Preprocess | None:
    """The preprocessing that torchvision states for a set of weights."""
    if entry is None:
        return None
    preset = entry.transforms()
    return Preprocess(
        size=(preset.crop_size[0], preset.crop_size[-1]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def imagenet_categories() -> tuple[str, ...]:
    """The thousand class names of ImageNet, in the order of the outputs."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def _categories(entry: Any) -> tuple[str, ...] | None:
    return tuple(entry.meta["categories"]) if entry is not None and "categories" in entry.meta else None


def _matching(categories: tuple[str, ...] | None, model: nn.Module) -> tuple[str, ...] | None:
    """Class names, where the network has as many outputs."""
    outputs = {p.shape[0] for name, p in model.named_parameters() if name.endswith("bias") and p.ndim == 1}
    return categories if categories and len(categories) in outputs else None


def _require_outputs(model: nn.Module, name: str, labels: int) -> None:
    """Raise InputError where no layer has as many outputs as there are labels; two may name a single output."""
    counts = {p.shape[0] for p in model.parameters() if p.ndim}
    if counts and labels not in counts and not (labels == 2 and 1 in counts):
        raise InputError(f"{labels} labels were given, and no layer of {name} has that many outputs")


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


def _labels(labels: str | Path | Iterable[str] | Mapping[str, int]) -> tuple[str, ...]:
    """Class names from a list or dict, a file with a name per line, or JSON."""
    if not isinstance(labels, (str, os.PathLike)):
        ordered = isinstance(labels, Iterable) and not isinstance(labels, (Mapping, Set))
        return _class_names(list(labels) if ordered else labels)
    try:
        text = Path(labels).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"the labels file {labels} cannot be read: {error}") from error
    if Path(labels).suffix.lower() != ".json":
        return tuple(line.strip() for line in text.split("\n") if line.strip())
    try:
        return _class_names(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the labels file {labels} is not read: {error}") from error


def _class_names(names: Any) -> tuple[str, ...]:
    """The names in a list, in a dict from index to name, or, as torchvision's `class_to_idx`, from name to index."""
    if isinstance(names, Mapping):
        numbers = range(len(names))
        if all(isinstance(v, (int, np.integer)) for v in names.values()) and sorted(names.values()) == list(numbers):
            names = sorted(names, key=names.__getitem__)
        else:
            by_text = {str(key): name for key, name in names.items()}
            names = [by_text.get(str(number)) for number in numbers]
    if isinstance(names, list):
        # ImageNet's well-known file has [wordnet id, name] for each class.
        names = [name[-1] if isinstance(name, (list, tuple)) and name else name for name in names]
        if all(isinstance(name, (str, int, float, np.generic)) for name in names):
            return tuple(str(name) for name in names)
    raise InputError("class names are a list of names, a dict from index to name, or a dict from name to index")
