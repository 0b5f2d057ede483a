"""Every way of writing a ReLU gets the backward rule that was asked for, and the model notices nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import CLASSES, images, seeded
from torchviz_cnn.core.errors import LayerError
from torchviz_cnn.hooks.relu_rules import relu_rule

RULES: Any = ["standard", "guided", "deconvnet"]


def written(x: Tensor) -> Tensor:
    x.relu_()  # what it returns is not used
    return x


SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "nn.ReLU": (nn.ReLU(), False),
    "nn.ReLU(inplace)": (nn.ReLU(inplace=True), True),
    "F.relu": (F.relu, False),
    "F.relu(inplace)": (lambda x: F.relu(x, inplace=True), True),
    "F.relu_": (F.relu_, True),
    "torch.relu": (torch.relu, False),
    "torch.relu_": (torch.relu_, True),
    "Tensor.relu": (lambda x: x.relu(), False),
    "Tensor.relu_": (lambda x: x.relu_(), True),
    "Tensor.relu_, unused": (written, True),
    "torch.clamp(min=0)": (lambda x: torch.clamp(x, min=0), False),
    "Tensor.clamp(0)": (lambda x: x.clamp(0), False),
    "Tensor.clamp_(min=0)": (lambda x: x.clamp_(min=0), True),
    "Tensor.clamp_min(0.0)": (lambda x: x.clamp_min(0.0), False),
    "torch.clamp_min_": (lambda x: torch.clamp_min_(x, 0), True),
    "torch.clip": (lambda x: torch.clip(x, 0), False),
    "nn.Threshold": (nn.Threshold(0, 0), False),
    "F.threshold_": (lambda x: F.threshold_(x, 0, 0), True),  # type: ignore[attr-defined]
}
CLIPPED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "nn.ReLU6": (nn.ReLU6(), False),
    "nn.ReLU6(inplace)": (nn.ReLU6(inplace=True), True),
    "F.relu6": (F.relu6, False),
    "F.relu6(inplace)": (lambda x: F.relu6(x, inplace=True), True),
    "nn.Hardtanh(0, 6)": (nn.Hardtanh(0, 6), False),
    "F.hardtanh_": (lambda x: F.hardtanh_(x, 0.0, 6.0), True),
    "torch.clamp(0, 6)": (lambda x: torch.clamp(x, 0, 6), False),
    "Tensor.clamp_(0, 6)": (lambda x: x.clamp_(0, 6), True),
}


def formula(rule: str, x: Tensor, g: Tensor, top: float) -> Tensor:
    gate = ((x > 0) & (x < top)).float()
    return {"standard": g * gate, "guided": g.relu() * gate, "deconvnet": g.relu()}[rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*SPELLINGS, *CLIPPED])
def test_every_spelling_follows_the_rule(name: str, rule: Any) -> None:
    function, inplace = (SPELLINGS | CLIPPED)[name]
    top = 6.0 if name in CLIPPED else float("inf")
    x, g = 5 * images(2), images(2, seed=1)
    x[0, 0, 0, :4] = torch.tensor([0.0, 6.0, -0.0, 7.0])
    leaf = x.clone().requires_grad_()
    with relu_rule(rule) as counted:
        given = leaf * 1
        out = function(given)
        (gradient,) = torch.autograd.grad(out, leaf, g)
    assert counted.count == 1
    assert torch.equal(out, x.clamp(0, top))
    assert (out is given) == inplace
    assert torch.equal(gradient, formula(rule, x, g, top))
    # without a graph, the function is what it was
    with relu_rule(rule) as counted:
        out = function(x.clone())
    assert torch.equal(out, x.clamp(0, top))
    assert counted.count == 0


def test_what_is_no_relu_is_left_alone() -> None:
    x = images(1).requires_grad_()
    with relu_rule("deconvnet") as rule:
        for out in (x.clamp(min=0.5), (x / 6 + 0.5).clamp(0, 1), x.sigmoid(), F.hardsigmoid(x), x.softmax(1)):
            (negative,) = torch.autograd.grad(out, x, -torch.ones_like(x))
            assert bool((negative < 0).any())  # which the deconvnet's rule would have cut off
        (gradient,) = torch.autograd.grad(-x.clamp(-1, 1).sum(), x)
    assert rule.count == 0
    assert torch.equal(gradient, -((x >= -1) & (x <= 1)).float())


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.GELU(), "GELU"),
        (nn.SiLU(inplace=True), "SiLU"),
        (nn.Hardswish(), "Hardswish"),
        (nn.Mish(), "Mish"),
        (nn.LeakyReLU(0.1, inplace=True), "LeakyReLU"),
        (nn.PReLU(), "PReLU"),
        (nn.ELU(), "ELU"),
        (nn.SELU(), "SELU"),
        (nn.CELU(), "CELU"),
        (nn.Tanh(), "tanh"),
        (nn.Hardtanh(), "Hardtanh"),
        (nn.Softplus(), "Softplus"),
        (nn.LogSigmoid(), "LogSigmoid"),
        (nn.Softshrink(), "Softshrink"),
        (nn.Hardshrink(), "Hardshrink"),
        (nn.Threshold(0.1, 0.0), "Threshold"),
    ],
)
def test_other_activations_are_named_and_may_keep_their_gradient(activation: nn.Module, name: str) -> None:
    @seeded
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    model = build()
    x, target = images(1), int(model(images(1))[0, :, 0, 0].argmax())
    with unchanged(model, x), pytest.raises(tvc.LayerError, match=f"also uses {name}; other_activations='plain'"):
        tvc.saliency(model, x, target, relu="guided")
    plain = tvc.saliency(model, x, target, relu="guided", other_activations="plain")
    with relu_rule("guided", other_activations="plain"):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
    assert torch.allclose(plain.gradients, expected, rtol=1e-4, atol=1e-7)
    tvc.saliency(model, x, target)  # the plain gradient minds no activation


def test_a_rule_that_meets_no_relu_is_an_error() -> None:
    linear = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(tvc.LayerError, match="guided rule met no ReLU in Sequential"):
        tvc.saliency(linear, images(1), 0, relu="guided")


class Biased(nn.Module):
    """As in Swin V2: a GELU on the way of the image, and a ReLU in a small network that makes biases of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.biases = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
        self.register_buffer("position", torch.tensor([[0.5, -0.5]]))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = F.gelu(self.conv(x)).mean((2, 3)) + self.biases(self.position)
        return scores


def test_a_relu_that_no_gradient_of_the_image_goes_through_is_not_met() -> None:
    for relu in ("guided", "deconvnet"):
        with pytest.raises(tvc.LayerError, match=f"{relu} rule met no ReLU in Biased"):
            tvc.saliency(seeded(Biased)(), images(1), 0, relu=relu, other_activations="plain")


def test_wrong_options() -> None:
    with pytest.raises(tvc.InputError, match="no ReLU rule 'guide'; did you mean 'guided'"):
        relu_rule("guide")  # type: ignore[arg-type]
    with pytest.raises(tvc.InputError, match="no other_activations 'ignore'; there are error, plain"):
        relu_rule("guided", other_activations="ignore")  # type: ignore[arg-type]


class FiveReLUs(nn.Module):
    """One small network, its five ReLUs written in one of several ways."""

    def __init__(self, relu: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.relus = [relu() for _ in range(5)]
        self.fc1, self.fc2 = nn.Linear(6 * 16, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = self.relus[i](conv(x))
            x = F.max_pool2d(x, 2) if i < 3 else x
        out: Tensor = self.fc2(self.relus[4](self.fc1(x.flatten(1))))
        return out


SHARED, SHARED_INPLACE = nn.ReLU(), nn.ReLU(inplace=True)
WAYS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "in place": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "F.relu(inplace)": lambda: SPELLINGS["F.relu(inplace)"][0],
    "torch.relu": lambda: torch.relu,
    "relu_": lambda: Tensor.relu_,
    "unused": lambda: written,
    "reused": lambda: SHARED,
    "reused in place": lambda: SHARED_INPLACE,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_exactly_what_the_module_gives(way: str, rule: Any) -> None:
    modules, x = seeded(FiveReLUs)(nn.ReLU), images(2)
    other = seeded(FiveReLUs)(WAYS[way])
    assert torch.equal(tvc.saliency(other, x, 1, relu=rule).gradients, tvc.saliency(modules, x, 1, relu=rule).gradients)
    cams = [tvc.guided_grad_cam(model, x, "convs.2", 1).gradients for model in (other, modules)]
    assert torch.equal(cams[0], cams[1])
    units = [tvc.deconvnet(model, x, "convs.3", [0, 3]).values for model in (other, modules)]
    assert torch.equal(units[0], units[1])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("build", [networks.vgg_like, networks.functional_relu, networks.residual, networks.dense])
def test_in_place_networks_equal_an_explicit_modification(build: Callable[[], nn.Module], rule: Any) -> None:
    """The rule as a function of its own instead of every ReLU function, patched into the network's namespace."""
    x = images(2)

    class Explicit(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return formula(rule, ctx.saved_tensors[0], g, float("inf"))

    class Swap(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (F.relu, torch.relu, torch.relu_, Tensor.relu_, Tensor.relu):
                new = Explicit.apply(args[0].clone())  # type: ignore[no-untyped-call]
                return new
            return func(*args, **(kwargs or {}))

    leaf = x.clone().requires_grad_()
    with Swap():
        (expected,) = torch.autograd.grad(build()(leaf)[:, 2].sum(), leaf)
    gradients = tvc.saliency(build(), x, 2, relu=rule).gradients
    assert torch.allclose(gradients, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("rule", RULES)
def test_activation_checkpointing_changes_nothing(rule: Any) -> None:
    x = images(2)
    classes = torch.tensor([[0, 1], [2, 3]])
    for target in (1, classes):
        ours, expected = (
            tvc.saliency(networks.checkpointed(on), x, target, relu=rule).gradients for on in (True, False)
        )
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_memory_efficient_densenet_equals_the_plain_one(rule: Any) -> None:
    from torchvision.models import DenseNet

    x, gradients = images(1, 64), []
    for efficient in (False, True):
        model = seeded(DenseNet)(8, (2, 2), 8, 2, 0, CLASSES, efficient)
        gradients.append(tvc.saliency(model, x, 1, relu=rule).gradients)
        with relu_rule(rule) as counted:
            model(x)
        assert counted.count == 1 + 2 * 4 + 1 + 1  # stem, two per dense layer, transition, the function at the end
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("build", [networks.vgg_like, networks.residual, networks.checkpointed, networks.grouped])
def test_gradients_of_several_classes_run_batched(build: Callable[[], nn.Module], rule: Any) -> None:
    model, leaf = build(), images(2).requires_grad_()
    select = torch.eye(3, CLASSES)[:, None].expand(3, 2, CLASSES)
    with warnings.catch_warnings(), relu_rule(rule, other_activations="plain"):
        warnings.simplefilter("error")  # a rule that were run one by one would warn
        scores = model(leaf.clone())
        one_by_one = [torch.autograd.grad(scores[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3)]
        if build is networks.grouped:
            warnings.filterwarnings("ignore", message="There is a performance drop")  # of hard-swish itself
        (batched,) = torch.autograd.grad(scores, leaf, select, is_grads_batched=True)
    assert torch.allclose(batched, torch.stack(one_by_one), rtol=1e-4, atol=1e-7)


def test_one_graph_can_go_back_under_two_rules() -> None:
    x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    g = torch.tensor([1.0, -1.0, 1.0])
    with relu_rule("guided") as rule:
        y = x.relu()
    (guided,) = torch.autograd.grad(y, x, g, retain_graph=True)
    rule.rule = "standard"
    (plain,) = torch.autograd.grad(y, x, g)
    assert guided.tolist() == [0, 0, 1]
    assert plain.tolist() == [0, -1, 1]


def test_the_rule_ends_with_its_block_also_after_an_error() -> None:
    model = networks.functional_relu()
    with unchanged(model), pytest.raises(ZeroDivisionError), relu_rule("guided"):
        1 / 0  # noqa: B018
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    (plain,) = torch.autograd.grad(x.relu().sum(), x)
    assert plain.tolist() == [0, 1]


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        out: Tensor = gradient * (ctx.saved_tensors[0] > 0)
        return out


def scripted(source: str) -> Any:
    return torch.jit.CompilationUnit(f"def act(x: Tensor) -> Tensor:\n    return {source}\n").act


def emptied(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


UNREACHED: dict[str, Callable[[Tensor], Tensor]] = {
    "scripted relu": scripted("torch.relu(x)"),
    "scripted clamp": scripted("torch.clamp(x, min=0)"),
    "scripted mask": scripted("x * (x > 0)"),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "max of two": lambda x: torch.max(torch.zeros_like(x), x),
    "minimum": lambda x: -torch.minimum(-x, torch.zeros(())),
    "clamp max": lambda x: -(-x).clamp(max=0),
    "clamp by a tensor": lambda x: x.clamp(min=torch.zeros(())),
    "mask": lambda x: x * (x > 0),
    "float mask": lambda x: (x > 0).float() * x,
    "by its sign": lambda x: x * (torch.sign(x) + 1) / 2,
    "scripted threshold": scripted("torch.threshold(x, 0.1, 0.0)"),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "filled": lambda x: x.masked_fill(x < 0, 0),
    "emptied": emptied,
    "absolute": lambda x: (x + x.abs()) / 2,
    "own function": OwnReLU.apply,
    "mask, checkpointed": lambda x: checkpoint(lambda y: y * (y > 0), x, use_reentrant=False),
    "leaky by maximum": lambda x: torch.maximum(x, 0.1 * x),
}


class Activated(nn.Module):
    """A plain ReLU, and then another activation."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, CLASSES)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.act(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return out


@pytest.mark.parametrize("name", UNREACHED)
def test_a_relu_that_the_rule_does_not_reach_is_an_error(name: str) -> None:
    model, x = Activated(UNREACHED[name]).eval(), images()
    for _ in range(3):  # scripted code is compiled once it has run
        with pytest.raises(LayerError, match=r"does not reach everything|may make a mask"):
            tvc.saliency(model, x, target=1, relu="guided")
    with pytest.raises(LayerError, match=r"does not reach everything|may make a mask"):
        tvc.deconvnet(Sequence(model), x[:1], "model", 0)
    plain = tvc.saliency(model, x, target=1, relu="guided", other_activations="plain").gradients
    assert plain.isfinite().all()


class Sequence(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda x: x.relu() * 2,
    "gated": lambda x: x.relu() * x.mean((2, 3), keepdim=True).sigmoid(),
    "hard gate": lambda x: x.relu() * (x / 6 + 0.5).clamp(0, 1),
    "normalised": lambda x: F.normalize(x.relu()),
    "maxout": lambda x: torch.maximum(x[:, :3], x[:, 3:]).repeat(1, 2, 1, 1).relu(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_arithmetic_that_is_no_activation_is_let_through(name: str) -> None:
    model, x = Activated(PLAIN[name]).eval(), images()
    assert tvc.saliency(model, x, target=1, relu="guided").gradients.isfinite().all()


class Windowed(nn.Module):
    """A ReLU, and a mask of its own that hides the border of every map."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.way = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, CLASSES), way
        self.window: Tensor
        self.register_buffer("window", torch.zeros(1, 1, 32, 32, dtype=torch.bool))
        self.window[..., 4:-4, 4:-4] = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.way(self.conv(x).relu(), self.window).mean((2, 3)))
        return out


@pytest.mark.parametrize(
    "way",
    [lambda x, m: x * m, lambda x, m: torch.where(m, x, 0.0), lambda x, m: x.masked_fill(~m, 0.0) * m],
    ids=["factor", "where", "computed"],
)
def test_a_mask_of_the_models_own_is_no_activation(way: Callable[[Tensor, Tensor], Tensor], request: Any) -> None:
    model, x = seeded(lambda: Windowed(way))().eval(), images()
    if request.node.callspec.id == "computed":  # what is computed in the forward pass may depend on the input
        with pytest.raises(LayerError, match="has 'MaskedFill'"):
            tvc.saliency(model, x, target=1, relu="guided")
        return
    gradients = tvc.saliency(model, x, target=1, relu="guided").gradients
    with relu_rule("guided"):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert torch.allclose(gradients, expected)


def test_a_backward_hook_of_the_users_is_no_activation() -> None:
    model, x = networks.vgg_like(inplace=False), images()
    expected = tvc.saliency(model, x, target=1, relu="guided").gradients
    norms: list[float] = []

    def note(module: nn.Module, given: Any, gradients: Any) -> None:
        norms.append(float(gradients[0].norm()))

    model.features[2].register_full_backward_hook(note)
    assert torch.equal(tvc.saliency(model, x, target=1, relu="guided").gradients, expected)
    assert len(norms) == 1
