"""Patches are exactly what a unit sees, on the photo itself; projections are those of the deconvnet, one unit each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

import torchviz_cnn as tvc
from tests import networks
from tests.media.shards.server import serving
from tests.media.shards.tars import write_shards
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.receptive_field import ReceptiveField, receptive_fields
from torchviz_cnn.media.datasets import kept
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder, preprocess_of_transform
from torchviz_cnn.media.datasets.source import ImageSource, View
from torchviz_cnn.topk.patches import arranged, cut, field_on_input, on_photo, projection_image, square, tile
from torchviz_cnn.topk.written.drawing import keeping


@pytest.mark.parametrize("layer", ["features.0", "features.5", "features.8", "features.9"])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (-1, -1), (0, -1)])
def test_outside_its_window_nothing_reaches_a_unit_and_at_its_edges_something_does(
    layer: str, place: tuple[int, int]
) -> None:
    model, x = networks.vgg_like(inplace=False), networks.images(1)
    maps = tvc.capture(model, x, layer)[layer]
    position = [place[d] % maps.shape[2 + d] for d in (0, 1)]
    with untouched(model) as frozen:
        field = receptive_fields(frozen, x, [layer])[layer]
    left, top, right, bottom = (int(edge) for edge in field_on_input(field, position, (32, 32)).shown)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    reached = torch.zeros(32, 32, dtype=torch.bool)
    for seed in range(12):  # max-pooling and ReLUs let different pixels through for different images
        leaf = networks.images(1, seed=seed).requires_grad_()
        with untouched(model) as frozen:
            out = frozen.features[: int(layer.split(".")[1]) + 1](leaf)  # type: ignore[operator, index, union-attr]
            (gradient,) = torch.autograd.grad(out[0, :, position[0], position[1]].sum(), leaf)
        reached |= (gradient[0] != 0).any(0)
    assert not (reached & ~inside).any()
    rows, columns = reached.any(1).nonzero()[:, 0], reached.any(0).nonzero()[:, 0]
    assert (int(rows[0]), int(rows[-1]) + 1) == (top, bottom)
    assert (int(columns[0]), int(columns[-1]) + 1) == (left, right)


@pytest.mark.parametrize("geometry", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (200, 40)])
def test_a_window_is_mapped_back_to_where_the_photo_shows_it(geometry: Any, size: tuple[int, int]) -> None:
    """A photo that is white in the window's place alone gives an input that is white in the window alone."""
    how = tvc.Preprocess((32, 32), geometry, resize=40, mean=(0.0,), std=(1.0,))
    window = field_on_input(ReceptiveField((12, 12), (4, 4), (0, 0), False), (3, 2), (32, 32))
    view = View(Image.new("RGB", size), how.seen_box(*size), (32, 32))
    left, top, right, bottom = on_photo(window, view).shown
    if right - left < 1 or bottom - top < 1:  # of a padded photo, nothing is here
        return
    large = Image.new("L", (size[0] * 8, size[1] * 8))
    large.paste(255, tuple(round(edge * 8) for edge in (left, top, right, bottom)))  # type: ignore[arg-type]
    x = how(large.resize(size, Image.Resampling.BOX))[0]
    l, t, r, b = (int(edge) for edge in window.shown)  # noqa: E741
    if geometry != "pad":
        assert float(x[t + 2 : b - 2, l + 2 : r - 2].min()) > 0.9
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[t - 2 : b + 2, l - 2 : r + 2] = False
    assert float(x[outside].max()) < 0.1
    assert float(x.sum()) > 0


def test_patches_are_the_photos_own_pixels(tmp_path: Path) -> None:
    """Each pixel of these photos tells its place: the patch is checked against where the unit is."""
    y, x = np.mgrid[:120, :160]
    generator = np.random.default_rng(0)
    for i in range(6):
        blue = np.kron(generator.integers(0, 256, (15, 20)), np.ones((8, 8)))
        Image.fromarray(np.stack([x, y, blue], -1).astype(np.uint8)).save(tmp_path / f"{i}.png")
    how = tvc.Preprocess((48, 48), resize=60)  # half the photo's size, 40 of 160 pixels cut off left and right
    model = networks.vgg_like()
    top = tvc.top_activations(model, tmp_path, "features.3", 3, preprocess=how)
    field = top.fields["features.3"]
    assert field is not None
    assert (field.size, field.start, field.stride) == ((5, 5), (-2, -2), (1, 1))
    for channel in range(8):
        patches = top.patches("features.3", channel)
        wide = top.patches("features.3", channel, context=3)
        for patch, more, (row, column) in zip(
            patches, wide, top.positions["features.3"][channel].tolist(), strict=True
        ):
            pixels = np.asarray(patch)
            left, up = max(column - 2, 0), max(row - 2, 0)
            # 160 x 120 becomes 80 x 60, of which 48 x 48 are seen from (16, 6) on
            assert pixels[0, 0, 0] == (left + 16) * 2
            assert pixels[0, 0, 1] == (up + 6) * 2
            assert pixels[-1, -1, 0] == (min(column + 3, 48) + 16) * 2 - 1
            assert pixels[-1, -1, 1] == (min(row + 3, 48) + 6) * 2 - 1
            around = np.asarray(more)
            assert around[0, 0, 0] == max((column - 7 + 16) * 2, 0)
            assert around.shape[0] > pixels.shape[0]


@pytest.mark.parametrize("projection", ["deconvnet", "guided"])
@pytest.mark.parametrize("layer", ["features.1", "features.8", "classifier.1"])
def test_projections_in_batches_are_those_one_by_one(projection: Any, layer: str) -> None:
    model, images = networks.vgg_like(), networks.images(12)
    top = tvc.top_activations(model, images, layer, 5)
    projected = top.project(layer, [0, 3, 4], projection=projection)
    assert any(float(v.abs().max()) > 0 for values in projected.values() for v in values)
    for channel, values in projected.items():
        for value, image, (row, column) in zip(
            values, top.images[layer][channel].tolist(), top.positions[layer][channel].tolist(), strict=True
        ):
            x = images[image : image + 1]
            if projection == "deconvnet" and layer != "classifier.1":
                expected = tvc.deconvnet(model, x, layer, channel, unit=(row, column)).values[0]
            else:
                leaf = x.clone().requires_grad_()
                with untouched(model) as frozen, tvc.relu_rule(projection), tvc.HookManager(frozen) as hooks:
                    kept: list[Any] = []
                    hooks.on_forward(layer, lambda name, out, kept=kept: kept.append(out) or out.clone())  # type: ignore[misc]
                    hooks.run(leaf.clone())
                    unit = kept[0][0, channel] if kept[0].ndim == 2 else kept[0][0, channel, row, column]
                    (expected,) = torch.autograd.grad(unit, leaf)
                    expected = expected[0] * (unit.detach() if projection == "deconvnet" else 1)
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


def test_projections_are_cut_to_the_field_and_nothing_is_lost() -> None:
    model, images = networks.vgg_like(), networks.images(12)
    top = tvc.top_activations(model, images, "features.6", 5)
    field = top.fields["features.6"]
    for values, (row, column), picture in zip(
        top.project("features.6", [2])[2],
        top.positions["features.6"][2].tolist(),
        top.projections("features.6", 2),
        strict=True,
    ):
        left, up, right, down = (int(edge) for edge in field_on_input(field, (row, column), (32, 32)).shown)
        assert picture.size == (right - left, down - up)
        rest = values.clone()
        rest[:, up:down, left:right] = 0
        assert not rest.any()


def test_tiles_keep_their_place_and_are_grey_beyond_the_input() -> None:
    picture = Image.new("RGB", (32, 32), "red")
    window = field_on_input(ReceptiveField((8, 8), (2, 2), (-4, -4), False), (0, 0), (32, 32))
    pixels = np.asarray(tile(picture, window, 40))
    assert pixels.shape == (40, 40, 3)
    assert (pixels[:20] == 128).all()
    assert (pixels[:, :20] == 128).all()
    assert (pixels[20:, 20:] == (255, 0, 0)).all()
    assert cut(picture, window).size == (4, 4)
    beyond = field_on_input(ReceptiveField((4, 4), (2, 2), (-8, -8), False), (0, 0), (32, 32))  # sees only padding
    assert (np.asarray(tile(picture, beyond, 20)) == 128).all()
    assert cut(picture, beyond).size == (1, 1)


def test_grids_and_pages() -> None:
    model, images = networks.vgg_like(), networks.images(12)
    top = tvc.top_activations(model, images, ["features.3", "features.8"])
    assert top.grid("features.3", 1, side=20).size == (2 * (3 * 22 - 2) + 6, 3 * 22 - 2)
    assert top.grid("features.3", 1, side=20, projection=None).size == (3 * 22 - 2, 3 * 22 - 2)
    one, two = (np.asarray(top.grid("features.3", 1, projection=p)) for p in ("deconvnet", "guided"))  # type: ignore[arg-type]
    assert one.shape == two.shape
    assert (one[:, : one.shape[1] // 2 - 3] == two[:, : one.shape[1] // 2 - 3]).all()
    assert top.page("features.8").width > top.grid("features.8", 0).width
    assert top.page("features.8", [3]).width < top.page("features.8", [3, 4]).width
    assert (top._repr_png_() or b"")[:4] == b"\x89PNG"
    assert top.strongest_channels("features.8", 3)[0] == int(top.values["features.8"][:, 0].argmax())
    with pytest.raises(LayerError, match=r"'features\.3'"):
        top.grid("features.33", 0)
    with pytest.raises(InputError, match=r"channel 12 is out of range: layer 'features\.8' has 12"):
        top.grid("features.8", 12)
    with pytest.raises(InputError, match="no projection 'other'"):
        top.grid("features.8", 0, projection="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="context"):
        top.patches("features.8", 0, context=0.5)
    with pytest.raises(InputError, match="selects channels by number"):
        top.project("features.8", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": []}, "channels selects channels by number"),
        ({"channels": 3}, "channels selects channels by number"),
        ({"channels": "34"}, "channels selects channels by number"),
        ({"channels": [-1]}, "a channel is a whole number"),
        ({"channels": [1.5]}, "a channel is a whole number"),
        ({"columns": 0}, "columns is a whole number of at least 1"),
        ({"columns": 2.5}, "columns is a whole number of at least 1"),
        ({"side": 0}, "side is a whole number of at least 1"),
        ({"side": "a"}, "side is a whole number of at least 1"),
    ],
)
def test_wrong_options_of_a_page_are_one_clear_line(options: dict[str, Any], words: str) -> None:
    top = tvc.top_activations(networks.vgg_like(), networks.images(2), ["features.8"], 1)
    with pytest.raises(InputError, match=words):
        top.page("features.8", **options)


def test_channels_that_are_named_twice_are_drawn_once() -> None:
    top = tvc.top_activations(networks.vgg_like(), networks.images(12), ["features.8"], 3)
    assert len(top.project("features.8", [1, 1])[1]) == 3
    assert top.page("features.8", [1, 1]).tobytes() == top.page("features.8", [1]).tobytes()
    assert top.page("features.8", [1, 2], columns=9).tobytes() == top.page("features.8", [1, 2], columns=2).tobytes()


def test_a_network_of_other_activations_has_patches_and_says_why_no_projections() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3))
    top = tvc.top_activations(model, networks.images(10), "2")
    with pytest.raises(LayerError, match="GELU"):
        top.grid("2", 0)
    assert top.grid("2", 0, projection=None).width > 0
    assert top.grid("2", 0, other_activations="plain").width > 0


class Transformed(ImageFolder):  # type: ignore[misc]
    """torchvision's `ImageFolder` of the photos of one folder."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.samples = [(str(path), 0) for path in sorted(folder.iterdir())]
        self.loader = lambda path: Image.open(path).convert("RGB")
        self.transform, self.target_transform = transform, None
        self.classes = ["only"]


def test_torchvision_datasets_and_their_transforms(tmp_path: Path) -> None:
    from torchvision import datasets, models, transforms
    from torchvision.transforms import v2

    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(generator.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / name / "1.png")
    one = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()])
    two = v2.Compose([v2.Resize([40]), v2.CenterCrop((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    for transform in (one, two):
        how = preprocess_of_transform(transform)
        assert how is not None
        assert how.seen_box(90, 60) == tvc.Preprocess((32, 32), resize=40).seen_box(90, 60)
        source = ImageSource(datasets.ImageFolder(str(tmp_path), transform))
        view = source.view(1)
        assert view.photo.size == (90, 60)
        assert view.box == how.seen_box(90, 60)
        assert source.item(1)[1] == 1
        assert source.categories == ("a", "b")
        assert "1.png" in source.name(0)
    stretched = preprocess_of_transform(transforms.Resize((32, 48)))
    assert stretched is not None
    assert (stretched.geometry, stretched.size) == ("stretch", (32, 48))
    preset = preprocess_of_transform(models.SqueezeNet1_0_Weights.DEFAULT.transforms())
    assert preset is not None
    assert (preset.resize, preset.size) == (256, (224, 224))
    for unknown in (
        transforms.RandomCrop(32),
        transforms.Compose([transforms.Resize(40), transforms.RandomHorizontalFlip()]),
        len,
    ):
        assert preprocess_of_transform(unknown) is None
    top = tvc.top_activations(networks.vgg_like(), Transformed(tmp_path / "a", one), "features.3", 1)
    assert max(top.patches("features.3", 0)[0].size) <= 10  # of a photo 1.5 times the input's size
    # A transform that is not understood: the patches are of the input.
    odd = Transformed(tmp_path / "a", lambda photo: one(photo).flip(2))
    assert tvc.top_activations(networks.vgg_like(), odd, "features.3", 1).patches("features.3", 0)[0].size <= (5, 5)


def test_a_folder_of_photos(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a/1.jpg", "a/.hidden.png", "a/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    photos = PhotoFolder(tmp_path)
    assert photos.names == ["a/1.jpg", "b/10.PNG", "b/2.png"]
    assert photos.labels == [0, 1, 1]
    assert photos.categories == ("a", "b")
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    photos = PhotoFolder(tmp_path)
    assert photos.names == ["a/1.jpg", "b/10.PNG", "b/2.png", "loose.png"]
    assert photos.categories == ()
    assert set(photos.labels) == {-1}
    with pytest.raises(tvc.ImageError, match="no photos"):
        PhotoFolder(_empty(tmp_path))
    with pytest.raises(tvc.ImageError, match="no such folder"):
        PhotoFolder(tmp_path / "missing")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


class Asked(Dataset[Any]):
    """Photos, and how often each was asked for."""

    def __init__(self, count: int) -> None:
        noise = np.random.default_rng(1)
        self.photos = [noise.integers(0, 256, (40, 52, 3), dtype=np.uint8) for _ in range(count)]
        self.times = [0] * count

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Any:
        self.times[index] += 1
        return self.photos[index]


def _one_by_one(top: tvc.TopActivations, layer: str, channel: int, side: int) -> Image.Image:
    """A channel as `grid` draws it, with each photo read anew for its patch and for its projection."""
    patches, projected = [], []
    units = list(zip(top.images[layer][channel].tolist(), top.positions[layer][channel].tolist(), strict=True))
    values = top.project(layer, [channel])[channel]
    assert top.source is not None
    for (image, position), unit in zip(units, values, strict=True):
        view = top.source.view(image)
        crop = field_on_input(top.fields[layer], position, view.input_size)
        patches.append(tile(view.photo, on_photo(crop, view), side))
        projected.append(tile(projection_image(unit), crop, side))
    return arranged([square(patches, top.k, side), square(projected, top.k, side)], 2, 6)


@pytest.mark.parametrize("limit", [0, 40_000, kept.LIMIT])
def test_a_page_reads_each_photo_once_and_shows_what_reading_each_anew_shows(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little is kept, a photo is read once for all its patches, and at most once more for projections."""
    monkeypatch.setattr(kept.KeptImages.__init__, "__defaults__", (limit,))
    photos, model, layer = Asked(7), networks.vgg_like(), "features.5"
    top = tvc.top_activations(model, photos, layer, 5, preprocess=tvc.Preprocess((32, 32), resize=36), workers=0)
    for channel in range(4):
        photos.times[:] = [0] * 7
        grid = top.grid(layer, channel, side=20)
        assert max(photos.times) <= (1 if limit == kept.LIMIT else 2)
        expected = _one_by_one(top, layer, channel, 20)
        assert np.array_equal(np.asarray(grid), np.asarray(expected))
    photos.times[:] = [0] * 7
    page = top.page(layer, range(8), projection=None)
    assert max(photos.times) == 1
    photos.times[:] = [0] * 7
    both = top.page(layer, range(8))
    assert max(photos.times) <= (1 if limit == kept.LIMIT else 2)
    assert both.width > page.width
    photos.times[:] = [0] * 7
    drawn = keeping(top)
    assert all(np.array_equal(np.asarray(drawn.page(layer, range(8))), np.asarray(both)) for _ in range(3))
    assert limit < kept.LIMIT or max(photos.times) == 1
    photos.times[:] = [0] * 7
    top.project(layer, range(8))
    assert max(photos.times) == 1


def test_a_page_by_relevance_reads_each_photo_once() -> None:
    photos, model, layer = Asked(7), networks.vgg_like(), "features.5"
    how = tvc.Preprocess((32, 32), resize=36)
    top = tvc.top_activations(model, photos, layer, 3, preprocess=how, workers=0, by="relevance")
    photos.times[:] = [0] * 7
    assert top.page(layer, range(8)).width > 0
    assert max(photos.times) == 1


def test_pages_of_shards_ask_a_server_once_for_photos_that_lie_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", 2, 6)
    how, model, layers = tvc.Preprocess((32, 32), resize=36), networks.vgg_like(), ["features.3", "features.5"]
    there = tvc.top_activations(model, tmp_path / "data" / "photos", layers, 5, preprocess=how, workers=0)
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-{{000000..000001}}.tar", index=tmp_path)
        top = tvc.top_activations(model, shards, layers, 5, preprocess=how, workers=0)
        server.requests.clear()
        drawn = keeping(top)
        for layer in layers:
            assert np.array_equal(np.asarray(drawn.page(layer)), np.asarray(there.page(layer)))
        assert len(server.requests) <= 4
        server.requests.clear()
        assert len(top.patches(layers[0], 0)) == 5
        assert len(server.requests) <= 2
