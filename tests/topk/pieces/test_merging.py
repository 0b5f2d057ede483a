"""Pieces that are merged, in any order and number, are the result of a single run."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchviz_cnn as tvc
from tests import networks
from tests.topk.test_folder import LAYERS, StopsAt, photos, same_files
from torchviz_cnn.core.errors import InputError, OutputError

COUNT = 30


def dataset() -> StopsAt:
    """Images with labels, many of them equal."""
    return StopsAt(torch.cat([networks.images(11), networks.images(11), networks.images(8, seed=3)]))


def run(out: Path, start: int = 0, end: int | None = None, **how: Any) -> tvc.TopActivations:
    how = {"batch_size": 3, "save_every": 2, **how}
    return tvc.top_activations(networks.vgg_like(), dataset(), LAYERS, 4, out=out, start=start, end=end, **how)


def pieces(folder: Path, cuts: list[int], **how: Any) -> list[Path]:
    for start, end in itertools.pairwise(cuts):
        run(folder / f"{start}", start, end, **how)
    return [folder / f"{start}" for start in cuts[:-1]]


@pytest.mark.parametrize(
    "how", [{}, {"exact": True}, {"by": "relevance", "target": 2}, {"by": "relevance", "exact": True}]
)
def test_merged_pieces_are_the_single_run_bit_for_bit(how: dict[str, Any], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", **how)
    a, b, c, d = pieces(tmp_path, [0, 3, 12, 27, 30], **how)
    assert tvc.TopActivations.load(b).piece == (3, 12)
    merged = tvc.merge(c, a, d, b, out=tmp_path / "merged")
    assert repr(merged) == repr(whole)
    assert same_files(tmp_path / "whole", tmp_path / "merged")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "merged")]
    assert manifests[0]["identity"] == manifests[1]["identity"]
    # Merged in steps; of pieces that are not all, a larger piece.
    middle = tvc.merge(c, b, out=tmp_path / "middle")
    assert middle.piece == (3, 27)
    assert "images 3 to 26 of 30" in repr(middle)
    assert repr(tvc.TopActivations.load(tmp_path / "middle")) == repr(middle)
    tvc.merge(d, tmp_path / "middle", a, out=tmp_path / "again")
    assert same_files(tmp_path / "whole", tmp_path / "again")
    # The folder is that of the whole run, which reads it.
    images = dataset()
    read = tvc.top_activations(networks.vgg_like(), images, LAYERS, 4, out=tmp_path / "merged", **how)
    assert images.read <= COUNT
    assert all(torch.equal(read.values[layer], whole.values[layer]) for layer in LAYERS)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, COUNT - 1), min_size=1, max_size=4, unique=True), st.integers(1, 7), st.randoms())
def test_exact_pieces_may_begin_anywhere(cuts: list[int], batch_size: int, random: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        how: dict[str, Any] = {"exact": True, "by": "relevance"}
        whole = run(folder / "whole", **how)
        parts = pieces(folder, [0, *sorted(cuts), COUNT], batch_size=batch_size, **how)
        random.shuffle(parts)
        merged = tvc.merge(*parts)
        for one, other in ((whole, merged), (whole.activation, merged.activation)):
            assert one is not None
            assert other is not None
            for layer in LAYERS:
                assert torch.equal(one.values[layer], other.values[layer])
                assert torch.equal(one.images[layer], other.images[layer])
                assert torch.equal(one.positions[layer], other.positions[layer])


def test_a_piece_goes_on_where_it_was(tmp_path: Path) -> None:
    run(tmp_path / "whole", 6, 27)
    model = networks.vgg_like()
    how: dict[str, Any] = {"batch_size": 3, "save_every": 2, "start": 6, "end": 27}
    stops = StopsAt(dataset().images, 30)
    with pytest.raises(KeyboardInterrupt):
        tvc.top_activations(model, stops, LAYERS, 4, out=tmp_path / "part", **how)
    done = json.loads((tmp_path / "part" / "manifest.json").read_text())["progress"]["images"]
    assert 0 < done < 21
    with pytest.raises(OutputError, match=rf"part is not finished, with {done} of its 21 images done"):
        tvc.merge(tmp_path / "part")
    tvc.top_activations(model, dataset(), LAYERS, 4, out=tmp_path / "part", **how)
    assert same_files(tmp_path / "whole", tmp_path / "part")
    assert json.loads((tmp_path / "part" / "manifest.json").read_text())["progress"]["images"] == 21
    with pytest.raises(OutputError, match=r"its piece is \[6, 27\], this one's is not given"):
        run(tmp_path / "part")


def test_what_cannot_be_merged_is_told(tmp_path: Path) -> None:
    a, b, c, d = pieces(tmp_path, [0, 6, 12, 21, 30])
    with pytest.raises(InputError, match="at least one run"):
        tvc.merge()
    with pytest.raises(InputError, match=r"folders one by one: write merge\(\*folders\)"):
        tvc.merge([a, b])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no folder has images 6 to 20 of 30"):
        tvc.merge(a, d)
    with pytest.raises(InputError, match=rf"images 0 to 5 are in {a} and in {a}: pieces do not overlap"):
        tvc.merge(a, b, a)
    run(tmp_path / "other", 9, 15)
    with pytest.raises(InputError, match=r"images 9 to 11 are in .*6 and in .*other: pieces do not overlap"):
        tvc.merge(a, b, tmp_path / "other")
    run(tmp_path / "one", 11, 15)
    with pytest.raises(InputError, match=r"image 11 is in .*6 and in .*one: pieces do not overlap"):
        tvc.merge(b, tmp_path / "one")
    run(tmp_path / "exact", 12, 21, exact=True)
    with pytest.raises(OutputError, match=r"exact is not of the same run as .*0: its exact is True, there it is False"):
        tvc.merge(a, b, tmp_path / "exact")
    with pytest.raises(OutputError, match="is not a folder of results"):
        tvc.merge(a, tmp_path / "none")
    with pytest.raises(OutputError, match="its piece is"):
        tvc.merge(a, b, out=c)
    with pytest.raises(InputError, match="was made with other weights"):
        tvc.merge(a, b, model=networks.residual())
    saved = tvc.merge(a, b).save(tmp_path / "saved")
    with pytest.raises(OutputError, match=r"saved has no state\.safetensors, by which runs are merged"):
        tvc.merge(saved, c)
    shutil.copy(c / "state.safetensors", b / "state.safetensors")
    with pytest.raises(OutputError, match=r"state\.safetensors is broken: it is not of images 6 to 11 of 30"):
        tvc.merge(a, b)


def test_the_state_of_another_version_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    run(tmp_path / "a")
    file = tmp_path / "a" / "state.safetensors"
    with safe_open(file, "pt") as opened:
        texts, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    known = json.loads(texts["state"])
    del known["format"]
    save_file(tensors, file, {"state": json.dumps(known)})
    refused = pytest.raises(OutputError, match=r"another version of torchviz_cnn \(format 1, this one's is 2\)")
    with refused:
        tvc.merge(tmp_path / "a")
    run(tmp_path / "a")  # a finished run is read
    (tmp_path / "a" / "results.safetensors").unlink()
    with refused:
        run(tmp_path / "a")


def test_photos_that_cannot_be_read_are_listed_of_all_pieces(tmp_path: Path) -> None:
    folder, model = photos(tmp_path / "photos", 12), networks.vgg_like()
    how: dict[str, Any] = {"preprocess": tvc.Preprocess((32, 32), resize=36), "workers": 0, "batch_size": 2}
    for file in sorted(folder.rglob("*.jpg"))[:4]:
        file.write_bytes(b"broken")
    with pytest.warns(tvc.SkippedWarning):
        whole = tvc.top_activations(model, folder, LAYERS, 3, out=tmp_path / "whole", **how)
    for start in (0, 4, 8):  # the first piece has no photo that can be read
        cut: dict[str, Any] = {"start": start, "end": start + 4}
        if start == 0:
            with pytest.warns(tvc.SkippedWarning, match="4 of 4 images"):
                tvc.top_activations(model, folder, LAYERS, 3, out=tmp_path / "0", **how, **cut)
        else:
            tvc.top_activations(model, folder, LAYERS, 3, out=tmp_path / str(start), **how, **cut)
    merged = tvc.merge(*(tmp_path / name for name in "804"), out=tmp_path / "merged", model=model)
    assert same_files(tmp_path / "whole", tmp_path / "merged")
    assert merged.skipped == whole.skipped
    assert list(merged.skipped) == [0, 1, 2, 3]
    page = merged.page("features.3", [0, 1])
    assert page.tobytes() == whole.page("features.3", [0, 1]).tobytes()
    lost = tvc.TopActivations.load(tmp_path / "merged")
    assert lost.names == whole.names
    with pytest.raises(InputError, match="lies among the photos"):
        tvc.merge(*(tmp_path / name for name in "804"), out=folder / "merged")
