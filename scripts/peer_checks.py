"""What other libraries do on networks that strangers bring: each claim of README's table, run on small networks.

    python scripts/peer_checks.py

A library that is not installed is left out. Every check compares with plain autograd, or counts; nothing is assumed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_checks import Guided

import torchviz_cnn as tvc

LIBRARIES = {
    "torchviz_cnn": "torchviz-cnn",
    "captum": "captum",
    "pytorch-grad-cam": "grad-cam",
    "torch-cam": "torchcam",
    "zennit": "zennit",
    "TorchLens": "torchlens",
}
"""Title, and the name of the distribution."""


class Small(nn.Module):
    """Two convolutions and a linear layer; the activations are functions or modules."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 12)
        self.activation = activation
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        first = self.activation(self.conv1(x))
        scores: Tensor = self.fc(self.activation(self.conv2(first)).mean((2, 3)))
        return scores


class Twice(nn.Module):
    """One convolution that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.conv(self.conv(x).tanh()).relu().mean((2, 3)))
        return scores


class Fails(nn.Module):
    """A network that raises after the layer that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"not today: {tuple(self.conv2(self.conv1(x)).shape)}")


def photo(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


# --- how each library is called -------------------------------------------------------------------------------------


def guided(library: str, model: nn.Module, x: Tensor) -> Tensor | None:
    """Guided backpropagation of score 3: (1, 3, 12, 12)."""
    x = x.clone().requires_grad_()
    if library == "torchviz_cnn":
        return tvc.saliency(model, x.detach(), 3, relu="guided").gradients.reshape(x.shape)
    if library == "captum":
        from captum.attr import GuidedBackprop

        gradients: Tensor = GuidedBackprop(model).attribute(x, 3)
        return gradients
    if library == "pytorch-grad-cam":
        from pytorch_grad_cam import GuidedBackpropReLUModel

        return torch.from_numpy(GuidedBackpropReLUModel(model, torch.device("cpu"))(x, 3)).permute(2, 0, 1)[None]
    if library == "zennit":
        from zennit.attribution import Gradient
        from zennit.composites import GuidedBackprop

        with Gradient(model=model, composite=GuidedBackprop()) as attributor:
            _, gradients = attributor(x, torch.eye(12)[[3]])
        return gradients
    if library == "TorchLens":
        from torchlens import attribution

        return torch.as_tensor(attribution.guided_backprop(model, x.detach(), target=3).values)
    return None


def grad_cam(library: str, model: nn.Module, x: Tensor, layer: str, classes: list[int]) -> list[Tensor] | None:
    """Grad-CAM (h, w) of one image for each of the classes, scaled to its largest value; the fastest documented way."""
    if library == "torchviz_cnn":
        return list(tvc.grad_cam(model, x, layer, torch.tensor([classes])).values[0])
    module = model.get_submodule(layer)
    if library == "captum":
        from captum.attr import LayerGradCam

        cam = LayerGradCam(model, module)
        return [cam.attribute(x, c, relu_attributions=True)[0, 0] for c in classes]
    if library == "pytorch-grad-cam":
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with GradCAM(model, [module]) as peer:
            maps = [peer(x.clone(), [ClassifierOutputTarget(c)])[0] for c in classes]
        return [torch.from_numpy(one) for one in maps]
    if library == "torch-cam":
        from torchcam.methods import GradCAM as TorchCam

        with TorchCam(model, layer) as peer:
            scores = model(x.clone().requires_grad_())
            last = len(classes) - 1
            return [peer(c, scores, retain_graph=i < last)[0][0] for i, c in enumerate(classes)]
    if library == "TorchLens":
        from torchlens import attribution

        some = [attribution.grad_cam(model, x, target=c, layer=layer, overlay=False) for c in classes]
        return [torch.as_tensor(one.values)[0, 0] for one in some]
    return None


def reference(model: nn.Module, layer: str, call: int = 0) -> Tensor:
    """Grad-CAM of score 3 at a call of a layer, by a hook and plain autograd."""
    calls = list[Tensor]()

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        calls.append(output)

    model.get_submodule(layer).register_forward_hook(keep)
    (gradient,) = torch.autograd.grad(model(photo())[0, 3], calls[call])
    return (gradient.mean((2, 3), keepdim=True) * calls[call]).sum(1)[0].relu().detach()


def alike(maps: list[Tensor], expected: Tensor) -> bool:
    """Whether a map is the expected one, but for size and scale: some libraries enlarge theirs, or go from 0 to 1."""
    expected = F.interpolate(expected[None, None], maps[0].shape, mode="bilinear", align_corners=False)[0, 0]
    one, expected = ((m - m.amin()) / (m.amax() - m.amin() + 1e-12) for m in (maps[0].detach(), expected))
    return bool((one - expected).abs().max() < 1e-3)


# --- the checks -----------------------------------------------------------------------------------------------------


def guided_rule(library: str, activation: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]) -> str:
    """Whether guided backpropagation is that of an activation in which the rule is written out."""
    x = photo().requires_grad_()
    (gradient,) = torch.autograd.grad(Small(expected)(x)[0, 3], x)
    maps = guided(library, Small(activation), photo())
    if maps is None:
        return "–"
    return "yes" if torch.allclose(maps.detach().float(), gradient, atol=1e-5) else "no, without a word"


def of_convolution(library: str, inplace: bool) -> str:
    """Whether Grad-CAM is right at a convolution, also where the next module overwrites its output."""
    expected = reference(Small(F.relu), "conv2")
    maps = grad_cam(library, Small(nn.ReLU(inplace)), photo(), "conv2", [3])
    return "–" if maps is None else "yes" if alike(maps, expected) else "no, without a word"


def second_call(library: str) -> str:
    """Whether Grad-CAM can be asked for at either call of a layer that runs twice."""
    calls = [reference(Twice(), "conv", call) for call in range(2)]
    if library == "torchviz_cnn":
        both = [grad_cam(library, Twice(), photo(), f"conv#{call}", [3]) for call in range(2)]
        return "yes" if all(alike(maps or [], call) for maps, call in zip(both, calls, strict=True)) else "no"
    maps = grad_cam(library, Twice(), photo(), "conv", [3])
    if maps is None:
        return "–"
    names = [name for name, call in zip(("the first", "the last"), calls, strict=True) if alike(maps, call)]
    return f"no: {names[0]} alone" if names else "no: a map of neither, without a word"


def ten_classes(library: str) -> str:
    """How many forward passes ten classes of one image take."""
    model = Small(torch.relu)
    maps = grad_cam(library, model, photo(), "conv2", list(range(10)))
    return "–" if maps is None else f"{model.forwards} forward pass{'es' * (model.forwards != 1)}"


def state(model: nn.Module) -> list[Any]:
    """What a call could leave otherwise."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    gradients = [p.grad is None for p in model.parameters()]
    return [hooks, gradients, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]]


def left_as_it_was(library: str, model: nn.Module) -> str:
    """Which of hooks, `.grad`, `requires_grad` and training flags Grad-CAM, or an exception in it, leaves changed."""
    before = state(model)
    try:
        if grad_cam(library, model, photo(), "conv1", [3]) is None:
            return "–"
    except ValueError as error:
        if "not today" not in str(error):
            raise
    changed = [what for what, old, new in zip(STATE, before, state(model), strict=True) if old != new]
    return f"no: {', '.join(changed)}" if changed else "yes"


STATE = ("hooks", "`.grad`", "`requires_grad`", "training flags")


def _guided_relu(x: Tensor, most: float = float("inf")) -> Tensor:
    out: Tensor = Guided.apply(x, most)  # type: ignore[no-untyped-call]
    return out


def trained() -> nn.Module:
    """A network in training, as it is between two epochs."""
    return Small(torch.relu).train()


CHECKS: dict[str, Callable[[str], str]] = {
    "guided backpropagation through `nn.ReLU`": lambda one: guided_rule(one, nn.ReLU(), _guided_relu),
    "... through `F.relu`": lambda one: guided_rule(one, F.relu, _guided_relu),
    "... through `nn.ReLU6`": lambda one: guided_rule(one, nn.ReLU6(), lambda x: _guided_relu(x, 6)),
    "Grad-CAM at a convolution": lambda one: of_convolution(one, inplace=False),
    "... with an in-place ReLU after it": lambda one: of_convolution(one, inplace=True),
    "... at either call of a layer that runs twice": second_call,
    "... of ten classes": ten_classes,
    "a network in training is left as it was": lambda one: left_as_it_was(one, trained()),
    "... also after an exception in its forward pass": lambda one: left_as_it_was(one, Fails().train()),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    warnings.simplefilter("ignore")
    there = {title: installed(name) for title, name in LIBRARIES.items()}
    titles = [title for title, number in there.items() if number]
    print("| | " + " | ".join(f"{title} {there[title]}" for title in titles) + " |")
    print("|---|" + "---|" * len(titles))
    for what, check in CHECKS.items():
        print(f"| {what} | " + " | ".join(answer(check, title) for title in titles) + " |")


def answer(check: Callable[[str], str], library: str) -> str:
    """What a check says, or that the library raises an error, which is better than a wrong map."""
    try:
        return check(library)
    except (RuntimeError, ValueError) as error:
        return f"no: {type(error).__name__}"


def installed(name: str) -> str:
    """The version of a distribution; empty where it is not there."""
    if name == "torchviz-cnn":
        return tvc.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
