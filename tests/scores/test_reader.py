"""How targets are read from outputs: class scores wherever they are, and what results and warnings call them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.scores.test_target_functions import Trunk, X, close, written_out
from torchviz_cnn import InputError, Network, TargetError, objectives, targets
from torchviz_cnn.scores import gradients


def small() -> nn.Module:
    return Trunk(lambda maps: maps.mean((2, 3))).eval()


class Holder:
    """An output that is no tuple, list or dict."""

    def __init__(self, logits: Tensor) -> None:
        self.hidden, self.logits = None, logits


CLASS_OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "an object": Holder,
    "behind a number": lambda logits: {"loss": logits.sum(), "logits": logits},
    "softmax": lambda logits: logits.softmax(1),
    "log-softmax": lambda logits: {"out": logits.log_softmax(1)},
}


@pytest.mark.parametrize("end", CLASS_OUTPUTS.values(), ids=CLASS_OUTPUTS)
def test_contrast_and_sum_are_of_the_logits_wherever_they_are(end: Callable[[Tensor], Any]) -> None:
    model = Trunk(lambda maps: end(maps.mean((2, 3)))).eval()
    expected = written_out(small(), lambda logits: torch.stack([logits[:, 1] - logits[:, 3]], 1))[:, 0]
    heat = tvc.grad_cam(model, X, "conv", targets.contrast(1, 3), relu=False)
    assert close(heat.values, expected)
    logits = small()(X).detach()
    hidden = tvc.occlusion(model, X, targets.sum_of([0, 2]), patch=8)
    assert close(hidden.clean, logits[:, 0] + logits[:, 2])


def test_contrast_of_probabilities_is_told() -> None:
    model = Trunk(lambda maps: maps.mean((2, 3)).softmax(1).clamp(1e-7, 1)).eval()
    with pytest.warns(
        tvc.TorchvizWarning, match=r"what contrast\(class 1, class 3\) is of are its probabilities"
    ) as told:
        tvc.grad_cam(model, X, "conv", targets.contrast(1, 3), relu=False)
    assert len(told) == 1
    with pytest.warns(tvc.TorchvizWarning, match="are its probabilities"):
        tvc.maximize(model, objectives.target(targets.contrast(1, 3)), size=16, steps=1)


def test_gradient_ascent_raises_the_logits_of_a_contrast() -> None:
    ends = Trunk(lambda maps: maps.mean((2, 3)).softmax(1)).eval()
    goal = objectives.target(targets.contrast(1, 3))
    one, other = (tvc.maximize(model, goal, size=16, steps=2).values for model in (ends, small()))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_region_of_half_precision_is_a_mean_in_single_precision() -> None:
    model = nn.Conv2d(3, 2, 1).half()
    model.bias.data.fill_(40)  # type: ignore[union-attr]
    x = torch.rand(1, 3, 600, 600)
    score = tvc.saliency(model, x, targets.region(torch.ones(600, 600), 1)).logits
    assert torch.allclose(score, model(x.half()).float()[:, 1].mean((1, 2))[:, None], rtol=1e-4)


def negative(maps: Tensor, count: int) -> Tensor:
    return -maps.abs().sum((2, 3))[:, :count]


def first_negative(maps: Tensor) -> Tensor:
    return negative(maps, 1)[:, 0]


@pytest.mark.parametrize("explain", [tvc.grad_cam, tvc.score_cam, tvc.ablation_cam, tvc.smoothed_cam])
@pytest.mark.filterwarnings("ignore:the score of")
def test_a_map_without_evidence_is_called_by_what_is_explained(explain: Callable[..., tvc.Heatmap]) -> None:
    model = Trunk(lambda maps: maps).eval()
    model.conv.bias.data.fill_(-9)  # type: ignore[union-attr]
    with pytest.warns(tvc.EmptyMapWarning, match=r"evidence for first_negative at layer 'conv' in image 0"):
        explain(model, X, "conv", first_negative)
    with pytest.warns(tvc.EmptyMapWarning, match=r"evidence for negative\[0\] at layer 'conv' in image 0"):
        explain(model, X, "conv", functools.partial(negative, count=2))


def test_pictures_of_functions_are_called_by_them() -> None:
    net = Network(small(), tvc.Preprocess((16, 16)), tuple("abcde"))
    photo = np.zeros((200, 300, 3), dtype=np.uint8)
    one, other = (
        tvc.grad_cam(net, photo, "conv", target, relu=False)
        for target in (targets.contrast("a", "b"), targets.contrast("a", "c"))
    )
    assert "explained: contrast(a, b)" in (one - other).headline()
    assert (one - other).headline().endswith(", minus: contrast(a, c)")
    assert "minus" not in (one - one).headline()
    with pytest.raises(InputError, match=r"contrast\(a, b\), and of .* contrast\(a, c\)"):
        tvc.join_heatmaps([one, other])
    both = tvc.grad_cam(net, photo, "conv", lambda logits: logits[:, 3:5], relu=False)
    named = tvc.grad_cam(net, photo, "conv", [["d", "e"]], relu=False)
    assert np.asarray(both.two_classes()).tolist() != np.asarray(named.two_classes()).tolist()
    relabelled = dataclasses.replace(named, label="function")
    assert np.asarray(both.two_classes()).tolist() == np.asarray(relabelled.two_classes()).tolist()


def test_what_chooses_no_part_of_the_output() -> None:
    for output in (True, 1.5, ("a",)):
        with pytest.raises(InputError, match="output is a key, an index, the name of an attribute or a function"):
            tvc.grad_cam(small(), X, "conv", 0, output=cast(Any, output))


def test_an_array_of_names() -> None:
    net = Network(small(), tvc.Preprocess((16, 16)), tuple("abcde"))
    for names in (np.array(["a", "c", "e"]), np.array(["a", "c", "e"], dtype=object)):
        assert tvc.grad_cam(net, X, "conv", names, relu=False).target.tolist() == [0, 2, 4]


def test_classes_of_ready_targets_are_whole_numbers_of_any_kind() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert targets.contrast(np.int64(2), torch.tensor(0))(logits).tolist() == [3]  # type: ignore[arg-type]
    for several in (range(2), np.array([0, 1]), torch.tensor([0, 1]), (one for one in (0, 1))):
        assert targets.sum_of(several)(logits).tolist() == [3]  # type: ignore[arg-type]
    assert targets.sum_of(np.int64(1))(logits).tolist() == [2]  # type: ignore[arg-type]
    assert str(targets.box(np.int64(1), np.int64(2))) == "box(1, class 2)"  # type: ignore[arg-type]
    wrong: list[Callable[[], object]] = [
        lambda: targets.contrast(True, 0),
        lambda: targets.contrast(cast(Any, [1]), 0),
        lambda: targets.region(torch.ones(2, 2), cast(Any, 1.5)),
        lambda: targets.sum_of([-1]),
        lambda: targets.box(0, cast(Any, (1, 2))),
    ]
    for make in wrong:
        with pytest.raises(InputError, match="a class is a whole number of at least 0"):
            make()
    with pytest.raises(InputError, match="which is a whole number of at least 0, not 'dog'"):
        targets.box(cast(Any, "dog"))


@pytest.mark.parametrize("explain", [tvc.grad_cam, tvc.saliency])
def test_scores_of_a_large_output_go_back_a_few_at_a_time(
    explain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = gradients._pass_back

    def counted(scores: Tensor, inputs: Any, select: Tensor, keep: bool) -> Any:
        passes.append(len(select))
        return real(scores, inputs, select, keep)

    def four(maps: Tensor) -> Tensor:
        return maps[:, :4].mean((2, 3))

    def enlarged(maps: Tensor) -> Tensor:
        return nn.functional.interpolate(maps, scale_factor=20)

    large, small_maps = (Trunk(end).eval() for end in (enlarged, lambda maps: maps))
    options = {"layer": "conv", "relu": False} if explain is tvc.grad_cam else {}
    monkeypatch.setattr(gradients, "_pass_back", counted)
    monkeypatch.setattr(gradients.score_gradients, "__defaults__", (False, 6 * X.element_size() * 3 * 5 * 240 * 240))
    values = explain(large, X, target=four, **options).values
    assert passes == [2, 2]
    assert close(values, explain(small_maps, X, target=four, **options).values)
    assert passes == [2, 2, 4]


def named(model: nn.Module, *names: str) -> Network:
    return Network(model.eval(), tvc.Preprocess((16, 16)), names)


def test_both_classes_of_the_only_map_have_regions() -> None:
    one, two = Trunk(lambda maps: maps[:, :1]), Trunk(lambda maps: torch.cat([-maps[:, :1], maps[:, :1]], 1))
    top = torch.zeros(12, 12)
    top[:5] = 1
    for name in ("ground", "thing"):
        for mask in (top, None):
            region = targets.region(mask, name)
            heat, expected = (
                tvc.grad_cam(named(model, "ground", "thing"), X, "conv", region, relu=False) for model in (one, two)
            )
            assert close(heat.values, expected.values)
            assert close(heat.logits, expected.logits)
            assert heat.label == f"region({name})"


def test_where_a_class_is_predicted_in_a_map_that_may_be_of_probabilities_is_not_guessed() -> None:
    ends = Trunk(lambda maps: maps[:, :1].sigmoid()).eval()
    with pytest.raises(TargetError, match=r"may be probabilities or not.*give a mask, as output > 0\.5"):
        tvc.saliency(ends, X, targets.region(None, 0))
    assert tvc.saliency(ends, X, targets.region(ends(X)[:, 0] > 0.5, 0)).values.any()


def test_a_region_that_is_predicted_does_not_move_with_changed_copies() -> None:
    model = Trunk(lambda maps: maps).eval()
    top = int(model(X).argmax(1).flatten().mode().values)
    free, fixed = targets.region(None, top), targets.region(model(X).argmax(1) == top, top)
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (tvc.smooth_grad, {"samples": 3, "noise": 1.0}),
        (tvc.integrated_gradients, {"steps": 5, "baselines": -5.0}),
        (tvc.occlusion, {"patch": 8}),
        (tvc.score_cam, {"layer": "conv", "relu": False}),
        (tvc.ablation_cam, {"layer": "conv", "relu": False}),
        (tvc.smoothed_cam, {"layer": "conv", "relu": False, "samples": 2, "noise": 1.0}),
    ]
    for explain, options in calls:
        moving, still = (explain(model, X, target=target, **options) for target in (free, fixed))
        assert close(moving.values, still.values), explain
    path = tvc.integrated_gradients(model, X, free, steps=64)
    assert path.completeness_error is not None
    assert float(path.completeness_error.abs().max()) < 1e-2


def test_regions_and_boxes_are_flipped_with_the_images() -> None:
    model = Trunk(lambda maps: maps).eval()
    mask = torch.zeros(3, 12, 12, dtype=torch.bool)
    mask[0, :, :3], mask[1, 2:5, 7:], mask[2] = True, True, True
    for given in (mask, mask[1]):
        own = tvc.grad_cam(model, X, "conv", targets.region(given, 2), relu=False).values
        flipped = tvc.grad_cam(model, X.flip(-1), "conv", targets.region(given.flip(-1), 2), relu=False).values
        smoothed = tvc.smoothed_cam(model, X, "conv", targets.region(given, 2), relu=False).values
        assert close(smoothed, (own + flipped.flip(-1)) / 2)
        assert not close(own, smoothed)
    assert str(targets.box((2, 3, 6, 9)).mirrored(16)) == "box((10, 3, 14, 9))"
    assert str(targets.box(1).mirrored(16)) == "box(1)"


def test_a_region_that_is_lost_on_smaller_maps_is_told() -> None:
    mask = torch.zeros(120, 120)
    mask[3, 3] = 1
    with pytest.raises(TargetError, match=r"region\(class 1\) in image 0 is empty on maps of 12 x 12"):
        tvc.saliency(Trunk(lambda maps: maps).eval(), X, targets.region(mask, 1))
