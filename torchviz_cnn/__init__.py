"""torchviz_cnn: see what a convolutional network sees."""

from torchviz_cnn.capture import Activations, capture
from torchviz_cnn.errors import (
    CheckpointError,
    EmptyMapWarning,
    GeometryWarning,
    HookError,
    ImageError,
    InputError,
    LayerError,
    ModelError,
    OutputError,
    TargetError,
    TorchvizError,
    TorchvizWarning,
)
from torchviz_cnn.hooks import HookManager
from torchviz_cnn.images import Preprocess, read_image
from torchviz_cnn.layers import Description, describe, layer_names
from torchviz_cnn.methods.cam import Heatmap, class_activation_map, grad_cam
from torchviz_cnn.models import Network, load_keras_weights, load_model, model_names
from torchviz_cnn.untouched import untouched

__version__ = "0.1.0"
__all__ = [
    "Activations",
    "CheckpointError",
    "Description",
    "EmptyMapWarning",
    "GeometryWarning",
    "Heatmap",
    "HookError",
    "HookManager",
    "ImageError",
    "InputError",
    "LayerError",
    "ModelError",
    "Network",
    "OutputError",
    "Preprocess",
    "TargetError",
    "TorchvizError",
    "TorchvizWarning",
    "capture",
    "class_activation_map",
    "describe",
    "grad_cam",
    "layer_names",
    "load_keras_weights",
    "load_model",
    "model_names",
    "read_image",
    "untouched",
]
