"""Targets beyond a class: functions of the output, ready ones, parts of the output; equal to autograd written out."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn import InputError, ModelError, Network, TargetError, objectives, targets

X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Result:
    scores: Tensor
    heads: list[dict[str, Tensor]]


class Trunk(nn.Module):
    """A convolution whose maps `end` makes anything of."""

    def __init__(self, end: Callable[[Tensor], Any], channels: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, channels, 3)
            self.head.weight.data *= 5
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(self.conv(x).relu()))


def classes(maps: Tensor) -> Tensor:
    return maps.square().mean((2, 3))


def written_out(model: nn.Module, scores: Callable[[Any], Tensor], layer: str = "conv", x: Tensor = X) -> Tensor:
    """Grad-CAM of scores (B, K) by plain autograd: (B, K, h, w), with its sign."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    values = scores(model(x))
    handle.remove()
    gradients = [torch.autograd.grad(column.sum(), kept[0], retain_graph=True)[0] for column in values.unbind(1)]
    return torch.stack([torch.einsum("bc,bchw->bhw", g.mean((2, 3)), kept[0]) for g in gradients], 1).detach()


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_a_function_is_a_target_of_every_method() -> None:
    model = Trunk(lambda maps: maps.flatten(1)).eval()

    def score(output: Tensor) -> Tensor:
        return output[:, :7].square().sum(1)

    heat = tvc.grad_cam(model, X, "conv", score, relu=False)
    assert close(heat.values, written_out(model, lambda output: score(output)[:, None])[:, 0])
    assert heat.target.tolist() == [0, 0, 0]
    assert heat.headline(1).startswith("explained: score (")
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(model(x)).sum(), x)
    assert close(tvc.saliency(model, X, score).gradients, gradient)
    assert close(tvc.input_x_gradient(model, X, score).gradients, gradient * X)
    assert tvc.guided_grad_cam(model, X, "conv", score).values.shape == (3, 16, 16)
    path = tvc.integrated_gradients(model, X, score, steps=30)
    assert path.completeness_error is not None
    with torch.no_grad():
        change = score(model(X)) - score(model(torch.zeros_like(X)))
        assert torch.allclose(path.gradients.sum((1, 2, 3)) - change, path.completeness_error, atol=1e-4)
        assert float(path.completeness_error.abs().max()) < 0.01 * float(change.abs().max())
        hidden = X.clone()
        hidden[:, :, :8, :8] = 0
        drop = score(model(X)) - score(model(hidden))
    assert torch.allclose(tvc.occlusion(model, X, score, patch=8, stride=8).values[:, 0, 0], drop, rtol=1e-4, atol=1e-4)
    noisy = tvc.smooth_grad(model, X, score, samples=1, noise=0.0)
    assert close(noisy.gradients, gradient)


def test_a_function_may_give_several_numbers() -> None:
    model = Trunk(classes).eval()

    def scores(output: Tensor) -> Tensor:
        return torch.stack([output[:, 0] - output[:, 1], output.sum(1)], 1)

    heat = tvc.grad_cam(model, X, "conv", scores, relu=False)
    assert close(heat.values, written_out(model, scores))
    assert heat.target.tolist() == [[0, 1]] * 3
    assert heat.headline(2, 1).startswith("explained: scores[1] (")
    (two,) = (tvc.smooth_grad(model, X, scores, samples=4, noise=0.1, batch_size=3),)
    alone = tvc.smooth_grad(model, X[1:2], scores, samples=4, noise=0.1, batch_size=4)
    assert close(two.gradients[1:2], alone.gradients)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "key": (lambda maps: {"aux": maps, "scores": classes(maps)}, "scores"),
    "index": (lambda maps: (maps.mean(), classes(maps)), 1),
    "index from the end": (lambda maps: [maps, classes(maps)], -1),
    "attribute": (lambda maps: Result(classes(maps), []), "scores"),
    "field of a tuple": (lambda maps: Pair(maps, classes(maps)), "right"),
    "path": (lambda maps: Result(maps, [{"out": maps}, {"out": classes(maps)}]), "heads.1.out"),
    "function": (lambda maps: maps, classes),
}


@pytest.mark.parametrize(("end", "output"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_part_of_the_output_is_chosen(end: Callable[[Tensor], Any], output: Any) -> None:
    model, plain = Trunk(end).eval(), Trunk(classes).eval()
    expected = tvc.grad_cam(plain, X, "conv", 2, relu=False).values
    assert close(tvc.grad_cam(model, X, "conv", 2, relu=False, output=output).values, expected)
    assert close(
        tvc.competitive_cam(model, X, "conv", 2, output=output).values, tvc.competitive_cam(plain, X, "conv", 2).values
    )
    assert tvc.grad_cam(model, X, output=output).layer == tvc.grad_cam(plain, X).layer
    for explain in (tvc.saliency, tvc.input_x_gradient, tvc.smooth_grad, tvc.integrated_gradients, tvc.occlusion):
        options: dict[str, Any] = {"patch": 8} if explain is tvc.occlusion else {}
        a, b = (explain(m, X, 2, output=o, **options).values for m, o in ((model, output), (plain, None)))
        assert close(a, b)
    assert torch.equal(tvc.predict(model, X, output=output), tvc.predict(plain, X))


@pytest.mark.parametrize(
    ("end", "output", "words"),
    [
        (lambda m: {"scores": classes(m)}, "score", r"no key 'score', but 'scores'; did you mean 'scores'\?"),
        (lambda m: (classes(m),), 1, "has 1 elements, and no element 1"),
        (lambda m: Result(classes(m), []), "scored", r"no part 'scored', but scores, heads; did you mean 'scores'\?"),
        (lambda m: {"a": [classes(m)]}, "a.2", r"has 1 elements, and no element 2 \(of output='a.2'\)"),
        (classes, "out", "a Tensor, has no part 'out'"),
        (classes, 0, "a Tensor, which has no element 0"),
    ],
)
def test_a_part_that_is_not_there(end: Callable[[Tensor], Any], output: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tvc.grad_cam(Trunk(end).eval(), X, "conv", output=output)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda out: 0.5, "gives a float; a tensor"),
        (lambda out: out.mean().item(), "gives a float; a tensor"),
        (lambda out: out.mean(), r"gives a tensor \(\) for 3 images"),
        (lambda out: out[:2, 0], r"gives a tensor \(2,\) for 3 images"),
        (lambda out: out[:, :, None], r"gives a tensor \(3, 5, 1\) for 3 images"),
        (lambda out: out.detach()[:, 0], "does not depend on the model's output: it is detached"),
        (lambda out: out.argmax(1), "gives int64, to which no gradient comes back"),
        (lambda out: (out[:, 0] * 0).log() * 0, "gives NaN or infinity"),
        (None, "one-hot"),
    ],
)
def test_a_function_that_gives_something_else(function: Any, words: str) -> None:
    target = torch.eye(5).long()[:3] if function is None else function
    with pytest.raises(TargetError, match=words):
        tvc.grad_cam(Trunk(classes).eval(), X, "conv", target)


def test_the_score_of_a_function_is_its_own_and_it_has_no_rivals() -> None:
    model = Trunk(classes).eval()
    with pytest.raises(InputError, match="score='probability' is of classes, and the target is a function"):
        tvc.grad_cam(model, X, "conv", lambda out: out[:, 0], score="probability")
    with pytest.raises(InputError, match="it has no rivals; grad_cam takes it"):
        tvc.competitive_cam(model, X, "conv", lambda out: out[:, 0])


def test_a_function_that_does_not_depend_on_the_layer() -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 3)})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = model["a"], model["b"]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x), "b": self.b(x)}

    with pytest.raises(ModelError, match="no gradient comes back to layer 'a'"):
        tvc.grad_cam(Both(), X, "a", lambda out: out.mean((1, 2, 3)), output="b")
    assert tvc.grad_cam(Both(), X, target=lambda out: out.mean((1, 2, 3)), output="a").layer == "a"


def test_a_region_is_the_mean_over_its_pixels() -> None:
    model = Trunk(lambda maps: {"out": maps}).eval()
    mask = torch.zeros(3, 12, 12, dtype=torch.bool)
    mask[0, :4], mask[1, 2:9, 3:5], mask[2, 11, 11] = True, True, True

    def mean(output: dict[str, Tensor]) -> Tensor:
        scores = output["out"][:, 2]
        return torch.stack([one[region].mean() for one, region in zip(scores, mask, strict=True)])[:, None]

    expected = written_out(model, mean)[:, 0]
    heat = tvc.grad_cam(model, X, "conv", targets.region(mask, 2), output="out", relu=False)
    assert close(heat.values, expected)
    assert heat.label == "region(class 2)"
    one = tvc.grad_cam(model, X[1:2], "conv", targets.region(mask[1].numpy(), 2), output="out", relu=False)
    assert close(one.values, expected[1:2])
    large = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)  # brought to the size of the maps
    assert close(tvc.grad_cam(model, X, "conv", targets.region(large, 2), output="out", relu=False).values, expected)
    noisy = tvc.smooth_grad(model, X, targets.region(mask, 2), output="out", samples=3, noise=0.0)
    assert close(noisy.gradients, tvc.saliency(model, X, targets.region(mask, 2), output="out").gradients)


def test_a_region_without_a_mask_is_where_the_class_is_predicted() -> None:
    model = Trunk(lambda maps: maps).eval()
    top = int(model(X).argmax(1).mode().values.flatten().mode().values)
    mask = model(X).argmax(1) == top
    a = tvc.grad_cam(model, X, "conv", targets.region(None, top), relu=False)
    assert close(a.values, tvc.grad_cam(model, X, "conv", targets.region(mask, top), relu=False).values)
    never = Trunk(lambda maps: torch.cat([maps, maps.amin(1, keepdim=True) - 1], 1)).eval()
    with pytest.raises(TargetError, match=r"region\(class 5\) in image 0 is predicted nowhere; give a mask"):
        tvc.grad_cam(never, X, "conv", targets.region(None, 5))


def test_class_names_are_known_to_ready_targets() -> None:
    names = ("cat", "dog", "cup", "car", "tree")
    net = Network(Trunk(classes).eval(), tvc.Preprocess(size=(16, 16)), names)
    for named, plain in (
        (targets.contrast("dog", "cup"), targets.contrast(1, 2)),
        (targets.sum_of(["car", 0]), targets.sum_of([3, 0])),
    ):
        a, b = (tvc.grad_cam(net, X, "conv", target, relu=False) for target in (named, plain))
        assert torch.equal(a.values, b.values)
        assert a.label == b.label
    assert a.label == "sum_of(car, cat)"
    with pytest.raises(TargetError, match="has no class 'dig'; did you mean 'dog'"):
        tvc.grad_cam(net, X, "conv", targets.contrast("cat", "dig"))
    with pytest.raises(TargetError, match="names of the model are not known"):
        tvc.grad_cam(net.model, X, "conv", targets.contrast("cat", "dog"))
    with pytest.raises(TargetError, match=r"contrast\(0, 7\)|gives 5 classes, 0 to 4"):
        tvc.grad_cam(net, X, "conv", targets.contrast(0, 7))


def test_contrast_and_sum_are_differences_and_sums_of_maps() -> None:
    model = Trunk(classes).eval()
    each = tvc.grad_cam(model, X, "conv", torch.tensor([[0, 1, 4]] * 3), relu=False).values
    assert close(tvc.grad_cam(model, X, "conv", targets.contrast(1, 4), relu=False).values, each[:, 1] - each[:, 2])
    assert close(tvc.grad_cam(model, X, "conv", targets.sum_of([0, 1, 4]), relu=False).values, each.sum(1))


def test_similarity_is_the_cosine() -> None:
    model = Trunk(classes).eval()
    other = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))

    def cosine(output: Tensor) -> Tensor:
        value: Tensor = (output * other).sum(1) / (output.norm(dim=1) * other.norm(dim=1))
        return value[:, None]

    assert close(
        tvc.grad_cam(model, X, "conv", targets.similarity(other), relu=False).values, written_out(model, cosine)[:, 0]
    )
    one = tvc.grad_cam(model, X[2:], "conv", targets.similarity(other[2].tolist()), relu=False)
    assert close(one.values, written_out(model, cosine)[2:, 0])
    with pytest.raises(TargetError, match="the model gives 5 numbers for each image"):
        tvc.grad_cam(model, X, "conv", targets.similarity(torch.ones(4)))
    with pytest.raises(TargetError, match="has a row for 2 images, and the batch has 3"):
        tvc.grad_cam(model, X, "conv", targets.similarity(other[:2]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: targets.region(torch.ones(4), 0), r"a mask is \(H, W\), or \(B, H, W\), not \(4,\)"),
        (lambda: targets.region(cast(Any, "mask.png"), 0), "a mask is a tensor or an array of numbers, not a str"),
        (lambda: targets.similarity(torch.tensor([1.0, math.nan])), "of finite numbers"),
        (lambda: targets.sum_of([]), "at least one class"),
        (lambda: targets.box((3, 3, 1, 4)), r"a box is \(left, top, right, bottom\)"),
        (lambda: targets.box(-1), "which"),
        (lambda: objectives.target(cast(Any, 3)), "an int is not"),
    ],
)
def test_ready_targets_refuse_what_they_cannot_use(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


class Boxes(nn.Module):
    """Gives boxes as torchvision's detectors do: a list with a dict for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = Trunk(classes)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        boxes = torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [8, 8, 16, 16], [0, 0, 8, 8], [2, 2, 4, 4]])
        return [{"boxes": boxes, "scores": row, "labels": torch.tensor([1, 1, 2, 3, 1])} for row in self.scores(x)]


def test_boxes_of_detectors() -> None:
    model = Boxes().eval()
    column: dict[Any, Callable[[Tensor], Tensor]] = {
        targets.box(): lambda rows: rows[:, 0],
        targets.box(2): lambda rows: rows[:, 2],
        targets.box(0, 2): lambda rows: rows[:, 2],
        targets.box(1, 1): lambda rows: rows[:, 1],
        targets.box((0, 0, 8, 8), 1): lambda rows: rows[:, 0] + rows[:, 1],
        targets.box((0, 0, 8, 8), overlap=0.99): lambda rows: rows[:, 0] + rows[:, 3],
    }
    for target, expected in column.items():
        heat = tvc.grad_cam(model, X, "scores.conv", target, relu=False)

        def column_of(rows: Tensor, of: Callable[[Tensor], Tensor] = expected) -> Tensor:
            return of(rows)[:, None]

        plain = written_out(model.scores, column_of)[:, 0]
        assert close(heat.values, plain), target
    with pytest.raises(TargetError, match="there is 1 such box in image 0"):
        tvc.grad_cam(model, X, "scores.conv", targets.box(1, 2))
    with pytest.raises(TargetError, match=r"no box overlaps by 0.5 in image 0; the nearest: 0.00"):
        tvc.grad_cam(model, X, "scores.conv", targets.box((12, 0, 16, 3)))
    with pytest.raises(TargetError, match="of scores"):
        tvc.grad_cam(Trunk(classes).eval(), X, "conv", targets.box())


def test_scores_of_boxes_in_one_tensor() -> None:
    model = Trunk(lambda maps: {"logits": maps.flatten(2).transpose(1, 2)}).eval()
    heat = tvc.grad_cam(model, X, "conv", targets.box(17, 3), output="logits", relu=False)
    assert close(heat.values, written_out(model, lambda out: out["logits"][:, 17, 3:4])[:, 0])


def test_gradient_ascent_raises_a_target() -> None:
    model = Trunk(lambda maps: {"out": maps}).eval()
    options: dict[str, Any] = {"size": 16, "steps": 4, "seed": 1}
    goal = objectives.target(targets.region(torch.ones(4, 4), 1), output="out")
    made = tvc.maximize(model, goal, **options)
    plain = tvc.maximize(Trunk(lambda maps: maps.mean((2, 3))).eval(), objectives.class_score(1), **options)
    assert torch.allclose(made.values, plain.values, atol=1e-4)
    assert "target(region(1))" in repr(made) or "region" in repr(made)
    with pytest.raises(TargetError, match="gives 5 numbers for each image; one is raised"):
        tvc.maximize(model, objectives.target(lambda out: out["out"].mean((2, 3))), **options)


def test_the_layer_of_a_function_is_not_the_map_of_scores_itself_nor_one_that_it_does_not_depend_on() -> None:
    class Scales(nn.Module):
        """Maps of scores at two resolutions, as detectors have them."""

        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3)
            self.heads = nn.ModuleList([nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)])

        def forward(self, x: Tensor) -> Tensor:
            early = self.early(x).relu()
            maps = [early, self.late(early).relu()]
            return torch.cat([head(one).flatten(2) for head, one in zip(self.heads, maps, strict=True)], 2)

    assert tvc.grad_cam(Scales().eval(), X, target=lambda scores: scores[:, 2, :49].sum(1), relu=False).layer == "early"
    assert tvc.grad_cam(Scales().eval(), X, target=lambda scores: scores[:, 2, 49:].sum(1), relu=False).layer == "late"
    segmenter = Trunk(lambda maps: maps).eval()
    assert tvc.grad_cam(segmenter, X, target=targets.region(torch.ones(4, 4), 1), relu=False).layer == "conv"
    assert tvc.grad_cam(segmenter, X, target=lambda maps: maps.mean((1, 2, 3)), relu=False).layer == "head"


def test_a_regression_head() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 1), nn.Flatten(0)).eval()
    expected = written_out(model, lambda out: -out[:, None], "1")[:, 0]
    assert close(tvc.grad_cam(model, X, "1", lambda out: -out, relu=False).values, expected)


@pytest.mark.slow
def test_a_region_of_deeplabv3() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=21
        ).eval()
    x = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(96, 128)
    mask[20:60, 30:90] = 1
    heat = tvc.grad_cam(model, x, target=targets.region(mask, 15), output="out", relu=False)

    def mean(output: dict[str, Tensor]) -> Tensor:
        return output["out"][:, 15, 20:60, 30:90].mean((1, 2))[:, None]

    assert close(heat.values, written_out(model, mean, heat.layer, x)[:, 0])


@pytest.mark.slow
def test_a_box_of_faster_rcnn() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, box_score_thresh=0.0
        ).eval()
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    heat = tvc.grad_cam(model, x, "backbone.body.16", targets.box(0), relu=False)
    expected = written_out(model, lambda out: out[0]["scores"][:1, None], "backbone.body.16", x)[:, 0]
    assert heat.values.abs().max() > 0
    assert close(heat.values, expected)
