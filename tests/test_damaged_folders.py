"""Folders of results that lost a file, or have a part of one: each is refused with what to do, or made whole again."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc
from torchviz_cnn.core.errors import OutputError, TorchvizWarning
from torchviz_cnn.runs.folder import ResultFolder

PREPROCESS = tvc.Preprocess(size=(16, 16))
OPTIONS: dict[str, Any] = {"preprocess": PREPROCESS, "batch_size": 2, "workers": 0, "save_every": 1}
NO_MANIFEST = r"has results, and no manifest\.json .*: put it back from a copy, or compute the results again in another"
DELETE_IT = r"\.safetensors is broken: .*; delete it, and the same run makes it anew"
Words = dict[str, tuple[str | None, str | None]]
"""What reading a folder says, by the file that is damaged: where that is deleted, and where a part of it is left."""
RUNS = {"top": "results", "shards": "results", "survey": "survey", "atlas": "0"}
"""Each kind of folder, and what it has in the end."""


def network() -> nn.Module:
    torch.manual_seed(0)
    after = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), *after).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, tar files of them, and folders of results, finished and not."""
    place = tmp_path_factory.mktemp("made")
    values = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    for number, photo in enumerate(values):
        folder = place / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"{number}.png")
    with tarfile.open(place / "photos.tar", "w") as tar:
        for path in sorted((place / "photos").rglob("*.png")):
            tar.add(path, path.name)
    for kind in RUNS:
        run(kind, place, place / kind / "finished")
        if kind != "atlas":  # each of its files is finished
            with pytest.raises(KeyboardInterrupt), killed_after_a_save():
                run(kind, place, place / kind / "begun")
    return place


def run(kind: str, place: Path, out: Path) -> Any:
    if kind == "atlas":
        return tvc.filter_atlas(network(), out, ["0", "2"], k=3, size=16, steps=2)
    if kind == "survey":
        return tvc.survey(network(), str(place / "photos"), k=1, out=out, **OPTIONS)
    photos = str(place / ("photos" if kind == "top" else "photos.tar"))
    return tvc.top_activations(network(), photos, ["0", "2"], k=2, out=out, **OPTIONS)


@contextmanager
def killed_after_a_save() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        save, saves = ResultFolder.save, list[str]()

        def saved(folder: ResultFolder, name: str, *args: Any, **texts: Any) -> Path:
            if len(saves) == 1:
                raise KeyboardInterrupt
            saves.append(name)
            return save(folder, name, *args, **texts)

        patch.setattr(ResultFolder, "save", saved)
        yield


def load(kind: str, out: Path) -> Any:
    if kind == "atlas":
        atlas = tvc.Atlas.read(out)
        return [atlas.patterns(layer) for layer in ("0", "2")]
    return tvc.Survey.load(out) if kind == "survey" else tvc.TopActivations.load(out)


def numbers(kind: str, out: Path) -> list[torch.Tensor]:
    result = load(kind, out)
    if kind == "atlas":
        return [layer.values for layer in result]
    return [torch.from_numpy(result.loss)] if kind == "survey" else [*result.values.values(), *result.images.values()]


def damage(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if how == "cut" else 0])


def files(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name[0] != "."}


def of(state: str, words_of: Callable[[str], Words]) -> list[Any]:
    """Each file of each kind of folder in a state."""
    return [
        pytest.param(state, kind, file, *words, id=f"{state}-{kind}-{file}")
        for kind in RUNS
        for file, words in words_of(kind).items()
    ]


def finished(kind: str) -> Words:
    """The files of a finished run, and what reading it says where one is deleted, and where it is cut off."""
    whole, broken = f"{RUNS[kind]}.safetensors", r"manifest\.json is broken: .*; put it back from a copy, or compute"
    lost = {
        "top": r"has no results\.safetensors any more; the same command makes it anew from state\.safetensors",
        "survey": r"has no survey\.safetensors any more; the same command computes all of it again",
        "atlas": r"has no layer '0', which was asked for: the same call makes its patterns; it has 2",
    }
    lost["shards"] = lost["top"]
    known: Words = {
        "manifest.json": (NO_MANIFEST, broken),
        whole: (lost[kind], DELETE_IT),
    }
    if kind == "survey":
        known |= dict.fromkeys(("index.html", "predictions.csv", "boxes.json", "samples.json"), (None, None))
    if kind in ("top", "shards"):
        known["state.safetensors"] = (None, None)
    return known | ({"shards.safetensors": (None, None)} if kind == "shards" else {})


def begun(kind: str) -> Words:
    """The same of a run that was killed."""
    if kind == "atlas":
        return {}
    neither = rf"has neither {RUNS[kind]}\.safetensors nor state\.safetensors any more; the same command computes all"
    photos = "photos" if kind == "survey" else "images"
    goes_on = f"is not finished, with 2 {photos} done; the same command goes on with it"
    broken = r"manifest\.json is broken: .*; put it back from a copy, or compute"
    return {"manifest.json": (NO_MANIFEST, broken), "state.safetensors": (neither, goes_on)}


@pytest.mark.parametrize("how", ["deleted", "cut", "empty"])
@pytest.mark.parametrize(("state", "kind", "file", "deleted", "cut"), [*of("finished", finished), *of("begun", begun)])
def test_a_run_without_a_file_says_what_helps(
    state: str, kind: str, file: str, deleted: str | None, cut: str | None, how: str, made: Path, tmp_path: Path
) -> None:
    """Reading says these words or, with None, nothing; the same call does what they say, and nothing else is lost."""
    words, out = deleted if how == "deleted" else cut, tmp_path / "out"
    shutil.copytree(made / kind / state, out)
    damage(out / file, how)
    there = files(out)
    if words is None:
        load(kind, out)
    else:
        with pytest.raises((OutputError, tvc.LayerError), match=words):
            load(kind, out)
    if file == "manifest.json":
        with pytest.raises(OutputError, match=words):
            run(kind, made, out)
        assert files(out) == there
        return
    if how != "deleted" and file.endswith(".safetensors") and (state, file) != ("finished", "state.safetensors"):
        with pytest.raises(OutputError, match=r"delete it, and the same (run|call) makes it anew"):
            run(kind, made, out)
        assert files(out) == there
        (out / file).unlink()
    if how == "cut" and not file.endswith(".safetensors"):
        with pytest.warns(
            TorchvizWarning, match=rf"^1 file in .* changed since .*; the first is {file}: one that is del"
        ):
            run(kind, made, out)
        assert files(out) == there
        (out / file).unlink()
    run(kind, made, out)
    assert all(
        one.equal(other) for one, other in zip(numbers(kind, out), numbers(kind, made / kind / "finished"), strict=True)
    )
    if kind == "survey":
        assert (out / file).exists() is (file != "state.safetensors")


@pytest.mark.parametrize("how", ["deleted", "cut", "empty"])
def test_merging_a_run_without_its_state_says_where_it_is_made(how: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "top" / "finished", tmp_path / "out")
    damage(tmp_path / "out" / "state.safetensors", how)
    words = (
        r"out(/state\.safetensors is broken: .*| has no state\.safetensors, by .*); the same run makes it in another"
    )
    with pytest.raises(OutputError, match=words):
        tvc.merge(tmp_path / "out")
    run("top", made, tmp_path / "other")
    assert tvc.merge(tmp_path / "other").count == 6


@pytest.mark.parametrize("how", ["deleted", "cut", "empty"])
def test_an_index_that_is_broken_is_not_copied_when_runs_are_merged(how: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "shards" / "finished", tmp_path / "out")
    damage(tmp_path / "out" / "shards.safetensors", how)
    assert tvc.merge(tmp_path / "out", out=tmp_path / "merged").source is None
    assert not (tmp_path / "merged" / "shards.safetensors").exists()


def test_a_file_of_a_survey_that_was_edited_stays_when_another_is_written_again(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "survey" / "finished", tmp_path / "out")
    (tmp_path / "out" / "predictions.csv").write_text("mine\n")
    (tmp_path / "out" / "index.html").unlink()
    for _ in range(2):
        with pytest.warns(TorchvizWarning, match=r"1 file in .* the first is predictions\.csv"):
            run("survey", made, tmp_path / "out")
        assert (tmp_path / "out" / "predictions.csv").read_text() == "mine\n"
        assert (tmp_path / "out" / "index.html").read_bytes() == (
            made / "survey" / "finished" / "index.html"
        ).read_bytes()
