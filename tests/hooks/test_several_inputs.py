"""Networks of several inputs: tuples and dicts, which of them is explained, and siamese trunks that run twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn import InputError

LEFT = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
RIGHT = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
NUMBERS = torch.rand(3, 4, generator=torch.Generator().manual_seed(3))


class Siamese(nn.Module):
    """Two photos through one trunk; how alike they are."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
            self.scale = nn.Linear(4, 5)

    def embed(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))

    def forward(self, left: Tensor, right: Tensor, numbers: Tensor | None = None, power: int = 1) -> Tensor:
        a, b = self.embed(self.trunk(left)), self.embed(self.trunk(right))
        if numbers is not None:
            b = b + self.scale(numbers)
        return F.cosine_similarity(a, b) ** power


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def score(output: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("keywords", [False, True])
def test_heatmaps_of_a_siamese_network(call: int, keywords: bool) -> None:
    model = Siamese().eval()
    a, b = (model.trunk(x).detach().requires_grad_() for x in (LEFT, RIGHT))
    maps = (a, b)[call]
    (gradient,) = torch.autograd.grad(F.cosine_similarity(model.embed(a), model.embed(b)).sum(), maps)
    expected = torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), maps.detach())
    x: Any = {"left": LEFT, "right": RIGHT} if keywords else (LEFT, RIGHT)
    heat = tvc.grad_cam(model, x, f"trunk#{call}", score, relu=False)
    assert close(heat.values, expected)
    assert (heat.values.shape, heat.input_size) == ((3, 8, 8), (12, 12))
    assert tvc.grad_cam(model, x, target=score).layer == "trunk"


@pytest.mark.parametrize("wrt", [0, 1, -2, "left", "right", "numbers"])
def test_gradients_with_respect_to_each_input(wrt: int | str) -> None:
    model = Siamese().eval()
    inputs = {"left": LEFT, "right": RIGHT, "numbers": NUMBERS, "power": 2}
    name = wrt if isinstance(wrt, str) else ["left", "right", "numbers"][wrt % 4 if wrt > 0 else {0: 0, -2: 2}[wrt]]
    x: Any = inputs if isinstance(wrt, str) else tuple(inputs.values())
    if name == "numbers":
        with pytest.raises(InputError, match=r"the input is a batch \(B, C, H, W\)|not \(3, 4\)"):
            tvc.saliency(model, x, score, wrt=wrt)
        return
    leaf = inputs[name].clone().requires_grad_()  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(model(**{**inputs, name: leaf}).sum(), leaf)
    assert close(tvc.saliency(model, x, score, wrt=wrt).gradients, gradient)
    assert close(tvc.input_x_gradient(model, x, score, wrt=wrt).gradients, gradient * leaf.detach())


def test_copies_of_an_image_meet_the_rows_of_its_own_other_inputs() -> None:
    model = Siamese().eval()
    each: list[tuple[Any, dict[str, Any]]] = [
        (tvc.smooth_grad, {"samples": 5, "batch_size": 3}),
        (tvc.integrated_gradients, {"steps": 5, "batch_size": 3}),
        (tvc.occlusion, {"patch": 6, "batch_size": 4}),
    ]
    for explain, options in each:
        together = explain(model, (LEFT, RIGHT, NUMBERS), score, **options)
        for i in range(3):
            alone = explain(model, (LEFT[i : i + 1], RIGHT[i : i + 1], NUMBERS[i : i + 1]), score, **options)
            assert close(together.values[i : i + 1], alone.values)


def test_inputs_are_not_written_into_and_may_be_anything() -> None:
    class Writes(Siamese):
        def forward(self, left: Tensor, right: Tensor, extra: Any = None) -> Tensor:  # type: ignore[override]
            right.mul_(0.5)
            extra["list"][0].add_(1)
            return super().forward(left, right, extra["list"][0] * 0)

    extra: dict[str, Any] = {"list": [NUMBERS.clone()], "text": "as it is", "none": None}
    left, right = LEFT.clone(), RIGHT.clone()
    heat = tvc.grad_cam(Writes().eval(), (left, right, extra), "trunk", score)
    again = tvc.grad_cam(Siamese().eval(), (LEFT, RIGHT * 0.5, NUMBERS * 0), "trunk", score)
    assert close(heat.values, again.values)
    assert torch.equal(left, LEFT)
    assert torch.equal(right, RIGHT)
    assert torch.equal(extra["list"][0], NUMBERS)


def test_the_first_images_are_explained_and_not_the_first_numbers() -> None:
    class NumbersFirst(Siamese):
        def forward(self, numbers: Tensor, left: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(left, RIGHT[: len(left)], numbers)

    assert tvc.saliency(NumbersFirst().eval(), (NUMBERS, LEFT), score).gradients.shape == LEFT.shape


def test_activations_and_predictions_of_several_inputs() -> None:
    model = Siamese().eval()
    acts = tvc.capture(model, (LEFT, RIGHT), ["trunk", "trunk#1"])
    assert torch.equal(acts["trunk#1"], model.trunk(RIGHT))
    assert torch.allclose(tvc.predict(model, {"left": LEFT, "right": RIGHT})[:, 0], model(LEFT, RIGHT).sigmoid())
    assert tvc.deconvnet(model, (LEFT, RIGHT), "trunk.3", channel=1).values.shape == (3, 3, 12, 12)


@pytest.mark.parametrize(
    ("x", "wrt", "words"),
    [
        ((LEFT, RIGHT), 2, "wrt=2 is none of the inputs of floating point: 0, 1"),
        (
            {"left": LEFT, "right": RIGHT},
            "middle",
            "wrt='middle' is none of the inputs of floating point: 'left', 'right'",
        ),
        (LEFT, 1, "wrt=1 chooses one of several inputs, and the model is given one alone"),
        ((LEFT, "photo.jpg"), 1, "wrt=1 is none of the inputs of floating point: 0"),
    ],
)
def test_an_input_that_is_not_there(x: Any, wrt: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tvc.saliency(Siamese().eval(), x, score, wrt=wrt)
