"""Files are whole or not there at all."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.runs import files


def half(file: BinaryIO, error: BaseException) -> None:
    """Writes a part and then fails."""
    file.write(b"half of it")
    file.flush()
    raise error


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_writes_into_new_folders_and_over_old_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    for content in (b"first, longer", b"second"):
        assert files.write(str(path), lambda file, content=content: file.write(content)) == path  # type: ignore[misc]
        assert path.read_bytes() == content
    assert names_in(tmp_path) == ["a", "a/b", "a/b/c.bin"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("stop"), KeyboardInterrupt("stop")]
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_midway_leaves_what_was_there(error: BaseException, existing: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    if existing:
        path.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match=r"No space left|stop") as caught:
        files.write(path, lambda file: half(file, error))
    assert names_in(tmp_path) == (["a.bin"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fill(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    files.write(path, fill)
    assert path.read_bytes() == b"new"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder.png").mkdir()
    for place, message in (
        ("folder.png", "it is a folder"),
        ("file/inside.png", "cannot write"),
        ("file/inside/deep.png", "cannot write"),
        ("x" * 300 + ".png", "cannot write"),
        ("a\0b.png", "cannot write"),
    ):
        with pytest.raises(OutputError, match=message):
            files.write(tmp_path / place, lambda file: file.write(b"1"))
    assert names_in(tmp_path) == ["file", "folder.png"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    files.save_image(path, Image.new("RGB", (2, 2)))
    assert names_in(tmp_path) == [path.name]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write(tmp_path / "ours", lambda file: file.write(b""))
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP"), (".tiff", "TIFF")])
def test_a_picture_has_the_format_of_its_name(suffix: str, kind: str, tmp_path: Path) -> None:
    path = files.save_image(tmp_path / f"a{suffix}", Image.new("RGB", (5, 4), "red"))
    with Image.open(path) as image:
        assert (image.format, image.size) == (kind, (5, 4))


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.psd", ".png"])
def test_unknown_picture_formats(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no picture format .* use .png"):
        files.save_image(tmp_path / name, Image.new("RGB", (5, 4)))
    assert names_in(tmp_path) == []


def test_a_picture_that_its_format_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"a\.jpg"):
        files.save_image(tmp_path / "a.jpg", Image.new("RGBA", (5, 4)))
    assert (tmp_path / "a.jpg").read_bytes() == b"old"
    for name, size in (("a.webp", (20_000, 1)), ("b.jpg", (70_000, 1))):
        with pytest.raises(OutputError, match=name):
            files.save_image(tmp_path / name, Image.new("RGB", size))
    assert names_in(tmp_path) == ["a.jpg"]


def test_arrays_come_back(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3).requires_grad_()
    path = files.save_arrays(
        tmp_path / "a.npz", {"values": values, "list": [1, 2], "half": torch.ones(2, dtype=torch.bfloat16)}
    )
    with np.load(path) as saved:
        assert np.array_equal(saved["values"], values.detach().numpy())
        assert saved["list"].tolist() == [1, 2]
        assert saved["half"].tolist() == [1, 1]
    with pytest.raises(OutputError, match=r"\.npz"):
        files.save_arrays(tmp_path / "a.npy", {"values": values})


def test_tensors_come_back(tmp_path: Path) -> None:
    path = files.save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.zeros(1, 3)}, {"k": "v"})
    loaded = load_file(path)
    assert torch.equal(loaded["a"], torch.ones(2))
    assert loaded["b"].shape == (1, 3)
    with pytest.raises(OutputError, match=r"\.safetensors"):
        files.save_tensors(tmp_path / "a.pt", {"a": torch.ones(2)}, {})
    assert names_in(tmp_path) == ["a.safetensors"]


def test_png_bytes_are_the_picture() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files.png(picture)))), np.asarray(picture))


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("folder").mkdir()
    for path in ("folder", "new", "new/deeper", ".", "..", str(tmp_path / "folder")):
        files.require_place(Path(path), folder=True)
    for path in ("file", "new/deeper", "file.html", "folder/a"):
        files.require_place(Path(path))
    for path, folder, words in [
        ("file", True, "cannot write file: file is a file, not a folder"),
        ("file/a/b", True, f"cannot write {Path('file/a/b')}: file is a file, not a folder"),
        ("file/a", False, f"cannot write {Path('file/a')}: file is a file, not a folder"),
        ("n" * 300, False, "cannot write 'nnn"),
        ("a\0b", True, "cannot write 'a"),
    ]:
        with pytest.raises(OutputError, match=re.escape(words)):
            files.require_place(Path(path), folder=folder)
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) != "folder")
    with pytest.raises(OutputError, match="folder is read-only"):
        files.require_place(Path("folder/new"), folder=True)
