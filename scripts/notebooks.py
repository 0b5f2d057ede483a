"""Run the notebooks anew, each in a folder of its own, and keep their outputs small.

python scripts/notebooks.py [NOTEBOOK ...]
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "notebooks"
LARGEST_PICTURE = 60_000
"""Bytes of a picture that is kept in a notebook."""
LARGEST_NOTEBOOK = 700_000
"""Bytes of a notebook with all its outputs."""
PICTURES = ("image/png", "image/jpeg")
SECONDS = 300
"""How long a cell may run."""


def main(arguments: list[str]) -> None:
    """Run these notebooks, by default all, and write them with what they showed."""
    for path in map(Path, arguments) if arguments else sorted(FOLDER.glob("*.ipynb")):
        notebook = tidy(executed(path))
        wrong = problems(notebook)
        if wrong:
            sys.exit("\n".join(f"{path.name}: {problem}" for problem in wrong))
        path.write_text(written(notebook), encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def executed(path: Path) -> Any:
    """A notebook with the outputs of a run in an empty folder, on one core, with this checkout of the package."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        return client.execute(env=environment)


def tidy(notebook: Any) -> Any:
    """The same notebook without what depends on the machine, and with one small picture for each that was shown."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.metadata = {}
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "data" in output:
                output.metadata = {}
                output.data = _small(output.data)
    return notebook


def written(notebook: Any) -> str:
    return str(nbformat.writes(notebook)) + "\n"  # type: ignore[no-untyped-call]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def problems(notebook: Any) -> list[str]:
    """What must not stand in a notebook that is kept, in words."""
    wrong = []
    size = len(written(notebook).encode())
    if size > LARGEST_NOTEBOOK:
        wrong.append(f"it has {size} bytes, more than {LARGEST_NOTEBOOK}")
    cells = code_cells(notebook)
    if not any(output.get("data", {}).keys() & set(PICTURES) for cell in cells for output in cell.outputs):
        wrong.append("it shows no picture: its outputs are missing")
    for number, cell in enumerate(cells, start=1):
        wrong += [f"cell {number}: {problem}" for output in cell.outputs for problem in _wrong_with(output)]
        if cell.execution_count != number:
            wrong.append(f"cell {number} was not run, or not in this order")
    return wrong


def _wrong_with(output: Any) -> Iterator[str]:
    if output.output_type == "error":
        yield f"{output.ename}: {output.evalue}"
    if output.get("name") == "stderr":
        yield f"it writes to stderr: {output.text}"
    for kind, content in output.get("data", {}).items():
        if kind in PICTURES and len(base64.b64decode(content)) > LARGEST_PICTURE:
            yield f"a picture has {len(base64.b64decode(content))} bytes, more than {LARGEST_PICTURE}"
    words = [output.get("text", ""), *(str(text) for kind, text in output.get("data", {}).items() if "text" in kind)]
    for text in words:
        if place := re.search(r"(/home/|/root/|/tmp/|/Users/|[A-Z]:\\|\bat 0x[0-9a-f]{6})\S*", text):
            yield f"it shows a place of this machine: {place[0]}"


def _small(data: Any) -> dict[str, Any]:
    """What an output shows, with its smallest picture alone where there are pictures."""
    pictures = {kind: data[kind] for kind in PICTURES if kind in data}
    if not pictures:
        return dict(data)
    kind, content = min(pictures.items(), key=lambda item: len(item[1]))
    pixels = base64.b64decode(content)
    if len(pixels) > LARGEST_PICTURE:
        kind, source = "image/jpeg", pictures.get("image/png", content)
        pixels = _as_jpeg(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
    return {kind: base64.b64encode(pixels).decode()}


def _as_jpeg(picture: Image.Image) -> bytes:
    """A picture as a JPEG file that is small enough: first of lower quality, then of fewer pixels."""
    while True:
        for quality in (88, 80, 70):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= LARGEST_PICTURE:
                return file.getvalue()
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main(sys.argv[1:])
