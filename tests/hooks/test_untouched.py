"""Hard rule 1: after any block of `untouched`, however it ends, model and process are exactly what they were."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import NETWORKS, images
from torchviz_cnn.attribution.cam.formulas import grad_cam
from torchviz_cnn.core.errors import ModelError
from torchviz_cnn.hooks.inputs import input_for
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.capture import capture
from torchviz_cnn.layers.defaults import layer_names
from torchviz_cnn.layers.describe import describe

Mode = Callable[[], AbstractContextManager[Any]]
MODES: dict[str, Mode] = {"plain": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def gradient_of_input(model: nn.Module, x: Tensor) -> Tensor:
    """What every gradient method does."""
    with untouched(model) as frozen, HookManager(frozen) as hooks:
        leaf = input_for(frozen, x).requires_grad_()
        out = hooks.run(leaf, stop_early=False)
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
        return gradient


def with_history(build: Callable[[], nn.Module]) -> nn.Module:
    """A model in the middle of training: mixed training flags, some gradients, some frozen, a user's hook."""
    model = build()
    model.train()
    for i, module in enumerate(model.modules()):
        module.training = i % 3 != 1
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 4 != 3)
        if i % 2:
            parameter.grad = torch.full_like(parameter, i)
    next(iter(model.children())).register_forward_hook(lambda module, args, out: None)
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_in_training_is_given_back(name: str, mode: str) -> None:
    model, x = with_history(NETWORKS[name]), images().requires_grad_()
    with MODES[mode](), unchanged(model, x):
        gradient = gradient_of_input(model, x)
    assert gradient.shape == x.shape
    assert gradient.ne(0).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_public_calls_leave_no_trace(name: str) -> None:
    model, x = with_history(NETWORKS[name]), images()
    with unchanged(model, x):
        capture(model, x)
        capture(model, x, nn.Conv2d)
        layer_names(model, x)
        describe(model, x)
        describe(model, (32, 32))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("name", ["counting", "always_dropout", "residual", "vgg_like", "compiled"])
def test_an_error_anywhere_leaves_no_trace(name: str, error: type[BaseException]) -> None:
    model, x = with_history(NETWORKS[name]), images()

    def use() -> None:
        with untouched(model) as frozen:
            frozen(x)
            random.random()
            np.random.rand()
            torch.rand(1)
            torch.set_grad_enabled(False)
            raise error("stop")

    with unchanged(model, x), pytest.raises(error, match="stop"):
        use()


def test_it_gives_a_frozen_model_in_evaluation_with_gradients_on() -> None:
    for name, build in NETWORKS.items():
        model = with_history(build)
        with torch.inference_mode(), untouched(model) as frozen:
            assert torch.is_grad_enabled(), name
            assert not torch.is_inference_mode_enabled(), name
            assert not any(m.training for m in frozen.modules()), name
            assert not any(p.requires_grad for p in frozen.parameters()), name
            assert not isinstance(frozen, nn.DataParallel), name


def test_the_result_is_that_of_evaluation_mode() -> None:
    model, x = networks.batch_norm(), images()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf).sum(), leaf)
    model.train()
    for mode in MODES.values():
        with mode():
            assert torch.equal(gradient_of_input(model, x), expected)


class MergesWhenEvaluated(nn.Module):
    """Does something that cannot be undone in `train` and `eval`, as re-parametrised networks do."""

    def train(self, mode: bool = True) -> MergesWhenEvaluated:
        raise AssertionError("train() was called")

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_train_and_eval_are_never_called() -> None:
    model, x = nn.Sequential(MergesWhenEvaluated(), nn.Conv2d(3, 2, 1)), images()
    with unchanged(model, x):
        gradient_of_input(model, x)
        describe(model, x)


def test_a_frozen_model_stays_frozen() -> None:
    model, x = networks.vgg_like().requires_grad_(False), images()
    with unchanged(model, x):
        assert gradient_of_input(model, x).ne(0).any()
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_and_input_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = networks.residual(), images()
        assert next(model.parameters()).is_inference()
    for mode in MODES.values():
        with mode(), unchanged(model, x):
            gradient = gradient_of_input(model, x)
            assert torch.equal(gradient, gradient_of_input(networks.residual(), images()))
            capture(model, x, ["layer1.0.bn2"])


def test_blocks_nest() -> None:
    model, x = with_history(networks.counting), images()
    with unchanged(model, x), untouched(model) as outer:
        before = model.get_buffer("seen").clone()
        with unchanged(model), untouched(outer) as inner:
            inner(x)
        assert torch.equal(model.get_buffer("seen"), before)
        outer(x)
        assert model.get_buffer("seen") > before


class WritesBehind(nn.Module):
    """Writes into its buffer's and parameter's memory in ways autograd's version counter does not see."""

    buffer: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 2, 1)
        self.register_buffer("buffer", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            self.buffer.data.add_(1)
        elif self.how == "numpy":
            self.buffer.numpy()[:] += 1
        elif self.how == "set data":
            self.buffer.data = self.buffer + 1
        elif self.how == "delete":
            del self.buffer
        elif self.how == "add":
            self.register_buffer("new", torch.ones(1))
        out: Tensor = self.conv(x)
        return out


@pytest.mark.parametrize("how", ["data", "numpy", "set data", "delete", "add"])
def test_buffers_written_behind_autograds_back(how: str) -> None:
    model = WritesBehind(how)
    with unchanged(model), untouched(model) as frozen:
        frozen(images())


class OddBuffers(nn.Module):
    """One that several places share and cannot be written, and a sparse one that forward writes."""

    shared: Tensor
    sparse: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shared", torch.zeros(1).expand(5))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("undefined", torch.full((2,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        self.sparse.mul_(2)
        return x + self.shared.sum()


def test_odd_buffers() -> None:
    model = OddBuffers()
    before = {name: (buffer, buffer.to_dense().clone()) for name, buffer in model.named_buffers()}
    with untouched(model) as frozen:
        frozen(images())
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer.to_dense().nan_to_num(7), before[name][1].nan_to_num(7)), name


def test_a_graph_of_the_caller_survives_a_call() -> None:
    """BatchNorm in training saves its statistics for the backward pass: they must not count as written."""
    model, x = networks.batch_norm().train(), images()
    loss = model(x).square().sum()
    capture(model, x)
    gradient_of_input(model, x)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Rewrites(nn.Module):
    """Replaces and writes its own parameter in forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "replace":
            self.weight = nn.Parameter(self.weight.detach() * 2)
        elif self.how == "requires_grad":
            self.weight.requires_grad_(True)
        elif self.how == "grad":
            self.weight.grad = torch.zeros_like(self.weight)
        elif self.how == "train":
            self.train()
        return x * self.weight


@pytest.mark.parametrize("how", ["replace", "requires_grad", "grad", "train"])
def test_parameters_that_forward_meddles_with(how: str) -> None:
    model = Rewrites(how).eval()
    with unchanged(model), untouched(model) as frozen:
        frozen(images())


def test_backward_inside_a_block_leaves_no_gradients() -> None:
    """The library never calls backward; a user's objective might."""
    model = with_history(networks.vgg_like)
    with unchanged(model), untouched(model) as frozen:
        for parameter in frozen.parameters():
            parameter.requires_grad_()
        frozen(images()).sum().backward(inputs=[p for p in frozen.parameters() if p.grad is None])


def test_tied_parameters_and_buffers_stay_tied() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    model.register_buffer("mean", norm.running_mean)
    with unchanged(model), untouched(model) as frozen:
        frozen(images())
    assert model[2].weight is model[0].weight
    assert model.get_buffer("mean") is norm.running_mean


def test_random_draws_inside_do_not_shift_the_users() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed()
        expected = draws()
        seed()
        with untouched(networks.always_dropout()) as frozen:
            frozen(images())
            draws()
        assert draws() == expected
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


REPARAMETRISED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "weight_norm by a hook": torch.nn.utils.weight_norm,
    "spectral_norm by a hook": torch.nn.utils.spectral_norm,
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("how", REPARAMETRISED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrised_weights(how: str) -> None:
    """Also a weight that a hook computes and keeps as a plain tensor, in the middle of a training step."""
    conv = nn.Conv2d(3, 4, 3)
    REPARAMETRISED[how](conv)
    model, x = nn.Sequential(conv, nn.ReLU()).train(), images()
    loss = model(x).sum()
    with unchanged(model, x):
        assert gradient_of_input(model, x).ne(0).any()
    (loss + conv.weight.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).any() or "weight_v" in name or "original1" in name, name


def test_autocast_stays_on() -> None:
    with torch.autocast("cpu", torch.bfloat16), untouched(networks.vgg_like()) as frozen:
        assert torch.is_autocast_enabled("cpu")
        assert frozen(images()).dtype == torch.bfloat16


def test_what_is_no_model_is_refused() -> None:
    class Holder:
        model = nn.ReLU()

    for wrong in (Holder(), F.relu, None):
        with pytest.raises(ModelError, match=r"torch\.nn\.Module or a Network, not a"), untouched(wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(ModelError, match=r"pass its \.model"), untouched(Holder()):  # type: ignore[arg-type]
        pass
    with pytest.raises(ModelError, match=r"'0\.weight' is lazy"), untouched(nn.Sequential(nn.LazyConv2d(3, 1))):
        pass


class WritesIntoInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(1).mul_(2)


def test_a_model_that_writes_into_its_input() -> None:
    model, x = nn.Sequential(WritesIntoInput(), nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True)), images()
    with unchanged(model, x):
        capture(model, x)
        layer_names(model, x)
        describe(model, x)


def test_torchscript_is_refused_with_the_reason() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ModelError, match="TorchScript, where hooks do not reach"), untouched(scripted):
        pass


def test_two_threads_on_one_model_wait_for_each_other() -> None:
    model, x = networks.gap_linear(), networks.images(2)
    model.train()
    expected = grad_cam(model, x, "features", 0, relu=False).values
    equal: list[bool] = []

    def work() -> None:
        for _ in range(20):
            equal.append(torch.equal(grad_cam(model, x, "features", 0, relu=False).values, expected))

    with unchanged(model, x):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert equal == [True] * 80


def blocks_of(model: nn.Module, *parts: str) -> list[Any]:
    return [untouched(model.get_submodule(part)) for part in parts]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_blocks_that_do_not_nest_leave_the_model_as_the_user_had_it(order: tuple[int, ...]) -> None:
    inner = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(inner, nn.ReLU()))
    with unchanged(model), torch.no_grad():
        blocks = blocks_of(model, "", "1", "")
        for block in blocks:
            block.__enter__()
        for number in order:
            assert not inner.training  # frozen while any of them is open
            assert not inner.weight.requires_grad
            blocks[number].__exit__(None, None, None)


def test_coroutines_that_take_turns_leave_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    async def explain(pause: int) -> None:
        with untouched(model):
            for _ in range(pause):
                await asyncio.sleep(0)
                assert not model.training

    async def both() -> None:
        await asyncio.gather(explain(2), explain(4), explain(3))

    with unchanged(model):
        asyncio.run(both())


def test_a_block_that_is_dropped_is_undone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    block = untouched(model)
    block.__enter__()
    del block
    gc.collect()
    assert model.training


class Notes(nn.Module):
    """Its forward keeps tensors on the module, where there were none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.maps: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        self.maps = self.conv(x)
        self.conv.weight = nn.Parameter(self.conv.weight.detach() * 1)
        out: Tensor = self.maps.mean((2, 3))
        return out


def test_what_a_forward_keeps_on_its_module_is_gone_again() -> None:
    model = Notes()
    weight = model.conv.weight
    tvc.predict(model, torch.rand(1, 3, 4, 4))
    assert model.maps is None
    assert not hasattr(model, "input")
    assert model.conv.weight is weight


def test_reentrant_checkpointing_is_refused_in_words() -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            maps = checkpoint(self.conv, x, use_reentrant=True)
            out: Tensor = self.fc(maps.mean((2, 3)))
            return out

    model, x = Saving(), torch.rand(2, 3, 6, 6)
    with unchanged(model), pytest.raises(ModelError, match="checkpointing with use_reentrant=True"):
        tvc.saliency(model, x, target=torch.tensor([[0, 1], [1, 2]]))


@pytest.mark.parametrize("parametrise", ["weight_norm", "spectral_norm", "prune"])
def test_weights_that_a_hook_computes_are_the_users_own_again(parametrise: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if parametrise == "prune":
            prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
        else:
            getattr(nn.utils, parametrise)(model[0])
    x = torch.rand(2, 3, 6, 6)
    loss = model(x).sum() * 0 + model[0].weight.pow(2).sum()  # type: ignore[operator]
    weight = model[0].weight
    tvc.saliency(model, x, target=0)
    assert model[0].weight is weight
    assert weight.requires_grad
    loss.backward()  # type: ignore[no-untyped-call]
    source = next(p for n, p in model[0].named_parameters() if n in ("weight_g", "weight_orig"))
    assert source.grad is not None
    assert bool(source.grad.any()) or parametrise == "spectral_norm"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_during_a_call_can_use_the_model() -> None:
    model, begun, done = nn.Sequential(nn.Conv2d(3, 4, 1)), threading.Event(), threading.Event()

    def wait() -> None:
        with untouched(model):
            begun.set()
            done.wait(20)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that waits for a thread it does not have
        with untouched(model):
            os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_modules_that_a_forward_makes_or_exchanges_are_taken_out_again() -> None:
    class Builds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "head"):
                self.head, self.scale = nn.Linear(4, 5), nn.Parameter(torch.ones(()))
            self.conv = nn.Conv2d(3, 4, 1)
            out: Tensor = self.head(self.conv(x).mean((2, 3))) * self.scale
            return out

    model = Builds()
    conv = model.conv
    assert tvc.predict(model, images()).shape == (2, 5)
    assert list(model._modules) == ["conv"]
    assert model.conv is conv
    assert list(model._parameters) == []
