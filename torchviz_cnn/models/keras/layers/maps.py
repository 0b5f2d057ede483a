"""Keras' layers without weights: pooling, padding, sizes, shapes, merges, and those that do nothing to a photo."""

from __future__ import annotations

from torch import Tensor, nn

from torchviz_cnn.models.keras.config import Ref
from torchviz_cnn.models.keras.files import MAX_SIDE
from torchviz_cnn.models.keras.layers import modules as ours
from torchviz_cnn.models.keras.layers.table import LayerPlan, builds

# --- pooling, padding, sizes --------------------------------------------------------------------------------------


@builds("MaxPooling2D", "MaxPool2D", "AveragePooling2D", "AvgPool2D")
def _pooling(layer: LayerPlan) -> nn.Module:
    size = layer.pair("pool_size", 2)
    strides = size if layer.config.get("strides") is None else layer.pair("strides")
    same = layer.choice("padding", ("valid", "same"), "valid") == "same"
    if layer.class_name.startswith("Max"):
        return (ours.SameMaxPool2d if same else nn.MaxPool2d)(size, strides)
    return (ours.SameAvgPool2d if same else nn.AvgPool2d)(size, strides)


@builds("GlobalAveragePooling2D", "GlobalAvgPool2D", "GlobalMaxPooling2D", "GlobalMaxPool2D")
def _global_pooling(layer: LayerPlan) -> nn.Module:
    keep = layer.flag("keepdims", False)
    if "Max" in layer.class_name:
        return nn.AdaptiveMaxPool2d(1) if keep else ours.GlobalMaxPool2d()
    return nn.AdaptiveAvgPool2d(1) if keep else ours.GlobalAvgPool2d()


@builds("ZeroPadding2D", "Cropping2D")
def _padding(layer: LayerPlan) -> nn.Module:
    key = "padding" if layer.class_name == "ZeroPadding2D" else "cropping"
    value = layer.config.get(key)
    rows = [value, value] if type(value) is int else value
    if not isinstance(rows, list) or len(rows) != 2:
        layer.refuse(f"{key} is {value!r:.80}, not one whole number, two or two pairs")
    sides = [[each, each] if type(each) is int else each for each in rows]
    if not all(isinstance(each, list) and len(each) == 2 for each in sides):
        layer.refuse(f"{key} is {value!r:.80}, not one whole number, two or two pairs")
    (top, bottom), (left, right) = ([layer.whole_number(key, each, 0, MAX_SIDE) for each in pair] for pair in sides)
    sign = 1 if key == "padding" else -1
    return nn.ZeroPad2d((sign * left, sign * right, sign * top, sign * bottom))


_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


@builds("UpSampling2D")
def _up_sampling(layer: LayerPlan) -> nn.Module:
    mode = layer.choice("interpolation", _MODES, "nearest")
    size = layer.pair("size", 2)
    factors = (float(size[0]), float(size[1]))
    return nn.Upsample(scale_factor=factors, mode=mode, align_corners=None if mode == "nearest" else False)


@builds("Resizing")
def _resizing(layer: LayerPlan) -> nn.Module:
    size = tuple(layer.whole_number(key, layer.config.get(key), 1, MAX_SIDE) for key in ("height", "width"))
    mode = _MODES[layer.choice("interpolation", _MODES, "bilinear")]
    if layer.flag("pad_to_aspect_ratio", False):
        layer.refuse("pad_to_aspect_ratio is not known")
    crop = layer.flag("crop_to_aspect_ratio", False)
    return ours.Resizing((size[0], size[1]), mode, layer.flag("antialias", False), crop)


# --- shapes and merges --------------------------------------------------------------------------------------------


@builds("Flatten")
def _flatten(layer: LayerPlan) -> nn.Module:
    return ours.Flatten() if layer.rank == 4 else nn.Flatten()


@builds("Reshape")
def _reshape(layer: LayerPlan) -> nn.Module:
    shape = layer.config.get("target_shape")
    if not isinstance(shape, list):
        layer.refuse(f"target_shape is {shape!r:.80}")
    return ours.Reshape([-1 if side is None else layer.whole_number("target_shape", side, -1) for side in shape])


@builds("Permute")
def _permute(layer: LayerPlan) -> nn.Module:
    dims = layer.config.get("dims")
    if not isinstance(dims, list):
        layer.refuse(f"dims is {dims!r:.80}")
    return ours.Permute([layer.whole_number("dims", each, 1, 4) for each in dims])


@builds("Concatenate", "Stack")
def _concatenate(layer: LayerPlan) -> nn.Module:
    axis = layer.whole_number("axis", layer.config.get("axis", -1), -5, 4)
    return ours.Concatenate(axis) if layer.class_name == "Concatenate" else ours.Stack(axis)


@builds("GetItem", "SlicingOpLambda")
def _get_item(layer: LayerPlan) -> nn.Module:
    key = layer.arguments[1] if len(layer.arguments) == 2 else None
    key = key if isinstance(key, tuple) else (key,)
    if not all(part is ... or part is None or type(part) in (int, slice) for part in key):
        layer.refuse(f"it takes the part {key!r:.80}, not a range")
    return ours.GetItem(key)


@builds("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum")
def _merge(layer: LayerPlan) -> nn.Module:
    """A merge of layers, or an operation between results and constants."""
    return _merged(layer, layer.class_name.removeprefix("True"))


def _merged(layer: LayerPlan, operation: str) -> nn.Module:
    parts = layer.arguments[0] if isinstance(layer.arguments[0], tuple) else layer.arguments
    constants: dict[int, Tensor] = {}
    for place, part in enumerate(part for part in parts if not isinstance(part, str)):
        if not isinstance(part, Ref):
            value = layer.by_axes(getattr(part, "values", part), range(layer.rank)).float()
            constants[place] = value
            layer.constant(f"constant_{place}", value)
    return ours.Merge(operation, constants)


@builds("CustomScaleLayer")
def _scaled_sum(layer: LayerPlan) -> nn.Module:
    """The residual sum of Keras' Inception-ResNet."""
    scale = layer.by_axes(layer.number("scale"), ()).float()
    layer.constant("constant_2", scale)
    return ours.Merge("ScaledSum", {2: scale})


_FUNCTIONS = {
    **{"math.add": "Add", "__operators__.add": "Add", "nn.bias_add": "Add", "math.subtract": "Subtract"},
    **{"math.multiply": "Multiply", "math.truediv": "Divide", "math.divide": "Divide"},
}


@builds("TFOpLambda")
def _tensorflow_operation(layer: LayerPlan) -> nn.Module:
    """TensorFlow's arithmetic between layers, as Keras 2 writes it."""
    function = layer.config.get("function")
    if not isinstance(function, str) or function not in _FUNCTIONS:
        layer.refuse(f"the function {function!r:.80} of TensorFlow is not known")
    return _merged(layer, _FUNCTIONS[function])


# --- what does nothing to a photo that is explained ---------------------------------------------------------------


@builds("Dropout", "AlphaDropout")
def _dropout(layer: LayerPlan) -> nn.Module:
    kind = nn.Dropout if layer.class_name == "Dropout" else nn.AlphaDropout
    return kind(layer.number("rate", 0.5))


@builds("SpatialDropout2D")
def _spatial_dropout(layer: LayerPlan) -> nn.Module:
    return nn.Dropout2d(layer.number("rate", 0.5))


@builds(
    *("GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation"),
    *("RandomZoom", "RandomCrop", "RandomContrast", "RandomBrightness", "RandomTranslation", "RandomHeight"),
    *("RandomWidth", "RandomShear", "RandomSharpness", "RandomHue", "RandomSaturation", "RandomColorJitter"),
    *("RandomColorDegeneration", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale", "RandomInvert"),
    *("RandomPerspective", "RandomPosterization", "RandomElasticTransform", "AugMix", "CutMix", "MixUp"),
    "RandAugment",
)
def _identity(layer: LayerPlan) -> nn.Module:
    return nn.Identity()
