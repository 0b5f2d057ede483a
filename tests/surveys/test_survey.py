"""A survey equals what plain PyTorch gives photo by photo; every kind of folder is told apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from tests.media.shards.tars import photo_bytes, write_shards, write_tar
from tests.surveys.generated import CLASSES, PREPARE, network, photos
from torchviz_cnn.core.errors import (
    ImageError,
    InputError,
    LayerError,
    ModelError,
    NotFiniteError,
    SkippedWarning,
    TargetError,
)
from torchviz_cnn.surveys.result import GRID, REGIONS
from torchviz_cnn.surveys.written.words import facts

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def grad_cam(model: nn.Sequential, x: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the heatmap of one photo, by autograd alone."""
    maps = model[:5](x).detach().requires_grad_()
    logits = model[5:](maps)
    (gradient,) = torch.autograd.grad(logits[0, index], maps)
    return logits[0].detach(), (gradient.mean((2, 3))[0, :, None, None] * maps[0].detach()).sum(0).relu()


def on_grid(heat: torch.Tensor) -> np.ndarray[Any, Any]:
    """A map on 40 x 40 cells of what it covers, bilinearly."""
    large = F.interpolate(heat[None, None], (GRID, GRID), mode="bilinear", align_corners=False)
    return large[0, 0].double().numpy()


def test_every_column_equals_plain_pytorch(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 13)
    result = tvc.survey(net, folder, batch_size=4, workers=0, k=3)
    assert len(result) == 13
    assert result.true is not None
    assert result.loss is not None
    assert result.true_probability is not None
    assert result.labelled
    for place, name in enumerate(result.names):
        true = {"disc": 0, "great_white_shark": 1, "stripes": 2}[name.partition("/")[0]]
        x = PREPARE(Image.open(folder / name))[None]
        logits, heat = grad_cam(net.model, x, true)  # type: ignore[arg-type]
        shares = logits.softmax(0)
        order = shares.argsort(descending=True)
        assert result.true[place] == true
        assert result.predicted[place] == order[0]
        assert result.top[place].tolist() == order.tolist()
        np.testing.assert_allclose(result.top_probabilities[place], shares[order], **CLOSE)
        np.testing.assert_allclose(result.confidence[place], shares.max(), **CLOSE)
        np.testing.assert_allclose(result.margin[place], shares[order[0]] - shares[order[1]], **CLOSE)
        np.testing.assert_allclose(result.true_probability[place], shares[true], **CLOSE)
        np.testing.assert_allclose(result.loss[place], F.cross_entropy(logits[None], torch.tensor([true])), **CLOSE)
        _, other = grad_cam(net.model, x, int(order[0]))  # type: ignore[arg-type]
        for cells, border, corner in (
            (on_grid(heat), result.border[place], result.corner[place]),
            (on_grid(other), result.predicted_border[place], result.predicted_corner[place]),
        ):
            inner = cells[4:-4, 4:-4].sum()
            corners = cells[:8, :8].sum() + cells[:8, -8:].sum() + cells[-8:, :8].sum() + cells[-8:, -8:].sum()
            np.testing.assert_allclose(border, 1 - inner / cells.sum(), **CLOSE)
            np.testing.assert_allclose(corner, corners / cells.sum(), **CLOSE)
        cells = on_grid(heat)
        edges = [cells[:4].sum(), cells[-4:].sum(), cells[:, :4].sum(), cells[:, -4:].sum()]
        np.testing.assert_allclose(result.regions[place, 4:], np.array(edges) / cells.sum(), **CLOSE)
    right = result.predicted == result.true
    assert result.accuracy == pytest.approx(right.mean())
    counts = {(one.true, one.predicted): one.count for one in result.confusions}
    wrong = list(zip(result.true[~right].tolist(), result.predicted[~right].tolist(), strict=True))
    assert counts == {pair: wrong.count(pair) for pair in wrong}


def test_classes_have_the_mean_of_their_maps_in_the_photos_frame(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 9)
    result = tvc.survey(net, folder, workers=0)
    sums = np.zeros((3, GRID, GRID))
    for name in result.names:
        true = {"disc": 0, "great_white_shark": 1, "stripes": 2}[name.partition("/")[0]]
        photo = Image.open(folder / name)
        heat = tvc.grad_cam(net, str(folder / name), target=true)
        left, top, right, bottom = PREPARE.seen_box(*photo.size)
        rows = ((np.arange(GRID) + 0.5) / GRID * photo.height - top) / (bottom - top)
        columns = ((np.arange(GRID) + 0.5) / GRID * photo.width - left) / (right - left)
        places = torch.tensor(np.stack(np.meshgrid(columns, rows), -1) * 2 - 1)[None]
        options: dict[str, Any] = {"padding_mode": "border", "align_corners": False}
        cells = F.grid_sample(heat.values[None].double(), places, **options)[0, 0].numpy()
        cells *= ((rows >= 0) & (rows <= 1))[:, None] & ((columns >= 0) & (columns <= 1))
        sums[true] += cells / cells.sum()
    for one in result.classes:
        np.testing.assert_allclose(one.heatmap, sums[one.index] / sums[one.index].sum(), rtol=1e-4, atol=1e-6)
        assert one.heatmap.sum() == pytest.approx(1, abs=1e-5)
        own = result.true == one.index
        assert (one.count, one.predicted) == (3, int((result.predicted == one.index).sum()))
        assert one.border == pytest.approx(result.border[own].mean())
        assert one.accuracy == pytest.approx((result.predicted[own] == one.index).mean())
        assert list(one.regions) == list(REGIONS)
        np.testing.assert_allclose(list(one.others.values()), result.regions[~own].mean(0))
    # The middle is seen of every photo, the rim of the square ones alone.
    assert result.coverage[20, 20] == 1
    assert 0 <= result.coverage[0, 0] < 0.5


def test_what_is_shown_and_why(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 20)
    result = tvc.survey(net, folder, workers=0, k=3, seed=1)
    assert result.loss is not None
    assert result.correct is not None
    by_reason: dict[str, list[int]] = {}
    for shown in result.shown:
        assert result.names[shown.index] == shown.name
        for reason in shown.reasons:
            by_reason.setdefault(reason, []).append(shown.index)
        heat = tvc.grad_cam(net, str(folder / shown.name), target=int(result.predicted[shown.index]))
        np.testing.assert_allclose(shown.heatmap, heat.values[0], **CLOSE)
        assert result.true is not None
        assert shown.true_heatmap is not None
        heat = tvc.grad_cam(net, str(folder / shown.name), target=int(result.true[shown.index]))
        np.testing.assert_allclose(shown.true_heatmap, heat.values[0], **CLOSE)
        photo = result.photo(shown.name)
        assert shown.size == photo.size
        assert shown.box == PREPARE.seen_box(*photo.size)
    assert set(by_reason["highest loss"]) == set(np.argsort(-result.loss, kind="stable")[:3])
    wrong = np.flatnonzero(~result.correct)
    assert set(by_reason["confident and wrong"]) == set(wrong[np.argsort(-result.confidence[wrong])][:3])
    assert set(by_reason["least certain"]) == set(np.argsort(result.margin, kind="stable")[:3])
    assert result.correct[by_reason["random right"]].all()
    assert len({shown.name for shown in result.shown}) == len(result.shown)
    again = tvc.survey(net, folder, workers=0, k=3, seed=1)
    assert [shown.name for shown in again.shown] == [shown.name for shown in result.shown]


def test_calibration_is_that_of_guo_and_others(tmp_path: Path) -> None:
    result = tvc.survey(network(), photos(tmp_path / "photos", 30), workers=0)
    bins = result.calibration
    assert bins is not None
    assert result.correct is not None
    error = 0.0
    for number, (low, high) in enumerate(zip(bins.edges[:-1], bins.edges[1:], strict=True)):
        own = (result.confidence > low) & (result.confidence <= high)
        assert bins.count[number] == own.sum()
        if own.any():
            assert bins.accuracy[number] == pytest.approx(result.correct[own].mean())
            assert bins.confidence[number] == pytest.approx(result.confidence[own].mean())
            error += abs(result.correct[own].mean() - result.confidence[own].mean()) * own.mean()
        else:
            assert math.isnan(bins.accuracy[number])
    assert bins.error == pytest.approx(error)


def same(one: tvc.Survey, other: tvc.Survey) -> None:
    assert one.names == other.names
    for name in ("predicted", "true", "top"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("confidence", "margin", "border", "corner", "regions", "predicted_border", "coverage"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), **CLOSE)
    for a, b in zip(one.classes, other.classes, strict=True):
        np.testing.assert_allclose(a.heatmap, b.heatmap, **CLOSE)
    for first, second in zip(one.shown, other.shown, strict=True):
        assert (first.name, first.reasons, first.files) == (second.name, second.reasons, second.files)
        np.testing.assert_allclose(first.heatmap, second.heatmap, **CLOSE)


def test_the_answer_does_not_depend_on_batches_and_workers(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 11)
    first = tvc.survey(net, folder, workers=0, batch_size=11)
    same(first, tvc.survey(net, folder, workers=0, batch_size=3))
    same(first, tvc.survey(net, folder, workers=2, batch_size=1, save_every=2))


def test_labels_come_from_folders_files_and_datasets(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 6)
    first = tvc.survey(net, folder, workers=0)
    assert first.settings.labels == (
        "labels are the folders' names: 2 classes by name, 1 class by name but for case and separators"
    )
    table = tmp_path / "labels.csv"
    rows = [f"{name},{CLASSES[int(index)]}" for name, index in zip(first.names, first.true, strict=True)]  # type: ignore[arg-type]
    table.write_text("path,label\n" + "\n".join(rows))
    imagefolder = torchvision.datasets.ImageFolder(folder, PREPARE)
    for given, truth in ((folder, table), (folder, "folders"), (imagefolder, None), (folder, list(first.true))):  # type: ignore[arg-type]
        result = tvc.survey(net, given, truth=truth, workers=0)
        same(first, result)
        assert result.settings.folder == str(folder.resolve())
    pairs = [(PREPARE(Image.open(folder / name)), int(i)) for name, i in zip(first.names, first.true, strict=True)]  # type: ignore[arg-type]
    tensors = tvc.survey(net.model, pairs)
    np.testing.assert_array_equal(tensors.true, first.true)  # type: ignore[arg-type]
    np.testing.assert_allclose(tensors.border, first.border, **CLOSE)
    assert tensors.categories == ("class 0", "class 1", "class 2")
    assert tensors.settings.folder is None


def test_photos_in_a_list_are_called_by_their_paths(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 6)
    files = sorted(folder.rglob("*.png"))
    result = tvc.survey(network(), files, truth="folders", k=2, out=tmp_path / "out")
    assert result.names == tuple(map(str, files))
    np.testing.assert_allclose(result.border, tvc.survey(network(), folder, k=2, workers=0).border, **CLOSE)
    pairs = tvc.survey(network(), [(str(file), 1) for file in files], k=2)
    assert pairs.names == result.names
    missing = [*files, tmp_path / "no.png"]
    with pytest.warns(SkippedWarning, match="1 of 7 photos could not be used"):
        assert list(tvc.survey(network(), missing, truth="none", k=2).skipped) == [str(tmp_path / "no.png")]


def test_a_network_without_names_takes_folders_in_their_order(tmp_path: Path) -> None:
    """As torchvision's ImageFolder does, with which it was trained."""
    folder = photos(tmp_path / "photos", 6)
    result = tvc.survey(network(None), folder, workers=0)
    assert result.settings.labels == "labels are the folders' names: 3 classes in the order of their labels"
    assert result.true is not None
    assert result.true.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.categories == ("disc", "great_white_shark", "stripes")


def test_without_labels_there_are_predictions_and_their_evidence(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 8, ())
    result = tvc.survey(network(), folder, workers=0, k=2)
    assert not result.labelled
    assert (result.true, result.loss, result.calibration, result.accuracy) == (None, None, None, None)
    assert result.confusions == ()
    assert {reason for shown in result.shown for reason in shown.reasons} == {"least certain", "random"}
    assert all(shown.true_heatmap is None for shown in result.shown)
    np.testing.assert_array_equal(result.border, result.predicted_border)
    assert sum(one.count for one in result.classes) == 8
    labelled = photos(tmp_path / "labelled", 8)
    assert not tvc.survey(network(), labelled, truth="none", workers=0).labelled


def test_why_there_are_no_labels_is_said(tmp_path: Path) -> None:
    """One photo beside the folders of classes leaves all without labels."""
    folder = photos(tmp_path / "photos", 6)
    photos(folder, 1, ())
    result = tvc.survey(network(), folder, workers=0, k=2)
    assert not result.labelled
    why = "no photo has a label, as 1 of 7 lies in no folder of a class: '000.png'"
    assert why in str(result)
    assert why in facts(result)
    flat = tvc.survey(network(), photos(tmp_path / "flat", 2, ()), workers=0, k=2)
    assert "the photos have no labels: they are not in a folder for each class" in str(flat)
    items = [(torch.rand(3, 32, 32), label) for label in (None, 1)]
    assert "the dataset has no labels: image 0 has none" in str(tvc.survey(network().model, items, k=2))


def test_shards_without_labels_are_told_from_those_with_some(tmp_path: Path) -> None:
    result = tvc.survey(network(), write_shards(tmp_path / "none", 2, 3, None), workers=0, k=2)
    assert not result.labelled
    assert "the photos have no labels: the shards have none in a .cls or .json" in str(result)
    members = [("a.jpg", photo_bytes(0)), ("b.jpg", photo_bytes(1)), ("b.cls", b"1")]
    some = write_tar(tmp_path / "some.tar", members)
    with pytest.raises(InputError, match=r"some\.tar/a\.jpg has no label, and others have; truth='none' takes"):
        tvc.survey(network(), some, workers=0, k=2)
    assert not tvc.survey(network(), some, truth="none", workers=0, k=2).labelled


def test_random_weights_are_said(tmp_path: Path) -> None:
    folder, trained = photos(tmp_path / "photos", 3), network()
    untrained = tvc.Network(trained.model, PREPARE, CLASSES, "three", "random")
    for net, is_random in ((trained, False), (untrained, True)):
        result = tvc.survey(net, folder, workers=0, k=2)
        assert ("the weights are random" in str(result)) == is_random
        assert any("the weights are random" in fact for fact in facts(result)) == is_random


def test_a_folder_in_parts_says_how_its_classes_are_taken(tmp_path: Path) -> None:
    for part in ("train", "test"):
        photos(tmp_path / "photos" / part, 3)
    with pytest.raises(
        TargetError, match=r"no class 'test'; .*, and truth='folders' takes the innermost folder of each$"
    ):
        tvc.survey(network(), tmp_path / "photos", workers=0)
    result = tvc.survey(network(), tmp_path / "photos", truth="folders", workers=0, k=2)
    assert result.true is not None
    assert result.true.tolist() == [0, 1, 2, 0, 1, 2]


def test_one_class_alone(tmp_path: Path) -> None:
    result = tvc.survey(network(), photos(tmp_path / "photos", 9, ("stripes",)), workers=0)
    own = next(one for one in result.classes if one.index == 2)
    assert own.count == 9
    assert all(math.isnan(share) for share in own.others.values())


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("disk", "stripes"), "three has no class 'disk'; did you mean 'disc'.*folders of the photos; truth='none'"),
        (("disk", "stripe", "7"), "three lacks 3 labels: no class 7: its classes are 0 to 2; no class 'disk'.*stripes"),
    ],
)
def test_labels_that_the_network_does_not_have_are_all_listed(
    folders: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=words) as error:
        tvc.survey(network(), photos(tmp_path / "photos", 6, folders), workers=0)
    assert "\n" not in str(error.value)


class _NaNOfLargeInputs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 50, torch.nan, x)


def test_the_photo_that_a_network_cannot_take_is_named_and_the_folder_is_free(tmp_path: Path) -> None:
    """A label that the network does not have, in the second batch."""
    net, x = network().model, torch.rand(5, 3, 32, 32)
    options: dict[str, Any] = {"batch_size": 2, "k": 2, "out": tmp_path / "out"}
    with pytest.raises(TargetError, match="image 3 has the class 7; the network has 3, 0 to 2"):
        tvc.survey(net, [(one, 7 if place == 3 else 1) for place, one in enumerate(x)], **options)
    assert len(tvc.survey(net, x, **options)) == 5


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("wrong", [(0,), (3,), (2, 3)])
def test_photos_that_have_or_give_nan_are_left_out_and_the_others_stay_as_they_are(
    wrong: tuple[int, ...], labelled: bool
) -> None:
    net, x = nn.Sequential(_NaNOfLargeInputs(), network().model), torch.rand(5, 3, 32, 32)
    items = [(one, place % 3) if labelled else one for place, one in enumerate(x)]
    whole = tvc.survey(net, items, batch_size=2, k=2)
    for changed, words in ((torch.nan, "3,072 values that are NaN or infinite"), (100.0, "the model gives NaN")):
        many = [one * changed if place in wrong else one for place, one in enumerate(x)]
        items = [(one, place % 3) if labelled else one for place, one in enumerate(many)]
        with pytest.warns(SkippedWarning, match=f"{len(wrong)} of 5 photos could not be used"):
            result = tvc.survey(net, items, batch_size=2, k=2)
        assert list(result.skipped) == [f"image {place}" for place in wrong]
        assert all(words in reason for reason in result.skipped.values())
        kept = [place for place in range(5) if place not in wrong]
        assert result.names == tuple(f"image {place}" for place in kept)
        np.testing.assert_allclose(result.confidence, whole.confidence[kept], rtol=1e-5)


def test_a_network_that_gives_nan_for_every_photo_is_an_error() -> None:
    net = nn.Sequential(_NaNOfLargeInputs(), network().model)
    with pytest.raises(NotFiniteError, match="the model gives NaN"):
        tvc.survey(net, list(100 * torch.ones(12, 3, 32, 32)), k=2)


def test_photos_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 7)
    whole = tvc.survey(net, folder, workers=0)
    data = (folder / "disc" / "000.png").read_bytes()
    (folder / "disc" / "broken.png").write_bytes(data[: len(data) // 2])
    (folder / "disc" / "empty.png").write_bytes(b"")
    with pytest.warns(SkippedWarning, match="2 of 9 photos could not be used"):
        result = tvc.survey(net, folder, workers=0, batch_size=2)
    assert sorted(result.skipped) == ["disc/broken.png", "disc/empty.png"]
    assert all(Path(name).name in reason for name, reason in result.skipped.items())
    same(whole, result)
    assert "7 photos, 2 left out" in repr(result)


def test_a_photo_that_is_gone_when_it_is_shown_is_named(tmp_path: Path) -> None:
    class Lost(tvc.PhotoFolder):
        """A folder of which one photo can be read once."""

        reads = 0

        def stored(self, index: int) -> Any:
            self.reads += index == 3
            if self.reads > 1 and index == 3:
                raise ImageError(f"{self.names[3]}: the disk is gone")
            return super().stored(index)

    folder = Lost(photos(tmp_path / "photos", 5))
    words = r"a photo that was read before cannot be read again: .*\.png.*the disk is gone"
    with pytest.raises(ImageError, match=words):
        tvc.survey(network(), folder, batch_size=2, workers=0, k=5)


def test_folders_without_photos_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="there are no photos in"):
        tvc.survey(network(), tmp_path / "empty")
    with pytest.raises(ImageError, match="no such folder"):
        tvc.survey(network(), tmp_path / "nowhere")
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of 1 photo can be used; the first: .*a\.png"):
        tvc.survey(network(), tmp_path / "empty")


@pytest.mark.parametrize("method", ["competitive_cam", "eigen_cam", "saliency", "cam", "layer_cam"])
def test_other_methods_give_their_own_maps(method: str, tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 5)
    result = tvc.survey(net, folder, method=method, workers=0, k=2)
    for shown in result.shown:
        explain = getattr(tvc, "class_activation_map" if method == "cam" else method)
        assert result.true is not None
        assert shown.true_heatmap is not None
        values = explain(net, str(folder / shown.name), target=int(result.true[shown.index])).values[0]
        np.testing.assert_allclose(shown.true_heatmap, values, rtol=1e-3, atol=1e-4)
    assert result.settings.method == method


def test_evidence_on_objects_is_that_of_the_metric(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 6, ())
    (tmp_path / "masks").mkdir()
    for name in ("000.png", "001.png", "004.png"):
        size = Image.open(folder / name).size
        mask = np.zeros(size[::-1], np.uint8)
        mask[size[1] // 3 : size[1] // 3 * 2, size[0] // 4 : size[0] // 2] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    truth = [0, 1, 2, 0, 1, 2]
    result = tvc.survey(net, folder, truth=truth, masks=tmp_path / "masks", workers=0)
    measured = tvc.metrics.energy_in_mask(net, folder, "grad_cam", tmp_path / "masks", torch.tensor(truth))
    assert result.inside is not None
    np.testing.assert_allclose(result.inside, measured.values, rtol=1e-4, equal_nan=True)
    assert np.isfinite(result.inside).sum() >= 2
    known = result.inside[np.isfinite(result.inside)]
    said = f"{known.mean():.0%} of the evidence lies on the object, as a mean over {len(known)} of 6 photos; the others"
    assert said in str(result)
    for other in (tmp_path / "none", tmp_path / "blank"):
        other.mkdir()
        Image.new("L", (80, 60)).save(other / ("999.png" if other.name == "none" else "000.png"))
        with pytest.raises(InputError, match="none of"):
            tvc.survey(net, folder, truth=truth, masks=other, workers=0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "grad_cma"}, InputError, "did you mean 'grad_cam'"),
        ({"k": 0}, InputError, "k is a whole number of at least 1"),
        ({"layer": "3.x"}, LayerError, "no layer '3.x'"),
        ({"method": "saliency", "layer": "3"}, InputError, "saliency looks at no layer"),
        ({"mask_values": 1}, InputError, "no masks are given"),
        ({"truth": ["disc"]}, InputError, "there are 4 photos, and truth has 1 class"),
        ({"truth": "no.csv"}, InputError, r"cannot read the classes in no\.csv"),
    ],
)
def test_wrong_options_are_one_line(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as caught:
        tvc.survey(network(), photos(tmp_path / "photos", 4), workers=0, **options)
    assert "\n" not in str(caught.value)


def test_a_network_of_one_output_needs_the_names_of_both_classes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    images = torch.rand(4, 3, 16, 16)
    with pytest.raises(ModelError, match="the names of both classes"):
        tvc.survey(model, images)
    net = tvc.Network(model, tvc.Preprocess((16, 16), "stretch"), ("off", "on"))
    result = tvc.survey(net, images, truth=["on", "off", "on", "off"])
    with torch.no_grad():
        on = model(images)[:, 0].sigmoid().numpy()
    assert result.true_probability is not None
    np.testing.assert_allclose(result.true_probability, [on[0], 1 - on[1], on[2], 1 - on[3]], rtol=1e-5)


def test_maps_without_evidence_are_not_measured() -> None:
    model = network().model
    nn.init.constant_(model[-1].weight, -1.0)  # type: ignore[index]
    result = tvc.survey(model, torch.rand(10, 3, 32, 32), truth=[0] * 10)
    assert np.isnan(result.border).all()
    assert math.isnan(result.classes[0].border)
    assert result.classes[0].heatmap.sum() == 0
    assert result.cautions == ()
