"""HookManager: hooks by name, only its own, all removed however it ends; replaced outputs and gradients; early stop."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.core.errors import HookError, LayerError
from torchviz_cnn.hooks.manager import HookManager


class Bomb(nn.Module):
    """Fails the test when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the forward pass went on")


class Swallows(nn.Module):
    """Calls its first layer and goes on whatever ordinary error it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.after = Bomb()

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.first(x)
        except Exception:
            x = x - 1
        out: Tensor = self.after(x)
        return out


class Flat(nn.Module):
    """An in-place ReLU on a view: what Flatten gives is no tensor of its own."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.flatten = nn.Flatten()
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.flatten(self.conv(x)))
        return out


def gradients(model: nn.Module, layers: list[str], x: Tensor, run: nn.Module | None = None) -> dict[str, Tensor]:
    """The gradient of each layer's output, of the sum of squares of the model's output."""
    grads: dict[str, Tensor] = {}
    with HookManager(model) as hooks:
        hooks.on_backward(layers, lambda name, grad: grads.update({name: grad.clone()}))
        x = x.clone().requires_grad_()
        out = hooks.run(x, stop_early=False) if run is None else run(x)
        torch.autograd.grad(out.square().sum(), x)
    return grads


def test_forward_hooks_see_outputs_in_execution_order_under_their_names() -> None:
    model, x = networks.vgg_like(inplace=False), images()
    seen: dict[str, Tensor] = {}
    with unchanged(model, x), torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(["features.2", "features.0", "features"], lambda name, out: seen.update({name: out}))
        out = hooks.run(x, stop_early=False)
    assert list(seen) == ["features.0", "features.2", "features"]
    with torch.no_grad():
        assert torch.equal(seen["features.0"], model.features[0](x))
        assert torch.equal(seen["features.2"], model.features[:3](x))
        assert torch.equal(seen["features"], model.features(x))
        assert torch.equal(out, model(x))


def test_several_hooks_on_a_layer_run_in_order_each_on_what_the_last_one_left() -> None:
    model, x = networks.vgg_like(), images()
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("features.0", lambda name, out: out.clamp(max=0.5))
        hooks.on_forward("features.0", lambda name, out: None)
        hooks.on_forward("features.0", lambda name, out: out + 1)
        outputs: list[Tensor] = []
        hooks.on_forward("features.0", lambda name, out: outputs.append(out.clone()))
        out = hooks.run(x, stop_early=False)
        rest = nn.Sequential(*model.features[1:], model.avgpool, nn.Flatten(), model.classifier)
        expected = model.features[0](x).clamp(max=0.5) + 1
        assert torch.equal(outputs[0], expected)
        assert torch.equal(out, rest(expected))


def test_a_replaced_output_may_have_another_batch() -> None:
    model, x = networks.vgg_like(), images(1)
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("features.4", lambda name, out: torch.cat([out, 0 * out, 2 * out]))
        assert hooks.run(x, stop_early=False).shape == (3, networks.CLASSES)


@pytest.mark.parametrize("layers", ["featurs.0", ["features.0", "nope"], ["features.0", "features.0#x"], [""]])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_bad_name_registers_nothing(layers: Any, direction: str) -> None:
    model = networks.vgg_like()
    hooks = HookManager(model)
    add = hooks.on_forward if direction == "forward" else hooks.on_backward
    with unchanged(model), pytest.raises(LayerError, match="no layer"):
        add(layers, lambda name, value: None)


def test_an_unknown_layer_raises_with_the_nearest_name() -> None:
    with HookManager(networks.vgg_like()) as hooks:
        with pytest.raises(LayerError, match=r"no layer 'featurs.7' in VGGLike; did you mean 'features.7'\?"):
            hooks.on_forward("featurs.7", print)
        with pytest.raises(LayerError, match="int"):
            hooks.on_forward([7], print)  # type: ignore[list-item]


def test_only_its_own_hooks_are_removed() -> None:
    model, x = networks.vgg_like(), images()
    count = []
    model.features[0].register_forward_hook(lambda *a: count.append("user"))
    model.register_forward_pre_hook(lambda *a: count.append("root"))
    with unchanged(model):
        hooks = HookManager(model)
        hooks.on_forward(["features.0", "features.2"], lambda name, out: count.append("ours"))
        late = model.features[2].register_forward_hook(lambda *a: count.append("late"))
        hooks.close()
        with torch.no_grad():
            model(x)
        late.remove()
    assert count == ["root", "user", "late"]


def test_close_is_idempotent_and_a_closed_manager_says_so() -> None:
    model = networks.vgg_like()
    with unchanged(model):
        hooks = HookManager(model)
        hooks.on_forward("features.0", lambda name, out: None)
        hooks.close()
        hooks.close()
        with pytest.raises(HookError, match="closed"):
            hooks.on_forward("features.0", lambda name, out: None)
        with pytest.raises(HookError), hooks:
            hooks.on_backward("features.0", lambda name, out: None)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("place", ["hook", "forward", "block", "backward"])
def test_an_error_anywhere_reaches_the_user_and_leaves_nothing(error: type[BaseException], place: str) -> None:
    model, x = networks.vgg_like(), images()

    def raises(*args: Any) -> None:
        raise error("the user's own")

    user = model.features[2].register_forward_hook(raises) if place == "forward" else None

    def use() -> None:
        with HookManager(model) as hooks:
            hooks.on_forward("features.0", raises if place == "hook" else lambda name, out: None)
            hooks.on_backward("features.2", raises)
            out = hooks.run(x.clone().requires_grad_(), stop_early=place == "hook")
            if place == "backward":
                torch.autograd.grad(out.sum(), list(model.features[0].parameters()))
            assert place == "block", "the error did not arrive"
            raises()

    with unchanged(model, x), pytest.raises(error, match="the user's own"):
        use()
    if user is not None:
        user.remove()
    with torch.no_grad():
        assert torch.equal(model(x), networks.vgg_like()(x))


def test_it_stops_once_every_layer_has_fired_and_not_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), Bomb())
    seen: list[str] = []
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(["2", "0"], lambda name, out: seen.append(name))
        assert hooks.run(images()) is None
        assert seen == ["0", "2"]
        assert hooks.unreached() == []
        with pytest.raises(AssertionError, match="went on"):
            hooks.run(images(), stop_early=False)


def test_it_waits_for_the_call_that_was_asked_for() -> None:
    model, seen = networks.reused(), []
    after: list[str] = []
    for n, module in model.named_children():
        module.register_forward_hook(lambda m, args, out, n=n: after.append(n))  # type: ignore[misc]
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("relu#1", lambda name, out: seen.append(name))
        assert hooks.run(images()) is None
    assert seen == ["relu#1"]
    assert after == ["conv1", "relu", "pool", "conv2", "relu"]


def test_without_a_layer_to_wait_for_it_runs_to_the_end() -> None:
    model, x = networks.reused(), images()
    with torch.no_grad():
        expected = model(x)
        with HookManager(model) as hooks:
            assert torch.equal(hooks.run(x), expected)
            hooks.on_forward("relu#*", lambda name, out: None)
            assert torch.equal(hooks.run(x), expected)


def test_except_exception_in_a_model_does_not_swallow_the_stop() -> None:
    model = Swallows()
    seen: list[str] = []
    with unchanged(model), HookManager(model) as hooks:
        hooks.on_forward("first", lambda name, out: seen.append(name))
        assert hooks.run(images()) is None
    assert seen == ["first"]


def test_nested_managers_each_stop_their_own_pass() -> None:
    model, x = networks.vgg_like(), images()
    outer_seen: list[str] = []
    inner_seen: list[str] = []
    with unchanged(model, x), torch.no_grad(), HookManager(model) as outer:
        outer.on_forward(["features.0", "features.5"], lambda name, out: outer_seen.append(name))
        with HookManager(model) as inner:
            inner.on_forward("features.2", lambda name, out: inner_seen.append(name))
            assert inner.run(x) is None
            assert (outer_seen, inner_seen) == (["features.0"], ["features.2"])
            assert outer.unreached() == ["features.5"]
            outer_seen.clear()
            assert outer.run(x) is None
            assert outer_seen == ["features.0", "features.5"]
        assert outer.run(x) is None
        assert len(outer_seen) == 4
        assert torch.equal(outer.run(x, stop_early=False), model(x))


def test_a_stop_passes_through_a_model_around_the_model() -> None:
    """A hook of the outer model's manager runs an inner model that stops: the outer pass goes on."""
    inner_model, model, x = networks.gap_linear(), networks.vgg_like(), images()
    seen: list[Any] = []
    with torch.no_grad(), HookManager(inner_model) as inner, HookManager(model) as outer:
        inner.on_forward("features.0", lambda name, out: seen.append("inner"))

        def run_inner(name: str, out: Tensor) -> None:
            seen.append(name)
            assert inner.run(x) is None

        outer.on_forward("features.0", run_inner)
        outer.on_forward("features.2", lambda name, out: seen.append(name))
        assert outer.run(x) is None
    assert seen == ["features.0", "inner", "features.2"]


class RunsAManager(nn.Module):
    """Uses a manager on a part of itself in forward, as a model that captures its own features does."""

    def __init__(self) -> None:
        super().__init__()
        self.part = networks.vgg_like()
        self.after = Bomb()

    def forward(self, x: Tensor) -> Tensor:
        with HookManager(self.part) as hooks:
            hooks.on_forward("features.7", lambda name, out: None)
            hooks.run(x)
        out: Tensor = self.after(x)
        return out


def test_a_stop_passes_through_another_managers_run() -> None:
    model, seen = RunsAManager(), []
    with unchanged(model), torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("part.features.2", lambda name, out: seen.append(name))
        assert hooks.run(images()) is None
    assert seen == ["part.features.2"]


def test_unreached_layers_are_named_with_how_often_they_ran() -> None:
    model = networks.reused()
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(["pool", "pool#2", "relu#7"], lambda name, out: None)
        assert hooks.run(images()) is not None
        assert hooks.unreached() == ["relu#7", "pool#2"]
        with pytest.raises(LayerError, match=r"'relu#7' \(and 1 more\) of Reused was never reached.*ran 3 times"):
            hooks.require_reached()
        hooks.require_reached(["pool"])
    with torch.no_grad(), HookManager(networks.unreached()) as hooks:
        hooks.on_forward("aux", lambda name, out: None)
        hooks.run(images())
        with pytest.raises(LayerError, match="did not run"):
            hooks.require_reached()


def test_each_call_of_a_reused_module_has_its_name() -> None:
    seen: list[str] = []
    model, x = networks.reused(), images()
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward(["relu#*", "pool#1"], lambda name, out: seen.append(name))
        for _ in range(2):
            hooks.run(x, stop_early=False)
            assert seen == ["relu", "relu#1", "pool#1", "relu#2"]
            seen.clear()


def test_the_second_name_of_a_shared_module_is_explained() -> None:
    conv = nn.Conv2d(3, 3, 1)
    with HookManager(nn.Sequential(conv, nn.ReLU(), conv)) as hooks:
        with pytest.raises(LayerError, match=r"'2' in Sequential is the same module as '0'.*'0#1'"):
            hooks.on_forward("2", print)
        seen: list[str] = []
        hooks.on_forward("0#1", lambda name, out: seen.append(name))
        hooks.run(images())
        assert seen == ["0#1"]


@pytest.mark.parametrize("layers", [["features.0", "features.2", "features.5", "features.7", "features.4"]])
def test_the_gradient_of_a_convolution_under_an_in_place_relu_is_its_own(layers: list[str]) -> None:
    x = images()
    ours = gradients(networks.vgg_like(inplace=True), layers, x)
    expected = gradients(networks.vgg_like(inplace=False), layers, x)
    assert set(ours) == set(layers)
    for layer in layers:
        torch.testing.assert_close(ours[layer], expected[layer], rtol=0, atol=0)
        assert expected[layer].ne(0).any()


def test_gradients_equal_autograd_on_the_rest_of_the_network() -> None:
    model, x = networks.vgg_like(), images()
    ours = gradients(model, ["features.4"], x)["features.4"]
    leaf = model.features[:5](x).detach().requires_grad_()
    out = model.classifier(torch.flatten(model.avgpool(model.features[5:](leaf)), 1))
    (expected,) = torch.autograd.grad(out.square().sum(), leaf)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_the_gradient_of_each_call_of_a_reused_module() -> None:
    x = images()
    layers = ["relu#*", "pool", "pool#1"]
    ours, expected = (gradients(networks.reused(inplace=inplace), layers, x) for inplace in (True, False))
    assert list(ours) == ["relu#2", "pool#1", "relu#1", "pool", "relu"]
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=0)


def test_the_gradient_of_a_sum_and_of_a_normalisation_it_is_written_into() -> None:
    """`out += identity` overwrites what bn2 gave; the gradients of both terms are that of the sum."""
    model, x = networks.residual(), images()
    ours = gradients(model, ["layer1.0", "layer1.0.bn2", "layer1.0.relu#1", "layer1.0.relu"], x)
    assert len(ours) == 4
    torch.testing.assert_close(ours["layer1.0"], ours["layer1.0.relu#1"], rtol=0, atol=0)
    with torch.no_grad():
        positive = model.layer1[0](model.stem(x)) > 0
    torch.testing.assert_close(ours["layer1.0.bn2"], ours["layer1.0"] * positive, rtol=0, atol=0)


def test_the_gradient_of_a_view_that_is_overwritten() -> None:
    ours, expected = (gradients(_flat(inplace), ["flatten", "conv"], images()) for inplace in (True, False))
    assert set(ours) == {"flatten", "conv"}
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=0)


@networks.seeded
def _flat(inplace: bool) -> nn.Module:
    return Flat(inplace)


def test_a_replaced_gradient_is_what_goes_on() -> None:
    model, x = networks.vgg_like(), images().requires_grad_()
    (plain,) = torch.autograd.grad(model(x).sum(), x)
    with HookManager(model) as hooks:
        hooks.on_backward("features.5", lambda name, grad: -2 * grad)
        hooks.on_backward("features.5", lambda name, grad: None)
        (scaled,) = torch.autograd.grad(hooks.run(x, stop_early=False).sum(), x)
    torch.testing.assert_close(scaled, -2 * plain)
    (again,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(again, plain)


def test_no_gradient_hook_is_left_on_a_tensor_that_outlives_the_manager() -> None:
    model, x = networks.vgg_like(), images().requires_grad_()
    with HookManager(model) as hooks:
        hooks.on_backward("features.5", lambda name, grad: 0 * grad)
        out = hooks.run(x, stop_early=False)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.ne(0).any()


def test_a_tuple_has_no_gradient_and_says_so() -> None:
    model = networks.tuple_output()
    with unchanged(model), HookManager(model) as hooks:
        hooks.on_backward("pair", lambda name, grad: None)
        with pytest.raises(LayerError, match="'pair' gives a tuple"):
            hooks.run(images())


def test_checkpointed_layers_meet_the_same_hooks_in_the_recomputation() -> None:
    x = images()
    layers = ["stem", "block.0", "block.2", "block.3", "block"]
    plain, again = networks.checkpointed(False), networks.checkpointed(True)
    expected = gradients(plain, ["stem", "block.0", "block.2"], x)
    ours = gradients(again, ["stem", "block.0", "block.2"], x)
    assert set(ours) == set(expected)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name])
    values = []
    for model in (plain, again):
        leaf = x.clone().requires_grad_()
        with unchanged(model), HookManager(model) as hooks:
            hooks.on_forward(layers, lambda name, out: out.square() - 0.1)
            out = hooks.run(leaf, stop_early=False)
            values.append(torch.autograd.grad(out.sum(), leaf)[0])
            assert hooks.unreached() == []  # that part of the model ran again does not undo the forward pass
    torch.testing.assert_close(values[1], values[0])


@pytest.mark.parametrize("build", [networks.data_parallel, networks.compiled], ids=["DataParallel", "compiled"])
@pytest.mark.parametrize("called", ["run", "model"])
def test_wrappers_are_looked_through(build: Any, called: str) -> None:
    if called == "model" and build is networks.compiled:
        pytest.skip("compiled code may leave hooks out: that is what run() is for")
    model, x = build(), images()
    expected = gradients(networks.vgg_like(), ["features.2", "features.7"], x)
    with unchanged(model, x):
        ours = gradients(model, ["features.2", "features.7"], x, run=model if called == "model" else None)
    assert set(ours) == set(expected)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name])


def test_a_compiled_part_of_a_model_is_looked_into() -> None:
    plain, x = networks.vgg_like(), images()
    model: Any = networks.vgg_like()
    model.features = torch.compile(model.features, backend="eager")
    with torch.no_grad():
        model(x)  # compiled before the hooks are there
    ours = gradients(model, ["features.2", "features"], x)
    expected = gradients(plain, ["features.2", "features"], x)
    for name, grad in expected.items():
        torch.testing.assert_close(ours[name], grad)
    inside = networks.vgg_like()
    inside.compile(backend="eager")
    torch.testing.assert_close(gradients(inside, ["features.2"], x)["features.2"], expected["features.2"])


def test_hooks_can_be_added_to_a_running_manager_and_counts_start_anew() -> None:
    model, seen = networks.reused(), []
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("relu", lambda name, out: seen.append(name))
        hooks.run(images())
        hooks.on_forward("relu#2", lambda name, out: seen.append(name))
        hooks.run(images())
        hooks.run(images())
    assert seen == ["relu", "relu", "relu#2", "relu", "relu#2"]


def test_a_hook_that_closes_its_manager_ends_it() -> None:
    model, x = networks.vgg_like(), images()
    seen: list[str] = []
    with unchanged(model), torch.no_grad():
        hooks = HookManager(model)

        def close(name: str, out: Tensor) -> None:
            seen.append(name)
            hooks.close()

        hooks.on_forward(["features.0", "features.2"], close)
        out = hooks.run(x)
        assert seen == ["features.0"]
        assert torch.equal(out, model(x))


def test_repr_names_the_model() -> None:
    hooks = HookManager(networks.vgg_like())
    hooks.on_forward(["features.0", "features.2"], print)
    assert repr(hooks) == "HookManager(VGGLike, 2 hooked layers)"
    hooks.close()
    assert "closed" in repr(hooks)


class Concatenates(nn.Module):
    """A shortcut leads around `inner`: what comes before is concatenated with what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, networks.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        out: Tensor = self.fc(torch.cat([x, self.inner(x)], 1).mean((2, 3)))
        return out


def whole_networks(model: nn.Module, layer: str, maps: Tensor, x: Tensor) -> Tensor:
    """What a model gives for each map in a layer's place, one run of all of it each."""
    outputs = []
    for one in maps:
        with HookManager(model) as hooks:
            hooks.on_forward(layer, lambda name, out, one=one: one[None].clone())  # type: ignore[misc]
            outputs.append(hooks.run(x, stop_early=False))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (networks.vgg_like, "features.4"),
        (networks.vgg_like, "features.0"),
        (networks.residual, "layer1.0.bn2"),
        (networks.reused, "relu#1"),
        (networks.compiled, "features.4"),
        (networks.seeded(Concatenates), "inner"),
    ],
)
def test_running_from_a_layer_gives_what_whole_networks_give(build: Any, layer: str) -> None:
    model, x = build(), images(1)
    with torch.no_grad(), HookManager(model) as hooks:
        with hooks.record(layer) as acts:
            hooks.run(x)
        maps = torch.stack([0 * acts[layer][0], acts[layer][0], 3 * acts[layer][0]])
        with unchanged(model, x, maps):
            outputs = hooks.run_from(layer, maps, x)
        torch.testing.assert_close(outputs, whole_networks(model, layer, maps, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("build", "layer"), [(networks.vgg_like, "features.4"), (networks.residual, "layer2.1.bn1")])
def test_running_from_a_layer_computes_what_comes_before_for_one_image(build: Any, layer: str) -> None:
    model, sizes = build(), []
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    with torch.no_grad(), HookManager(model) as hooks:
        with hooks.record(layer) as acts:
            hooks.run(images(1))
        sizes.clear()
        assert len(hooks.run_from(layer, acts[layer].expand(5, -1, -1, -1), images(1))) == 5
    assert sizes == [1]


def test_a_shortcut_around_the_layer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, x = networks.seeded(Concatenates)(), images(1)
    with caplog.at_level("INFO", "torchviz_cnn"), torch.no_grad(), HookManager(model) as hooks:
        hooks.run_from("inner", torch.zeros(3, 4, 32, 32), x)
    assert "inner does not take 3 maps for one image" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "torchviz_cnn"), torch.no_grad(), HookManager(networks.vgg_like()) as hooks:
        hooks.run_from("features.4", torch.zeros(3, 8, 16, 16), x)
    assert not caplog.text


def test_running_from_a_layer_that_is_not_reached_raises() -> None:
    with torch.no_grad(), HookManager(networks.unreached()) as hooks, pytest.raises(LayerError, match="never reached"):
        hooks.run_from("aux", torch.zeros(2, 6, 32, 32), images(1))


def test_out_of_memory_is_not_run_again() -> None:
    model, runs = networks.vgg_like(), []

    def exhaust(module: nn.Module, args: Any, out: Tensor) -> None:
        runs.append(len(out))
        raise torch.OutOfMemoryError("no memory")

    model.features[7].register_forward_hook(exhaust)
    with torch.no_grad(), HookManager(model) as hooks, pytest.raises(torch.OutOfMemoryError):
        hooks.run_from("features.4", torch.zeros(3, 8, 16, 16), images(1))
    assert runs == [3]


def test_a_manager_that_is_dropped_takes_its_hooks_along() -> None:
    model = networks.vgg_like()
    with unchanged(model):
        hooks = HookManager(model)
        hooks.on_forward("features.0", lambda name, out: None)
        del hooks


class Flipped(nn.Module):
    """Its forward calls the whole network twice, on the image and on its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor, both: bool = True) -> Tensor:
        if both:
            out: Tensor = self(x, both=False) + self(x.flip(-1), both=False)
            return out
        out = self.fc(self.conv(x).relu().mean((2, 3)))
        return out


def test_calls_are_numbered_over_the_outermost_call_of_a_network_that_calls_itself() -> None:
    torch.manual_seed(0)
    model, x = Flipped().eval(), images()
    with torch.no_grad(), HookManager(model) as hooks, hooks.record(["conv", "conv#1"]) as acts:
        hooks.run(x, stop_early=False)
        hooks.require_reached()
        assert torch.equal(acts["conv"], model.conv(x))
        assert torch.equal(acts["conv#1"], model.conv(x.flip(-1)))
    maps = tvc.grad_cam(model, x, "conv#1", target=1, relu=False).values
    leaf = model.conv(x.flip(-1)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.fc(leaf.relu().mean((2, 3)))[:, 1].sum(), leaf)
    assert torch.allclose(maps, (gradient.mean((2, 3), keepdim=True) * leaf).sum(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("place", ["conv", "fc", ""])
def test_a_run_that_a_hook_of_the_users_starts_is_not_counted(place: str) -> None:
    torch.manual_seed(0)
    model, x, runs = Flipped().eval(), images(), 0
    want = tvc.grad_cam(model, x, "conv#1", target=1, relu=False).values

    def run_it(*args: Any) -> None:
        nonlocal runs
        if runs % 2 == 0:  # its own run meets this hook again
            runs += 1
            model(x + 1, both=False)
            tvc.capture(model, x + 1, "conv")
            runs += 1

    module = model.get_submodule(place)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        with contextlib.closing(_Handle(register(run_it))):
            assert torch.equal(tvc.grad_cam(model, x, "conv#1", target=1, relu=False).values, want)
            assert [*tvc.capture(model, x, nn.Conv2d)] == ["conv", "conv#1"]
    assert runs


class _Handle:
    def __init__(self, handle: Any) -> None:
        self.close = handle.remove


def test_a_hook_of_the_managers_own_can_run_the_model() -> None:
    model, x, names = Flipped().eval(), images(), []

    def note(name: str, output: Tensor) -> None:
        names.append(name)
        model(x)

    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("conv#*", note)
        hooks.run(x, stop_early=False)
    assert names == ["conv", "conv#1"]


def test_a_deep_copy_of_a_hooked_model_runs_alone() -> None:
    model, x, names = Flipped().eval(), images(), []
    with torch.no_grad(), HookManager(model) as hooks:
        hooks.on_forward("conv#*", lambda name, output: names.append(name))
        copy = deepcopy(model)
        assert torch.equal(copy(x), model(x))
    assert names == ["conv", "conv#1"]
    assert torch.equal(copy(x), model(x))


class AsksForGradients(nn.Module):
    """Its forward hooks gradients of its own tensors, as tutorials on Grad-CAM do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = x * 2
        early.retain_grad()
        early.register_hook(lambda gradient: None).remove()  # type: ignore[no-untyped-call]
        maps = self.conv(early)
        maps.register_hook(lambda gradient: 3 * gradient)  # type: ignore[no-untyped-call]
        out: Tensor = self.fc(maps.relu().mean((2, 3)))
        return out


def test_a_forward_that_hooks_its_own_gradients_runs_as_in_training() -> None:
    torch.manual_seed(0)
    model, x = AsksForGradients().eval(), images()
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)
    assert torch.allclose(tvc.saliency(model, x, target=2).gradients, want, rtol=1e-5, atol=1e-8)
    assert tvc.predict(model, x) is not None
    assert [layer.name for layer in tvc.describe(model, (12, 12)).layers] == ["conv", "fc"]
    assert tvc.capture(model, x, "conv")["conv"].shape == (2, 6, *(side - 2 for side in x.shape[2:]))


def test_a_layer_whose_forward_is_called_directly_is_named_so() -> None:
    model = networks.vgg_like()
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    module = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    parent._modules[name.rpartition(".")[2]] = _Direct(module)
    with pytest.raises(LayerError, match="its forward is called directly, or its weights are used elsewhere"):
        tvc.capture(model, images(), f"{name}.inner")


class _Direct(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner.forward(x)


class HooksItself(nn.Module):
    """Reads what its first layer gives by a hook that it puts on and takes off again, as many training codes do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.first.register_forward_hook(lambda module, args, output: kept.append(output))
        out: Tensor = self.second(self.first(x)) + kept[0].mean()
        handle.remove()
        return out.mean((2, 3))


def test_a_pass_that_is_ended_early_leaves_no_hook_of_the_models_own() -> None:
    model, x = HooksItself(), images()
    own = model.first.register_forward_hook(lambda module, args, output: None)
    tvc.capture(model, x, "first")
    with HookManager(model) as hooks:
        hooks.on_forward("second", lambda name, output: output + torch.zeros(7))
        with pytest.raises(RuntimeError, match="size of tensor"):
            hooks.run(x)
    assert list(model.first._forward_hooks) == [own.id]


def test_a_hook_that_is_added_in_a_pass_that_ends_early_stays_on() -> None:
    model, x = networks.vgg_like(), images()
    names: list[str] = []
    with HookManager(model) as hooks:

        def add_another(name: str, output: Tensor) -> None:
            if not names:
                hooks.on_forward("features.2", lambda name, output: names.append(name))
            names.append(name)

        hooks.on_forward("features.0", add_another)
        hooks.run(x)
        hooks.run(x)
    assert names == ["features.0", "features.2"] * 2


def test_a_layer_inside_vmap_cannot_be_kept_and_says_so() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return torch.vmap(lambda image: self.conv(image[None])[0])(x)

    with pytest.raises(LayerError, match=r"layer 'conv' runs inside torch\.vmap"):
        tvc.capture(Mapped(), images())
