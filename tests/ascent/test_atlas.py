"""The atlas of filter patterns: whole after any interruption, the same from any number of processes."""

from __future__ import annotations

import json
import math
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

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import unchanged
from torchviz_cnn.cli.main import main
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError, OutputError
from torchviz_cnn.layers.defaults import convolutions

SMALL: dict[str, Any] = {"size": 24, "steps": 3}
RECTIFIED = tvc.Recipe.named(rectify=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_folder_holds_the_patterns_of_filter_patterns(tmp_path: Path) -> None:
    model = networks.vgg_like()
    with unchanged(model):
        made = tvc.filter_atlas(model, tmp_path / "a", ["features.5", "features.0"], k=6, rectify="never", **SMALL)
    assert made.layers == ("features.5", "features.0")
    result = tvc.Atlas.read(tmp_path / "a").patterns("features.5")
    expected = tvc.filter_patterns(model, "features.5", range(6), **SMALL)
    assert result.channels is not None
    assert result.channels.tolist() == list(range(6))
    assert torch.allclose(result.values, expected.values, atol=2e-2)  # 16 bits
    assert torch.allclose(result.scores, expected.scores, atol=1e-4)
    assert result.grid().size == expected.grid().size
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["identity"]["settings"]["normalize"] == "l2"
    assert manifest["identity"]["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__


def test_running_again_makes_only_what_is_missing(tmp_path: Path) -> None:
    model = networks.vgg_like()
    tvc.filter_atlas(model, tmp_path, ["features.0"], k=3, **SMALL)
    before = files(tmp_path)
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    tvc.filter_atlas(model, tmp_path, ["features.0"], k=3, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == changed
    assert files(tmp_path) == before
    made = tvc.filter_atlas(model, tmp_path, ["features.0", "features.2"], k=None, **SMALL)
    assert len(made.patterns("features.0").values) == len(made.patterns("features.2").values) == 8
    assert torch.equal(
        made.patterns("features.0").values[:3],
        tvc.filter_atlas(model, tmp_path / "fresh", ["features.0"], k=3, **SMALL).patterns("features.0").values,
    )


def test_a_layer_that_is_linear_in_the_image_is_rectified(tmp_path: Path) -> None:
    model = networks.vgg_like()
    made = tvc.filter_atlas(model, tmp_path / "first", ["features.0", "features.2"], k=2, **SMALL)
    assert [made.patterns(name).recipe.rectify for name in made.layers] == [True, False]
    never = tvc.filter_atlas(model, tmp_path / "never", ["features.0"], k=2, rectify="never", **SMALL)
    assert not never.patterns("features.0").recipe.rectify
    assert not torch.equal(never.patterns("features.0").values, made.patterns("features.0").values)


def test_by_default_the_first_convolution_of_each_block(tmp_path: Path) -> None:
    model = networks.vgg_like()
    assert tvc.filter_atlas(model, tmp_path, k=1, **SMALL).layers == ("features.0", "features.5")
    x = torch.zeros(1, 3, 32, 32)
    assert convolutions(model, x) == ["features.0", "features.2", "features.5", "features.7"]
    with pytest.raises(LayerError, match="runs no convolution"):
        convolutions(torch.nn.Sequential(torch.nn.Flatten()), x)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    model = networks.vgg_like()
    tvc.filter_atlas(model, tmp_path, ["features.0"], k=2, **SMALL)
    before = files(tmp_path)
    for arguments, field in (({"seed": 1}, "seed"), ({"steps": 4}, r"settings\.steps"), ({"size": 25}, "size")):
        with pytest.raises(OutputError, match=f"its {field} is"):
            tvc.filter_atlas(model, tmp_path, ["features.0"], k=2, **{**SMALL, **arguments})
    with pytest.raises(OutputError, match="its model is 'VGGLike', this one's is 'Residual'"):
        tvc.filter_atlas(networks.residual(), tmp_path, ["stem"], k=2, **SMALL)
    assert files(tmp_path) == before


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    model = networks.vgg_like()
    with pytest.raises(LayerError, match="did you mean"):
        tvc.filter_atlas(model, tmp_path / "a", ["features.0", "featurs.2"], k=2, **SMALL)
    with pytest.raises(InputError, match="no rectify 'sometimes'"):
        tvc.filter_atlas(model, tmp_path / "a", rectify="sometimes", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k is a whole number of at least 1"):
        tvc.filter_atlas(model, tmp_path / "a", k=0, **SMALL)
    for wrong, message in (
        ({"k": 3, "channels": [1]}, "give one of the two"),
        ({"channels": [8]}, "channel 8 is out of range"),
        ({"layers": []}, "at least one layer"),
        ({"seed": 1.5}, "seed is"),
    ):
        with pytest.raises(InputError, match=message):
            tvc.filter_atlas(model, tmp_path / "a", **{"layers": ["features.0"], **SMALL, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    with pytest.raises(OutputError, match="not a folder of results"):
        tvc.Atlas.read(tmp_path)
    made = tvc.filter_atlas(model, tmp_path / "b", ["features.0"], k=1, **SMALL)
    with pytest.raises(LayerError, match=r"no layer 'features\.2'; it has features\.0"):
        made.patterns("features.2")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    model = networks.vgg_like()
    tvc.filter_atlas(model, tmp_path, ["features.0"], k=1, **SMALL)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"\x00" * 20)
    with pytest.raises(OutputError, match=r"features\.0\S*\.safetensors is broken"):
        tvc.Atlas.read(tmp_path)


def test_a_manifest_of_something_else_is_named(tmp_path: Path) -> None:
    tvc.filter_atlas(networks.vgg_like(), tmp_path, ["features.0"], k=1, **SMALL)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    scale = {"mean": ["a"], "std": [1]}
    for field, wrong in (("settings", {}), ("scale", {}), ("scale", scale), ("seed", None), ("seed", math.inf)):
        changed = {**manifest, "identity": {**manifest["identity"], field: wrong}}
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(OutputError, match="not that of an atlas"):
            tvc.Atlas.read(tmp_path).patterns("features.0")
    for layers in (None, 3, [["features.0"]]):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "progress": {"layers": layers}}))
        assert tvc.Atlas.read(tmp_path).layers == ("features.0",)
        assert tvc.filter_atlas(networks.vgg_like(), tmp_path, ["features.0"], k=1, **SMALL).layers == ("features.0",)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    model, calls = networks.vgg_like(), list[int]()

    def interrupted(module: torch.nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = model.features[5].register_forward_pre_hook(interrupted)
    layers = ["features.2", "features.5"]
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        tvc.filter_atlas(model, tmp_path, layers, k=None, **SMALL)
    part = tvc.Atlas.read(tmp_path)
    assert part.layers == ("features.2",)
    assert part.patterns("features.2").channels.tolist() == list(range(8))  # type: ignore[union-attr]
    handle.remove()
    kept = part.patterns("features.2").values
    whole = tvc.filter_atlas(model, tmp_path, layers, k=None, **SMALL)
    assert [len(whole.patterns(layer).values) for layer in layers] == [8, 12]
    assert torch.equal(whole.patterns("features.2").values, kept)


def test_a_folder_deleted_meanwhile_is_said_and_made_whole_by_the_same_call(tmp_path: Path) -> None:
    model, folder = networks.vgg_like(), tmp_path / "a"
    deleted: list[bool] = []

    def delete(*call: Any) -> None:
        if not deleted and files(folder):
            shutil.rmtree(folder)
            deleted.append(True)

    layers = ["features.0", "features.5"]
    handle = model.get_submodule("features.5").register_forward_hook(delete)
    with pytest.raises(OutputError, match=r"lost patterns while others were made: 3 of layer 'features\.0'"):
        tvc.filter_atlas(model, folder, layers, k=3, **SMALL)
    handle.remove()
    tvc.filter_atlas(model, folder, layers, k=3, **SMALL)
    tvc.filter_atlas(model, tmp_path / "b", layers, k=3, **SMALL)
    assert files(folder) == files(tmp_path / "b")


def test_channels_that_are_chosen(tmp_path: Path) -> None:
    made = tvc.filter_atlas(networks.vgg_like(), tmp_path, ["features.0"], channels=[5, 1], **SMALL)
    assert made.patterns("features.0").channels.tolist() == [1, 5]  # type: ignore[union-attr]


def test_runs_that_fill_one_folder_at_once_lose_nothing(tmp_path: Path) -> None:
    """The second run begins and ends while the first is at its batch; no run touches the files of another."""
    model, layers = networks.vgg_like(), ["features.0"]
    tvc.filter_atlas(model, tmp_path, layers, channels=[7], **SMALL)
    before: dict[str, bytes] = {}

    def second(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if len(args[0]) == 3 and not before:
            tvc.filter_atlas(networks.vgg_like(), tmp_path, layers, channels=[0, 2, 5], **SMALL)
            before.update(files(tmp_path))

    model.features[0].register_forward_hook(second)
    made = tvc.filter_atlas(model, tmp_path, layers, channels=[0, 3, 5], **SMALL).patterns("features.0")
    assert len(before) == 2
    assert before.items() < files(tmp_path).items()
    assert made.channels is not None
    assert made.channels.tolist() == [0, 2, 3, 5, 7]
    expected = tvc.filter_patterns(networks.vgg_like(), "features.0", [0, 2, 3, 5, 7], **SMALL, preset=RECTIFIED)
    assert torch.allclose(made.values, expected.values, atol=2e-2)  # 16 bits


def test_layers_are_named_as_everywhere(tmp_path: Path) -> None:
    model = networks.vgg_like()
    made = tvc.filter_atlas(model, tmp_path, [model.features[0], "features.0", "features.0#0"], k=1, **SMALL)
    assert made.layers == ("features.0",)
    assert list(files(tmp_path)) == ["features.0.safetensors"]


def test_dead_channels_are_warned_of(tmp_path: Path) -> None:
    model = networks.vgg_like()
    with torch.no_grad():
        model.get_parameter("features.2.bias")[3] = -1e6
    with pytest.warns(DeadFilterWarning, match=r"channels 3 of layer 'features\.3'"):
        made = tvc.filter_atlas(model, tmp_path, ["features.3"], channels=[3], **SMALL)
    assert made.patterns("features.3").dead == (3,)


CLI = ["--model", "cats_and_dogs", "--layer", "conv1", "conv3", "--k", "40", "--size", "48", "--steps", "4"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "patterns"
    asked = ["filters", "--model", "cats_and_dogs", "--layer", "conv1", "--k", "10", "--size", "40", "--steps", "2"]
    assert main([*asked, "--out", str(out)]) == 0
    assert "conv1.png: 10 filters, 10 raised" in capsys.readouterr().out
    # Each pattern pixel by pixel above its number, and all below a heading of two lines.
    drawn = Image.open(out / "conv1.png")
    assert drawn.size == (8 * 30 + 7 * 5, 2 * 44 + 5 + 44)
    first = tvc.Atlas.read(out).patterns("conv1").image(0)
    assert drawn.crop((0, 44, 30, 74)).tobytes() == first.tobytes()
    assert main([*asked, "--out", str(out), "--columns", "5"]) == 0
    assert Image.open(out / "conv1.png").size == (5 * 30 + 4 * 5, 2 * 44 + 5 + 62)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "conv9"], "no layer 'conv9' in"),
        (["--k", "some"], "--k is how many, or all, not 'some'"),
        (["--size", "1", "2", "3"], "--size takes a side"),
        (["--size", "8"], "does not run on an image of 3 x 8 x 8"),
        (["--preset", "dlwp-2017", "--quality", "clean"], "not of quality 'clean'"),
        (["--border", "-1"], "at least 0"),
        (["--step", "nan"], "step is a finite number"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    network = ["--model", "cats_and_dogs"]
    assert main(["filters", *network, "--steps", "1", *arguments, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def run(*arguments: str, ranks: int = 1, cores: int = 1) -> subprocess.CompletedProcess[str]:
    start = ["-m"] if ranks == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
    return subprocess.run(
        [sys.executable, *start, "torchviz_cnn", "filters", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(cores)},
        capture_output=True,
        text=True,
        check=False,
    )


def agree(a: Path, b: Path, first_steps: bool = False) -> None:
    """Two atlases hold the same channels, as pictures and, after the first steps, to 1e-5 in their scores."""
    one, other = tvc.Atlas.read(a), tvc.Atlas.read(b)
    assert one.layers == other.layers
    for x, y in ((one.patterns(layer), other.patterns(layer)) for layer in one.layers):
        assert x.channels is not None
        assert y.channels is not None
        assert torch.equal(x.channels, y.channels)
        if first_steps:
            scale = x.scores.abs().amax(1, keepdim=True)
            assert float(((x.scores - y.scores)[:, :3] / scale).abs().max()) <= 1e-5
        for i in range(len(x.values)):
            pictures = (np.asarray(patterns.image(i), dtype=np.float64) for patterns in (x, y))
            assert float(np.abs(np.subtract(*pictures)).mean()) <= 2


@pytest.mark.slow
def test_any_number_of_processes_and_cores_makes_the_same_pictures(tmp_path: Path) -> None:
    for name, ranks, cores in (("one", 1, 1), ("cores", 1, 2), ("two", 2, 1), ("three", 3, 1)):
        done = run(*CLI, "--out", str(tmp_path / name), ranks=ranks, cores=cores)
        assert done.returncode == 0, done.stderr
        agree(tmp_path / "one", tmp_path / name, first_steps=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_patterns(tmp_path: Path) -> None:
    command = ["--model", "cats_and_dogs", "--layer", "conv1", "conv3", "--k", "32", "--size", "64", "--steps", "60"]
    assert run(*command, "--out", str(tmp_path / "whole"), cores=2).returncode == 0
    killed = 0
    for parts in (1, 2):
        arguments = [sys.executable, "-m", "torchviz_cnn", "filters", *command, "--out", str(tmp_path / "killed")]
        process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "2"}, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "killed").glob("*.safetensors"))) < parts:
            time.sleep(0.05)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed
    assert run(*command, "--out", str(tmp_path / "killed"), ranks=2).returncode == 0
    agree(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.DeadFilterWarning")
@pytest.mark.parametrize("name", ["values", "scores", "dead", "channels", "rectify"])
def test_a_file_without_a_tensor_or_with_another_shape_is_told(name: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, layer = networks.vgg_like(), "features.0"
    tvc.filter_atlas(model, tmp_path / "a", [layer], 3, size=12, steps=1)
    path = next((tmp_path / "a").glob("*.safetensors"))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    for wrong in (rest, {**rest, "x": tensors[name]}, {**rest, name: tensors[name][None].contiguous()}):
        save_file(wrong, path, metadata)
        with pytest.raises(OutputError, match="broken"):
            tvc.Atlas.read(tmp_path / "a").patterns(layer)


def test_each_layer_is_given_as_soon_as_it_is_made(tmp_path: Path) -> None:
    model, seen = networks.vgg_like(), []

    def note(patterns: tvc.Patterns) -> None:
        seen.append((patterns.layer, len(patterns.values), tvc.Atlas.read(tmp_path / "atlas").layers))

    layers = ["features.0", "features.3"]
    made = {"k": 2, "size": 16, "steps": 1, "on_layer": note}
    tvc.filter_atlas(model, tmp_path / "atlas", layers, **made)  # type: ignore[arg-type]
    assert seen == [("features.0", 2, ("features.0",)), ("features.3", 2, ("features.0", "features.3"))]
