"""The report without a browser: its numbers are the library's, its page is whole and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchviz_cnn as tvc
from tests.networks import CLASSES, NETWORKS, seeded, vgg_like
from torchviz_cnn.attribution.cam.formulas import CAM_METHODS, cam_method
from torchviz_cnn.attribution.methods import METHODS
from torchviz_cnn.cli.main import main
from torchviz_cnn.page.collect import HEAT_SIDE, MAP_SIDE, Collected, collect
from torchviz_cnn.runs.encode import Blocks, figure, levels
from torchviz_cnn.runs.pages import script_json

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


def network(
    model: nn.Module, categories: tuple[str, ...] | None = None, side: int = 32, channels: int = 3
) -> tvc.Network:
    preprocess = tvc.Preprocess((side, side), resize=side, mean=(0.5,) * channels, std=(0.25,) * channels)
    return tvc.Network(model, preprocess, categories, "tiny", "random")


def photos(count: int, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


class Page(HTMLParser):
    """The parts of a page that tests ask for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.text = Path(path).read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.words = ""
        self._open = ""
        self.feed(self.text)
        self.data: dict[str, Any] = json.loads(self.inside["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open] = self.inside.get(self._open, "") + data
        else:
            self.words += data

    def maps(self, block: int, size: tuple[int, int] | list[int]) -> np.ndarray[Any, Any]:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(self.inside[f"block-{block}"])), np.uint8)
        return np.cumsum(steps.reshape(-1, *size), axis=2, dtype=np.uint8)


def collected(model: nn.Module, x: Tensor, layers: Any = None, classes: int = 3) -> Collected:
    return collect(network(model), [x], layers, classes, lambda count: None)


@pytest.mark.parametrize("name", ["vgg_like", "reused", "residual", "checkpointed", "data_parallel"])
def test_one_forward_gives_what_each_method_gives_by_itself(name: str) -> None:
    model, x = NETWORKS[name](), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    numbers = collected(model, x)
    assert torch.equal(numbers.classes, numbers.logits.topk(3, 1).indices)
    acts = tvc.capture(model, x, list(numbers.layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvc.EmptyMapWarning)
        for layer, of in list(numbers.layers.items())[::2]:
            torch.testing.assert_close(of.maps, acts[layer])
            torch.testing.assert_close(of.peak, acts[layer].amax((2, 3)))
            torch.testing.assert_close(of.sparsity, (acts[layer] <= 0).float().mean((2, 3)))
            assert set(of.heat) - {"competitive_cam"} == set(CAM_METHODS)
            for method, heat in of.heat.items():
                alone = METHODS[method].explain(model, x, layer, target=numbers.classes)
                torch.testing.assert_close(heat, alone.values, atol=1e-6, rtol=1e-4)
        for method, gradients in numbers.pixels.items():
            saliency = METHODS[method].explain(model, x, numbers.classes)
            assert isinstance(saliency, tvc.Saliency)
            torch.testing.assert_close(gradients, saliency.gradients, atol=1e-6, rtol=1e-4)
    assert set(numbers.pixels) == {"saliency", "guided", "deconvnet"}


@pytest.mark.parametrize("name", ["vgg_like", "gap_linear", "squeeze_like"])
def test_competitive_cam_is_made_for_the_layer_that_is_explained(name: str) -> None:
    model, x = NETWORKS[name](), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    numbers = collected(model, x, classes=2)
    assert [layer for layer, of in numbers.layers.items() if "competitive_cam" in of.heat] == [numbers.explained]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tvc.EmptyMapWarning)
        alone = tvc.competitive_cam(model, x, target=numbers.classes)
    assert alone.layer == numbers.explained
    torch.testing.assert_close(numbers.layers[alone.layer].heat["competitive_cam"], alone.values, atol=1e-6, rtol=1e-4)


def test_no_method_is_offered_that_no_layer_on_the_page_has(tmp_path: Path) -> None:
    """Channel 7 is one of the first layer alone, and the layer that is explained is the last."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    for channels, offered in ((None, ["grad_cam", "competitive_cam"]), ([7], ["grad_cam", "layer_cam"])):
        page = Page(tvc.report(network(model), photos(1), tmp_path, budget=0, channels=channels))
        assert [method["name"] for method in page.data["methods"]][:2] == offered


def test_a_method_that_is_registered_appears_on_the_page(tmp_path: Path) -> None:
    def locally_weighted(activations: Tensor, gradients: Tensor) -> Tensor:
        """Weigh each place by its own positive gradient."""
        return (gradients.relu() * activations[:, None]).sum(2)

    cam_method("Locally weighted CAM", "what a test registered", "a paper")(locally_weighted)
    try:
        page = Page(tvc.report(network(vgg_like()), photos(1), tmp_path, budget=0))
    finally:
        del CAM_METHODS["locally_weighted"]
    methods = {method["name"]: method for method in page.data["methods"]}
    family = ["grad_cam", "competitive_cam", *list(CAM_METHODS)[1:]]
    assert list(methods) == [*family, "locally_weighted", "guided_grad_cam", "saliency", "guided", "deconvnet"]
    assert [method["suits"] is not None for method in methods.values()] == [True] * 2 + [False] * (len(methods) - 2)
    assert methods["locally_weighted"]["title"] == "Locally weighted CAM"
    assert methods["locally_weighted"]["shows"] == "what a test registered"
    layer = page.data["layers"][2]
    assert set(layer["heat"]) == {*CAM_METHODS, "locally_weighted"}
    both = [layer["heat"][name] for name in ("grad_cam", "locally_weighted")]
    maps = [page.maps(heat["maps"][0], heat["size"]) for heat in both]
    assert not np.array_equal(maps[0], maps[1])


def test_methods_are_told_as_the_table_tells_them(tmp_path: Path) -> None:
    page = Page(tvc.report(network(vgg_like()), photos(1), tmp_path, budget=0))
    assert {m["name"]: m["title"] for m in page.data["methods"]} == {
        name: METHODS[name].title
        for name in (*CAM_METHODS, "competitive_cam", "guided_grad_cam", "saliency", "guided", "deconvnet")
    }
    photo = page.data["photos"][0]
    layer = next(layer for layer in page.data["layers"] if layer["name"] == page.data["explained"])
    for method in page.data["methods"]:
        assert method["heat"] is None or method["heat"] in layer["heat"]
        assert method["pixels"] is None or method["pixels"] in photo["pixels"]


def test_photos_run_forward_once_for_all_layers_classes_and_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for competitive CAM, which runs them itself."""
    nothing = torch.zeros(3, CLASSES, 8, 8)
    monkeypatch.setattr("torchviz_cnn.page.collect.competition", lambda given, layer, run: (nothing, nothing))
    model, batches = vgg_like(), []
    model.features.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    collected(model, torch.rand(3, 3, 32, 32), classes=CLASSES)
    assert batches.count(3) == 1
    assert sum(batches) == 4  # and one photo once more, for the layer that is explained first


def test_a_photo_is_shown_as_it_would_be_alone() -> None:
    model, x = vgg_like(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    together = collected(model, x)
    apart = collect(network(model), torch.split(x, 1), None, 3, lambda count: None)
    torch.testing.assert_close(together.logits, apart.logits)
    for layer, of in together.layers.items():
        torch.testing.assert_close(of.maps, apart.layers[layer].maps)
        torch.testing.assert_close(of.heat, apart.layers[layer].heat)


def test_the_page_is_one_file_that_may_ask_for_nothing(tmp_path: Path) -> None:
    result = tvc.report(network(vgg_like()), photos(2), tmp_path / "page.html", budget=0)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    page = Page(result)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", page.inside["style"])
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|eval\(", page.inside["script"])
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for part, kind in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(page.inside[part].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_names_stay_text_whatever_they_are(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(3)<!--", nn.Conv2d(3, 4, 3))
    model.add_module("a/b c#&", nn.ReLU())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    net = tvc.Network(model, network(model).preprocess, (HOSTILE, "<b>"), HOSTILE, HOSTILE)
    page = Page(tvc.report(net, {HOSTILE: photos(1)[0]}, tmp_path, budget=0, command=HOSTILE))
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 2 + len([name for name in page.inside if name.startswith("block-")])
    assert not [tag for tag, a in page.tags if tag in ("b",) or "onerror" in a]
    assert page.data["photos"][0]["name"] == HOSTILE
    assert set(page.data["classes"].values()) == {HOSTILE, "<b>"}
    assert page.data["layers"][0]["name"] == "<script>alert(3)<!--"
    assert page.words.count(HOSTILE) >= 5


def test_what_is_embedded_is_what_was_computed(tmp_path: Path) -> None:
    model, shown = vgg_like(), photos(2)
    net = network(model, tuple(f"class <{i}>" for i in range(CLASSES)))
    page = Page(tvc.report(net, shown, tmp_path, budget=0, k=6))
    x = torch.stack([net.preprocess(photo) for photo in shown])
    numbers = collected(model, x, nn.ReLU)
    convolutions = tvc.layer_names(model, types=nn.Conv2d)
    assert [layer["name"] for layer in page.data["layers"]] == convolutions
    for layer in page.data["layers"]:
        assert layer["call"] == f"features.{int(layer['name'].partition('.')[2]) + 1}"  # its ReLU
        of = numbers.layers[layer["call"]]
        assert layer["shape"] == list(of.shape)
        maps = of.maps[:, layer["channels"]]
        low, high = maps.amin((0, 2, 3)).clamp(max=0), maps.amax((0, 2, 3))
        for i in range(2):
            drawn = torch.from_numpy(page.maps(layer["maps"][i], layer["size"]).astype(np.float32))
            values = low[:, None, None] + drawn / 255 * (high - low)[:, None, None]
            error = (values - maps[i]).abs().amax((1, 2))
            assert bool((error <= (high - low) / 500).all())  # half a level
        strongest = of.peak.amax(0).argsort(descending=True, stable=True)[:6]
        assert layer["channels"] == sorted(strongest.tolist())
        torch.testing.assert_close(torch.tensor(layer["peak"]), of.peak, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(torch.tensor(layer["layerSparsity"]), of.sparsity.mean(1), rtol=1e-3, atol=1e-3)
        heat = page.maps(layer["heat"]["grad_cam"]["maps"][1], layer["heat"]["grad_cam"]["size"])
        values = of.heat["grad_cam"][1]
        expected = levels(values, torch.zeros(3), values.amax((1, 2)))
        assert np.array_equal(heat, expected)
    first = page.data["photos"][0]
    assert first["classes"] == numbers.classes[0].tolist()
    assert first["view"] == pytest.approx([4 / 48, 0, 44 / 48, 1], abs=0.02)
    picture = Image.open(io.BytesIO(base64.b64decode(page.inside[f"block-{first['picture']}"])))
    assert (picture.format, picture.size) == ("WEBP", (48, 40))


def test_large_maps_are_averaged_down(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    x = torch.rand(1, 3, 120, 240, generator=torch.Generator().manual_seed(3))
    of = collected(model, x, classes=1).layers["0"]
    assert of.shape == (2, 120, 240)
    assert of.maps.shape == (1, 2, MAP_SIDE // 2, MAP_SIDE)
    assert of.heat["grad_cam"].shape == (1, 1, HEAT_SIDE // 2, HEAT_SIDE)
    whole = tvc.capture(model, x, "0")["0"]
    torch.testing.assert_close(of.maps[0, :, 0, 0], whole[0, :, :3, :3].mean((1, 2)))  # 2.5 pixels, whole ones
    torch.testing.assert_close(of.peak, whole.amax((2, 3)))
    torch.testing.assert_close(of.mean, whole.relu().mean((2, 3)))
    torch.testing.assert_close(of.sparsity, (whole <= 0).float().mean((2, 3)))


def one_channel() -> tvc.Network:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return network(model, channels=1)


def one_class() -> tvc.Network:
    return network(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)), ("cat",)
    )


def one_layer() -> tvc.Network:
    return network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)))


def one_convolution() -> tvc.Network:
    return network(nn.Conv2d(3, 5, 32))


def no_relu() -> tvc.Network:
    return network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))


def detached() -> tvc.Network:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.conv(x).detach().mean((2, 3)))
            return out

    return network(Detached())


class Aside(nn.Module):
    """A convolution of broken weights that runs beside the one that the answer comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aside, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        with torch.no_grad():
            self.aside.weight[0], self.aside.weight[1] = torch.nan, torch.inf

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        out: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return out


def broken_aside() -> tvc.Network:
    return network(Aside())


def dead() -> tvc.Network:
    net = one_class()
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.zero_()
    return net


ODD: dict[str, Callable[[], tvc.Network]] = {
    build.__name__: build for build in (one_channel, one_class, one_layer, no_relu, detached, broken_aside, dead)
}


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("name", ODD)
def test_odd_networks_get_a_page(name: str, count: int, tmp_path: Path) -> None:
    net = ODD[name]()
    page = Page(tvc.report(net, photos(count), tmp_path, budget=0))
    assert len(page.data["photos"]) == count
    assert bool(page.data["layers"]) == (name != "one_layer")
    for photo in page.data["photos"]:
        assert len(photo["classes"]) == min(3, len(photo["classes"]))
        assert set(photo["pixels"]) == {
            "one_layer": {"saliency"},
            "no_relu": {"saliency"},
            "detached": set(),
        }.get(name, {"saliency", "guided", "deconvnet"})
    if name == "detached":
        assert all(layer["heat"] == {} for layer in page.data["layers"])


def test_weights_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    net = one_class()
    with torch.no_grad():
        next(net.model.parameters())[0] = torch.nan
    with pytest.raises(tvc.ModelError, match="NaN"):
        tvc.report(net, photos(1), tmp_path, budget=0)
    assert not list(tmp_path.iterdir())


def test_a_network_of_one_convolution(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1))
    page = Page(tvc.report(network(model), photos(1), tmp_path, budget=0))
    assert [layer["name"] for layer in page.data["layers"]] == ["0"]
    page = Page(tvc.report(one_convolution(), photos(1), tmp_path, budget=0))  # no layer below the network itself
    assert page.data["layers"] == []


def test_layers_channels_and_classes_can_be_chosen(tmp_path: Path) -> None:
    net = network(vgg_like())
    result = tvc.report(
        net, photos(1), tmp_path, layers=["features.5", nn.MaxPool2d], channels=[3, 1], classes=1, budget=0
    )
    assert result.layers == ("features.4", "features.5", "features.8", "features.9")  # and the one explained first
    page = Page(result)
    assert [layer["channels"] for layer in page.data["layers"]] == [[1, 3]] * 4
    assert len(page.data["photos"][0]["classes"]) == 1


def test_layers_without_the_channels_asked_for_are_left_out(tmp_path: Path) -> None:
    net = network(vgg_like())  # its convolutions have 8, 8, 10 and 12 channels
    widest = tvc.layer_names(net.model, types=nn.Conv2d)[-1]
    result = tvc.report(net, photos(1), tmp_path, layers=nn.Conv2d, channels=[11], budget=0)
    page = Page(result)
    assert widest in result.layers
    assert "features.0" not in result.layers
    assert [layer["channels"] for layer in page.data["layers"]] == [[11]] * len(result.layers)
    for channels in ([99], [3, 99]):
        with pytest.raises(tvc.LayerError, match=r"no layer shown has a channel 99: .* 0 to 11"):
            tvc.report(net, photos(1), tmp_path, channels=channels, budget=0)


def test_without_photos_no_layer_is_there_for_its_heatmap(tmp_path: Path) -> None:
    net = network(vgg_like())
    assert tvc.report(net, [], tmp_path, layers=["features.0"], budget=0).layers == ("features.0",)
    assert len(tvc.report(net, photos(1), tmp_path, layers=["features.0"], budget=0).layers) == 2


def test_photos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [tmp_path / "a.png", tmp_path / "b" / "a.png", tmp_path / "other.png"]
    for file in files:
        photos(1)[0].save(file)
    page = Page(tvc.report(one_class(), [*files, files[2]], tmp_path / "out", budget=0))
    other = str(files[2])
    assert [p["name"] for p in page.data["photos"]] == [str(files[0]), str(files[1]), f"{other} (1)", f"{other} (2)"]


def test_the_result_is_a_path_and_shows_itself(tmp_path: Path) -> None:
    result = tvc.report(one_class(), photos(1), tmp_path / "new" / "folder", budget=0)
    assert result.path == tmp_path / "new" / "folder" / "index.html"
    assert Path(result) == result.path
    assert str(result) == str(result.path)
    assert os.path.getsize(result) > 10_000
    frame = result._repr_html_()
    assert frame.startswith("<iframe ")
    assert frame.count("<") == 2  # the page inside is text
    assert 'sandbox="allow-scripts"' in frame


def test_photos_are_paths_pictures_or_named(tmp_path: Path) -> None:
    photo = photos(1)[0]
    photo.save(tmp_path / "a.png")
    net = one_class()
    for images, names in (
        (tmp_path / "a.png", ["a.png"]),
        ([str(tmp_path / "a.png"), photo], ["a.png", "photo 2"]),
        ({"mine": photo}, ["mine"]),
        (photo, ["photo 1"]),
        (np.asarray(photo), ["photo 1"]),
        ([], []),
    ):
        page = Page(tvc.report(net, images, tmp_path / "out", budget=0))  # type: ignore[arg-type]
        assert [p["name"] for p in page.data["photos"]] == names
    page = Page(tvc.report(net, tmp_path / "a.png", tmp_path / "out", budget=0))
    assert hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest() in page.words


@pytest.mark.parametrize("bands", [1, 4])
def test_photos_are_read_in_the_depth_and_bands_that_the_network_takes(bands: int, tmp_path: Path) -> None:
    """Of 16 bits between two values, or of four bands: as `predict` reads them, from an array or a file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(bands, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = network(model, side=32, channels=bands)
    how: dict[str, Any] = {"window": (100.0, 1000.0)} if bands == 1 else {"bands": (3, 2, 1)}
    net = replace(net, preprocess=replace(net.preprocess, **how))
    noise = np.random.default_rng(0)
    array = (
        noise.integers(0, 4096, (40, 48), dtype=np.uint16)
        if bands == 1
        else noise.integers(0, 256, (40, 48, bands), dtype=np.uint8)
    )
    Image.fromarray(array).save(tmp_path / "photo.png")
    page = Page(tvc.report(net, {"file": tmp_path / "photo.png", "array": array}, tmp_path / "out", budget=0))
    expected = {c: f"{p:.4g}" for c, p in enumerate(tvc.predict(net, tmp_path / "photo.png")[0].tolist())}
    for photo in page.data["photos"]:
        assert {c: f"{p:.4g}" for c, p in photo["predictions"]} == expected


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    net, shown = one_class(), photos(1)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.html").mkdir()
    not_channels: list[Any] = [[-1], [2, -1], ["a"], [0.5], [True]]
    not_lists: list[Any] = [[], "3", 0.5, True]
    wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (tvc.InputError, "takes a Network, not a plain module", lambda: tvc.report(net.model, shown, tmp_path)),  # type: ignore[arg-type]
        (tvc.InputError, "k is a whole number", lambda: tvc.report(net, shown, tmp_path, k=0)),
        (tvc.InputError, "k=, as report has it, says how many", lambda: tvc.report(net, shown, tmp_path, channels=5)),  # type: ignore[arg-type]
        (tvc.InputError, "classes is a whole number", lambda: tvc.report(net, shown, tmp_path, classes=-1)),
        *(
            (
                tvc.InputError,
                "a channel is a whole number",
                lambda bad=bad: tvc.report(net, shown, tmp_path, channels=bad),
            )
            for bad in not_channels
        ),
        *(
            (
                tvc.InputError,
                "channels selects channels by number",
                lambda bad=bad: tvc.report(net, shown, tmp_path, channels=bad),
            )
            for bad in not_lists
        ),
        (
            tvc.InputError,
            "budget is a finite number of at least 0",
            lambda: tvc.report(net, shown, tmp_path, budget=-1),
        ),
        (
            tvc.InputError,
            "budget is a finite number of at least 0",
            lambda: tvc.report(net, shown, tmp_path, budget="5"),  # type: ignore[arg-type]
        ),
        (tvc.InputError, "atlas is a folder", lambda: tvc.report(net, shown, tmp_path, atlas=5)),  # type: ignore[arg-type]
        (tvc.LayerError, "layers are modules, names", lambda: tvc.report(net, shown, tmp_path, layers=5, budget=0)),  # type: ignore[arg-type]
        (
            tvc.LayerError,
            "matches ConvTranspose2d",
            lambda: tvc.report(net, shown, tmp_path, layers=nn.ConvTranspose2d),
        ),
        (tvc.InputError, "out names a file or folder", lambda: tvc.report(net, shown, None)),  # type: ignore[arg-type]
        (tvc.InputError, "out names a file or folder", lambda: tvc.report(net, shown, 5)),  # type: ignore[arg-type]
        (tvc.OutputError, "cannot write 'nnn", lambda: tvc.report(net, shown, "n" * 300 + ".html")),
        (tvc.OutputError, "ends in .html", lambda: tvc.report(net, shown, tmp_path / "page.pdf")),
        (tvc.LayerError, "no layer '00'", lambda: tvc.report(net, shown, tmp_path, layers=["00"], budget=0)),
        (tvc.LayerError, "no layer at all", lambda: tvc.report(net, shown, tmp_path, layers=[], budget=0)),
        (tvc.LayerError, "not maps", lambda: tvc.report(net, shown, tmp_path, layers=["4"], budget=0)),
        (tvc.ImageError, "no image", lambda: tvc.report(net, tmp_path / "none.png", tmp_path)),
        (tvc.ImageError, "photos are paths", lambda: tvc.report(net, torch.zeros(1, 3, 8, 8), tmp_path)),  # type: ignore[arg-type]
        (tvc.OutputError, "is a folder", lambda: tvc.report(net, shown, tmp_path / "folder.html")),
        (tvc.OutputError, "is a file, not a folder", lambda: tvc.report(net, shown, tmp_path / "file" / "page.html")),
    ]
    for kind, said, call in wrong:
        with pytest.raises(kind, match=re.escape(said)):
            call()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.html"]


def test_how_it_was_made_is_told(tmp_path: Path) -> None:
    from torchviz_cnn.runs.folder import model_checksum

    net = one_class()
    words = Page(tvc.report(net, photos(1), tmp_path, budget=0, seed=5, command="my command --here")).words
    for what in ("my command --here", model_checksum(net.model), torch.__version__, "random", "filter patterns"):
        assert what in words


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(1)[0].save(tmp_path / "a.png")
    out, network = str(tmp_path / "out.html"), ["--model", "cats_and_dogs"]
    wanted = [
        *network,
        "--layers",
        "conv1",
        "pool*",
        "--k",
        "3",
        "--budget",
        "0",
        "--input-size",
        "96",
        "--classes",
        "1",
    ]
    assert main(["report", str(tmp_path / "a.png"), "--out", out, *wanted]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("cats_and_dogs on cpu; photos: 96 x 96")
    assert rest[:1] + rest[2:] == ["1 photo, 6 layers", f"open {out}"]
    assert rest[1].startswith("0 of 3 channels have a filter pattern; 3 were not made, as the budget was 0")
    page = Page(out)
    assert "torchviz-cnn report" in page.words
    assert "--k 3" in page.words
    assert main(["report", *network, "--layers", "nothing", "--out", out]) == 2
    assert "no layer 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "--budget", "abc", "--out", out])
    assert "abc is not a number of seconds, nor 'all'" in capsys.readouterr().err


def test_maps_survive_their_encoding() -> None:
    maps = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    blocks = Blocks()
    assert [blocks.maps(maps), blocks.maps(maps[:1])] == [0, 1]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(blocks.texts[0])), np.uint8).reshape(maps.shape)
    assert np.array_equal(np.cumsum(steps, axis=2, dtype=np.uint8), maps)


def test_levels_and_figures() -> None:
    maps = torch.tensor([[[0.0, 1.0, 2.0]], [[3.0, 3.0, 3.0]], [[torch.nan, -1.0, 9.0]]])
    low, high = torch.tensor([0.0, 3.0, 0.0]), torch.tensor([2.0, 3.0, 1.0])
    assert levels(maps, low, high).tolist() == [[[0, 128, 255]], [[0, 0, 0]], [[0, 0, 255]]]
    assert [figure(v) for v in (1 / 3, 123456.0, torch.tensor(0.0), float("nan"), float("inf"))] == [
        0.3333,
        123500.0,
        0.0,
        None,
        None,
    ]
    text = script_json({"name": "</script><!--\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--\u2028&"}


class Segmenter(nn.Module):
    """Maps of scores in a dict, as torchvision's networks for segmentation give them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 4, 3)))()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.trunk(x), "aux": x}


def test_a_page_explains_a_function_of_a_part_of_the_output(tmp_path: Path) -> None:
    net, taken = network(Segmenter()), photos(3)
    masks = torch.zeros(3, 32, 32)
    masks[0, :9], masks[1, :, 20:], masks[2] = 1, 1, 1
    region = tvc.targets.region(masks, 2)
    page = Page(tvc.report(net, taken, tmp_path / "a", targets=region, output="out", budget=0, batch_size=2))
    assert page.data["scores"]
    assert page.data["classes"] == {"0": "region(class 2)"}
    alone = [
        tvc.grad_cam(net, one, target=tvc.targets.region(masks[i], 2), output="out") for i, one in enumerate(taken)
    ]
    for photo, heat in zip(page.data["photos"], alone, strict=True):
        expected = float(heat.logits[0, 0])
        assert photo["predictions"] == [[0, pytest.approx(expected, rel=1e-3)]]
        assert photo["probabilities"] == [pytest.approx(expected, rel=1e-3)]
    assert "These are the numbers that are explained of each photo." in page.words
    assert "meter" not in {tag for tag, _ in page.tags}
    heat = next(unit for unit in page.data["layers"] if unit["name"] == page.data["explained"])["heat"]
    assert "competitive_cam" not in heat
    maps = page.maps(heat["grad_cam"]["maps"][1], heat["grad_cam"]["size"])[0] / 255
    values = alone[1].map()
    assert np.abs(maps - values).max() < 0.01

    def both(output: Tensor) -> Tensor:
        return output.flatten(2).mean(2)[:, :2]

    page = Page(tvc.report(net, taken, tmp_path / "b", targets=both, output="out", budget=0))
    assert page.data["classes"] == {"0": "both[0]", "1": "both[1]"}
    assert [len(photo["classes"]) for photo in page.data["photos"]] == [2, 2, 2]


def test_a_page_explains_the_classes_that_are_asked_for(tmp_path: Path) -> None:
    net = network(vgg_like(), tuple("abcde"))
    page = Page(tvc.report(net, photos(2), tmp_path, targets=["c", 0], budget=0))
    assert [photo["classes"] for photo in page.data["photos"]] == [[2, 0]] * 2
    assert not page.data["scores"]
    likeliest = page.data["photos"][0]["predictions"][0][0]
    for asked, words in ((2, "evidence for c;"), (likeliest, "evidence for the likeliest;")):
        assert (asked == likeliest) is ("likeliest;" in words)
        page = Page(tvc.report(net, photos(1), tmp_path / str(asked), targets=asked, budget=0))
        assert words in page.words
    with pytest.raises(tvc.TargetError, match="has no class 'f'"):
        tvc.report(net, photos(1), tmp_path / "b", targets="f", budget=0)
    with pytest.raises(tvc.TargetError, match="at least one class"):
        tvc.report(net, photos(1), tmp_path / "b", targets=[], budget=0)
    region = tvc.targets.region(torch.ones(3, 32, 32), 0)
    with pytest.raises(tvc.TargetError, match="has a row for 3 images, not for 2 photos"):
        tvc.report(net, photos(2), tmp_path / "b", targets=region, budget=0)
    assert not (tmp_path / "b").exists()
    several: list[Any] = [np.int64(2), torch.tensor([2]), np.array([2])]
    for place, one in enumerate(several):
        page = Page(tvc.report(net, photos(1), tmp_path / f"c{place}", targets=one, budget=0))
        assert page.data["photos"][0]["classes"] == [2]
