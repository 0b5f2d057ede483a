"""The k strongest of every channel: equal to brute force, whatever the dataset and however it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from torchviz_cnn.core.errors import InputError, LayerError, SkippedWarning

K = 4


def brute_force(model: nn.Module, images: Tensor, layer: str, k: int) -> tuple[Any, Any, Any]:
    """Values, images and positions by numpy, from maps in double precision: another way to the same answer."""
    maps = tvc.capture(_double(model), images.double(), layer)[layer].numpy()
    maps = maps if maps.ndim == 4 else maps[..., None, None]
    flat = maps.reshape(*maps.shape[:2], -1)
    strongest, places = flat.max(2), flat.argmax(2)
    order = np.argsort(-strongest, axis=0, kind="stable")[:k]
    rows, columns = np.divmod(np.take_along_axis(places, order, 0), maps.shape[3])
    return np.take_along_axis(strongest, order, 0).T, order.T, np.stack([rows.T, columns.T], -1)


def _double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


def assert_equal(top: tvc.TopActivations, expected: tuple[Any, Any, Any], layer: str) -> None:
    values, images, positions = expected
    np.testing.assert_array_equal(top.images[layer].numpy(), images)
    np.testing.assert_array_equal(top.positions[layer].numpy(), positions)
    np.testing.assert_allclose(top.values[layer].numpy(), values, rtol=1e-5, atol=1e-6)


def assert_same(one: tvc.TopActivations, other: tvc.TopActivations) -> None:
    assert one.layers == other.layers
    for layer in one.layers:
        assert torch.equal(one.images[layer], other.images[layer])
        assert torch.equal(one.positions[layer], other.positions[layer])
        assert torch.allclose(one.values[layer], other.values[layer], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (networks.vgg_like, ["features.0", "features.5", "features.8"]),  # before in-place ReLUs, and behind one
        (networks.functional_relu, ["conv2", "conv4"]),
        (networks.residual, ["layer1", "layer2"]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("exact", [False, True])
def test_it_equals_brute_force(build: Callable[[], nn.Module], layers: list[str], batch_size: int, exact: bool) -> None:
    model, images = build(), networks.images(23)
    with unchanged(model, images):
        top = tvc.top_activations(model, images, layers, K, batch_size=batch_size, exact=exact)
    assert top.layers == tuple(layers)
    for layer in layers:
        assert_equal(top, brute_force(model, images, layer, K), layer)


@pytest.mark.parametrize(("workers", "exact"), [(0, False), (1, False), (2, False), (2, True)])
def test_workers_change_nothing(workers: int, exact: bool) -> None:
    model, images = networks.vgg_like(), networks.images(23)
    top = tvc.top_activations(model, images, "features.8", K, batch_size=5, workers=workers, exact=exact)
    assert_equal(top, brute_force(model, images, "features.8", K), "features.8")


def test_equal_images_go_to_the_first_and_equal_places_too() -> None:
    model = networks.vgg_like()
    images = networks.images(3)[torch.tensor([2, 0, 1, 0, 0, 1, 2, 0])]
    flat = torch.ones(1, 3, 32, 32).expand(4, -1, -1, -1)  # the same value at many places
    images = torch.cat([images, flat])
    for batch_size in (1, 3, 12):
        top = tvc.top_activations(model, images, ["features.1", "features.8"], K, batch_size=batch_size, exact=True)
        for layer in top.layers:
            assert_equal(top, brute_force(model, images, layer, K), layer)
    identity = nn.Conv2d(1, 1, 1)
    same = torch.tensor([2.0, 3.0, 3.0, 1.0]).view(4, 1, 1, 1).expand(-1, -1, 3, 3)
    nn.init.ones_(identity.weight)
    for batch_size in (1, 3):
        top = tvc.top_activations(nn.Sequential(identity), same, "0", 4, batch_size=batch_size)
        assert top.images["0"].tolist() == [[1, 2, 0, 3]]
        assert not top.positions["0"].any()


class Wobbly(nn.Module):
    """Adds to each number an error in its last digits that differs with the batch's size, as other kernels would."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        if x.dtype == torch.float32:
            noise = torch.rand(out.shape, generator=torch.Generator().manual_seed(len(x)))
            out = out * (1 + 3e-7 * (noise - 0.5))
        return out


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wobbly = Wobbly()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wobbly(x)
        return out


def nearly_equal_images(count: int) -> Tensor:
    """Images and places of which some are equal, and some differ by less than the errors of single precision."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 5, (count, 1, 6, 6), generator=generator).float()
    return images + 1e-7 * torch.randint(0, 3, images.shape, generator=generator)


def test_in_exact_order_rounding_decides_nothing() -> None:
    images = nearly_equal_images(14)
    expected = brute_force(Outer(), images, "wobbly", 9)
    answers = [tvc.top_activations(Outer(), images, "wobbly", 9, batch_size=n, exact=True) for n in (1, 3, 7, 14)]
    for top in answers:
        assert_equal(top, expected, "wobbly")
        assert torch.equal(top.values["wobbly"], answers[0].values["wobbly"])
    raw = [tvc.top_activations(Outer(), images, "wobbly", 9, batch_size=n) for n in (1, 3, 7, 14)]
    assert len({str(top.images["wobbly"].tolist()) + str(top.positions["wobbly"].tolist()) for top in raw}) > 1
    for top in raw:
        np.testing.assert_allclose(top.values["wobbly"].numpy(), expected[0], rtol=1e-5)


def test_as_computed_values_that_differ_keep_their_place_whatever_the_batch_size() -> None:
    images = torch.arange(40.0).flip(0).view(-1, 1, 1, 1).expand(-1, -1, 3, 3) + 1  # the first is the strongest
    for size in (1, 3, 7, 40):
        top = tvc.top_activations(Outer(), images, "wobbly", 9, batch_size=size)
        assert top.images["wobbly"][0].tolist() == list(range(9))
        np.testing.assert_allclose(top.values["wobbly"][0].numpy(), np.arange(40, 31, -1), rtol=1e-5)


class Single(nn.Module):
    """Multiplies by numbers that are single precision whatever the model is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.conv(x).float())
        return out


def test_a_network_that_is_no_double_keeps_the_order_computed_and_says_so() -> None:
    model = networks.seeded(Single)()
    images = networks.images(12)
    with unchanged(model, images), pytest.warns(SkippedWarning, match="does not run in double precision") as caught:
        top = tvc.top_activations(model, images, "second", K, exact=True)
    assert caught[0].filename == __file__
    assert_same(top, tvc.top_activations(model, images, "second", K))


class Failing(nn.Module):
    """Has a mistake that shows in double precision only."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.conv = error, nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise self.error
        out: Tensor = self.conv(x)
        return out


@pytest.mark.parametrize("error", [ValueError("dtype"), RuntimeError("mistake"), torch.OutOfMemoryError("no memory")])
def test_only_what_double_precision_itself_cannot_do_is_passed_over(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        tvc.top_activations(nn.Sequential(Failing(error)), networks.images(4), "0", 2, exact=True)


def test_a_network_prepares_its_photos_itself_and_what_is_given_by_hand_wins() -> None:
    random = np.random.default_rng(0)
    photos = [Image.fromarray(random.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)) for i in range(7)]
    model, usual, other = networks.vgg_like(), tvc.Preprocess((32, 32), resize=36), tvc.Preprocess((32, 32), "stretch")
    net = tvc.Network(model, usual)
    with unchanged(model):
        for given, how in ((None, usual), (other, other)):
            top = tvc.top_activations(net, photos, "features.8", K, preprocess=given)
            expected = brute_force(model, torch.stack([how(photo) for photo in photos]), "features.8", K)
            assert_equal(top, expected, "features.8")
    assert top.model is model
    assert len(top.patches("features.8", 0)) == K
    assert len(top.projections("features.8", 0, model=net)) == K


def test_a_dataset_smaller_than_k() -> None:
    model, images = networks.vgg_like(), networks.images(3)
    top = tvc.top_activations(model, images, "features.8", 9)
    assert top.k == 9
    assert (top.images["features.8"][:, 3:] == -1).all()
    assert (top.positions["features.8"][:, 3:] == -1).all()
    assert top.values["features.8"][:, 3:].isnan().all()
    np.testing.assert_array_equal(
        top.images["features.8"][:, :3].numpy(), brute_force(model, images, "features.8", 3)[1]
    )
    assert (
        top.grid("features.8", 0).size
        == tvc.top_activations(model, networks.images(12), "features.8").grid("features.8", 0).size
    )


def test_fully_connected_layers_have_one_place() -> None:
    model, images = networks.vgg_like(), networks.images(9)
    top = tvc.top_activations(model, images, ["classifier.0", "classifier.3"], K)
    for layer in top.layers:
        assert_equal(top, brute_force(model, images, layer, K), layer)
        assert (top.positions[layer] == 0).all()
        assert top.fields[layer] is None


def test_a_module_that_runs_several_times_and_patterns() -> None:
    model, images = networks.reused(), networks.images(11)
    top = tvc.top_activations(model, images, ["relu", "relu#2"], K)
    for layer in ("relu", "relu#2"):
        assert_equal(top, brute_force(model, images, layer, K), layer)
    assert tvc.top_activations(model, images, "relu#*", K).layers == ("relu", "relu#1", "relu#2")
    assert tvc.top_activations(model, images, nn.Conv2d, K).layers == ("conv1", "conv2", "conv3")
    assert tvc.top_activations(model, images, None, K).layers == ("conv1", "conv2", "conv3")


class Items(Dataset[Any]):
    """A map-style dataset that makes its items by a function."""

    def __init__(self, images: Tensor, make: Callable[[Tensor, int], Any]) -> None:
        self.images, self.make = images, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.images[index], index)


@pytest.mark.parametrize(
    "make",
    [
        lambda images: images,
        lambda images: list(images),
        lambda images: images.numpy(),
        lambda images: TensorDataset(images),
        lambda images: TensorDataset(images, torch.arange(len(images))),
        lambda images: Items(images, lambda x, i: (x, i, "more")),
        lambda images: Items(images, lambda x, i: {"pixel_values": x, "labels": i}),
        lambda images: Items(images, lambda x, i: {"image": x.numpy()}),
        lambda images: Subset(TensorDataset(torch.cat([images, images])), range(len(images))),
    ],
)
def test_map_style_datasets_of_all_kinds(make: Callable[[Tensor], Any]) -> None:
    model, images = networks.vgg_like(), networks.images(11)
    assert_equal(
        tvc.top_activations(model, make(images), "features.8", K),
        brute_force(model, images, "features.8", K),
        "features.8",
    )


@pytest.mark.parametrize("kind", ["RGB", "L", "uint8 tensor", "uint8 array", "file"])
def test_photos_are_prepared_for_the_network(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    photos = [Image.fromarray(random.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)) for i in range(7)]
    photos = [photo.convert("L").convert("RGB") for photo in photos] if kind == "L" else photos
    how = tvc.Preprocess((32, 32), resize=36)
    images = torch.stack([how(photo) for photo in photos])
    items: list[Any] = list(photos)
    if kind == "L":
        items = [photo.convert("L") for photo in photos]
    elif kind == "uint8 tensor":
        items = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photos]
    elif kind == "uint8 array":
        items = [np.asarray(photo) for photo in photos]
    elif kind == "file":
        items = [tmp_path / f"{i}.png" for i in range(len(photos))]
        for path, photo in zip(items, photos, strict=True):
            photo.save(path)
    model = networks.vgg_like()
    top = tvc.top_activations(model, items, "features.8", K, preprocess=how)
    assert_equal(top, brute_force(model, images, "features.8", K), "features.8")
    with pytest.raises(InputError, match="pass preprocess="):
        tvc.top_activations(model, items, "features.8", K)


def test_what_cannot_be_read_is_left_out_listed_and_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "b/2.jpg", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:200])
    (tmp_path / "a" / "zero.jpg").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("not a photo")
    how = tvc.Preprocess((32, 32), resize=36)
    model = networks.vgg_like()
    for batch_size in (1, 4):
        with pytest.warns(SkippedWarning, match="2 of 5 images could not be read"):
            top = tvc.top_activations(model, tmp_path, "features.8", 9, preprocess=how, batch_size=batch_size)
        assert top.count == 5
        assert list(top.skipped) == [1, 2]
        assert "1.png" in top.skipped[1]
        assert "zero.jpg" in top.skipped[2]
        assert set(top.images["features.8"].flatten().tolist()) == {-1, 0, 3, 4}
        good = torch.stack([how(tvc.read_image(tmp_path / n)) for n in ("a/0.png", "b/2.jpg", "b/3.png")])
        _, images, positions = brute_force(model, good, "features.8", 3)
        np.testing.assert_array_equal(top.images["features.8"][:, :3].numpy(), np.array([0, 3, 4])[images])
        np.testing.assert_array_equal(top.positions["features.8"][:, :3].numpy(), positions)
    assert top.source is not None
    assert top.source.categories == ("a", "b")


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(InputError, match=r"none of 3 images .*0\.jpg"):
        tvc.top_activations(networks.vgg_like(), tmp_path, "features.8", preprocess=tvc.Preprocess((32, 32)))


def test_what_is_not_a_number_is_left_out_and_said() -> None:
    model, images = networks.vgg_like(), networks.images(8)
    images[3, 0, 5, 5] = torch.nan
    with pytest.warns(SkippedWarning, match="not a number"):
        top = tvc.top_activations(model, images, "features.0", 9)
    assert not (top.images["features.0"] == 3).any()
    others = torch.cat([images[:3], images[4:]])
    values, places, _ = brute_force(model, others, "features.0", 7)
    np.testing.assert_array_equal(top.images["features.0"][:, :7].numpy(), np.array([0, 1, 2, 4, 5, 6, 7])[places])
    assert top.statistics["features.0"].mean.isfinite().all()
    np.testing.assert_allclose(top.statistics["features.0"].maximum.numpy(), values[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (5, "a dataset is a folder of photos, or map-style"),
        ({0: torch.zeros(3, 32, 32)}, "a dataset is a folder of photos, or map-style"),
        (iter([]), "a dataset is a folder of photos, or map-style"),
        (DataLoader(TensorDataset(torch.zeros(2, 3, 32, 32))), "pass its .dataset"),
        ([], "is empty"),
        ([torch.zeros(3, 4, 5, 6)], "not an image: .3, 4, 5, 6., where .C, H, W. is needed"),
        (["no such file.jpg"], "how this network's inputs are prepared is not known"),
        ([{"a": 1}], "none is called image"),
        ([torch.zeros(1, 32, 32)], "has 1 channel; VGGLike takes 3"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 32, 40)], "cannot share a batch"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_cannot_work_is_one_clear_line(dataset: Any, message: str, workers: int) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tvc.top_activations(networks.vgg_like(), dataset, "features.8", workers=workers)
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_go_one_by_one() -> None:
    model = networks.functional_relu()
    sizes = [(32, 32), (40, 24), (20, 50), (32, 32), (28, 36)]
    images = [networks.images(1, 64, seed=i)[0, :, :h, :w] for i, (h, w) in enumerate(sizes)]
    top = tvc.top_activations(model, images, "conv3", 5, batch_size=1)
    for channel in range(8):
        for image, (row, column), value in zip(
            top.images["conv3"][channel], top.positions["conv3"][channel], top.values["conv3"][channel], strict=True
        ):
            maps = tvc.capture(model, images[int(image)][None], "conv3")["conv3"][0, channel]
            assert float(maps.amax()) == pytest.approx(float(value), abs=1e-5)
            assert float(maps[int(row), int(column)]) == pytest.approx(float(value), abs=1e-5)
    assert len(top.patches("conv3", 0)) == 5
    assert top.grid("conv3", 0).width > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "features.9999"}, LayerError, "no layer 'features.9999'"),
        ({"layers": []}, LayerError, "asked for no layer at all"),
        ({"layers": "features.8", "k": 0}, InputError, "k is a whole number of at least 1"),
        ({"layers": "features.8", "batch_size": 0}, InputError, "batch_size is a whole number"),
        ({"layers": "features.8", "k": True}, InputError, "k is a whole number of at least 1"),
        ({"layers": "features.8", "workers": -1}, InputError, "workers is a whole number of at least 0"),
        ({"layers": "features.8", "save_every": 0}, InputError, "save_every is a whole number"),
    ],
)
def test_wrong_options_are_one_clear_line(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tvc.top_activations(networks.vgg_like(), networks.images(2), **options)


def test_a_layer_without_maps_is_refused() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Tokens())
    with pytest.raises(LayerError, match=r"gives \(1, 4, 900\).*neither maps"):
        tvc.top_activations(model, networks.images(2), "1")


def test_training_models_frozen_ones_and_other_modes_are_given_back() -> None:
    model, images = networks.residual().train(), networks.images(6)
    expected = brute_force(networks.residual(), images, "layer2", K)
    with unchanged(model, images):
        assert_equal(tvc.top_activations(model, images, "layer2", K), expected, "layer2")
    with unchanged(model, images), torch.inference_mode():
        assert_equal(tvc.top_activations(model, images, "layer2", K), expected, "layer2")


def test_an_exception_and_ctrl_c_leave_the_model_as_it_was() -> None:
    model = networks.vgg_like().train()

    def interrupted(x: Tensor, index: int) -> Tensor:
        if index == 5:
            raise KeyboardInterrupt
        return x

    with unchanged(model), pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, Items(networks.images(9), interrupted), "features.8", batch_size=2)


def test_half_precision_and_double_work() -> None:
    images = networks.images(9)
    model = networks.vgg_like(inplace=False)
    double = tvc.top_activations(_double(model), images.double(), "features.8", K)
    assert_equal(double, brute_force(model, images, "features.8", K), "features.8")
    for exact in (False, True):
        half = tvc.top_activations(networks.vgg_like().bfloat16(), images, "features.8", K, exact=exact)
        assert half.values["features.8"].dtype == torch.float32
        assert float((half.values["features.8"] - double.values["features.8"]).abs().max()) < 0.1


def test_channels_last_changes_nothing() -> None:
    model, images = networks.vgg_like(), networks.images(9)
    expected = brute_force(model, images, "features.8", K)
    assert_equal(
        tvc.top_activations(model.to(memory_format=torch.channels_last), images, "features.8", K),
        expected,
        "features.8",
    )  # type: ignore[call-overload]


def test_memory_does_not_hold_the_dataset() -> None:
    """What is kept between batches is as large after many images as after few."""
    from torchviz_cnn.hooks.untouched import untouched
    from torchviz_cnn.media.datasets.source import ImageSource
    from torchviz_cnn.runs.ranks import Ranks
    from torchviz_cnn.topk.passes import RunState, probe, run_pass

    sizes = []
    for count in (20, 60):
        with untouched(networks.vgg_like()) as model:
            source = ImageSource(networks.images(count))
            state = RunState.new(probe(model, source, "features.8"), 6)
            run_pass(model, source, state, Ranks(), batch_size=4, save_every=2)
            assert state.done == count
            sizes.append(sum(t.numel() for t in state.tallies["features.8"].tensors("x").values()))
    assert sizes[0] == sizes[1]
