"""Results on disk: a run that ends at any moment is gone on with, to the same answer; what is another's is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import torchviz_cnn as tvc
from tests import networks
from torchviz_cnn.cli.main import main
from torchviz_cnn.core.errors import InputError, OutputError, SkippedWarning

ROOT = Path(__file__).parents[2]
LAYERS = ["features.3", "features.8"]


class Stop(Exception):
    """Ends a run in the middle."""


class StopsAt:
    """Images that can be read up to one, at which the run ends as if it were killed."""

    def __init__(self, images: Tensor, last: int | None = None) -> None:
        self.images, self.last, self.read = images, last, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        if self.last is not None and self.read > self.last:
            raise KeyboardInterrupt
        return self.images[index], index % 3


def same_files(one: Path, other: Path) -> bool:
    first, second = load_file(one / "results.safetensors"), load_file(other / "results.safetensors")
    equal = {
        key: torch.equal(first[key].nan_to_num(-1e9), second[key].nan_to_num(-1e9))
        if first[key].is_floating_point()
        else torch.equal(first[key], second[key])
        for key in first.keys() & second.keys()
    }
    return first.keys() == second.keys() and all(equal.values())


@pytest.mark.parametrize(
    ("reads", "exact"), [(19, False), (25, False), (31, False), (40, True), (49, False), (52, True)]
)
def test_a_run_that_was_interrupted_ends_with_the_identical_result(reads: int, exact: bool, tmp_path: Path) -> None:
    """In the pass over the 33 images or, in the last case, as candidates are computed again."""
    model, images = networks.vgg_like(), networks.images(33)
    how: dict[str, Any] = {"batch_size": 4, "save_every": 2, "exact": exact}
    tvc.top_activations(model, StopsAt(images), LAYERS, 4, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, StopsAt(images, reads), LAYERS, 4, out=tmp_path / "part", **how)
    progress = json.loads((tmp_path / "part" / "manifest.json").read_text())["progress"]
    done = progress.get("images", 0)
    assert done % 8 == 0 or done == 33
    assert not progress.get("finished")
    rest = StopsAt(images)
    tvc.top_activations(model, rest, LAYERS, 4, out=tmp_path / "part", **how)
    assert same_files(tmp_path / "whole", tmp_path / "part")
    names = [".lock", "manifest.json", "results.safetensors", "state.safetensors"]
    assert sorted(os.listdir(tmp_path / "part")) == names
    # A run can go on with batches of another size: equal images and places, values but for rounding.
    shutil.copytree(tmp_path / "part", tmp_path / "other")
    (tmp_path / "other" / "results.safetensors").unlink()
    state = tmp_path / "other" / "state.safetensors"
    assert state.exists()
    again = tvc.top_activations(model, StopsAt(images), LAYERS, 4, out=tmp_path / "other", **{**how, "batch_size": 7})
    assert torch.equal(again.images["features.8"], tvc.TopActivations.load(tmp_path / "whole").images["features.8"])


def test_a_finished_run_is_read_not_repeated(tmp_path: Path) -> None:
    model, images = networks.vgg_like(), StopsAt(networks.images(20))
    first = tvc.top_activations(model, images, LAYERS, 4, out=tmp_path / "r")
    read = images.read
    second = tvc.top_activations(model, images, LAYERS, 4, out=tmp_path / "r", batch_size=3)
    assert images.read <= read + 20  # the first image, and those that tell the dataset from others
    for layer in LAYERS:
        assert torch.equal(first.values[layer], second.values[layer])
        assert torch.equal(first.positions[layer], second.positions[layer])
        selectivity = second.statistics[layer].selectivity
        assert selectivity is not None
        assert torch.equal(first.statistics[layer].mean, second.statistics[layer].mean)
    assert second.fields == first.fields
    assert second.page("features.8", [0, 1]).size == first.page("features.8", [0, 1]).size


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "other weights"}, "weights"),
        ({"dataset": "other images"}, "dataset"),
        ({"dataset": "more images"}, "images"),
        ({"layers": ["features.8"]}, "layers"),
        ({"k": 5}, "k"),
        ({"exact": True}, "exact"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_the_folder_of_another_run_is_refused(
    change: dict[str, Any], field: str, finished: bool, tmp_path: Path
) -> None:
    images = networks.images(12)
    given: dict[str, Any] = {"model": networks.vgg_like(), "dataset": images, "layers": LAYERS, "k": 4, "out": tmp_path}
    if finished:
        tvc.top_activations(**given)
    else:
        with pytest.raises(KeyboardInterrupt):
            tvc.top_activations(**{**given, "dataset": StopsAt(images, 14)}, batch_size=1)
        given["dataset"] = StopsAt(images)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {**given, **change}
    if change.get("model"):
        changed["model"] = networks.vgg_like()
        with torch.no_grad():
            changed["model"].features[0].weight.mul_(1.001)
    if change.get("dataset"):
        changed["dataset"] = StopsAt(
            networks.images(12, seed=5) if "other" in change["dataset"] else networks.images(13)
        )
    with pytest.raises(OutputError, match=f"its {field} is") as caught:
        tvc.top_activations(**changed)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_with_other_things_and_no_resuming(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        tvc.top_activations(networks.vgg_like(), networks.images(3), LAYERS, out=tmp_path)
    tvc.top_activations(networks.vgg_like(), networks.images(3), LAYERS, out=tmp_path / "r")
    with pytest.raises(OutputError, match="already holds these results"):
        tvc.top_activations(networks.vgg_like(), networks.images(3), LAYERS, out=tmp_path / "r", resume=False)


def test_broken_and_unfinished_folders_are_named(tmp_path: Path) -> None:
    model, images = networks.vgg_like(), networks.images(12)
    with pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, StopsAt(images, 20), LAYERS, out=tmp_path / "r", batch_size=2, save_every=1)
    with pytest.raises(OutputError, match=r"is not finished, with \d+ images done"):
        tvc.TopActivations.load(tmp_path / "r")
    state = tmp_path / "r" / "state.safetensors"
    whole = state.read_bytes()
    for broken in (whole[:100], whole.replace(b"done", b"dome"), b""):
        state.write_bytes(broken)
        with pytest.raises(OutputError, match=r"state\.safetensors is broken"):
            tvc.top_activations(model, StopsAt(images), LAYERS, out=tmp_path / "r")
    state.write_bytes(whole)
    tvc.top_activations(model, StopsAt(images), LAYERS, out=tmp_path / "r")
    results = tmp_path / "r" / "results.safetensors"
    results.write_bytes(results.read_bytes().replace(b"skipped", b"skiped!"))
    with pytest.raises(OutputError, match=r"results\.safetensors is broken"):
        tvc.TopActivations.load(tmp_path / "r")


def photos(folder: Path, count: int = 12, broken: int | None = None) -> Path:
    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cat" if i % 2 else "dog") / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((80, 60)).save(path, quality=95)
        if i == broken:
            path.write_bytes(path.read_bytes()[:300])
    return folder


def test_results_do_not_go_among_the_photos(tmp_path: Path) -> None:
    """Where the pages of one run would be photos of the next."""
    folder, model = photos(tmp_path / "photos"), networks.vgg_like()
    for out in (folder, folder / "top"):
        with pytest.raises(InputError, match=r"lies among the photos in .*: results go to a folder beside them"):
            tvc.top_activations(model, folder, LAYERS, preprocess=tvc.Preprocess((32, 32)), out=out)
    assert not (folder / "top").exists()


def test_what_was_saved_comes_back_and_finds_its_photos(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", broken=4)
    model = networks.vgg_like()
    how = tvc.Preprocess((32, 32), resize=36)
    with pytest.warns(SkippedWarning):
        top = tvc.top_activations(model, folder, LAYERS, 4, preprocess=how, out=tmp_path / "out")
    top.save(tmp_path / "copy")
    for place in ("out", "copy"):
        again = tvc.TopActivations.load(tmp_path / place, model=model if place == "out" else tvc.Network(model, how))
        assert again.model is model
        assert again.layers == top.layers
        assert again.skipped == top.skipped
        assert again.count == 12
        assert again.fields == top.fields
        for layer in LAYERS:
            assert torch.equal(again.images[layer], top.images[layer])
        patches = zip(again.patches("features.3", 0), top.patches("features.3", 0), strict=True)
        assert all(one.tobytes() == other.tobytes() for one, other in patches)
        assert again.page("features.3", [0, 1]).tobytes() == top.page("features.3", [0, 1]).tobytes()
    assert top.names == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    folder.rename(tmp_path / "elsewhere")
    lost = tvc.TopActivations.load(tmp_path / "out")
    assert lost.source is None
    for photos_needed in (lambda: lost.patches("features.3", 0), lambda: lost.names):
        with pytest.raises(InputError, match="pass dataset="):
            photos_needed()
    with pytest.raises(InputError, match="projections are computed by the model"):
        lost.projections("features.3", 0)
    moved = tvc.TopActivations.load(tmp_path / "out", dataset=tmp_path / "elsewhere")
    assert len(moved.patches("features.3", 0)) == 4
    with pytest.raises(InputError, match="has 3 images"):
        tvc.TopActivations.load(tmp_path / "out", dataset=networks.images(3))


def test_photos_that_are_not_those_of_the_result_are_not_drawn(tmp_path: Path) -> None:
    """As many, but in another order; or none any more."""
    folder = photos(tmp_path / "photos")
    model, how = networks.vgg_like(), tvc.Preprocess((32, 32), resize=36)
    tvc.top_activations(model, folder, LAYERS, 2, preprocess=how, out=tmp_path / "out")
    assert tvc.TopActivations.load(tmp_path / "out").source is not None
    (folder / "cat" / "001.jpg").rename(folder / "dog" / "001.jpg")
    other = tvc.TopActivations.load(tmp_path / "out")
    with pytest.raises(InputError, match="as for this result: pass dataset="):
        other.patches("features.3", 0)
    shutil.rmtree(folder)
    folder.mkdir()
    assert tvc.TopActivations.load(tmp_path / "out").source is None


def command(folder: Path, out: Path, *more: str) -> list[str]:
    network = ["--model", "cats_and_dogs", "--layers", "conv1", "relu3"]
    return ["top", str(folder), *network, "--k", "4", "--workers", "0", "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::torchviz_cnn.core.errors.SkippedWarning")
def test_the_command_writes_pages_and_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "photos", broken=4)
    assert main(command(folder, tmp_path / "out", "--pages", "3", "--batch-size", "5")) == 1
    said = capsys.readouterr()
    assert "12 photos, 1 of them not readable" in said.out
    assert "004.jpg" in said.out
    assert "selectivity" in said.out
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("[!.]*.*"))
    assert made == [
        "manifest.json",
        "pages/00_conv1.png",
        "pages/01_relu3.png",
        "pages/channels.json",
        "results.safetensors",
        "state.safetensors",
        "statistics.png",
    ]
    assert main(command(folder, tmp_path / "out", "--pages", "0", "--resume")) == 1
    assert main(command(folder, tmp_path / "out", "--no-resume")) == 2
    assert main(command(folder, tmp_path / "out", "--k", "5")) == 2
    said = capsys.readouterr()
    assert said.err.count("error:") == 2
    assert "its k is 4, this one's is 5" in said.err
    assert main(["top", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "is not a folder of photos" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_identical_result(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 120)
    arguments = ["--batch-size", "2", "--save-every", "2", "--pages", "0"]

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "torchviz_cnn", *command(folder, tmp_path / out, *arguments)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def done(out: str) -> int:
        """How many images the manifest says are done; it is written whole, or is not there yet."""
        manifest = tmp_path / out / "manifest.json"
        return json.loads(manifest.read_text())["progress"].get("images", 0) if manifest.exists() else 0

    assert start("whole").wait() == 0
    for images in (4, 80):
        part = f"part{images}"
        run = start(part)
        while done(part) < images and run.poll() is None:
            time.sleep(0.005)
        run.kill()
        run.wait()
        assert start(part).wait() == 0
        assert same_files(tmp_path / "whole", tmp_path / part)


@pytest.mark.parametrize("name", ["values", "images", "positions", "statistics/mean"])
@pytest.mark.parametrize("file", ["results", "state"])
def test_tensors_of_another_shape_are_told_at_load(file: str, name: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, layer = networks.vgg_like(), LAYERS[0]
    tvc.top_activations(model, networks.images(6), [layer], 2, out=tmp_path / "r")
    path = tmp_path / "r" / f"{file}.safetensors"
    with safe_open(path, "pt") as opened:
        metadata, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    key = f"{layer}/{name}" if f"{layer}/{name}" in tensors else f"{layer}/sums/totals"
    for wrong in (tensors[key].flatten()[:-1], tensors[key][None], tensors[key].flatten()[0]):
        save_file({**tensors, key: wrong.contiguous()}, path, metadata)
        if file == "state":
            (tmp_path / "r" / "results.safetensors").unlink(missing_ok=True)
        with pytest.raises(OutputError, match=f"{file}.safetensors is broken"):
            tvc.top_activations(model, networks.images(6), [layer], 2, out=tmp_path / "r")


def test_results_of_other_images_are_told_at_load(tmp_path: Path) -> None:
    model = networks.vgg_like()
    top = tvc.top_activations(model, networks.images(6), [LAYERS[0]], 2)
    top.images[LAYERS[0]][0, 0] = 6
    top.save(tmp_path / "r")
    with pytest.raises(OutputError, match="not among the 6"):
        tvc.TopActivations.load(tmp_path / "r")


def test_a_folder_deleted_meanwhile_is_one_that_the_same_run_goes_on_with(tmp_path: Path) -> None:
    model, images = networks.vgg_like(), networks.images(12)

    class Deletes(StopsAt):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 6 and self.read > 15:  # in the pass, not before it
                shutil.rmtree(tmp_path / "r")
            return super().__getitem__(index)

    how: Any = {"out": tmp_path / "r", "batch_size": 2, "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, Deletes(images, 22), LAYERS, 2, **how)
    assert (tmp_path / "r" / "manifest.json").exists()
    top = tvc.top_activations(model, StopsAt(images), LAYERS, 2, **how)
    assert torch.equal(top.images[LAYERS[0]], tvc.top_activations(model, images, LAYERS, 2).images[LAYERS[0]])
