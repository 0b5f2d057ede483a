"""Maps that stay in oneDNN's layout: the same values as without, and no code of the user's meets one."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model

import torchviz_cnn as tvc
from tests.conftest import unchanged
from torchviz_cnn.hooks import HookManager
from torchviz_cnn.methods import blocked_maps as module
from torchviz_cnn.methods import faster_on_cpu as faster
from torchviz_cnn.methods.blocked_maps import BlockedMaps, blocked_maps

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="needs oneDNN",
)


POOL, POOL_BACK = (
    torch.ops.aten.max_pool2d_with_indices.default,
    torch.ops.aten.max_pool2d_with_indices_backward.default,
)


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Tiny networks are worth it too; tells which operations ran in blocks."""
    ran: set[Any] = set()

    def watched(func: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            found = run(*args)
            if found is not None:
                ran.add(func)
            return found

        return step

    monkeypatch.setattr(module, "_LARGE", 1)
    monkeypatch.setattr(module, "_IN_BLOCKS", {func: watched(func, run) for func, run in module._IN_BLOCKS.items()})
    return ran


def without(run: Callable[[], Tensor]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faster, "blocked_maps", lambda model, hooks, x: contextlib.nullcontext())
        return run()


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 6)]


def conv(before: int, after: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, **{"padding": kernel // 2, **options})


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "like VGG": lambda: [conv(3, 16), relu(), conv(16, 32), relu(), nn.MaxPool2d(2), conv(32, 48), relu(), *head(48)],
    "out of place": lambda: [conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.MaxPool2d(2), *head(16)],
    "no multiple of 16": lambda: [conv(1, 5), relu(), conv(5, 7), relu(), nn.MaxPool2d(2), conv(7, 19), relu(), *head(19)],
    "bias, groups and dilation": lambda: [
        conv(3, 16, bias=False), relu(), conv(16, 32, groups=4), relu(), conv(32, 32, dilation=2), relu(), *head(32),
    ],
    "depthwise and pointwise": lambda: [conv(3, 16), relu(), conv(16, 16, groups=16), relu(), conv(16, 32, 1), relu(), *head(32)],
    "strides and padding modes": lambda: [
        conv(3, 16, 5, stride=2), relu(), conv(16, 16, padding="same"), relu(), conv(16, 16, padding_mode="reflect"), relu(), *head(16),
    ],
    "not square": lambda: [
        conv(3, 16), relu(), nn.Conv2d(16, 16, (1, 5), (1, 2), (0, 2)), relu(), nn.MaxPool2d((1, 2), (1, 2)), *head(16),
    ],
    "other layers between": lambda: [
        conv(3, 16), relu(), conv(16, 16), relu(), conv(16, 16), nn.BatchNorm2d(16), relu(), conv(16, 16), relu(),
        conv(16, 16), nn.Sigmoid(), nn.AvgPool2d(2), conv(16, 8), relu(), *head(8),
    ],
    "ends in a convolution": lambda: [conv(3, 16), relu(), nn.MaxPool2d(2), conv(16, 6, 12, padding=0)],
    "dropout": lambda: [conv(3, 16), relu(), nn.Dropout(0.5), conv(16, 16), relu(), nn.Dropout2d(0.5), nn.MaxPool2d(2), *head(16)],
    "linear chain": lambda: [conv(3, 16), conv(16, 16), nn.Identity(), conv(16, 16), *head(16)],
    "no pool of windows that share pixels": lambda: [conv(3, 16), relu(), conv(16, 16), nn.MaxPool2d(2, ceil_mode=True), *head(16)],
}  # fmt: skip


def chain(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*CHAINS[name]()).eval()


def images(model: nn.Module, count: int = 3, size: int = 24) -> Tensor:
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    return torch.randn(
        count, channels, size, size + 1 if count == 1 else size, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("rule", ["standard", "guided", "deconvnet"])
def test_gradients_are_the_same(in_blocks: set[Any], name: str, rule: Any) -> None:
    model = chain(name)
    if rule != "standard" and not any(isinstance(m, nn.ReLU) for m in model.modules()):
        pytest.skip("has no ReLU")
    x = images(model)

    def run() -> Tensor:
        found = tvc.saliency(model, x, 2, relu=rule, other_activations="plain")
        assert type(found.gradients) is type(found.logits) is Tensor
        return torch.cat([found.gradients.flatten(1), found.logits], 1)

    with unchanged(model):
        found = run()
    assert torch.ops.aten.convolution_backward.default in in_blocks
    assert torch.equal(found, without(run))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0), (5, 3, 2)])
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_whose_windows_overlap(in_blocks: set[Any], kernel: int, stride: int, padding: int, ceil: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(3, 16), relu(), nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), conv(16, 16), relu(), *head(16)
    ).eval()
    x = images(model)
    x[:, :, :12] = 0.5  # every window a tie
    found = tvc.saliency(model, x, 2)
    assert {POOL, POOL_BACK} <= in_blocks
    expected = without(lambda: tvc.saliency(model, x, 2).gradients)
    assert (
        found.gradients - expected
    ).abs().max() <= 1e-6 * expected.abs().max()  # pixels of two windows add up in another order


@pytest.mark.parametrize(
    "method", ["two classes", "guided_grad_cam", "guided_grad_cam of two", "smooth_grad", "integrated"]
)
def test_every_method_of_the_family(in_blocks: set[Any], method: str) -> None:
    model = chain("like VGG")
    x = images(model, 2)
    classes = torch.tensor([[1, 4], [0, 2]])

    def run() -> Tensor:
        if method == "two classes":
            return tvc.saliency(model, x, classes, relu="guided").gradients
        if method == "guided_grad_cam":
            return tvc.guided_grad_cam(model, x, "6", 3).gradients
        if method == "guided_grad_cam of two":
            return tvc.guided_grad_cam(model, x, "3", classes).gradients
        if method == "smooth_grad":
            return tvc.smooth_grad(model, x, 1, samples=5, batch_size=2).gradients
        return tvc.integrated_gradients(model, x, 1, steps=5).gradients

    with unchanged(model):
        found = run()
    assert (POOL in in_blocks) == ("two" not in method)  # gradients of several classes would leave the blocks
    expected = without(run)
    assert type(found) is Tensor
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


class Mine(nn.Module):
    """A network of the user's, who looks at what passes."""

    def __init__(self, parts: str = "whole") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(conv(3, 16), relu(), conv(16, 16), relu(), nn.MaxPool2d(2))
        self.more = conv(16, 8)
        self.head = nn.Linear(8 * 144, 5)
        self.parts = parts
        self.seen: set[type] = set()
        self.back: set[type] = set()

    def forward(self, x: Tensor) -> Tensor:
        if self.parts == "one by one":
            for layer in self.features:
                x = layer(x)
                self.look(x)
        elif self.parts == "checkpoint":
            x = checkpoint(self.features, x, use_reentrant=False)
        else:
            x = self.features(x)
        self.look(x)
        if self.parts == "in place":
            x += 1
            x = x.mul_(2)
        x = F.relu(self.more(x))
        self.look(x)
        scores: Tensor = self.head(x.flatten(1))
        return scores

    def look(self, x: Tensor) -> None:
        self.seen.add(type(x))
        x.register_hook(lambda gradient: self.back.add(type(gradient)))  # type: ignore[no-untyped-call]
        x.detach().numpy()


@pytest.mark.parametrize("parts", ["whole", "one by one", "in place", "checkpoint"])
@pytest.mark.parametrize("rule", ["standard", "guided"])
def test_the_users_code_sees_ordinary_tensors(in_blocks: set[Any], parts: str, rule: Any) -> None:
    model = Mine(parts).eval()
    x = images(model)
    found = tvc.saliency(model, x, 2, relu=rule).gradients
    assert (POOL in in_blocks) == (parts != "one by one")
    assert model.seen == model.back == {Tensor}
    assert torch.equal(found, without(lambda: tvc.saliency(model, x, 2, relu=rule).gradients))


@pytest.mark.parametrize("hook", ["forward", "pre", "backward", "everywhere", "outer"])
def test_hooks_of_the_users_see_ordinary_tensors(in_blocks: set[Any], hook: str) -> None:
    model = chain("out of place")
    seen: set[type] = set()

    def look(module: nn.Module, args: Any, output: Any = None) -> None:
        seen.update(type(value) for value in (*args, output) if isinstance(value, Tensor))

    with contextlib.ExitStack() as stack:
        if hook == "outer":
            hooks = stack.enter_context(HookManager(model))
            hooks.on_forward("3", lambda name, output: seen.add(type(output)))
        else:
            handle: Any = {
                "forward": model[3].register_forward_hook,
                "pre": model[3].register_forward_pre_hook,
                "backward": model[3].register_full_backward_hook,
                "everywhere": nn.modules.module.register_module_forward_hook,
            }[hook](look)  # type: ignore[operator]
            stack.callback(handle.remove)
        tvc.saliency(model, images(model), 2)
    assert seen == {Tensor}
    assert not in_blocks


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_nan_is_found_as_ever(where: str) -> None:
    """oneDNN's ReLU makes zero of NaN: nothing may pass that could be one."""
    model = chain("like VGG")
    with torch.no_grad():
        getattr(model[2], where).view(-1)[7] = torch.nan
    with pytest.raises(tvc.ModelError, match="NaN"):
        tvc.saliency(model, images(model), 2)


def test_maps_that_grow_without_bounds_are_computed_as_ever(in_blocks: set[Any]) -> None:
    model = chain("like VGG")
    x, convolutions = images(model), cast(Sequence[nn.Conv2d], model)
    with torch.no_grad():
        convolutions[0].weight *= 1e25
        convolutions[2].weight *= 1e25
    with pytest.raises(tvc.ModelError, match="NaN"):
        tvc.saliency(model, x, 2)
    with torch.no_grad():
        convolutions[2].weight *= 1e-30
    assert torch.equal(tvc.saliency(model, x, 2).gradients, without(lambda: tvc.saliency(model, x, 2).gradients))
    assert torch.ops.aten.convolution.default in in_blocks


def test_only_where_it_pays() -> None:
    def places(model: nn.Module, x: Tensor) -> list[str]:
        return list(module._places(model, x))

    like_vgg, large = chain("like VGG"), torch.empty(2, 3, 224, 224)
    assert places(like_vgg, large) == [""]
    assert places(Mine(), large) == ["features"]
    assert places(like_vgg, torch.empty(1, 3, 64, 64)) == []
    assert places(nn.Sequential(conv(8, 64), relu(), conv(64, 64), relu()), torch.empty(2, 8, 224, 224)) == []
    assert places(nn.Sequential(conv(3, 64), nn.BatchNorm2d(64), relu(), conv(64, 64)), large) == []

    class Odd(nn.Conv2d):
        pass

    assert places(nn.Sequential(conv(3, 64), relu(), Odd(64, 64, 3), relu(), conv(64, 64)), large) == []
    patched = copy.deepcopy(like_vgg)
    patched[2].forward = lambda x: x  # type: ignore[method-assign]
    assert places(patched, large) == []
    assert places(copy.deepcopy(like_vgg).to("meta"), large) == []


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "channels last", "autocast"])
def test_other_kinds_run_as_ever(in_blocks: set[Any], kind: str) -> None:
    model = chain("like VGG")
    x = images(model)
    context: Any = contextlib.nullcontext()
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif kind == "autocast":
        context = torch.autocast("cpu", dtype=torch.bfloat16)
    else:
        model, x = model.to(getattr(torch, kind)), x.to(getattr(torch, kind))
    with context:
        found = tvc.saliency(model, x, 2).gradients
    assert not in_blocks
    with context:
        assert torch.equal(found, without(lambda: tvc.saliency(model, x, 2).gradients))


def held(values: Tensor) -> BlockedMaps:
    return BlockedMaps(module._Cell(values.to_mkldnn(), float(values.abs().max())))


def test_it_is_a_tensor_like_any_other() -> None:
    values = torch.randn(2, 16, 6, 6)
    maps = held(values)
    assert maps.shape == values.shape
    assert maps.is_contiguous()
    shared, copied = maps.detach(), maps.clone()
    assert torch.equal(copied + 0, values)
    assert type(maps.flatten(1)) is Tensor
    row = maps[0]  # a view: from here on in the usual order
    maps.relu_()
    assert torch.equal(row, values[0].relu())
    assert torch.equal(shared + 0, values.relu())
    row.mul_(3)
    assert torch.equal(maps + 0, values.relu() * torch.tensor([3.0, 1.0])[:, None, None, None])
    assert maps.add_(1) is maps
    assert torch.equal(copied + 0, values)
    out = torch.empty(2, 16, 6, 6)
    torch.add(held(values), 1, out=out)
    assert torch.equal(out, values + 1)
    assert torch.equal(out.sub_(held(values)), values + 1 - values)


def test_indices_of_a_pool_are_there_for_those_who_ask() -> None:
    values = torch.randn(2, 16, 6, 6)
    pooled, indices = F.max_pool2d(held(values), 2, return_indices=True)
    expected, where = F.max_pool2d(values, 2, return_indices=True)
    assert type(pooled) is BlockedMaps
    assert torch.equal(pooled + 0, expected)
    assert torch.equal(indices + 0, where)
    assert torch.equal(F.max_unpool2d(pooled, indices, [2, 2]), F.max_unpool2d(expected, where, [2, 2]))


@pytest.mark.parametrize("how", ["compiled", "fails", "in a thread", "gives indices"])
def test_places_that_are_odd(in_blocks: set[Any], how: str) -> None:
    class Odd(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.outside = torch.randn(8, 3, 3, 3)
            self.pool: nn.Module = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            if how == "fails":
                with contextlib.suppress(RuntimeError):
                    self.features(x[:, :2])
            elif how == "in a thread":
                for event in (entered, done):
                    event.clear()
                thread = threading.Thread(target=self.features, args=(x.detach(),))
                thread.start()
                entered.wait()
                self.look(F.conv2d(x, self.outside, padding=1))
                done.set()
                thread.join()
            elif how == "gives indices":
                values, indices = F.max_pool2d(self.features(x), 1), self.pool(self.features(x))[1]
                indices.numpy()
                return super().forward(x) + values.mean()
            self.look(F.conv2d(x, self.outside, padding=1))
            return super().forward(x)

    entered, done = threading.Event(), threading.Event()
    model = Odd().eval()
    if how == "compiled":
        model.features = torch.compile(model.features, backend="eager")  # type: ignore[assignment]
    elif how == "in a thread":

        class Waits(nn.Identity):
            def forward(self, input: Tensor) -> Tensor:
                if threading.current_thread() is not threading.main_thread():
                    entered.set()
                    done.wait()
                return input

        Waits.__module__ = nn.Identity.__module__
        model.features.append(Waits())
    elif how == "gives indices":
        model.pool = nn.Sequential(conv(16, 16), relu(), conv(16, 16), nn.MaxPool2d(2, return_indices=True))
    x = images(model)
    found = tvc.saliency(model, x, 2).gradients
    assert torch.equal(found, without(lambda: tvc.saliency(model, x, 2).gradients))
    assert model.seen == {Tensor}


@pytest.mark.parametrize("write", [lambda y: y.mul_(2), F.relu_, lambda y: y])
def test_default_layer_of_guided_grad_cam_is_written_into(
    in_blocks: set[Any], write: Callable[[Tensor], Tensor]
) -> None:
    class Writes(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(conv(3, 16), relu(), conv(16, 16), relu(), conv(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(write(self.features(x)).repeat(1, 1, 1, 1).flatten(1)[:, : 8 * 144])
            return scores

    model = Writes().eval()
    x = images(model)
    layer = tvc.grad_cam(model, x).layer
    assert layer == "features"
    assert torch.equal(tvc.guided_grad_cam(model, x).gradients, tvc.guided_grad_cam(model, x, layer).gradients)
    assert in_blocks


def test_small_maps_of_a_single_image_are_left_to_pytorch(in_blocks: set[Any]) -> None:
    """It may convolve them without oneDNN, which rounds in another way."""
    torch.manual_seed(0)
    blocks = [part for n in (3, 32, 32) for part in (conv(n, 32), relu(), nn.MaxPool2d(4))]
    model = nn.Sequential(*blocks, conv(32, 32), relu(), conv(32, 32), relu(), *head(32)).eval()
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    found = tvc.saliency(model, x, 2)
    assert POOL in in_blocks
    assert torch.equal(found.gradients, without(lambda: tvc.saliency(model, x, 2).gradients))


@pytest.mark.parametrize("watcher", ["function mode", "dispatch mode", "saved tensors"])
def test_those_who_watch_see_the_operations_as_they_are(in_blocks: set[Any], watcher: str) -> None:
    class Function(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    model = chain("like VGG")
    watchers: dict[str, Any] = {
        "function mode": Function,
        "dispatch mode": Dispatch,
        "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy),
    }
    x = images(model)
    with watchers[watcher]():
        found = tvc.saliency(model, x, 2).gradients
    assert not in_blocks
    assert torch.equal(found, tvc.saliency(model, x, 2).gradients)
    assert in_blocks


def test_pools_that_pytorch_refuses_are_refused() -> None:
    values = torch.randn(2, 16, 8, 8)
    for kernel, stride, padding in ((3, 2, 2), (2, 0, 0)):
        with pytest.raises(RuntimeError):
            F.max_pool2d(held(values), kernel, stride, padding)


def test_an_error_on_the_way_leaves_nothing() -> None:
    model = chain("like VGG")
    with HookManager(model) as hooks, pytest.raises(ZeroDivisionError), blocked_maps(model, hooks, torch.empty(9, 3, 224, 224)):  # fmt: skip
        raise ZeroDivisionError
    assert type(model(images(model))) is Tensor


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("vgg11", 1), ("vgg16", 2), ("alexnet", 8)])
@pytest.mark.parametrize("rule", ["standard", "guided"])
def test_at_full_size(name: str, batch: int, rule: Any) -> None:
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval()
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    assert list(module._places(model, x)) == [""]
    found = tvc.saliency(model, x, 2, relu=rule)
    logits = without(lambda: tvc.saliency(model, x, 2, relu=rule).logits)
    gradients = without(lambda: tvc.saliency(model, x, 2, relu=rule).gradients)
    assert torch.equal(found.logits, logits)
    assert (found.gradients - gradients).abs().max() <= 1e-6 * gradients.abs().max()
