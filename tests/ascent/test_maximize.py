"""Gradient ascent: the textbook's loop to the constant, independent images, and a model given back as it was."""

from __future__ import annotations

import contextlib
import gc
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import torchviz_cnn as tvc
from tests import networks
from tests.conftest import Terminal, unchanged
from tests.networks import images
from torchviz_cnn import objectives
from torchviz_cnn.ascent.loop import Precision
from torchviz_cnn.ascent.recipes import RECIPES, Normalize, Preset, Quality, Recipe, normalized
from torchviz_cnn.ascent.result import Patterns
from torchviz_cnn.ascent.transformations import jitter
from torchviz_cnn.core.errors import DeadFilterWarning, InputError, LayerError, ModelError, TargetError
from torchviz_cnn.media.images import Preprocess

LAST = {"vgg": "features.7", "functional": "conv4", "reused": "conv3", "residual": "layer2", "squeeze": "features.3"}


def builders() -> dict[str, Callable[[], nn.Module]]:
    return {
        "vgg": networks.vgg_like,
        "functional": networks.functional_relu,
        "reused": networks.reused,
        "residual": networks.residual,
        "squeeze": networks.squeeze_like,
    }


def by_hand(
    model: nn.Module, layer: str, channel: int, start: Tensor, steps: int, step: float, how: str, border: int
) -> tuple[Tensor, list[float]]:
    """The textbook's loop, written down again: one image (1, C, H, W), the layer's output by a plain hook."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    x, losses = start.clone(), []
    for _ in range(steps + 1):
        x.requires_grad_()
        seen.clear()
        model(x)
        activation = seen[0][:, channel, border : seen[0].shape[2] - border, border : seen[0].shape[3] - border]
        loss = activation.mean()
        losses.append(float(loss.detach()))
        (gradient,) = torch.autograd.grad(loss, x)
        if how == "rms":
            gradient = gradient / (torch.sqrt(torch.mean(torch.square(gradient))) + 1e-5)
        elif how == "l2":
            gradient = gradient / torch.sqrt(torch.sum(torch.square(gradient)))
        else:
            gradient = F.normalize(gradient, dim=1, eps=1e-7)
        last, x = x.detach(), (x + step * gradient).detach()
    handle.remove()
    return last, losses


@pytest.mark.parametrize("preset", ["dlwp-2017", "dlwp-2025"])
@pytest.mark.parametrize("how", ["l2", "rms", "pixel"])
@pytest.mark.parametrize("layer", ["features.0", "features.5", "features.7"])
def test_presets_are_the_textbooks_loop(preset: Preset, how: Normalize, layer: str) -> None:
    model, recipe = networks.vgg_like(), RECIPES[preset]
    options: Any = {"size": 40, "preset": Recipe.named(preset, normalize=how)}
    start = tvc.filter_patterns(model, layer, [1, 3], steps=0, **options)
    outcome = tvc.filter_patterns(model, layer, [1, 3], steps=5, **options)
    for i, channel in enumerate((1, 3)):
        expected, losses = by_hand(model, layer, channel, start.values[i : i + 1], 5, recipe.step, how, recipe.border)
        assert torch.allclose(outcome.values[i], expected[0], atol=1e-4)
        assert np.allclose(outcome.scores[i], losses, rtol=1e-4, atol=1e-5)


def test_the_constants_of_the_presets() -> None:
    old, new = RECIPES["dlwp-2017"], RECIPES["dlwp-2025"]
    assert (old.size, old.steps, old.step, old.normalize, old.border, old.order) == (64, 40, 1.0, "rms", 0, "columns")
    assert (new.size, new.steps, new.step, new.normalize, new.border, new.order) == (200, 30, 10.0, "l2", 2, "rows")
    assert new.noise == (0.4, 0.6)
    assert old.noise == (128 / 255, 148 / 255)
    default = tvc.filter_patterns(networks.vgg_like(), "features.0", 0, size=32, steps=1)
    assert default.recipe.name == "dlwp-2025"


def test_noise_is_on_the_scale_of_the_models_input() -> None:
    model = networks.vgg_like()
    plain = tvc.filter_patterns(model, "features.0", [0], size=24, steps=0).values
    assert 0.4 <= float(plain.min()) < float(plain.max()) <= 0.6
    network = tvc.Network(model, Preprocess((24, 24)))
    known = tvc.filter_patterns(network, "features.0", [0], size=24, steps=0).values
    mean, std = (torch.tensor(stat).view(3, 1, 1) for stat in (Preprocess().mean, Preprocess().std))
    assert torch.allclose(known, (plain - mean) / std, atol=1e-6)


def same_pictures(a: Patterns, i: int, b: Patterns, j: int) -> bool:
    """What is promised after many steps: drawn in 8 bits, two patterns differ by at most 2 on average."""
    one, other = (np.asarray(patterns.image(place), dtype=np.float64) for patterns, place in ((a, i), (b, j)))
    return float(np.abs(one - other).mean()) <= 2


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.DeadFilterWarning")
@pytest.mark.parametrize("name", LAST)
def test_a_pattern_does_not_depend_on_its_neighbours(name: str) -> None:
    """Alone, in a batch of 64, in another order, in other batches: 1e-5 after two steps, the same picture after 30."""
    model, layer = builders()[name](), LAST[name]
    count = tvc.capture(model, images(1), [layer])[layer].shape[1]
    channels = [c % count for c in range(64)]
    for steps in (2, 30):
        together = tvc.filter_patterns(model, layer, channels, size=32, steps=steps, batch_size=64)
        alone = tvc.filter_patterns(model, layer, count - 1, size=32, steps=steps)
        other = tvc.filter_patterns(model, layer, [count - 1, 2, 1], size=32, steps=steps, batch_size=2)
        places = [count - 1, 2, 1]
        if steps == 2:
            for outcome, expected in (
                (alone.values[0], together.values[count - 1]),
                (other.values, together.values[places]),
            ):
                assert float((outcome - expected).abs().max() / expected.abs().max()) <= 1e-5
        assert same_pictures(alone, 0, together, count - 1)
        assert all(same_pictures(other, i, together, place) for i, place in enumerate(places))
        assert all(same_pictures(together, i, together, count + i) for i in range(count))


def test_two_runs_with_one_seed_are_equal_and_seeds_differ() -> None:
    model = networks.vgg_like()
    runs = [tvc.filter_patterns(model, "features.5", [0, 1], size=32, steps=6, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(runs[0].values, runs[1].values)
    assert torch.equal(runs[0].scores, runs[1].scores)
    assert float((runs[0].values - runs[2].values).abs().max()) > 0.1
    start = tvc.filter_patterns(model, "features.5", [0, 1], size=32, steps=0).values
    other = tvc.filter_patterns(model, "features.7", [0, 1], size=32, steps=0).values
    assert len({tuple(t.flatten()[:4].tolist()) for t in (*start, *other)}) == 4


@pytest.mark.filterwarnings("ignore::torchviz_cnn.core.errors.DeadFilterWarning")
@pytest.mark.parametrize("quality", ["textbook", "clean"])
@pytest.mark.parametrize("name", LAST)
def test_the_model_is_given_back_as_it_was(name: str, quality: Quality) -> None:
    model = builders()[name]()
    model.train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    with unchanged(model), torch.no_grad():
        tvc.filter_patterns(model, LAST[name], range(3), size=24, steps=3, quality=quality, batch_size=1)
    with unchanged(model), torch.inference_mode():
        tvc.maximize(model, objectives.class_score(0) - objectives.l2(), size=32, steps=2, quality=quality)


@pytest.mark.parametrize("wrap", [networks.data_parallel, networks.averaged, networks.compiled])
def test_wrapped_models_are_looked_through(wrap: Callable[[], nn.Module]) -> None:
    model = wrap()
    name = next(n for n in tvc.layer_names(model) if not n.startswith("module."))
    assert bool(tvc.filter_patterns(model, name, [0], size=24, steps=3).raised.all())


@pytest.mark.parametrize("name", LAST)
def test_ascent_raises_the_objective(name: str) -> None:
    outcome = tvc.filter_patterns(builders()[name](), LAST[name], range(6), size=32, steps=15)
    live = torch.tensor([c not in outcome.dead for c in range(6)])
    assert bool(outcome.raised[live].all())
    assert outcome.scores.shape == (6, 16)


def test_only_what_is_needed_runs() -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    net = networks.seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Watched(16, 4, 3)))()
    tvc.filter_patterns(net, "0", [0], size=16, steps=2)
    assert not seen


class Counting(TorchFunctionMode):
    """Notes how many channels each convolution computes."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.channels.append(len(args[1]))
        return func(*args, **(kwargs or {}))


def computed(model: nn.Module, layer: str, channels: Sequence[int] = (7,)) -> tuple[list[int], Patterns]:
    """How many channels each convolution of the last forward pass up to `features.7` computed, and the patterns."""
    with Counting() as counting:
        outcome = tvc.filter_patterns(model, layer, channels, size=32, steps=0)
    return counting.channels[-4:], outcome


def test_of_a_convolution_only_the_channels_asked_for_are_computed() -> None:
    model = networks.vgg_like()
    assert computed(model, "features.8")[0] == [
        8,
        8,
        12,
        12,
    ]  # the ReLU behind the convolution needs all that this gives
    with unchanged(model):
        channels, narrow = computed(model, "features.7")
    assert channels == [8, 8, 12, 1]
    hooked = model.get_submodule("features.7").register_forward_hook(lambda m, i, o: o * 2)
    channels, doubled = computed(model, "features.7")
    hooked.remove()
    assert channels == [8, 8, 12, 12]  # the user's own hook sees all channels
    assert torch.allclose(doubled.scores, 2 * narrow.scores, atol=1e-6)


def test_weights_that_are_computed_and_groups_keep_all_channels() -> None:
    model = networks.vgg_like()
    plain = computed(model, "features.7", [3, 7])[1]
    nn.utils.parametrizations.weight_norm(model.get_submodule("features.7"))
    channels, whole = computed(model, "features.7", [3, 7])
    assert channels == [8, 8, 12, 12]
    assert torch.allclose(whole.scores, plain.scores, atol=1e-6)
    grouped = networks.seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2)))()
    outcome = tvc.filter_patterns(grouped, "1", [5], size=16, steps=0)
    assert float(outcome.scores[0, 0]) == pytest.approx(
        float(grouped(outcome.values)[0, 5, 2:-2, 2:-2].mean()), abs=1e-6
    )


def test_a_fall_back_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "torchviz_cnn"):
        tvc.filter_patterns(networks.seeded(ReadsItsWeight)(), "conv", [1], size=16, steps=1)
    assert "all channels of conv are computed" in caplog.text
    with caplog.at_level("INFO", "torchviz_cnn"):
        tvc.filter_patterns(networks.seeded(Viewed)(), "fc", [1], size=8, steps=1)
    assert "does not run on images with channels last" in caplog.text


def test_running_out_of_memory_is_no_reason_to_try_again() -> None:
    calls: list[int] = []

    def full(module: nn.Module, args: Any) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("out of memory")

    model = networks.vgg_like()
    model.features[2].register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        tvc.filter_patterns(model, "features.5", [0], size=16, steps=1)
    assert len(calls) == 1


def test_an_in_place_relu_behind_a_layer_does_not_change_it() -> None:
    model = networks.vgg_like()
    both = objectives.channel("features.0", 1) + 0 * objectives.channel("features.7", 0)
    outcome = tvc.maximize(model, both, size=32, steps=0)
    kept = tvc.capture(model, outcome.values, ["features.0"])["features.0"]
    assert float(outcome.scores[0, 0]) == pytest.approx(float(kept[0, 1].mean()), abs=1e-6)


class Gate(nn.Module):
    """Channel 0 is live, 1 dead on any image, 2 dead where the image is near 0.5, 3 live and constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.conv(x) / 3
        return torch.stack(
            [mean[:, 0].relu(), (mean[:, 1] - 1e6).relu(), (mean[:, 2] - 0.8).relu(), mean[:, 3].relu()], 1
        )


def test_dead_filters_are_reported_after_other_starts() -> None:
    model = nn.Sequential(Gate())
    with pytest.warns(DeadFilterWarning, match="channels 1 of layer '0'"):
        outcome = tvc.filter_patterns(model, "0", range(4), size=16, steps=8)
    assert outcome.dead == (1,)
    assert outcome.raised.tolist() == [True, False, True, True]
    assert np.asarray(outcome.image(1)).std() == 0
    with pytest.warns(DeadFilterWarning):
        alone = tvc.filter_patterns(model, "0", [1, 2], size=16, steps=8, batch_size=1)
    assert alone.dead == (1,)
    assert torch.allclose(alone.values[1], outcome.values[2], atol=1e-5)
    with pytest.warns(DeadFilterWarning, match="to images 0, 1"):
        assert tvc.maximize(model, objectives.channel("0", 1), images=2, size=8, steps=1).dead == (0, 1)


def test_maximize_a_class_raises_its_probability() -> None:
    model = networks.vgg_like()
    outcome = tvc.maximize(model, objectives.class_score([0, 2, 4]), size=32, steps=30)
    chances = tvc.predict(model, outcome.values)
    start = tvc.predict(model, tvc.maximize(model, objectives.class_score([0, 2, 4]), size=32, steps=0).values)
    for i, c in enumerate((0, 2, 4)):
        assert float(chances[i, c]) > float(start[i, c])
    assert outcome.values.shape == (3, 3, 32, 32)


def test_several_starts_are_several_images() -> None:
    model = networks.vgg_like()
    goal = objectives.unit("features.5", 2)
    outcome = tvc.maximize(model, goal, images=5, size=24, steps=4, batch_size=2)
    alone = tvc.maximize(model, goal, images=1, size=24, steps=4)
    assert len({tuple(image.flatten()[:9].tolist()) for image in outcome.values}) == 5
    assert torch.allclose(outcome.values[:1], alone.values, atol=1e-4)


def test_diversity_makes_images_differ() -> None:
    model = networks.vgg_like()
    plain = objectives.channel("features.7", 2)
    varied = plain + 20 * objectives.diversity("features.7")

    def spread(objective: objectives.Objective) -> float:
        outcome = tvc.maximize(model, objective, images=3, size=24, steps=20, batch_size=1)
        maps = tvc.capture(model, outcome.values, ["features.7"])["features.7"].flatten(2)
        grams = F.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1)
        return float((grams @ grams.T).mean())

    assert spread(varied) < spread(plain)


def test_from_a_photo() -> None:
    model, photo = networks.vgg_like(), images(1, 32)[0]
    outcome = tvc.maximize(model, objectives.layer("features.5"), start=photo, steps=3, preset=Recipe.named(step=0.5))
    still = tvc.maximize(model, objectives.layer("features.5"), start=photo, steps=0)
    assert torch.equal(still.values[0], photo)
    assert 0 < float((outcome.values[0] - photo).norm()) <= 1.5 + 1e-4
    assert tvc.maximize(model, objectives.layer("features.5"), 2, start=photo[None], steps=0).values.shape[0] == 2
    with pytest.raises(InputError, match="3 images to start from, for 2 patterns"):
        tvc.maximize(model, objectives.layer("features.5"), 2, start=images(3, 20), steps=0)
    each = tvc.filter_patterns(model, "features.5", [0, 1], start=images(2, 20), steps=0)
    assert torch.equal(each.values, images(2, 20))
    assert bool(outcome.raised)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_one_start_for_each_channel(count: int) -> None:
    model, starts = networks.vgg_like(), images(count, 24)
    outcome = tvc.filter_patterns(
        model, "features.5", range(count), start=starts, steps=3, preset=Recipe.named(step=1.0)
    )
    for i in range(count):
        alone = tvc.filter_patterns(model, "features.5", i, start=starts[i], steps=3, preset=Recipe.named(step=1.0))
        assert torch.allclose(outcome.values[i], alone.values[0], atol=1e-5)
        expected, _ = by_hand(model, "features.5", i, starts[i : i + 1], 3, 1.0, "l2", 2)
        assert torch.allclose(outcome.values[i], expected[0], atol=1e-4)


def test_nothing_is_kept_after_a_call() -> None:
    """An operation that saves its own output, as an in-place ReLU, must not end up in a circle."""
    model = networks.vgg_like()

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    tvc.filter_patterns(model, "features.7", [0], size=200, steps=1)
    count, before = alive(), psutil.Process().memory_info().rss
    for _ in range(20):
        tvc.filter_patterns(model, "features.7", [0], size=200, steps=1)
    assert alive() <= count
    assert psutil.Process().memory_info().rss - before < 100e6  # a circle would be 8 MB a call


def test_the_callers_defaults_make_no_difference() -> None:
    model = networks.vgg_like()
    expected = tvc.filter_patterns(model, "features.5", range(3), size=24, steps=2, quality="clean")
    torch.set_default_dtype(torch.float64)
    try:
        outcome = tvc.filter_patterns(model, "features.5", range(3), size=24, steps=2, quality="clean")
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        other = tvc.filter_patterns(model, "features.5", range(3), size=24, steps=2)
    assert torch.allclose(outcome.values, expected.values, atol=1e-4)
    assert torch.equal(other.values, tvc.filter_patterns(model, "features.5", range(3), size=24, steps=2).values)


@pytest.mark.parametrize("given", [np.int64(2), torch.tensor(2), (c for c in [2]), np.array([2]), torch.tensor([2])])
def test_channels_of_any_kind(given: Any) -> None:
    outcome = tvc.filter_patterns(networks.vgg_like(), "features.5", given, size=np.int64(24), steps=1)  # type: ignore[arg-type]
    assert outcome.channels is not None
    assert outcome.channels.tolist() == [2]


class ReadsItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
        return out


def test_a_layer_that_reads_its_own_weight_is_computed_whole() -> None:
    assert bool(tvc.filter_patterns(networks.seeded(ReadsItsWeight)(), "conv", [1], size=16, steps=3).raised)


def test_a_forward_put_there_by_hand() -> None:
    model = networks.vgg_like()
    expected = tvc.filter_patterns(model, "features.5", [1], size=24, steps=3).values
    own = model.forward
    model.forward = lambda x: own(x)  # type: ignore[method-assign]
    assert torch.allclose(tvc.filter_patterns(model, "features.5", [1], size=24, steps=3).values, expected, atol=1e-4)


def test_calls_are_named_as_everywhere() -> None:
    model = networks.reused()
    first = tvc.filter_patterns(model, "conv2#0", [0], size=24, steps=1)
    assert first.layer == "conv2"
    assert tvc.filter_patterns(model, "pool#1", [1], size=24, steps=1).layer == "pool#1"
    with pytest.raises(LayerError, match=r"every call of 'relu': name one"):
        tvc.filter_patterns(model, "relu#*", [0], size=24, steps=1)


def test_regularisers_make_smoother_images() -> None:
    model = networks.vgg_like()
    goal = objectives.channel("features.5", 1)
    rough = tvc.maximize(model, goal, size=32, steps=20).values
    smooth = tvc.maximize(model, goal - 5 * objectives.total_variation(), size=32, steps=20).values
    assert smooth.diff(dim=3).abs().mean() < 0.8 * rough.diff(dim=3).abs().mean()


def test_what_no_layer_is_needed_for_runs_no_layer() -> None:
    outcome = tvc.maximize(networks.vgg_like(), -objectives.l2(), size=16, steps=5)
    assert bool(outcome.raised)


@pytest.mark.parametrize("size", [17, (20, 33)])
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("quality", ["textbook", "clean"])
def test_any_channels_and_size(channels: int, size: int | tuple[int, int], quality: Quality) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    outcome = tvc.filter_patterns(model, "2", [0, 1], size=size, steps=4, quality=quality)
    height, width = (size, size) if isinstance(size, int) else size
    assert outcome.values.shape == (2, channels, height, width)
    crop = outcome.recipe.crop
    assert outcome.image().size == (width - 2 * round(width * crop), height - 2 * round(height * crop))


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu().view(len(x), -1))
        return out


def test_networks_that_flatten_with_view() -> None:
    model = networks.seeded(Viewed)()
    outcome = tvc.maximize(model, objectives.class_score([0, 1]), size=8, steps=4)
    assert bool(outcome.raised.all())
    assert bool(tvc.filter_patterns(model, "fc", [2], size=8, steps=4).raised)


def test_features_of_a_linear_layer() -> None:
    outcome = tvc.filter_patterns(networks.vgg_like(), "classifier.0", [0, 5], size=32, steps=10)
    assert bool(outcome.raised.all())


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_bfloat16_gives_nearly_the_same_pattern(precision: Precision) -> None:
    model = networks.vgg_like()
    exact, outcome = (
        tvc.filter_patterns(model, "features.5", range(4), size=32, steps=10, precision=how)
        for how in ("float32", precision)
    )
    assert outcome.values.dtype == torch.float32
    assert torch.allclose(outcome.scores[:, 0], exact.scores[:, 0], atol=2e-3)
    assert torch.allclose(outcome.scores[:, -1], exact.scores[:, -1], rtol=0.05)
    assert not torch.equal(outcome.values, exact.values) or precision == "auto"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_types(dtype: torch.dtype) -> None:
    model = networks.vgg_like().to(dtype)
    outcome = tvc.filter_patterns(model, "features.5", [0, 1], size=32, steps=5)
    assert outcome.values.dtype == torch.float32
    assert bool(outcome.raised.all())


def test_normalisations() -> None:
    g = images(2)
    assert torch.allclose(normalized(g, "l2").flatten(1).norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(normalized(g, "rms").square().mean((1, 2, 3)), torch.ones(2), atol=1e-3)
    assert torch.allclose(normalized(g, "pixel").norm(dim=1), torch.ones(2, 32, 32), atol=1e-5)
    for how in ("l2", "rms", "pixel", "none"):
        assert torch.equal(normalized(torch.zeros(1, 3, 4, 4), how), torch.zeros(1, 3, 4, 4))
    assert torch.equal(normalized(g, "none"), g)


def test_adam_is_torchs() -> None:
    model = networks.vgg_like()
    goal = objectives.channel("features.5", 1)
    start = tvc.maximize(model, goal, size=24, steps=0).values
    outcome = tvc.maximize(model, goal, size=24, steps=6, preset=Recipe.named(optimizer="adam", step=0.03)).values
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.03)
    for _ in range(6):
        x.grad = torch.autograd.grad(-model.features[:6](x)[:, 1].mean(), x)[0]  # type: ignore[index]
        adam.step()
    assert torch.allclose(outcome, x.detach(), atol=1e-4)


def test_pictures_show_what_the_recipe_says() -> None:
    values = images(3, 40)
    common: Any = {"scores": torch.zeros(3, 2), "objective": "x", "channels": torch.arange(3)}
    new = Patterns(values, recipe=RECIPES["dlwp-2025"], **common)
    x = values[1].double()
    shown = ((x - x.mean()) / x.std(correction=0) * 64 + 128).clamp(0, 255).byte().permute(1, 2, 0)[5:35, 5:35]
    assert np.array_equal(np.asarray(new.image(1)), shown.numpy())
    old = Patterns(values, recipe=RECIPES["dlwp-2017"], **common)
    shown = (((x - x.mean()) / (x.std(correction=0) + 1e-5) * 0.1 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0)
    assert np.array_equal(np.asarray(old.image(1)), shown.numpy())
    assert old.grid(columns=2).size == (2 * 40 + 5, 2 * 40 + 5)
    grid = np.asarray(old.grid(columns=2))
    assert np.array_equal(grid[45:, :40], np.asarray(old.image(1)))  # column by column
    assert np.array_equal(np.asarray(new.grid(columns=2))[:30, 35:], np.asarray(new.image(1)))  # row by row
    for place in (3, -4, 0.5):
        with pytest.raises(InputError, match=f"image {place} is out of range: there are 3"):
            new.image(place)  # type: ignore[arg-type]
    for options, message in (({"columns": "2"}, "columns is a whole"), ({"order": "x"}, "there are rows, columns")):
        with pytest.raises(InputError, match=message):
            new.grid(**options)  # type: ignore[arg-type]


def test_results_are_saved(tmp_path: Path) -> None:
    outcome = tvc.filter_patterns(networks.vgg_like(), "features.5", [3, 1], size=24, steps=2)
    with np.load(outcome.save(tmp_path / "patterns.npz")) as saved:
        assert np.array_equal(saved["values"], outcome.values.numpy())
        assert saved["channels"].tolist() == [3, 1]
        assert saved["scores"].shape == (2, 3)
    assert Image.open(outcome.save(tmp_path / "patterns.png")).size == outcome.grid().size
    assert outcome.plot().size[0] > 100
    assert "features.5: 2 x 3 x 24 x 24" in repr(outcome)
    assert (outcome._repr_png_() or b"").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [12]}, "channel 12 is out of range: layer 'features.5' has 12 channels, 0 to 11"),
        ({"channels": []}, "a channel is an index"),
        ({"size": 0}, "size is a side of at least 1 pixel"),
        ({"size": (1, 2, 3)}, r"or \(height, width\), not"),
        ({"preset": "dlwp-2024"}, "did you mean 'dlwp-20"),
        ({"quality": "best"}, "no quality 'best'"),
        ({"quality": "clean", "preset": "dlwp-2017"}, "not of quality 'clean'"),
        ({"precision": "half"}, "no precision 'half'"),
        ({"steps": -1}, "steps is a whole number of at least 0"),
        ({"steps": 2.5}, "not 2.5"),
        ({"channels": "12"}, "a channel is an index"),
        ({"channels": [1.7]}, "a channel is an index"),
        ({"channels": [True, False]}, "a channel is an index"),
        ({"size": 10**6}, "at most 100,000,000"),
        ({"start": torch.zeros(3, 8, 8, dtype=torch.uint8), "size": None}, "floating point values, as preprocess"),
        ({"start": torch.full((3, 8, 8), torch.nan), "size": None}, "start has values that are NaN or infinite"),
        ({"batch_size": 0}, "batch_size is a whole number of at least 1"),
        ({"start": torch.zeros(2, 4, 4)}, r"start is an image \(3, H, W\).*not \(2, 4, 4\)"),
        ({"start": torch.zeros(3, 8, 8), "quality": "clean"}, "an image of pixels"),
        ({"start": torch.zeros(3, 8, 8), "size": 9}, "not the size asked for"),
        (
            {"start": torch.zeros(3, 3, 8, 8), "channels": [0, 1], "size": None},
            "3 images to start from, for 2 patterns",
        ),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    model = networks.vgg_like()
    with unchanged(model), pytest.raises(InputError, match=message):
        tvc.filter_patterns(model, "features.5", **{"channels": [0], "size": 24, "steps": 1, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"normalize": "L2"}, "did you mean 'l2'"),
        ({"optimizer": "sgd"}, "no optimizer 'sgd'"),
        ({"border": "1"}, "border is a whole number"),
        ({"step": float("nan")}, "step is a finite number"),
        ({"rectify": "yes"}, "rectify is True or False"),
        ({"transformations": jitter(2)}, "transformations are a list"),
        ({"transformations": [3]}, r"not \[3\]"),
        ({"name": "dlwp-2024"}, "did you mean 'dlwp-20"),
        ({"size": 0}, "size is a whole number of at least 1"),
    ],
)
def test_mistakes_in_a_recipe_are_named(constants: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.named(**constants)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("display", ["picture"], "there are standardised, deviation-0.1, photo"),
        ("order", ["diagonal"], "there are rows, columns"),
        ("crop", [0.5, -0.1], "crop is a share of at least 0 and below 0.5"),
        ("noise", [(0.6, 0.4), 0.5, (0, 1, 2)], "noise goes from a low to a high value"),
        ("noise", ["ab", (None, 1)], "noise is a finite number"),
    ],
)
def test_every_constant_of_a_recipe_is_checked(field: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=message):
            replace(Recipe.named(), **{field: value})


def test_a_preset_with_changes_is_a_recipe() -> None:
    changed = Recipe.named("clean", step=0.1, border=0, transformations=[jitter(2)])
    assert (changed.step, changed.border, changed.optimizer, changed.transformations) == (0.1, 0, "adam", (jitter(2),))
    assert Recipe.named(optimizer="adam").step == 0.05
    assert Recipe.named("dlwp-2017") == RECIPES["dlwp-2017"]
    outcome = tvc.filter_patterns(networks.vgg_like(), "features.5", [0], size=24, steps=2, preset=changed)
    assert outcome.recipe == replace(changed, steps=2)
    with pytest.raises(InputError, match="not of quality 'textbook'"):
        tvc.filter_patterns(networks.vgg_like(), "features.5", preset=changed, quality="textbook")


@pytest.mark.parametrize("quality", ["textbook", "clean"])
def test_results_pickle(quality: Quality) -> None:
    outcome = tvc.filter_patterns(networks.vgg_like(), "features.5", [1], size=24, steps=2, quality=quality)
    again = pickle.loads(pickle.dumps(outcome))
    assert torch.equal(again.values, outcome.values)
    assert again.recipe == outcome.recipe


def test_classes_by_name_and_photos_to_start_from() -> None:
    net = tvc.Network(networks.vgg_like(), Preprocess((32, 32)), ("ant", "bee", "cat", "dog", "eel"))
    by_name = tvc.maximize(net, objectives.class_score(["cat", "ant"]), size=32, steps=2)
    by_index = tvc.maximize(net, objectives.class_score([2, 0]), size=32, steps=2)
    assert torch.equal(by_name.values, by_index.values)
    with pytest.raises(TargetError, match="did you mean 'cat'"):
        tvc.maximize(net, objectives.class_score("cats"), size=32, steps=1)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    outcome = tvc.maximize(net, objectives.class_score("cat"), start=photo, steps=0)
    assert torch.equal(outcome.values[0], net.preprocess(photo))


def test_layers_that_are_not_there() -> None:
    model = networks.vgg_like()
    with pytest.raises(LayerError, match=r"did you mean 'features\.5'"):
        tvc.filter_patterns(model, "featurs.5")
    with pytest.raises(LayerError, match="never reached"):
        tvc.filter_patterns(networks.unreached(), "aux", size=32, steps=1)
    with pytest.raises(ModelError, match="does not run on an image of 3 x 1 x 1"):
        tvc.filter_patterns(model, "features.5", size=1)
    with pytest.raises(InputError, match="maximize takes an objective"):
        tvc.maximize(model, "features.5")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not fit"):
        tvc.maximize(model, objectives.channel("features.5", [1, 2]), images=3)


def test_a_detached_network_and_one_of_nan_are_named() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x.detach())
            return out

    with pytest.raises(ModelError, match="no gradient comes back to the image"):
        tvc.filter_patterns(Detached(), "conv", [0], size=16, steps=1)
    broken = networks.vgg_like()
    with torch.no_grad():
        next(broken.parameters())[:] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinity"):
        tvc.filter_patterns(broken, "features.2", [0], size=16, steps=1)


def test_progress_is_shown() -> None:
    with contextlib.redirect_stderr(Terminal()) as terminal:
        tvc.filter_patterns(networks.vgg_like(), "features.5", range(3), size=64, steps=80, progress=True)
    shown = terminal.getvalue()
    assert "0/3 filters" in shown
    assert "filters/s" in shown
    assert re.search(r" [1-9]\d?%", shown)


def test_movements_are_part_of_a_recipe() -> None:
    model = networks.vgg_like()
    still = tvc.filter_patterns(model, "features.5", [0], size=32, steps=4)
    moved = tvc.filter_patterns(
        model, "features.5", [0], size=32, steps=4, preset=Recipe.named(transformations=[jitter(3)])
    )
    assert not torch.equal(still.values, moved.values)
    again = tvc.filter_patterns(
        model, "features.5", [2, 0], size=32, steps=4, preset=Recipe.named(transformations=[jitter(3)])
    )
    assert torch.allclose(again.values[1], moved.values[0], atol=1e-4)


@pytest.mark.slow
def test_compiled_gives_the_same() -> None:
    model = networks.vgg_like()
    plain = tvc.filter_patterns(model, "features.5", range(4), size=32, steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The compiler starts threads of its own with the first network of a process, and keeps them.
        tvc.filter_patterns(model, "features.5", range(4), size=32, steps=1, compile=True)
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = tvc.filter_patterns(model, "features.5", range(4), size=32, steps=5, compile=True)
    assert torch.allclose(outcome.values, plain.values, atol=1e-4)
    with pytest.raises(InputError, match="only layers by name"):
        tvc.maximize(model, objectives.class_score(0), size=32, steps=1, compile=True)
