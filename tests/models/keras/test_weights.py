"""Keras files written by hand: what fits, what does not, what is broken or hostile, and the conversion script."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from torchviz_cnn.core.errors import CheckpointError, CheckpointWarning, InputError
from torchviz_cnn.models.convnets import fashion_mnist_convnet
from torchviz_cnn.models.keras.weights import load_keras_weights

h5py = pytest.importorskip("h5py")


def write_legacy(path: Path, layers: dict[str, dict[str, Any]]) -> Path:
    """A legacy weight file, written without Keras."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in weights]
            for key, value in weights.items():
                group.create_dataset(f"{name}/{key}:0", data=value)
    return path


def conv_weights(*shape: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "kernel": torch.randn(shape, generator=generator).numpy(),
        "bias": torch.randn(shape[-1], generator=generator).numpy(),
    }


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))


TINY = {"c1": conv_weights(3, 3, 3, 4), "c2": conv_weights(3, 3, 4, 5), "d": conv_weights(5, 2)}


def test_a_file_written_by_hand_loads(tmp_path: Path) -> None:
    model = tiny()
    weight = model.get_parameter("0.weight")
    assert load_keras_weights(model, str(write_legacy(tmp_path / "w.h5", TINY))) is model
    assert model.get_parameter("0.weight") is weight
    assert torch.equal(weight[1, 2], torch.from_numpy(TINY["c1"]["kernel"])[:, :, 2, 1])
    assert torch.equal(model.get_parameter("4.weight"), torch.from_numpy(TINY["d"]["kernel"]).T)


def test_names_as_the_first_kerases_wrote_them(tmp_path: Path) -> None:
    """`conv1_W_1:0` without a folder, and a list of layers too long for one attribute."""
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        names = [name.encode() for name in TINY]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
        for name, weights in TINY.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_W_1:0".encode(), f"{name}_b_1:0".encode()]
            group.create_dataset(f"{name}_W_1:0", data=weights["kernel"])
            group.create_dataset(f"{name}_b_1:0", data=weights["bias"])
    expected = load_keras_weights(tiny(), write_legacy(tmp_path / "new.h5", TINY)).state_dict()
    filled = load_keras_weights(tiny(), path).state_dict()
    assert all(torch.equal(filled[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stored", ["float16", "float64"])
def test_the_model_keeps_its_own_dtype(stored: str, tmp_path: Path) -> None:
    layers = {name: {key: v.astype(stored) for key, v in weights.items()} for name, weights in TINY.items()}
    model = load_keras_weights(tiny().to(torch.bfloat16), write_legacy(tmp_path / "w.h5", layers))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.get_parameter("0.bias"), torch.from_numpy(layers["c1"]["bias"]).to(torch.bfloat16))


def test_a_flattened_map_is_reordered_for_its_dense_layer(tmp_path: Path) -> None:
    """Keras flattens (H, W, C), PyTorch (C, H, W): the weight of channel 1 at row 0, column 1 moves."""
    kernel = torch.zeros(2 * 2 * 3, 1)
    kernel[0 * 6 + 1 * 3 + 1] = 1
    layers = {"c": conv_weights(1, 1, 3, 3), "d": {"kernel": kernel.numpy(), "bias": [0.0]}}
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(12, 1))
    path = write_legacy(tmp_path / "w.h5", layers)
    with pytest.warns(CheckpointWarning, match="2 is taken to follow a map of 2 x 2"):
        load_keras_weights(model, path)
    assert model.get_parameter("2.weight").view(3, 2, 2)[1, 0, 1] == 1


class Viewed(nn.Module):
    """Flattens by itself, after pooling by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.dense = nn.Linear(2 * 3 * 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv(x), 2)
        out: torch.Tensor = self.dense(x.flatten(2).flatten(1))
        return out


def keras_archive(path: Path, layers: list[list[Any]], config: dict[str, Any]) -> Path:
    """A `.keras` file, written without Keras: numbered arrays, and a description that names the layers."""
    with zipfile.ZipFile(path, "w") as archive:
        with h5py.File(path.with_suffix(".inner"), "w") as file:
            for number, (entry, arrays) in enumerate(zip(config["layers"][1:], layers, strict=True)):
                group = file.create_group(f"layers/l{number}/vars")
                group.attrs["name"] = entry["config"]["name"]
                for index, array in enumerate(arrays):
                    group.create_dataset(str(index), data=array)
        archive.write(path.with_suffix(".inner"), "model.weights.h5")
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": config}))
    return path


def described(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": class_name.lower(), **config}}


def test_a_map_that_is_not_square_is_reordered_as_the_network_has_it(tmp_path: Path) -> None:
    """Every weight goes to the channel, row and column that it has in Keras' (H, W, C)."""
    kernel = torch.arange(12.0)[:, None]
    conv, dense = conv_weights(1, 1, 1, 2), {"kernel": kernel.numpy(), "bias": [0.0]}
    expected = kernel.view(3, 2, 2).permute(2, 0, 1).flatten()
    legacy = write_legacy(tmp_path / "w.h5", {"conv2d": conv, "dense": dense})
    with pytest.raises(CheckpointError, match=r"dense takes 12 values, .* input_size=\(height, width\)"):
        load_keras_weights(Viewed(), legacy)
    model = load_keras_weights(Viewed(), legacy, input_size=(6, 4))
    assert torch.equal(model.dense.weight.detach()[0], expected)
    layers = [described("InputLayer", batch_shape=[None, 6, 4, 1]), described("Conv2D"), described("Dense")]
    path = keras_archive(
        tmp_path / "m.keras", [list(conv.values()), list(dense.values())], {"name": "net", "layers": layers}
    )
    assert torch.equal(load_keras_weights(Viewed(), path).dense.weight.detach()[0], expected)


def test_a_flattened_photo_is_reordered_for_its_dense_layer(tmp_path: Path) -> None:
    kernel = torch.arange(12.0)[:, None]
    legacy = write_legacy(tmp_path / "w.h5", {"dense": {"kernel": kernel.numpy(), "bias": [0.0]}})
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    with pytest.warns(CheckpointWarning, match=r"1 is taken for a layer of values.*input_size=\(height, width\)"):
        load_keras_weights(model, legacy)
    assert torch.equal(model.get_parameter("1.weight").detach()[0], kernel[:, 0])
    load_keras_weights(model, legacy, input_size=2)
    expected = kernel.view(2, 2, 3).permute(2, 0, 1).flatten()
    assert torch.equal(model.get_parameter("1.weight").detach()[0], expected)


def test_adaptive_pooling_says_the_map_that_is_flattened(tmp_path: Path) -> None:
    kernel = torch.arange(6.0)[:, None]
    layers = {"c": conv_weights(1, 1, 1, 2), "d": {"kernel": kernel.numpy(), "bias": [0.0]}}
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(6, 1))
    load_keras_weights(model, write_legacy(tmp_path / "w.h5", layers))
    assert model.get_parameter("3.weight").flatten().tolist() == [0, 2, 4, 1, 3, 5]


BATCH_NORM = {"gamma": [2.0, 3.0], "beta": [4.0, 5.0], "moving_mean": [6.0, 7.0], "moving_variance": [8.0, 9.0]}


@pytest.mark.parametrize("lacking", [("gamma",), ("beta",), ("gamma", "beta")])
@pytest.mark.parametrize("form", ["legacy", "archive"])
def test_a_batch_norm_without_scale_or_center(lacking: tuple[str, ...], form: str, tmp_path: Path) -> None:
    stored = {name: value for name, value in BATCH_NORM.items() if name not in lacking}
    if form == "legacy":
        path = write_legacy(tmp_path / "w.h5", {"bn": stored})
    else:
        options = {"scale": "gamma" not in lacking, "center": "beta" not in lacking, "epsilon": 0.5}
        layers = [described("InputLayer"), described("BatchNormalization", **options)]
        path = keras_archive(tmp_path / "m.keras", [list(stored.values())], {"name": "net", "layers": layers})
    filled = load_keras_weights(nn.Sequential(nn.BatchNorm2d(2)), path).state_dict()
    weight = [1.0, 1.0] if "gamma" in lacking else [2.0, 3.0]
    bias = [0.0, 0.0] if "beta" in lacking else [4.0, 5.0]
    assert [value.tolist() for value in filled.values()][:4] == [weight, bias, [6.0, 7.0], [8.0, 9.0]]
    plain = nn.Sequential(nn.BatchNorm2d(2, affine=False))
    if len(lacking) == 2:
        assert load_keras_weights(plain, path).state_dict()["0.running_var"].tolist() == [8.0, 9.0]
    else:
        with pytest.raises(CheckpointError, match="affine=False"):
            load_keras_weights(plain, path)


def test_what_a_batch_norm_lacks_is_guessed_with_a_word_or_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/batch_normalization/vars")
        for index in range(3):
            group.create_dataset(str(index), data=[float(index)])
    with pytest.warns(CheckpointWarning, match="taken for a BatchNorm without scale"):
        filled = load_keras_weights(nn.Sequential(nn.BatchNorm2d(1)), path).state_dict()
    assert [value.item() for value in filled.values()][:4] == [1, 0, 1, 2]
    layer_norm = write_legacy(tmp_path / "ln.h5", {"layer_normalization": {"gamma": [1.0], "beta": [0.0]}})
    with pytest.raises(CheckpointError, match="unexpected in the file: layer_normalization"):
        load_keras_weights(nn.Sequential(nn.BatchNorm2d(1)), layer_norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2": None}, r"missing from the file: 1 \(conv \(3, 3, 4, 5\), \(5,\)\)"),
        ({"c3": conv_weights(3, 3, 9, 9)}, r"unexpected in the file: c3 \(conv \(3, 3, 9, 9\), \(9,\)\)"),
        ({"d": conv_weights(5, 7)}, r"another shape: d has \(5, 7\), \(7,\), 4 takes \(5, 2\), \(2,\)"),
        ({"n": {"mean": [1.0], "count": 3}}, r"unexpected in the file: n \(unsupported"),
        ({"c1": {"kernel": TINY["c1"]["kernel"]}}, r"another shape: c1 has \(3, 3, 3, 4\), 0 takes"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_changed(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    layers = {name: weights for name, weights in {**TINY, **change}.items() if weights is not None}
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_keras_weights(model, write_legacy(tmp_path / "w.h5", layers))
    assert "w.h5" in str(caught.value)
    assert "Sequential" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    layers = {"c1": conv_weights(3, 3, 3, 4), "d": conv_weights(5, 3), "e": conv_weights(5, 9)}
    with pytest.raises(CheckpointError) as caught:
        load_keras_weights(tiny(), write_legacy(tmp_path / "w.h5", layers))
    assert all(part in str(caught.value) for part in ("missing from the file: 1", "unexpected in the file: e"))


def test_weights_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GroupNorm has weights .*weight, bias"):
        load_keras_weights(nn.GroupNorm(2, 4), write_legacy(tmp_path / "w.h5", TINY))


@pytest.mark.parametrize(
    "damage",
    [
        "text",
        "empty",
        "truncated",
        "no weights",
        "zip",
        "zlib",
        "missing",
        "listed only",
        "holds itself",
        "vars in vars",
    ],
)
def test_broken_files_are_named(damage: str, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "broken.h5", TINY)
    if damage == "text":
        path.write_text("weights")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "no weights":
        h5py.File(path, "w").close()
    elif damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({}))
    elif damage == "zlib":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.weights.h5", bytes(range(256)) * 100)
        content = bytearray(path.read_bytes())
        content[60:80] = bytes(20)
        path.write_bytes(content)
    elif damage in ("holds itself", "vars in vars"):
        with h5py.File(path, "w") as file:
            group = file.create_group("layers")
            group["layers" if damage == "holds itself" else "vars"] = group
    elif damage == "missing":
        path.unlink()
    elif damage == "listed only":
        with h5py.File(path, "r+") as file:
            del file["c2/c2/bias:0"]
    with pytest.raises(CheckpointError, match=r"broken\.h5"):
        load_keras_weights(tiny(), path)


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    write_legacy(tmp_path / "other.h5", TINY)
    path = write_legacy(tmp_path / "w.h5", TINY)
    with h5py.File(path, "r+") as file:
        del file["c1"]
        file["c1"] = h5py.ExternalLink("other.h5", "/c1")
    with pytest.raises(CheckpointError, match=r"w\.h5: 'c1' is a link"):
        load_keras_weights(tiny(), path)


def test_numbers_kept_in_another_file_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 4))
    path = write_legacy(tmp_path / "w.h5", TINY)
    with h5py.File(path, "r+") as file:
        del file["c1/c1/bias:0"]
        file["c1/c1"].create_dataset("bias:0", (4,), "f4", external=[(str(secret), 0, 16)])
    with pytest.raises(CheckpointError, match="kept in another file"):
        load_keras_weights(tiny(), path)


def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(65 << 20))
    with pytest.raises(CheckpointError, match=r"bomb\.keras unpacks to"):
        load_keras_weights(tiny(), path)


# --- the script -------------------------------------------------------------------------------------------


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts"))
    return pytest.importorskip("convert_keras").main


def test_converted_file_holds_what_would_have_been_loaded(convert: Any, tmp_path: Path) -> None:
    widths = (1, 16, 32, 64, 128)
    weights = {f"conv{i}": conv_weights(3, 3, widths[i - 1], widths[i], seed=i) for i in range(1, 5)}
    path = write_legacy(tmp_path / "fashion.h5", {**weights, "dense": conv_weights(128, 4, seed=5)})
    out = tmp_path / "fashion.safetensors"
    reference = "torchviz_cnn.models.convnets:fashion_mnist_convnet"
    convert([str(path), "--model", reference, "--arg", "num_classes=4", "--out", str(out)])
    expected = load_keras_weights(fashion_mnist_convnet(num_classes=4), path).state_dict()
    written = load_file(out)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_conversion_refuses_an_epsilon_that_safetensors_would_lose(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "factory_for_conversion.py"
    module.write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.BatchNorm2d(2, eps=1e-5))\n")
    ones = {name: [1.0, 1.0] for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    path = write_legacy(tmp_path / "norm.h5", {"bn": ones})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="epsilon"):
        convert([str(path), "--model", "factory_for_conversion:build", "--out", str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("reference", ["no_colon", "torchviz_cnn.models.convnets:nothing", "no_such_module:f"])
def test_conversion_names_a_factory_that_is_not_there(convert: Any, reference: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reference):
        convert([str(tmp_path / "x.h5"), "--model", reference, "--out", str(tmp_path / "x.safetensors")])
