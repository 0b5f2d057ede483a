"""The command line: one line and exit code 2 for a mistake, whatever the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import NET, PREPARED, pictures
from torchviz_cnn.cli import commands
from torchviz_cnn.cli.arguments import in_options
from torchviz_cnn.cli.main import _commands, _parser, main

EVERY_OPTION = {option for parser in _parser(_commands()).commands.values() for option in parser._option_string_actions}


def test_every_file_of_commands_is_a_command() -> None:
    files = {file.stem for file in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert sorted(commands.ORDER) == sorted(files)


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "Print the network's layers" in shown
    places = [re.search(rf"^ +{name}\s", shown, re.MULTILINE) for name in commands.ORDER]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(commands.ORDER)
    assert starts == sorted(starts)


@pytest.mark.parametrize("command", commands.ORDER)
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    assert "--out" in capsys.readouterr().out or command in ("layers", "predict")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cams", "photo.png"], "no command 'cams'; did you mean 'cam'"),
        (["cam", "photo.png", "--frobnicate"], "unrecognized arguments"),
        (["top", "x-0.tar", "x-1.tar"], "unrecognized arguments: x-1.tar; a pattern of tar files is put in quotes"),
        (["cam", "photo.png", "--traget", "x"], "unrecognized arguments: --traget x; did you mean '--target'?"),
        (["cam"], "required: IMAGE"),
        (["cam", "--target", "tusker", "photo.png"], "photos go before options that take several values"),
        (["predict", "photo.png", "--model", "qqqqq"], "torchviz-cnn layers --models lists them"),
        (["predict", "nosuch.png", *NET], "no image nosuch.png"),
        (["predict", "phot.png", *NET], "did you mean 'photo.png'"),
        (["predict", "broken.png", *NET], "broken.png cannot be read"),
        (["predict", "empty", *NET], "there are no photos in empty"),
        (["predict", "photo.png", "--model", "resnet5O"], "did you mean 'resnet50'"),
        (["predict", "photo.png", "--model", "vgg16", "--weights", "nosuch.pth"], "no checkpoint nosuch.pth"),
        (["cam", "photo.png", *NET, "--layer", "33"], "torchviz-cnn layers lists all 8"),
        (["cam", "photo.png", *NET, "--target", "tuskr"], "no class 'tuskr'; did you mean 'tusker'"),
        (["cam", "photo.png", *NET, "--target", "3"], "target 3 is out of range"),
        (["cam", "photo.png", *NET, "--colormap", "jett"], "no colormap 'jett'; did you mean 'jet'"),
        (["cam", "photo.png", *NET, "--alpha", "2"], "2 is not a share from 0 to 1"),
        (["cam", "photo.png", *NET, "--out", "photo.png/x"], "cannot write"),
        (["cam", "photo.png", *NET, "--input-size", "1", "2", "3"], "--input-size takes a side, or height and width"),
        (
            ["cam", "photo.png", "--model", "clinet:vgg", *PREPARED, "--method", "cam"],
            "use --method grad-cam",
        ),
        (["activations", "photo.png", *NET, "--layer", "nosuch*"], "matches 'nosuch*'"),
        (["activations", "photo.png", *NET, "--layer", "7"], "none of the layers 7 has maps"),
        (["predict", "photo.png", *NET, "--input-size", "2"], "RuntimeError"),
        (["predict", "photo.png", *NET, "--batch-size", "0"], "not at least 1"),
        (["cam", "photo.png", *NET, "--target", "²"], "no class '²'"),
        (["cam", "photo.png", *NET, "--target=--5"], "no class '--5'"),
        (["cam", "photo.png", *NET, "--target", "9" * 30], "no class"),
        (["predict", "photo.png", "--model", "clinet:stops"], "'clinet:stops' failed: SystemExit"),
        (["predict", "photo.png", "--model", "clinet:raises", *PREPARED], "AssertionError: forward says no"),
        (["predict", "photo.png", "--model", "./clinet.py:net"], "a module is named with dots, as 'clinet:net'"),
        (["predict", "photo.png", "--model", "clinet:volumes"], "begins with a Conv3d, which takes no photos"),
        (["layers", "--model", "clinet:volumes"], "begins with a Conv3d, which takes no photos"),
        (
            ["cam", "photo.png", "--model", "clinet:maps", *PREPARED],
            "--target package.module:function makes numbers of it",
        ),
        (["cam", "photo.png", *NET, "--out", "photo.png"], "photo.png is a file, not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    before = pictures(here)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert words in error
    assert pictures(here) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["saliency", "--layer", "3"], "--layer is for --method guided-grad-cam, not for saliency"),
        (["saliency", "--method", "smooth-grad", "--layer", "3"], "not for smooth-grad"),
        (["cam", "--method", "cam", "--score", "probability"], "--score is for --method grad-cam"),
        (["deconvnet", "--k", "2", "--channels", "1"], "give one of the two"),
        (["occlusion", "--colormap", "jett"], "no colormap 'jett'"),
        (["occlusion", "--out", "photo.png/deeper"], "photo.png is a file, not a folder"),
        (["deconvnet", "--out", "photo.png"], "photo.png is a file, not a folder"),
    ],
)
def test_what_cannot_be_meant_is_told_before_the_network_runs(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], "photo.png", "--model", "clinet:raises", *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("layer_names(model) lists them", "torchviz-cnn layers lists them"),
        ("torchviz_cnn.model_names() lists them", "torchviz-cnn layers --models lists them"),
        ("score='log_probability' explains", "--score log_probability explains"),
        ("truth='none' takes the photos", "--truth none takes the photos"),
        ("start=1,000 is out of range", "--start 1,000 is out of range"),
        ("start=5 is not below end=2", "--start 5 is not below --end 2"),
        ("decode='cuda' needs a GPU; decode='cpu' needs none", "--decode cuda needs a GPU; --decode cpu needs none"),
        ("that is on cpu: model.to('cuda')", "that is on cpu: --device cuda"),
        ("the order is by activation: by='relevance'", "the order is by activation: --by relevance"),
        ("out='a/b c' lies among the photos", "--out 'a/b c' lies among the photos"),
        ("mask_values say which, as mask_values=(1,)", "--mask-values say which, as --mask-values 1"),
        ("2 could not be read (skipped lists what is left out); x", "2 could not be read; x"),
        (
            "the names of both classes: load_model(..., labels=['the class of 0', 'the class of 1']) names them",
            "the names of both classes: --labels FILE has a line for each, that of 0 first",
        ),
        ("or use batch_size=1", "or use --batch-size 1"),
        ("not (B, D); output= chooses a part", "not (B, D); --output chooses a part"),
        (
            "output= chooses a part of it, and target=, as grad_cam has it, takes a function of it, as "
            "tvc.targets.region(mask, class)"
            " with output='out'",
            "--output chooses a part of it, and --target package.module:function makes numbers of it with --output out",
        ),
        ("on this input; layer=, as grad_cam has it, names one", "on this input; --layer names one"),
        ("no convolution on this input; name layers", "no convolution on this input; name them with --layers"),
        ("at most 9 are read, and more by read_image(path, max_pixels=...)", "at most 9 are read"),
        ("scaled; window=(low, high), as Preprocess has it, sets another", "scaled; --window LOW HIGH sets another"),
        ("make no grid; layout=(14, 14), as grad_cam has it, says the grid", "make no grid"),
        ("not square; say input_size=(height, width)", "not square; say --input-size HEIGHT WIDTH"),
        ("it has no head (fc); head='none' loads the rest", "it has no head (fc); --head none loads the rest"),
        ("in another way: pass preprocess=Preprocess(...)", "in another way"),
        ("defined there, or pass workers=0", "defined there, or pass --workers 0"),
        (
            "unknown; a Network with a Preprocess knows it, and geometry='crop', 'pad', as overlay has it, says it",
            "unknown; a Network with a Preprocess knows it",
        ),
        (
            "net runs on one image, but not on 2 at once, which batch_size=1, as filter_patterns has it, mends: why",
            "net runs on one image, but not on 2 at once: why",
        ),
        (
            "not known: give an index, or a Network that has them, as load_model(model, labels=...) makes it",
            "not known: give an index, or a file of them, --labels FILE",
        ),
        ("tifffile does (pip install tifffile), or pass its array", "tifffile does (pip install tifffile)"),
        (
            "a.keras has its weights itself: load_model('a.keras'), without weights 'b.pth'",
            "a.keras has its weights itself: leave --weights out",
        ),
        (
            "piece has no state, by which runs are merged: `save` does not write it, top_activations(..., out=) does",
            "piece has no state, by which runs are merged: torchviz-cnn top writes it",
        ),
        (
            "has 2 photos; TarShards(..., image='jpg') takes the first of these of each sample",
            "has 2 photos; in Python, TarShards(..., image='jpg') takes the first of these of each sample",
        ),
        (
            "is of weights; load_model('w.h5') builds the network that the file describes; one of weights alone goes "
            "into a network that you build, load_keras_weights(model, path)",
            "is of weights; --model w.h5 builds the network that the file describes",
        ),
        (
            "name the network that they are for, load_model('xception', weights=path), or build it and call "
            "load_keras_weights(model, path)",
            "name the network that they are for, --model xception --weights FILE",
        ),
        ("the shape of mean=0 is (3,)", "the shape of mean=0 is (3,)"),
    ],
)
def test_messages_name_options_not_python(python: str, words: str) -> None:
    assert in_options(python, EVERY_OPTION) == words


def test_interrupting_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--model", "clinet:interrupts"]) == 130
    assert capsys.readouterr().err == "torchviz-cnn: interrupted\n"


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line_and_those_of_others_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cam", "photo.png", "--model", "clinet:dark", *PREPARED]) == 0
    error = capsys.readouterr().err
    assert error.startswith("torchviz-cnn: warning: no positive evidence")
    assert error.count("\n") == 1
    assert main(["predict", "photo.png", "--model", "clinet:warns", *PREPARED]) == 0
    assert capsys.readouterr().err == ""


def test_as_a_module_and_without_a_terminal(here: Path) -> None:
    root = Path(__file__).parents[2]
    Path("photo.png").rename("фото.png")
    done = subprocess.run(
        [sys.executable, "-m", "torchviz_cnn", "predict", "фото.png", *NET],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    assert sum(float(line.split()[0]) for line in done.stdout.splitlines()[2:]) == pytest.approx(1, abs=0.01)
