"""What commands write: named after photo, method, layer and class, and never over the results of another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import NET
from torchviz_cnn.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.EmptyMapWarning")


def contents(folder: str) -> dict[Path, bytes]:
    results = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "made.jsonl")
    return {path: path.read_bytes() for path in results}


def test_results_of_another_run_are_not_overwritten(here: Path) -> None:
    """Of another photo by the same name, class, layer, method, score, look or preparation."""
    assert main(["cam", "photo.png", *NET, "--out", "o"]) == 0
    for photo, changed in [
        ("other/photo.png", []),
        ("photo.png", ["--target", "tusker"]),
        ("photo.png", ["--layer", "0"]),
        ("photo.png", ["--method", "cam"]),
        ("photo.png", ["--score", "probability"]),
        ("photo.png", ["--alpha", "0.9"]),
        ("photo.png", ["--mean", "0.1", "0.1", "0.1"]),
    ]:
        before = contents("o")
        assert main(["cam", photo, *NET, *changed, "--out", "o"]) == 0
        after = contents("o")
        assert {path: after[path] for path in before} == before
        assert len(after) == len(before) + 4


def test_the_same_run_overwrites_its_own_files(here: Path) -> None:
    photos = ["photo.png", "other/photo.png"]
    for arguments in (photos, photos, [*photos, "--batch-size", "2"]):
        assert main(["cam", *arguments, *NET, "--target", "2", "--out", "o"]) == 0
        assert len(contents("o")) == 7


def test_names_carry_photo_method_layer_and_class(here: Path) -> None:
    asked = ["--method", "guided-grad-cam", "--layer", "3", "--target", "African elephant"]
    assert main(["saliency", "photo.png", *NET, *asked, "--out", "o"]) == 0
    assert Path("o/photo_guided-grad-cam_3_African_elephant_overlay.png").is_file()
    assert Path("o/photo_guided-grad-cam_3_African_elephant.npz").is_file()


@pytest.mark.parametrize(
    ("command", "changed"),
    [("deconvnet", ["--layer", "3"]), ("activations", ["--layer", "3"]), ("occlusion", ["--stride", "8"])],
)
def test_other_commands_keep_what_they_wrote_too(here: Path, command: str, changed: list[str]) -> None:
    patch = ["--patch", "16"] if command == "occlusion" else []
    assert main([command, "photo.png", *NET, *patch, "--out", "o"]) == 0
    first = contents("o")
    assert main([command, "photo.png", *NET, *patch, *changed, "--out", "o"]) == 0
    both = contents("o")
    assert len(both) > len(first)
    assert {path: both[path] for path in first} == first


@pytest.mark.parametrize("command", ["cam", "activations"])
@pytest.mark.parametrize("out", ["other", "other/out"])
def test_results_are_no_photos_of_a_folder(here: Path, command: str, out: str) -> None:
    assert main([command, "other", *NET, "--out", out]) == 0
    first = contents("other")
    assert main([command, "other", *NET, "--out", out]) == 0
    assert contents("other").keys() == first.keys()
    Path("other/photo.png").unlink()
    assert main([command, "other", *NET, "--out", out]) == 2


def test_files_of_others_are_left_alone(here: Path) -> None:
    """A picture by the same name, and a note that is none, in any shape."""
    Path("o").mkdir()
    Path("o/photo_grad-cam_overlay.png").write_bytes(b"mine")
    Path("o/made.jsonl").write_bytes(b'[1]\n{"a": 1}\n\xff{\nnull\n' + b"[" * 100_000 + b"\n")
    for _ in range(2):
        assert main(["cam", "photo.png", *NET, "--out", "o"]) == 0
    assert Path("o/photo_grad-cam_overlay.png").read_bytes() == b"mine"
    assert len(contents("o")) == 5
    assert Path("o/photo_grad-cam-2_overlay.png").is_file()


def test_a_folder_that_cannot_be_written_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("o/made.jsonl").mkdir(parents=True)
    assert main(["cam", "photo.png", *NET, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"torchviz-cnn: error: cannot write {Path('o/made.jsonl')}")
    assert error.count("\n") == 1


def test_long_names_of_photo_and_class_stay_short_enough_for_a_file(here: Path) -> None:
    Path("photo.png").rename("p" * 240 + ".png")
    Path("labels.txt").write_text("\n".join("c" * 300 + end for end in "abd"))
    assert main(["cam", "p" * 240 + ".png", *NET, "--target", "0", "1", "--out", "o"]) == 0
    assert len(contents("o")) == 7
