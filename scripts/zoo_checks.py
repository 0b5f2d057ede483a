"""What is checked of a network in `zoo.py`, against references that are written out in plain PyTorch."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc

SIDES = (96, 128, 224)
"""Sides of the input in pixels; the first at which the network runs is taken."""
Score = Callable[[Any], Tensor]
"""What is explained of an output: (B,)."""
Judge = Callable[["Subject"], str]
"""Says `ok`, `option: ...` or `not applicable: ...`; raises AssertionError where something is wrong."""


def build(name: str) -> nn.Module:
    """A network with random weights, none of which are all zero, so that the scores depend on every layer."""
    room, _, short = name.rpartition("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if room == "timm":
            import timm

            model: nn.Module = timm.create_model(short, pretrained=False)
        else:
            parts: dict[str, Any] = {"weights_backbone": None} if room in ("segmentation", "detection") else {}
            if room == "detection":  # with random weights no box is sure
                parts["box_score_thresh" if short.startswith("faster") else "score_thresh"] = 0.0
            model = torchvision.models.get_model(short, weights=None, **parts)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.uniform_(parameter, -0.1, 0.1)
    return model


class Subject:
    """A network, its input, and what plain PyTorch says about it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plain = build(name).eval()
        """For the references."""
        self.x = self._smallest_input()
        self._measure_statistics()
        self.model = copy.deepcopy(self.plain).train()
        """For the library: in the middle of its training."""
        for i, parameter in enumerate(self.model.parameters()):
            parameter.requires_grad_(i % 3 != 0)
            parameter.grad = torch.ones_like(parameter) if i % 5 == 1 else None
        self.layer = ""
        """The default layer, once `grad_cam` has said which it is."""
        self.sides: tuple[int, ...] = ()
        """The sides of its maps."""
        self.asked, self.score = self._target()

    @property
    def side(self) -> int:
        return self.x.shape[-1]

    def _target(self) -> tuple[dict[str, Any], Score]:
        """What the library is asked to explain, and the same score of an output in plain PyTorch."""
        if self.name.startswith("segmentation/"):
            with torch.no_grad():
                index = int(self.plain(self.x)["out"].argmax(1).mode().values.mode().values[0])
            return {"target": tvc.targets.region(None, index), "output": "out"}, partial(predicted_region, index)
        if self.name.startswith("detection/"):
            return {"target": tvc.targets.box(0)}, lambda output: torch.stack([one["scores"][0] for one in output])
        return {}, lambda output: output.amax(1)

    def _smallest_input(self) -> Tensor:
        frames = (8,) if self.name.startswith("video/") else ()
        refusals = []
        for side in SIDES:
            frames = (16,) if frames and side == SIDES[-1] else frames
            x = torch.rand(1, 3, *frames, side, side, generator=torch.Generator().manual_seed(1))
            try:
                with torch.no_grad():
                    self.plain(x)
                return x
            except (RuntimeError, AssertionError, ValueError) as error:  # how networks refuse a size
                refusals.append(f"{side} px: {error}")
        raise ValueError(f"{self.name} runs at none of these sizes: {'; '.join(refusals)}")

    def _measure_statistics(self) -> None:
        """Normalise as after training: with random weights alone, deep networks give zeros or infinities."""
        norms = [m for m in self.plain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.no_grad():
            self.plain(torch.cat([self.x, self.x.flip(-1) * 0.5]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def predicted_region(index: int, output: dict[str, Tensor]) -> Tensor:
    """The mean score of a class over the pixels where it is predicted: (B,)."""
    inside = output["out"].argmax(1) == index
    return torch.stack([maps[index][one].mean() for maps, one in zip(output["out"], inside, strict=True)])


# --- the references, in plain PyTorch -------------------------------------------------------------------------------


@contextmanager
def kept(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Keep what one call of a layer gives; the network goes on with a copy, into which it may write."""
    name, _, call = layer.partition("#")
    outputs: list[Tensor] = []
    calls = 0

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls != int(call or 0) + 1:
            return None
        outputs.append(output)
        return output.clone()

    handle = model.get_submodule(name).register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def plain_grad_cam(subject: Subject, layer: str, sides: Sequence[int]) -> Tensor:
    """The sum of a layer's channels weighted by their mean gradients, before the ReLU, for maps of these sides."""
    with torch.enable_grad(), kept(subject.plain, layer) as outputs:
        score = subject.score(subject.plain(subject.x.clone().requires_grad_())).sum()
        (gradient,) = torch.autograd.grad(score, outputs[0])
    maps, weights = (as_maps(tensor.detach(), sides) for tensor in (outputs[0], gradient))
    places = tuple(range(2, maps.ndim))
    return (weights.mean(places, keepdim=True) * maps).sum(1)


def as_maps(tensor: Tensor, sides: Sequence[int]) -> Tensor:
    """Maps (B, C, *sides) from these, from maps with their channels last, or from the last tokens of (B, N, C)."""
    if tensor.shape[2:] == tuple(sides):
        return tensor
    if tensor.ndim == 3:
        tensor = tensor[:, -math.prod(sides) :].reshape(len(tensor), *sides, -1)
    assert tensor.shape[1:-1] == tuple(sides), f"{tuple(tensor.shape)} are no maps of {tuple(sides)}"
    return tensor.movedim(-1, 1)


class Guided(torch.autograd.Function):
    """A ReLU that lets back only what is positive, where it was open."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (is_open,) = ctx.saved_tensors
        return gradient.clamp(min=0) * is_open, None


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def guided_relu(x: Tensor, inplace: bool = False, top: float = float("inf")) -> Tensor:
    out: Tensor = Guided.apply(x, top)  # type: ignore[no-untyped-call]
    return out


def guided_gradient(model: nn.Module, x: Tensor, score: Score) -> Tensor:
    """The gradient of a score in a copy of the network whose ReLUs are others."""
    guided = rebuilt(model, guided_part)
    leaf = x.clone().requires_grad_()
    with mock.patch.object(F, "relu", guided_relu):
        (gradient,) = torch.autograd.grad(score(guided(leaf)).sum(), leaf)
    return gradient


def guided_part(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.ReLU6):
        return Function(lambda x: guided_relu(x, top=6.0))
    return Function(guided_relu) if isinstance(module, nn.ReLU) else None


def rebuilt(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy of a network with other modules in the place of some."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (new := replacement(child)) is not None:
                setattr(parent, name, new)
    return model


def averaged(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, **options: Any) -> Tensor:
    return F.avg_pool2d(input, kernel_size, stride, padding, bool(options.get("ceil_mode")))


def positive_part(module: nn.Module) -> nn.Module | None:
    """What sees the same pixels, with nothing that cancels: weights above zero, averages for maxima."""
    if isinstance(module, (nn.ReLU, nn.ReLU6, nn.BatchNorm2d)):
        identity = nn.Identity()
        identity.act = nn.Identity()  # timm's normalisations have an activation, which some networks ask for
        return identity
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    if isinstance(module, nn.Conv2d):
        fan = module.weight[0].numel()
        nn.init.uniform_(module.weight, 0.5 / fan, 1.5 / fan)
    return None


def seen_pixels(model: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """From which pixel to which the unit in the middle of each layer's map depends on the input, by dimension."""
    with torch.random.fork_rng(devices=[]):
        positive, boxes = rebuilt(model, positive_part).double(), {}
    for layer in layers:
        leaf = x.double().requires_grad_()
        identity = mock.patch.object(F, "relu", lambda x, inplace=False: x)
        with kept(positive, layer) as outputs, identity, mock.patch.object(F, "max_pool2d", averaged):
            positive(leaf)
        middle = [(side - 1) // 2 for side in outputs[0].shape[2:]]
        (gradient,) = torch.autograd.grad(outputs[0][0, :, middle[0], middle[1]].sum(), leaf)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        boxes[layer] = [(int(side.min()), int(side.max()) + 1) for side in (rows, columns)]
    return boxes


def is_convolutional(model: nn.Module) -> bool:
    """Whether each unit of the trunk sees a window, and only by modules that `positive_part` knows."""
    gates = ("SE", "Eca", "Squeeze", "SelectiveKernel", "Split")
    windows = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    simple = (*windows, nn.Linear, nn.Dropout, nn.Identity, nn.Flatten)
    leaves = [m for m in model.modules() if not list(m.children())]
    gated = any(type(m).__name__.startswith(gates) for m in model.modules() if type(m).__name__ != "SqueezeNet")
    return not gated and all(isinstance(m, simple) for m in leaves)


# --- the checks: what a network's outcome says ----------------------------------------------------------------------


def close(ours: Tensor, expected: Tensor, what: str) -> str:
    """Within 1e-4 of the largest value."""
    scale = float(expected.abs().max())
    assert scale > 0, f"{what}: the reference is zero everywhere"
    difference = float((ours - expected).abs().max()) / scale
    assert difference < 1e-4, f"{what} is off by {difference:.1e} of its largest value"
    return "ok"


def check_grad_cam(subject: Subject) -> str:
    cam = tvc.grad_cam(subject.model, subject.x, relu=False, **subject.asked)
    subject.layer, subject.sides = cam.layer, tuple(cam.values.shape[1:])
    return close(cam.values, plain_grad_cam(subject, cam.layer, subject.sides), f"Grad-CAM of {cam.layer}")


def check_default_layer(subject: Subject) -> str:
    if not subject.layer:
        return "not applicable: nothing is explained"
    if subject.name.startswith("detection/"):
        return "not applicable: the network takes its input at a size of its own"
    parts = [subject.side / side for side in subject.sides[-2:]]
    assert all(2 <= part <= 64 for part in parts), f"{subject.layer} has maps of {subject.sides}"
    return "ok"


def check_capture(subject: Subject) -> str:
    layer = subject.layer or tvc.layer_names(subject.model)[0]
    ours = tvc.capture(subject.model, subject.x, [layer])[layer]
    with torch.no_grad(), kept(subject.plain, layer) as outputs:
        subject.plain(subject.x)
    return close(ours, outputs[0], f"capture of {layer}")


def check_guided(subject: Subject) -> str:
    if not subject.layer:
        return "not applicable: nothing is explained"
    option = ""
    try:
        ours = tvc.saliency(subject.model, subject.x, relu="guided", **subject.asked).gradients
    except tvc.LayerError:
        option = 'option: `other_activations="plain"` for guided rules'
        try:
            plain: dict[str, Any] = {"other_activations": "plain", **subject.asked}
            ours = tvc.saliency(subject.model, subject.x, relu="guided", **plain).gradients
        except tvc.LayerError as error:
            if "met no ReLU" not in str(error):
                raise
            return "not applicable: no ReLU"
    close(ours, guided_gradient(subject.plain, subject.x, subject.score), "the guided gradient")
    return option or "ok"


def check_receptive_field(subject: Subject) -> str:
    if not subject.layer or not is_convolutional(subject.plain):
        return "not applicable: not only convolutions"
    windows = ("Conv2d", "MaxPool2d", "AvgPool2d")
    rows = [row for row in tvc.describe(subject.model, subject.x).layers if row.type.startswith(windows)]
    last = [row for row in rows if row.output_shape[1:] == subject.sides][-1:]
    inside = [row for row in rows if max(row.receptive_field.size) <= subject.side / 2][-1:]  # type: ignore[union-attr]
    pixels = seen_pixels(subject.plain, subject.x, [row.name for row in [*last, *inside]])
    for row in (*last, *inside):
        field = row.receptive_field
        assert field is not None
        for d, side in enumerate(row.output_shape[1:]):
            low = int(field.start[d] + (side - 1) // 2 * field.stride[d])
            said = (0, subject.side) if field.whole else (low, low + field.size[d])
            true = pixels[row.name][d]
            assert agrees(said, true, subject.side, field.stride[d]), (
                f"the field of {row.name}: {said} said, {true} true"
            )
    return "ok"


def agrees(said: tuple[int, int], true: tuple[int, int], side: int, stride: float) -> bool:
    """Whether a field is the range of pixels that matter; those at the end, which no window takes in, do not."""
    low, high = max(said[0], 0), min(said[1], side)
    return true[0] == low and (true[1] == high if said[1] <= side else side - stride < true[1] <= side)


def check_report(subject: Subject) -> str:
    side = subject.side
    if not subject.layer or subject.asked or subject.x.ndim != 4:
        return "not applicable: the page is for photos and classes"
    net = tvc.Network(subject.model, tvc.Preprocess((side, side)), None, subject.name, "random")
    photo = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        page = tvc.report(net, [photo], folder, layers=[subject.layer], budget=0, k=2, classes=1)
        assert page.path.stat().st_size > 10_000
    return "ok"


CHECKS: dict[str, Judge] = {
    "Grad-CAM": check_grad_cam,
    "default layer": check_default_layer,
    "capture": check_capture,
    "guided rule": check_guided,
    "receptive field": check_receptive_field,
    "report": check_report,
}


# --- the network is what it was -------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that a call could leave otherwise: equal before and after."""
    state: dict[str, Any] = {"random": torch.get_rng_state().tolist(), "gradients": torch.is_grad_enabled()}
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        state[f"{name} (module)"] = (id(module), module.training, sorted(vars(module)), hooks)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if tensor.grad is None else (id(tensor.grad), float(tensor.grad.double().sum()))
        state[name] = (
            id(tensor),
            tensor.data_ptr(),
            tensor.requires_grad,
            gradient,
            float(tensor.detach().double().sum()),
        )
    return state


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what is not what it was."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
