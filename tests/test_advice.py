"""What messages advise is there: a parameter that they name is one of the function that was called, or of one named."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import images, seeded
from tests.test_architecture import MODULES, PUBLIC
from tests.test_host import CALLS
from torchviz_cnn.core.warn import say_once

_NAMED = re.compile(r"\b([a-z_]+)=(?!=)")
"""A parameter in a message."""


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def public(name: str) -> Any:
    return getattr(tvc.metrics, name.partition(".")[2]) if "." in name else getattr(tvc, name)


BY_NAME = {name.removeprefix("metrics."): function for name, function in PUBLIC.items()} | {
    "Preprocess": tvc.Preprocess,
    "Recipe.named": tvc.Recipe.named,
    "Survey.load": tvc.Survey.load,
    "TarShards": tvc.TarShards,
    "TopActivations.load": tvc.TopActivations.load,
    "overlay": tvc.Heatmap.overlay,
}
"""What messages name, by how they name it."""


def unknown(text: str, own: set[str]) -> set[str]:
    """The parameters in a message that are neither these nor those of a function that it names beside them.

    It is named as `grad_cam(..., target=1)`, or as in "target=, as grad_cam has it," and "pass model= to Survey.load".
    """
    wrong = set(_NAMED.findall(text)) - own
    for word in list(wrong):
        behind = rf"\b{word}=(?:(?!\b[a-z_]+=)[^;])*?"
        names = re.findall(rf"([\w.]+)\([^()]*\b{word}=", text) + re.findall(rf"{behind}to (\w+\.load)\b", text)
        pairs = re.findall(rf"{behind}, as (\w+)(?: and (\w+))?\s+ha(?:s|ve) it", text)
        named = [BY_NAME[name] for name in (*names, *(one for pair in pairs for one in pair)) if name in BY_NAME]
        wrong -= {word} if named and all(word in parameters(function) for function in named) else set()
    return wrong


# --- all messages, as they are written ---------------------------------------------------------------------------


REACHED_FROM: dict[str, list[Any]] = {
    "batch_size=1$": [
        *(tvc.trust, tvc.survey, tvc.top_activations),
        *(public(name) for name in CALLS if name.startswith("metrics.")),
    ],
    "compile=True": [tvc.maximize, tvc.filter_patterns],
    "decode='": [tvc.top_activations, tvc.survey],
    "no out= is given": [tvc.top_activations, tvc.survey],
    "output= chooses": [
        *(public(name) for name in CALLS if {"output", "target", "targets"} & parameters(public(name))),
        *(tvc.objectives.class_score, tvc.objectives.target),
    ],
    "give truth=": [tvc.metrics.grid_pointing_game, tvc.metrics.difull],
    "head='none'": [tvc.load_model],
    "pass preprocess=": [tvc.top_activations, tvc.survey],
    "pass the function as target=": [public(name) for name in CALLS if "maps" in parameters(public(name))],
    "workers=0": [tvc.top_activations, tvc.survey],
    "targets=None": [tvc.report],
    "truth='none'": [tvc.survey],
}
"""Messages, by some of their words, that name a parameter of those functions alone from which they are reached."""

FACTS = ("affine=", "groups=", "track_running_stats=", "training=", "use_reentrant=", "axis={}", "top={}")
"""Messages that speak of parameters of the network's layers."""


def written(tree: ast.AST) -> Iterator[str]:
    """The strings of a module that are no docstrings; `{}` stands for what is filled in."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | alone:
            yield node.value


def test_a_written_message_names_parameters_of_those_who_reach_it() -> None:
    """Those of the module's own functions; of functions that it names; or of all from which it is reached."""
    wrong, met = [], set()
    for name, path in MODULES.items():
        if name.startswith("cli/"):
            continue
        module = f"torchviz_cnn.{name.removesuffix('.py').replace('/', '.')}"
        own = set[str]().union(*(parameters(one) for one in PUBLIC.values() if one.__module__ == module))
        for text in written(ast.parse(path.read_text(encoding="utf-8"))):
            advice = re.sub(r"\b[a-z_]+=\{\}", "", text)  # what is filled in repeats what was asked
            if "<" in text or any(fact in text for fact in FACTS) or not unknown(advice, own):
                continue
            reached = [words for words in REACHED_FROM if re.search(words, text)]
            met |= set(reached)
            functions = [function for words in reached for function in REACHED_FROM[words]]
            if not functions or any(unknown(advice, parameters(function)) for function in functions):
                wrong.append((name, text))
    assert wrong == []
    assert met == set(REACHED_FROM)


# --- what functions say of networks that they cannot explain ----------------------------------------------------


class Ends(nn.Module):
    """Two convolutions, an activation between them, and what is made of the last maps (B, 5, h, w)."""

    def __init__(self, end: Callable[[Tensor], Any], activation: nn.Module | None = None, bands: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(bands, 4, 3, padding=1)
        self.activation = activation or nn.ReLU()
        self.last = nn.Conv2d(4, 5, 3, padding=1)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.last(self.activation(self.first(x))))


class Tokens(nn.Module):
    """Thirteen tokens, which make no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.last(self.first(x).flatten(2).mT[:, :13]).relu().mean(1))
        return scores


class Deep(nn.Module):
    """A layer that gives maps of three dimensions for images of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 5, 3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return pooled(self.last(self.first(x)[:, :, None])[:, :, 0])


class OneByOne(nn.Module):
    """A network that runs on one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 5, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return pooled(self.last(self.first(x.view(1, *x.shape[1:]))))


class Odd(nn.Module):
    """What a model gives, with its scores in an attribute."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores


def pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def by_hand(maps: Tensor) -> Tensor:
    return pooled(maps * (maps > 0))


def boxes(maps: Tensor) -> list[dict[str, Tensor]]:
    return [{"scores": one.flatten(), "boxes": one.new_zeros(one.numel(), 4)} for one in maps]


class Case(NamedTuple):
    """A network, and what a function must say of it."""

    build: Callable[[], nn.Module]
    says: str = ""
    """A pattern that is in what `by` says; empty where nothing is wrong with the network."""
    by: str = "grad_cam"
    photo: tuple[int, ...] = ()
    """Photos of this shape, of 10 bits, are given in place of a batch."""


NETWORKS: dict[str, Case] = {
    "a dict": Case(lambda: Ends(lambda maps: {"out": maps}), "output= chooses .* with output='out'"),
    "maps": Case(lambda: Ends(lambda maps: maps), r"target=, as grad_cam has it, .* tvc\.targets\.region"),
    "boxes": Case(lambda: Ends(boxes), r"tvc\.targets\.box"),
    "two heads": Case(lambda: Ends(lambda maps: (pooled(maps), pooled(maps)[:, :3])), "several tensors"),
    "nested heads": Case(lambda: Ends(lambda maps: ((pooled(maps),), (pooled(maps),))), "gives a tuple"),
    "an attribute": Case(lambda: Ends(lambda maps: Odd(pooled(maps))), "gives an Odd"),
    "a mean of sigmoids": Case(
        lambda: Ends(lambda maps: (pooled(maps).sigmoid() + pooled(2 * maps).sigmoid()) / 2), "score='log_probability'"
    ),
    "one output": Case(
        lambda: Ends(lambda maps: -maps.square().mean((1, 2, 3))[:, None]), "score='probability'", "ablation_cam"
    ),
    "GELU": Case(lambda: Ends(pooled, nn.GELU()), "also uses GELU; other_activations=", "saliency"),
    "a ReLU by hand": Case(lambda: Ends(by_hand), "or other_activations='plain'", "saliency"),
    "tokens": Case(Tokens, r"make no grid: .*layout=\(14, 14\)"),
    "maps of three dimensions": Case(Deep, "layout='channels_first'"),
    "one image at a time": Case(OneByOne, "batch_size=1", "filter_atlas"),
    "no convolution": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), "layer=, as grad_cam has it, names one"
    ),
    "one band": Case(lambda: Ends(pooled, bands=1)),
    "photos of 10 bits": Case(lambda: Ends(pooled), r"window=\(low, high\)", photo=(40, 48, 3)),
    "photos of 5 bands": Case(lambda: Ends(pooled, bands=5), r"bands=\(red, green, blue\)", photo=(40, 48, 5)),
}
METHODS = ("grad_cam", "guided", "ablation_cam")
"""Methods of which messages advise nothing of their own, what becomes of other activations, and another score."""
OF_LAYERS = ("Watch", "cam_video", "explain", "smoothed_cam")
"""Functions whose methods are those that draw a heatmap of a layer."""
TAKE_LONG = ("Watch", "metrics.randomization", "metrics.road", "metrics.sensitivity", "trust")
TRIED = sorted(set(CALLS) - {"HookManager", "untouched", "first_filters"})


def ways(name: str, layer: str) -> list[dict[str, Any]]:
    """The options with which a function is tried: none, each method, a layer that is named."""
    if name == "trust":
        return [{"methods": "guided"}, {"methods": METHODS}, {"methods": "grad_cam", "layers": layer}]
    taken = parameters(public(name))
    tried: list[dict[str, Any]] = [{}]
    tried += [{key: layer} for key in ("layer", "layers") if key in taken]
    methods = [method for method in METHODS if method != "guided" or name not in OF_LAYERS]
    tried += [{key: method} for key in ("maps", "method", "methods") if key in taken for method in methods]
    tried += [{"by": "relevance"}] if name == "top_activations" else []
    return tried + ([{"relu": rule} for rule in ("guided", "deconvnet")] if name in ("saliency", "smooth_grad") else [])


def arguments(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """What a function must be given, and small numbers for what takes long."""
    model = seeded(case.build)()
    bands = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    photos = list(np.random.default_rng(0).integers(0, 1000, (2, *case.photo), dtype=np.uint16)) if case.photo else None
    x: Any = images(2, channels=bands) if photos is None else photos
    how = tvc.Preprocess((32, 32), mean=(0.5,) * bands, std=(0.5,) * bands)
    net = tvc.Network(model, how, tuple("abcde"))
    needed = {
        "model": model if photos is None and name != "cam_video" else net,
        "net": net,
        "networks": {"a": (model, x[:1])},
        **dict.fromkeys(("x", "dataset", "photos", "images"), x),
        "source": [np.zeros((40, 48, 3), np.uint8)] * 2,
        "input_size": (32, 32),
        "layer": layer_of(model),
        "channel": 0,
        "objective": tvc.objectives.class_score(0),
        "folder": folder / "folder",
        "out": folder / {"cam_video": "clip.avi", "report": "page.html"}.get(name, "out"),
        "masks": torch.arange(32).expand(2, 32, 32) < 9,
        **dict.fromkeys(("maps", "method"), "grad_cam"),
    }
    small = {"budget": 0 if name == "report" else None, "mosaics": 0, "perturbed": 1, "steps": 2, "samples": 1}
    small |= {"patch": 16, "copies": 1, "k": 2, "workers": 0}
    small |= {"size": 32} if name in ("filter_atlas", "filter_patterns", "maximize") else {}
    taken = inspect.signature(public(name)).parameters
    must = {key: needed[key] for key, one in taken.items() if one.default is one.empty and key in needed}
    return must | {key: value for key, value in small.items() if key in taken}


def layer_of(model: nn.Module) -> str:
    return "last" if hasattr(model, "last") else "1"


def result_of(name: str, given: dict[str, Any], case: Case, folder: Path) -> object:
    if name == "merge":
        model = seeded(case.build)()
        tvc.top_activations(model, images(2), [layer_of(model)], k=1, workers=0, out=folder / "run")
        return tvc.merge(folder / "run", dataset=images(2), model=model).grid(layer_of(model), 0)
    result = public(name)(**given)
    return result.step() if name == "Watch" else result


def messages(name: str, case: Case, folder: Path) -> list[str]:
    """All that a function says of a network, in errors, in warnings, and in what it gives."""
    said: list[str] = []
    for number, options in enumerate(ways(name, layer_of(case.build()))):
        place = folder / str(number)
        place.mkdir()
        say_once.cache_clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                result = result_of(name, arguments(name, case, place) | options, case, place)
                said += [str(result)] if isinstance(result, (tvc.Survey, tvc.Trust)) else []
            except tvc.TorchvizError as error:
                said.append(str(error))
            except RuntimeError as error:  # of the network that runs on one image at a time
                if case.build is not OneByOne:
                    raise error
        said += [str(one.message) for one in warned if issubclass(one.category, tvc.TorchvizWarning)]
    return said


@pytest.mark.parametrize("case", [case for case in NETWORKS.values() if case.says], ids=lambda case: case.says)
def test_the_networks_are_refused_as_expected(case: Case, tmp_path: Path) -> None:
    assert [text for text in messages(case.by, case, tmp_path) if re.search(case.says, text)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in TAKE_LONG else []) for name in TRIED]
)
def test_a_function_advises_its_own_parameters(name: str, tmp_path: Path) -> None:
    own = parameters(public(name)) | (parameters(tvc.objectives.class_score) if name == "maximize" else set())
    for number, case in enumerate(NETWORKS.values()):
        place = tmp_path / str(number)
        place.mkdir()
        for text in messages(name, case, place):
            assert unknown(text, own) == set(), text
