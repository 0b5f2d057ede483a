"""A small folder of photos with odd names, the survey of a small network over it, and its page."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import torchviz_cnn as tvc

CATEGORIES = ("ape", "bee", "cat", "dog", "<i>elk</i>")
HOSTILE = "<img src=x onerror=alert(2)>&amp;\"' 100%41#é.png"
BYTES = os.fsdecode(b"\xe9.png")
"""A name that is not UTF-8."""
CAUTION = "63% of the evidence in 8 photos lies in the bottom right corner, where an even map has 4%"


def network() -> tvc.Network:
    """A network without training that finds evidence for every class: each looks at one channel above all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, len(CATEGORIES), 5, stride=4, padding=2), nn.Linear(len(CATEGORIES), len(CATEGORIES))
    with torch.no_grad():
        first.weight.mul_(4)
        last.weight.add_(4 * torch.eye(len(CATEGORIES)))
    model = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval()
    return tvc.Network(model, tvc.Preprocess((32, 32), geometry="stretch"), CATEGORIES, "<b>net</b>", "random")


def folder_of_photos(folder: Path, each: int = 8) -> Path:
    """Photos of five classes, with two odd names, and one file that is no photo."""
    noise = np.random.default_rng(0)
    for number, name in enumerate(CATEGORIES):
        place = folder / ("elk" if number == 4 else name)
        place.mkdir(parents=True)
        for photo in range(each):
            spots = noise.integers(0, 128, (6, 8, 3)) + noise.integers(0, 128, 3)  # each of its own colour
            small = Image.fromarray(spots.astype(np.uint8))
            odd = {(0, 0): HOSTILE, (1, 0): BYTES}.get((number, photo), f"{photo}.png")
            small.resize((48, 36), Image.Resampling.BICUBIC).save(place / odd)
    (folder / "cat" / "broken.png").write_bytes(b"no photo")
    return folder


def surveyed(photos: Path, labelled: bool = True, caution: bool = True) -> tvc.Survey:
    """The survey of a network with random weights; one class is given a caution, as chance gives none."""

    def truth(name: str) -> str:
        return {"elk": CATEGORIES[4]}.get(name.split("/")[0], name.split("/")[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvc.SkippedWarning)
        survey = tvc.survey(network(), photos, truth=truth if labelled else "none", k=4, workers=0)
    explained = survey.predicted if survey.true is None else survey.true
    shown = Counter(int(explained[one.index]) for one in survey.shown)
    seen = [one for one in survey.classes if caution and one.heatmap.any()]
    if not seen:
        return survey
    marked = max(seen, key=lambda one: shown[one.index])
    told = dataclasses.replace(marked, caution=f"{marked.name}: {CAUTION}", region="bottom right corner")
    return dataclasses.replace(survey, classes=tuple(told if one is marked else one for one in survey.classes))
