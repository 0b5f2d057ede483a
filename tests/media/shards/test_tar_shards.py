"""Photos in tar files: which files a pattern means, what is in them, and that they are read as from a folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

import torchviz_cnn as tvc
from tests.media.shards.tars import SIZE, photo_bytes, write_shards, write_tar
from torchviz_cnn.core.errors import ImageError, InputError, ShardError, SkippedWarning
from torchviz_cnn.media.datasets.shards import tar_shards
from torchviz_cnn.media.datasets.shards.index import Index
from torchviz_cnn.media.datasets.shards.patterns import are_shards, braces_expanded, shard_paths, short_names
from torchviz_cnn.media.datasets.shards.scan import scan
from torchviz_cnn.media.datasets.source import ImageSource

PLAIN = tvc.Preprocess((16, 16), resize=16)


# --- patterns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train-{000000..000002}.tar", ["train-000000.tar", "train-000001.tar", "train-000002.tar"]),
        ("{9..11}.tar", ["9.tar", "10.tar", "11.tar"]),
        ("{09..11}.tar", ["09.tar", "10.tar", "11.tar"]),
        ("{0..10}.tar", [f"{number}.tar" for number in range(11)]),
        ("{99..0101}.tar", ["0099.tar", "0100.tar", "0101.tar"]),
        ("{00..2}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("s3://bucket/{x,}.tar", ["s3://bucket/x.tar", "s3://bucket/.tar"]),
        ("one.tar", ["one.tar"]),
    ],
)
def test_braces_are_expanded_as_by_a_shell(pattern: str, expected: list[str]) -> None:
    assert braces_expanded(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{000-019}.tar", r"not \{000-019\}; did you mean '\{000\.\.019\}'\?$"),
        ("{0...9}.tar", r"did you mean '\{0\.\.9\}'\?$"),
        ("{0:9}.tar", r"did you mean '\{0\.\.9\}'\?$"),
        ("{a}.tar", r"not \{a\}$"),
        ("{}.tar", r"not \{\}$"),
        ("{0..}.tar", r"as in \{000\.\.019\} or .* not \{0\.\.\}$"),
        ("{-1..2}.tar", r"not \{-1\.\.2\}$"),
        ("{0..3.tar", "do not match"),
        ("{{0..3}}.tar", r"do not match, .*; did you mean '.*\{0\.\.3\}\.tar'\?$"),
        ("{{0..1},a}.tar", "do not match, or one pair stands in another$"),
        ("{9..3}.tar", r"the last number of \{9\.\.3\} is below the first; did you mean '\{3\.\.9\}'\?$"),
        ("{002..0}.tar", r"is below the first; did you mean '\{0\.\.002\}'\?$"),
        (
            "http://a.b/*.tar",
            r"^http://a\.b/\*\.tar is a glob, .* as in train-\{000\.\.019\}\.tar, or give a list of addr",
        ),
        ("s3://b/a-[0:9].tar", r"is a glob, .* of addresses; did you mean 'a-\{0\.\.9\}\.tar'\?$"),
        ("http://a.b/x-?.tar", "is a glob"),
        (["http://a.b/1.tar", "http://a.b/[23].tar"], r"^http://a\.b/\[23\]\.tar is a glob"),
        ("{0..99999999999999}.tar", "more than 1,000,000 shards"),
        ("{0..9999}{0..9999}.tar", "more than 1,000,000 shards"),
        ("{a,a}.tar", "a.tar is given twice"),
        ([], r"not \[\]"),
        ([3], "not by an int"),
        (3, "or a list, not an int"),
        (None, "or a list, not a NoneType"),
        ("", "not by ''"),
        (["/a.tar", "http://b.c/d.tar"], "on one file system, and /a.tar and http://b.c/d.tar are on two"),
    ],
)
def test_a_pattern_that_cannot_be_understood_says_why(pattern: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shard_paths(pattern)
    with pytest.raises(InputError, match=words):
        tvc.TarShards(pattern)


def test_a_pattern_in_quotes_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shards(tmp_path)
    assert len(tvc.TarShards("~/train-{000000..000002}.tar")) == 24


@pytest.mark.parametrize("folder", ["photos [2024]", "a*b"])
def test_a_folder_may_be_called_like_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    place = tmp_path / folder
    for name in ("x-0.tar", "x-1.tar", "y {z}.tar"):
        write_tar(place / name, [("a.jpg", photo_bytes(0))])
    for pattern, count in (("x-0.tar", 1), ("x-{0..1}.tar", 2), ("x-*.tar", 2), ("y {z}.tar", 1)):
        monkeypatch.chdir(place)
        shards = tvc.TarShards(pattern)
        monkeypatch.chdir(tmp_path)
        assert len(shards) == len(tvc.TarShards(shards.given)) == count
    assert len(tvc.TarShards(place / "x-0.tar")) == 1


def test_a_glob_and_a_list_are_taken_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 2)
    files = [tmp_path / f"train-{n:06d}.tar" for n in range(3)]
    assert tvc.TarShards(tmp_path / "train-*.tar").shard_names == [file.name for file in files]
    reverse = tvc.TarShards(files[::-1])
    assert list(reverse.names[:2]) == ["train-000002.tar/0004.jpg", "train-000002.tar/0005.jpg"]
    with pytest.raises(ShardError, match=r"no file fits .*nowhere-\*.tar"):
        tvc.TarShards(tmp_path / "nowhere-*.tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("train-[0:2].tar", r"no file fits .*; did you mean 'train-\{0\.\.2\}\.tar'\?$"),
        ("train-[000000..000002].tar", r"no file fits .*; did you mean 'train-\{000000\.\.000002\}\.tar'\?$"),
        ("train-(0-2).tar", r"there is no shard .*; did you mean 'train-\{0\.\.2\}\.tar'\?$"),
        ("train-%06d.tar", r"there is no shard .*; numbers are a range, as \{000\.\.019\} in place of %06d$"),
        ("train-{0..2}.tar", r"there is no shard .*train-0\.tar; did you mean 'train-00000\d\.tar'\?$"),
        ("train-000001.TAR", r"there is no shard .*; did you mean 'train-000001\.tar'\?$"),
        ("train-000001.tgz", r"there is no shard .*; did you mean 'train-000001\.tar'\?$"),
        ("trian-*.tar", r"no file fits .*; did you mean 'train-00000\d\.tar'\?$"),
        ("x.tar", r"there is no shard .*x\.tar$"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest_match(tmp_path: Path, pattern: str, words: str) -> None:
    write_shards(tmp_path)
    with pytest.raises(ShardError, match=words):
        len(ImageSource(str(tmp_path / pattern)))


def test_a_folder_of_tar_files_is_told_as_what_it_is(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with pytest.raises(ShardError, match=r"is a folder, not a tar file: the tar files in it are .*\*\.tar$"):
        len(tvc.TarShards(tmp_path))
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(
        ImageError, match=r"there are no photos in .*; it has tar files, whose .* read: .*/\*\.tar$"
    ) as told:
        ImageSource(str(tmp_path))
    assert len(ImageSource(str(told.value).rpartition(": ")[2])) == 24


def test_what_an_address_has_behind_a_question_mark_is_no_glob() -> None:
    for address in ("http://[::1]:80/a.tar", "http://a.b/c.tar?x=[1]&y=*", "http://a.b/c?file=d.tar"):
        assert shard_paths(address) == [address]


@pytest.mark.parametrize(
    ("name", "mode", "command"),
    [
        ("a.tgz", "w:gz", "gunzip < a.tgz > a.tar"),
        ("a.tar.gz", "w:gz", "gunzip < a.tar.gz > a.tar"),
        ("a.tar", "w:gz", "gunzip < a.tar > a.plain.tar"),
        ("a.tar.bz2", "w:bz2", "bunzip2 < a.tar.bz2 > a.tar"),
        ("a.txz", "w:xz", "unxz < a.txz > a.tar"),
        ("A.TGZ", "w:gz", "gunzip < A.TGZ > A.tar"),
    ],
)
def test_a_compressed_shard_is_told_how_to_unpack_it(tmp_path: Path, name: str, mode: Any, command: str) -> None:
    with tarfile.open(tmp_path / name, mode) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(photo_bytes(0))
        tar.addfile(member, io.BytesIO(photo_bytes(0)))
    for place in (str(tmp_path / name), str(tmp_path / f"*{''.join(Path(name).suffixes)}")):
        with pytest.raises(ShardError, match=rf"the shard {name} is compressed, and .*: unpack it, as by `{command}`$"):
            len(ImageSource(place))


def test_names_of_shards_are_what_tells_them_apart() -> None:
    assert short_names(["/data/a/0.tar", "/data/a/1.tar"]) == ["0.tar", "1.tar"]
    assert short_names(["/data/a/0.tar", "/data/b/c/0.tar"]) == ["a/0.tar", "b/c/0.tar"]
    assert short_names(["https://a.b/0.tar?key=c", "https://a.b/1.tar?key=d"]) == ["0.tar", "1.tar"]
    assert short_names(["https://a.b/get?file=0.tar", "https://a.b/get?file=1.tar"]) == [
        "get?file=0.tar",
        "get?file=1.tar",
    ]
    assert short_names(["/data/0?.tar"]) == ["0?.tar"]


def test_a_string_that_ends_in_tar_means_shards_and_others_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "a.jpg").write_bytes(photo_bytes(0))
    assert not are_shards(tmp_path / "folder.tar")
    assert isinstance(ImageSource(str(tmp_path / "folder.tar")).dataset, tvc.PhotoFolder)
    assert isinstance(ImageSource(write_shards(tmp_path / "x", 1, 1)).dataset, tvc.TarShards)
    assert isinstance(ImageSource("memory://photos/a.tar?signature=b").dataset, tvc.TarShards)
    with pytest.raises(ShardError, match=r"there is no shard .*none\.tar"):
        len(ImageSource(tmp_path / "none.tar"))
    for several in (["a-0.tar", "a-1.tar"], (Path("a-0.tar"),), ["http://a.b/0.tar?key=c"]):
        with pytest.raises(InputError, match=r"a list as a dataset has photos, and '.*0\.tar.*pass TarShards\(list\)$"):
            ImageSource(several)


# --- what is in a tar ----------------------------------------------------------------------------------------------


def test_photos_are_those_of_a_folder_bit_for_bit(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    shards, folder = tvc.TarShards(pattern), tvc.PhotoFolder(tmp_path / "photos")
    assert len(shards) == len(folder) == 24
    assert [name.rpartition("/")[2] for name in shards.names] == list(folder.names)
    assert [int(label) for label in shards.labels] == [place % 3 for place in range(24)]
    together = shards.__getitems__(range(24))
    for place in range(24):
        assert np.array_equal(shards[place][0], folder[place][0])
        assert np.array_equal(together[place][0], folder[place][0])
        assert shards.size(place) == folder.size(place) == SIZE
        assert shards.encoded(place) == (tmp_path / "photos" / folder.names[place]).read_bytes()
    a, b = ImageSource(pattern, PLAIN), ImageSource(tmp_path / "photos", PLAIN)
    several: Any = zip(a.items(range(5, 19)), b.items(range(5, 19)), strict=True)
    for place, ((x, label), (y, _)) in enumerate(several, start=5):
        assert torch.equal(x, y)
        assert label == place % 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_long_names_are_read(tmp_path: Path, form: int) -> None:
    deep = "/".join(["folder" * 8] * 4) if form != tarfile.USTAR_FORMAT else "folder" * 8
    names = [f"{deep}/photo{n}.jpg" for n in range(3)] + ["./plain.jpg"]
    names += ["ünï/照片.jpg"] if form != tarfile.USTAR_FORMAT else []
    path = write_tar(tmp_path / "a.tar", [(name, photo_bytes(n)) for n, name in enumerate(names)], format=form)
    shards = tvc.TarShards(path)
    assert list(shards.names) == [f"a.tar/{name.removeprefix('./')}" for name in names]
    assert [shards.encoded(n) for n in range(len(names))] == [photo_bytes(n) for n in range(len(names))]


@pytest.mark.parametrize(
    ("members", "labels", "categories"),
    [
        ([("a.cls", b"7"), ("b.cls", b" 2\n"), ("c.cls", b"-1")], [7, 2, -1], ()),
        ([("a.cls", b"dog"), ("b.cls", b"cat")], [1, 0, -1], ("cat", "dog")),
        ([("a.json", b'{"label": 4}'), ("b.json", b'{"cls": "5"}'), ("c.json", b'{"class": 6.0}')], [4, 5, 6], ()),
        ([("a.json", b'{"label": "dog"}'), ("b.cls", b"3")], [1, 0, -1], ("3", "dog")),
        ([("a.json", b'{"caption": "none"}'), ("a.cls", b"1"), ("b.json", b"2")], [1, 2, -1], ()),
        ([("a.json", b'{"label": 1}'), ("a.cls", b"9")], [9, -1, -1], ()),
        ([("a.cls", b"-1"), ("b.cls", b"cat")], [-1, 0, -1], ("cat",)),
        ([("a.cls", b"3.0"), ("b.cls", b"2"), ("c.cls", b"1.")], [3, 2, 1], ()),
        ([("a.cls", b"3.5"), ("b.cls", b"2")], [1, 0, -1], ("2", "3.5")),
        ([("a.cls", b"--5"), ("b.cls", b"3")], [0, 1, -1], ("--5", "3")),
        ([], [-1, -1, -1], ()),
    ],
)
def test_labels_are_numbers_or_texts(
    tmp_path: Path, members: list[tuple[str, bytes]], labels: list[int], categories: tuple[str, ...]
) -> None:
    photos = [(f"{name}.jpg", photo_bytes(n)) for n, name in enumerate("abc")]
    shards = tvc.TarShards(write_tar(tmp_path / "a.tar", sorted(photos + members)))
    assert shards.labels.tolist() == labels
    assert shards.categories == categories
    assert [ImageSource(shards, PLAIN).item(n)[1] for n in range(3)] == [None if one < 0 else one for one in labels]


@pytest.mark.parametrize(
    "content",
    [
        *(b"{broken", b'{"label": [1, 2]}', b"\xff", b'{"label": true}', b"[" * 100_000, b'{"label": 2.5}', b"-3"),
        *(b"3000000000", b"1e400", b"NaN", b'""', b'"99999999999999999999"', b"9" * 5000),
    ],
)
def test_a_label_that_is_none_is_said(tmp_path: Path, content: bytes) -> None:
    members = [("a.jpg", photo_bytes(0)), ("a.json", content), ("b.jpg", photo_bytes(1)), ("b.cls", b"1")]
    shards = tvc.TarShards(write_tar(tmp_path / "a.tar", members))
    with pytest.warns(SkippedWarning, match=r"labels of 1 sample in shards are left out.*a\.tar/a\.json"):
        assert shards.labels.tolist() == [-1, 1]


def test_other_members_folders_and_hidden_files_are_no_photos(tmp_path: Path) -> None:
    members = [
        ("._a.jpg", b"x"),
        (".hidden/a.jpg", photo_bytes(2)),
        ("n1/.hidden/a.jpg", photo_bytes(3)),
        ("a.txt", b"hello"),
        ("n1/a.JPG", photo_bytes(0)),
        ("n2/a.png", photo_bytes(1, "PNG")),
        ("./n2/./b.png", photo_bytes(4, "PNG")),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        folder, link = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("link.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
    shards = tvc.TarShards(path)
    with pytest.warns(SkippedWarning, match="links and sparse files in shards are left out, 1 file; .* a.tar/link.jpg"):
        assert list(shards.names) == ["a.tar/n1/a.JPG", "a.tar/n2/a.png", "a.tar/n2/./b.png"]


def test_photos_that_are_links_are_said(tmp_path: Path) -> None:
    """tar makes a hard link of a file that is one of a file before."""
    (tmp_path / "1.jpg").write_bytes(photo_bytes(1))
    os.link(tmp_path / "1.jpg", tmp_path / "2.jpg")
    (tmp_path / "3.jpg").symlink_to("1.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in (1, 2, 3):
            tar.add(tmp_path / f"{number}.jpg", f"{number}.jpg")
        tar.add(tmp_path / "3.jpg", "1.cls")
    shards = tvc.TarShards(tmp_path / "a.tar")
    with pytest.warns(SkippedWarning, match="links and sparse files in shards are left out, 3 files; .* a.tar/2.jpg"):
        assert len(shards) == 1


def test_of_several_photos_of_a_sample_one_is_asked_for(tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", photo_bytes(n)) for n in range(2) for kind in ("left.jpg", "right.jpg")]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(
        ShardError, match=r"the sample 0 of the shard a\.tar has 2 photos, left\.jpg, right\.jpg: TarShards.*image="
    ):
        len(tvc.TarShards(path))
    with pytest.raises(
        ShardError, match=r"^the sample v1 .* has 9 photos, 0\.jpg, 1\.jpg, 2\.jpg and 6 more: TarShards.*first dot"
    ):
        len(tvc.TarShards(write_tar(tmp_path / "b.tar", [(f"v1.{n}.jpg", photo_bytes(n)) for n in range(9)])))
    assert list(tvc.TarShards(path, image=".right.JPG").names) == ["a.tar/0.right.jpg", "a.tar/1.right.jpg"]
    with pytest.raises(ShardError, match=r"no members that end in \.up\.jpg: there are 4 members: 2 x \.left\.jpg"):
        len(tvc.TarShards(path, image="up.jpg"))
    for image in (5, "", ".", ["left.jpg"]):
        with pytest.raises(InputError, match=r"^image is the ending of the photos, such as 'left\.jpg', not "):
            tvc.TarShards(path, image=image)  # type: ignore[arg-type]


def test_a_tar_without_photos_says_what_it_has(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.wav", b"x"), ("b.wav", b"x"), ("b.txt", b"x")])
    with pytest.raises(ShardError, match=r"no photos: there are 3 members: 2 x \.wav, 1 x \.txt"):
        len(tvc.TarShards(path))


def test_a_broken_member_is_left_out_alone(tmp_path: Path) -> None:
    members = [(f"{n}.jpg", photo_bytes(n)) for n in range(6)]
    members[2], members[4] = ("2.jpg", b"no photo"), ("4.jpg", b"")
    source = ImageSource(write_tar(tmp_path / "a.tar", members), PLAIN)
    answers = source.items(range(6))
    assert [isinstance(one, Exception) for one in answers] == [False, False, True, False, True, False]
    assert isinstance(answers[2], ImageError)
    assert "a.tar/2.jpg" in str(answers[2])
    assert "a.tar/4.jpg is empty" in str(answers[4])
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    with pytest.warns(SkippedWarning, match="2 of 6 images"):
        top = tvc.top_activations(net, source.dataset, preprocess=PLAIN, workers=0, batch_size=4)
    assert sorted(top.skipped) == [2, 4]


def cut_at(path: Path, size: int) -> Path:
    with path.open("rb+") as file:
        file.truncate(size)
    return path


def test_a_tar_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """Wherever it is cut off: else a copy that did not come to its end would pass for a smaller dataset."""
    whole = write_tar(tmp_path / "whole.tar", [(f"{n}.jpg", photo_bytes(n)) for n in range(3)])
    with tarfile.open(whole) as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    for size in (0, 100, last.offset, last.offset + 300, last.offset_data, last.offset_data + 40, end):
        path = cut_at(Path(shutil.copy(whole, tmp_path / f"cut{size}.tar")), size)
        with pytest.raises(ShardError, match=rf"the shard cut{size}\.tar is (not a tar file, or not all|cut off)"):
            len(tvc.TarShards(path))
    assert len(tvc.TarShards(cut_at(whole, end + 1024))) == 3  # with the mark of the end, without padding


def _header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, fields: dict[str, str] | None = None) -> bytes:
    """The headers of a member, whatever its size says."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.pax_headers = size, kind, fields or {}
    return member.tobuf(tarfile.PAX_FORMAT if fields else tarfile.GNU_FORMAT)


def _extended_sparse() -> bytes:
    """The header of a sparse file whose list of parts goes on in the next block."""
    header = bytearray(_header("b.jpg", 0, tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]  # type: ignore[attr-defined]
    return bytes(header)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (_header("b.jpg", -512), "the member at byte 1,024 has fewer than 0 bytes"),
        (_header("b.jpg", -1), "has fewer than 0 bytes"),
        (_header("b.jpg", -1536), "has fewer than 0 bytes"),
        (_header("b.jpg", 5, fields={"size": "-1536"}), "has fewer than 0 bytes"),
        ((_header("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 1500, "recursion"),
        (_extended_sparse(), "index out of range"),
    ],
)
def test_headers_that_lead_back_or_nowhere_are_refused(tmp_path: Path, member: bytes, words: str) -> None:
    """Where tarfile would read the same headers again and again, and where its own errors are of another kind."""
    end = b"" if "range" in words else bytes(1024)
    content = _header("a.jpg", 5) + b"photo".ljust(512, b"\0") + member + end
    raised = list[Exception]()

    def read() -> None:
        try:
            scan("a.tar", len(content), lambda start, stop: content[start:stop], None, True)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(raised[0], ShardError)
    assert re.search(rf"^the shard a\.tar is not a tar file, or not all of one: .*{words}", str(raised[0]))


def test_what_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [(f"{n}.jpg", photo_bytes(n)) for n in range(3)])
    content = bytearray(whole.read_bytes())
    (tmp_path / "packed.tar").write_bytes(gzip.compress(content))
    (tmp_path / "text.tar").write_bytes(b"hello" * 1000)
    (tmp_path / "joined.tar").write_bytes(content + content)
    with tarfile.open(whole) as tar:
        content[tar.getmembers()[1].offset + 5] ^= 255  # in the header of the second
    (tmp_path / "damaged.tar").write_bytes(content)
    for name, words in (
        ("packed", "is compressed"),
        ("text", "is not a tar file"),
        ("joined", "has content behind the mark of its end"),
        ("damaged", "is broken: there is no header at byte"),
    ):
        with pytest.raises(ShardError, match=rf"the shard {name}\.tar:? .*{words}|the shard {name}\.tar {words}"):
            len(tvc.TarShards(tmp_path / f"{name}.tar"))


# --- the index -----------------------------------------------------------------------------------------------------


def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are scanned from now on."""
    names = list[str]()

    def noted(name: str, *rest: Any) -> Any:
        names.append(name)
        return scan(name, *rest)

    monkeypatch.setattr(tar_shards, "scan", noted)
    return names


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, scanned = write_shards(tmp_path), scans(monkeypatch)
    first = tvc.TarShards(pattern, index=tmp_path / "index")
    assert scanned == []
    names, labels = list(first.names), first.labels.tolist()
    assert len(scanned) == 3
    again = tvc.TarShards(pattern, index=tmp_path / "index")
    assert (list(again.names), again.labels.tolist(), again.listing()) == (names, labels, first.listing())
    assert len(scanned) == 3
    assert [file.name for file in (tmp_path / "index").iterdir()] == ["shards.safetensors"]


def test_the_index_is_a_file_of_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    shards = tvc.TarShards(write_shards(tmp_path), index=tmp_path / "index")
    arrays = load_file(shards.prepare() / "shards.safetensors")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in shards.index.arrays.items()
    }


def test_a_temporary_index_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    shards = tvc.TarShards(write_shards(tmp_path))
    assert len(shards) == 24
    assert len(list((tmp_path / "temporary").rglob("*.safetensors"))) == 1
    if (child := os.fork()) == 0:
        del shards  # a copy of the process does not remove it
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "temporary").rglob("*.safetensors"))) == 1
    del shards
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_run_keeps_the_index_among_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, scanned = write_shards(tmp_path), scans(monkeypatch)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    known: Any = {"preprocess": PLAIN, "workers": 0, "batch_size": 5}
    top = tvc.top_activations(net, pattern, out=tmp_path / "top", **known)
    assert (tmp_path / "top" / "shards.safetensors").is_file()
    assert len(scanned) == 3
    again = tvc.top_activations(net, pattern, out=tmp_path / "top", **known)
    loaded = tvc.TopActivations.load(tmp_path / "top")
    assert len(scanned) == 3
    assert loaded.names == top.names == again.names
    pairs = zip(loaded.patches("0", 0), top.patches("0", 0), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    plain = tvc.top_activations(net, tmp_path / "photos", **known)
    assert torch.equal(plain.values["0"], top.values["0"])
    assert torch.equal(plain.images["0"], top.images["0"])
    os.utime(tmp_path / "train-000001.tar", (1, 1))
    assert tvc.TopActivations.load(tmp_path / "top").source is None  # others have taken their place
    with pytest.raises(ShardError, match=r"train-000001\.tar has changed since it was indexed"):
        tvc.top_activations(net, pattern, out=tmp_path / "top", **known)


def test_an_index_that_was_temporary_goes_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = scans(monkeypatch)
    shards = tvc.TarShards(write_shards(tmp_path))
    assert len(shards) == 24
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    tvc.top_activations(net, shards, preprocess=PLAIN, workers=0, out=tmp_path / "top")
    assert (tmp_path / "top" / "shards.safetensors").is_file()
    assert len(scanned) == 3


@pytest.mark.parametrize("change", ["date", "size", "fewer", "order", "image"])
def test_other_shards_than_those_indexed_are_refused(tmp_path: Path, change: str) -> None:
    pattern, kept, options = write_shards(tmp_path), tmp_path / "index", dict[str, Any]()
    assert len(tvc.TarShards(pattern, index=kept)) == 24
    second = tmp_path / "train-000001.tar"
    given: Any = pattern
    words = r"the shard train-000001\.tar has changed since it was indexed in .*index.*copy"
    if change == "date":
        os.utime(second, (1, 1))
    elif change == "size":
        second.write_bytes(second.read_bytes() + bytes(512))
    elif change == "image":
        options, words = {"image": "jpg"}, r"another choice of photos \(image=None\)"
    else:
        places = [0, 1] if change == "fewer" else [1, 0, 2]
        given, words = [tmp_path / f"train-{n:06d}.tar" for n in places], "an index of other shards"
    with pytest.raises(InputError, match=f"{words}.*, or delete that file where no results are beside it"):
        len(tvc.TarShards(given, index=kept, **options))
    (kept / "shards.safetensors").unlink()
    assert len(tvc.TarShards(given, index=kept, **options)) > 0


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Photos of the same names and sizes: their headers have another date."""
    shards = tvc.TarShards(write_shards(tmp_path, 1, 4, None))
    assert shards.stored(0) is not None
    path = tmp_path / "train-000000.tar"
    content = bytearray(path.read_bytes())
    place = shards.index.arrays["start"][2] - 512
    content[place + 136 : place + 147] = b"14500000000"
    path.write_bytes(content)
    assert shards.stored(1) is not None
    with pytest.raises(ShardError, match=r"train-000000\.tar has changed .*0002\.jpg is not at byte"):
        shards.stored(2)


@pytest.mark.parametrize("damage", ["cut off", "changed", "of another format", "empty"])
def test_a_broken_index_is_told(tmp_path: Path, damage: str) -> None:
    pattern, file = write_shards(tmp_path), tmp_path / "index" / "shards.safetensors"
    assert len(tvc.TarShards(pattern, index=tmp_path / "index")) == 24
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[-3] ^= 1
    if damage == "of another format":
        content = content.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    file.write_bytes(content[: {"cut off": -8, "empty": 0}.get(damage, len(content))])
    with pytest.raises(tvc.OutputError, match=r"shards\.safetensors cannot be used: .*delete it"):
        len(tvc.TarShards(pattern, index=tmp_path / "index"))


def test_a_scan_that_is_stopped_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path)

    def stopped(name: str, *rest: Any) -> Any:
        if name == "train-000001.tar":
            raise KeyboardInterrupt
        return scan(name, *rest)

    monkeypatch.setattr(tar_shards, "scan", stopped)
    with pytest.raises(KeyboardInterrupt):
        len(tvc.TarShards(pattern, index=tmp_path / "index"))
    assert not (tmp_path / "index").exists()
    monkeypatch.setattr(tar_shards, "scan", scan)
    assert len(tvc.TarShards(pattern, index=tmp_path / "index")) == 24


def test_a_full_disk_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path)

    def parts(index: Index) -> Any:
        yield b"begun"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Index, "_parts", parts)
        with pytest.raises(tvc.OutputError, match=r"cannot be written to .*shards\.safetensors: No space left"):
            len(tvc.TarShards(pattern, index=tmp_path / "index"))
    assert list((tmp_path / "index").iterdir()) == []
    assert len(tvc.TarShards(pattern, index=tmp_path / "index")) == 24


def test_the_listing_does_not_depend_on_places_and_dates(tmp_path: Path) -> None:
    """So that pieces of a run on several machines agree."""
    pattern = write_shards(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for file in (tmp_path / "b").glob("*.tar"):
        os.utime(file, (1, 1))
    listing = tvc.TarShards(pattern).listing()
    assert listing == tvc.TarShards(tmp_path / "b" / "train-{000000..000002}.tar").listing()
    assert listing != tvc.TarShards(tmp_path / "b" / "train-{000000..000001}.tar").listing()
    members = [("0.jpg", photo_bytes(0)), ("0.cls", b"1")]
    one, other = (
        tvc.TarShards(write_tar(tmp_path / name / "x.tar", [members[0], (members[1][0], label)])).listing()
        for name, label in (("c", b"1"), ("d", b"2"))
    )
    assert one != other


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [False, True])
def test_a_copy_in_another_process_needs_no_scan(tmp_path: Path, ready: bool) -> None:
    shards = tvc.TarShards(write_shards(tmp_path))
    assert not ready or len(shards) == 24
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.listing() == shards.listing()
    assert np.array_equal(copy[7][0], shards[7][0])
    assert len(pickle.dumps(shards)) < 2000


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_one_process_reads(tmp_path: Path, start: str) -> None:
    shards = tvc.TarShards(write_shards(tmp_path), preprocess=PLAIN)
    loader: DataLoader[Any] = DataLoader(shards, 5, num_workers=2, multiprocessing_context=start)
    x, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(x, torch.stack([shards[place][0] for place in range(24)]))
    assert labels.tolist() == shards.labels.tolist()


def test_a_subset_is_read_by_its_own_places(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    source = ImageSource(Subset(tvc.TarShards(pattern), [20, 3, 3, 9]), PLAIN)
    expected = [ImageSource(pattern, PLAIN).item(place) for place in (20, 3, 3, 9)]
    got: Any = source.items(range(4))
    assert [(torch.equal(PLAIN.scaled(x), y), a == b) for (x, a), (y, b) in zip(got, expected, strict=True)] == [
        (True, True)
    ] * 4
    assert source.name(0) == "train-000002.tar/0020.jpg"


def test_a_subset_of_places_that_shards_do_not_have_is_refused_when_they_are_ready(tmp_path: Path) -> None:
    shards = tvc.TarShards(write_shards(tmp_path))
    dataset: Dataset[tuple[Any, int]] = Subset(shards, [3, 24])
    source = ImageSource(dataset, PLAIN)
    assert repr(shards).endswith("3 shards)")  # nothing is read of them until a folder for the index is known
    words = "the Subset of 2 places has the place 24, and its TarShards has 24 images, 0 to 23"
    with pytest.raises(InputError, match=words):
        source.prepare(None)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = tvc.Network(model, PLAIN)
    for run in (
        lambda: tvc.top_activations(net, dataset, ["0"]),
        lambda: tvc.survey(net, dataset),
        lambda: tvc.trust(net, dataset, methods=["grad_cam"]),
    ):
        with pytest.raises(InputError, match=words):
            run()


def test_memory_file_systems_and_options_are_taken(tmp_path: Path) -> None:
    import fsspec

    write_shards(tmp_path)
    system = fsspec.filesystem("memory")
    for file in tmp_path.glob("*.tar"):
        system.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    try:
        for shards in (
            tvc.TarShards("memory://bucket/train-{000000..000002}.tar"),
            tvc.TarShards("/bucket/train-{000000..000002}.tar", filesystem=system),
        ):
            assert shards.encoded(9) == (tmp_path / "photos" / "0009.jpg").read_bytes()
            assert shards.labels.tolist() == [place % 3 for place in range(24)]
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(("address", "words"), [("nowhere://a.tar", "nowhere"), ("abfs://a/b.tar", "adlfs|abfs")])
def test_an_address_that_nothing_reads_is_told(address: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tvc.TarShards(address)
    with pytest.raises(InputError, match=r"^filesystem is one of fsspec, as .* makes it, not a str$"):
        tvc.TarShards("a.tar", filesystem="memory")


@pytest.mark.slow
def test_the_survey_and_the_command_line_take_shards(tmp_path: Path) -> None:
    from torchviz_cnn.cli.main import main

    pattern = write_shards(tmp_path, 2, 4, None)
    given = ["--model", "cats_and_dogs", "--workers", "0", "--device", "cpu"]
    assert main(["top", pattern, "--layers", "relu1", "--pages", "0", "--out", str(tmp_path / "top"), *given]) == 0
    assert main(["survey", pattern, "--truth", "none", "--out", str(tmp_path / "survey"), *given]) == 0
    assert tvc.TopActivations.load(tmp_path / "top").names[0] == "train-000000.tar/0000.jpg"
    manifest = json.loads((tmp_path / "survey" / "manifest.json").read_text())
    assert manifest["identity"]["photos"] == 8


def test_wide_photos_keep_their_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (6, 8, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    pre = tvc.Preprocess((6, 8), "stretch", mean=(0.0,) * 4, std=(1.0,) * 4)
    path = write_tar(tmp_path / "a.tar", [("a.png", buffer.getvalue())])
    x, _ = ImageSource(tvc.TarShards(path), pre).item(0)
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy() * 255, values, atol=1e-3)


def test_nothing_is_warned_of_where_nothing_is_wrong(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tvc.TarShards(write_shards(tmp_path))) == 24


# --- many photos ---------------------------------------------------------------------------------------------------

MANY = """
import os, sys, numpy as np, psutil
import torchviz_cnn as tvc
from torchviz_cnn.media.datasets.shards.index import INDEX, Index

def memory():
    return psutil.Process().memory_info().rss / 1e6

shards = tvc.TarShards(sys.argv[1], index=sys.argv[2])
before = memory()
assert len(shards) == 10_000_000
most = memory()
for place in range(0, len(shards), 5):
    name, label = shards.names[place], int(shards.labels[place])
    if place % 10_000 == 0:
        most = max(most, memory())
assert name == "train-000999.tar/n01440764/n01440764_09999995.jpg", name
print(most - before)
"""


@pytest.mark.slow
def test_an_index_of_ten_million_photos_costs_little_memory(tmp_path: Path) -> None:
    """All of its file is half a gigabyte, which a pass reads from the first to the last photo."""
    count, each = 10_000_000, 10_000
    for shard in range(count // each):
        (tmp_path / f"train-{shard:06d}.tar").touch()
        os.utime(tmp_path / f"train-{shard:06d}.tar", (1, 1))
    digits = np.arange(count, dtype=np.int64)[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")
    text = np.tile(np.frombuffer(b"n01440764/n01440764_00000000.jpg", np.uint8), (count, 1))
    text[:, 20:28] = digits
    known = [{"name": f"train-{n:06d}.tar", "size": 0, "stamp": "1.0", "checksum": ""} for n in range(count // each)]
    places = np.arange(count, dtype=np.int64)
    arrays = {
        "shard": (places // each).astype(np.int32),
        "start": places * 100_000,
        "size": np.full(count, 100_000, np.int64),
        "header": places.astype(np.uint32),
        "label": (places % 1000).astype(np.int32),
        "text": text.reshape(-1),
        "text_end": (places + 1) * text.shape[1],
    }
    Index({"format": 1, "shards": known, "categories": [], "image": None}, arrays).write(tmp_path)
    pattern = f"{tmp_path}/train-{{000000..000999}}.tar"
    command = [sys.executable, "-c", MANY, pattern, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a small disk can be mounted by root alone")
def test_a_disk_that_is_full_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    pattern, disk = write_shards(tmp_path), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        (disk / "filling").write_bytes(bytes(14_000))
        with pytest.raises(tvc.OutputError, match="No space left on device"):
            len(tvc.TarShards(pattern, index=disk / "index"))
        assert [file for file in disk.rglob("*") if file.is_file()] == [disk / "filling"]
        (disk / "filling").unlink()
        assert len(tvc.TarShards(pattern, index=disk / "index")) == 24
    finally:
        subprocess.run(["umount", str(disk)], check=True)
