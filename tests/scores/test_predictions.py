"""`Predictions`: a tensor that knows its photos and the names of its classes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tests.networks import images, vgg_like
from torchviz_cnn.scores.predictions import Predictions
from torchviz_cnn.scores.targets import predict


def test_no_attribute_of_its_own_is_one_of_all_tensors() -> None:
    """`names` was one until PyTorch 2.14, which takes nothing but names of dimensions for it."""
    own = set(Predictions.__annotations__)
    assert own == {"origin", "image_names"}
    assert not own & {"names", *dir(Tensor)}


def test_a_copy_knows_what_it_is_of() -> None:
    made = predict(vgg_like(), images(2))
    again = copy.deepcopy(made)
    assert torch.equal(again, made)
    assert again.image_names == made.image_names == ("image 0", "image 1")
    assert repr(again) == repr(made)
