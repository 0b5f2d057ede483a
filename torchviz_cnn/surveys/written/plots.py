"""The calibration as numbers of an inline SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torchviz_cnn.core.errors import counted
from torchviz_cnn.surveys.written.words import percent

if TYPE_CHECKING:
    from torchviz_cnn.surveys.result import Survey

SIDE, COUNTS = 260.0, 60.0
"""Width and height of the plot, and the height of the counts below it, in its own units."""


def calibration(survey: Survey) -> dict[str, Any] | None:
    """The bins of the calibration, as bars, dots and rows of a table; None without labels."""
    known = survey.calibration
    if known is None:
        return None
    most, bars = max(int(known.count.max()), 1), []
    for place, count in enumerate(known.count.tolist()):
        if not count:
            continue
        low, high = float(known.edges[place]), float(known.edges[place + 1])
        confidence, accuracy = float(known.confidence[place]), float(known.accuracy[place])
        bars.append(
            {
                "x": low * SIDE + 1,
                "width": (high - low) * SIDE - 2,
                "y": (1 - accuracy) * SIDE,
                "height": accuracy * SIDE,
                "dot": (confidence * SIDE, (1 - accuracy) * SIDE),
                "gap": (1 - confidence) * SIDE,
                "tall": max(count / most * COUNTS, 1),
                "range": f"{percent(low)} to {percent(high)}",
                "count": count,
                "confidence": percent(confidence),
                "accuracy": percent(accuracy),
                "said": f"{percent(low)} to {percent(high)}: {counted(count, 'photo')}, "
                f"mean confidence {percent(confidence)}, {percent(accuracy)} right",
            }
        )
    mean = float(survey.confidence.mean())
    gap = mean - (survey.accuracy or 0.0)
    return {
        "bars": bars,
        "side": SIDE,
        "counts": COUNTS,
        "most": most,
        "error": "–" if math.isnan(known.error) else f"{known.error:.3f}",
        "verdict": _verdict(mean, survey.accuracy or 0.0, gap),
    }


def _verdict(confidence: float, accuracy: float, gap: float) -> str:
    both = f"the mean confidence is {percent(confidence)}, and {percent(accuracy)} of the predictions are right"
    if abs(gap) < 0.02:
        return f"On the whole the confidence fits: {both}."
    return f"On the whole the network is {'too sure' if gap > 0 else 'not sure enough'}: {both}."
