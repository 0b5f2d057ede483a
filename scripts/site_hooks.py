"""What MkDocs cannot do by itself (mkdocs.yml): pages of the site that lie outside of docs/.

Links to and from them are written as they hold in the repository; here they are turned to the places in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "weights/README.md": "model_card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Where pages outside of docs/ stand in the site."""
MOVED = {**OUTSIDE, "README.md": "index.md"}
"""Where links lead to. The README is for the repository: the site's own first page takes its place."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository to the places in the site."""
    place = page.file.src_uri
    here = next((source for source, moved in OUTSIDE.items() if moved == place), f"docs/{place}")

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link["target"]))
        if target in MOVED or target.startswith("docs/"):
            moved = MOVED.get(target, target.removeprefix("docs/"))
            return f"[{link['text']}]({posixpath.relpath(moved, posixpath.dirname(place) or '.')}{link['rest']})"
        return link["text"] if (ROOT / target).is_file() else link[0]  # a script, which is no page

    return re.sub(r"\[(?P<text>[^\]]*)\]\((?!\w+:|/)(?P<target>[^)#\s]+)(?P<rest>[^)]*)\)", turned, markdown)
