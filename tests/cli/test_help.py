"""The help: what it says is true, it does not wait for PyTorch, its examples run, and shells complete what it lists."""

from __future__ import annotations

import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from torchviz_cnn.cli import choices
from torchviz_cnn.cli.commands import ORDER
from torchviz_cnn.cli.main import _commands, _parser, main
from torchviz_cnn.models.catalogue import default_model

ROOT = Path(__file__).parents[2]
COMMANDS = _commands()
EXAMPLES = [(name, line) for name, command in COMMANDS.items() for line in command.examples]


def test_the_choices_are_those_of_the_library() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "choices.py"))
    assert choices.FILE.read_text(encoding="utf-8") == script["written"](), "out of date: run `make docs-table`"


def test_help_and_version_do_not_import_pytorch() -> None:
    """Nor anything else that takes a while; every process of its own would take the tests a while."""
    code = """
import contextlib, io, sys
from torchviz_cnn.cli.main import main
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(line.split())
    assert len(out.getvalue()) > 10, line
print(*{"torch", "torchvision", "numpy", "PIL", "matplotlib", "cv2", "tqdm", "jinja2"} & set(sys.modules))
"""
    lines = ["--help", "--version", "--print-completion bash", *(f"{name} --help" for name in ORDER)]
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_importing_the_package_raises_no_warning() -> None:
    code = "import sys, torchviz_cnn; assert 'torch' not in sys.modules; torchviz_cnn.grad_cam"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ORDER)
def test_every_command_has_a_manual(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    head, _, rest = shown.partition("\n\n")
    assert head == " ".join(filter(None, ["usage: torchviz-cnn", command, COMMANDS[command].takes, "[options]"]))
    assert rest.partition("\n\n")[0].endswith(".")
    assert 2 <= len(COMMANDS[command].examples) <= 4
    assert all(f"\n  torchviz-cnn {line}\n" in shown for line in COMMANDS[command].examples)
    assert "exit codes:\n" in shown
    assert "None" not in shown


@pytest.mark.parametrize("command", ORDER)
def test_the_usage_tells_what_must_be_given(command: str) -> None:
    takes, parser = COMMANDS[command].takes, _parser(COMMANDS)
    if takes and not takes.startswith("["):
        with pytest.raises(SystemExit):
            parser.parse_args([command])
    else:
        parser.parse_args([command])
    if takes:
        several = [command, "photo.png", "photo.png"] if takes.rstrip("]").endswith("...") else [command, "photos"]
        parser.parse_args(several)
    else:
        with pytest.raises(SystemExit):
            parser.parse_args([command, "photo.png"])


@pytest.mark.parametrize(("command", "line"), EXAMPLES)
def test_examples_are_lines_of_their_command(command: str, line: str) -> None:
    assert _parser(COMMANDS).parse_args(shlex.split(line)).command == command
    assert len(line) < 90


LONG = {"demo", "filters", "report", "trust"}
"""Commands whose examples take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for name, line in EXAMPLES if name not in LONG])
def test_examples_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, where the photos are; a clip and checkpoints that nobody has here are left out.

    They take less time, as the input is smaller than the network's own, and as `top` of all 49 layers draws none.
    """
    data = pytest.importorskip("skimage.data")
    if default_model() != "efficientnet_lite0":
        pytest.skip("needs the extra demo")
    if "vgg16" in line or "clip.mp4" in line:
        pytest.skip("needs a file that does not come with the package")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name, file in (("coffee", "coffee.png"), ("chelsea", "cat.jpg"), ("coffee", "photos/1.png")):
        Image.fromarray(getattr(data, name)()).resize((320, 240)).save(file)
    Image.fromarray(data.chelsea()).save("photos/2.png")
    smaller = ["--input-size", "96", *(["--pages", "0"] if line == "top photos/" else [])]
    if line.startswith("merge "):
        top = ["top", "photos/", "--layers", "blocks.4", "--pages", "0", *smaller]
        for start in (0, 1):
            assert main([*top, "--start", str(start), "--end", str(start + 1), "--out", f"piece{start}"]) == 0
    assert main([*shlex.split(line), *(smaller if "merge" not in line or "--model" in line else [])]) == 0


# --- completion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_choices(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    assert not stop.value.code
    script = capsys.readouterr().out
    options = ("input-size", "other-activations", "masks") if shell == "fish" else ("--input-size", "--masks")
    missing = [word for word in (*ORDER, "competitive-cam", "log_probability", *options) if word not in script]
    assert missing == []
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tr"], {"trust"}),
        (["cam", "--blen"], {"--blend"}),
        (["cam", "--blend", ""], {"add", "mix"}),
        (["cam", "--method", "grad"], {"grad-cam", "grad-cam-plus-plus"}),
    ],
)
def test_bash_completes(words: list[str], completed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    line = shlex.join(["torchviz-cnn", *words])
    asked = f"""
COMP_WORDS=({line}); COMP_CWORD={len(words)}
$(complete -p torchviz-cnn | sed 's/.*-F \\([^ ]*\\) .*/\\1/') torchviz-cnn {shlex.quote(words[-1])}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    script = capsys.readouterr().out + asked
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == completed
