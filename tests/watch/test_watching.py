"""A training is the same, bit by bit, whether it is watched or not; and what is written is what was asked for."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import images
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.watch import watching
from torchviz_cnn.watch.photos import MOST


class Net(nn.Module):
    """Everything that a look could upset: BatchNorm, dropout, random numbers of a layer's own, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.drop = nn.Dropout2d(0.3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = self.drop(self.relu(self.conv2(x)))
        out: Tensor = self.fc(F.dropout(x.mean((2, 3)), 0.3, self.training))
        return out


Looking = Callable[[nn.Module], tvc.Watch]
PHOTOS = images(3, 24, seed=5)


def trained(look: Looking | None, *, amp: bool = False, inside: bool = False, steps: int = 12) -> dict[str, Any]:
    """All that a training leaves behind: weights, the optimizer's state, random states."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model = Net()
    average = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with nullcontext() if look is None else look(model) as watch:
        for step in range(steps):
            x, y = torch.randn(8, 3, 24, 24), torch.randint(3, (8,))
            x = x + float(np.random.rand()) + random.random()
            optimizer.zero_grad(set_to_none=bool(step % 2))
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(model(x), y)
                if inside and watch is not None:  # between the forward and the backward pass, in the loop's autocast
                    watch.step(step, loss=loss)
            torch.autograd.backward(loss)
            optimizer.step()
            average.update_parameters(model)
            if not inside and watch is not None:
                watch.step(step, loss=loss)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    left = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    state = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    return copy.deepcopy({**left, "grads": grads, "random": state, "training": model.training})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def watching_into(folder: Path, **options: Any) -> Looking:
    given: dict[str, Any] = {"every": 3, "target": [0, 1, 2], "channels": {"conv2": [1, 4]}, **options}
    return lambda model: tvc.Watch(model, PHOTOS, folder, **given)


@pytest.mark.parametrize("inside", [False, True], ids=["after the step", "before backward"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_the_trained_weights_are_bit_identical(tmp_path: Path, amp: bool, inside: bool) -> None:
    alone = trained(None, amp=amp)
    watched = trained(watching_into(tmp_path), amp=amp, inside=inside)
    assert same(alone, watched)
    assert not same(alone, trained(None, amp=not amp))  # the comparison can fail
    steps = tvc.Watch(Net(), PHOTOS, tmp_path, target=[0, 1, 2], channels={"conv2": [1, 4]}).steps
    assert steps == [0, 3, 6, 9, 11]


def test_a_watched_step_leaves_everything_as_it_was(tmp_path: Path) -> None:
    model = Net().train()
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=1, channels={"conv2": 0})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for mode in (nullcontext, torch.no_grad, torch.inference_mode):
        with mode(), unchanged(model):
            assert watch.step()
    assert model.training


def test_only_every_nth_call_looks_and_the_others_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=4)
    ran: list[int] = []
    model.register_forward_hook(lambda *_: ran.append(1))
    looked = []
    for step in range(9):
        ran.clear()
        if watch.step():
            looked.append(step)
        assert bool(ran) == (step in looked)
    assert looked == watch.steps == [0, 4, 8]
    watch.close()
    watch.close()
    assert watch.steps == [0, 4, 8]  # the last was watched already
    with pytest.raises(tvc.InputError, match="closed"):
        watch.step()


def test_numbers_of_the_loop_own_may_jump_and_repeat_but_not_fall(tmp_path: Path) -> None:
    watch = tvc.Watch(Net(), PHOTOS, tmp_path, every=10)
    assert [step for step in (1, 1, 9, 13, 13, 19, 20, 41) if watch(step)] == [1, 13, 20, 41]
    with pytest.raises(tvc.InputError, match="step 0 comes after step 41: count steps over the whole training"):
        watch.step(0)
    watch.step(44)
    watch.close()
    assert watch.steps == [1, 13, 20, 41, 44]


def test_every_may_be_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 20)).__next__
    monkeypatch.setattr(watching.time, "monotonic", clock)  # type: ignore[attr-defined]
    watch = tvc.Watch(Net(), PHOTOS, tmp_path, every=timedelta(seconds=50))
    for _ in range(8):
        watch.step()
    assert watch.steps == [0, 3, 6]


def test_heatmaps_are_those_of_the_method_in_evaluation_mode(tmp_path: Path) -> None:
    model = Net().train()
    net = tvc.Network(model, tvc.Preprocess((24, 24)), ("a", "b", "c"))
    watch = tvc.Watch(net, PHOTOS, tmp_path, target="b", method="layer_cam", layer="conv2")
    with torch.autocast("cpu", torch.bfloat16):
        watch.step(loss=torch.tensor(2.5, requires_grad=True))
    kept = watch._history.kept[0]  # type: ignore[union-attr]
    heat = tvc.layer_cam(model.eval(), PHOTOS, "conv2", 1)
    assert torch.equal(kept.heat, heat.values)
    shares = tvc.predict(model, PHOTOS).as_subclass(Tensor)
    assert torch.equal(kept.probability, shares[:, 1])
    assert torch.equal(kept.confidence, shares.amax(1))
    assert kept.target.tolist() == [1, 1, 1]
    assert kept.loss == 2.5


def test_dead_channels_are_counted_behind_the_activation(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.bn1.weight[:3], model.bn1.bias[:3] = 0, -1
    watch = tvc.Watch(model, PHOTOS, tmp_path)
    watch.step()
    kept = watch._history.kept[0]  # type: ignore[union-attr]
    assert kept.layers == ("relu", "relu#1")
    assert kept.channels.tolist() == [8, 8]
    assert kept.dead.tolist()[0] == 3


def test_without_activation_modules_normalisations_or_convolutions_are_counted(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 22 * 22, 2))
    normalised = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 22 * 22, 2))
    for number, (model, name) in enumerate(((plain, "0"), (normalised, "1"))):
        watch = tvc.Watch(model, PHOTOS, tmp_path / str(number))
        watch.step()
        assert watch._history.kept[0].layers == (name,)  # type: ignore[union-attr]
    watch = tvc.Watch(normalised, PHOTOS, tmp_path / "asked", layers="0")
    watch.step()
    assert watch._history.kept[0].layers == ("0",)  # type: ignore[union-attr]


def test_patterns_change_with_the_network_alone(tmp_path: Path) -> None:
    model = Net()
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=1, channels={"conv2": [1, 4]})
    watch.step()
    watch.step()
    with torch.no_grad():
        model.conv1.weight.mul_(-1)
    watch.step()
    one, two, three = (one.pictures["conv2"] for one in watch._history.kept)  # type: ignore[union-attr]
    assert one.shape == (2, 52, 52, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_network_whose_numbers_are_not_finite_does_not_stop_the_training(tmp_path: Path) -> None:
    model = Net()
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=1, target=1)
    watch.step(loss=1.0)
    with torch.no_grad():
        model.conv1.weight[0] = torch.nan
    watch.step(loss=float("nan"))
    with torch.no_grad():
        model.conv1.weight[0] = 0.1
    watch.step(loss=1.0)
    troubles = [one.trouble is not None for one in watch._history.kept]  # type: ignore[union-attr]
    assert troubles == [False, True, False]
    assert "numbers are not finite" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert tvc.Watch(model, PHOTOS, tmp_path, target=1).steps == [0, 1, 2]


def test_the_loop_is_told_of_its_network_once(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=1, target=0)
    with pytest.warns(tvc.TorchvizWarning, match="normalises by the batch"):
        watch.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.step()


def test_steps_kept_are_bounded(tmp_path: Path) -> None:
    watch = tvc.Watch(Net(), PHOTOS[:1], tmp_path, every=1, keep=5)
    for _ in range(12):
        watch.step()
    assert len(watch.steps) == 5
    assert watch.steps[0] == 0
    assert watch.steps[-1] == 11
    assert len(list(tmp_path.glob("[!.]*"))) == 5 + 3  # manifest.json, strip.png, index.html


def test_a_restarted_training_goes_on_in_its_folder(tmp_path: Path) -> None:
    for begin, end in ((0, 25), (15, 40)):
        watch = tvc.Watch(Net(), PHOTOS, tmp_path, every=10)
        for step in range(begin, end):
            watch.step(step)
    assert watch.steps == [0, 10, 15, 20, 30]
    again = tvc.Watch(Net(), PHOTOS, tmp_path, every=10)  # without numbers of its own it counts on
    again.step()
    assert again.steps == [0, 10, 15, 20, 30, 31]
    with pytest.raises(tvc.OutputError, match="its target is not given, this one's is 2"):
        tvc.Watch(Net(), PHOTOS, tmp_path, target=2)


def test_a_ctrl_c_inside_a_step_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().train()
    watch = tvc.Watch(model, PHOTOS, tmp_path, every=1)
    watch.step()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    places = [(ResultFolder, "save"), (ResultFolder, "update"), (watching, "strip"), (watching, "html")]
    for where, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, interrupted)
            with unchanged(model), pytest.raises(KeyboardInterrupt):
                watch.step()
        Image.open(tmp_path / "strip.png").load()
        assert (tmp_path / "index.html").read_text(encoding="utf-8").endswith("</html>")
        known = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["progress"]["steps"]
        assert tvc.Watch(Net(), PHOTOS, tmp_path).steps == known
    assert watch.step()
    assert watch.steps == tvc.Watch(Net(), PHOTOS, tmp_path).steps


def test_an_error_in_the_loop_does_not_look_again(tmp_path: Path) -> None:
    watch = tvc.Watch(Net(), PHOTOS, tmp_path, every=10)

    def loop() -> None:
        with watch:
            watch.step()
            watch.step()
            raise RuntimeError("the loop's own")

    with pytest.raises(RuntimeError, match="the loop's own"):
        loop()
    assert watch.steps == [0]


def test_wrappers_are_looked_through_and_nothing_is_compiled_anew(tmp_path: Path) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    model = Net().train()
    watched = torch.compile(model, backend=backend)
    watch = tvc.Watch(watched, PHOTOS, tmp_path / "compiled", every=1)  # type: ignore[arg-type]
    for step in range(4):
        watched(images(4, 24)).sum().backward()
        if step == 1:
            compiled.clear()
        watch.step()
    assert compiled == []
    average = tvc.Watch(AveragedModel(model), PHOTOS, tmp_path / "average")
    average.step()
    assert average.steps == [0]


def test_photos_of_a_folder_with_a_preprocess(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    preprocess = tvc.Preprocess((24, 24), resize=30)
    watch = tvc.Watch(
        Net(), folder, tmp_path / "run", preprocess=preprocess, categories=["x", "y", "z"], target=["x", "z", 1]
    )
    watch.step()
    assert [photo.name for photo in watch._subject.photos] == ["0.png", "1.png", "2.png"]
    assert watch._history.kept[0].target.tolist() == [0, 2, 1]  # type: ignore[union-attr]
    assert watch._subject.photos[0].box == preprocess.seen_box(60, 40)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "every": ({"every": 0}, tvc.InputError, "every is a whole number of at least 1"),
    "keep": ({"keep": 1}, tvc.InputError, "keep is a whole number of at least 2"),
    "method": ({"method": "grad_kam"}, tvc.InputError, "did you mean 'grad_cam'"),
    "layer": ({"layer": "conv3"}, tvc.LayerError, "did you mean 'conv"),
    "channels": ({"channels": {"conf1": [0]}}, tvc.LayerError, "did you mean 'conv1'"),
    "channel": ({"channels": {"conv1": "3"}}, tvc.InputError, "a channel is an index"),
    "channels alone": ({"channels": [3, 7]}, tvc.InputError, "channels are given by layer, as .* not a list"),
    "layers": ({"layers": "nothing.*"}, tvc.LayerError, "matches"),
    "targets": ({"target": [0, 1]}, tvc.TargetError, "2 classes for 3 photos"),
    "name": ({"target": "cat"}, tvc.TargetError, "class names"),
    "function": ({"target": lambda output: output}, tvc.TargetError, "not a function"),
    "photos": ({"photos": images(MOST + 1, 24)}, tvc.InputError, f"at most {MOST}|1 to {MOST}"),
    "files": ({"photos": ["nowhere.jpg"]}, tvc.InputError, "how photos are prepared"),
    "signals": ({"photos": torch.rand(2, 3, 9)}, tvc.InputError, "B, C, H, W"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_watched_is_refused_before_the_training(name: str, tmp_path: Path) -> None:
    options, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        tvc.Watch(Net(), out=tmp_path / "run", **{"photos": PHOTOS, **options})
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_network_does_not_have_is_told_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(tvc.TargetError, match="out of range"):
        tvc.Watch(Net(), PHOTOS, tmp_path, target=7).step()


def test_a_wrong_class_does_not_keep_the_folder_from_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(tvc.TargetError, match="out of range"):
        tvc.Watch(Net(), PHOTOS, tmp_path / "run", target=7).step()
    watch = tvc.Watch(Net(), PHOTOS, tmp_path / "run", target=2)
    watch.step()
    assert watch.steps == [0]


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tvc.InputError, match="loss is a number"):
        tvc.Watch(Net(), PHOTOS, tmp_path).step(loss=torch.ones(3))


def test_a_network_in_pieces_is_refused(tmp_path: Path) -> None:
    class FullyShardedDataParallel(nn.Sequential):
        pass

    with pytest.raises(tvc.ModelError, match="FSDP"):
        tvc.Watch(FullyShardedDataParallel(Net()), PHOTOS, tmp_path)


def test_only_the_first_of_several_processes_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with tvc.Watch(Net(), PHOTOS, tmp_path / "run", every=1) as watch:
        assert [watch.step() for _ in range(3)] == [False, False, False]
    assert not (tmp_path / "run").exists()
