"""What networks answer: softmax and sigmoid of their own, one output with two names, several outputs, infinities."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from torchviz_cnn import InputError, ModelError, Network, TargetError
from torchviz_cnn.core.warn import say_once
from torchviz_cnn.scores.outputs import class_outputs

X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
ENDS_ITSELF = "ends in a softmax or sigmoid"


@pytest.fixture(autouse=True)
def said_anew() -> None:
    say_once.cache_clear()


class Ends(nn.Module):
    """A convolution, its mean, a linear layer, and an end."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, classes)
        self.fc.weight.data *= 20
        self.end = end

    def logits(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.fc(maps.relu().mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Any:
        return self.end(self.logits(self.conv(x)))


def as_network(model: nn.Module, *names: str) -> Network:
    return Network(model.eval(), tvc.Preprocess(size=(12, 12)), names)


def plain_grad_cam(model: Ends, score: Callable[[Tensor], Tensor]) -> Tensor:
    maps = model.conv(X).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(model.logits(maps)).sum(), maps)
    return torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), maps.detach())


SOFTMAX: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda z: z.softmax(1),
    "module": nn.Softmax(dim=-1),
    "in a dict": lambda z: {"logits": torch.softmax(z, 1)},
    "of a logarithm": lambda z: z.log_softmax(1).exp(),
    "by hand": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    "squeezed": lambda z: z.softmax(1)[:, :, None, None],
    "mean of two": lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
}
SIGMOID: dict[str, Callable[[Tensor], Any]] = {
    "sigmoid": torch.sigmoid,
    "module": nn.Sigmoid(),
    "in place": lambda z: z.sigmoid_(),
    "of another type": lambda z: z.double().sigmoid().float(),
    "in parts": lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1),
    "a view": lambda z: z[:, :, None].sigmoid().squeeze(2),
    "clamped": lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6),
    "mean of two": lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2,
    "mean of a stack": lambda z: torch.stack([z.sigmoid(), (2 * z).sigmoid()]).mean(0),
    "weighted": lambda z: 0.25 * z.sigmoid() + 0.75 * (2 * z).sigmoid(),
    "of the other class": lambda z: 1 - z.sigmoid(),
    "piecewise": nn.Hardsigmoid(),
    "rounded softmax": lambda z: z.softmax(1).half().float(),
}


DIRECT = ("softmax", "module", "in a dict", "squeezed", "sigmoid'", "module'", "a view'")
"""Ends of which what stands before the softmax or sigmoid is known."""


@pytest.mark.parametrize("end", [*SOFTMAX.values(), *SIGMOID.values()], ids=[*SOFTMAX, *(f"{n}'" for n in SIGMOID)])
def test_probabilities_of_the_network_are_not_squashed_again(
    end: Callable[[Tensor], Any], request: pytest.FixtureRequest
) -> None:
    model = Ends(end).eval()
    own = model(X)
    own = own["logits"] if isinstance(own, dict) else own.flatten(1)
    assert torch.equal(tvc.predict(model, X), own)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        heat = tvc.grad_cam(model, X, "conv", relu=False)
    top = int(own[1].argmax())
    assert heat.headline(1) == f"predicted: class {top} ({own[1, top].item():.3f})"
    direct = request.node.callspec.id in DIRECT
    assert [ENDS_ITSELF in str(warning.message) for warning in told] == [True] * (not direct)
    chosen = own.argmax(1)
    logits = plain_grad_cam(model, lambda z: z.gather(1, chosen[:, None]))
    assert torch.allclose(heat.values, logits, rtol=1e-4, atol=1e-6) == direct


def test_what_stands_before_the_softmax_is_explained_where_the_network_is_asked_again() -> None:
    ends, plain = Ends(nn.Softmax(dim=1)).eval(), Ends(lambda z: z).eval()
    for explain in (tvc.grad_cam, tvc.competitive_cam):
        a, b = (explain(model, X, "conv", 2).values for model in (ends, plain))  # type: ignore[operator]
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    a, b = (tvc.occlusion(model, X, 2, patch=4).scores for model in (ends, plain))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    path = [tvc.integrated_gradients(model, X, 2, steps=8) for model in (ends, plain)]
    assert torch.allclose(path[0].gradients, path[1].gradients, rtol=1e-4, atol=1e-6)
    assert torch.allclose(path[0].completeness_error, path[1].completeness_error, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z,
        lambda z: z.sigmoid() * 8,
        lambda z: z.softmax(1) * 3,
        lambda z: (z - 40).sigmoid() * 8,
        lambda z: 1 / (1 - (z / 40).sigmoid() / 4),
        lambda z: (z / 40).sigmoid() * (z / 40),
        nn.Tanh(),
    ],
    ids=["logits", "scaled", "softmax, scaled", "scaled, of small values", "divided", "swish", "tanh"],
)
def test_other_ends_are_logits(end: Callable[[Tensor], Tensor]) -> None:
    model = Ends(end).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(tvc.predict(model, X), model(X).softmax(1))
        tvc.grad_cam(model, X, "conv", relu=False)


@pytest.mark.parametrize(
    ("end", "activation"),
    [
        (nn.LogSoftmax(dim=1), "softmax"),
        (lambda z: torch.softmax(input=z, dim=1), "softmax"),
        (lambda z: z.softmax(1).log(), "softmax"),
        (nn.LogSigmoid(), "sigmoid"),
    ],
    ids=["log-softmax", "by keyword", "logarithm of a softmax", "log-sigmoid"],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_stands_before_a_logarithm_of_probabilities_is_explained(
    end: Callable[[Tensor], Tensor], activation: str, kind: torch.dtype
) -> None:
    model, plain = Ends(end).eval().to(kind), Ends(lambda z: z).eval().to(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = tvc.grad_cam(model, X, "conv", 2, relu=False)
    bare = tvc.grad_cam(plain, X, "conv", 2, relu=False)
    assert torch.equal(own.values, bare.values)
    assert torch.equal(own.logits, bare.logits)
    assert own.activation == activation
    expected = tvc.predict(plain, X, activation=activation)  # type: ignore[arg-type]
    assert torch.equal(tvc.predict(model, X), expected)


def test_logits_that_happen_to_be_a_distribution_are_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 3)).eval()
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    model[2].bias.data = torch.tensor([0.25, 0.75, 0.0])
    assert torch.allclose(tvc.predict(model, X), torch.tensor([0.25, 0.75, 0.0]).softmax(0).expand(3, -1))


def test_a_sigmoid_that_is_written_over_is_no_end() -> None:
    model = Ends(lambda z: z.sigmoid().mul_(8)).eval()
    assert torch.equal(tvc.predict(model, X), model(X).softmax(1))


def test_a_gate_inside_is_no_end() -> None:
    gated = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid(), nn.Linear(4, 4))
    assert torch.allclose(tvc.predict(gated, X), gated(X).softmax(1))


@pytest.mark.parametrize(
    ("score", "value"),
    [
        ("logit", lambda z: z[:, 2]),
        ("probability", lambda z: z.softmax(1)[:, 2]),
        ("log_probability", lambda z: z.log_softmax(1)[:, 2]),
        ("cross_entropy", lambda z: -z.log_softmax(1)[:, 2]),
    ],
)
@pytest.mark.filterwarnings("ignore:the model ends")
def test_every_score_of_a_network_that_ends_in_softmax(score: Any, value: Callable[[Tensor], Tensor]) -> None:
    model = Ends(lambda z: z.softmax(1)).eval()
    values = tvc.grad_cam(model, X, "conv", target=2, score=score, relu=False).values
    assert torch.allclose(values, plain_grad_cam(model, value), rtol=1e-4, atol=1e-6)


def test_the_ending_is_told_once_by_methods_that_run_often() -> None:
    model = Ends(lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2).eval()
    for explain in (tvc.smooth_grad, tvc.integrated_gradients, tvc.occlusion):
        options: dict[str, Any] = {"patch": 6} if explain is tvc.occlusion else {"batch_size": 2}
        options |= {tvc.smooth_grad: {"samples": 3}, tvc.integrated_gradients: {"steps": 3}}.get(explain, {})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            explain(model, X[:2], target=1, **options)
        assert [ENDS_ITSELF in str(warning.message) for warning in told] == [True]


def test_classes_that_do_not_exclude_each_other() -> None:
    model = Ends(lambda z: z).eval()
    assert torch.equal(tvc.predict(model, X, activation="sigmoid"), model(X).sigmoid())
    assert torch.equal(tvc.predict(model, X, activation="none"), model(X))
    assert torch.allclose(tvc.predict(model, X, activation="softmax"), model(X).softmax(1))
    with pytest.raises(tvc.InputError, match="no activation 'sigmoyd'; did you mean 'sigmoid'"):
        tvc.predict(model, X, activation="sigmoyd")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "sign"), [("cat", -1), ("dog", 1)])
@pytest.mark.parametrize("score", ["logit", "probability", "log_probability"])
def test_both_classes_of_one_output(name: str, sign: int, score: Any) -> None:
    model = Ends(lambda z: z, classes=1)
    value = {"logit": lambda z: sign * z, "probability": lambda z: (sign * z).sigmoid()}
    value["log_probability"] = lambda z: (sign * z).sigmoid().log()
    heat = tvc.grad_cam(as_network(model, "cat", "dog"), X, "conv", name, score=score, relu=False)
    assert torch.allclose(heat.values, plain_grad_cam(model, value[score]), rtol=1e-4, atol=1e-6)
    assert heat.target.tolist() == [max(sign, 0)] * 3


@pytest.mark.filterwarnings("ignore:the model ends")
@pytest.mark.parametrize("end", [lambda z: z, lambda z: z.sigmoid()], ids=["logit", "sigmoid"])
@pytest.mark.parametrize(("bias", "words"), [(3.0, "dog (0.953)"), (-3.0, "cat (0.953)")])
def test_the_headline_names_the_likelier_of_two(end: Callable[[Tensor], Tensor], bias: float, words: str) -> None:
    model = Ends(end, classes=1).eval()
    model.fc.weight.data.zero_()
    model.fc.bias.data.fill_(bias)
    net = as_network(model, "cat", "dog")
    chance = 1 / (1 + torch.tensor(-bias).exp())
    assert torch.allclose(tvc.predict(net, X), torch.stack([1 - chance, chance]).expand(3, 2))
    assert torch.allclose(tvc.predict(model, X), chance.expand(3, 1))
    assert tvc.grad_cam(net, X, "conv", relu=False).headline() == f"predicted: {words}"
    plain = tvc.grad_cam(model, X, "conv", relu=False).headline(categories=["cat", "dog"])
    assert plain.startswith(f"predicted: {words}")
    assert ("explained: dog (0.047)" in plain) == (bias < 0)


A, B = torch.randn(2, 8), torch.randn(2, 4)
Named = namedtuple("Named", ["logits", "aux_logits"])


def test_the_scores_among_several_outputs() -> None:
    four, eight = ("a", "b", "c", "d"), tuple("abcdefgh")
    assert torch.equal(class_outputs((A, B), 2, four), B)
    assert torch.equal(class_outputs([A, B], 2, eight), A)
    assert torch.equal(class_outputs((torch.rand(2, 8, 3, 3), B), 2), B)
    assert torch.equal(class_outputs((B, 2 * B), 2), B)  # one more of the same kind is auxiliary
    assert torch.equal(class_outputs((B, torch.tensor(0.5), None), 2), B)
    assert torch.equal(class_outputs(Named(A, B), 2), A)


@pytest.mark.parametrize("output", [(A, B), [B, A], (A, torch.rand(2)), (None, A, B)])
def test_scores_that_cannot_be_told_are_refused(output: Any) -> None:
    with pytest.raises(ModelError, match=r"may be class scores \(.*\); output= chooses a part of it"):
        class_outputs(output, 2)
    with pytest.raises(ModelError, match="output= chooses a part of it"):
        class_outputs({"boxes": A, "scores": B}, 2)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda z: z.argmax(1), r"a tensor \(3,\) of int64 for 3 images, not class scores \(3, n\)"),
        (lambda z: z > 0, r"a tensor \(3, 4\) of bool"),
        (lambda z: torch.complex(z, z), r"a tensor \(3, 4\) of complex64"),
        (lambda z: z[:, :0], r"a tensor \(3, 0\) for 3 images"),
        (torch.Tensor.to_sparse, r"a tensor \(3, 4\) for 3 images"),
    ],
    ids=["argmax", "comparison", "complex", "no class", "sparse"],
)
def test_outputs_that_are_no_scores_are_refused(end: Callable[[Tensor], Tensor], words: str) -> None:
    model = Ends(end).eval()
    for explain in (tvc.predict, tvc.grad_cam, tvc.saliency):
        with pytest.raises(ModelError, match=words):
            explain(model, X)


def test_decisions_beside_the_scores_are_left_out() -> None:
    assert torch.equal(class_outputs((B.argmax(1), B), 2), B)
    assert torch.equal(class_outputs((B.argmax(1, keepdim=True), B > 0, B), 2), B)


def segmenter() -> nn.Module:
    model: nn.Module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return model


def detector() -> nn.Module:
    options = {"weights": None, "weights_backbone": None, "score_thresh": 0.0}
    model: nn.Module = torchvision.models.detection.ssdlite320_mobilenet_v3_large(**options)
    return model


@pytest.mark.parametrize(
    ("build", "side"),
    [
        (segmenter, 64),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)), 12),
        (lambda: Ends(lambda z: (z[:, :, None, None].expand(-1, -1, 3, 3), None)), 12),
        (detector, 96),
    ],
    ids=["segmentation", "maps", "maps in a tuple", "detection"],
)
def test_the_options_that_a_refusal_names_explain_the_output(build: Callable[[], nn.Module], side: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = build().eval(), torch.rand(1, 3, side, side)
    for explain in (tvc.predict, tvc.grad_cam, tvc.saliency):
        with pytest.raises(
            ModelError, match=r"target=, as grad_cam has it, takes a function of it, as tvc\.targets\."
        ) as refused:
            explain(model, x)
    named = str(refused.value).rpartition("of it, as ")[2].replace("(mask, class)", "(torch.ones(8, 8), 1)")
    options = eval(f"dict(target={named.replace(' with ', ', ')})", {"torch": torch, "tvc": tvc})
    assert tvc.saliency(model, x, **options).values.count_nonzero() > 0


def test_networks_of_videos_say_how_they_are_explained() -> None:
    video = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    video.eval()
    frames = nn.Sequential(nn.Unflatten(1, (3, -1)), *video).eval()
    for x in (X, X[:1]):
        for explain in (tvc.predict, tvc.grad_cam, tvc.saliency):
            with pytest.raises(tvc.InputError, match=r"takes videos or volumes.*model\(x\.unflatten\(1, \(3, -1\)\)\)"):
                explain(video, x)
    clip = torch.rand(2, 3, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(tvc.InputError, match=r"grad_cam and saliency explain videos and volumes .* as they are"):
        tvc.occlusion(video, clip)
    leaf = clip.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(video(leaf)[:, 1].sum(), leaf)
    assert torch.allclose(tvc.saliency(video, clip, 1).gradients, gradient, atol=1e-6)
    ours = tvc.saliency(frames, clip.flatten(1, 2), 1).gradients
    assert torch.allclose(ours, gradient.flatten(1, 2), atol=1e-6)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_network_that_squeezes_works_on_one_image(classes: int) -> None:
    squeezed, plain = (Ends(end, classes).eval() for end in (torch.squeeze, lambda z: z))
    for explain, options in (
        (tvc.smooth_grad, {"samples": 5, "batch_size": 4}),
        (tvc.integrated_gradients, {"steps": 5, "batch_size": 4}),
        (tvc.occlusion, {"patch": 8, "batch_size": 5}),
        (tvc.grad_cam, {"layer": "conv", "relu": False}),
    ):
        for x in (X[:2], X[:1]):
            ours, expected = (explain(model, x, target=0, **options).values for model in (squeezed, plain))
            assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([torch.inf, 0.3, 1.1], [1.0, 0.0, 0.0]),
        ([-torch.inf, 0.0, 0.0], [0.0, 0.5, 0.5]),
        ([torch.inf, -torch.inf, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_infinite_logits_have_probabilities_where_they_are_defined(logits: list[float], expected: list[float]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval()
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    model[1].bias = nn.Parameter(torch.tensor(logits))
    assert torch.equal(tvc.predict(model, X), torch.tensor(expected).expand(3, -1))


@pytest.mark.parametrize("logits", [[torch.inf, torch.inf, 0.0], [-torch.inf, -torch.inf, -torch.inf]])
def test_undefined_probabilities_are_refused(logits: list[float]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval()
    model[1].bias = nn.Parameter(torch.tensor(logits))
    with pytest.raises(ModelError, match="infinite scores for image 0, of which no probabilities follow"):
        tvc.predict(model, X)


def test_a_map_is_never_drawn_from_nan() -> None:
    model = Ends(lambda z: (z - z.detach()).sqrt()).eval()  # 0, with an infinite gradient
    with pytest.raises(ModelError, match="NaN or infinity"):
        tvc.grad_cam(model, X, "conv", target=1, relu=False)
    half = Ends(lambda z: z).eval().half()
    half.fc.weight.data[0] = 60000.0
    nn.init.constant_(half.conv.bias, 2.0)  # type: ignore[arg-type]
    values = tvc.grad_cam(half, X.half(), "conv", target=0, score="probability", relu=False).values
    assert bool(values.isfinite().all())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.tensor([0.0, 1.0, 0.0]), r"one-hot, give the indices: target\.argmax\(0\)"),
        (torch.eye(4)[:3], r"one-hot, give the indices: target\.argmax\(1\)"),
        (torch.eye(4).bool()[:3], r"one-hot, give the indices: target\.argmax\(1\)"),
        (torch.eye(4).long()[:3], r"the target is one-hot; give the indices: target\.argmax\(1\)"),
        (torch.tensor([2.0, 1.0, 3.0]), r"torch\.float32; target\.long\(\) makes indices of it"),
        (torch.tensor([0.2, 0.5, 0.3]), r"whole numbers, not torch\.float32$"),
    ],
)
def test_one_hot_and_float_targets_are_named(target: Tensor, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        tvc.saliency(Ends(lambda z: z).eval(), X, target)


def test_labels_of_a_loader_keep_their_shape() -> None:
    labels = torch.tensor([[2], [0], [1]])
    assert tvc.saliency(Ends(lambda z: z).eval(), X, labels).values.shape == (3, 1, 12, 12)
    two = tvc.saliency(Ends(lambda z: z, classes=2).eval(), X, torch.tensor([[0, 1]] * 3))
    assert two.values.shape == (3, 2, 12, 12)


@pytest.mark.parametrize(
    "call",
    [
        lambda net: net.predict(PHOTO),
        lambda net: tvc.grad_cam(net, PHOTO),
        lambda net: tvc.saliency(net, PHOTO, target="a"),
        lambda net: tvc.grad_cam(net, PHOTO, target=tvc.targets.contrast("a", "b")),
        lambda net: tvc.survey(net, [PHOTO, PHOTO], k=1),
        lambda net: tvc.top_activations(net, [PHOTO, PHOTO], ["conv"], k=1, by="relevance"),
        lambda net: tvc.trust(net, [PHOTO, PHOTO], methods=["grad_cam"], steps=2, perturbed=1, mosaics=0),
    ],
)
@pytest.mark.parametrize(("names", "words"), [("abc", "are 3 class names"), ("abcde", "are 5 class names")])
def test_class_names_of_another_number_than_the_scores_are_told_once(call: Any, names: str, words: str) -> None:
    net = Network(Ends(lambda x: x).eval(), tvc.Preprocess((16, 16)), tuple(names))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(net)
    (only,) = (str(one.message) for one in said if "class name" in str(one.message))
    assert only.startswith(f"there {words}, and the network gives 4 scores: names may stand beside other classes than")


def pictures(names: Any, out: Path) -> dict[str, Callable[[], object]]:
    """Everything that takes the names of classes by hand, for a network of four scores."""
    model = Ends(lambda x: x).eval()
    classes, named = torch.tensor([[0, 3]] * len(X)), {"categories": names}
    heat, signed = (tvc.grad_cam(model, X, target=which, relu=False) for which in (classes, None))
    maps = tvc.explain(model, X, 1, methods=["grad_cam", "xgrad_cam"], relu=False)
    return {
        "plot": lambda: heat.plot(PHOTO, geometry="stretch", **named),
        "headline": lambda: heat.headline(**named),
        "two classes": lambda: heat.two_classes(PHOTO, geometry="stretch", **named),
        "difference": lambda: (signed - tvc.grad_cam(model, X, target=2, relu=False)).headline(**named),
        "saliency": lambda: tvc.saliency(model, X).headline(**named),
        "explain": lambda: maps.plot(PHOTO, geometry="stretch", **named),
        "watch": lambda: tvc.Watch(model, X, out / "plain", **named).step(),
        "watch photos": lambda: tvc.Watch(model, [PHOTO], out, preprocess=tvc.Preprocess((16, 16)), **named).step(),
    }


PICTURES = ("plot", "headline", "two classes", "difference", "saliency", "explain", "watch", "watch photos")


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("names", "words"), [("a", "is 1 class name"), ("abcde", "are 5 class names")])
def test_class_names_of_a_picture_that_do_not_fit_are_told_once(
    picture: str, names: str, words: str, tmp_path: Path
) -> None:
    draw = pictures(tuple(names), tmp_path)[picture]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        draw()
    (only,) = (str(one.message) for one in said if "class name" in str(one.message))
    assert only.startswith(f"there {words}, and the network gives 4 scores: names may stand beside other classes than")


@pytest.mark.parametrize("picture", PICTURES)
def test_class_names_of_a_picture_are_a_list(picture: str, tmp_path: Path) -> None:
    pictures(list("abcd"), tmp_path / "fits")[picture]()
    for wrong, kind in (("abcd", "a str"), ({0: "a", 1: "b", 2: "c", 3: "d"}, "a dict"), (4, "an int")):
        with pytest.raises(InputError, match=f"categories are a list of class names, .* not {kind}"):
            pictures(wrong, tmp_path)[picture]()


def test_names_beside_the_values_of_a_function_are_not_counted() -> None:
    heat = tvc.grad_cam(Ends(lambda x: x).eval(), X, target=lambda output: output[:, :2], relu=False)
    assert heat.two_classes(PHOTO, geometry="stretch", categories=["a", "b", "c", "d"]).size[0] == PHOTO.size[0]


@pytest.mark.parametrize(("names", "classes"), [("abcd", 4), ("ab", 1), (None, 4)])
def test_class_names_that_fit_are_not_spoken_of(names: str | None, classes: int) -> None:
    net = Network(Ends(lambda x: x, classes).eval(), tvc.Preprocess((16, 16)), names and tuple(names))  # type: ignore[arg-type]
    net.predict(PHOTO)
