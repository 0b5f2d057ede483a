"""Top activations of photos in tar files are those of the same photos in a folder, however a run is cut and shared."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import torchviz_cnn as tvc
from tests import networks
from tests.media.shards.server import serving
from tests.media.shards.tars import write_shards
from tests.topk.test_ranks import Together, _Thread, start
from torchviz_cnn.core.errors import OutputError, ShardError
from torchviz_cnn.media.datasets.shards import tar_shards
from torchviz_cnn.media.datasets.shards.scan import scan
from torchviz_cnn.media.datasets.source import ImageSource
from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.runs.ranks import Ranks
from torchviz_cnn.topk.reading import prepare_once
from torchviz_cnn.topk.result import KIND


def same(a: tvc.TopActivations, b: tvc.TopActivations) -> bool:
    """Whether two results are the same to the last bit."""
    pairs = [(getattr(a, part)[layer], getattr(b, part)[layer]) for part in _PARTS for layer in a.layers]
    for layer in a.layers:
        others = b.statistics[layer].tensors()
        pairs += [(tensor, others[name]) for name, tensor in a.statistics[layer].tensors().items()]
    return all(torch.equal(one.nan_to_num(-7.5), other.nan_to_num(-7.5)) for one, other in pairs)


_PARTS = ("values", "images", "positions")


class _Elsewhere(_Thread):
    """A rank on a machine of its own, where no file of the first one is."""

    def gather(self, value: Any) -> list[Any]:
        return [Path("nowhere") if isinstance(one, Path) and self.rank else one for one in super().gather(value)]


@pytest.mark.parametrize("shared", [True, False])
def test_the_first_rank_reads_the_headers_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Where the others do not have its files, as on another machine, each of them reads the headers itself."""
    pattern, scanned = write_shards(tmp_path), list[str]()

    def noted(name: str, *rest: Any) -> Any:
        scanned.append(name)
        return scan(name, *rest)

    monkeypatch.setattr(tar_shards, "scan", noted)
    sources = [ImageSource(pattern) for _ in range(3)]

    def work(ranks: Ranks) -> None:
        prepare_once(sources[ranks.rank], tmp_path / "out", KIND, ranks)

    together = Together(3)
    ranks = together.ranks() if shared else [_Elsewhere(rank, 3, "cpu", together) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ranks))
    assert len(scanned) == (3 if shared else 9)
    assert len({str(source.listing()) for source in sources}) == 1


def test_what_is_wrong_with_shards_ends_all_ranks(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "train-000001.tar").write_bytes(b"")

    def work(ranks: Ranks) -> str:
        with pytest.raises(ShardError) as error:
            prepare_once(ImageSource(str(tmp_path / "train-{000000..000002}.tar")), None, KIND, ranks)
        return str(error.value)

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(work, Together(2).ranks()))) == 1


@pytest.mark.parametrize(
    "address", ["http://{0}/train-{{000000..000002}}.tar?signature={1}", "http://me:{1}@{0}/train-000001.tar"]
)
def test_a_key_in_an_address_is_not_saved_and_may_be_another_one(tmp_path: Path, address: str) -> None:
    write_shards(tmp_path)
    known: Any = {
        "preprocess": tvc.Preprocess((16, 16), resize=16),
        "workers": 0,
        "end": 4,
        "k": 4,
        "out": tmp_path / "top",
    }
    net, results = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), []
    with serving(tmp_path) as server:
        for key in ("first-key", "other-key"):
            shards = tvc.TarShards(address.format(server.address.partition("://")[2], key), retries=0)
            results.append(tvc.top_activations(net, shards, ["0"], **known))
    assert torch.equal(results[0].values["0"], results[1].values["0"])
    for file in (tmp_path / "top").iterdir():
        assert b"-key" not in file.read_bytes(), file
    assert tvc.TopActivations.load(tmp_path / "top").source is None


@pytest.mark.slow
def test_ranks_and_a_server_come_to_the_answer_of_a_folder(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "data", 5, 12, None)
    results = dict[str, tvc.TopActivations]()
    with serving(tmp_path / "data", latency=0.01) as server:
        remote = f"{server.address}/train-{{000000..000004}}.tar"
        cases = {"folder": (str(tmp_path / "data" / "photos"), 1), "tar": (pattern, 1), "three ranks": (remote, 3)}
        for name, (dataset, count) in cases.items():
            run = start(dataset, tmp_path / name, count, "--save-every", "4")  # type: ignore[arg-type]
            out, _ = run.communicate(timeout=300)
            assert run.returncode == 0, out
            results[name] = tvc.TopActivations.load(tmp_path / name)
    assert [name for name, result in results.items() if not same(result, results["folder"])] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_survey_asks_once_for_each_photo_and_again_for_those_that_it_shows(tmp_path: Path, workers: int) -> None:
    model = torch.nn.Sequential(*networks.vgg_like().features[:3], torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    write_shards(tmp_path / "data", 3, 40)
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-{{000000..000002}}.tar", index=tmp_path)
        shards.prepare()
        server.requests.clear()
        options: Any = {"preprocess": tvc.Preprocess((16, 16)), "k": 1, "truth": "none", "workers": workers}
        result = tvc.survey(model, shards, batch_size=8, **options)
    assert len(result) == 120
    assert len(result.shown) <= 8
    settled, shown = 1, 3  # at most one request for each shard, as those that are shown are asked for together
    assert len(server.requests) <= settled + 120 // 8 + shown


def test_the_page_and_the_pictures_of_a_survey_ask_once_for_what_both_show(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*networks.vgg_like().features[:3], torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    write_shards(tmp_path / "data", 3, 8, labels=None)
    with serving(tmp_path / "data") as server:
        shards = tvc.TarShards(f"{server.address}/train-{{000000..000002}}.tar", index=tmp_path)
        options: Any = {"preprocess": tvc.Preprocess((16, 16)), "k": 1, "truth": "none", "workers": 0}
        result = tvc.survey(model, shards, **options)
        server.requests.clear()
        result.save(tmp_path / "out")
    assert len(list((tmp_path / "out" / "heatmaps").iterdir())) == len(result.shown) > 0
    photos = {file for file in server.requests if "GET" in file}
    assert len(server.requests) == len(photos)
    # Those that are shown, and small pictures of the others: each in one request for each shard at most.
    assert len(server.requests) <= 2 * 3


@pytest.mark.slow
def test_killed_five_times_it_comes_to_the_same_answer(tmp_path: Path) -> None:
    """Some of the kills meet the scan, or what is before it."""
    pattern = write_shards(tmp_path / "data", 5, 12, None)
    more = ("--save-every", "1", "--workers", "1")
    run = start(pattern, tmp_path / "whole", 1, *more)  # type: ignore[arg-type]
    run.communicate(timeout=300)
    out, kills = tmp_path / "killed", 0
    with serving(tmp_path / "data", latency=0.05) as server:
        remote = f"{server.address}/train-{{000000..000004}}.tar"
        while kills < 5:
            server.requests.clear()
            run = start(remote, out, 1, *more)  # type: ignore[arg-type]
            while len(server.requests) < 2 + 3 * kills and run.poll() is None:
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=60)
            kills += 1
        run = start(remote, out, 1, *more)  # type: ignore[arg-type]
        text, _ = run.communicate(timeout=300)
        assert run.returncode == 0, text
    assert same(tvc.TopActivations.load(out), tvc.TopActivations.load(tmp_path / "whole"))


def test_pieces_of_shards_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the answer of one run over the folder; the result has the index, so that its photos are there again."""
    pattern = write_shards(tmp_path)
    known: Any = {"preprocess": tvc.Preprocess((16, 16), resize=16), "workers": 0}
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3))
    whole = tvc.top_activations(net, tmp_path / "photos", batch_size=4, **known)
    for piece in range(4):
        cut: Any = {"start": piece * 6, "end": piece * 6 + 6, "out": tmp_path / str(piece)}
        tvc.top_activations(net, pattern, batch_size=4, **cut, **known)
    merged = tvc.merge(*(tmp_path / str(piece) for piece in (2, 0, 3, 1)), out=tmp_path / "all")
    monkeypatch.setattr(tar_shards, "scan", None)
    loaded = tvc.TopActivations.load(tmp_path / "all")
    assert same(merged, loaded)
    for layer in ("0", "2"):
        assert torch.equal(merged.values[layer], whole.values[layer])
        assert torch.equal(merged.images[layer], whole.images[layer])
    assert [name.rpartition("/")[2] for name in loaded.names] == list(tvc.PhotoFolder(tmp_path / "photos").names)
    assert len(tvc.TopActivations.load(tmp_path / "all", pattern).patches("2", 3)) == 9


@pytest.mark.slow
def test_shards_that_changed_are_refused_on_the_command_line(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "data", 2, 4, None)
    run = start(pattern, tmp_path / "out", 1)  # type: ignore[arg-type]
    run.communicate(timeout=300)
    shutil.copy(tmp_path / "data" / "train-000001.tar", tmp_path / "copy.tar")
    os.replace(tmp_path / "copy.tar", tmp_path / "data" / "train-000001.tar")
    run = start(pattern, tmp_path / "out", 1)  # type: ignore[arg-type]
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 2
    assert "the shard train-000001.tar has changed since it was indexed" in out.splitlines()[-1]


def test_a_folder_that_cannot_be_taken_gets_no_index(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 1, 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear reader")
    ResultFolder.open(tmp_path / "survey", "survey", {})
    (tmp_path / "file").write_text("a file")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    known: Any = {"preprocess": tvc.Preprocess((16, 16), resize=16), "workers": 0}
    for name, words in (("mine", "not empty"), ("survey", "holds results of kind 'survey'"), ("file", "it is a file")):
        with pytest.raises(OutputError, match=words):
            tvc.top_activations(net, pattern, out=tmp_path / name, **known)
        assert not (tmp_path / name / "shards.safetensors").exists()
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["letter.txt"]
