"""Photos in tar files on a server that is slow, drops connections, truncates, fails, or changes what it has.

What the network does must never become a photo that is left out.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchviz_cnn as tvc
from tests.media.shards.server import Server, serving
from tests.media.shards.tars import photo_bytes, write_shards, write_tar
from torchviz_cnn.core.errors import InputError, ShardError, SkippedWarning, TorchvizWarning
from torchviz_cnn.media.datasets.shards import ranges
from torchviz_cnn.media.datasets.source import ImageSource

pytest.importorskip("aiohttp")
PLAIN = tvc.Preprocess((16, 16), resize=16)
NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
PATTERN = "train-{000000..000002}.tar"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Three shards of eight photos, and short waits before a request is made again, which are not told."""
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(ranges, "UNTOLD", 600.0)
    write_shards(tmp_path)
    with serving(tmp_path) as served:
        yield served


def shards_of(server: Server, **options: Any) -> tvc.TarShards:
    return tvc.TarShards(f"{server.address}/{PATTERN}", **{"timeout": 5.0, "retries": 3, **options})


def photos(server: Server) -> list[bytes]:
    return [(server.folder / "photos" / f"{place:04d}.jpg").read_bytes() for place in range(24)]


def contents(shards: tvc.TarShards, places: Any = range(24)) -> list[bytes]:
    shards.fetch(places)
    return [shards.encoded(place) for place in places]


def test_a_batch_is_read_in_one_request_a_shard(server: Server) -> None:
    shards = shards_of(server)
    assert len(shards) == 24
    server.requests.clear()
    assert contents(shards) == photos(server)
    assert len(server.requests) == 3
    server.requests.clear()
    assert contents(shards, [9, 2, 10, 3, 9]) == [photos(server)[place] for place in (9, 2, 10, 3, 9)]
    assert len(server.requests) == 2


def test_photos_far_apart_are_read_alone(tmp_path: Path) -> None:
    large = bytes(3 << 20)
    write_tar(tmp_path / "a.tar", [("0.jpg", photo_bytes(0)), ("0.bin", large), ("1.jpg", photo_bytes(1))])
    with serving(tmp_path) as server:
        shards = tvc.TarShards(f"{server.address}/a.tar")
        assert len(shards) == 2
        server.requests.clear()
        assert contents(shards, [0, 1]) == [photo_bytes(0), photo_bytes(1)]
        sizes = [int(b) - int(a) for a, b in (one.rpartition("=")[2].split("-") for one in server.requests)]
        assert len(sizes) == 2
        assert sum(sizes) < 1 << 16


def test_headers_are_read_in_large_parts_where_photos_are_small(tmp_path: Path) -> None:
    """And gaps that are large are left out: a request of 30 ms for each header would take hours."""
    write_tar(tmp_path / "small.tar", [(f"{n}.jpg", bytes(20_000)) for n in range(400)])
    write_tar(tmp_path / "large.tar", [(f"{n}.{'jpg' if n % 9 else 'bin'}", bytes(12 << 20)) for n in range(8)])
    with serving(tmp_path) as server:
        assert len(tvc.TarShards(f"{server.address}/small.tar")) == 400
        assert len(server.requests) <= 8
        server.requests.clear()
        assert len(tvc.TarShards(f"{server.address}/large.tar")) == 7
        sizes = [int(b) - int(a) for a, b in (one.rpartition("=")[2].split("-") for one in server.requests)]
        assert sum(sizes) < 12 << 20


def test_what_lies_apart_is_read_at_once(server: Server) -> None:
    """No request is answered before all three have come."""
    shards = shards_of(server, timeout=60.0)
    assert len(shards) == 24
    server.before = threading.Barrier(3, timeout=20).wait
    assert contents(shards, [0, 9, 17]) == [photos(server)[place] for place in (0, 9, 17)]


def test_the_next_batch_is_read_meanwhile(server: Server) -> None:
    """It is asked for while the caller does other things, and not again."""
    shards, answer = shards_of(server, timeout=60.0), threading.Event()
    assert len(shards) == 24
    server.requests.clear()
    server.before = answer.wait
    shards.ahead(range(8, 16))
    limit = time.monotonic() + 20
    while not server.requests:
        assert time.monotonic() < limit
        time.sleep(0.01)
    answer.set()
    assert contents(shards, range(8, 16)) == photos(server)[8:16]
    assert len(server.requests) == 1
    shards.ahead(range(16, 24))
    assert contents(shards, range(8)) == photos(server)[:8]  # of others than were asked for ahead
    assert contents(shards, range(16, 24)) == photos(server)[16:]


@pytest.mark.parametrize("fault", ["drop", "truncate", "500", "503", "429", "hang"])
def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, fault: str) -> None:
    shards = shards_of(server, timeout=0.5 if fault == "hang" else 5.0)
    server.faults = [fault]
    assert len(shards) == 24  # a fault among headers
    server.faults = [fault, fault]
    server.requests.clear()
    assert contents(shards) == photos(server)
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drop", "payload|disconnected|bytes came"),
        ("truncate", "bytes came"),
        ("503", "503"),
        ("hang", "no answer within 0.2 s"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_goes_on_failing_ends_the_run_and_it_goes_on(
    server: Server, fault: str, words: str, workers: int, tmp_path: Path
) -> None:
    """What was saved is kept, no photo is left out, and the same call gives the answer of a run without faults."""
    known: Any = {"preprocess": PLAIN, "batch_size": 4, "save_every": 1, "workers": workers}
    expected = tvc.top_activations(NET, shards_of(server), **known)
    shards = shards_of(server, timeout=0.2, retries=1)
    assert len(shards) == 24
    server.faults, server.always = [""] * 3, fault
    with pytest.raises(
        InputError, match=rf"train-00000\d\.tar cannot be read \(.*({words}).*a run that saved its state then goes on"
    ):
        tvc.top_activations(NET, shards, out=tmp_path / "top", **known)
    server.always = None
    top = tvc.top_activations(NET, shards_of(server), out=tmp_path / "top", **known)
    assert not top.skipped
    for layer in top.layers:
        assert torch.equal(top.values[layer], expected.values[layer])
        assert torch.equal(top.images[layer], expected.images[layer])


def test_a_server_that_fails_while_headers_are_read_leaves_no_index(server: Server, tmp_path: Path) -> None:
    server.faults, server.always = [""], "drop"
    with pytest.raises(ShardError, match="cannot be read"):
        len(shards_of(server, index=tmp_path / "index", retries=1))
    server.always = None
    assert not (tmp_path / "index").exists()
    assert len(shards_of(server, index=tmp_path / "index")) == 24


def test_a_shard_that_is_not_there_or_not_allowed_is_told_at_once(server: Server) -> None:
    with pytest.raises(ShardError, match=r"there is no shard http.*train-000003\.tar"):
        len(tvc.TarShards(f"{server.address}/train-{{000000..000003}}.tar"))
    shards = shards_of(server)
    assert len(shards) == 24
    for fault, words in (("404", "there is no shard"), ("403", "may not be read: 403")):
        server.requests.clear()
        server.faults = [fault]
        with pytest.raises(ShardError, match=words):
            shards.fetch([0, 1])
        assert len(server.requests) == 1


def test_a_server_that_gives_whole_files_only_is_told(server: Server) -> None:
    server.ranges = False
    with pytest.raises(
        ShardError, match=r"the server of http.*train-00000\d\.tar gives whole files only: .* HTTP ranges"
    ):
        contents(shards_of(server), [3])


def test_a_server_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(ranges, "UNTOLD", 600.0)
    write_shards(tmp_path, 1, 1)
    with serving(tmp_path) as server:
        address = server.address
    with pytest.raises(ShardError, match=r"cannot be read \(.*[Cc]onnect.*asked 2 times\)"):
        len(tvc.TarShards(f"{address}/train-000000.tar", retries=1))


def test_a_shard_with_another_mark_of_the_server_is_refused(server: Server, tmp_path: Path) -> None:
    assert len(shards_of(server, index=tmp_path / "index")) == 24
    assert len(shards_of(server, index=tmp_path / "index")) == 24
    os.utime(server.folder / "train-000002.tar", (1, 1))
    with pytest.raises(ShardError, match=r"train-000002\.tar has changed since it was indexed"):
        len(shards_of(server, index=tmp_path / "index"))


def test_a_long_wait_for_a_server_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(ranges, "UNTOLD", 0.0)
    write_shards(tmp_path, 1, 1)
    with serving(tmp_path) as server:
        shards = tvc.TarShards(f"{server.address}/train-000000.tar", retries=2)
    words = (
        r"train-000000\.tar cannot be read \(.*[Cc]onnect.*\): its server is asked 2 more times, with waits of 0\.03 s"
    )
    with pytest.raises(ShardError, match="asked 3 times"), pytest.warns(TorchvizWarning, match=words) as said:
        len(shards)
    assert len(said) == 1


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, tvc.TopActivations]:
    """The folder of a result whose shards were on a server that is gone, and the result."""
    from fsspec.implementations.http import HTTPFileSystem

    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(ranges, "UNTOLD", 600.0)
    write_shards(tmp_path)
    with serving(tmp_path) as server:
        pattern = f"{server.address}/{PATTERN}"
        top = tvc.top_activations(NET, pattern, preprocess=PLAIN, out=tmp_path / "top", workers=0)
    HTTPFileSystem.clear_instance_cache()  # its open connections would still be answered
    return tmp_path / "top", top


def test_a_result_is_read_and_merged_without_its_server(
    lonely: tuple[Path, tvc.TopActivations], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, top = lonely
    with monkeypatch.context() as patch:
        patch.setattr(ranges.Files, "about", lambda files: pytest.fail("the server is asked"))
        for loaded in (tvc.TopActivations.load(folder), tvc.merge(folder, out=tmp_path / "merged")):
            assert loaded.names == top.names
            assert torch.equal(loaded.values["0"], top.values["0"])
            assert loaded.save(tmp_path / f"again {id(loaded)}").is_dir()
    words = r"train-00000\d\.tar cannot be read \(.*\); try again when its server answers"
    with pytest.raises(ShardError, match=words):
        tvc.TopActivations.load(folder).patches("0", 0)
    with pytest.raises(ShardError, match=words):
        tvc.TopActivations.load(folder).page("0", [0])


def test_a_result_whose_server_comes_back_has_its_photos(server: Server, tmp_path: Path) -> None:
    pattern = f"{server.address}/{PATTERN}"
    top = tvc.top_activations(NET, pattern, preprocess=PLAIN, out=tmp_path / "top", workers=0)
    loaded = tvc.TopActivations.load(tmp_path / "top")
    pairs = zip(loaded.patches("0", 0), top.patches("0", 0), strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs)
    os.utime(server.folder / "train-000002.tar", (1, 1))
    changed = tvc.TopActivations.load(tmp_path / "top")
    assert changed.names == top.names
    for ask in (lambda: changed.patches("0", 0), lambda: changed._source().frame(0, (16, 16))):
        with pytest.raises(ShardError, match=r"train-000002\.tar has changed since it was indexed"):
            ask()
    for file in server.folder.glob("*.tar"):
        file.unlink()
    with pytest.raises(ShardError, match=r"there is no shard http.*train-000000\.tar"):
        tvc.TopActivations.load(tmp_path / "top").patches("0", 0)


@pytest.mark.filterwarnings("default::torchviz_cnn.core.errors.SkippedWarning")
def test_pages_go_on_without_a_server_that_is_gone(
    lonely: tuple[Path, tvc.TopActivations], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchviz_cnn.cli.main import main

    assert main(["merge", str(lonely[0]), "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr()
    assert said.out.count("no pages are drawn") == 1
    assert re.search(r"no pages are drawn, as http.*train-00000\d\.tar cannot be read \(", said.out)
    assert "not where the runs had them" not in said.out
    assert said.err == ""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net = tvc.Network(nn.Sequential(*NET, *head), PLAIN)
    loaded = dataclasses.replace(tvc.TopActivations.load(lonely[0]), model=None)
    photo = tmp_path / "photos" / "0000.jpg"
    with pytest.warns(SkippedWarning, match="photos of the top activations are left out: .* cannot be read"):
        tvc.report(net, [photo], tmp_path / "page" / "index.html", top=loaded, layers=["0"], k=2, budget=0)
    assert (tmp_path / "page" / "index.html").is_file()


def test_without_aiohttp_the_extra_is_named() -> None:
    code = "import sys; sys.modules['aiohttp'] = None; import torchviz_cnn as tvc; tvc.TarShards('http://there/a.tar')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError: http://there/a.tar cannot be read: pip install 'torchviz-cnn[remote]'" in done.stderr


def test_forked_workers_have_connections_of_their_own(server: Server) -> None:
    """The connection of the process that they are copies of is open when they begin."""
    shards = shards_of(server)
    assert contents(shards, range(4)) == photos(server)[:4]
    known: Any = {"preprocess": PLAIN, "batch_size": 2}
    top = tvc.top_activations(NET, shards, workers=2, **known)
    expected = tvc.top_activations(NET, server.folder / "photos", workers=0, **known)
    assert torch.equal(top.values["0"], expected.values["0"])
    assert contents(shards, range(4, 9)) == photos(server)[4:9]


def test_sizes_are_read_from_heads(server: Server) -> None:
    shards = shards_of(server)
    assert shards.size(5) == (24, 16)
    assert ImageSource(shards, PLAIN).frame(5, (16, 16))[0] == (24, 16)
