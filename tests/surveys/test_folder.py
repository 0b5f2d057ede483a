"""Surveys on disk: a run that ends at any moment is gone on with, to identical files; what is another's is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import torchviz_cnn as tvc
from tests.surveys.generated import CLASSES, network, photos
from tests.surveys.test_survey import same
from torchviz_cnn.core.errors import InputError, OutputError, SkippedWarning
from torchviz_cnn.surveys.result import REGIONS

ROOT = Path(__file__).parents[2]


class StopsAt(tvc.PhotoFolder):
    """Photos of a folder that can be read up to one, at which the run is interrupted."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path)
        self.last, self.read = last, 0

    def stored(self, index: int) -> Any:
        self.read += 1
        if self.read > self.last:
            raise KeyboardInterrupt
        return super().stored(index)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("[!.]*")) if path.is_file()
    }


@pytest.mark.parametrize("reads", [1, 2, 5, 9, 10, 17, 24, 26, 29, 33])
def test_a_run_that_was_interrupted_ends_with_identical_files(reads: int, tmp_path: Path) -> None:
    """In the pass over the 25 photos, as those that are shown are explained again, and as their pictures are drawn."""
    net, folder = network(), photos(tmp_path / "photos", 25)
    how: dict[str, Any] = {"batch_size": 3, "save_every": 2, "workers": 0, "k": 4}
    tvc.survey(net, folder, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        tvc.survey(net, StopsAt(folder, reads), out=tmp_path / "part", **how)
    if reads > 1:
        progress = json.loads((tmp_path / "part" / "manifest.json").read_text())["progress"]
        assert not progress.get("finished")
        assert progress.get("photos", 0) == min((reads - 1) // 3 * 3, 25) or reads > 25
    tvc.survey(net, folder, out=tmp_path / "part", **how)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    again = tvc.survey(net, folder, out=tmp_path / "part", **how)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    same(again, tvc.survey(net, folder, **how))


def test_a_folder_has_all_that_is_measured(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 12)
    result = tvc.survey(net, folder, workers=0, k=2, out=tmp_path / "out")
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(result.names)
    assert result.true is not None
    assert result.loss is not None
    for place, row in enumerate(rows):
        assert row["true"] == CLASSES[result.true[place]]
        assert row["predicted"] == row["class_1"] == CLASSES[result.predicted[place]]
        assert float(row["loss"]) == pytest.approx(result.loss[place], rel=1e-5)
        assert float(row["border"]) == pytest.approx(result.border[place], rel=1e-5)
        assert sum(float(row[f"probability_{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-4)
    with open(tmp_path / "out" / "classes.csv", newline="", encoding="utf-8") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    for one in result.classes:
        assert int(table[one.name]["photos"]) == one.count
        assert float(table[one.name][REGIONS[0].replace(" ", "_")]) == pytest.approx(one.regions[REGIONS[0]], rel=1e-5)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["progress"]["finished"]
    there = set(contents(tmp_path / "out")) - {"manifest.json"}
    assert set(manifest["progress"]["files"]) == there
    for shown in result.shown:
        for what, file_name in shown.files.items():
            nth = ("predicted", "true").index(what)
            classes = [[int(result.predicted[shown.index]), int(result.true[shown.index])]]
            heat = tvc.grad_cam(net, str(folder / shown.name), target=classes)
            own = np.asarray(heat.overlay(nth=nth)).astype(int)
            drawn = np.asarray(Image.open(tmp_path / "out" / file_name).convert("RGB")).astype(int)
            assert np.abs(own - drawn).max() <= 2


def test_pictures_are_called_as_their_photos(tmp_path: Path) -> None:
    """Two folders have photos of one name; two paths that make one name get a number."""
    for name in ("disc/1.png", "stripes/1.png", "stripes_1.png/a.png", "stripes/1.png_a.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (len(name), 90, 200)).save(tmp_path / "photos" / name)
    result = tvc.survey(network(), tmp_path / "photos", truth="none", k=4, workers=0, out=tmp_path / "out")
    files = {shown.name: shown.files["predicted"] for shown in result.shown}
    assert files["disc/1.png"] == "heatmaps/disc_1_predicted.png"
    assert files["stripes/1.png"] == "heatmaps/stripes_1_predicted.png"
    assert len(set(files.values())) == 4
    assert all((tmp_path / "out" / file).is_file() for file in files.values())


@pytest.mark.parametrize("name", ["index.html", "survey.safetensors", "predictions.csv"])
def test_a_file_that_was_deleted_is_made_again(name: str, tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 5)
    tvc.survey(net, folder, workers=0, k=2, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    tvc.survey(net, folder, workers=0, k=2, out=tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_without_its_photos_a_survey_is_read_and_not_saved(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 3)
    tvc.survey(network(), folder, workers=0, k=2, out=tmp_path / "out")
    shutil.rmtree(folder)
    loaded = tvc.Survey.load(tmp_path / "out")
    assert len(loaded) == 3
    with pytest.raises(InputError, match="the photos are needed"):
        loaded.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_loaded_survey_is_what_was_written(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 12)
    (folder / "disc" / "broken.png").write_bytes(b"no picture")
    with pytest.warns(SkippedWarning):
        result = tvc.survey(net, folder, workers=0, k=2)
    result.save(tmp_path / "out")
    loaded = tvc.Survey.load(tmp_path / "out")
    same(result, loaded)
    assert str(loaded) == str(result)
    assert (loaded.settings, loaded.confusions, loaded.skipped) == (result.settings, result.confusions, result.skipped)
    assert loaded.photo(loaded.names[0]).size == result.photo(result.names[0]).size
    with pytest.raises(InputError, match=r"no photo 'disc/00.png' in the survey; did you mean 'disc/00\d.png'"):
        loaded.photo("disc/00.png")
    shutil.rmtree(folder)
    alone = tvc.Survey.load(tmp_path / "out")
    with pytest.raises(InputError, match="the photos are needed"):
        alone.photo(alone.names[0])
    assert "<table>" in loaded._repr_html_()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"k": 5}, "k"),
        ({"method": "layer_cam"}, "method"),
        ({"layer": "1"}, "layer"),
        ({"seed": 4}, "seed"),
        ({"truth": "none"}, "labels"),
    ],
)
def test_the_folder_of_another_run_is_refused(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 6)
    given: dict[str, Any] = {"workers": 0, "k": 2, "out": tmp_path / "out"}
    tvc.survey(net, folder, **given)
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=f"its {field}"):
        tvc.survey(net, folder, **{**given, **change})
    photos(folder, 7)
    with pytest.raises(OutputError, match="its photos is 6, this one's is 7"):
        tvc.survey(net, folder, **given)
    assert contents(tmp_path / "out") == before


def test_results_do_not_go_among_the_photos(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 3)
    for out in (folder, folder / "out", folder / ".." / "photos" / "new" / "out"):
        with pytest.raises(InputError, match="lies among the photos"):
            tvc.survey(network(), folder, out=out)
    assert sorted(path.name for path in folder.iterdir()) == ["disc", "great_white_shark", "stripes"]


def test_what_is_broken_or_not_finished_says_so(tmp_path: Path) -> None:
    net, folder = network(), photos(tmp_path / "photos", 12)
    how: dict[str, Any] = {"batch_size": 2, "save_every": 1, "workers": 0, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        tvc.survey(net, StopsAt(folder, 8), **how)
    with pytest.raises(OutputError, match="is not finished, with 6 photos done"):
        tvc.Survey.load(tmp_path / "out")
    state = tmp_path / "out" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(OutputError, match=r"state\.safetensors is broken"):
        tvc.survey(net, folder, **how)
    state.unlink()
    with pytest.raises(OutputError, match="go on with them"):
        tvc.survey(net, folder, resume=False, **how)
    assert len(tvc.survey(net, folder, **how)) == 12


@pytest.mark.slow
def test_killed_ten_times_and_gone_on_with_gives_identical_files(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 150, ("cat", "dog"))
    command = [sys.executable, "-m", "torchviz_cnn", "survey", str(folder), "--model", "cats_and_dogs", "--k", "3"]
    command += ["--batch-size", "2", "--workers", "0", "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, env=env, check=True, capture_output=True)
    part, kills = tmp_path / "part", 0
    for _ in range(40):
        manifest, before = part / "manifest.json", None
        run = subprocess.Popen([*command, str(part)], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if manifest.exists():
            before = manifest.stat().st_mtime_ns
        while run.poll() is None and kills < 10:
            if manifest.exists() and manifest.stat().st_mtime_ns != before:
                time.sleep(0.003 * kills)
                run.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        run.communicate(timeout=300)
        if run.returncode == 0:
            break
        kills += 1
    assert kills == 10
    assert contents(part) == contents(tmp_path / "whole")
