"""What grows with classes, layers, filters, the side of the image and the number of images, and what does not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timing import Run, process_peak
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks import cam, mining, patterns
from benchmarks.settings import TINY, Options, Spec
from benchmarks.tasks import BY_HAND, FORWARD, OURS, Case, Contender, Task

ROUNDS = 2
AXES = ("classes", "layers", "filters", "pixels a side", "images")
SINGLE = {"classes": "class", "layers": "layer", "filters": "filter"}
LAYERS: Task[cam.Setting] = Task()


@LAYERS.add(FORWARD, "floor")
def forward(setting: cam.Setting) -> Run:
    return cam.forward(setting)


@LAYERS.add(OURS, "ours")
def ours(setting: cam.Setting) -> Run:
    layers = setting.layer.split()
    return lambda: tvc.explain(setting.model, setting.x, setting.target, layers, ["grad_cam"], relu=False)


@LAYERS.peer("captum")
def captum(setting: cam.Setting) -> Run:
    """One layer after the other: it takes several for other methods, for this one it does not."""
    from captum.attr import LayerGradCam

    methods = [LayerGradCam(setting.model, setting.model.get_submodule(name)) for name in setting.layer.split()]
    return lambda: [method.attribute(setting.x, target=0) for method in methods]


@LAYERS.peer("torchcam")
def torchcam(setting: cam.Setting) -> Run:
    from torchcam.methods import GradCAM

    names: list[Any] = setting.layer.split()

    def run() -> object:
        with GradCAM(setting.model, names) as method:
            return method(0, setting.model(setting.x), normalized=False)

    return run


def cases(options: Options) -> Iterator[Case]:
    """One series for each axis, all else being equal."""
    (resnet,), (vgg,), (squeezenet,) = (options.specs(name) for name in ("resnet50", "vgg16", "squeezenet1_0"))
    sizes = options.sizes
    series: list[tuple[str, str, str, tuple[int, ...], Callable[[int], Any]]] = [
        ("classes", f"grad_cam, {resnet.name}", "call", sizes.grown_classes, partial(by_classes, options, resnet)),
        ("layers", f"grad_cam, {resnet.name}", "call", sizes.grown_layers, partial(by_layers, options, resnet)),
        ("filters", f"filter_patterns, {vgg.name}", "call", sizes.grown_filters, partial(by_filters, options, vgg)),
        ("pixels a side", f"grad_cam, {resnet.name}", "call", sizes.grown_sides, partial(by_side, options, resnet)),
        (
            "images",
            f"top_activations, {squeezenet.name}",
            "call",
            sizes.grown_images,
            partial(by_images, options, squeezenet),
        ),
    ]
    for axis, what, unit, values, make in series:
        for value in values:
            yield Case(
                "growth",
                f"{what}, {value} {axis if value > 1 else SINGLE[axis]}",
                partial(make, value),
                unit,
                rounds=ROUNDS,
                place=(axis, value),
            )


def by_classes(options: Options, spec: Spec, count: int) -> Any:
    setting = cam.Setting(options.network(spec), spec.layer, options.images(1, spec.side), list(range(count)))
    return (one for one in cam.GRAD_CAM.contenders(setting) if one.name != "grad-cam")


def by_layers(options: Options, spec: Spec, count: int) -> Any:
    layers = " ".join(spec.blocks[:count])
    return LAYERS.contenders(cam.Setting(options.network(spec), layers, options.images(1, spec.side), [0]))


def by_filters(options: Options, spec: Spec, count: int) -> Iterator[Contender]:
    """Whole calls, of three steps up."""
    setting = patterns.Setting(options.network(spec), spec.depths[1], count, count, 3, options.sizes.image)
    taking = {OURS, f"{BY_HAND}, batched"}
    return (replace(one, units=1) for one in patterns.PATTERNS.contenders(setting) if one.name in taking)


def by_side(options: Options, spec: Spec, side: int) -> Any:
    setting = cam.Setting(options.network(spec), spec.layer, options.images(1, side), [0])
    return (one for one in cam.GRAD_CAM.contenders(setting) if one.name != "grad-cam")


def by_images(options: Options, spec: Spec, count: int) -> Iterator[Contender]:
    """Small images in memory."""
    small = min(spec.side, 96)
    made = mining.in_memory(options, spec, count, small)
    return (replace(one, units=1) for one in made if not one.name.endswith("exact"))


# --- memory ---------------------------------------------------------------------------------------------------------


class Generated(torch.utils.data.Dataset[Tensor]):
    """As many images as wanted, made when asked for: the same each time, and none kept."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index))


def memory_cases(options: Options) -> Iterator[Case]:
    """Series of peaks of memory, each in a process of its own."""
    (vgg,), (squeezenet,) = (options.specs(name) for name in ("vgg16", "squeezenet1_0"))
    for count in options.sizes.memory_filters:
        peak = partial(alone, memory_of_filters, options, vgg, count)
        text = f"filter_patterns, {vgg.name} at {vgg.depths[1]}, {count} filters"
        yield Case("memory", text, tuple, place=("filters", count), peak=peak)
    for count in options.sizes.memory_images:
        peak = partial(alone, memory_of_images, options, squeezenet, count)
        text = f"top_activations, {squeezenet.name}, {count} images"
        yield Case("memory", text, tuple, place=("images", count), peak=peak)


def alone(measure: Callable[..., int], *given: object) -> int:
    """Call a function in a process of its own, which has used no memory before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, given)


def memory_of_filters(options: Options, spec: Spec, count: int) -> int:
    """Bytes beyond the loaded network, without the result itself."""
    features = options.network(spec).get_submodule("features")
    model, size = nn.Sequential(), options.sizes.image
    model.add_module("features", features)  # without the classifier's 500 MB
    tvc.filter_patterns(model, spec.depths[1], 0, size=16, steps=1)  # what a first call loads
    results: list[tvc.Patterns] = []
    peak = process_peak(
        lambda: results.append(tvc.filter_patterns(model, spec.depths[1], range(count), size=size, steps=2))
    )
    return peak - results[0].values.nbytes - results[0].scores.nbytes


def memory_of_images(options: Options, spec: Spec, count: int) -> int:
    """Bytes beyond the loaded network."""
    model, layers = options.network(spec), mining.LAYERS[spec.name]
    side = 32 if spec is TINY else 64
    tvc.top_activations(model, Generated(32, side), layers, batch_size=mining.BATCH, workers=0)
    return process_peak(
        lambda: tvc.top_activations(model, Generated(count, side), layers, batch_size=mining.BATCH, workers=0)
    )
