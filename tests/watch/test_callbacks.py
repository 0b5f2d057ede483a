"""A Watch in trainers: Lightning's and that of transformers, played by what they call, and by Lightning itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from tests.networks import images, vgg_like


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of these names with nothing but the class that their trainers ask for."""
    for package, base in (("pytorch_lightning", "Callback"), ("transformers", "TrainerCallback")):
        module = ModuleType(package)
        setattr(module, base, type(base, (), {"of": package}))
        monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setitem(sys.modules, "lightning", None)  # not installed


def test_importing_the_package_imports_no_trainer() -> None:
    assert not {"lightning", "pytorch_lightning", "transformers"} & set(sys.modules)


@pytest.mark.usefixtures("trainers")
def test_lightning_calls_it_at_every_batch(tmp_path: Path) -> None:
    watch = tvc.Watch(vgg_like(), images(1), tmp_path, every=2, target=0)
    callback = watch.lightning()
    assert callback.of == "pytorch_lightning"
    assert str(tmp_path) in callback.state_key
    trainer = SimpleNamespace(global_step=0)
    callback.on_train_start(trainer, None)
    outputs: list[Any] = [{"loss": torch.tensor(0.5)}, torch.tensor(0.4), None, {"loss": torch.tensor(0.2)}]
    for step, output in zip((1, 1, 2, 3), outputs, strict=True):  # gradients of two batches make the first step
        trainer.global_step = step
        callback.on_train_batch_end(trainer, None, output, None, 0)
    callback.on_train_end(trainer, None)
    kept = watch._history.kept  # type: ignore[union-attr]
    assert [(one.step, one.loss and round(one.loss, 3)) for one in kept] == [(0, None), (2, None), (3, 0.2)]


@pytest.mark.usefixtures("trainers")
def test_transformers_calls_it_at_every_step(tmp_path: Path) -> None:
    watch = tvc.Watch(vgg_like(), images(1), tmp_path, every=2, target=0)
    callback = watch.transformers()
    assert callback.of == "transformers"
    state = SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None, model=None)
    for state.global_step in (1, 2, 3):
        callback.on_step_end(None, state, None, model=None)
    callback.on_train_end(None, state, None)
    assert watch.steps == [0, 2, 3]


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lightning", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    watch = tvc.Watch(vgg_like(), images(1), tmp_path)
    with pytest.raises(tvc.InputError, match=r"no package lightning\.pytorch or pytorch_lightning here"):
        watch.lightning()
    with pytest.raises(tvc.InputError, match="no package transformers here"):
        watch.transformers()


@pytest.mark.slow
def test_lightning_trains_the_same_network_with_it(tmp_path: Path) -> None:
    pytorch = pytest.importorskip("lightning.pytorch")

    class Lit(pytorch.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
            self.net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)])

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    def trained(watching: bool) -> dict[str, torch.Tensor]:
        lit = Lit()
        watch = tvc.Watch(lit.net, images(2, 16), tmp_path / "run", every=3, target=1)
        pytorch.seed_everything(1)
        data = torch.utils.data.TensorDataset(images(32, 16), torch.arange(32) % 2)
        trainer = pytorch.Trainer(
            max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            callbacks=[watch.lightning()] if watching else [],
        )  # fmt: skip
        trainer.fit(lit, torch.utils.data.DataLoader(data, 8, shuffle=True))
        assert watch.steps == ([0, 3, 6, 8] if watching else [])
        return dict(lit.state_dict())

    alone, watched = trained(False), trained(True)
    assert all(torch.equal(tensor, watched[name]) for name, tensor in alone.items())
