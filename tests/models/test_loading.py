"""load_model: names, checkpoints of every form, and one clear error for each that does not fit."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchviz_cnn as tvc
from tests.conftest import unchanged
from torchviz_cnn.models.catalogue import CATALOGUE

NAME = "squeezenet1_1"


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return tvc.load_model(NAME, "random").model


def tiny(num_classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "usernet.py").write_text(
        "import torch\nfrom tests.models.test_loading import tiny\n"
        "broken = lambda: 1 / 0\nnumber = 3\ndef text(): return 'text'\ninstance = tiny()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("usernet", None)
    return tmp_path


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone(trained: nn.Module) -> None:
    with unchanged(nn.Identity()):
        again = tvc.load_model(NAME, "random")
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.model.state_dict().values(), strict=True)
    )
    assert not again.model.training
    assert again.input_size == (224, 224)
    assert again.categories is not None
    assert again.categories[386] == "African elephant"


@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "state_dict",
        "model_and_optimiser",
        "safetensors",
    ],
)
def test_checkpoints_of_every_form(form: str, trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    path = tmp_path / "checkpoint.pth"
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif form.endswith("."):
        torch.save({form + name: tensor for name, tensor in state.items()}, path)
    elif form == "state_dict":
        torch.save({"epoch": 3, "state_dict": {"module." + n: t for n, t in state.items()}, "best": 0.5}, path)
    elif form == "model_and_optimiser":
        optimiser = torch.optim.SGD(trained.parameters(), 0.1).state_dict()
        torch.save({"weights_of_the_net": state, "optimizer": optimiser, "epoch": 3}, path)
    else:
        torch.save(state, path)
    net = tvc.load_model(NAME, path)
    assert all(torch.equal(tensor, net.model.state_dict()[name]) for name, tensor in state.items())
    assert str(path) in repr(net)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v3_small"])
def test_number_of_classes_is_the_checkpoints(name: str, tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.get_model(name, weights=None, num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    net = tvc.load_model(name, tmp_path / "seven.pth", labels=list("abcdefg"))
    assert net.model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert net.categories == tuple("abcdefg")
    assert tvc.load_model(name, tmp_path / "seven.pth").categories is None


@pytest.mark.slow
@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_heads_are_the_checkpoints(auxiliary: bool, tmp_path: Path) -> None:
    import torchvision

    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=auxiliary)
    for name in ("mine.pth", "googlenet-1378be20.pth"):  # the second is torchvision's own file's name
        torch.save(model.state_dict(), tmp_path / name)
        net = tvc.load_model("googlenet", tmp_path / name)
        assert vars(net.model)["aux_logits"] == auxiliary
        assert vars(net.model)["transform_input"] == (name != "mine.pth")


@pytest.mark.slow
def test_preprocessing_is_the_weights_own(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.resnet50(weights=None).state_dict()
    for file, resize in (("resnet50-0676ba61.pth", 256), ("resnet50-11ad3fa6.pth", 232)):
        torch.save(state, tmp_path / file)
        assert tvc.load_model("resnet50", tmp_path / file).preprocess.resize == resize
        (tmp_path / file).unlink()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil-was-here"),))


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pth"
    torch.save(trained.state_dict(), good)
    files = {
        "truncated.pth": good.read_bytes()[:5000],
        "empty.pth": b"",
        "text.pth": b"hello, this is no checkpoint",
        "bad.safetensors": b"\x10" * 100,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(tvc.CheckpointError, match=name.replace(".", r"\.")):
            tvc.load_model(NAME, tmp_path / name)
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    save_file(trained.state_dict(), tmp_path / "other.pth")
    for name, words in (("pointer.pth", "git lfs pull fetches it"), ("other.pth", r"suffix \.safetensors")):
        with pytest.raises(tvc.CheckpointError, match=words):
            tvc.load_model(NAME, tmp_path / name)
    save_file(trained.state_dict(), tmp_path / "UPPER.SAFETENSORS")
    assert tvc.load_model(NAME, tmp_path / "UPPER.SAFETENSORS").weights.endswith("UPPER.SAFETENSORS")
    torch.save({"state_dict": trained.state_dict(), "evil": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save(trained, tmp_path / "whole.pth")
    for name in ("evil.pth", "evil.pkl", "whole.pth"):
        with pytest.raises(tvc.CheckpointError, match="pickled Python objects"):
            tvc.load_model(NAME, tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()
    with pytest.raises(tvc.CheckpointError, match=r"no checkpoint .*goood\.pth; did you mean 'good\.pth'"):
        tvc.load_model(NAME, tmp_path / "goood.pth")
    with pytest.raises(tvc.CheckpointError, match="is a folder"):
        tvc.load_model(NAME, tmp_path)
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "history.pth")
    with pytest.raises(tvc.CheckpointError, match="holds no state_dict: its keys are epoch, history"):
        tvc.load_model(NAME, tmp_path / "history.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(tvc.CheckpointError, match="holds a list"):
        tvc.load_model(NAME, tmp_path / "list.pth")


def test_another_architectures_checkpoint_says_what_does_not_match(tmp_path: Path, trained: nn.Module) -> None:
    state = dict(trained.state_dict())
    state.pop("features.0.bias")
    state["features.3.squeeze.weight"] = torch.zeros(1, 2, 3, 4)
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    words = (
        r"other\.pth does not fit SqueezeNet: 50 of its 52 tensors match; missing features\.0\.bias; unexpected extra; "
        r"other shape: features\.3\.squeeze\.weight is \(1, 2, 3, 4\), not \(16, 64, 1, 1\)"
    )
    with pytest.raises(tvc.CheckpointError, match=words):
        tvc.load_model(NAME, tmp_path / "other.pth")


def test_names_that_do_not_exist(user_module: Path) -> None:
    for name, weights, words in [
        ("resnet5O", "random", "no model 'resnet5O'; did you mean 'resnet50'"),
        ("vgg16", None, "vgg16 needs weights"),
        ("vgg16", "DEFALT", "no weights 'DEFALT'; did you mean 'DEFAULT'"),
        ("xception", None, "xception needs weights"),
        ("nosuchmodule:net", None, "no module 'nosuchmodule'"),
        ("usernet:tinny", None, "'usernet' has no 'tinny'; did you mean 'tiny'"),
        ("usernet:broken", None, "'usernet:broken' failed: ZeroDivisionError"),
        ("usernet:number", None, "is an int"),
        ("usernet:text", None, r"gave a str, not a torch\.nn\.Module"),
        ("deeplabv3_resnet50", "random", "not a classifier of images .*whose forward returns scores of classes"),
        ("quantized_resnet18", "random", "not a classifier of images in floating point"),
        ("weights/mine.pth", None, "this is a file of weights: name the network that it is for"),
    ]:
        with pytest.raises(tvc.ModelError, match=words):
            tvc.load_model(name, weights)
    with pytest.raises(tvc.InputError, match="no device 'cuda:99' here"):
        tvc.load_model(NAME, "random", device="cuda:99")


def test_a_users_own_factory(user_module: Path, tmp_path: Path) -> None:
    net = tvc.load_model("usernet:tiny", input_size=(20, 30), labels=list("abcde"))
    assert net.preprocess.mean == (0.5,)  # its first convolution is for grey pictures
    assert net.input_size == (20, 30)
    torch.save(tiny(9).state_dict(), tmp_path / "nine.pth")
    assert tvc.load_model("usernet:tiny", tmp_path / "nine.pth").model(torch.zeros(1, 1, 9, 9)).shape == (1, 9)
    assert isinstance(tvc.load_model("usernet:instance").model, nn.Sequential)


def test_a_module_becomes_a_network_and_stays_as_it_is(tmp_path: Path) -> None:
    model = tiny()
    with unchanged(model):
        net = tvc.load_model(model, input_size=20, labels=list("abcde"))
    assert net.model is model
    assert model.training
    assert (net.input_size, net.preprocess.mean, net.name, net.weights) == ((20, 20), (0.5,), "Sequential", "its own")
    torch.save(tiny().state_dict(), tmp_path / "five.pth")
    with_weights = tvc.load_model(net, tmp_path / "five.pth")
    assert with_weights.categories == tuple("abcde")
    assert with_weights.weights == str(tmp_path / "five.pth")
    with pytest.raises(tvc.ModelError, match="not an int"):
        tvc.load_model(3)  # type: ignore[arg-type]


def test_weights_are_a_file_or_a_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    for weights in (model.state_dict(), True):
        with pytest.raises(tvc.InputError, match=r"a file's path or a version's name, not an? .*load_state_dict"):
            tvc.load_model(model, weights)  # type: ignore[arg-type]


def test_labels_from_files(user_module: Path, tmp_path: Path) -> None:
    files = {
        "names.txt": "a\nb\n\nc\nd\ne\n",
        "windows.txt": "\ufeffa\r\nb\r\nc\r\nd\r\ne\r\n",
        "list.json": json.dumps(list("abcde")),
        "dict.json": json.dumps({str(i): name for i, name in enumerate("abcde")}),
        "class_to_idx.json": json.dumps({name: i for i, name in reversed(list(enumerate("abcde")))}),
        "imagenet.json": json.dumps({str(i): [f"n{i}", name] for i, name in enumerate("abcde")}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert tvc.load_model("usernet:tiny", labels=tmp_path / name).categories == tuple("abcde")
    (tmp_path / "years.json").write_text('{"0": 1980, "1": 1990, "2": 2000, "3": 2010, "4": 2020}')
    (tmp_path / "year_to_idx.json").write_text('{"1980": 4, "1990": 3, "2000": 2, "2010": 1, "2020": 0}')
    years = ("1980", "1990", "2000", "2010", "2020")
    assert tvc.load_model("usernet:tiny", labels=tmp_path / "years.json").categories == years
    assert tvc.load_model("usernet:tiny", labels=tmp_path / "year_to_idx.json").categories == years[::-1]
    assert tvc.load_model("usernet:tiny", labels={"b": 1, "a": 0, "d": 3, "c": 2, "e": 4}).categories == tuple("abcde")
    (tmp_path / "separator.txt").write_text("a\u2028a\nb\x0cb\nc\nd\ne", encoding="utf-8")
    separated = tvc.load_model("usernet:tiny", labels=tmp_path / "separator.txt").categories
    assert separated == ("a\u2028a", "b\x0cb", "c", "d", "e")
    numbered = {name: np.int64(i) for i, name in enumerate("abcde")}
    assert tvc.load_model("usernet:tiny", labels=numbered).categories == tuple("abcde")  # type: ignore[arg-type]
    for unordered in (set("abcde"), 5):
        with pytest.raises(tvc.InputError, match="class names are a list of names"):
            tvc.load_model("usernet:tiny", labels=unordered)  # type: ignore[arg-type]
    (tmp_path / "bad.json").write_text('{"1": 2}')
    (tmp_path / "string.json").write_text('"abcde"')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nothing.json").write_text('["a", "b", null, "d", "e"]')
    for wrong in ("bad.json", "missing.txt", "string.json", "deep.json", "nothing.json"):
        with pytest.raises(tvc.InputError, match=wrong):
            tvc.load_model("usernet:tiny", labels=tmp_path / wrong)
    with pytest.raises(tvc.InputError, match="labels has 3 class names, and no layer of usernet:tiny has that many"):
        tvc.load_model("usernet:tiny", labels=list("abc"))


def test_class_names() -> None:
    net = tvc.load_model(NAME, "random")
    assert net.class_index("african elephant") == net.class_index(386) == net.class_index("386") == 386
    assert net.class_index("African_elephant") == 386
    assert net.category(386) == "African elephant"
    assert net.category(5000) == "class 5000"
    with pytest.raises(tvc.TargetError, match="no class 'Afrikan elephant'; did you mean 'African elephant'"):
        net.class_index("Afrikan elephant")


def test_class_names_that_are_not_unique_or_not_known(user_module: Path) -> None:
    twice = tvc.load_model("usernet:tiny", labels=["cat", "dog", "Cat", "emu", "fox"])
    with pytest.raises(tvc.TargetError, match=r"2 classes of usernet:tiny are called 'cat': 0, 2; give the index"):
        twice.class_index("cat")
    with pytest.raises(tvc.TargetError, match="class names of usernet:tiny are not known"):
        tvc.load_model("usernet:tiny").class_index("cat")


@pytest.mark.parametrize("name", ["convnet_2017", "convnet_2025", "mini_xception", "fashion_mnist_convnet", "zfnet"])
def test_own_networks_by_name(name: str) -> None:
    net = tvc.load_model(name, "random")
    x = torch.zeros(2, len(net.preprocess.mean), *net.input_size)
    assert net.model(x).shape[0] == 2
    assert name in tvc.model_names()


def test_a_download_that_fails_names_the_weights_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the download itself: nothing listens where the proxy should be."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for proxy in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(tvc.CheckpointError, match=r"could not be downloaded from https://\S+/squeezenet1_1-"):
        tvc.load_model(NAME, "DEFAULT")


def test_geometry_is_used_where_maps_are_drawn() -> None:
    from PIL import Image

    photo = Image.new("RGB", (200, 100))
    for geometry, width in (("crop", 88), ("stretch", 200)):
        net = tvc.load_model(NAME, "random", geometry=geometry)  # type: ignore[arg-type]
        left, _, right, _ = net.preprocess.seen_box(*photo.size)
        assert round(right - left) == width


def test_weights_that_cannot_be_right(trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    torch.save({name: tensor.to(torch.int8) for name, tensor in state.items()}, tmp_path / "int8.pth")
    with pytest.raises(tvc.CheckpointError, match=r"features\.0\.weight is whole numbers, not floating point"):
        tvc.load_model(NAME, tmp_path / "int8.pth")
    torch.save(state | {"features.0.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.warns(tvc.CheckpointWarning, match=r"not finite in features\.0\.bias") as caught:
        tvc.load_model(NAME, tmp_path / "nan.pth")
    assert caught[0].filename == __file__


def test_numbers_beside_the_weights(trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    for name, content in {
        "nested.pth": {"model": {"state_dict": state, "step": 3}},
        "flat.pth": {**state, "epoch": 3},
        "numpy.pth": {"state_dict": state, "best_accuracy": np.float64(0.5)},
    }.items():
        torch.save(content, tmp_path / name)
        loaded = tvc.load_model(NAME, tmp_path / name).model.state_dict()
        assert torch.equal(loaded["features.0.weight"], state["features.0.weight"])


def test_predict_understands_what_models_give() -> None:
    class Dictionary(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x.flatten(1)}

    x = torch.randn(2, 1, 1, 3)
    assert torch.allclose(tvc.predict(Dictionary(), x), x.flatten(1).softmax(1))


@pytest.mark.parametrize("name", ["convnet_2017", "convnet_2025", "mini_xception"])
def test_what_the_training_script_writes_is_used_as_it_was_trained(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"input_size": 96} if name == "convnet_2017" else {}
    options |= {"batch_norm": True} if name == "convnet_2025" else {}
    model = CATALOGUE[name].factory(num_classes=3, **options)
    about = {"model": name, "categories": '["a", "b", "c"]', "input_size": "96", "in_channels": "3"}
    about |= {"mean": "[0.4, 0.5, 0.6]", "std": "[0.2, 0.2, 0.2]"}
    save_file(model.state_dict(), tmp_path / "trained.safetensors", about)
    net = tvc.load_model(name, tmp_path / "trained.safetensors")
    assert net.categories == ("a", "b", "c")
    assert (net.input_size, net.preprocess.geometry, net.preprocess.mean) == ((96, 96), "crop", (0.4, 0.5, 0.6))
    assert net.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize("change", [{"categories": "[" * 100_000}, {"categories": '"abc"'}, {"input_size": "-1"}])
def test_metadata_that_cannot_be_right(change: dict[str, str], tmp_path: Path) -> None:
    about = {"model": "convnet_2017", "categories": '["a"]', "input_size": "96", "mean": "[0.4]", "std": "[0.2]"}
    model = CATALOGUE["convnet_2017"].factory(num_classes=1, input_size=96)
    save_file(model.state_dict(), tmp_path / "odd.safetensors", about | change)
    with pytest.raises(tvc.CheckpointError, match=r"metadata of .*odd\.safetensors cannot be read"):
        tvc.load_model("convnet_2017", tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 cat\n1 dog\n2 a bird\n", ("cat", "dog", "a bird")),
        ("2,bird\n0,cat\n1,dog\n", ("cat", "dog", "bird")),
        ("index,name\n1,dog\n0,cat\n", ("cat", "dog")),
        ("0: cat\n\n1: dog\n", ("cat", "dog")),
        ("1 cat\n2 dog\n", ("1 cat", "2 dog")),
        ("cat\n1 dog\n", ("cat", "1 dog")),
        ("0 cat\n0 dog\n", ("0 cat", "0 dog")),
        ("7\n8\n", ("7", "8")),
    ],
)
def test_lines_with_the_numbers_of_their_classes_are_in_the_order_of_these(
    tmp_path: Path, text: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "labels.txt").write_text(text)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, len(names), 3))
    assert tvc.load_model(model, input_size=16, labels=tmp_path / "labels.txt").categories == names


def test_indices_that_are_not_those_of_classes_are_told() -> None:
    for labels in ({"1": "cat", "2": "dog"}, {"cat": 0, "dog": 2}):
        with pytest.raises(tvc.InputError, match=r"; of 2 classes the indices are 0 to 1, and these are others$"):
            tvc.load_model(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), input_size=16, labels=labels)  # type: ignore[arg-type]
