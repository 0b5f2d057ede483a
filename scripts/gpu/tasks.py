"""What is measured on a GPU: groups of contenders that take turns, the most important first."""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from timing import Run
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

import torchviz_cnn as tvc
from gpu.bounds import PRECISIONS, Work, ascent_work, batch_work

BASE = "plain forward"
"""The contender that ratios are to: the network alone, without gradients."""
READING, DECODING, COMPUTING = "decode alone", "decode alone on the device", "network alone"
"""The contenders that bound how fast photos are mined: by the processors or by the device, and then by the network."""
ON_DEVICE = "decode='cuda'"


@dataclass(frozen=True)
class Case:
    """Contenders that are measured side by side, and what is known of them before they are made."""

    network: str
    what: str
    precision: str
    batch: int
    seconds: float
    """How long it takes at the most, on the device that it is for."""
    build: Callable[[], Group]


@dataclass
class Group:
    """Contenders that are ready to run."""

    contenders: dict[str, Run]
    work: dict[str, Work] = field(default_factory=dict)
    """What a contender cannot do without, where that is counted."""
    rounds: int = 7
    photos: int = 0
    """How many photos a run goes through, where that is what counts."""


@dataclass(frozen=True)
class Network:
    """A network, and the layers that are looked at."""

    name: str
    explained: str
    raised: str
    """The convolution whose filters are drawn."""


NETWORKS = (
    Network("vgg16", "features.29", "features.10"),
    Network("resnet50", "layer4", "layer2.0.conv2"),
    Network("efficientnet_lite0", "head", "blocks.3.expand.conv"),
)
TINY = (Network("efficientnet_lite0", "head", "blocks.1.expand.conv"),)


def cases(device: torch.device, tiny: bool) -> list[Case]:
    """All that is measured."""
    networks, batches, side = (TINY, (1, 2), 64) if tiny else (NETWORKS, (1, 32, 256), 224)
    explained = [
        Case(net.name, "explaining", precision, batch, 9 if batch == 256 else 5, partial(_explaining, *arguments))
        for batch in batches
        for precision in PRECISIONS
        for net in networks
        for arguments in [(device, net, precision, batch, side)]
    ]
    filters = [
        Case(net.name, "filters", precision, 2 if tiny else 64, 8, partial(_filters, device, net, precision, tiny))
        for net in networks
        for precision in PRECISIONS
    ]
    mined = [
        Case(net.name, "photos", "bfloat16", 2 if tiny else 64, 36, partial(_of_photos, device, net, tiny))
        for net in networks[:2]
    ]
    kept = [
        Case(
            net.name, "images in memory", "bfloat16", 2 if tiny else 64, 8, partial(_in_memory, device, net, side, tiny)
        )
        for net in networks
    ]
    peer = Case(networks[0].name, "lucent", "float32", 2, 10, partial(_lucent, device, networks[0], tiny))
    early = 4 * len(networks)
    return [*explained[:early], *filters[:2], mined[0], *explained[early:], *filters[2:], *kept, peer, *mined[1:]]


@cache
def loaded(name: str, device: torch.device) -> tvc.Network:
    """A network with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tvc.load_model(name, weights="random", device=device)


@cache
def network(name: str, device: torch.device, precision: str) -> nn.Module:
    """Its module; in bfloat16 with channels last in memory."""
    model = loaded(name, device).model
    if precision == "float32":
        return model
    return copy.deepcopy(model).to(PRECISIONS[precision]).to(memory_format=torch.channels_last)


def inputs(count: int, side: int, device: torch.device, precision: str) -> Tensor:
    """A batch of noise (count, 3, side, side), which lies in memory as the network's weights do."""
    x = torch.randn(count, 3, side, side, device=device, dtype=PRECISIONS[precision])
    return x.contiguous(memory_format=torch.channels_last) if precision == "bfloat16" else x


def _explaining(device: torch.device, net: Network, precision: str, batch: int, side: int) -> Group:
    """Class heatmaps and gradients of one class of each image."""
    model, layer = network(net.name, device, precision), net.explained
    x = inputs(batch, side, device, precision)
    work = batch_work(model, x)
    contenders: dict[str, Run] = {
        BASE: partial(plain, model, x),
        "grad_cam": lambda: tvc.grad_cam(model, x, layer, 0, relu=False),
        "competitive_cam": lambda: tvc.competitive_cam(model, x, layer, 0),
        "saliency": lambda: tvc.saliency(model, x, 0),
        **_captum(model, x, layer),
        **_torchcam(model, x, layer),
    }
    there_and_back = ("saliency", "captum Saliency")
    needed = {name: work.times(2 if name in there_and_back else 1) for name in contenders}
    return Group(contenders, needed, 15 if batch == 1 else 7)


def _captum(model: nn.Module, x: Tensor, layer: str) -> dict[str, Run]:
    try:
        from captum.attr import LayerGradCam, Saliency
    except ImportError:
        return {}
    cam, gradient = LayerGradCam(model, model.get_submodule(layer)), Saliency(model)
    return {
        "captum LayerGradCam": lambda: cam.attribute(x, target=0),
        "captum Saliency": lambda: gradient.attribute(x.detach().clone().requires_grad_(), target=0),
    }


def _torchcam(model: nn.Module, x: Tensor, layer: str) -> dict[str, Run]:
    try:
        from torchcam.methods import GradCAM
    except ImportError:
        return {}

    def run() -> object:
        with GradCAM(model, layer) as extractor:
            output = model(x.detach().clone().requires_grad_())
            maps = extractor(0, output)
        model.zero_grad()
        return maps

    return {"torchcam GradCAM": run}


def _filters(device: torch.device, net: Network, precision: str, tiny: bool) -> Group:
    """Patterns of a layer's first channels. The network is in float32, as the option is for it."""
    count, side, steps = (2, 32, 3) if tiny else (64, 128, 30)
    model = network(net.name, device, "float32")
    counted = network(net.name, device, precision)
    work = ascent_work(counted, inputs(1, side, device, precision), net.raised, count, steps)
    name = f"filter_patterns, {count} of {net.raised}, {side} px, {steps} steps"

    def run() -> object:
        return tvc.filter_patterns(model, net.raised, range(count), size=side, steps=steps, precision=precision)  # type: ignore[arg-type]

    return Group({name: run}, {name: work}, 5)


def _lucent(device: torch.device, net: Network, tiny: bool) -> Group:
    """Patterns of two channels by both: with the same steps, and images that are not enlarged."""
    side, steps, channels = (32, 3, 2) if tiny else (128, 30, 2)
    model = network(net.name, device, "float32")
    peer = copy.deepcopy(model)
    contenders: dict[str, Run] = {
        f"filter_patterns, {channels} of {net.raised}, {side} px, {steps} steps": lambda: tvc.filter_patterns(
            model, net.raised, range(channels), size=side, steps=steps
        )
    }
    with contextlib.suppress(ImportError):
        from lucent.optvis import param, render

        def run() -> None:
            for channel in range(channels):
                render.render_vis(
                    peer,
                    f"{net.raised.replace('.', '_')}:{channel}",
                    lambda: param.image(side, fft=False, decorrelate=False),
                    transforms=[],
                    thresholds=(steps,),
                    progress=False,
                    show_image=False,
                    fixed_image_size=side,
                )
                for module in peer.modules():  # it leaves its hooks behind, which would slow it down
                    module._forward_hooks.clear()

        contenders["lucent render_vis, one by one"] = run
    return Group(contenders, rounds=3)


def _in_memory(device: torch.device, net: Network, side: int, tiny: bool) -> Group:
    """Top activations of images that are in the machine's memory as float32 already."""
    model, images = network(net.name, device, "bfloat16"), torch.randn(8 if tiny else 1024, 3, side, side)
    batch = 2 if tiny else 64
    contenders: dict[str, Run] = {
        BASE: partial(_each_part, model, images.split(batch), device),  # type: ignore[no-untyped-call]
        f"top_activations of {net.explained}, {len(images)} images in memory": lambda: tvc.top_activations(
            model, images, [net.explained], batch_size=batch
        ),
    }
    work = batch_work(model, inputs(batch, side, device, "bfloat16")).times(len(images) / batch)
    return Group(contenders, dict.fromkeys(contenders, work), 3, len(images))


def _of_photos(device: torch.device, net: Network, tiny: bool) -> Group:
    """Top activations of JPEG files, and what bounds them: reading the files alone, and the network alone."""
    count, batch, workers = (8, 4, 1) if tiny else (6000, 64, max(1, (os.cpu_count() or 2) - 1))
    model, preprocess = network(net.name, device, "bfloat16"), loaded(net.name, device).preprocess
    folder = photos(count)
    x = inputs(batch, 224, device, "bfloat16")

    def read() -> None:
        for _ in DataLoader(tvc.PhotoFolder(folder, preprocess), batch, num_workers=workers):  # type: ignore[arg-type]
            pass

    def compute() -> None:
        with torch.no_grad(), tvc.HookManager(model) as hooks:
            hooks.on_forward(net.explained, lambda name, output: None)
            for _ in range(0, count, batch):
                hooks.run(x)

    def mine(**options: Any) -> object:
        return tvc.top_activations(
            model, folder, [net.explained], preprocess=preprocess, batch_size=batch, workers=workers, **options
        )

    name = f"top_activations of {net.explained}, {count} JPEGs of 500 x 375, {workers} workers"
    contenders: dict[str, Run] = {READING: read, COMPUTING: compute, name: mine}
    if device.type == "cuda":
        contenders[DECODING] = partial(_decode_on, device, folder, batch)
        contenders[f"{name}, {ON_DEVICE}"] = partial(mine, decode="cuda")
    return Group(contenders, rounds=2, photos=count)


def _decode_on(device: torch.device, folder: Path, batch: int) -> None:
    """Decode files on the device that are read one after the other."""
    files = sorted(folder.iterdir())
    for first in range(0, len(files), batch):
        some = [
            torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files[first : first + batch]
        ]
        decode_jpeg(some, ImageReadMode.RGB, device=device)


def plain(model: nn.Module, x: Tensor) -> None:
    """The network alone."""
    with torch.no_grad():
        model(x)


def _each_part(model: nn.Module, parts: Sequence[Tensor], device: torch.device) -> None:
    """The network alone on images that must be copied to the device."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for part in parts:
            model(part.to(device, dtype, non_blocking=True))


@cache
def photos(count: int) -> Path:
    """A folder with so many JPEG files of 500 x 375 pixels, which is removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="photos"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name("photos.py")), str(folder), str(count)], check=True)
    return folder
