"""A folder of results is whole at any moment, belongs to one run, and is never overwritten by another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.networks import vgg_like
from torchviz_cnn.core.errors import InputError, OutputError
from torchviz_cnn.runs.folder import MANIFEST, ResultFolder, model_checksum

MINE: dict[str, Any] = {"model": "abc", "layers": ["a", "b"], "k": 9}


def test_a_new_folder_says_whose_it_is_and_by_what_it_was_made(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "a" / "b", "top", MINE)
    manifest = json.loads((folder.path / MANIFEST).read_text())
    assert manifest == folder.manifest
    assert manifest["kind"] == "top"
    assert manifest["identity"] == MINE
    assert set(manifest["versions"]) == {"python", "torch", "torchviz_cnn"}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["progress"] == {}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    tensors = {"x": torch.arange(6).view(2, 3).T, "y": torch.tensor([float("nan")]), "z": torch.zeros(0, 4)}
    folder.save("features.3", tensors, note="one")
    folder.update(images=5)
    folder.update(finished=False)
    again = ResultFolder.open(tmp_path / "r", "top", {**MINE, "layers": ("a", "b")})
    assert again.manifest["progress"] == {"images": 5, "finished": False}
    loaded, texts = again.load_with_metadata("features.3")
    assert texts == {"note": "one"}
    assert all(torch.equal(loaded[key], tensors[key]) or key == "y" for key in tensors)
    assert again.has("features.3")
    assert not again.has("features.4")
    assert ResultFolder.read(tmp_path / "r", "top").manifest == again.manifest


def test_names_that_no_file_can_have_stay_apart(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", {})
    names = ["a/b", "a_b", "../a", "a" * 300, "a" * 301, "relu#1", "x.", "x"]
    for i, name in enumerate(names):
        folder.save(name, {"i": torch.tensor(i)})
    assert [int(folder.load(name)["i"]) for name in names] == list(range(len(names)))
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {folder.path}


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({**MINE, "model": "xyz"}, "its model is 'abc', this one's is 'xyz'"),
        ({**MINE, "k": 5}, "its k is 9, this one's is 5"),
        ({"model": "abc", "k": 9}, "its layers is .*, this one's is not given"),
        ({**MINE, "extra": 1}, "its extra is not given, this one's is 1"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    identity: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    before = (folder.path / MANIFEST).read_bytes()
    with pytest.raises(OutputError, match=message) as caught:
        ResultFolder.open(tmp_path / "r", "top", identity)
    assert "\n" not in str(caught.value)
    assert (folder.path / MANIFEST).read_bytes() == before


def test_what_is_no_folder_of_these_results_is_refused(tmp_path: Path) -> None:
    ResultFolder.open(tmp_path / "r", "atlas", MINE)
    with pytest.raises(OutputError, match="of kind 'atlas', not 'top'"):
        ResultFolder.open(tmp_path / "r", "top", MINE)
    with pytest.raises(OutputError, match="already holds these results"):
        ResultFolder.open(tmp_path / "r", "atlas", MINE, resume=False)
    with pytest.raises(OutputError, match="not a folder of results"):
        ResultFolder.read(tmp_path / "none", "top")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"is not empty .* it has 'thesis.txt'"):
        ResultFolder.open(full, "top", MINE)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="is a file, not a folder"):
        ResultFolder.open(full / "thesis.txt", "top", MINE)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"kind": "top", "format": 1}', "\x00"])
def test_a_broken_manifest_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(OutputError, match=MANIFEST):
        ResultFolder.read(tmp_path, "top")
    with pytest.raises(OutputError, match=MANIFEST):
        ResultFolder.open(tmp_path, "top", MINE)
    assert (tmp_path / MANIFEST).read_text() == text


def test_a_manifest_of_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    (folder.path / MANIFEST).write_text(json.dumps({**folder.manifest, "format": 99}))
    with pytest.raises(OutputError, match="format 99"):
        ResultFolder.read(folder.path, "top")


@pytest.mark.parametrize("path", [5, None, b"r"])
def test_a_folder_is_named_by_a_path(path: Any) -> None:
    with pytest.raises(InputError, match="a folder of results names a file or folder by a str or a Path, not by"):
        ResultFolder.open(path, "top", MINE)
    with pytest.raises(InputError, match="a folder of results names a file or folder by a str or a Path, not by"):
        ResultFolder.read(path, "top")


def test_broken_tensors_are_named(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    whole = folder.save("state", {"x": torch.ones(100)}).read_bytes()
    for broken in (b"", whole[:50], whole[:-8], b"\xff" * 200):
        folder.file("state").write_bytes(broken)
        with pytest.raises(OutputError, match=r"state\.safetensors is broken"):
            folder.load("state")
    with pytest.raises(OutputError, match=r"has no other\.safetensors"):
        folder.load("other")


def test_a_run_killed_before_its_manifest_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"{")
    assert ResultFolder.open(tmp_path, "top", MINE).manifest["identity"] == MINE


def test_the_checksum_is_of_names_types_shapes_and_values() -> None:
    model = vgg_like()
    first = model_checksum(model)
    assert first == model_checksum(vgg_like()) == model_checksum(nn.DataParallel(model))
    assert first == model_checksum(cast(nn.Module, torch.compile(model)))
    assert first != model_checksum(vgg_like().double())
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index, operator]
    assert first != model_checksum(model)
    halves = nn.Sequential(nn.Linear(2, 2, bias=False)), nn.Sequential(nn.Linear(1, 4, bias=False))
    for half in halves:
        nn.init.ones_(cast(nn.Linear, half[0]).weight)
    assert len({model_checksum(half) for half in halves}) == 2
    odd = nn.Module()
    odd.register_buffer("flag", torch.tensor(True))
    odd.register_buffer("bf16", torch.ones(3, dtype=torch.bfloat16))
    odd.register_buffer("empty", torch.zeros(0))
    assert len(model_checksum(odd)) == 64


def test_a_folder_that_was_deleted_is_made_whole_again(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    shutil.rmtree(tmp_path / "r")
    folder.save("a", {"x": torch.ones(1)})
    assert ResultFolder.open(tmp_path / "r", "top", MINE).has("a")


def test_a_folder_that_another_run_took_is_not_relabelled(tmp_path: Path) -> None:
    folder = ResultFolder.open(tmp_path / "r", "top", MINE)
    shutil.rmtree(tmp_path / "r")
    ResultFolder.open(tmp_path / "r", "top", {**MINE, "k": 5})
    with pytest.raises(OutputError, match="its k is 5, this one's is 9"):
        folder.update(images=3)
    with pytest.raises(OutputError, match="its k is 5, this one's is 9"):
        folder.save("state", {"x": torch.ones(1)})
    assert not folder.has("state")
    assert ResultFolder.read(tmp_path / "r", "top").manifest["identity"]["k"] == 5


def test_a_run_that_fails_before_it_has_results_leaves_the_folder_to_others(tmp_path: Path) -> None:
    ResultFolder.open(tmp_path / "r", "top", MINE).abandon()
    assert list((tmp_path / "r").iterdir()) == []
    folder = ResultFolder.open(tmp_path / "r", "top", {**MINE, "k": 3})
    folder.save("a", {"x": torch.ones(1)})
    folder.abandon()
    assert sorted(path.name for path in folder.path.iterdir()) == ["a.safetensors", MANIFEST]
