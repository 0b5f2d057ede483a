"""Names in a file are those of a plain list, in every process, and cost no memory for each."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchviz_cnn.core.errors import OutputError
from torchviz_cnn.media.datasets import names as storage
from torchviz_cnn.media.datasets.names import Names, in_order
from torchviz_cnn.media.datasets.photo_folder import PhotoFolder

# Without NUL, which no path has; with surrogates, as of bytes that are no UTF-8, line breaks and parts without a name.
NAMES = st.lists(
    st.text(st.one_of(st.sampled_from("/a.\n \udcff😀"), st.characters(exclude_characters="\0")), max_size=9)
)


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files where otherwise lists are, of runs and blocks of three; returns the folder for temporary files."""
    for name in ("IN_MEMORY", "_BLOCK", "_MAPPED"):
        monkeypatch.setattr(storage, name, 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def by_parts(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name.split("/"))


@given(NAMES, st.slices(12), st.integers(-12, 12))
def test_names_are_those_of_a_list(names: list[str], part: slice, place: int) -> None:
    made = Names.temporary(iter(names))
    assert made == names
    assert made == tuple(names)
    assert made != [*names, "one more"]
    assert list(made) == names
    assert len(made) == len(names)
    assert made[part] == names[part]
    assert list(reversed(made)) == names[::-1]
    if -len(names) <= place < len(names):
        assert made[place] == names[place]
        assert names[place] in made
        assert made.index(names[place]) == names.index(names[place])
    else:
        with pytest.raises(IndexError):
            made[place]
    for same in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), Names(made.path)):
        assert same == names


@given(NAMES)
def test_the_order_is_that_of_the_parts_of_paths(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IN_MEMORY", "_BLOCK", "_MAPPED"):
            patch.setattr(storage, name, 3)
        made = in_order(iter(names))
    assert isinstance(made, list if len(names) < 3 else Names)
    assert made == by_parts(names)


def test_names_differ_from_what_only_looks_alike() -> None:
    made = Names.temporary(["a", "b"])
    assert made != ["a", "c"]
    assert made != ["a", 3]
    assert made != "ab"
    assert made != {"a", "b"}


def test_a_folder_of_many_photos_is_as_one_of_few(
    few_at_a_time: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("b/2.png", "b/10.PNG", "b c/1.png", "b/deep/er/1.png", "a\n/ü.jpg", os.fsdecode(b"a\n/\xff.png")):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8)).save(folder / name, "PNG")
    (folder / "a\n" / "note.txt").write_text("no photo")
    many = PhotoFolder(folder)
    monkeypatch.setattr(storage, "IN_MEMORY", 100)
    few = PhotoFolder(folder)
    assert isinstance(many.names, Names)
    assert isinstance(few.names, list)
    assert many.names == few.names == by_parts(few.names)
    assert len(many) == 6
    assert many.categories == few.categories == ("a\n", "b", "b c")
    assert list(many.labels) == few.labels == [0, 0, 1, 1, 1, 2]
    assert [many.labels[i] for i in range(-6, 6)] == few.labels * 2
    assert many.labels[1:5:2] == few.labels[1:5:2]  # type: ignore[comparison-overlap, unused-ignore]
    assert many.listing() == few.listing()
    assert repr(many) == repr(few)
    assert many[-1][0].size == (8, 8)
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    monkeypatch.setattr(storage, "IN_MEMORY", 3)
    loose = PhotoFolder(folder)
    assert loose.categories == ()
    assert set(loose.labels) == {-1}


def test_the_file_lives_as_long_as_the_names_do(few_at_a_time: Path) -> None:
    names = in_order("edcba")
    assert isinstance(names, Names)
    assert [names.path] == list(few_at_a_time.iterdir())  # the runs are deleted
    copied = pickle.loads(pickle.dumps(names))
    del copied
    gc.collect()
    assert names == list("abcde")
    del names
    gc.collect()
    assert not list(few_at_a_time.iterdir())


COUNT = int(os.environ.get("NAMES_COUNT", 300_000))
"""A list of 300,000 names takes 28 MB; a million, or ten, can be tried as well."""
SETUP = f"""
import pickle, psutil, sys
from torchviz_cnn.media.datasets.names import in_order
numbers = (i * 7919 % {COUNT} for i in range({COUNT}))
names_out_of_order = (f"{{number // 1000:05}}/{{number % 1000:030}}.jpg" for number in numbers)
before = psutil.Process().memory_info().rss
def grown(): return psutil.Process().memory_info().rss - before
"""


def test_names_are_built_in_little_memory_and_deleted_when_the_process_ends() -> None:
    code = SETUP + "names = in_order(names_out_of_order); print(len(names), grown(), names.path, names[-1])"
    count, grown, path, last = _python(code).decode().split()
    assert int(count) == COUNT
    assert int(grown) < 15_000_000  # and no more for ten million names: a run of 100,000 is in memory at a time
    assert not Path(path).exists()
    assert last == f"{COUNT // 1000 - 1:05}/{999:030}.jpg"


def test_a_process_that_is_started_anew_walks_them_in_no_memory_and_leaves_the_file() -> None:
    names = in_order(f"{number:040}.jpg" for number in range(COUNT))
    assert isinstance(names, Names)
    read = "names = pickle.load(sys.stdin.buffer); each = (len(names[i]) for i in range(len(names)));"
    read += "print(sum(map(len, names)), sum(each), grown())"
    walked, one_by_one, grown = map(int, _python(SETUP + read, pickle.dumps(names)).split())
    assert walked == one_by_one == COUNT * 44
    assert grown < 5_000_000
    assert names[-1] == f"{COUNT - 1:040}.jpg"


def _python(code: str, given: bytes = b"") -> bytes:
    return subprocess.run([sys.executable, "-c", code], input=given, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_copy_of_the_process_leaves_the_file(few_at_a_time: Path) -> None:
    names = in_order("edcba")
    child = os.fork()
    if not child:
        right = names == list("abcde")
        del names
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert names == list("abcde")
    assert len(list(few_at_a_time.iterdir())) == 1


def test_a_folder_without_place_is_named_and_left_clean(few_at_a_time: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OutputError, match=f"list of photos cannot be written to {few_at_a_time}.*TMPDIR.*No space"):
        in_order("edcba")
    assert not list(few_at_a_time.iterdir())
