"""Make the pictures of docs/gallery: run the lines that each page shows, and keep the picture that they save.

python scripts/gallery.py [NAME ...]

A page NAME.md has one block of Python, which writes NAME.png, a clip NAME.mp4 or a page NAME/index.html.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
BYTES = 100_000
"""How large a picture may be."""


def main(names: list[str]) -> None:
    for name in names or names_of_pages():
        with tempfile.TemporaryDirectory() as folder:
            picture = made_by(name, Path(folder))
        save(picture, GALLERY / "pictures" / f"{name}.jpg")
        print(name)


def names_of_pages() -> list[str]:
    return sorted(page.stem for page in GALLERY.glob("*.md") if page.stem != "index")


def code_of(name: str) -> str:
    """The one block of Python on a page."""
    (block,) = re.findall(r"```python\n(.*?)```", (GALLERY / f"{name}.md").read_text(encoding="utf-8"), re.S)
    return str(block)


def made_by(name: str, folder: Path) -> Image.Image:
    """What a page's lines write, run in a folder, as a picture."""
    with contextlib.chdir(folder):
        exec(compile(code_of(name), f"docs/gallery/{name}.md", "exec"), {})
        if os.path.exists(f"{name}.mp4"):
            return frames_of(f"{name}.mp4")
        if os.path.exists(f"{name}/index.html"):
            return screenshot(Path(name, "index.html"))
        return Image.open(f"{name}.png").convert("RGB")


def frames_of(clip: str, count: int = 4) -> Image.Image:
    """A few frames of a clip, spread over it, side by side."""
    video, frames = cv2.VideoCapture(clip), []
    while (read := video.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    shown = [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    return Image.fromarray(np.concatenate(shown, 1))


def screenshot(page: Path, width: int = 1120, height: int = 900) -> Image.Image:
    """The top of a page, as Chromium draws it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce").new_page()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_timeout(1500)
        shot = tab.screenshot()
        browser.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def save(picture: Image.Image, path: Path, size: tuple[int, int] = (1000, 640)) -> None:
    """As a JPEG of at most `BYTES`, and of at most this width and height."""
    path.parent.mkdir(exist_ok=True)
    picture.thumbnail(size, Image.Resampling.LANCZOS)
    for quality in range(90, 30, -5):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= BYTES:
            return
    raise SystemExit(f"{path.name} does not fit in {BYTES} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
