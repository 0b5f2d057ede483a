"""ROAD: removed pixels are filled in as the exact solution has them, and scores are those of other packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests import networks
from tests.attribution.metrics.corner import Corner, inverted, perfect, random
from torchviz_cnn.attribution.metrics.perturbation import ranks
from torchviz_cnn.attribution.metrics.road import cycle, dot, filled_in, noise_of, pyramid
from torchviz_cnn.core.errors import InputError

WEIGHTS = {(dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}


def exact(x: Tensor, removed: Tensor) -> Tensor:
    """One image (C, H, W) whose removed pixels (H, W) solve the paper's equations, written out pixel by pixel."""
    height, width = removed.shape
    number = {place: i for i, place in enumerate(map(tuple, removed.nonzero().tolist()))}
    entries: list[tuple[float, int, int]] = []
    right = np.zeros((len(number), len(x)))
    for (row, column), i in number.items():
        total = 0.0
        for (dy, dx), weight in WEIGHTS.items():
            near = (row + dy, column + dx)
            if not (0 <= near[0] < height and 0 <= near[1] < width):
                continue
            total += weight
            if near in number:
                entries.append((-weight, i, number[near]))
            else:
                right[i] += weight * x[:, near[0], near[1]].numpy()
        entries.append((total, i, i))
    values, rows, columns = zip(*entries, strict=True)
    matrix = coo_array((values, (rows, columns)), shape=(len(number), len(number))).tocsc()
    filled = x.clone()
    filled[:, removed] = torch.from_numpy(spsolve(matrix, right).reshape(len(number), -1).T).float()
    return filled


def removed_by(maps: Tensor, share: float) -> Tensor:
    """The strongest pixels of maps (n, h, w): (n, 1, h, w)."""
    return (ranks(maps[:, None], 0) < round(share * maps[0].numel())).view(len(maps), 1, *maps.shape[1:])


@pytest.mark.parametrize("size", [(1, 5), (9, 1), (5, 3), (17, 16), (33, 40)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("smooth", [False, True])
def test_removed_pixels_solve_the_equations_exactly(size: tuple[int, int], share: float, smooth: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, *size, generator=generator)
    maps = torch.rand(3, *size, generator=generator)
    if smooth:  # large connected regions, at the border too
        maps = maps * 0.01 + torch.linspace(0, 1, size[1]) * torch.tensor([1, -1, 0.5])[:, None, None]
    removed = removed_by(maps, share)
    filled = filled_in(x, removed)
    for i in range(3):
        torch.testing.assert_close(filled[i], exact(x[i], removed[i, 0]), atol=3e-4, rtol=0)
    assert torch.equal(filled.masked_fill(removed, 0), x.masked_fill(removed, 0))


def test_an_image_is_filled_in_as_it_would_be_alone() -> None:
    x = torch.cat([networks.images(2), 1e3 * networks.images(1), torch.ones(1, 3, 32, 32)])
    removed = removed_by(random(4, 32), 0.7)
    for i, filled in enumerate(filled_in(x, removed)):
        torch.testing.assert_close(filled_in(x[i : i + 1], removed[i : i + 1])[0], filled, rtol=1e-5, atol=1e-5)


def test_all_pixels_but_one_take_its_value() -> None:
    x = networks.images(1, 20)
    removed = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    removed[..., 4, 7] = False
    expected = x[..., 4:5, 7:8].expand_as(x)
    torch.testing.assert_close(filled_in(x, removed), expected, atol=1e-3, rtol=0)


def test_where_no_pixel_is_removed_the_image_stays() -> None:
    x = networks.images()
    assert torch.equal(filled_in(x, torch.zeros(2, 1, 32, 32, dtype=torch.bool)), x)


@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
def test_a_cycle_is_symmetric_and_positive_as_conjugate_gradients_need_it(size: tuple[int, int]) -> None:
    levels = pyramid(removed_by(random(1, 32)[:, : size[0], : size[1]], 0.8))
    a, b = (levels[0].removed * torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    torch.testing.assert_close(dot(cycle(levels, a), b), dot(a, cycle(levels, b)))
    assert float(dot(cycle(levels, a), a)) > 0


def test_noise_depends_on_the_seed_the_image_and_the_share_alone() -> None:
    x = networks.images()
    first = noise_of(x, 0.01, 0, 3, 1)
    assert torch.equal(first, noise_of(networks.images(5), 0.01, 0, 3, 1))
    assert float(first.std()) == pytest.approx(0.01, rel=0.1)
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 2)):
        assert not torch.equal(first, noise_of(x, 0.01, *other))


def test_a_perfect_map_beats_a_random_one_and_that_an_inverted_one() -> None:
    x = torch.zeros(1, 1, 16, 16)
    x[..., :4, :4] = 1.0
    best, middle, worst = (
        tvc.metrics.road(Corner(), x, maps, target=0, noise=0.0).mean for maps in (perfect(), random(), inverted())
    )
    assert best == pytest.approx(0.5, abs=1e-3)  # the corner is as dark as the rest, with 0.5 for either class
    assert best > middle > worst
    assert worst < 0


def test_a_random_map_has_no_value_over_many_images() -> None:
    measured = tvc.metrics.road(Corner(0.3), networks.images(60, 16, channels=1), random(60), target=0)
    low, high = measured.interval
    assert low < 0 < high


def test_what_the_shares_give_is_in_the_details_and_the_curves() -> None:
    measured = tvc.metrics.road(networks.vgg_like(), networks.images(3), random(3, 32), shares=(0.1, 0.5))
    most, least = measured.details["most_relevant_removed"], measured.details["least_relevant_removed"]
    assert most.shape == least.shape == (3, 2)
    torch.testing.assert_close(measured.values, (least - most).mean(1))
    assert measured.curves is not None
    torch.testing.assert_close(measured.curves.x, torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(measured.curves.y, least - most)


def test_an_empty_map_and_an_image_of_one_pixel_are_not_measured() -> None:
    maps = torch.cat([torch.zeros(1, 16, 16), torch.ones(1, 16, 16), -perfect()])
    measured = tvc.metrics.road(Corner(), torch.ones(3, 1, 16, 16), maps, target=0)
    assert measured.reasons == {0: "the map is all zeros"}
    assert measured.values.isnan().tolist() == [True, False, False]
    tiny = tvc.metrics.road(Corner(), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1), target=0)
    assert tiny.reasons == {0: "an image of one pixel has no neighbours to fill it in"}


@pytest.mark.parametrize("shares", [(), (0,), (0.5, 1), (-0.1,), (float("nan"),)])
def test_wrong_shares_are_reported(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="share"):
        tvc.metrics.road(Corner(), torch.ones(1, 1, 16, 16), perfect(), shares=shares)


def test_scores_equal_grad_cams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise. Its percentiles say what stays, and its combined score is half of ours."""
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road")
    models = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    initial = theirs.NoisyLinearImputer.__init__
    monkeypatch.setattr(theirs.NoisyLinearImputer, "__init__", lambda self: initial(self, noise=0.0))
    model, x = networks.vgg_like(), networks.images(2)
    target = torch.tensor([1, 3])
    ours = tvc.metrics.road(model, x, random(2, 32), target, noise=0.0)
    given = (x, random(2, 32).numpy(), [models.ClassifierOutputSoftmaxTarget(int(t)) for t in target], model)
    for share, percentile in enumerate((80, 60, 40, 20)):
        for name, metric in (("most", theirs.ROADMostRelevantFirst), ("least", theirs.ROADLeastRelevantFirst)):
            score = torch.from_numpy(metric(percentile)(*given, return_diff=False))
            mine = ours.details[f"{name}_relevant_removed"][:, share]
            torch.testing.assert_close(mine, score, atol=1e-4, rtol=0)
    combined = torch.from_numpy(theirs.ROADCombined([80, 60, 40, 20])(*given))
    torch.testing.assert_close(ours.values, 2 * combined, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_pixels_equal_those_of_quantus() -> None:
    functions = pytest.importorskip("quantus.functions.perturb_func")
    x, maps = networks.images(1, 48)[0], random(1, 48)
    removed = removed_by(maps, 0.6)
    indices = removed.flatten().nonzero()[:, 0].numpy()
    theirs = torch.from_numpy(functions.noisy_linear_imputation(x.numpy(), indices, noise=0.0)).float()
    torch.testing.assert_close(filled_in(x[None], removed)[0], theirs, atol=3e-4, rtol=0)


@pytest.mark.slow
def test_scores_of_a_trained_network_equal_those_of_the_exact_solution(data: object) -> None:
    """Of large regions, as class heatmaps remove them, at 224 pixels: to 1e-4."""
    net = tvc.load_model("squeezenet1_0", f"{data}/checkpoints/squeezenet1_0.pth")
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.randn(2, 3, 28, 28, generator=generator), (224, 224), mode="bilinear")
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    coarse = torch.rand(2, 1, 13, 13, generator=generator)
    maps = nn.functional.interpolate(coarse, (224, 224), mode="bilinear")[:, 0]
    removed = removed_by(maps, 0.6)
    solved = torch.stack([exact(one, mask[0]) for one, mask in zip(x, removed, strict=True)])
    torch.testing.assert_close(tvc.predict(net, filled_in(x, removed)), tvc.predict(net, solved), atol=1e-4, rtol=0)
