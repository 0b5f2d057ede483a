"""A Ctrl-C at any instruction of a public call leaves no trace on model and process, and arrives exactly once."""

from __future__ import annotations

import _thread
import gc
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import images, seeded
from torchviz_cnn.hooks.interrupts import uninterrupted

Place = tuple[str, str, int, str]
"""File, function, instruction and kind of a call or return."""

MANAGING = (
    "torchviz_cnn/hooks/",
    "contextlib.py",
    "weakref.py",
    "torch/overrides.py",
    "torch/autograd/grad_mode.py",
    "torch/autograd/graph.py",
    "torch/utils/_python_dispatch.py",
)
"""Where things are set up and cleared away: the places that are all tried."""


@seeded
def small() -> nn.Sequential:
    """BatchNorm (a function of PyTorch's in Python), ReLUs in and out of place, pooling, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def use_manager(model: nn.Module, x: Tensor) -> None:
    with tvc.HookManager(model) as hooks:
        hooks.on_forward("0", lambda name, output: None)
        hooks.on_backward("2", lambda name, gradient: None)
        hooks.run(x.clone().requires_grad_())


def use_recorder(model: nn.Module, x: Tensor) -> Tensor:
    """In evaluation and without gradients of the caller's: what this leaves is its own."""
    with tvc.HookManager(model) as hooks, hooks.record(["0", "2"]) as acts:
        hooks.run(x)
    return acts["2"]


CALLS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "HookManager": use_manager,
    "HookManager.record": use_recorder,
    "capture": lambda model, x: tvc.capture(model, x, ["0", "4"]),
    "describe": lambda model, x: tvc.describe(model, (12, 12)),
    "grad_cam": lambda model, x: tvc.grad_cam(model, x, "2", 0),
    "saliency": lambda model, x: tvc.saliency(model, x, 0, relu="guided"),
    "deconvnet": lambda model, x: tvc.deconvnet(model, x, "2", 0),
    "occlusion": lambda model, x: tvc.occlusion(model, x, 0, patch=6),
    "filter_patterns": lambda model, x: tvc.filter_patterns(model, "4", [0, 1], size=16, steps=2),
    "top_activations": lambda model, x: tvc.top_activations(model, list(x), ["2"], k=1, batch_size=2, workers=0),
}

_press: defaultdict[None, None] = defaultdict(partial(_thread.interrupt_main, signal.SIGINT))
"""Looking up a key that is missing makes SIGINT pending, without a moment at which Python would handle it already: that
it does then where it handles real ones, at the next call, return or jump back of what runs."""


class Interrupted:
    """Runs a call with a Ctrl-C at its n-th event (a call or return of a function), and counts what arrives."""

    def __init__(self) -> None:
        self.pressed = 0
        self.handled = 0

    def handler(self, number: int, frame: FrameType | None) -> None:
        self.handled += 1
        raise KeyboardInterrupt

    def run(self, call: Callable[[], object], event: int) -> bool:
        """Whether KeyboardInterrupt came out of the call. It is dropped here, as `except KeyboardInterrupt` does."""
        self.pressed = self.handled = 0
        left = event

        def watch(frame: FrameType, kind: str, function: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                sys.setprofile(None)
                self.pressed = 1
                _press.clear()
                _press[None]

        gc.disable()  # a callback of the collector, as hypothesis has, loses the KeyboardInterrupt that meets it
        try:
            sys.setprofile(watch)
            try:
                call()
            finally:
                sys.setprofile(None)
        except KeyboardInterrupt:
            return True
        finally:
            gc.enable()
        return False


@pytest.fixture
def interrupted() -> Iterator[Interrupted]:
    """With a handler of its own, as SIGINT may be ignored where the tests run."""
    instance = Interrupted()
    before = signal.signal(signal.SIGINT, instance.handler)
    yield instance
    signal.signal(signal.SIGINT, before)


def events(call: Callable[[], object]) -> list[Place]:
    """What is called and returns in the course of a call."""
    places: list[Place] = []

    def watch(frame: FrameType, kind: str, function: Any) -> None:
        places.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lasti, kind))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return places


def chosen(places: list[Place], count: int) -> list[int]:
    """The first and the last event of places, most of them where things are set up or cleared away."""
    ends: list[dict[Place, int]] = [{}, {}]
    for event, place in enumerate(places):
        ends[0].setdefault(place, event)
        ends[1][place] = event
    managing: set[int] = set()
    others: set[int] = set()
    for place in ends[0]:
        kind = managing if any(part in place[0].replace("\\", "/") for part in MANAGING) else others
        kind.update(end[place] for end in ends)
    draw = random.Random(0)
    return [
        event
        for kind, most in ((sorted(managing), count), (sorted(others - managing), count // 5))
        for event in draw.sample(kind, min(most, len(kind)))
    ]


def check(interrupted: Interrupted, name: str, count: int) -> None:
    model, x = small(), images(2, 12)
    model.train(name not in ("HookManager", "HookManager.record"))

    def call() -> object:
        return CALLS[name](model, x)

    for grad in (True, False):  # of the caller
        with torch.set_grad_enabled(grad):
            call()
            for event in chosen(places := events(call), count):
                with unchanged(model, x):
                    raised = interrupted.run(call, event)
                arrived = interrupted.handled, raised
                assert arrived == (interrupted.pressed, bool(interrupted.pressed)), (places[event], arrived)


@pytest.mark.parametrize("name", CALLS)
def test_a_ctrl_c_where_things_are_set_up_or_cleared_away(interrupted: Interrupted, name: str) -> None:
    check(interrupted, name, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_ctrl_c_anywhere(interrupted: Interrupted, name: str) -> None:
    check(interrupted, name, int(os.environ.get("INTERRUPT_PLACES", 150)))


def test_a_ctrl_c_waits_for_the_end_of_the_block(interrupted: Interrupted) -> None:
    done = []

    def block() -> None:
        with uninterrupted():
            _press.clear()
            _press[None]
            done.append("first")
            with uninterrupted():
                done.append("second")
            done.append("third")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["first", "second", "third"]
    assert interrupted.handled == 1
    assert signal.getsignal(signal.SIGINT) == interrupted.handler


def test_a_handler_that_the_block_sets_stays(interrupted: Interrupted) -> None:
    with uninterrupted():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_handler_that_is_not_pythons_is_left_alone(interrupted: Interrupted, handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is handler


def test_no_other_signal_is_touched(interrupted: Interrupted) -> None:
    """Nor is SIGINT while the model itself runs: only where things are set up and cleared away."""
    model, handlers = small(), []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        handlers.append({number: signal.getsignal(number) for number in signal.Signals})

    model[4].register_forward_hook(look)
    expected = {number: signal.getsignal(number) for number in signal.Signals}
    tvc.grad_cam(model, images(1, 12), "4", 0, relu=False)
    assert handlers == [expected]
