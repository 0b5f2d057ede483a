"""The scripts: without arguments a usage line, for a wrong file or an unknown network one line, and exit code 2."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from torchviz_cnn.runs.folder import ResultFolder
from torchviz_cnn.watch.history import History

SCRIPTS = Path(__file__).parents[1] / "scripts"
HELPERS = {"api_reference", "peers", "pictures", "site_hooks", "timing", "usage", "zoo_checks"}
"""Files that scripts import."""
NEEDS_NOTHING = {
    "choices",
    "default_layers",
    "figures",
    "gallery",
    "gpu_check",
    "keras_parity",
    "known_answers",
    "methods_table",
    "notebooks",
    "overview",
    "peer_checks",
    "planted_shortcut",
    "throughput",
    "watch",
    "zoo",
}
"""Scripts that run without arguments; most of them take minutes."""
NAMES = sorted({path.stem for path in SCRIPTS.glob("*.py")} - HELPERS - NEEDS_NOTHING)
NAMES = [name for name in NAMES if not name.startswith("benchmark")]
WRONG: dict[str, str] = {
    "colour_statistics": "nowhere/",
    "compare": "nowhere.jpg random",
    "contrast": "nowhere.jpg cat dog cats_and_dogs",
    "convert_keras": "nowhere.h5 --model torchvision.models:vgg16 --out made.safetensors",
    "deconvnet": "nowhere.jpg resnet19 random layer1",
    "evaluate": "resnet19 nowhere/",
    "explain": "nowhere.jpg resnet18 nowhere.pth layer1",
    "filter_patterns": "resnet19 random",
    "grad_cam": "nowhere.jpg cats_and_dogs random",
    "hooks": "nowhere.jpg cats_and_dogs conv1",
    "imagenet_accuracy": "nowhere/ --model cats_and_dogs",
    "localisation": "nowhere/ --model cats_and_dogs",
    "maximize": "resnet19 random cat",
    "mosaics": "nowhere/ cats_and_dogs",
    "randomization": "nowhere.jpg cats_and_dogs random made.png",
    "relevance": "nowhere/ cats_and_dogs random conv1",
    "report": "resnet19 random",
    "saliency": "nowhere.jpg cats_and_dogs random",
    "saliency_methods": "nowhere.jpg cats_and_dogs random made.png",
    "single_photos": "cats_and_dogs --photos nowhere/",
    "textbook_filters": "nowhere.safetensors nowhere.keras made",
    "top_activations": "nowhere/ cats_and_dogs random conv1",
    "train": "nowhere/ --model convnet_2025 --out made",
    "survey": "nowhere/ cats_and_dogs random",
    "trust": "nowhere/ cats_and_dogs random",
    "trust_table": "nowhere/ nowhere/ cats_and_dogs",
    "activations": "nowhere.jpg cats_and_dogs random",
    "occlusion": "nowhere.jpg cats_and_dogs random",
}
"""Arguments with a file that is not there, or a network that nobody knows."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, where scripts import each other as when they are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    return tmp_path


def run(name: str, *arguments: str) -> object:
    """Run a script in this process, as `python scripts/name.py` would, and give its exit code."""
    sys.argv[:] = [f"scripts/{name}.py", *arguments]
    try:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    except BaseException as error:
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as stop:
            return stop.code
        return 1
    return 0


@pytest.fixture(autouse=True)
def argv() -> object:
    before = list(sys.argv)
    yield
    sys.argv[:] = before


@pytest.mark.parametrize("name", NAMES)
def test_without_arguments_it_prints_its_usage(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    usage, *rest = re.sub(r"\n +", " ", shown.err).splitlines()  # argparse breaks long lines
    assert re.match(rf"usage: (python \S*)?{name}.py [\w\[]", usage)
    assert rest == [] or re.fullmatch(rf"{name}.py: error: the following arguments are required: .*", "\n".join(rest))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_file_or_network_is_told_in_one_line(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, *WRONG[name].split()) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"\S+: error: .*(nowhere|resnet19).*\n", error), error


def test_other_errors_keep_their_traceback_and_processes_end_with_the_code(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import usage; usage.tell_mistakes(); {}"
    for line, exit_code, words in (("open('nowhere')", 2, "nowhere"), ("1 / 0", 1, "Traceback")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(line), str(SCRIPTS)], capture_output=True, text=True, cwd=SCRIPTS.parent
        )
        assert done.returncode == exit_code
        assert words in done.stderr
        assert (done.stderr.count("\n") == 1) == (exit_code == 2)


@pytest.mark.parametrize(
    ("usage", "given", "fits"),
    [
        ("PHOTO MODEL", "a", False),
        ("PHOTO MODEL", "a b", True),
        ("PHOTO MODEL", "a b c", False),
        ("PHOTO [MODEL WEIGHTS]", "a", True),
        ("PHOTO [MODEL WEIGHTS]", "a b c", True),
        ("PHOTO [MODEL WEIGHTS]", "a b c d", False),
        ("PHOTO LAYER ...", "a", False),
        ("PHOTO LAYER ...", "a b c d", True),
        ("[PHOTO ...]", "", True),
        ("PHOTO", "--help", False),
    ],
)
def test_the_usage_says_how_many_arguments_there_are(here: Path, usage: str, given: str, fits: bool) -> None:
    arguments = runpy.run_path(str(SCRIPTS / "usage.py"))["arguments"]
    sys.argv[:] = ["scripts/any.py", *given.split()]
    if fits:
        assert arguments(usage) == given.split()
    else:
        with pytest.raises(SystemExit) as stop:
            arguments(usage)
        assert stop.value.code == 2


@pytest.mark.slow
def test_watch_shows_a_shortcut_that_is_learned(here: Path) -> None:
    assert run("watch", "run") == 0
    kept = History(here / "run", ResultFolder.read(here / "run", "watch").manifest["identity"], 60).kept
    marked, disc, without = kept[-1].probability.tolist()
    assert [one.step for one in kept] == list(range(0, 221, 20))
    assert min(marked, disc) > 0.9
    assert without < 0.1  # a square without its bright corner is no square
    assert (here / "run" / "strip.png").exists()
