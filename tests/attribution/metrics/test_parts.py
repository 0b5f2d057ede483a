"""What all metrics read: images from anywhere, maps made or given, and targets of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.attribution.metrics.corner import random
from tests.conftest import unchanged
from torchviz_cnn.attribution.metrics.parts import Rows, without
from torchviz_cnn.core.errors import ImageError, InputError, NotFiniteError, TargetError

METRICS: list[Callable[..., Any]] = [
    tvc.metrics.insertion,
    tvc.metrics.deletion,
    tvc.metrics.average_drop,
    tvc.metrics.road,
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)


def network() -> tvc.Network:
    return tvc.Network(networks.vgg_like(), tvc.Preprocess((32, 32), "crop", 32), tuple("abcde"))


def folder_of(path: Path, count: int, broken: int) -> Path:
    """A folder of photos, one of which is no picture."""
    numbers = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(numbers.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path / f"{i}.png")
    (path / f"{broken}.png").write_bytes(b"no picture")
    return path


@every_metric
def test_an_image_alone_is_measured_as_in_a_batch(metric: Callable[..., Any]) -> None:
    """Tied maps and noise too, which depend on the number of the image in the data set: it is measured in place."""
    model, x, maps = networks.vgg_like(), networks.images(5), (3 * random(5, 32)).round() + 1
    whole = metric(model, x, maps, batch_size=5)
    for size in (1, 2, 4):
        torch.testing.assert_close(metric(model, x, maps, batch_size=size).values, whole.values, rtol=1e-5, atol=1e-6)


@every_metric
def test_maps_are_a_tensor_a_result_a_name_or_a_function(metric: Callable[..., Any]) -> None:
    model, x = networks.vgg_like(), networks.images(3)
    result = tvc.saliency(model, x)
    expected = metric(model, x, result.values, result.target).values
    for maps in (
        result,
        "saliency",
        tvc.saliency,
        lambda model, x, target: tvc.saliency(model, x, target=target).values,
    ):
        torch.testing.assert_close(metric(model, x, maps, batch_size=2).values, expected, rtol=1e-4, atol=1e-5)


@every_metric
def test_k_classes_are_measured_as_each_alone(metric: Callable[..., Any]) -> None:
    model, x, maps = networks.vgg_like(), networks.images(3), random(6, 32).view(3, 2, 32, 32)
    target = torch.tensor([[0, 1], [4, 2], [3, 3]])
    both = metric(model, x, maps, target, batch_size=2)
    assert both.values.shape == (3, 2)
    for k in range(2):
        alone = metric(model, x, maps[:, k], target[:, k])
        torch.testing.assert_close(both.values[:, k], alone.values, rtol=1e-4, atol=1e-5)
        for name, numbers in alone.details.items():
            torch.testing.assert_close(both.details[name][:, k], numbers, rtol=1e-4, atol=1e-5)


@every_metric
def test_of_a_function_its_own_numbers_are_read(metric: Callable[..., Any]) -> None:
    model, x, maps = networks.vgg_like(), networks.images(3), random(3, 32)
    function = metric(model, x, maps, lambda output: output.softmax(1)[:, 2])
    torch.testing.assert_close(function.values, metric(model, x, maps, 2).values, rtol=1e-4, atol=1e-5)


@every_metric
def test_a_model_comes_back_as_it_was(metric: Callable[..., Any]) -> None:
    model, x, maps = networks.vgg_like(), networks.images(2), random(2, 32)
    model.train()
    with unchanged(model, x, maps):
        metric(model, x, maps)
        metric(model, x, "saliency")


@every_metric
def test_bfloat16_is_measured_as_float32_to_its_precision(metric: Callable[..., Any]) -> None:
    model, x, maps = networks.vgg_like(), networks.images(3), random(3, 32)
    expected = metric(model, x, maps, 1).values
    measured = metric(networks.vgg_like().to(torch.bfloat16), x, maps, 1).values
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, expected, rtol=0, atol=0.02)


@every_metric
def test_a_binary_network_of_one_output_has_both_its_classes(metric: Callable[..., Any]) -> None:
    """The score of the first is that of the second turned round: what one gains, the other loses."""
    two = nn.Sequential(networks.vgg_like(), nn.Linear(networks.CLASSES, 1)).eval()
    net = tvc.Network(two, tvc.Preprocess((32, 32)), ("no", "yes"))
    x, maps = networks.images(3), random(3, 32)
    both = [metric(net, x, maps, target) for target in ("no", "yes")]
    if both[0].curves is None:
        return
    total = both[0].curves.y + both[1].curves.y
    torch.testing.assert_close(total, torch.full_like(total, 0.0 if metric is tvc.metrics.road else 1.0))


@every_metric
def test_a_folder_with_a_broken_photo_is_measured_but_for_it(metric: Callable[..., Any], tmp_path: Path) -> None:
    net, folder = network(), folder_of(tmp_path, 5, broken=2)
    measured = metric(net, folder, "saliency", "b", batch_size=2)
    assert measured.values.isfinite().tolist() == [True, True, False, True, True]
    assert list(measured.reasons) == [2]
    assert measured.reasons[2].startswith("cannot be read:")
    assert measured.names[2] == "2.png"
    photos = [folder / f"{i}.png" for i in (0, 1, 3, 4)]
    alone = metric(net, photos, "saliency", "b").values
    rows = [0, 1] if metric is tvc.metrics.road else [0, 1, 2, 3]  # its noise depends on the number of the image
    torch.testing.assert_close(measured.values[[0, 1, 3, 4]][rows], alone[rows], rtol=1e-5, atol=1e-6)


def test_a_method_whose_map_is_empty_is_reported_by_the_measurement_alone() -> None:
    """It warns of image 0 of those that it was given, whichever of all images that is."""
    model, x = networks.vgg_like(), networks.images(3)
    measured = tvc.metrics.deletion(model, x, "grad_cam", 1, batch_size=1)
    assert set(measured.reasons.values()) == {"the map is all zeros"}


def test_photos_that_cannot_be_read_are_an_error_where_they_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 2, broken=1)
    with pytest.raises(ImageError, match=r"1\.png"):
        tvc.metrics.deletion(network(), [folder / "0.png", folder / "1.png"], "grad_cam")
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="no image could be read"):
        tvc.metrics.deletion(network(), folder, "grad_cam")


def test_items_of_different_sizes_are_measured_one_at_a_time() -> None:
    items = [networks.images(1, size)[0] for size in (32, 40, 32)]
    model = networks.vgg_like()
    with pytest.raises(InputError, match=r"image 1 \(3, 40, 40\).*batch_size=1"):
        tvc.metrics.deletion(model, items_of(items), "saliency", 1)
    measured = tvc.metrics.deletion(model, items_of(items), "saliency", 1, batch_size=1)
    torch.testing.assert_close(measured.values[1:2], tvc.metrics.deletion(model, items[1][None], "saliency", 1).values)


def items_of(items: list[Tensor]) -> Any:
    """A data set of images that are ready for the network."""

    class Items(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Tensor:
            return items[index]

    return Items()


@pytest.mark.parametrize("target", [torch.zeros(2, dtype=torch.long), [0, 1], np.zeros((5, 2), int), torch.tensor([0])])
def test_a_target_of_other_rows_than_images_is_reported(target: Any) -> None:
    """Also where it has as many as are read at a time."""
    with pytest.raises(TargetError, match="there are 4 images, and a target of"):
        tvc.metrics.deletion(networks.vgg_like(), networks.images(4), random(4, 32), target, batch_size=2)


@pytest.mark.parametrize("target", [3, torch.tensor(3), np.int64(3), [3] * 3, np.full(3, 3), torch.full((3,), 3)])
def test_a_target_of_one_class_or_a_row_for_each_image_is_taken(target: Any) -> None:
    model, x, maps = networks.vgg_like(), networks.images(3), random(3, 32)
    measured = tvc.metrics.deletion(model, x, maps, target, batch_size=2)
    torch.testing.assert_close(measured.values, tvc.metrics.deletion(model, x, maps, 3).values)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (random(3, 32), "4 images, and maps of 3"),
        (random(8, 32).view(4, 2, 32, 32), r"maps are \(2, 2, 32, 32\), where \(2, h, w\)"),
        (torch.full((4, 32, 32), float("nan")), "no map can be used; image 0: its map has NaN or infinity in it"),
        (torch.ones(32, 32), r"not a tensor \(32, 32\)"),
        ([1, 2], "maps are a result of this library or a tensor"),
        ("grad_cma", "grad_cam"),
        (lambda model, x, target: torch.ones(1, 8, 8), r"the method gives maps \(1, 8, 8\)"),
    ],
)
def test_maps_that_do_not_fit_are_reported(maps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tvc.metrics.deletion(networks.vgg_like(), networks.images(4), maps, batch_size=2)


BROKEN = 3
BY_METHOD: dict[str, Callable[..., Any]] = {
    "deletion": lambda model, x, maps: tvc.metrics.deletion(model, x, maps, steps=4, batch_size=3),
    "average_drop": lambda model, x, maps: tvc.metrics.average_drop(model, x, maps, batch_size=3),
    "road": lambda model, x, maps: tvc.metrics.road(model, x, maps, batch_size=3),
    "pointing_game": lambda model, x, maps: tvc.metrics.pointing_game(model, x, maps, marked(len(x))),
    "randomization": lambda model, x, maps: tvc.metrics.randomization(model, x, maps, order="all", batch_size=3),
    "sensitivity": lambda model, x, maps: tvc.metrics.sensitivity(model, x, maps, copies=1, batch_size=3),
}


def marked(count: int) -> Tensor:
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, 4:20, 8:28] = True
    return masks


class Sometimes:
    """A method that gives NaN for one image, or raises as this library's methods do."""

    def __init__(self, image: Tensor, raises: bool) -> None:
        self.image, self.raises = image[0, 0, 0], raises

    def __call__(self, model: nn.Module, x: Tensor, target: object = None) -> Tensor:
        wrong = (x[:, 0, 0, 0] - self.image).abs() < 1e-7
        if self.raises and bool(wrong.any()):
            raise NotFiniteError("the map holds NaN or infinity")
        return x.abs().sum(1).masked_fill(wrong[:, None, None], float("nan"))


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("metric", BY_METHOD)
def test_an_image_whose_map_is_not_finite_is_named_and_the_others_are_measured(metric: str, raises: bool) -> None:
    model, x = networks.vgg_like(), networks.images(5)
    measure, whole = BY_METHOD[metric], Sometimes(torch.full((1, 1, 1), 99.0), raises)
    expected = measure(model, x, whole).values
    measured = measure(model, x, Sometimes(x[BROKEN], raises))
    others = [number for number in range(5) if number != BROKEN]
    torch.testing.assert_close(measured.values[others], expected[others])
    assert measured.values[BROKEN].isnan()
    assert "NaN or infinity" in measured.reasons[BROKEN]
    assert measured.count == 4


def test_a_batch_of_maps_is_measured_without_the_one_that_is_not_finite() -> None:
    model, x, maps = networks.vgg_like(), networks.images(4), random(8, 32).view(4, 2, 32, 32)
    target = torch.tensor([[0, 1]] * 4)
    expected = tvc.metrics.deletion(model, x, maps, target)
    maps[2, 1, 5, 5] = float("inf")
    measured = tvc.metrics.deletion(model, x, maps, target, batch_size=4)
    assert measured.reasons == {2: "its map has NaN or infinity in it"}
    torch.testing.assert_close(measured.values[[0, 1, 3]], expected.values[[0, 1, 3]])
    assert bool(measured.values[2].isnan().all())


def test_small_maps_are_enlarged_bilinearly() -> None:
    model, x, maps = networks.vgg_like(), networks.images(2), random(2, 5)
    large = nn.functional.interpolate(maps[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    expected = tvc.metrics.deletion(model, x, large).values
    torch.testing.assert_close(tvc.metrics.deletion(model, x, maps).values, expected)


def test_what_is_not_measured_is_nan_everywhere_and_keeps_its_first_reason() -> None:
    rows = Rows(torch.ones(2, 2), details={"more": torch.ones(2, 2, 3)})
    rows = without(rows, torch.tensor([[False, True], [False, False]]), "first")
    rows = without(rows, torch.tensor([[True, True], [False, False]]), "second")
    assert rows.values.isnan().tolist() == [[True, True], [False, False]]
    assert rows.details["more"].isnan().all(2).tolist() == [[True, True], [False, False]]
    assert rows.reasons == {0: "first"}
