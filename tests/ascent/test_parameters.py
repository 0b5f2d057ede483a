"""Image parametrisations and movements: what they start from, what they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchviz_cnn.ascent.parameters import COLOURS, InputScale, fourier, pixels
from torchviz_cnn.ascent.transformations import Transformation, jitter, moved, rotate, sampled_matrices, scale
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.media.images import Preprocess

IMAGENET = InputScale.of(Preprocess(), 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixels_start_as_uniform_noise_on_the_photos_scale() -> None:
    start = pixels((3, 40, 50), IMAGENET, 0.4, 0.6).start(generator(), 0)
    photo = IMAGENET.to_photo(start)
    assert start.shape == (3, 40, 50)
    assert 0.4 <= float(photo.min()) < 0.401
    assert 0.599 < float(photo.max()) <= 0.6 + 1e-6
    mean, std = torch.tensor(Preprocess().mean), torch.tensor(Preprocess().std)
    assert torch.allclose(start, (photo - mean[:, None, None]) / std[:, None, None], atol=1e-6)


def test_dead_noise_is_drawn_anew_and_wider() -> None:
    parameters, same = pixels((3, 32, 32)), generator()
    first, second, third = (parameters.start(same, attempt) for attempt in range(3))
    assert float(first.std()) < 0.1 < float(second.std())
    assert float(second.min()) < 0.05 < 0.95 < float(second.max())
    assert third.diff(dim=2).abs().mean() < 0.2 * second.diff(dim=2).abs().mean()


def test_where_nothing_is_known_the_scale_is_0_to_1() -> None:
    assert InputScale.of(None, 3) == InputScale()
    assert InputScale.of(Preprocess(), 1) == InputScale()
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(IMAGENET.to_photo(IMAGENET.to_input(x)), x, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 31, 20), (4, 9, 17), (3, 1, 1), (2, 1, 8)])
def test_fourier_writes_images_of_any_channels_and_size(shape: tuple[int, int, int]) -> None:
    parameters = fourier(shape)
    start = torch.stack([parameters.start(generator(i), 0) for i in range(2)])
    images = parameters.images(start)
    assert images.shape == (2, *shape)
    assert bool(((images > 0) & (images < 1)).all())
    assert torch.allclose(parameters.images(start[1:])[0], images[1], atol=1e-6)


def test_fourier_gives_low_frequencies_their_weight() -> None:
    """One wave in the spectrum is one wave in the image, as strong as 1 / frequency."""
    parameters = fourier((1, 64, 64))

    def wave(frequency: int) -> Tensor:
        spectrum = torch.zeros(1, 1, 64, 33, 2)
        spectrum[0, 0, 0, frequency, 0] = 1e-3
        return torch.logit(parameters.images(spectrum).double())[0, 0, 0]

    for frequency in (1, 2, 8):
        expected = wave(frequency).abs().max() * torch.cos(2 * math.pi * frequency * torch.arange(64) / 64)
        assert torch.allclose(wave(frequency), expected.double(), atol=1e-5 * float(expected.max()) + 1e-6)
    assert float(wave(1).abs().max() / wave(8).abs().max()) == pytest.approx(8, rel=1e-2)


def test_colours_vary_independently() -> None:
    """The columns are directions at right angles: light, then what photos vary in less."""
    colours = torch.tensor(COLOURS)
    product = colours.T @ colours
    assert torch.allclose(product, torch.diag(product.diagonal()), atol=2e-3)
    lengths = colours.norm(dim=0).tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == pytest.approx(1, abs=2e-3)
    assert bool((colours[:, 0] > 0.5).all())


def image() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    return torch.stack([rows + columns / 100, (rows * 0.3).sin() * columns])[None]


class Exactly(Transformation):
    """A turn by so many degrees and a shift by so many pixels, always."""

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        degrees, pixels = self.bounds
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.tensor([[cos, sin, pixels], [-sin, cos, 0], [0, 0, 1.0]]).repeat(steps, 1, 1)


def exactly(degrees: float, pixels: float = 0) -> Transformation:
    return Exactly("exactly", (degrees, pixels))


def test_jitter_shifts_by_whole_pixels() -> None:
    x = image()
    for seed in range(5):
        matrices = sampled_matrices([jitter(3)], generator(seed), 4, (16, 20))
        shift = jitter(3).draw(generator(seed), 4)[:, :2, 2].int()
        for step in range(4):
            right, down = shift[step].tolist()
            result = moved(x, matrices[step][None])
            expected = torch.roll(x, (-down, -right), (2, 3))
            assert torch.allclose(result[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-4)


def test_a_quarter_turn_is_rot90() -> None:
    x = image()[..., :16]
    result = moved(x, sampled_matrices([exactly(90)], generator(), 1, (16, 16)))
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, 3)]
    assert min(float((result - t).abs().max()) for t in turned) < 1e-4


def test_scale_enlarges_about_the_middle() -> None:
    x = image()[:, :1]
    result = moved(x, sampled_matrices([scale(2, 2)], generator(), 1, (16, 20)))
    slope = result.diff(dim=2)[..., 2:-2, :]
    assert torch.allclose(slope, torch.full_like(slope, 0.5), atol=1e-4)
    assert float(result.mean()) == pytest.approx(float(x.mean()), rel=1e-3)


def test_movements_compose_in_order() -> None:
    x, size = image()[..., :16], (16, 16)
    shift = exactly(0, 3)
    one = moved(x, sampled_matrices([shift], generator(), 1, size))
    two = moved(one, sampled_matrices([exactly(90)], generator(), 1, size))
    both = moved(x, sampled_matrices([shift, exactly(90)], generator(), 1, size))
    assert torch.allclose(both[..., 5:-5, 5:-5], two[..., 5:-5, 5:-5], atol=1e-3)


def test_movements_stay_in_their_bounds_and_differ() -> None:
    matrices = sampled_matrices([jitter(4), scale(0.9, 1.1), rotate(10)], generator(), 200, (32, 32))
    assert matrices.shape == (200, 2, 3)
    zoom = (matrices[:, 0, :2].norm(dim=1) ** -1).double()
    assert 0.9 - 1e-4 <= float(zoom.min()) < float(zoom.max()) <= 1.1 + 1e-4
    angle = torch.rad2deg(torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    assert 8 < float(angle.abs().max()) <= 10 + 1e-3
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices}) == 200


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="jitter is a whole number of at least 0"):
        jitter(-1)
    with pytest.raises(InputError, match=r"whole number of at least 0, not 2\.5"):
        jitter(2.5)  # type: ignore[arg-type]
    for number in (math.nan, math.inf, "5"):
        with pytest.raises(InputError, match="is a finite number"):
            rotate(number)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="is a finite number"):
            scale(1, number)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"movements exactly\(0, nan\) are not all finite"):
        sampled_matrices([exactly(0, math.nan)], generator(), 2, (8, 8))
    with pytest.raises(InputError, match="scale goes from"):
        scale(1.1, 0.9)
    with pytest.raises(InputError, match="at most 1,000,000"):
        jitter(10**20)
