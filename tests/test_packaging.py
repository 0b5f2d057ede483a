"""The wheel and the source distribution: what is in them, and that they work where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import torchviz_cnn as tvc

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tvc.__file__).parent
pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a program prints; an assertion with all it says where it fails."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    for backend in ("build", "hatchling"):
        pytest.importorskip(backend)
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def source(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    (path,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("source")
    shutil.unpack_archive(path, folder)
    (top,) = folder.iterdir()
    return top


def below(folder: Path) -> set[str]:
    """The files below a folder, but for what Python compiles."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_its_weights_and_nothing_else(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    weights = {f"torchviz_cnn/weights/{name}" for name in below(ROOT / "weights")}
    package = {f"torchviz_cnn/{name}" for name in below(PACKAGE)}
    assert files == package | weights
    kinds = {Path(name).suffix for name in files}
    assert kinds == {".py", ".typed", ".json", ".html", ".css", ".js", ".md", ".safetensors"}


def test_the_metadata_says_what_is_needed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == tvc.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.13" in metadata.get_all("Classifier", [])
    needed = {line.split(">")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {"torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "shtab"} <= needed
    assert not needed & {"pytest", "captum", "h5py", "scikit-image"}


def test_the_source_has_everything_to_build_and_to_test(source: Path) -> None:
    files = below(source)
    for folder in ("torchviz_cnn", "weights", "tests", "scripts", "docs"):
        assert {name for name in files if name.startswith(f"{folder}/")} == {
            f"{folder}/{name}" for name in below(ROOT / folder)
        }
    assert {"pyproject.toml", "conftest.py", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= files


def test_the_wheel_of_the_source_is_that_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (other,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        sums = [{info.filename: info.CRC for info in archive.infolist()} for archive in (one, two)]
    assert sums[0] == sums[1]


def test_an_index_takes_them(built: Path) -> None:
    pytest.importorskip("twine")
    call(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()), cwd=built)


def test_the_installed_wheel_explains_a_photo(wheel: Path, tmp_path: Path) -> None:
    """In a folder of its own that comes first on the path; what it needs is there already."""
    place = tmp_path / "installed"
    call(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", place, wheel, cwd=tmp_path
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(
        tmp_path / "photo.png"
    )
    here = {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    where = call(sys.executable, "-c", "import torchviz_cnn; print(torchviz_cnn.__file__)", cwd=tmp_path, **here)
    assert Path(where.strip()).is_relative_to(place)
    shown = call(place / "bin" / "torchviz-cnn", "--version", cwd=tmp_path, **here) if os.name == "posix" else ""
    assert shown.strip() in ("", f"torchviz-cnn {tvc.__version__}")
    command = (sys.executable, "-m", "torchviz_cnn", "cam", "photo.png", "--model", "cats_and_dogs", "--out", "out")
    assert "predicted: " in call(*command, cwd=tmp_path, **here)
    assert (tmp_path / "out" / "photo_grad-cam_overlay.png").is_file()
    command = (sys.executable, "-m", "torchviz_cnn", "report", "photo.png", "--model", "cats_and_dogs", "--budget", "0")
    call(*command, cwd=tmp_path, **here)
    assert (tmp_path / "report" / "index.html").is_file()


def test_the_tests_run_from_the_source(source: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "tests/core", "tests/cli/test_help.py")
    assert " passed" in call(sys.executable, "-m", "pytest", *options, cwd=source, PYTHONPATH=".", OMP_NUM_THREADS="1")
