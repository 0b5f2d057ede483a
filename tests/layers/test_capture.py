"""capture: each layer's own output, copied only where a later module writes over it, and the grids drawn of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from tests.networks import NETWORKS, images
from torchviz_cnn.core.errors import InputError, LayerError, ModelError, OutputError
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.layers.capture import Activations, capture
from torchviz_cnn.media import render


def own_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each module gives, cloned on the spot by plain hooks: the simplest correct capture there is."""
    outcome: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():

        def keep(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            calls = sum(key.partition("#")[0] == name for key in outcome)
            if isinstance(out, Tensor):
                outcome[f"{name}#{calls}" if calls else name] = out.clone()

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return {name: out for name, out in outcome.items() if name}


class Stages(nn.Module):
    """Convolutions whose outputs are then written into in the way that `write` says."""

    def __init__(self, write: Any, stop: bool = False) -> None:
        super().__init__()
        self.write = write
        self.stop = stop
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(3, 6, 3)
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        result = self.write(a, b)
        if self.stop:
            raise AssertionError("the forward pass went on")
        out: Tensor = self.last(result)
        return out


class Bomb(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the forward pass went on")


def add(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def set_slice(a: Tensor, b: Tensor) -> Tensor:
    a[:, 1] = 7
    return a


def set_mask(a: Tensor, b: Tensor) -> Tensor:
    a[a < 0] = -1
    return a


def foreach(a: Tensor, b: Tensor) -> Tensor:
    torch._foreach_add_([b, a], 1.0)
    return a


def view_of_view(a: Tensor, b: Tensor) -> Tensor:
    a.flatten(2).transpose(1, 2)[:, 3:].mul_(2)
    return a


def out_argument(a: Tensor, b: Tensor) -> Tensor:
    torch.mul(b, 3, out=a)
    return a


def data(a: Tensor, b: Tensor) -> Tensor:
    a.data.zero_()
    return a


def detached(a: Tensor, b: Tensor) -> Tensor:
    a.detach().fill_(3)
    return a


def twice(a: Tensor, b: Tensor) -> Tensor:
    return a.relu_().add_(1).mul_(b)


def normalise(a: Tensor, b: Tensor) -> Tensor:
    torch.nn.functional.batch_norm(b, a.mean((0, 2, 3)), a.var((0, 2, 3)), training=True)
    return nn.functional.hardtanh_(a)


WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "out += identity": add,
    "a view": lambda a, b: (a[:, :2].add_(1), a)[1],
    "a view of a view": view_of_view,
    "a chunk": lambda a, b: (a.chunk(3, 1)[2].neg_(), a)[1],
    "setitem": set_slice,
    "masked": set_mask,
    "foreach": foreach,
    "out=": out_argument,
    ".data": data,
    ".detach()": detached,
    "several times": twice,
    "a functional": normalise,
    "copy_": lambda a, b: a.copy_(b),
    "index_fill_": lambda a, b: a.index_fill_(1, torch.tensor([0]), 0.0),
    "clamp_ and swap": lambda a, b: b.clamp_(0) + a.clamp_(0),
}


@networks.seeded
def stages(write: Any) -> Stages:
    return Stages(write)


@pytest.mark.parametrize("how", WRITES)
def test_what_is_captured_is_what_the_layer_gave(how: str) -> None:
    model, x = stages(WRITES[how]), images()
    with unchanged(model, x):
        acts = capture(model, x, ["a", "b", "last"])
    with torch.no_grad():
        assert torch.equal(acts["a"], model.a(x))
        assert torch.equal(acts["b"], model.b(x))
        assert torch.equal(acts["last"], model.last(WRITES[how](model.a(x), model.b(x))))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("always_dropout", "data_parallel", "compiled")])
def test_it_equals_cloning_in_plain_hooks(name: str) -> None:
    x = images()
    expected = own_outputs(NETWORKS[name](), x)
    acts = capture(NETWORKS[name](), x, nn.Module)
    assert list(acts) == list(expected)
    for layer, tensor in acts.items():
        assert torch.equal(tensor, expected[layer]), layer
        assert not tensor.requires_grad
    single = {layer: capture(NETWORKS[name](), x, layer)[layer] for layer in expected}
    for layer, tensor in single.items():
        assert torch.equal(tensor, expected[layer]), layer


@pytest.mark.parametrize("name", ["data_parallel", "compiled"])
def test_wrappers(name: str) -> None:
    x = images()
    acts, expected = capture(NETWORKS[name](), x), capture(networks.vgg_like(), x)
    assert list(acts) == list(expected)
    assert all(torch.equal(acts[layer], expected[layer]) for layer in acts)


def test_nothing_is_copied_but_what_is_overwritten() -> None:
    """Each tensor's memory is the layer's own, unless an in-place module came after it."""
    model, x = networks.vgg_like(), images()
    addresses: dict[str, int] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, out, name=name: addresses.update({name: out.data_ptr()}))  # type: ignore[misc]
    acts = capture(model, x, nn.Module)
    copied = {name for name in acts if acts[name].data_ptr() != addresses[name]}
    # What an in-place ReLU writes over: convolutions and the first linear layer. `features.0` is the model's own kind.
    assert copied == {"features.0", "features.2", "features.5", "features.7", "classifier.0"}
    alone = capture(model, x, ["features.1", "features.9", "avgpool"])
    assert all(alone[name].data_ptr() == addresses[name] for name in alone)
    assert acts["features.1"].ge(0).all()
    assert acts["features.0"].lt(0).any()


def test_stopping_at_a_layer_copies_nothing() -> None:
    model, x = networks.vgg_like(), images()
    addresses: list[int] = []
    model.features[0].register_forward_hook(lambda m, a, out: addresses.append(out.data_ptr()))
    assert capture(model, x, "features.0")["features.0"].data_ptr() == addresses[0]


def test_a_layer_that_gives_its_input_shares_its_memory() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Dropout(), nn.Conv2d(4, 4, 1))
    acts = capture(model, images(), nn.Module)
    assert acts["0"].data_ptr() == acts["1"].data_ptr() == acts["2"].data_ptr()
    overwritten = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU(inplace=True))
    acts = capture(overwritten, images(), nn.Module)
    with torch.no_grad():
        assert torch.equal(acts["0"], overwritten[0](images()))
    assert torch.equal(acts["0"], acts["1"])
    assert torch.equal(acts["2"], acts["0"].relu())


def test_the_input_is_neither_written_nor_kept() -> None:
    x = images()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1))
    with unchanged(model, x):
        acts = capture(model, x, ["0"])
    assert torch.equal(acts["0"], x.relu())
    acts["0"].zero_()
    assert x.ne(0).any()


def test_writing_into_a_result_hurts_nothing_else() -> None:
    model, x = networks.counting(), images()
    acts = capture(model, x, nn.Module)
    with unchanged(model, x):
        for tensor in acts.values():
            tensor.fill_(3)


class ReadAndWritten(nn.Module):
    """Reads the output of its layer in operations that write elsewhere, and at the end may write into it."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        self.layer, self.write = nn.Identity(), write

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * 2)
        (out + 1).mul_(out)
        torch.zeros_like(out).copy_(out)
        self.address = out.data_ptr()
        return out.mul_(0) if self.write else out + 1


@pytest.mark.parametrize("write", [True, False])
def test_only_what_is_written_into_is_copied(write: bool) -> None:
    model, x = ReadAndWritten(write), images()
    acts = capture(model, x, ["layer"])
    with HookManager(model) as hooks, torch.no_grad(), hooks.record("layer") as kept:
        hooks.run(x.clone(), stop_early=False)
    assert (kept["layer"].data_ptr() == model.address) != write
    assert torch.equal(kept["layer"], x * 2)
    assert torch.equal(acts["layer"], x * 2)


@pytest.mark.parametrize("layers", ["0", ["1", "0"], nn.Conv2d, ["[01]"], "block.*"])
def test_the_forward_pass_stops_when_all_is_there(layers: Any) -> None:
    model = nn.Sequential()
    model.add_module("0", nn.Conv2d(3, 4, 3))
    model.add_module("1", nn.ReLU())
    model.add_module("block", nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sigmoid())))
    model.add_module("2", Bomb())
    if layers in (nn.Conv2d, ["[01]"]):  # at the root, more calls may come until the end
        with pytest.raises(AssertionError, match="went on"):
            capture(model, images(), layers)
    else:
        acts = capture(model, images(), layers)
        assert list(acts) == {"0": ["0"], "block.*": ["block.0", "block.1.0", "block.1"]}.get(str(layers), ["0", "1"])


def test_a_pattern_stops_where_the_modules_around_its_matches_end() -> None:
    model: Any = networks.vgg_like()
    model.avgpool = Bomb()
    assert list(capture(model, images(), "features.[024]")) == ["features.0", "features.2", "features.4"]
    assert len(capture(model, images(), nn.MaxPool2d)) == 2
    with pytest.raises(AssertionError, match="went on"):
        capture(model, images(), "features.*#*")


def test_names_patterns_and_types() -> None:
    model, x = networks.reused(), images()
    assert list(capture(model, x)) == ["conv1", "pool", "conv2", "pool#1", "conv3"]
    assert list(capture(model, x, "relu")) == ["relu"]
    assert list(capture(model, x, ["relu#1", "relu"])) == ["relu", "relu#1"]
    assert list(capture(model, x, "relu#*")) == ["relu", "relu#1", "relu#2"]
    assert list(capture(model, x, nn.ReLU)) == ["relu", "relu#1", "relu#2"]
    assert list(capture(model, x, "conv[12]")) == ["conv1", "conv2"]
    assert list(capture(model, x, ["*", "conv1"])) == list(own_outputs(networks.reused(), x))
    assert list(capture(model, x, ["conv2", "conv2", nn.Conv2d])) == ["conv1", "conv2", "conv3"]
    assert list(capture(networks.vgg_like(), x, [nn.MaxPool2d, "features.0", "classifier.*"])) == [
        "features.0",
        "features.4",
        "features.9",
        "classifier.0",
        "classifier.1",
        "classifier.2",
        "classifier.3",
    ]


def test_a_layer_in_a_list_that_is_never_called_itself() -> None:
    acts = capture(networks.dense(), images(), "convs.*")
    assert list(acts) == ["convs.0", "convs.1", "convs.2"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_result_does_not_depend_on_the_callers_mode(mode: Any) -> None:
    model, x = networks.residual(), images()
    expected = capture(model, x)
    with mode():
        acts = capture(model.train(), x)
    assert all(torch.equal(acts[layer], expected[layer]) and not acts[layer].requires_grad for layer in expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("featurs.2", r"no layer 'featurs.2' in VGGLike; did you mean 'features.2'\?"),
        (["features.0", "features.99"], "no layer 'features.99'"),
        ("block*", "no layer of VGGLike matches 'block\\*'"),
        (nn.Conv3d, "no layer of VGGLike matches Conv3d"),
        ([], "was asked for no layer at all"),
        ("features.0#1", "'features.0#1' of VGGLike was never reached by the forward pass: it ran 1 time on"),
        ([5], "not 5"),
    ],
)
def test_wrong_layers(layers: Any, message: str) -> None:
    model = networks.vgg_like()
    with unchanged(model), pytest.raises(LayerError, match=message):
        capture(model, images(), layers)


def test_layers_without_a_tensor_and_layers_never_reached() -> None:
    with pytest.raises(LayerError, match="'aux' of Unreached was never reached by the forward pass: it did not run"):
        capture(networks.unreached(), images(), ["conv", "aux"])
    with pytest.raises(LayerError, match="'pair' gives a tuple, not a tensor"):
        capture(networks.tuple_output(), images(), "pair")
    assert list(capture(networks.tuple_output(), images(), "pair*")) == ["pair.left", "pair.right"]
    with pytest.raises(LayerError, match=r"no layer .* gave a tensor"):
        capture(networks.unreached(), images(), "au*")
    with pytest.raises(LayerError, match="has no convolution or pooling layer"):
        capture(nn.Sequential(nn.ReLU()), images())


def test_wrong_inputs() -> None:
    for wrong in (np.zeros((1, 3, 32, 32)), torch.zeros(0, 3, 32, 32), torch.zeros(())):
        with pytest.raises(InputError):
            capture(networks.vgg_like(), wrong)  # type: ignore[arg-type]


def test_activations_are_a_read_only_mapping() -> None:
    acts = capture(networks.vgg_like(), images())
    assert len(acts) == 7
    assert "features.0" in acts
    assert "features.1" not in acts
    assert dict(acts).keys() == acts.keys()
    with pytest.raises(TypeError):
        acts["features.0"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        acts.tensors = {}  # type: ignore[misc]
    with pytest.raises(KeyError, match=r"no layer 'features.3' was captured; did you mean 'features.\d'"):
        acts["features.3"]
    with pytest.raises(LayerError, match=r"there are: features.0, features.2"):
        acts["zzz"]
    assert acts.get("zzz") is None
    assert repr(acts).splitlines()[:2] == ["Activations of 7 layers", "  features.0: 2 x 8 x 32 x 32"]


def test_results_are_values_that_compare_by_identity() -> None:
    first, second = capture(networks.vgg_like(), images()), capture(networks.vgg_like(), images())
    assert first == first
    assert first != second
    assert len({first, second}) == 2


def test_saved_tensors_come_back(tmp_path: Path) -> None:
    acts = capture(networks.reused(), images(), ["pool#1", "relu", "conv1", "fc"])
    path = acts.save(tmp_path / "new folder" / "acts.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(acts)
        assert json.loads(file.metadata()["layers"]) == list(acts)
        for name in acts:
            assert torch.equal(file.get_tensor(name), acts[name])
    assert [p.name for p in path.parent.iterdir()] == ["acts.safetensors"]
    with pytest.raises(OutputError, match="safetensors"):
        acts.save(tmp_path / "acts.pt")


def test_layers_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    acts = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Flatten()), images(), nn.Module)
    with safe_open(acts.save(tmp_path / "a.safetensors"), "pt") as file:
        assert all(torch.equal(file.get_tensor(name), acts[name]) for name in acts)


def listing(maps: np.ndarray[Any, Any], columns: int = 16) -> np.ndarray[Any, Any]:
    """R1's listing, channel by channel: standardised, x 64 + 128, 1 px between tiles, the last row drawn."""
    count, height, width = maps.shape
    rows = -(-count // columns)
    display = np.zeros(((height + 1) * rows - 1, columns * (width + 1) - 1))
    for row in range(rows):
        for column in range(columns):
            index = row * columns + column
            if index >= count:
                continue
            channel = maps[index].astype(np.float32).copy()
            if channel.sum() != 0 and channel.std() != 0:
                channel -= channel.mean()
                channel /= channel.std()
                channel *= 64
                channel += 128
            else:
                channel *= 0
            channel = np.clip(channel, 0, 255).astype("uint8")
            display[
                row * (height + 1) : (row + 1) * height + row, column * (width + 1) : (column + 1) * width + column
            ] = channel
    return display.astype("uint8")


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_the_grid_is_the_textbooks(count: int) -> None:
    maps = images(1, 7, count)[0].relu()
    maps[0] = 0
    if count > 3:
        maps[2], maps[3] = -5, 2
    acts = Activations({"layer": torch.stack([maps, maps.flip(0)])})
    columns = min(count, 16)
    expected = listing(maps.numpy(), columns)
    tiles = render.tile_grid(acts.tiles("layer"), columns)
    assert np.abs(tiles.astype(int) - expected.astype(int)).max() <= 1  # the order of two roundings
    assert (tiles == expected).mean() > 0.999
    picture = acts.grid("layer")
    assert picture.size == (columns * 8 - 1, -(-count // 16) * 8 - 1)
    from matplotlib import colormaps

    viridis = colormaps["viridis"](tiles, bytes=True)[..., :3]
    assert np.array_equal(np.asarray(picture), viridis)
    assert np.array_equal(acts.tiles("layer", 1), acts.tiles("layer")[::-1])
    assert np.array_equal(acts.tiles("layer", -1), acts.tiles("layer", 1))


def test_some_channels_only() -> None:
    acts = capture(networks.vgg_like(), images(), "features.0")
    every = acts.tiles("features.0", 1)
    assert np.array_equal(acts.tiles("features.0", 1, [5, 2]), every[[5, 2]])
    assert acts.grid("features.0", channels=[3]).size == (32, 32)
    assert acts.grid("features.0", columns=3).size == (3 * 33 - 1, 3 * 33 - 1)
    for channels in ([8], [-1], []):
        with pytest.raises(InputError, match="channel"):
            acts.tiles("features.0", 0, channels)
    for image in (2, -3):
        with pytest.raises(InputError, match=f"image {image} is out of range: there are 2"):
            acts.grid("features.0", image)


def test_sparsity_and_dead_channels() -> None:
    maps = torch.ones(2, 8, 3, 3)
    maps[0, :2] = 0
    maps[0, 2] = -1
    maps[1, 0, 1, 1] = -2
    acts = Activations({"a": maps})
    assert acts.sparsity("a").tolist() == [0.375, pytest.approx(1 / 72)]
    assert acts.dead("a").tolist() == [[True] * 3 + [False] * 5, [False] * 8]


def test_a_plot_is_titled_and_in_proportion() -> None:
    acts = capture(networks.vgg_like(), images(), ["features.0", "features.7"])
    wide, tall = acts.plot("features.0", columns=8), acts.plot("features.0", columns=2)
    assert wide.width == pytest.approx(800, abs=40)
    assert wide.height == pytest.approx(190, abs=10)
    assert tall.width == pytest.approx(200, abs=10)
    assert tall.height == pytest.approx(490, abs=20)
    assert wide.mode == "RGB"
    top = np.asarray(wide)[:40]
    assert top.min() < 100 < top.max()  # the title stands there
    bar = np.asarray(wide)[-35:].reshape(-1, 3).astype(int)
    for end in ((68, 1, 84), (253, 231, 36)):  # of viridis
        assert (np.abs(bar - end).max(1) <= 2).any()
    one = acts.plot("features.7", channels=[3])
    assert one.height < one.width * 2


def test_maps_of_one_place_are_drawn_as_bars() -> None:
    values = torch.tensor([[1.0, 4.0, 2.0]])
    picture = np.asarray(Activations({"pool": values[..., None, None]}).plot("pool"))
    blue = (picture == (31, 119, 180)).all(2)
    starts = np.flatnonzero(np.diff([0, *blue.any(0)]) > 0)
    assert len(starts) == 3
    tall = [int(blue.sum(0)[start + 2]) for start in starts]
    assert tall[0] < tall[2] < tall[1]


def test_a_layer_without_maps_cannot_be_drawn() -> None:
    acts = capture(networks.vgg_like(), images(), ["features.0", "classifier.0"])
    for draw in (acts.plot, acts.grid, acts.tiles, acts.sparsity, acts.dead):
        with pytest.raises(LayerError, match=r"'classifier.0' gives \(2, 16\): no maps"):
            draw("classifier.0")


def test_notebooks_show_the_layers_with_maps() -> None:
    wide, one = (
        capture(networks.vgg_like(), images(), names)._repr_png_()
        for names in (["features.0", "features.7", "classifier.0"], ["features.7"])
    )
    assert wide is not None
    assert one is not None
    assert Image.open(io.BytesIO(wide)).width > Image.open(io.BytesIO(one)).width
    assert capture(networks.vgg_like(), images(), "classifier.0")._repr_png_() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = networks.vgg_like().to(dtype), images()
    acts = capture(model, x, ["features.0"])
    assert acts["features.0"].dtype == dtype
    assert acts.grid("features.0").size == (8 * 33 - 1, 32)
    with safe_open(acts.save(tmp_path / "a.safetensors"), "pt") as file:
        assert file.get_tensor("features.0").dtype == dtype


@pytest.mark.slow
def test_vgg16_all_convolutions_and_poolings_in_order() -> None:
    from torchvision.models import vgg16

    model = vgg16(weights=None, init_weights=False).eval()
    x = images(1, 64)
    acts = capture(model, x)
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    assert list(acts) == [name for name, module in model.named_modules() if isinstance(module, kinds)]
    with torch.no_grad():
        assert torch.equal(acts["features.2"], model.features[2](model.features[0](x).relu()))


class Embeds(nn.Module):
    """Gives one of its own parameters through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 3, 4, 4))
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.same(self.position) + x.mean()
        return out


def test_what_is_captured_is_not_the_models_own_parameter() -> None:
    model = Embeds()
    kept = capture(model, images(), "same")["same"]
    assert not kept.requires_grad
    kept += 1
    assert torch.equal(model.position, torch.ones(1, 3, 4, 4))


def test_names_with_a_hash_of_their_own() -> None:
    model = nn.Sequential()
    model.add_module("a#1", nn.Conv2d(3, 4, 3))
    assert list(capture(model, images())) == ["a#1"]
    assert capture(model, images(), "a#1")["a#1"].shape == (2, 4, 30, 30)


def test_quantised_maps_are_given_as_numbers_and_drawn() -> None:
    class Quantised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.quantize_per_tensor(x, 0.25, 0, torch.quint8)

    model = nn.Sequential(Quantised())
    acts = capture(model, torch.tensor([0.1, 0.4, 0.6, 1.0]).reshape(1, 1, 2, 2), "0")
    assert acts["0"].flatten().tolist() == [0, 0.5, 0.5, 1]
    assert acts.grid("0").size == (2, 2)
    with pytest.raises(ModelError, match="before it was quantised"):
        tvc.grad_cam(model, torch.rand(1, 1, 2, 2), "0", target=0)
