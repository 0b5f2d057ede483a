"""Names of layers, the order they run in, and receptive fields against the textbook's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests import networks
from tests.networks import NETWORKS, images
from torchviz_cnn.attribution.saliency import guided_grad_cam
from torchviz_cnn.core.errors import InputError, LayerError, ModelError
from torchviz_cnn.core.names import call_name, expand, named_layers, resolve
from torchviz_cnn.hooks.untouched import untouched
from torchviz_cnn.layers.defaults import explained_layer, input_channels, layer_names
from torchviz_cnn.layers.describe import describe


def field_of(model: nn.Module, size: int | tuple[int, int] = 32) -> dict[str, tuple[int, float, int, bool]]:
    """Size, stride, start and whole of every layer, along the first dimension."""
    rows = describe(model, (size, size) if isinstance(size, int) else size).layers
    fields = ((row.name, row.receptive_field) for row in rows)
    return {name: (f.size[0], f.stride[0], f.start[0], f.whole) for name, f in fields if f is not None}


def textbook(model: nn.Sequential) -> dict[str, tuple[int, int, int]]:
    """Size, stride and start of the layers of a chain by the recurrence r += (k - 1) j, s -= p j, j *= stride."""
    result, size, jump, start = {}, 1, 1, 0
    for name, module in model.named_children():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            kernel, stride, padding = (
                v if isinstance(v, int) else v[0] for v in (module.kernel_size, module.stride, module.padding)
            )
            dilation: Any = getattr(module, "dilation", 1)
            dilation = dilation if isinstance(dilation, int) else dilation[0]
            size += dilation * (int(kernel) - 1) * jump
            start -= int(padding) * jump
            jump *= int(stride)
        result[name] = size, jump, start
    return result


CHAINS: dict[str, nn.Sequential] = {
    "convolutions": nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 5, 2, 2), nn.Conv2d(2, 2, 1)
    ),
    "pools": nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(3, 2), nn.Conv2d(2, 2, 3), nn.ReLU(True), nn.MaxPool2d(2)),
    "dilation": nn.Sequential(
        nn.Conv2d(3, 2, 3, dilation=2), nn.Conv2d(2, 2, 3, 2, 2, dilation=2), nn.MaxPool2d(2, dilation=2)
    ),
    "averages": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 4, 3), nn.GELU(), nn.AvgPool2d(2), nn.Sigmoid()),
    "normalised": nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4),
        nn.SiLU(),
        nn.LocalResponseNorm(2),
        nn.Softmax(1),
    ),
    "grouped": nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 6, 3, 2, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 3, groups=2)
    ),
    "activations": nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.ELU(),
        nn.LeakyReLU(),
        nn.Tanh(),
        nn.Mish(),
        nn.Softplus(),
        nn.Hardswish(),
        nn.Dropout2d(),
        nn.MaxPool2d(3, 2, 1),
    ),
    "stride over kernel": nn.Sequential(nn.Conv2d(3, 2, 1, stride=3), nn.Conv2d(2, 2, 2, stride=3)),
    "ceil mode": nn.Sequential(nn.Conv2d(3, 2, 4), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(2, 2, 3)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [48, 57])
def test_fields_of_a_chain_are_the_formulas(name: str, size: int) -> None:
    chain = CHAINS[name]
    measured = field_of(chain, size)
    assert {layer: row[:3] for layer, row in measured.items()} == textbook(chain)
    assert not any(row[3] for row in measured.values())


def test_a_dead_or_negative_network_has_the_field_of_its_geometry() -> None:
    chain = CHAINS["pools"]
    for value in (-1.0, 0.0, float("nan")):
        with torch.no_grad():
            weights = [p.clone() for p in chain.parameters()]
            for parameter in chain.parameters():
                parameter.fill_(value)
            fields = field_of(chain, 48)
            for parameter, weight in zip(chain.parameters(), weights, strict=True):
                parameter.copy_(weight)
        assert {layer: row[:3] for layer, row in fields.items()} == textbook(chain)


def test_a_field_may_be_larger_than_the_input() -> None:
    chain = nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(6)))
    assert field_of(chain, 9)["5"][:3] == (25, 1, -12)


def test_rectangular_kernels_and_inputs() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 2, (3, 7), stride=(1, 2), padding=(0, 3)), nn.MaxPool2d((2, 1)))
    field = describe(chain, (20, 40)).layers[1].receptive_field
    assert field is not None
    assert (field.size, field.stride, field.start) == ((4, 7), (2, 2), (0, -3))


def test_one_and_three_dimensions() -> None:
    line = describe(nn.Sequential(nn.Conv1d(2, 3, 5), nn.MaxPool1d(2)), torch.zeros(1, 2, 30)).layers[1]
    cube = describe(nn.Sequential(nn.Conv3d(1, 3, 3), nn.MaxPool3d(2)), torch.zeros(1, 1, 9, 10, 11)).layers[1]
    assert line.receptive_field is not None
    assert cube.receptive_field is not None
    assert line.receptive_field.size == (6,)
    assert cube.receptive_field.size == (4, 4, 4)


def test_branches_have_the_field_of_their_widest_path() -> None:
    rows = field_of(networks.residual(), 64)
    # stem 3 at stride 2; each block's convolutions add 2 x 2 pixels each; the shortcut adds nothing
    assert rows["stem"][:3] == (3, 2, -1)
    assert rows["layer1.0.conv1"][:3] == (7, 2, -3)
    assert rows["layer1.0.relu#1"][:3] == (11, 2, -5)
    assert rows["layer1.1.relu#1"][:3] == (19, 2, -9)
    assert rows["layer2.0"][:3] == (19, 4, -9)
    assert rows["layer2.1.relu#1"][:3] == (35, 4, -17)
    assert rows["avgpool"][3]
    dense = field_of(networks.dense(), 64)
    assert [dense[f"convs.{i}"][0] for i in range(3)] == [7, 11, 15]
    assert dense["norm"][:2] == (15, 2)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([x, self.conv(x)], 1))
        return out


def test_a_concatenation_with_the_input_itself() -> None:
    assert field_of(Bilinear())["last"][:3] == (3, 1, -1)


def test_global_pooling_sees_everything() -> None:
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(30), nn.MaxPool2d(30)):
        rows = field_of(nn.Sequential(nn.Conv2d(3, 2, 3), pool))
        assert rows["1"][0] == 32, pool
        assert rows["1"][3], pool


class SqueezeExcite(nn.Module):
    """Scales channels by what a global pooling says: every unit sees the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scaled: Tensor = self.out(x * torch.sigmoid(self.fc(F.relu(self.pool(x)))))
        return scaled


def test_squeeze_and_excitation_sees_everything() -> None:
    rows = field_of(SqueezeExcite())
    assert not rows["conv"][3]
    assert rows["out"][3]


@pytest.mark.slow
def test_published_receptive_fields() -> None:
    from torchvision import models

    for build, known in (
        (models.vgg16, {"features.10": 24, "features.28": 196}),
        (models.alexnet, {"features.3": 51, "features.10": 163}),
        (models.squeezenet1_0, {"features.3.squeeze": 11, "features.3.expand3x3": 19}),
    ):
        rows = field_of(build(weights=None, init_weights=False) if build is models.vgg16 else build(weights=None), 224)
        assert {name: rows[name][0] for name in known} == known


def test_vgg_alike_receptive_fields() -> None:
    """VGG16's convolutions and poolings, one channel each: 24 at features.10, 196 at features.28."""
    layers: list[nn.Module] = []
    channels = 3
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            layers += [nn.Conv2d(channels, 1, 3, padding=1), nn.ReLU(inplace=True)]
            channels = 1
        layers.append(nn.MaxPool2d(2, 2))
    rows = field_of(nn.Sequential(*layers), 224)
    assert (rows["10"][0], rows["28"][0], rows["28"][1]) == (24, 196, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_describe_works_for_every_network(name: str) -> None:
    model, x = NETWORKS[name](), images()
    description = describe(model, (32, 32))
    leaves = [n for n, m in named_layers(model).items() if not list(m.children())]
    order = layer_names(model, x, types=nn.Module)
    assert [row.name for row in description.layers] == [n for n in order if n.partition("#")[0] in leaves]
    assert description.parameters == sum(p.numel() for p in model.parameters())
    counted = sum(row.parameters for row in description.layers)
    unused = sum(p.numel() for p in model.get_submodule("aux").parameters()) if name == "unreached" else 0
    assert counted == description.parameters - unused
    text = str(description)
    assert all(row.name in text for row in description.layers)
    assert f"{description.parameters:,} parameters" in text
    assert len({len(line) for line in text.splitlines()[1:]}) == 1  # one table, aligned


def test_describe_gives_shapes_types_and_counts() -> None:
    rows = {row.name: row for row in describe(networks.reused(), (32, 32)).layers}
    assert list(rows) == ["conv1", "relu", "pool", "conv2", "relu#1", "pool#1", "conv3", "relu#2", "fc"]
    assert rows["conv2"].output_shape == (8, 16, 16)
    assert rows["conv2"].parameters == 6 * 8 * 9 + 8
    assert rows["pool#1"].type == "MaxPool2d"
    assert rows["fc"].receptive_field is None
    assert rows["relu#2"].output_shape == (8, 8, 8)


def test_describe_takes_the_channels_of_the_first_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(7, 2, 3), nn.ReLU())
    assert input_channels(model) == 7
    assert describe(model, (8, 8)).input_shape == (7, 8, 8)
    assert input_channels(nn.Flatten()) == 3


@pytest.mark.parametrize("size", [0, (0, 8), (8,), "ab", None, (8, 8, 8)])
def test_describe_refuses_other_sizes(size: Any) -> None:
    with pytest.raises(InputError, match="input_size"):
        describe(networks.vgg_like(), size)


def test_an_input_too_small_for_the_network_is_an_error_of_torch_or_ours() -> None:
    with pytest.raises((ModelError, RuntimeError), match=r"(?i)output size"):
        describe(networks.vgg_like(), (1, 1))


def test_names_as_defined_and_in_execution_order() -> None:
    assert layer_names(networks.vgg_like()) == [f"features.{i}" for i in (0, 2, 4, 5, 7, 9)] + ["avgpool"]
    model = networks.reused()
    assert layer_names(model) == ["conv1", "conv2", "conv3", "pool"]
    assert layer_names(model, images()) == ["conv1", "pool", "conv2", "pool#1", "conv3"]
    assert layer_names(networks.unreached(), images()) == ["conv"]
    assert "" not in layer_names(model, types=nn.Module)
    assert layer_names(model, images(), types=nn.ReLU) == ["relu", "relu#1", "relu#2"]


def test_names_do_not_show_wrappers() -> None:
    expected = layer_names(networks.vgg_like(), types=nn.Module)
    assert layer_names(networks.data_parallel(), types=nn.Module) == expected
    assert layer_names(networks.compiled(), types=nn.Module) == expected
    assert layer_names(nn.DataParallel(networks.compiled()), images(), types=nn.Conv2d) == layer_names(
        networks.vgg_like(), types=nn.Conv2d
    )
    model: Any = networks.vgg_like()
    model.features = torch.compile(model.features, backend="eager")
    model.features._orig_mod[0] = torch.compile(model.features._orig_mod[0], backend="eager")
    assert layer_names(model, types=nn.Module) == expected
    assert layer_names(model, images(), types=nn.Conv2d) == layer_names(networks.vgg_like(), types=nn.Conv2d)


def test_layer_names_of_what_is_no_model() -> None:
    with pytest.raises(ModelError):
        layer_names("vgg16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "layer", "pooled"),
    [
        ("vgg_like", "features.8", "avgpool"),
        ("reused", "relu#2", "relu#2"),
        ("residual", "layer2", "layer2"),
        ("dense", "norm", "norm"),
        ("gap_linear", "features", "features"),
        ("squeeze_like", "classifier.2", "classifier.2"),
        ("functional_relu", "conv4", "conv4"),
        ("overlapping_pools", "7", "7"),
        ("unreached", "conv", "conv"),
        ("data_parallel", "features.8", "avgpool"),
        ("compiled", "features.8", "avgpool"),
    ],
)
def test_the_last_layer_with_a_map(name: str, layer: str, pooled: str) -> None:
    with untouched(NETWORKS[name]()) as model:
        assert explained_layer(model, images()) == layer
        assert explained_layer(model, images(), pooled=True) == pooled


def test_a_network_without_maps() -> None:
    with pytest.raises(LayerError, match="no layer with a spatial map"):
        explained_layer(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), images())


def test_calls_by_name() -> None:
    model = networks.reused()
    layers = named_layers(model)
    assert str(resolve(model, layers, "relu")) == "relu"
    assert str(resolve(model, layers, "relu#0")) == "relu"
    assert str(resolve(model, layers, "relu#2")) == "relu#2"
    assert str(resolve(model, layers, "relu#*")) == "relu#*"
    assert call_name("relu", None) == "relu#*"
    with pytest.raises(
        LayerError, match=r"did you mean 'relu'\? layer_names\(model, types=torch.nn.Module\) lists all 6"
    ):
        resolve(model, layers, "rellu#1")


def test_patterns() -> None:
    model = networks.vgg_like()
    layers = named_layers(model)
    names = [str(call) for call in expand(model, layers, ["features.[02]", nn.Linear, "avgpool", "features.0"])]
    assert names == ["features.0#*", "features.2#*", "classifier.0#*", "classifier.3#*", "avgpool", "features.0"]
    for pattern, message in (
        ("features.9?", "no layer of VGGLike matches 'features.9?'"),
        (nn.Conv3d, "matches Conv3d"),
    ):
        with pytest.raises(LayerError, match=message.replace("?", r"\?")):
            expand(model, layers, [pattern])  # type: ignore[list-item]
    with pytest.raises(LayerError, match="not 3"):
        expand(model, layers, [3])  # type: ignore[list-item]


def test_a_layer_whose_name_looks_like_a_pattern_is_a_name() -> None:
    model = nn.Module()
    model.add_module("a[0]", nn.ReLU())
    model.add_module("b#1", nn.ReLU())
    layers = named_layers(model)
    assert [str(call) for call in expand(model, layers, ["a[0]", "b#1"])] == ["a[0]", "b#1"]


class Between(nn.Module):
    """Something that mixes the channels of each place."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.normalize(x, dim=1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: (x.abs() - 1).abs(),
        lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt(),
    ],
)
def test_what_subtracts_or_normalises_does_not_cancel_the_field(function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Between(function), nn.Conv2d(8, 8, 3))
    sizes = [layer.receptive_field and layer.receptive_field.size for layer in describe(model, (40, 40)).layers]
    assert sizes == [(3, 3), (3, 3), (5, 5)]


def test_fields_behind_an_upsampling_are_those_of_the_gradient() -> None:
    """A decoder: fields no longer grow by the kernel at each layer, and strides become fractions."""

    def conv(inputs: int) -> nn.Module:
        return nn.Conv2d(inputs, 4, 3, padding=1)

    model = nn.Sequential(
        conv(3),
        nn.MaxPool2d(2),
        conv(4),
        nn.MaxPool2d(2),
        conv(4),
        nn.ConvTranspose2d(4, 4, 2, 2),
        conv(4),
        nn.ConvTranspose2d(4, 4, 2, 2),
        conv(4),
    )
    measured = [layer.receptive_field for layer in describe(model, (64, 64)).layers]
    strides = [field.stride[0] for field in measured if field]
    assert strides == [1, 2, 2, 4, 4, 2, 2, 1, 1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    x = torch.ones(1, 3, 64, 64, requires_grad=True)
    y = x
    for module, field in zip(model, measured, strict=True):
        y = F.avg_pool2d(y, 2) if isinstance(module, nn.MaxPool2d) else module(y)
        middle = (y.shape[2] - 1) // 2
        (gradient,) = torch.autograd.grad(y[0, 0, middle, middle], x, retain_graph=True)
        rows = gradient[0].sum((0, 2)).nonzero()
        assert field is not None
        assert field.size[0] == int(rows.max() - rows.min()) + 1

    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    fields = [layer.receptive_field for layer in describe(up, (64, 64)).layers]
    assert [field and (field.size[0], field.stride[0]) for field in fields] == [(3, 1), (3, 0.5), (4, 0.5), (5, 0.5)]


def test_fields_under_activation_checkpointing() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, use: bool) -> None:
            super().__init__()
            self.use = use
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3)
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.body, x, use_reentrant=False) if self.use else self.body(x)
            return out

    assert str(describe(Checkpointed(True), (24, 24))) == str(describe(Checkpointed(False), (24, 24)))


def test_a_part_in_inference_mode_does_not_hide_the_last_layer() -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                brightness = float(self.body(x).mean())
            scores: Tensor = self.head(self.body(x + brightness).mean((2, 3)))
            return scores

    x = torch.randn(2, 3, 8, 8)
    with untouched(Peeks()) as model:
        assert explained_layer(model, x) == "body#1"
    assert guided_grad_cam(Peeks(), x).gradients.shape == x.shape


@pytest.mark.parametrize("parametrise", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_layer_has_one_row_of_its_own(parametrise: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    plain = describe(model, (12, 12))
    getattr(nn.utils.parametrizations, parametrise)(model[0])
    table = describe(model, (12, 12))
    assert [layer.name for layer in table.layers] == ["0", "1", "2"]
    assert [layer.type for layer in table.layers] == ["Conv2d", "ReLU", "Conv2d"]
    assert [layer.output_shape for layer in table.layers] == [layer.output_shape for layer in plain.layers]
    assert [layer.receptive_field for layer in table.layers] == [layer.receptive_field for layer in plain.layers]
    assert sum(layer.parameters for layer in table.layers) == sum(p.numel() for p in model.parameters())
