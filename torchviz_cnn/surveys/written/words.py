"""What the page says in words: the headline, and what each figure means and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchviz_cnn.attribution.methods import all_methods
from torchviz_cnn.core.errors import counted
from torchviz_cnn.surveys.result import BORDER_AREA, CORNER_AREA, RANDOM
from torchviz_cnn.surveys.written.content import shown_text

if TYPE_CHECKING:
    from torchviz_cnn.surveys.result import Survey


def percent(share: float) -> str:
    """A share as the page writes it.

    >>> percent(0.61), percent(0.004), percent(1.0)
    ('61 %', '0.4 %', '100 %')
    """
    near = 0 < share < 0.0995 or 0.9 < share < 1
    return f"{100 * share:.{1 if near else 0}f} %"


def headline(survey: Survey) -> tuple[str, str]:
    """What is said after the name of the network, in two parts, of which the second is as a figure."""
    if survey.correct is None:
        return "predicts these classes for", counted(len(survey), "photo")
    right, count = int(survey.correct.sum()), counted(len(survey), "photo")
    return f"is right on {right:,} of {count}:", percent(right / len(survey))


def facts(survey: Survey) -> list[str]:
    """What else the first line says: the method, the folder, what was left out."""
    settings = survey.settings
    where = f" at {settings.layer}" if settings.layer else ""
    said = [RANDOM] if settings.random else []
    said += [f"heatmaps by {settings.method_title}{where}"]
    if settings.folder:
        said.append(f"folder {Path(settings.folder).name}")
    if survey.calibration is not None:
        said.append(over_confidence(survey))
    if not survey.labelled:
        said.append(settings.labels)
    return [shown_text(one) for one in said]


def over_confidence(survey: Survey) -> str:
    """How far the mean confidence is from the share of right predictions."""
    confidence, accuracy = float(survey.confidence.mean()), survey.accuracy or 0.0
    gap = confidence - accuracy
    said = "as high as the accuracy" if abs(gap) < 0.02 else "too sure" if gap > 0 else "not sure enough"
    return f"mean confidence {percent(confidence)}: {said}"


def glossary(survey: Survey) -> list[tuple[str, str]]:
    """What each figure of the page means, and what it does not."""
    method, labelled = all_methods().get(survey.settings.method), survey.labelled
    shows = f"{survey.settings.method_title} shows {method.shows}. " if method else ""
    evidence = "true class" if labelled else "predicted class"
    rows = [
        (
            "Heatmap",
            f"{shows}It says where, and not what: the class may depend on the colour, the texture or the form of what "
            "lies there. Maps of late layers are coarse, so that their edges are not those of an object.",
        ),
        (
            "Confidence",
            "The probability that the network gives its prediction. It is not the chance that the prediction is right"
            + (": the calibration below shows that." if labelled else "."),
        ),
        (
            "Margin",
            "The probability of the predicted class minus that of the second likeliest. A small margin says that two "
            "classes are close; a large one does not say that the prediction is right.",
        ),
    ]
    if labelled:
        rows += [
            (
                "Loss",
                "The cross-entropy: minus the natural logarithm of the probability of the true class. It is 0 where "
                "that is sure, and high where the network is sure of something else. A high loss can also mean that "
                "the label is wrong: look at the photo first.",
            ),
            (
                "Difference",
                "The heatmap of the predicted class minus that of the true class, both on one scale. Red is where the "
                "evidence for the prediction is stronger, blue where that for the true class is. Where both are "
                "equal, as where there is none, the photo alone is seen.",
            ),
            (
                "Expected calibration error",
                "The distance between confidence and accuracy, as a mean over ten bins of confidence, weighted by "
                "their photos. 0 does not mean that predictions are right, only that the confidence says how often.",
            ),
        ]
    rows += [
        (
            "Border share",
            f"The share of the evidence for the {evidence} in the outer tenth along the four sides of what the network "
            f"sees. A map that is the same everywhere has {percent(BORDER_AREA)}. A high share alone is no mistake: "
            "things do lie there, and padding makes some layers strong at the border.",
        ),
        (
            "Corner share",
            f"The same in the four corners, each a fifth of the sides. An even map has {percent(CORNER_AREA)}.",
        ),
    ]
    if survey.inside is not None:
        rows.append(
            (
                "Object share",
                "The share of the evidence that lies on the mask of the object. The rest lies elsewhere. In this "
                f"folder, {survey.about_objects}.",
            )
        )
    rows += [
        (
            "Mean heatmap",
            f"The mean of the heatmaps of the {evidence} over its photos, all stretched to one square, each map "
            "counting the same. Each is drawn on its own scale. It shows what stays at its place, such as a mark.",
        ),
        (
            "Caution",
            "Much more of the evidence for a class lies in one corner or along one edge than for other classes, and "
            "more than chance gives. It is a reason to look, and no proof: cover that part of the photos, and make the "
            "survey again.",
        ),
    ]
    return rows
