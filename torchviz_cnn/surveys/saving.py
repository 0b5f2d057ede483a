"""A survey as files: tables, pictures, FiftyOne's samples, COCO's boxes, and all of it to be read again."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn.core.errors import OutputError, TorchvizWarning, counted
from torchviz_cnn.core.warn import warn
from torchviz_cnn.media import render
from torchviz_cnn.media.datasets.kept import kept as kept_images
from torchviz_cnn.media.render import Array
from torchviz_cnn.runs import files
from torchviz_cnn.runs.folder import ANEW, STATE, ResultFolder
from torchviz_cnn.surveys.result import REGIONS, Calibration, ClassSummary, Confusion, Settings, ShownPhoto, Survey

if TYPE_CHECKING:
    from torchviz_cnn.media.datasets.source import ImageSource

KIND = "survey"
RESULT = "survey"
"""The name of the file of all arrays."""
THRESHOLD = 0.15
"""Boxes lie around the parts of a map that are at least that strong, as `Heatmap.box` has them."""
_SIDE = 512
"""The longer side of the pictures of photos, in pixels."""
_MAP_SIDE = 64
"""The longer side of the maps among FiftyOne's samples."""
_COLUMNS = (
    *("predicted", "confidence", "margin", "top", "top_probabilities", "true", "true_probability", "loss"),
    *("border", "corner", "regions", "predicted_border", "predicted_corner", "inside"),
)


def identity_of(settings: Settings, **more: Any) -> dict[str, Any]:
    """What identifies a survey: what it was made of, and how; where the photos are does not."""
    return {name: value for name, value in {**dataclasses.asdict(settings), **more}.items() if name != "folder"}


def write(survey: Survey, folder: ResultFolder, kept: Collection[str] = ()) -> None:
    """Write all but the files that are kept into a folder of results that is open; the manifest says last that it is
    finished, and how large each file is."""
    survey = dataclasses.replace(survey, source=kept_images(survey.source))  # the page and the pictures show the same
    about, tensors = _plain(survey)
    folder.save(RESULT, tensors, about=json.dumps(about))
    written = [f"{RESULT}.safetensors"]
    for name, fill in _texts(survey).items():
        if name not in kept:
            text = fill(survey)
            files.write(folder.path / name, lambda file, text=text: file.write(text.encode("utf-8", "surrogateescape")))  # type: ignore[misc]
        written.append(name)
    for name, picture in _pictures(survey, kept):
        files.save_image(folder.path / name, picture)
    written += [file for shown in survey.shown for file in shown.files.values()]
    earlier = folder.manifest["progress"].get("files", {})
    sizes = {name: earlier[name] if name in kept else _size(folder.path / name) for name in written}
    folder.update(photos=len(survey) + len(survey.skipped), skipped=survey.skipped, files=sizes, finished=True)


def complete(survey: Survey, folder: ResultFolder) -> None:
    """Write what is not there, or not any more; what the pass kept is then not needed."""
    progress = folder.manifest["progress"]
    sizes = progress.get("files")
    if not progress.get("finished") or not isinstance(sizes, dict):
        write(survey, folder)
    else:
        there = {name: size for name in sizes if (size := _size(folder.path / name))}
        changed = [name for name, size in there.items() if size != sizes[name]]
        if changed:
            many = f"{counted(len(changed), 'file')} in {folder.path}"
            words = f"{many} changed since the survey was written, and stay as they are; the first is {changed[0]}"
            warn(f"{words}: one that is deleted is written anew", TorchvizWarning)
        if len(there) < len(sizes):
            write(survey, folder, kept=there)
    folder.file(STATE).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _texts(survey: Survey) -> dict[str, Callable[[Survey], str]]:
    """The files of text, by their names."""
    from torchviz_cnn.surveys.written.page import html

    texts: dict[str, Callable[[Survey], str]] = {"predictions.csv": predictions_table, "classes.csv": classes_table}
    if survey.labelled:
        texts["confusions.csv"] = confusions_table
    if survey.settings.folder is not None:
        texts |= {"samples.json": fiftyone_samples, "boxes.json": coco_boxes}
    return {**texts, "index.html": html}


def _pictures(survey: Survey, kept: Collection[str] = ()) -> Iterator[tuple[str, Image.Image]]:
    """The overlays of the photos shown, by their files, but for those that are kept."""
    missing = [shown for shown in survey.shown if not all(file in kept for file in shown.files.values())]
    for shown, photo in zip(missing, survey.photos([shown.name for shown in missing]), strict=True):
        small = photo.copy()
        small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        x, y = small.width / photo.width, small.height / photo.height
        box = (shown.box[0] * x, shown.box[1] * y, shown.box[2] * x, shown.box[3] * y)
        for what, file in shown.files.items():
            if file in kept:
                continue
            values = shown.heatmap if what == "predicted" else shown.true_heatmap
            yield file, render.overlay(small, render.unit_range(values), box, colormap_name="jet")  # type: ignore[arg-type]


def predictions_table(survey: Survey) -> str:
    """A row for each photo that could be read."""
    measured: dict[str, Iterable[Any]] = {"file": survey.names}
    if survey.true is not None and survey.correct is not None:
        measured |= {"true": _names(survey, survey.true), "predicted": _names(survey, survey.predicted)}
        measured |= {"correct": survey.correct.astype(int).tolist(), "true_probability": survey.true_probability}  # type: ignore[dict-item]
        measured |= {"loss": survey.loss}  # type: ignore[dict-item]
    else:
        measured |= {"predicted": _names(survey, survey.predicted)}
    measured |= {name: getattr(survey, name) for name in ("confidence", "margin", "border", "corner")}
    measured |= {name: getattr(survey, name) for name in ("predicted_border", "predicted_corner")}
    if survey.inside is not None:
        measured["inside"] = survey.inside
    for place in range(survey.top.shape[1]):
        measured[f"class_{place + 1}"] = _names(survey, survey.top[:, place])
        measured[f"probability_{place + 1}"] = survey.top_probabilities[:, place]
    return _table(list(measured), zip(*measured.values(), strict=True))


def classes_table(survey: Survey) -> str:
    """A row for each class."""
    head = ["class", "index", "photos", "predicted", "correct", "accuracy", "border", "corners", "inside"]
    regions = [region.replace(" ", "_") for region in REGIONS]
    rows = [_class_row(one) for one in survey.classes]
    return _table([*head, *regions, *(f"others_{region}" for region in regions), "caution"], rows)


def _class_row(one: ClassSummary) -> list[Any]:
    measured = [one.name, one.index, one.count, one.predicted, one.correct, one.accuracy]
    shares = [one.border, one.corners, one.inside, *one.regions.values(), *one.others.values()]
    return [*measured, *shares, one.caution]


def confusions_table(survey: Survey) -> str:
    """A row for each pair of a true and another predicted class."""
    rows = [(survey.categories[one.true], survey.categories[one.predicted], one.count) for one in survey.confusions]
    return _table(["true", "predicted", "photos"], rows)


def _names(survey: Survey, classes: Array) -> list[str]:
    return [survey.categories[number] for number in classes.tolist()]


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value as a table has it: numbers with 6 digits, and nothing for what is not measured."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else value


def fiftyone_samples(survey: Survey) -> str:
    """The samples of `fiftyone.types.FiftyOneDataset`, with a `Classification` and, where shown, `Heatmap` labels."""
    shown = {one.name: one for one in survey.shown}
    samples = []
    for place, name in enumerate(survey.names):
        confidence = float(survey.confidence[place])
        label = survey.categories[int(survey.predicted[place])]
        sample: dict[str, Any] = {
            "filepath": str(Path(survey.settings.folder or "") / name),
            "tags": list(shown[name].reasons) if name in shown else [],
            "prediction": {"_cls": "Classification", "label": label, "confidence": confidence},
            "margin": float(survey.margin[place]),
        }
        if survey.true is not None and survey.loss is not None:
            sample["ground_truth"] = {"_cls": "Classification", "label": survey.categories[int(survey.true[place])]}
            sample["loss"] = float(survey.loss[place])
        if name in shown:
            one = shown[name]
            sample["heatmap"] = _fiftyone_heatmap(one.heatmap, one)
            if one.true_heatmap is not None:
                sample["heatmap_true"] = _fiftyone_heatmap(one.true_heatmap, one)
        samples.append(sample)
    return json.dumps({"samples": samples}, indent=1) + "\n"


def _fiftyone_heatmap(values: Array, shown: ShownPhoto) -> dict[str, Any]:
    """A map over the whole photo, as FiftyOne stretches it: an array of 0..255 as npy, deflated, in base64."""
    scale = min(1.0, _MAP_SIDE / max(shown.size))
    width, height = (max(1, round(side * scale)) for side in shown.size)
    x, y = width / shown.size[0], height / shown.size[1]
    left, top, right, bottom = (side * by for side, by in zip(shown.box, (x, y, x, y), strict=True))
    sampled = render.resample(render.unit_range(values), (left, top, right, bottom), width, height)
    down, across = np.arange(height) + 0.5, np.arange(width) + 0.5
    seen = ((top <= down) & (down <= bottom))[:, None] & ((left <= across) & (across <= right))
    buffer = io.BytesIO()
    np.save(buffer, np.rint(sampled * seen * 255).astype(np.uint8), allow_pickle=False)
    text = base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")
    return {"_cls": "Heatmap", "map": text, "range": [0, 255]}


def coco_boxes(survey: Survey) -> str:
    """COCO's annotations: boxes around the evidence for the predicted class of each photo shown, and the true one."""
    images, annotations, used = [], list[dict[str, Any]](), set[int]()
    for number, shown in enumerate(survey.shown, start=1):
        width, height = shown.size
        images.append({"id": number, "file_name": shown.name, "width": width, "height": height})
        for what, index, values in _explained(survey, shown):
            used.add(index)
            for left, top, right, bottom, strength in render.regions(
                render.unit_range(values), shown.box, width, height, THRESHOLD
            ):
                box = [left, top, right - left, bottom - top]
                about = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": strength, "explains": what}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": index + 1, **about})
    categories = [{"id": index + 1, "name": survey.categories[index]} for index in sorted(used)]
    whole = {"info": {"description": f"boxes around the evidence, by {survey.settings.method_title}"}}
    return (
        json.dumps({**whole, "images": images, "categories": categories, "annotations": annotations}, indent=1) + "\n"
    )


def _explained(survey: Survey, shown: ShownPhoto) -> Iterator[tuple[str, int, Array]]:
    """What is explained of a photo shown: the predicted class, and the true one where it is another."""
    predicted = int(survey.predicted[shown.index])
    yield "predicted", predicted, shown.heatmap
    if survey.true is not None and shown.true_heatmap is not None and int(survey.true[shown.index]) != predicted:
        yield "true", int(survey.true[shown.index]), shown.true_heatmap


def _plain(survey: Survey) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A survey as what JSON takes, and tensors."""
    arrays: dict[str, Array] = {name: getattr(survey, name) for name in _COLUMNS if getattr(survey, name) is not None}
    arrays["coverage"] = survey.coverage
    arrays["class_heatmaps"] = np.array([one.heatmap for one in survey.classes])
    for place, shown in enumerate(survey.shown):
        arrays[f"shown/{place}/predicted"] = shown.heatmap
        if shown.true_heatmap is not None:
            arrays[f"shown/{place}/true"] = shown.true_heatmap
    if survey.calibration is not None:
        calibration = vars(survey.calibration)
        arrays |= {f"calibration/{name}": np.asarray(value) for name, value in calibration.items()}
    about = {
        "settings": dataclasses.asdict(survey.settings),
        "categories": survey.categories,
        "names": survey.names,
        "classes": [_without(one, "heatmap") for one in survey.classes],
        "confusions": [dataclasses.astuple(one) for one in survey.confusions],
        "shown": [_without(one, "heatmap", "true_heatmap") for one in survey.shown],
        "skipped": dict(survey.skipped),
    }
    return about, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _without(value: Any, *names: str) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(value) if field.name not in names]
    return {name: _mapping(getattr(value, name)) for name in fields}


def _mapping(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def read(folder: ResultFolder, source: ImageSource | None = None) -> Survey:
    """The survey in a folder. Raises OutputError for one that is not finished, or broken."""
    if not folder.has(RESULT):
        done = counted(folder.manifest["progress"].get("photos", 0), "photo")
        raise folder.without_result(RESULT, done)
    tensors, texts = folder.load_with_metadata(RESULT)
    try:
        return _read(json.loads(texts["about"]), {name: t.numpy() for name, t in tensors.items()}, source)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise OutputError(f"{folder.file(RESULT)} is broken: {error}; {ANEW}") from error


def _read(about: dict[str, Any], arrays: dict[str, Array], source: ImageSource | None) -> Survey:
    maps = arrays["class_heatmaps"]
    calibration = {name[12:]: array for name, array in arrays.items() if name.startswith("calibration/")}
    shown = [
        ShownPhoto(
            **{**one, "reasons": tuple(one["reasons"]), "size": tuple(one["size"]), "box": tuple(one["box"])},
            heatmap=arrays[f"shown/{place}/predicted"],
            true_heatmap=arrays.get(f"shown/{place}/true"),
        )
        for place, one in enumerate(about["shown"])
    ]
    error = calibration.pop("error", np.nan)
    columns: dict[str, Any] = {name: arrays.get(name) for name in _COLUMNS}
    return Survey(
        settings=Settings(**about["settings"]),
        categories=tuple(about["categories"]),
        names=tuple(about["names"]),
        **columns,
        classes=tuple(ClassSummary(**one, heatmap=maps[place]) for place, one in enumerate(about["classes"])),
        confusions=tuple(Confusion(*one) for one in about["confusions"]),
        calibration=Calibration(**calibration, error=float(error)) if calibration else None,
        shown=tuple(shown),
        skipped=about["skipped"],
        coverage=arrays["coverage"],
        source=source,
    )
