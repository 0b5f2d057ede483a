"""The demo: the bundled network on a photo, all that can be seen, on one page."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from PIL import Image
from tqdm import tqdm

from torchviz_cnn import results
from torchviz_cnn.capture import capture
from torchviz_cnn.errors import EmptyMapWarning, ImageError
from torchviz_cnn.images import read_image
from torchviz_cnn.layers import describe
from torchviz_cnn.methods.cam import grad_cam
from torchviz_cnn.methods.scores import probabilities
from torchviz_cnn.models import Network, load_model

MODEL = "cats_and_dogs"


def run(out: Path, images: Sequence[Path] = (), progress: bool = False) -> Path:
    """Write activations, class heatmaps and an index page for photos, by default a cat. Gives the page's path."""
    net = load_model(MODEL)
    photos = [(path.stem, name, read_image(path)) for path, name in results.file_names(images).items()]
    photos = photos or [("chelsea", "chelsea", _cat())]
    sections = [_section(net, *photo, out) for photo in tqdm(photos, "demo", disable=not progress)]
    table = html.escape(str(describe(net.model, net.input_size)))
    page = _PAGE.format(body="\n".join(sections), model=html.escape(repr(net)), table=table)
    return results.write(out / "index.html", lambda file: file.write(page.encode()))


def _section(net: Network, title: str, folder: str, photo: Image.Image, out: Path) -> str:
    x = net.preprocess(photo)[None]
    classes = torch.arange(len(net.categories or ()))[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyMapWarning)  # said in the caption instead
        heat = grad_cam(net.model, x, target=classes)
    acts = capture(net.model, x)
    chances = probabilities(heat.logits)[0].tolist()
    pictures: list[tuple[str, str]] = []

    def add(file: str, picture: Image.Image, caption: str) -> None:
        results.save_image(out / "pictures" / folder / file, picture)
        pictures.append((f"pictures/{folder}/{file}", caption))

    for k, category in enumerate(net.categories or ()):
        none = "" if heat.map(0, k).any() else ": nothing speaks for it"
        picture = heat.plot(photo, k=k, categories=net.categories)
        add(f"grad_cam_{category}.png", picture, f"What speaks for {category}, by {heat.method} at {heat.layer}{none}")
    for place, layer in enumerate(layer for layer, maps in acts.items() if maps.shape[2:] != (1, 1)):
        zero = float(acts.sparsity(layer)[0])
        add(
            f"activations_{place:02d}_{layer}.png",
            acts.plot(layer),
            f"{layer}: {zero:.0%} of its channels are all zero",
        )
    said = ", ".join(f"{c} {p:.3f}" for c, p in zip(net.categories or (), chances, strict=True))
    figures = "\n".join(
        f'<figure><img loading="lazy" src="{quote(src)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for src, caption in pictures
    )
    print(f"{title}: {said}")
    return f"<h2>{html.escape(title)}: {html.escape(said)}</h2>\n{figures}"


def _cat() -> Image.Image:
    """Chelsea the cat, a CC0 photo that scikit-image carries."""
    try:
        from skimage import data
    except ImportError:
        raise ImageError(
            "the demo's photo comes with scikit-image: pip install 'torchviz-cnn[demo]', or name a photo"
        ) from None
    return Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the network sees</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
  body {{ max-width: 76rem; margin: 2rem auto; padding: 0 1rem }}
  figure {{ margin: 1.5rem 0 }}
  img {{ max-width: 100%; height: auto; background: #fff; border-radius: 4px }}
  figcaption {{ opacity: .75 }}
  pre {{ overflow-x: auto }}
</style>
<h1>What the network sees</h1>
<p>The bundled network of this library, trained to tell cats from dogs: <code>{model}</code>. What speaks for each class, what
each layer gives, and the layers themselves.</p>
{body}
<h2>The network</h2>
<pre>{table}</pre>
</html>
"""
