"""A Watch as a callback of Lightning's and of transformers' trainers, which are imported when one is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchviz_cnn.core.errors import InputError

if TYPE_CHECKING:
    from torchviz_cnn.watch.watching import Watch

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
TRANSFORMERS = ("transformers",)


class LightningHooks:
    """What Lightning's trainer calls: the step is the trainer's own, the loss that of the batch."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    @property
    def state_key(self) -> str:
        """What tells two of these apart in one trainer."""
        return f"torchviz_cnn.Watch({self.watch.path})"

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Look at the network as it is before the first step."""
        self.watch.step(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Look at the network where the step is one of those that are watched."""
        self.watch.step(trainer.global_step, loss=outputs.get("loss") if isinstance(outputs, dict) else outputs)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Look at the network as it is in the end."""
        self.watch.close()


class TransformersHooks:
    """What the trainer of `transformers` calls; it does not tell callbacks the loss of a step."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the network as it is before the first step."""
        self.watch.step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the network where the step is one of those that are watched."""
        self.watch.step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the network as it is in the end."""
        self.watch.close()


def callback(watch: Watch, hooks: type, packages: tuple[str, ...], base: str) -> Any:
    """A Watch as an object of the class that a trainer asks for. Raises InputError where the package is not there."""
    for package in packages:
        try:
            above = getattr(importlib.import_module(package), base)
        except ModuleNotFoundError as error:
            if error.name is None or not package.startswith(error.name.partition(".")[0]):
                raise  # the package is there, and something that it needs is not
            continue
        return type("WatchCallback", (hooks, above), {})(watch)
    raise InputError(f"there is no package {' or '.join(packages)} here, whose trainer this callback is for")
