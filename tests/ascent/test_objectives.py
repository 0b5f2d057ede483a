"""Objectives: what each measures, and that they add and scale like numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.networks import images
from torchviz_cnn.ascent import objectives
from torchviz_cnn.ascent.objectives import Evaluation, Objective, inner
from torchviz_cnn.core.errors import InputError, LayerError
from torchviz_cnn.scores.targets import Score

MAPS = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
X = images(3)


def evaluate(objective: Objective, maps: Tensor = MAPS, x: Tensor = X, output: Any = None) -> Tensor:
    return objective.value(Evaluation(x, {"a": maps}, output, torch.arange(len(x))))


def test_channel_is_the_mean_of_the_map() -> None:
    assert torch.equal(evaluate(objectives.channel("a", 2)), MAPS[:, 2].mean((1, 2)))
    assert torch.allclose(evaluate(objectives.channel("a", 2, border=1)), MAPS[:, 2, 1:-1, 1:-1].mean((1, 2)))
    assert torch.allclose(evaluate(objectives.channel("a", 2, rectify=True)), MAPS[:, 2].relu().mean((1, 2)))


@pytest.mark.parametrize(("side", "left"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1), (6, 2), (9, 5)])
def test_the_border_leaves_at_least_one_position(side: int, left: int) -> None:
    assert inner(torch.zeros(1, side, side), 2).shape == (1, left, left)


def test_several_channels_are_one_for_each_image() -> None:
    result = evaluate(objectives.channel("a", [3, 0, 1]))
    assert torch.allclose(result, torch.stack([MAPS[0, 3].mean(), MAPS[1, 0].mean(), MAPS[2, 1].mean()]))
    rows = torch.tensor([2, 0])
    part = objectives.channel("a", [3, 0, 1]).value(Evaluation(X[:2], {"a": MAPS[:2]}, None, rows))
    assert torch.allclose(part, torch.stack([MAPS[0, 1].mean(), MAPS[1, 3].mean()]))


def test_unit_is_one_position_by_default_the_middle() -> None:
    assert repr(objectives.unit("a", 1, torch.tensor([5, 0]))) == "unit('a', 1, (5, 0))"  # type: ignore[arg-type]
    assert torch.equal(evaluate(objectives.unit("a", 1, (5, 0))), MAPS[:, 1, 5, 0])
    assert torch.equal(evaluate(objectives.unit("a", 1)), MAPS[:, 1, 3, 2])
    with pytest.raises(InputError, match=r"position \(6, 0\) is out of range: the maps of layer 'a' are 6 x 5"):
        evaluate(objectives.unit("a", 1, (6, 0)))


def test_layer_is_the_mean_square() -> None:
    assert torch.allclose(evaluate(objectives.layer("a")), (MAPS**2).mean((1, 2, 3)))


def test_direction_is_the_mean_dot_product() -> None:
    vector = [1.0, -2.0, 0.5, 0.0]
    dot = torch.einsum("bchw,c->bhw", MAPS, torch.tensor(vector))
    assert torch.allclose(evaluate(objectives.direction("a", vector)), dot.mean((1, 2)), atol=1e-6)
    cosine = dot / (MAPS.norm(dim=1) * torch.tensor(vector).norm())
    expected = (dot * cosine.clamp_min(0.1) ** 2).mean((1, 2))
    assert torch.allclose(evaluate(objectives.direction("a", vector, cosine_power=2)), expected, atol=1e-5)
    one = torch.eye(4)[2]
    assert torch.allclose(evaluate(objectives.direction("a", one)), evaluate(objectives.channel("a", 2)), atol=1e-6)
    with pytest.raises(InputError, match="has 4 numbers, not 3"):
        evaluate(objectives.direction("a", [1.0, 2.0, 3.0]))


@pytest.mark.parametrize("score", ["logit", "probability", "log_probability", "cross_entropy"])
def test_class_score(score: Score) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    expected = {
        "logit": logits[:, 4],
        "probability": logits.softmax(1)[:, 4],
        "log_probability": logits.log_softmax(1)[:, 4],
        "cross_entropy": F.cross_entropy(logits, torch.tensor([4, 4, 4]), reduction="none"),
    }[score]
    assert torch.allclose(evaluate(objectives.class_score(4, score=score), output=logits), expected, atol=1e-6)
    each = evaluate(objectives.class_score([1, 2, 3]), output=logits)
    assert torch.equal(each, logits[torch.arange(3), torch.tensor([1, 2, 3])])
    heads = {"coarse": logits[:, :2], "fine": logits}
    assert torch.equal(evaluate(objectives.class_score([1, 2, 3], output="fine"), output=heads), each)


def test_diversity_is_0_for_equal_images_and_grows() -> None:
    alike = MAPS[:1].expand(3, -1, -1, -1)
    assert torch.allclose(evaluate(objectives.diversity("a"), alike), torch.zeros(3), atol=1e-6)
    assert bool((evaluate(objectives.diversity("a")) > 0.05).all())
    with pytest.raises(InputError, match="at least 2"):
        evaluate(objectives.diversity("a"), MAPS[:1], X[:1])


def test_total_variation_and_l2() -> None:
    x = torch.zeros(1, 1, 2, 3)
    x[0, 0, 0, 0] = 6.0
    assert float(evaluate(objectives.total_variation(), x=x)) == pytest.approx(6 / 4 + 6 / 3)
    assert float(evaluate(objectives.l2(), x=x)) == pytest.approx((36 / 6) ** 0.5)
    assert float(evaluate(objectives.total_variation(), x=torch.ones(1, 3, 4, 4))) == 0
    leaf = torch.zeros(1, 3, 4, 4, requires_grad=True)
    assert bool(torch.isfinite(torch.autograd.grad(evaluate(objectives.l2(), x=leaf).sum(), leaf)[0]).all())


def test_objectives_are_an_algebra() -> None:
    a, b = objectives.channel("a", 1), objectives.l2()
    x, y = evaluate(a), evaluate(b)
    cases: list[tuple[Objective, Tensor]] = [
        (a + b, x + y),
        (a - b, x - y),
        (a * b, x * y),
        (2 * a, 2 * x),
        (a * 2, 2 * x),
        (a / 4, x / 4),
        (-a, -x),
        (1 - a, 1 - x),
        (a + 1, x + 1),
        (1 + a, x + 1),
        (sum([a, b], objectives.l2()), x + 2 * y),
        ((a + b) * 3 - a, (x + y) * 3 - x),
    ]
    for objective, expected in cases:
        assert torch.allclose(evaluate(objective), expected, atol=1e-6), objective


def test_their_words_keep_the_brackets_that_matter() -> None:
    a, b = objectives.channel("a", 1), objectives.l2()
    assert repr(a - 0.1 * b) == "channel('a', 1) - 0.1 * l2()"
    assert repr(2 * (a + b)) == "2 * (channel('a', 1) + l2())"
    assert repr(a - (a - b)) == "channel('a', 1) - (channel('a', 1) - l2())"
    assert repr(objectives.channel("x", range(20))) == "channel('x', [0, ..., 19])"


def test_they_know_what_they_need() -> None:
    goal = objectives.channel("b", 0) + objectives.layer("a") - objectives.channel("b", 1) + objectives.class_score(0)
    assert goal.layers == ("b", "a")
    assert goal.needs_output
    assert not (objectives.l2() + objectives.total_variation()).layers
    assert objectives.diversity("a").couples
    assert (objectives.diversity("a") + objectives.channel("a", [1, 2])).count == 2


def test_features_of_a_linear_layer_are_channels_too() -> None:
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(evaluate(objectives.channel("a", 1), features), features[:, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.channel("a", 1.5), "a channel is an index, or several, not 1.5"),  # type: ignore[arg-type]
        (lambda: objectives.channel("a", []), "an index"),
        (lambda: objectives.channel("a", 0, border=-1), "border is a whole number of at least 0"),
        (lambda: objectives.channel("a", 0, rectify="no"), "rectify is True or False"),  # type: ignore[arg-type]
        (lambda: objectives.direction("a", [1], cosine_power="x"), "cosine_power is a finite"),  # type: ignore[arg-type]
        (lambda: objectives.channel("a", [1, 2]) + objectives.channel("a", [1, 2, 3]), "for 2 and for 3 images"),
        (lambda: objectives.l2() + "x", "not with a str"),  # type: ignore[operator]
        (lambda: objectives.l2() / 0, "other than 0"),
        (lambda: objectives.l2() / objectives.l2(), "divided by a number"),  # type: ignore[operator]
        (lambda: objectives.class_score(0, score="logits"), "did you mean 'logit'"),  # type: ignore[arg-type]
        (lambda: evaluate(objectives.channel("a", 4)), "channel 4 is out of range: layer 'a' has 4 channels, 0 to 3"),
        (lambda: evaluate(objectives.channel("a", -1)), "channel -1 is out of range"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_layer_without_maps_is_named() -> None:
    with pytest.raises(LayerError, match=r"layer 'a' gives \(3, 4, 5\)"):
        evaluate(objectives.channel("a", 0), torch.zeros(3, 4, 5))
