"""Targets and scores: shape in, shape out, and never a silent broadcast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchviz_cnn import InputError, ModelError, TargetError
from torchviz_cnn.scores.outputs import class_outputs
from torchviz_cnn.scores.targets import resolve_target, score_of

OUTPUTS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_no_target_is_each_images_top_class() -> None:
    classes, one = resolve_target(None, OUTPUTS)
    assert one
    assert classes.tolist() == OUTPUTS.argmax(1, keepdim=True).tolist()


@pytest.mark.parametrize("target", [4, np.int64(4), torch.tensor(4)])
def test_one_class_is_for_all_images(target: Any) -> None:
    classes, one = resolve_target(target, OUTPUTS)
    assert one
    assert classes.tolist() == [[4], [4], [4]]


@pytest.mark.parametrize(
    "target", [[0, 4, 2], (0, 4, 2), np.array([0, 4, 2]), torch.tensor([0, 4, 2], dtype=torch.int32)]
)
def test_a_class_for_each_image(target: Any) -> None:
    classes, one = resolve_target(target, OUTPUTS)
    assert one
    assert classes.tolist() == [[0], [4], [2]]


def test_several_classes_for_each_image() -> None:
    classes, one = resolve_target([[0, 1], [1, 2], [2, 3]], OUTPUTS)
    assert not one
    assert classes.shape == (3, 2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, "target 5 is out of range: the model has 5 classes, 0 to 4"),
        (-1, "target -1 is out of range"),
        ([0, 1, 7], "target 7 is out of range"),
        ([0, 1], r"shape \(2,\) does not fit a batch of 3"),
        ([[0, 1, 2]], r"shape \(1, 3\) does not fit a batch of 3"),
        ([], r"shape \(0,\)"),
        (torch.zeros(3, 1, 1, dtype=torch.long), r"shape \(3, 1, 1\)"),
        (1.0, "not 1.0"),
        (True, "not True"),
        (torch.tensor([0.0, 1.0, 2.0]), "whole numbers"),
        ("African elephant", "class names of the model are not known"),
        ([[0], [1, 2], [3]], "rectangle"),
    ],
)
def test_a_wrong_target_is_named(target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        resolve_target(target, OUTPUTS)


def test_scores_are_what_they_are_called() -> None:
    target = torch.tensor([[1, 2], [0, 0], [4, 3]])
    rows = torch.arange(3)[:, None]
    assert torch.equal(score_of(OUTPUTS, target, "logit"), OUTPUTS[rows, target])
    assert torch.allclose(score_of(OUTPUTS, target, "probability"), OUTPUTS.softmax(1)[rows, target])
    assert torch.allclose(score_of(OUTPUTS, target, "log_probability"), OUTPUTS.softmax(1).log()[rows, target])
    cross = torch.stack([F.cross_entropy(OUTPUTS, target[:, k], reduction="none") for k in range(2)], 1)
    assert torch.allclose(score_of(OUTPUTS, target, "cross_entropy"), cross)


def test_a_single_output_is_a_binary_network() -> None:
    logit = torch.tensor([[2.0], [-1.0]])
    target = torch.zeros(2, 1, dtype=torch.long)
    assert torch.allclose(score_of(logit, target, "probability"), logit.sigmoid())
    expected = F.binary_cross_entropy_with_logits(logit, torch.ones(2, 1), reduction="none")
    assert torch.allclose(score_of(logit, target, "cross_entropy"), expected)


def test_an_unknown_score_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no score 'logits'; did you mean 'logit'"):
        score_of(OUTPUTS, torch.zeros(3, 1, dtype=torch.long), "logits")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "output",
    [
        OUTPUTS,
        OUTPUTS[:, :, None, None],
        (OUTPUTS, "auxiliary"),
        {"logits": OUTPUTS},
        {"out": OUTPUTS},
        SimpleNamespace(logits=OUTPUTS),
        OUTPUTS.bfloat16(),
    ],
)
def test_class_outputs_are_found(output: Any) -> None:
    result = class_outputs(output, 3)
    assert result.dtype == torch.float32
    assert torch.allclose(result, OUTPUTS, atol=0.02)


@pytest.mark.parametrize("output", [torch.zeros(3, 5, 7, 7), torch.zeros(2, 5), "text", {"boxes": OUTPUTS}, []])
def test_what_is_no_class_output_is_named(output: Any) -> None:
    with pytest.raises(ModelError, match="not class scores"):
        class_outputs(output, 3)
