"""Networks from Keras files alone: names, logits, old formats, every kind of broken file. Nothing here needs Keras."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchviz_cnn as tvc
from tests.models.keras.files import archive, conv, functional, layer, legacy, merge, photo, small

pytest.importorskip("h5py")
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
ONE = {"layers/conv2d/vars/0": (3, 3, 3, 4), "layers/conv2d/vars/1": (4,)}
DENSE = {"layers/dense/vars/0": (4, 2), "layers/dense/vars/1": (2,)}


@pytest.fixture
def net(tmp_path: Path) -> tvc.Network:
    return tvc.load_model(archive(tmp_path / "small.keras", *small()), labels=list("abcde"))


def test_names_are_those_of_the_layers(net: tvc.Network) -> None:
    assert [name for name, _ in net.model.named_modules() if name] == [
        *("rescaling", "nested", "nested.inner_conv", "conv", "conv_act", "norm", "add", "pool", "flatten", "dense"),
    ]
    assert isinstance(net.model.get_submodule("conv_act"), nn.ReLU)
    assert not net.model.training


def test_values_are_those_of_the_description(net: tvc.Network) -> None:
    """The same network written by hand, with its flattening in Keras' order."""
    state = net.model.state_dict()
    x = X / 255
    nested = F.conv2d(x, state["nested.inner_conv.weight"], state["nested.inner_conv.bias"], padding=1)
    out = F.relu(F.conv2d(nested, state["conv.weight"], state["conv.bias"], padding=1))
    mean, var, weight, bias = (state[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    out = F.max_pool2d(F.batch_norm(out, mean, var, weight, bias, eps=1e-3) + nested, 2)
    expected = F.linear(out.permute(0, 2, 3, 1).flatten(1), state["dense.weight"], state["dense.bias"])
    torch.testing.assert_close(net.model(X), expected)


def test_how_photos_are_prepared(net: tvc.Network) -> None:
    assert net.preprocess == tvc.Preprocess((8, 8), "stretch", 8, (0.0,) * 3, (1 / 255,) * 3)
    assert not net.guessed
    assert net.categories == tuple("abcde")
    torch.testing.assert_close(net.preprocess(np.full((9, 9, 3), 200, np.uint8)), torch.full((3, 8, 8), 200.0))


def test_methods_run_on_it_and_leave_it_as_it_was(net: tvc.Network, tmp_path: Path) -> None:
    photo = (np.random.default_rng(0).random((20, 30, 3)) * 255).astype(np.uint8)
    assert tvc.grad_cam(net, photo, target="b", layer="nested.inner_conv").values.shape == (1, 8, 8)
    acts = tvc.capture(net, X, ["conv", "conv_act", "nested"])
    torch.testing.assert_close(acts["conv_act"], acts["conv"].clamp(min=0))
    assert tvc.saliency(net, photo, target=1, relu="guided").values.shape == (1, 8, 8)
    assert "conv_act" in str(tvc.describe(net, (8, 8)))
    patterns = tvc.filter_patterns(net, "conv", channels=[0], size=16, steps=2)
    assert patterns.values.shape == (1, 3, 16, 16)
    page = tvc.report(net, [photo], tmp_path / "page.html")
    assert "nested.inner_conv" in Path(page).read_text(encoding="utf-8")


def test_it_is_copied_pickled_and_turned_into_other_types(net: tvc.Network) -> None:
    expected = net.model(X)
    for other in (copy.deepcopy(net.model), pickle.loads(pickle.dumps(net.model))):
        assert torch.equal(other(X), expected)
    torch.testing.assert_close(copy.deepcopy(net.model).double()(X.double()).float(), expected)
    assert copy.deepcopy(net.model).bfloat16()(X.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(net.model(X[:1]), expected[:1])
    with pytest.raises(RuntimeError):  # as of any network that flattens a map
        net.model(torch.rand(1, 3, 9, 12))


def test_pytorch_weights_of_the_same_network(net: tvc.Network, tmp_path: Path) -> None:
    state = {name: value + 1 for name, value in net.model.state_dict().items()}
    torch.save(state, tmp_path / "tuned.pth")
    tuned = tvc.load_model(tmp_path / "small.keras", tmp_path / "tuned.pth")
    assert torch.equal(tuned.model.state_dict()["conv.weight"], state["conv.weight"])
    for weights in ("random", "other.h5"):
        with pytest.raises(tvc.ModelError, match="has its weights itself"):
            tvc.load_model(tmp_path / "small.keras", weights)


# --- endings ------------------------------------------------------------------------------------------------------


def ending(*layers: dict[str, Any]) -> dict[str, Any]:
    return functional(photo(), conv("conv", "in"), layer("GlobalAveragePooling2D", "gap", "conv"), *layers)


@pytest.mark.parametrize(
    ("last", "units", "left_out"),
    [
        ([("Dense", {"activation": "softmax"})], 3, True),
        ([("Dense", {}), ("Activation", {"activation": "softmax"})], 3, True),
        ([("Dense", {}), ("Softmax", {})], 3, True),
        ([("Dense", {"activation": "sigmoid"})], 1, True),
        ([("Dense", {"activation": "sigmoid"})], 3, False),
        ([("Dense", {"activation": "tanh"})], 1, False),
    ],
)
def test_a_final_softmax_or_sigmoid_is_left_out(last: Any, units: int, left_out: bool, tmp_path: Path) -> None:
    """What remains gives logits, whose probabilities are Keras' outputs; several sigmoids are probabilities already."""
    names = ["gap", "dense", "end"]
    layers = [layer(kind, names[i + 1], names[i], units=units, **config) for i, (kind, config) in enumerate(last)]
    arrays = {**ONE, "layers/dense/vars/0": (4, units), "layers/dense/vars/1": (units,)}
    net = tvc.load_model(archive(tmp_path / "a.keras", ending(*layers), arrays))
    maps = net.model.get_submodule("conv")(X)
    logits = net.model.get_submodule("dense")(maps.mean((2, 3)))
    assert torch.equal(net.model(X), logits) == left_out
    squashed = "end" in dict(net.model.named_modules()) or "dense_act" in dict(net.model.named_modules())
    assert squashed != left_out


def test_the_softmax_of_a_nested_model_is_left_out(tmp_path: Path) -> None:
    inside = ending(layer("Dense", "dense", "gap", units=2, activation="softmax"))
    outer = functional(photo("photo"), {**inside, "inbound_nodes": layer("", "", "photo")["inbound_nodes"]})
    arrays = {f"layers/functional/{place}": shape for place, shape in {**ONE, **DENSE}.items()}
    net = tvc.load_model(archive(tmp_path / "a.keras", outer, arrays))
    assert [name for name, _ in net.model.named_children()] == ["net"]
    assert bool((net.model(X).sum(1) - 1).abs().max() > 0.1)


# --- names and graphs ---------------------------------------------------------------------------------------------


def test_odd_names(tmp_path: Path) -> None:
    """Dots, slashes, names of a module's own attributes, and a layer that is called as another's activation."""
    names = ["conv1/conv", "a.b", "training", "float", "x_act"]
    layers = [photo(), *(conv(b, a, filters=3, activation="relu") for a, b in zip(["in", *names], names, strict=False))]
    layers.append(conv("x", "x_act", filters=3, activation="relu"))
    arrays: dict[str, Any] = {}
    for place in range(6):
        key = f"layers/conv2d{f'_{place}' if place else ''}/vars"
        arrays |= {f"{key}/0": (3, 3, 3, 3), f"{key}/1": (3,)}
    net = tvc.load_model(archive(tmp_path / "a.keras", functional(*layers), arrays))
    given = [name for name, _ in net.model.named_children()]
    assert given == [
        *("conv1_conv", "conv1_conv_act", "a_b", "a_b_act", "training_1", "training_1_act", "float_1", "float_1_act"),
        *("x_act", "x_act_act", "x", "x_act_1"),
    ]
    assert net.model(X).shape == (2, 3, 8, 8)


def test_a_layer_that_is_called_twice_is_one_module(tmp_path: Path) -> None:
    shared = conv("conv", "in", "relu", filters=3)
    layers = [photo(), shared, layer("ReLU", "relu", "conv"), merge("Concatenate", "both", "conv", "conv", axis=-1)]
    layers[3]["inbound_nodes"][0]["args"][0][1]["config"]["keras_history"][1] = 1
    arrays = {"layers/conv2d/vars/0": (3, 3, 3, 3), "layers/conv2d/vars/1": (3,)}
    net = tvc.load_model(archive(tmp_path / "a.keras", functional(*layers), arrays))
    first = net.model.get_submodule("conv")(X)
    expected = torch.cat([first, net.model.get_submodule("conv")(first.relu())], 1)
    torch.testing.assert_close(net.model(X), expected)
    assert set(tvc.capture(net, X, ["conv", "conv#1"])) == {"conv", "conv#1"}


def test_keras_2_functional_with_tensorflow_operations(tmp_path: Path) -> None:
    """Its references are lists, a nested model's first call has the number 1, arrays are listed by their names."""

    def old(made: dict[str, Any], *nodes: Any) -> dict[str, Any]:
        return {**made, "inbound_nodes": list(nodes)}

    base = functional(
        old(photo("base_in")),
        old(conv("block/conv"), [["base_in", 0, 0, {}]]),
        old(layer("BatchNormalization", "bn", axis=[3], scale=False), [["block/conv", 0, 0, {}]]),
        name="base",
    )
    base["class_name"] = "Model"
    end = layer("Dense", "dense", units=2, activation={"class_name": "function", "config": "hard_sigmoid"})
    whole = functional(
        old(photo()),
        old(layer("SlicingOpLambda", "tf.getitem"), ["in", 0, 0, {"slice_spec": SPEC}]),
        old(layer("TFOpLambda", "tf.add", function="nn.bias_add"), ["tf.getitem", 0, 0, {"bias": [-1.0, -2.0, -3.0]}]),
        old(layer("TFOpLambda", "tf.div", function="math.truediv"), ["tf.add", 0, 0, {"y": 127.5, "name": None}]),
        {**base, "inbound_nodes": [[["tf.div", 0, 0, {"training": False}]]]},
        old(layer("GlobalAveragePooling2D", "gap"), [["base", 1, 0, {}]]),
        old(end, [["gap", 0, 0, {}]]),
    )
    groups = {
        **{"in": {}, "tf.getitem": {}, "gap": {}},
        "base": {
            **{"bn/beta:0": (4,), "base/block/conv/kernel:0": (3, 3, 3, 4), "base/block/conv/bias:0": (4,)},
            **{"bn/moving_mean:0": (4,), "bn/moving_variance:0": (4,)},
        },
        "dense": {"dense_3/kernel:0": (4, 2), "dense_3/bias:0": (2,)},
    }
    net = tvc.load_model(legacy(tmp_path / "old.h5", whole, groups))
    state = net.model.state_dict()
    x = (X.flip(1) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 127.5
    x = F.conv2d(x, state["base.block_conv.weight"], state["base.block_conv.bias"], padding=1)
    norm = (state["base.bn.running_mean"], state["base.bn.running_var"], None, state["base.bn.bias"])
    x = F.batch_norm(x, *norm, eps=1e-3).mean((2, 3))
    expected = (0.2 * F.linear(x, state["dense.weight"], state["dense.bias"]) + 0.5).clamp(0, 1)
    torch.testing.assert_close(net.model(X), expected, atol=1e-5, rtol=1e-5)
    assert net.preprocess.std == (1 / 255,) * 3


SPEC = {
    "class_name": "__tuple__",
    "items": [{"class_name": "__ellipsis__"}, {"start": None, "stop": None, "step": -1}],
}


def test_sequentials_of_every_age(tmp_path: Path) -> None:
    """With an input layer, with a shape in the first layer, and as a bare list of layers."""
    first = {**conv("conv")["config"], "batch_input_shape": [None, 8, 8, 3]}
    layers = [{"class_name": "Conv2D", "config": first}, layer("Flatten", "flatten")]
    bare = {"class_name": "Sequential", "config": layers}
    named = {"class_name": "Sequential", "config": {"name": "net", "layers": [photo(), *layers]}}
    built = {"class_name": "Sequential", "config": {"layers": [conv("conv")], "build_input_shape": [None, 8, 8, 3]}}
    for description in (bare, named, built):
        net = tvc.load_model(archive(tmp_path / "a.keras", description, ONE))
        assert net.input_size == (8, 8)
        assert net.model(X).shape[0] == 2


# --- how photos are prepared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "mean", "std", "guessed"),
    [
        ({"class_name": "Rescaling", "scale": 1 / 255, "offset": 0.0}, 0.0, 1 / 255, False),
        ({"class_name": "Rescaling", "scale": 1 / 127.5, "offset": -1.0}, 0.0, 1 / 255, False),
        ({"class_name": "Rescaling", "scale": 2.0, "offset": -1.0}, 0.0, 1.0, False),
        ({"class_name": "Normalization", "mean": [120.0] * 3, "variance": [60.0] * 3}, 0.0, 1 / 255, False),
        ({"class_name": "Normalization", "mean": [0.5] * 3, "variance": [0.25] * 3}, 0.0, 1.0, False),
        ({"class_name": "TrueDivide", "by": 127.5}, 0.0, 1 / 255, False),
        ({"class_name": "Subtract", "by": 0.5}, 0.0, 1.0, False),
        ({"class_name": "Subtract", "by": 127.5}, 0.0, 1 / 255, False),
        ({"class_name": "RandomFlip"}, 0.0, 1.0, True),
        ({"class_name": "Activation", "activation": "relu", "name": "block14_sepconv2"}, 0.5, 0.5, True),
    ],
)
def test_preparation_is_what_the_file_says_or_a_guess(
    begin: dict[str, Any], mean: float, std: float, guessed: bool, tmp_path: Path
) -> None:
    options = {"name": "begin", **begin}
    first = layer(options.pop("class_name"), options.pop("name"), "in", **options)
    first["inbound_nodes"][0]["args"] += [begin["by"]] if "by" in begin else []
    description = functional(photo(), layer("RandomFlip", "flip", "in"), first, conv("conv", first["name"]))
    net = tvc.load_model(archive(tmp_path / "a.keras", description, ONE))
    assert (net.preprocess.mean, net.preprocess.std, net.guessed) == ((mean,) * 3, (std,) * 3, guessed)
    changed = tvc.load_model(tmp_path / "a.keras", mean=(0.1,) * 3, std=(0.2,) * 3, geometry="pad")
    assert (changed.preprocess.mean, changed.preprocess.geometry) == ((0.1,) * 3, "pad")


def test_a_network_that_resizes_says_its_size(tmp_path: Path) -> None:
    resized = layer("Resizing", "resize", "in", height=20, width=30)
    description = functional(
        photo("in", None, None), resized, layer("Rescaling", "r", "resize", scale=0.003, offset=0.0)
    )
    net = tvc.load_model(archive(tmp_path / "a.keras", description, {}))
    assert (net.input_size, net.guessed) == ((20, 30), False)


def test_caffes_way_of_preparing_photos_can_be_said() -> None:
    """Blue, green and red minus their means, as docs/models.md says it."""
    mean = (103.939 / 255, 116.779 / 255, 123.68 / 255)
    preprocess = tvc.Preprocess((2, 2), "stretch", 2, mean, (1 / 255,) * 3, bands=(2, 1, 0))
    given = preprocess(np.tile(np.array([10, 20, 30], np.uint8), (2, 2, 1)))
    expected = torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68]).view(3, 1, 1).expand(3, 2, 2)
    torch.testing.assert_close(given, expected, atol=1e-3, rtol=0)


def test_a_size_that_the_file_leaves_open_is_guessed(tmp_path: Path) -> None:
    grey = functional(photo("in", None, None, 1), layer("Rescaling", "r", "in", scale=1 / 255), conv("conv", "r"))
    net = tvc.load_model(archive(tmp_path / "a.keras", grey, {**ONE, "layers/conv2d/vars/0": (3, 3, 1, 4)}))
    assert (net.input_size, net.guessed, net.preprocess.mean) == ((224, 224), True, (0.0,))
    assert tvc.load_model(tmp_path / "a.keras", input_size=(31, 17)).input_size == (31, 17)
    assert net.model(torch.rand(1, 1, 31, 17)).shape == (1, 4, 31, 17)


# --- bad files ----------------------------------------------------------------------------------------------------


def changed(**changes: Any) -> Any:
    """The small description, with options of the layer `conv` changed."""
    description, _ = small()
    description["config"]["layers"][3]["config"].update(changes)
    return description


def cycle() -> Any:
    return functional(photo(), conv("a", "b"), conv("b", "c"), conv("c", "a"))


def deep() -> str:
    return '{"class_name": "Sequential", "config": {"layers": ' + "[" * 100_000 + "]" * 100_000 + "}}"


def matryoshka(depth: int, twice: bool) -> Any:
    """Models in models, each of which calls the one inside it once or twice."""
    model = functional(photo("in0"), layer("ReLU", "relu0", "in0"))
    for level in range(1, depth):
        inside = {**model, "name": "inside"}
        inside["inbound_nodes"] = layer("", "", f"in{level}", *[("inside", 0)] * twice)["inbound_nodes"]
        last = [["inside", int(twice), 0]]
        model = functional(photo(f"in{level}"), inside, outputs=last)
    return model


BAD: dict[str, tuple[Any, str]] = {
    "an unknown layer": (changed() | functional(photo(), layer("Magic", "m", "in")), "'m' \\(Magic\\): .* not known"),
    "a lambda": (functional(photo(), layer("Lambda", "l", "in", function="4wE=")), "'l' \\(Lambda\\).*never executed"),
    "a custom layer": (functional(photo(), layer("my>Conv2D", "c", "in")), "'c' \\(my>Conv2D\\): .* not known"),
    "a custom model": (
        {"class_name": "MyModel", "config": {}},
        "class 'MyModel', whose code is not in the file; only Sequential and",
    ),
    "a custom activation": (changed(activation="my_relu"), "'conv' .*activation 'my_relu' is not one of Keras' own"),
    "a lambda as activation": (changed(activation={"class_name": "__lambda__", "config": {}}), "activation"),
    "a billion units": (changed(filters=10**9), "'conv' .*weight is 3 x 3 x any x 1000000000 numbers, and in the file"),
    "no number of filters": (changed(filters="four"), "filters is 'four', not a whole number"),
    "a huge kernel": (changed(kernel_size=[10**9, 3]), "kernel_size is 1000000000"),
    "negative strides": (changed(strides=-1), "strides is -1"),
    "another padding": (changed(padding="causal"), "padding is 'causal'; known are valid, same"),
    "another data format": (changed(data_format="channels_first"), "only channels_last"),
    "channels first": (
        functional(photo(height=3, channels=32), conv("conv", "in", data_format="channels_first")),
        "only channels_last",
    ),
    "groups that do not divide": (changed(groups=2), "'conv'"),
    "no groups": (changed(groups=0), "groups is 0"),
    "too few arrays": (changed(use_bias=False), "'conv' .*the file has 2 arrays"),
    "a cycle": (cycle(), "wait for one another: "),
    "a result of no layer": (functional(photo(), conv("a", "nowhere")), "there is no layer 'nowhere'"),
    "a call that is not there": (functional(photo(), conv("a", ("in", 3))), "no such call of 'in'"),
    "an output that is not there": (functional(photo(), outputs=[["in", 0, 2]]), "no output number 2"),
    "no outputs": (functional(photo(), outputs=[]), "has no outputs"),
    "two outputs": (functional(photo(), outputs=[["in", 0, 0]] * 2), "1 input and 2 outputs"),
    "two inputs": (functional(photo(), photo("b"), inputs=[["in", 0, 0], ["b", 0, 0]]), "2 inputs and 1 output:"),
    "two layers of one name": (functional(photo(), photo()), "two layers of the name 'in'"),
    "no photos": (functional(layer("InputLayer", "in", batch_shape=[None, 7])), "not photos"),
    "photos of any number of channels": (functional(photo(channels=None)), "any number of channels"),
    "photos of a million pixels a side": (functional(photo(height=10**6)), "not photos"),
    "a map larger than memory": (
        functional(photo(), *(layer("UpSampling2D", f"u{i}", f"u{i - 1}" if i else "in", size=999) for i in range(3))),
        "more than 2,147,483,648 values",
    ),
    "deep nesting": (deep(), "nested too deeply"),
    "models in models": (matryoshka(60, False), "nested more than 30 deep"),
    "models that double": (matryoshka(20, True), "calls of layers; at most 5,000"),
    "no JSON": ("{", "not one that Keras writes"),
    "another JSON": ("[1, 2]", "not one that Keras writes"),
    "no layers": ({"class_name": "Sequential", "config": {"layers": []}}, "has no layers"),
    "layers of another kind": ({"class_name": "Functional", "config": {"layers": 7}}, "not one that Keras writes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_descriptions_are_one_error(name: str, tmp_path: Path) -> None:
    description, message = BAD[name]
    path = archive(tmp_path / "bad.keras", description, small()[1])
    with pytest.raises((tvc.ModelError, tvc.CheckpointError), match=message) as caught:
        tvc.load_model(path)
    assert "bad.keras" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arrays_are_one_error(tmp_path: Path) -> None:
    description, arrays = small()
    for place, value, message in (
        ("layers/conv2d/vars/0", (3, 3, 2, 3), "'conv' does not run on 3 x 8 x 8"),
        ("layers/conv2d/vars/0", (3, 3, 3, 9), "weight is 3 x 3 x any x 3 numbers, and in the file 3 x 3 x 3 x 9"),
        ("layers/conv2d/vars/1", np.zeros(3, "int8"), "in the file 3 \\(int8\\)"),
        ("layers/conv2d/vars/1", np.float32(1), "in the file a single value"),
        ("layers/dense/vars/0", (47, 5), "'dense'"),
        ("layers/batch_normalization/vars/3", (4,), "running_var is 3 numbers"),
    ):
        path = archive(tmp_path / "bad.keras", description, {**arrays, place: value})
        with pytest.raises((tvc.ModelError, tvc.CheckpointError), match=message):
            tvc.load_model(path)
    with pytest.warns(tvc.CheckpointWarning, match="not finite"):
        tvc.load_model(archive(path, description, {**arrays, "layers/dense/vars/1": np.full(5, np.nan, "float32")}))


def test_an_array_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    import h5py

    description = ending(layer("Dense", "dense", "gap", units=10**9))
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(description)
        for place, shape in {"conv2d/vars/0": (3, 3, 3, 4), "conv2d/vars/1": (4,)}.items():
            file.create_dataset(f"layers/{place}", shape, dtype="float32")
        for place, shape in {"dense/vars/0": (4, 10**9), "dense/vars/1": (10**9,)}.items():
            file.create_dataset(f"layers/{place}", shape, dtype="float32", chunks=(1,) * len(shape))
    with pytest.raises(tvc.CheckpointError, match=r"are said to have 20,000,.* bytes"):
        tvc.load_model(tmp_path / "bad.h5")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = archive(tmp_path / "whole.keras", *small())
    (tmp_path / "cut.keras").write_bytes(path.read_bytes()[:-400])
    (tmp_path / "text.h5").write_text("hello")
    weights = legacy(tmp_path / "weights.h5", None, {"conv": {"conv/kernel:0": (3, 3, 3, 4)}})
    import h5py

    with h5py.File(weights, "a") as file:
        del file.attrs["model_config"]
    for name, message in (
        ("cut.keras", "cut.keras cannot be read as a Keras file"),
        ("text.h5", "text.h5 cannot be read as a Keras file"),
        ("whol.keras", "no Keras file .*whol.keras; did you mean 'whole.keras'"),
        ("weights.h5", "no description of its network: name the network .*load_model\\('xception', weights=path\\)"),
        (".", "has no weights|no model"),
    ):
        with pytest.raises((tvc.CheckpointError, tvc.ModelError), match=message):
            tvc.load_model(str(tmp_path / name) if name != "." else "nothing.like.it")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(tvc.CheckpointError, match="is a folder"):
        tvc.load_model(tmp_path / "folder.keras")


def test_a_network_that_wants_blue_green_red_takes_red_green_blue(tmp_path: Path) -> None:
    """As VGG and ResNet of `keras.applications`, which are known by their layers' names."""
    layers = [photo(), conv("block1_conv1", "in"), conv("block5_conv3", "block1_conv1")]
    arrays = {"layers/conv2d/vars/0": (3, 3, 3, 4), "layers/conv2d/vars/1": (4,)}
    arrays |= {"layers/conv2d_1/vars/0": (3, 3, 4, 4), "layers/conv2d_1/vars/1": (4,)}
    file = archive(tmp_path / "a.keras", functional(*layers), arrays)
    net, plain = tvc.load_model(file), tvc.load_model(file, mean=(0, 0, 0), std=(1, 1, 1))
    x = torch.rand(2, 3, 8, 8)
    assert net.guessed
    assert net.preprocess.mean == pytest.approx((123.68 / 255, 116.779 / 255, 103.939 / 255))
    assert torch.allclose(net.model(x), plain.model(x.flip(1)), atol=1e-5)
    assert not torch.allclose(net.model(x), plain.model(x), atol=1e-3)
