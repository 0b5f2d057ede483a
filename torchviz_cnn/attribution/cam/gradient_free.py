"""Heatmaps without gradients: Ablation-CAM and Score-CAM, which weigh a layer's maps by what the score does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchviz_cnn.attribution.cam.heatmap import Heatmap, Layer, heatmap_of, positive, require_places
from torchviz_cnn.core import checks
from torchviz_cnn.core.errors import TorchvizWarning
from torchviz_cnn.core.progress import progress_bar
from torchviz_cnn.core.warn import warn
from torchviz_cnn.hooks.inputs import Given, Input, LayoutName, Output, Wrt, prepared
from torchviz_cnn.hooks.manager import HookManager
from torchviz_cnn.hooks.network import Model
from torchviz_cnn.scores.gradients import BATCHED_BYTES
from torchviz_cnn.scores.outputs import Ending
from torchviz_cnn.scores.targets import Score, Target, Targets, check_score, scores_of
from torchviz_cnn.scores.trace import Trace, layer_of, trace

ENLARGED = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""How maps of one to three dimensions are enlarged between their places."""
_IMAGES_ON_CPU, _IMAGES_ON_GPU = 16, 128
_log = logging.getLogger("torchviz_cnn")


def ablation_cam(
    model: Model,
    x: Input,
    layer: Layer = None,
    target: Target = None,
    *,
    score: Score = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Heatmap:
    """Compute Ablation-CAM: a layer's maps, each weighted by the share of the score that is lost without it.

        values = ReLU( sum_c  w_c A_c ),   w_c = (y - y without channel c) / y

    What comes before the layer runs for one image alone, whatever the number of channels; a channel that is zero
    everywhere is not run. Where a shortcut leads around the layer and does not take this, as in a DenseNet, all of the
    network runs for every channel, which is logged.

    Args:
        model, x, layer, target, score, relu, output, wrt, layout: as for `grad_cam`.
        batch_size: for how many channels what follows the layer runs at a time; by default as many as fit in 256 MB.
        progress: whether to show a bar.

    Returns:
        A Heatmap with values (B, h, w) or (B, K, h, w).

    Raises:
        InputError: for a batch_size below 1.
        LayerError, TargetError, ModelError: as for `grad_cam`.

    Warns:
        EmptyMapWarning: where a map has no positive value.
        TorchvizWarning: where a score y is not above 0. The formula divides by it: a negative one turns the map into
            the evidence against the class, and at 0 the losses themselves are the weights.

    Desai & Ramaswamy, WACV 2020.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> ablation_cam(model, torch.rand(3, 1, 8, 8), "1", score="probability", relu=False).values.shape
    torch.Size([3, 6, 6])
    """
    _check(score, batch_size)
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name, run = _run(given, layer, target, score)
        own, scores = run.activations[name], run.targets.scores
        dim = run.layouts[name].channel_dim  # tokens that are no places are without the channel too
        without = scores[:, :, None].repeat(1, 1, own.shape[dim])
        count = batch_size or max(BATCHED_BYTES // 2 // (own[0].numel() * own.element_size()), 1)
        channels = [one.movedim(dim, 0).flatten(1).any(1).nonzero()[:, 0] for one in own]
        with torch.no_grad(), HookManager(given.model) as hooks:
            for image, part in _parts(channels, count, progress, "Ablation-CAM"):
                ablated = own[image].repeat(len(part), *[1] * (own.ndim - 1))
                ablated.movedim(dim, 1)[torch.arange(len(part)), part] = 0
                alone = given.of_images([image], given.x[image : image + 1])
                with Ending() as ending:
                    gives = hooks.run_from(name, ablated, alone.inputs(alone.x))
                same = run.targets.of_images([image] * len(part))
                without[image, :, part] = same.again(gives, ending).scores.T
        _warn_of_divisor(scores, run.targets)
        divisor = torch.where(scores == 0, 1, scores)[:, :, None]
        return _weighted("Ablation-CAM", given, name, run, (scores[:, :, None] - without) / divisor, relu)


def score_cam(
    model: Model,
    x: Input,
    layer: Layer = None,
    target: Target = None,
    *,
    score: Score = "logit",
    relu: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    output: Output = None,
    wrt: Wrt = None,
    layout: LayoutName = None,
) -> Heatmap:
    """Compute Score-CAM: a layer's maps, each weighted by the score of the input where the map lets it through.

        values = ReLU( sum_c  w_c A_c ),   w = softmax_c( score(x * up(unit(A_c))) - score(baseline) )

    `unit` is from 0 to 1 over each channel, `up` bilinear to the size of the input. The baseline's score is the same
    for every channel, and leaves a softmax as it is: it is not computed. A channel that is the same everywhere has no
    unit range; it tells no place from another, is not run, and gets the weight 0.

    Args:
        model, x, layer, target, relu, output, wrt, layout: as for `grad_cam`.
        score: as for `grad_cam`; the softmax over channels weighs differences of 1 in it by e.
        batch_size: how many masked images run at a time; by default what is fast on the device. No more than these are
            in memory at once.
        progress: whether to show a bar.

    Returns:
        A Heatmap with values (B, h, w) or (B, K, h, w).

    Raises:
        InputError: for a batch_size below 1.
        LayerError, TargetError, ModelError: as for `grad_cam`.

    Warns:
        EmptyMapWarning: where a map has no positive value.

    Wang et al., arXiv 1910.01279.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> score_cam(model, torch.rand(3, 1, 8, 8), "1", target=4, relu=False).values.shape
    torch.Size([3, 6, 6])
    """
    _check(score, batch_size)
    with prepared(model, x, output=output, wrt=wrt, layout=layout) as given:
        name, run = _run(given, layer, target, score)
        maps, classes = run.maps(name).float(), run.targets.scores.shape[1]
        flat = maps.flatten(2)
        least, most = flat.amin(2), flat.amax(2)
        scores = maps.new_full((len(maps), classes, maps.shape[1]), -torch.inf)
        count = batch_size or (_IMAGES_ON_GPU if given.x.is_cuda else _IMAGES_ON_CPU)
        channels = [one.nonzero()[:, 0] for one in most > least]
        memory = _fast_format(given)
        for image, part in _parts(channels, count, progress, "Score-CAM"):
            shape = (-1, *[1] * (maps.ndim - 1))
            low, high = least[image, part].view(shape), most[image, part].view(shape)
            masks = enlarged((maps[image, part, None] - low) / (high - low), given.x.shape[2:])
            masked = (given.x[image] * masks).to(given.x.dtype, memory_format=memory)
            scores[image, :, part] = scores_of(given, masked, [image] * len(part), run.targets).T
        weights = scores.softmax(2).nan_to_num(0)  # without a channel that varies there is nothing to weigh
        return _weighted("Score-CAM", given, name, run, weights, relu)


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (n, C, *S) at another size, bilinear (linear, trilinear) between their places."""
    return F.interpolate(maps, tuple(size), mode=ENLARGED[maps.ndim - 2], align_corners=False)


def _check(score: Score, batch_size: int | None) -> None:
    check_score(score)
    if batch_size is not None:
        checks.whole_number("batch_size", batch_size)


def _run(given: Given, layer: Layer, target: Target, score: Score) -> tuple[str, Trace]:
    """The name of the layer, and what one forward pass without gradients gave."""
    name = layer_of(given, layer, target)
    with torch.no_grad(), trace(given, [name], target, score) as run:
        require_places(given.model, name, run.maps(name))
    return name, run


def _parts(channels: list[Tensor], count: int, progress: bool, title: str) -> Iterator[tuple[int, Tensor]]:
    """The channels of each image, `count` at a time."""
    with progress_bar(progress, total=sum(map(len, channels)), desc=title, unit=" channels") as bar:
        for image, of_image in enumerate(channels):
            for part in of_image.split(count) if len(of_image) else ():  # type: ignore[no-untyped-call]
                yield image, part
                bar.update(len(part))


def _fast_format(given: Given) -> torch.memory_format:
    """The order in memory in which a network takes images fastest.

    On a CPU convolutions take images whose channels lie side by side up to 1.3 times as fast; but a network that views
    its maps in another shape may not take them.
    """
    if given.x.is_cuda or given.x.ndim != 4:
        return torch.contiguous_format
    image = given.of_images([0], given.x[:1].contiguous(memory_format=torch.channels_last))
    try:
        with torch.no_grad(), HookManager(given.model) as hooks:
            hooks.run_on(image.inputs(image.x), stop_early=False)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        _log.info("images run as they are in memory, not channels last: %s", str(error).partition("\n")[0])
        return torch.contiguous_format
    return torch.channels_last


def _warn_of_divisor(scores: Tensor, targets: Targets) -> None:
    """Warn of scores (B, K) that are not above 0."""
    wrong = scores <= 0
    if bool(wrong.any()):
        image, k = (int(i) for i in wrong.nonzero()[0])
        others = f" (and {int(wrong.sum()) - 1} more)" if int(wrong.sum()) > 1 else ""
        what = targets.words(image, k)
        shows = "shows the evidence against it" if scores[image, k] < 0 else "is weighted by what is lost alone"
        instead = "; score='probability', as ablation_cam has it, is above 0" if targets.label is None else ""
        warn(
            f"the score of {what} in image {image} is {float(scores[image, k]):.3g}"
            f"{others}: Ablation-CAM divides by it, so the map {shows}{instead}",
            TorchvizWarning,
        )


def _weighted(title: str, given: Given, layer: str, run: Trace, weights: Tensor, relu: bool) -> Heatmap:
    """The heatmap of weights (B, K, C) of a layer's maps."""
    activations = run.maps(layer).float()
    with torch.autocast(activations.device.type, enabled=False):
        values = torch.einsum("bkc,bc...->bk...", weights, activations)
    values = positive(values, layer, run.targets) if relu else values
    return heatmap_of(title, given, layer, values, run, signed=not relu)
