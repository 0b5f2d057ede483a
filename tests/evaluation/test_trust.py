"""The comparison: its figures are those of the metrics, on the same photos, and nothing is lost where it stops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.conftest import unchanged
from tests.networks import images, seeded, vgg_like
from torchviz_cnn import metrics
from torchviz_cnn.attribution.metrics.mosaics import Mosaics
from torchviz_cnn.evaluation.measuring import spread
from torchviz_cnn.evaluation.written.figures import figures_of

METHODS = ["layer_cam", "saliency"]


def masks(count: int = 6) -> Tensor:
    marked = torch.zeros(count, 32, 32, dtype=torch.bool)
    marked[:, 4:20, 8:28] = True
    return marked


def trusted(x: Any = None, **options: Any) -> tvc.Trust:
    chosen: dict[str, Any] = {"methods": METHODS, "steps": 4, "mosaics": 0, **options}
    return tvc.trust(vgg_like(), images(6) if x is None else x, **chosen)


def figures(result: tvc.Trust) -> dict[tuple[str, str], Tensor]:
    """All values but the times."""
    return {key: one.values for key, one in result.measured.items() if key[1] != "seconds"}


def assert_same(a: tvc.Trust, b: tvc.Trust) -> None:
    first, second = figures(a), figures(b)
    assert first.keys() == second.keys()
    for key, values in first.items():
        torch.testing.assert_close(values, second[key], rtol=1e-5, atol=5e-6, equal_nan=True, msg=str(key))


class Corner(nn.Module):
    """A network that looks for a chessboard in the upper left corner alone; photos have one everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.board = nn.Buffer(BOARD[None, None])
        self.mix = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -1]])[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.mix(x * self.board)[:, :, :8, :8]).mean((2, 3))


class TwoOutputs(nn.Module):
    """A network beside another one with its classes in the other order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        own = self.network(x)
        return {"other": own.flip(1), "own": own}


def in_the_corner(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
    maps = torch.zeros(len(x), *x.shape[2:])
    maps[:, :8, :8] = 1
    return maps


def of_the_photo(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
    """What guided backpropagation is near to: edges, whatever the weights."""
    return (x[..., 1:] - x[..., :-1]).abs().sum(1)


BOARD = 1.0 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2)
BOARDS = BOARD + 0.3 * images(12)


# --- figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [pytest.param(None, marks=pytest.mark.slow), [2, 0, 1, 4, 2, 3]])
def test_figures_are_those_of_the_metrics(truth: list[int] | None) -> None:
    net, x, marked = vgg_like(), images(6), masks()
    size = 4  # the same for both: a map that is rounded otherwise may rank two pixels otherwise
    result = trusted(masks=marked, truth=truth, batch_size=size)
    target = None if truth is None else torch.tensor(truth)
    expected: dict[str, Callable[[str], tvc.Measurement]] = {
        "insertion": lambda method: metrics.insertion(net, x, method, target, steps=4, batch_size=size),
        "deletion": lambda method: metrics.deletion(net, x, method, target, steps=4, batch_size=size),
        "average_drop": lambda method: metrics.average_drop(net, x, method, target, batch_size=size),
        "road": lambda method: metrics.road(net, x, method, target, batch_size=size),
        "pointing_game": lambda method: metrics.pointing_game(net, x, method, marked, target, batch_size=size),
        "energy_in_mask": lambda method: metrics.energy_in_mask(net, x, method, marked, target, batch_size=size),
    }
    for method in METHODS:
        for column, measure in expected.items():
            one = measure(method)
            torch.testing.assert_close(result[method, column].values, one.values, rtol=1e-5, atol=1e-6, equal_nan=True)
            assert result[method, column].mean == pytest.approx(one.mean, rel=1e-5, nan_ok=True)
        random = metrics.randomization(net, x, method, target, batch_size=size)
        similar = {"randomization": random.values, "structure": random.details["structure"].nanmean(1)}
        for column, values in similar.items():  # of ranks: rounding, which differs by processor, may exchange some
            torch.testing.assert_close(result[method, column].values, values, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_own_cells_are_those_of_the_grid_pointing_game() -> None:
    colours = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        colours.weight.copy_(20 * torch.eye(4)[..., None, None])
    model = nn.Sequential(colours, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.eye(4)[..., None, None].expand(4, 4, 8, 8).contiguous()
    result = tvc.trust(model, x, methods=["input_x_gradient", {"of x": of_the_photo}], steps=2, mosaics=40)
    expected = metrics.grid_pointing_game(model, x, "input_x_gradient", truth="predicted", count=24)
    assert result["input_x_gradient", "grid_pointing_game"].mean == expected.mean == 1
    assert len(result["input_x_gradient", "grid_pointing_game"].values) == 24  # as many as there are
    assert result["centre", "grid_pointing_game"].mean == pytest.approx(0.25)
    assert any("24 mosaics" in note for note in result.notes)
    wrong = tvc.trust(model, x[:3], methods="saliency", steps=2)
    assert "recognises 3" in wrong["saliency", "grid_pointing_game"].reasons[0]
    assert wrong["saliency", "grid_pointing_game"].reasons[0].endswith("; give more photos")


def test_an_image_gets_alone_what_it_gets_among_others() -> None:
    assert_same(trusted(masks=masks(), batch_size=8), trusted(masks=masks(), batch_size=1))


def test_the_photos_that_are_changed_are_spread_over_the_list() -> None:
    result = trusted(perturbed=3)
    chosen = spread(6)[:3]
    for row in result.rows:
        measured = result[row.key, "insertion"].values.isfinite().nonzero()[:, 0].tolist()
        assert sorted(measured) in ([], sorted(chosen))
    assert (
        "3 photos, spread evenly over the list"
        in result["saliency", "road"].reasons[(set(range(6)) - set(chosen)).pop()]
    )
    assert result["saliency", "seconds"].count == 6
    assert result["saliency", "structure"].count == 3
    for count in (10, 100, 300):
        gaps = np.diff([-1, *sorted(spread(count)[: count // 5]), count])
        assert gaps.max() <= 13


def test_a_method_that_finds_what_decides_is_first_and_beats_the_centre() -> None:
    own = {"right": in_the_corner, "photo": of_the_photo}
    result = tvc.trust(Corner().eval(), BOARDS, methods=[own, "input_x_gradient"], truth=[0] * 12, steps=8, mosaics=0)
    columns = {column.name: column for column in result.columns}
    for name in ("insertion", "deletion", "road"):
        assert result.ranks[name]["right"] <= 1.5
        assert result.compared(result.row("right"), result.row("centre"), columns[name]) == 1
        assert result.compared(result.row("random"), result.row("right"), columns[name]) == -1
    assert result["photo", "structure"].mean == pytest.approx(1)
    assert "keep 1.00 of their structure while all weights become random: it shows edges" in result.sentences["photo"]
    assert "a blob in the middle" not in result.sentences["right"]
    assert "among the best in" in result.sentences["right"] or "best in" in result.sentences["right"]
    assert "too few to say which metrics agree" in result.verdict[0]


def test_what_could_not_be_measured_is_no_zero() -> None:
    def broken(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
        maps = x.sum(1)
        maps[x[:, 0, 0, 0] == images(6)[2, 0, 0, 0]] = math.nan
        return maps

    result = trusted(methods=["cam", "saliency", {"broken": broken}])
    assert result["broken", "deletion"].reasons == {2: "its map has NaN or infinity in it"}
    assert result["broken", "deletion"].count == 5
    assert math.isnan(result["cam", "deletion"].mean)
    assert "global average pooling" in result["cam", "seconds"].reasons[0]
    assert result["saliency", "pointing_game"].reasons[0] == "no masks were given"
    assert [column.name for column in result.shown] == [
        "seconds", "insertion", "deletion", "average_drop", "road", "structure", "randomization",
    ]  # fmt: skip
    assert "it does not explain this network" in result.sentences["cam"]


@pytest.mark.parametrize("number", [0, 3])
def test_one_map_that_is_not_finite_refuses_no_other(number: int) -> None:
    """Also where it is of the first photo, on which methods are tried."""

    def broken(model: nn.Module, x: Tensor, target: object = None) -> Tensor:
        return x.abs().sum(1).masked_fill((x == images(6)[number]).flatten(1).all(1)[:, None, None], math.nan)

    result = trusted(methods=["saliency", {"broken": broken}])
    assert result.row("broken").refused is None
    for column in ("deletion", "structure", "seconds"):
        reasons = result["broken", column].reasons
        assert reasons[number] == "its map has NaN or infinity in it" or number not in range(6)[: len(reasons)]
        assert result["broken", column].count >= 3
    assert result["broken", "deletion"].count == 5


def test_what_is_explained_may_be_a_part_of_the_output(tmp_path: Path) -> None:
    model, x = vgg_like(), images(3)
    options: dict[str, Any] = {"methods": ["grad_cam", "saliency"], "steps": 2, "mosaics": 0}
    several = TwoOutputs(model)
    result = tvc.trust(several, x, output="own", out=tmp_path / "run", **options)
    alone = tvc.trust(model, x, **options)
    for column in ("insertion", "deletion", "average_drop", "road"):
        for method in options["methods"]:
            torch.testing.assert_close(result[method, column].values, alone[method, column].values, equal_nan=True)
    kept = metrics.randomization(several, x, "saliency", output="own")
    torch.testing.assert_close(result["saliency", "randomization"].values, kept.values)
    with pytest.raises(tvc.OutputError, match="its output is \"'own'\", this one's is \"'other'\""):
        tvc.trust(several, x, output="other", out=tmp_path / "run", **options)


def test_a_network_and_the_process_are_as_before() -> None:
    model, x = vgg_like(), images(3)
    model.train()
    with unchanged(model, x):
        tvc.trust(model, x, methods=METHODS, steps=2)


# --- wrong options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": "grad_can"}, "did you mean 'grad_cam'"),
        ({"budget": -1}, "budget is a finite number of at least 0"),
        ({"perturbed": 0}, "perturbed is a whole number of at least 1"),
        ({"steps": 0}, "steps"),
        ({"mosaics": -1}, "mosaics is a whole number of at least 0"),
        ({"tolerance": "x"}, "tolerance is a finite number"),
        ({"truth": [1, 2]}, "there are 6 photos, and truth has 2 classes"),
        ({"truth": [1] * 5 + [9]}, "target 9 is out of range"),
        ({"masks": masks(4)}, "6"),
        ({"masks": torch.eye(9).expand(6, 9, 9)}, "none of the masks can be used: .* 9 x 9 pixels"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises((tvc.InputError, tvc.TargetError), match=words):
        trusted(**options)


# --- budget, folders, interruptions ----------------------------------------------------------------------------


class Interrupting:
    """A method that is interrupted at its n-th call."""

    __name__ = "interrupting"
    __qualname__ = "interrupting"

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, model: nn.Module, x: Tensor, target: object = None) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return x.abs().sum(1)


SMALL: dict[str, Any] = {"batch_size": 2, "masks": masks(), "perturbed": 4}
"""A run of several parts."""


@pytest.fixture(scope="module")
def whole() -> tvc.Trust:
    """What such a run gives that nothing interrupts."""
    return trusted(methods=["layer_cam", "saliency", {"own": Interrupting(0)}], **SMALL)


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, at: int, whole: tvc.Trust) -> None:
    with pytest.raises(KeyboardInterrupt):
        trusted(methods=["layer_cam", "saliency", {"own": Interrupting(at)}], out=tmp_path / "run", **SMALL)
    done = len(list((tmp_path / "run").glob("*.safetensors")))
    again = Interrupting(0)
    result = trusted(methods=["layer_cam", "saliency", {"own": again}], out=tmp_path / "run", **SMALL)
    assert_same(result, whole)
    assert (tmp_path / "run" / "index.html").is_file()
    calls, again.calls = again.calls, 0
    trusted(methods=["layer_cam", "saliency", {"own": again}], out=tmp_path / "run", **SMALL)
    assert again.calls < calls or done == 0 or at == 8


def test_a_budget_stops_before_the_next_part_and_more_of_it_goes_on(tmp_path: Path) -> None:
    none = trusted(budget=0, out=tmp_path / "run")
    assert none["saliency", "seconds"].reasons[0] == "the budget was spent before"
    assert none.shown == none.columns
    assert none.notes[0] == "0 of 6 photos are measured."
    assert none.verdict == ("2 methods are too few to say which metrics agree.",)
    assert "0 metrics, 0 photos" in repr(none)
    rows = [line for line in none.table().splitlines() if line.startswith("Saliency ")]
    assert sum(line.count("–") for line in rows) == len(none.columns)
    (table,) = re.findall(r"(?:^\|.*\n)+", (tmp_path / "run" / "trust.md").read_text(), re.MULTILINE)
    assert {line.count("|") for line in table.splitlines()} == {len(none.columns) + 2}
    assert "all of insertion; all of deletion;" in none.table().replace("\n  ", " ")
    page = (tmp_path / "run" / "index.html").read_text()
    assert page.count(">higher is better<br>0 photos<") + page.count(">lower is better<br>0 photos<") == 9
    several = trusted(budget=0, methods=[*METHODS, "guided", "input_x_gradient"])
    assert several.verdict == ("Too little is measured to say which metrics agree.",)
    assert_same(trusted(out=tmp_path / "run"), trusted())


class Clock:
    """A clock that goes on by itself only where a method says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, seconds: float) -> Callable[..., Tensor]:
        """A method that takes so long for each photo."""

        def method(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            self.now += seconds * len(x)
            maps = x.abs().sum(1)
            return maps if target.ndim == 1 else maps[:, None].expand(-1, target.shape[1], -1, -1)

        return method


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("measuring", "trust"):
        monkeypatch.setattr(f"torchviz_cnn.evaluation.{module}.time.monotonic", made)
    return made


@pytest.mark.parametrize("budget", [20, 40, 110, 400])
def test_a_budget_is_overrun_by_no_more_than_one_photo(clock: Clock, budget: float) -> None:
    result = trusted(images(48), methods={"slow": clock.slow(1)}, budget=budget, perturbed=4, batch_size=16)
    with_random_weights = 7  # the map of the network as it is, and those of six with random weights
    assert clock.now <= budget + with_random_weights
    assert clock.now >= min(0.5 * budget, 48)
    assert result["slow", "seconds"].count > 0


def test_a_run_that_goes_on_knows_how_long_a_photo_takes(clock: Clock, tmp_path: Path) -> None:
    options: dict[str, Any] = {"x": images(24), "methods": {"slow": clock.slow(1)}, "perturbed": 1, "out": tmp_path}
    first = trusted(budget=24, **options)["slow", "seconds"].count
    begun = clock.now
    assert 0 < first < 24
    assert trusted(budget=3, **options)["slow", "seconds"].count == first
    assert clock.now - begun <= 3


def test_photos_of_mosaics_are_looked_for_among_as_many_as_there_is_time_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int | None] = []
    of = Mosaics.of

    def recorded(*args: Any, among: list[int] | None, **options: Any) -> Mosaics:
        looked.append(None if among is None else len(among))
        return of(*args, among=among, **options)

    monkeypatch.setattr(Mosaics, "of", recorded)
    options: dict[str, Any] = {"methods": {"slow": clock.slow(1)}, "mosaics": 4, "perturbed": 1}
    trusted(images(40), budget=60, **options)
    assert looked
    assert all(number is not None and number < 40 for number in looked)
    looked.clear()
    trusted(images(40), **options)
    assert set(looked) == {None}


def test_all_methods_are_measured_on_the_same_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("torchviz_cnn.evaluation.measuring.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("torchviz_cnn.evaluation.trust.time.monotonic", lambda: float(next(clock)))
    result = trusted(budget=8, batch_size=1)
    for column in result.shown:
        counts = {result[row.key, column.name].values.isfinite().sum().item() for row in result.rows if row.reference}
        assert len(counts) == 1
    assert 0 < result["saliency", "insertion"].count < 6
    assert 0 < result["saliency", "seconds"].count <= 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, which nothing may change."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trusted(out=folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ["saliency"]},
        {"seed": 1},
        {"truth": [0] * 6},
        {"masks": masks()},
        {"x": images(6, seed=3)},
        {"steps": 5},
    ],
)
def test_a_folder_of_another_run_is_left_alone(finished: Path, options: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(tvc.OutputError, match="holds results of another run"):
        trusted(out=finished, **options)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_masks_that_cannot_be_used_leave_nothing_behind(tmp_path: Path) -> None:
    for wrong in (torch.eye(9).expand(6, 9, 9), torch.ones(6, 32, 32), torch.arange(1.0, 1025).view(1, 32, 32)):
        with pytest.raises(tvc.InputError, match=r"none of the masks can be used: |nowhere 0"):
            trusted(masks=wrong.expand(6, -1, -1), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert trusted(masks=masks(), out=tmp_path / "run")["saliency", "pointing_game"].count > 0


def test_one_mask_that_is_nowhere_0_is_left_out_with_its_reason() -> None:
    marked = [*masks().float()[:5], torch.arange(1.0, 1025).view(32, 32)]
    result = trusted(masks=marked)
    assert "nowhere 0" in result["saliency", "pointing_game"].reasons[5]
    assert result["centre", "pointing_game"].count == 5
    assert any("is not measured on 1 photo, as image 5: its mask is nowhere 0" in note for note in result.notes)


def test_another_network_is_another_run(tmp_path: Path) -> None:
    tvc.trust(vgg_like(), images(3), methods="saliency", steps=2, out=tmp_path / "run")
    other = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))()
    with pytest.raises(tvc.OutputError, match="its model is 'VGGLike', this one's is 'Sequential'"):
        tvc.trust(other, images(3), methods="saliency", steps=2, out=tmp_path / "run")


# --- photos ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos, one of them broken, with masks for two."""
    folder, marked = tmp_path / "photos", tmp_path / "masks"
    folder.mkdir()
    marked.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, 10:30] = 255
    Image.fromarray(mask).save(marked / "0.png")
    Image.fromarray(mask[:20]).save(marked / "1.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])
    return tmp_path


def network() -> tvc.Network:
    return tvc.Network(vgg_like(), tvc.Preprocess((32, 32), resize=36), ("a", "b", "c", "d", "<i>e</i>"), "<b>vgg</b>")


def test_photos_and_masks_that_cannot_be_used_are_listed(photos: Path) -> None:
    result = tvc.trust(
        network(), photos / "photos", methods=METHODS, masks=photos / "masks", steps=2, out=photos / "run"
    )
    assert list(result.skipped) == [2]
    assert "cannot be read" in result.skipped[2]
    assert result.classes[2] == -1
    measured = result["saliency", "energy_in_mask"]
    assert measured.values.isfinite().tolist() == [True, False, False, False]
    assert "20 pixels" in measured.reasons[1]
    assert "no mask" in measured.reasons[3]
    assert any("3 of 4 photos are measured" in note for note in result.notes)
    assert {example.photo for example in result.examples} <= {"0.png", "1.png", "3.png"}


def test_no_photo_that_can_be_read_is_an_error(photos: Path) -> None:
    for number in (0, 1, 3):
        (photos / "photos" / f"{number}.png").unlink()
    with pytest.raises(tvc.InputError, match=r"no photo could be read: cannot be read: .*2\.png"):
        tvc.trust(network(), photos / "photos", steps=2)


def test_figures_of_one_photo(photos: Path) -> None:
    result = tvc.trust(
        network(), photos / "photos", methods=METHODS, masks=photos / "masks", steps=2, out=photos / "run"
    )
    for source in (result, photos / "run"):
        own = figures_of(source, "elsewhere/0.png", "saliency")
        assert own["deletion"] == pytest.approx(float(result["saliency", "deletion"].values[0]))
        assert own["energy_in_mask"] == pytest.approx(float(result["saliency", "energy_in_mask"].values[0]))
        assert own["randomization"] == pytest.approx(result["saliency", "randomization"].mean)
        index = int(result.classes[0])
        assert figures_of(source, "0.png", "saliency", index) == own
        other = figures_of(source, "0.png", "saliency", (index + 1) % 5)
        assert {name for name, value in other.items() if value is not None} == {"structure", "randomization"}
        assert figures_of(source, "strange.png", "saliency")["deletion"] is None
        assert figures_of(source, "0.png", "layer_cam@features.8") == figures_of(source, "0.png", "layer_cam")
    with pytest.raises(tvc.InputError, match="no method 'salience' here; did you mean 'saliency'"):
        figures_of(result, "0.png", "salience")
    with pytest.raises(tvc.OutputError, match=r"has no trust\.json"):
        figures_of(photos / "photos", "0.png", "saliency")
    (photos / "trust.json").write_text("[]")
    with pytest.raises(tvc.OutputError, match="is not what the trust command writes"):
        figures_of(photos, "0.png", "saliency")


@pytest.mark.slow
def test_grad_cam_beats_random_on_a_trained_network(data: Path) -> None:
    """On photos of animals: the peak is on the animal, and the maps change where the weights are random."""
    net = tvc.load_model("squeezenet1_0", data / "checkpoints" / "squeezenet1_0.pth")
    folder = data / "pets_with_masks"
    chosen = sorted((folder / "images").glob("*.jpg"))[::50]
    result = tvc.trust(
        net,
        chosen,
        methods=["grad_cam", "guided", "guided_grad_cam", "competitive_cam"],
        masks=folder / "trimaps",
        mask_values=1,
        perturbed=4,
        steps=8,
        mosaics=0,
    )
    assert result["grad_cam", "pointing_game"].mean >= 0.8 > result["random", "pointing_game"].mean
    assert result["grad_cam", "insertion"].mean > result["random", "insertion"].mean
    for method in ("grad_cam", "competitive_cam"):
        assert result[method, "structure"].mean < 0.5
        assert "its maps change with the weights" in result.sentences[result.row(method).key]
    for method in ("guided", "guided_grad_cam"):
        assert result[method, "structure"].mean > 0.5
        assert "it shows edges, not evidence" in result.sentences[method]


def test_what_masks_are_missing_is_said() -> None:
    marked = list(masks())
    result = trusted(masks=[marked[0], None, *marked[2:]])
    assert any("is not measured on 1 photo, as image 1:" in note for note in result.notes)
    with pytest.raises(tvc.InputError, match="no masks are given"):
        trusted(mask_values=1)


def test_that_few_photos_tell_nothing_is_said() -> None:
    (note,) = [note for note in trusted(perturbed=3).notes if note.startswith("Fewer than 10")]
    assert "insertion, deletion, average drop, ROAD" in note


def test_what_cannot_be_measured_is_one_line() -> None:
    with pytest.raises(tvc.InputError, match="given several inputs"):
        tvc.trust(vgg_like(), (images(2), images(2)))
    with pytest.raises(tvc.InputError, match=r"a batch \(N, C, H, W\), not \(3, 32, 32\)"):
        tvc.trust(vgg_like(), images(2)[0])
    with pytest.raises(tvc.InputError, match="methods are names"):
        trusted(methods=5)
