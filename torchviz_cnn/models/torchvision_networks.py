"""Torchvision's classifiers by name, with the preprocessing and the class names of their weights."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchviz_cnn.core.errors import CheckpointError, ModelError, did_you_mean
from torchviz_cnn.media.images import Preprocess
from torchviz_cnn.models.catalogue import Loaded, model_names
from torchviz_cnn.models.checkpoints.fitting import Head, class_options, load_state, renamed, sketch
from torchviz_cnn.models.checkpoints.reading import read_checkpoint
from torchviz_cnn.models.class_names import matching
from torchviz_cnn.models.keras.files import KERAS_SUFFIXES


def from_torchvision(name: str, weights: str | None, head: Head | None = None) -> Loaded:
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
        load_state(model, state, weights, head)
    return model, _preset(entry), matching(_categories(entry), model), weights


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


def _categories(entry: Any) -> tuple[str, ...] | None:
    return tuple(entry.meta["categories"]) if entry is not None and "categories" in entry.meta else None
