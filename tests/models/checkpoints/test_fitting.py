"""Checkpoints as people have them: what stands before their names, beside the model, and in which numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import CheckpointError, InputError, ModelError
from torchviz_cnn.models.checkpoints.fitting import class_options, sketch

State = dict[str, Tensor]
SMALL = ("mnasnet0_5", "regnet_x_400mf", "squeezenet1_1")


class Small(nn.Module):
    """A little network with a counter, whose constructor reads the values of a tensor."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = [int(width) for width in torch.linspace(4, 6, 2).tolist()]
        self.conv1 = nn.Conv2d(1, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = nn.Sequential(nn.Conv2d(widths[0], widths[1], 3), nn.ReLU())
        self.fc = nn.Linear(widths[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layer1(self.bn1(self.conv1(x)).relu()).mean((2, 3)))
        return out


def flexible(**options: Any) -> Small:
    return Small(**options)


@pytest.fixture
def trained() -> nn.Module:
    """Five classes, and BatchNorm statistics that are not the default's."""
    torch.manual_seed(1)
    model = Small(5)
    model.train()(torch.randn(4, 1, 8, 8))
    return model.eval()


def assert_loads(trained: nn.Module, content: Any, path: Path) -> None:
    """Into a model, and through a factory that has to learn the number of classes."""
    torch.save(content, path)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for model in (Small(5).eval(), f"{__name__}:Small", f"{__name__}:flexible"):
            assert torch.equal(tvc.load_model(model, path).model(x), trained(x))


PREFIXES = ["model.", "backbone.", "net.module.", "encoder.", "module.module.", "_orig_mod.model._orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_with_another_number_of_classes(prefix: str, trained: nn.Module, tmp_path: Path) -> None:
    assert_loads(trained, {prefix + name: value for name, value in trained.state_dict().items()}, tmp_path / "p.pth")


def test_averaged_and_wrapped_models_both_ways(trained: nn.Module, tmp_path: Path) -> None:
    averaged = AveragedModel(trained)
    assert_loads(trained, averaged.state_dict(), tmp_path / "ema.pth")
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    for wrapped in (AveragedModel(Small(5)), nn.DataParallel(Small(5))):
        tvc.load_model(wrapped, tmp_path / "plain.pth")
        assert torch.equal(wrapped.state_dict()["module.fc.weight"], trained.state_dict()["fc.weight"])
    inner = {name.replace("layer1.", "layer1.module."): value for name, value in trained.state_dict().items()}
    assert_loads(trained, inner, tmp_path / "inner.pth")


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("teacher_first", [True, False])
def test_tensors_beside_the_model_are_named_once(
    prefix: str, teacher_first: bool, trained: nn.Module, tmp_path: Path
) -> None:
    own = {prefix + name: value for name, value in trained.state_dict().items()}
    teacher = {f"teacher.{name}": torch.zeros_like(value) for name, value in trained.state_dict().items()}
    content = {**teacher, **own} if teacher_first else {**own, **teacher}
    torch.save({"state_dict": {**content, "criterion.weight": torch.ones(5)}, "epoch": 3}, tmp_path / "pl.ckpt")
    model = Small(5)
    with pytest.warns(tvc.CheckpointWarning, match=r"besides Small's, not used: .*teacher\.conv1\.weight") as caught:
        tvc.load_model(model, tmp_path / "pl.ckpt")
    assert len(caught) == 1
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_deeper_network_is_another_network_and_not_one_with_something_beside(
    trained: nn.Module, tmp_path: Path
) -> None:
    for extra in ("layer1.2.weight", "layer2.0.weight"):
        torch.save({**trained.state_dict(), extra: torch.zeros(2)}, tmp_path / "deeper.pth")
        with pytest.raises(tvc.CheckpointError, match=f"unexpected {extra}"):
            tvc.load_model(Small(5), tmp_path / "deeper.pth")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_all_tensors_stored_in_another_precision(stored: torch.dtype, trained: nn.Module, tmp_path: Path) -> None:
    torch.save({name: value.to(stored) for name, value in trained.state_dict().items()}, tmp_path / "half.pth")
    loaded = tvc.load_model(Small(5), tmp_path / "half.pth").model.state_dict()
    for name, value in trained.state_dict().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.to(stored).to(value.dtype))
    counter = {"bn1.num_batches_tracked": torch.tensor(torch.inf, dtype=torch.float16)}
    torch.save({**trained.state_dict(), **counter}, tmp_path / "overflown.pth")
    tvc.load_model(Small(5), tmp_path / "overflown.pth")


@pytest.mark.filterwarnings("ignore:.*nested tensors.*", "ignore:.*quantiz.*")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: torch.nested.nested_tensor([t[0, 0], t[1, 0, :2]]), "is nested, not floating point"),
        (lambda t: t.to_sparse(), "is sparse_coo, not floating point"),
        (lambda t: t.to(torch.complex64), "is complex, not floating point"),
        (lambda t: t.to("meta"), "no values for conv1.weight"),
    ],
)
def test_tensors_of_another_kind(
    change: Callable[[Tensor], Tensor], message: str, trained: nn.Module, tmp_path: Path
) -> None:
    state = trained.state_dict()
    torch.save({**state, "conv1.weight": change(state["conv1.weight"])}, tmp_path / "odd.pth")
    with pytest.raises(tvc.CheckpointError, match=message):
        tvc.load_model(Small(5), tmp_path / "odd.pth")


def test_dicts_that_hold_themselves_or_have_other_keys(trained: nn.Module, tmp_path: Path) -> None:
    endless: dict[str, Any] = {"epoch": 1}
    endless["model"] = endless
    for content in (endless, {1: torch.ones(2)}, {("a", 0): torch.ones(2)}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(tvc.CheckpointError, match="holds no state_dict"):
            tvc.load_model(Small(5), tmp_path / "odd.pth")
    assert_loads(trained, {**trained.state_dict(), 7: torch.ones(2)}, tmp_path / "seven.pth")
    options = argparse.Namespace(lr=0.1)
    assert_loads(trained, {"model": trained.state_dict(), "args": options}, tmp_path / "options.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_files_of_other_programs_say_what_they_are(trained: nn.Module, tmp_path: Path) -> None:
    import zipfile

    scripted = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(trained.get_submodule("layer1")), str(scripted))
    with pytest.raises(tvc.CheckpointError, match=r"TorchScript program.*torch\.jit\.load\(.*state_dict") as caught:
        tvc.load_model(Small(5), scripted)
    assert "weights_only" not in str(caught.value)
    for member, what in (("model.weights.h5", "a Keras file"), ("readme.txt", "a zip archive")):
        with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
            archive.writestr(member, "")
        with pytest.raises(tvc.CheckpointError, match=what):
            tvc.load_model(Small(5), tmp_path / "other.pth")
    torch.save(trained, tmp_path / "whole.pth")
    with pytest.raises(tvc.CheckpointError, match=r"a \S+\.Small") as caught:
        tvc.load_model(Small(5), tmp_path / "whole.pth")
    assert "weights_only" not in str(caught.value)


def test_names_that_have_changed_since(tmp_path: Path) -> None:
    """weight_norm before it was a parametrisation, and the blocks of torchvision's DenseNets and transformers."""

    def model() -> nn.Sequential:
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)))

    new = model().state_dict()
    old = {"0.bias": new["0.bias"], "0.weight_g": 3 * new["0.parametrizations.weight.original0"]}
    old["0.weight_v"] = new["0.parametrizations.weight.original1"]
    torch.save(old, tmp_path / "old.pth")
    loaded = tvc.load_model(model(), tmp_path / "old.pth").model.state_dict()
    assert torch.equal(loaded["0.parametrizations.weight.original0"], old["0.weight_g"])
    assert torch.equal(loaded["0.parametrizations.weight.original1"], old["0.weight_v"])

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Dropout(), nn.Linear(3, 2))

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denselayer12 = nn.ModuleDict({"norm1": nn.BatchNorm2d(2), "conv2": nn.Conv2d(2, 2, 1)})

    for build, renamings in (
        (Block, {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}),
        (Dense, {"norm1.": "norm.1.", "conv2.": "conv.2."}),
    ):
        state = build().state_dict()
        published = {}
        for name, value in state.items():
            for today, before in renamings.items():
                name = name.replace(today, before)
            published[name] = value
        torch.save(published, tmp_path / "published.pth")
        loaded = tvc.load_model(build(), tmp_path / "published.pth").model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_a_sketch_has_shapes_without_values_where_the_factory_allows_it() -> None:
    assert sketch(Small).state_dict()["fc.weight"].is_meta

    def reads() -> nn.Module:
        model = Small()
        assert model.fc.weight.abs().max().item() > 0
        return model

    assert not sketch(reads).state_dict()["fc.weight"].is_meta


def test_a_main_head_decides_on_the_number_of_classes() -> None:
    def two_heads(num_classes: int = 10) -> nn.Module:
        return nn.ModuleDict({"aux": nn.Linear(4, num_classes), "fc": nn.Linear(4, num_classes)})

    state = {"aux.weight": torch.zeros(10, 4), "fc.weight": torch.zeros(3, 4)}
    assert class_options(two_heads, state) == {"num_classes": 3}


def assert_torchvision_loads(name: str, tmp_path: Path) -> None:
    import torchvision

    for prefix, options in (("", {}), ("model.", {"num_classes": 5})):
        state = torchvision.models.get_model(name, weights=None, **options).state_dict()
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "own.pth")
        loaded = tvc.load_model(name, tmp_path / "own.pth").model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.slow
def test_torchvision_classifiers_up_to_9_million_parameters_load_their_own_state(tmp_path: Path) -> None:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] < 9e6:
            assert_torchvision_loads(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_of_other_classes_are_left_out_with_a_word(name: str, tmp_path: Path) -> None:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, init_weights=False)
    model.fc = nn.Linear(model.fc.in_features, 5)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    with pytest.warns(tvc.CheckpointWarning, match=r"not used: aux|not used: Aux"):
        net = tvc.load_model(name, tmp_path / "tuned.pth")
    assert torch.equal(net.model.get_parameter("fc.weight"), model.fc.weight)


@pytest.mark.parametrize("name", SMALL)
def test_how_torchvision_builds_small_ones(name: str) -> None:
    """Their heads are noticed, without building any of them for real."""
    import torchvision

    def build(**options: Any) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return model

    state = {key: torch.zeros(value.shape) for key, value in sketch(build, num_classes=5).state_dict().items()}
    assert class_options(build, state) == {"num_classes": 5}


# --- checkpoints without the head -------------------------------------------------------------------------------


def without(state: State, *heads: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(heads)}


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", ("fc",)),
        ("squeezenet1_1", ("classifier",)),
        ("mobilenet_v3_small", ("classifier.3",)),
        pytest.param("swin_t", ("head",), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_without_the_head_gives_a_network_without_classes(
    name: str, heads: tuple[str, ...], tmp_path: Path
) -> None:
    whole = tvc.load_model(name, "random").model
    torch.save(without(whole.state_dict(), *heads), tmp_path / "headless.pth")
    net = tvc.load_model(name, tmp_path / "headless.pth", head="none")
    x = torch.rand(2, 3, 64, 64)
    names = tvc.layer_names(whole)
    layer = names[len(names) // 2]
    assert torch.equal(tvc.capture(net.model, x, layer)[layer], tvc.capture(whole, x, layer)[layer])
    assert net.categories is None
    assert net.model(x).shape == (2, 0)
    with pytest.raises(ModelError, match="no classes: it has no head"):
        tvc.grad_cam(net.model, x, layer)


def test_a_missing_head_is_named_with_the_option_that_loads_the_rest(tmp_path: Path) -> None:
    state = tvc.load_model("resnet18", "random").model.state_dict()
    torch.save(without(state, "fc"), tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match=r"missing fc\.weight, fc\.bias; it has no head \(fc\): head='none'"):
        tvc.load_model("resnet18", tmp_path / "headless.pth")
    torch.save(without(state, "fc", "layer1"), tmp_path / "less.pth")
    for head in (None, "none"):
        with pytest.raises(CheckpointError, match=r"missing layer1\.0\.conv1\.weight") as caught:
            tvc.load_model("resnet18", tmp_path / "less.pth", head=head)  # type: ignore[arg-type]
        assert "head='none'" not in str(caught.value)


def test_a_head_that_cannot_be_left_out_is_said_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(before, tmp_path / "whole.pth")
    torch.save(without(before, "fc", "layer1"), tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="for a checkpoint without the head"):
        tvc.load_model(model, tmp_path / "whole.pth", head="none")
    with pytest.raises(CheckpointError, match="missing"):
        tvc.load_model(model, tmp_path / "less.pth", head="none")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for weights in (None, "random", "model.keras"):
        with pytest.raises(InputError, match="weights names none"):
            tvc.load_model("resnet18", weights, head="none")


def test_convolutions_of_vgg16_alone(data: Path) -> None:
    net = tvc.load_model("vgg16", data / "checkpoints" / "vgg16_features.safetensors", head="none")
    assert tvc.capture(net, data / "images" / "elephant.jpg", "features.29")["features.29"].shape == (1, 512, 14, 14)
