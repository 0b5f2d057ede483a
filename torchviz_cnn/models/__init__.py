"""Networks: factories that give plain modules, checkpoints, Keras import."""

from torchviz_cnn.models.catalogue import model_names
from torchviz_cnn.models.convnets import convnet_2017, convnet_2025, fashion_mnist_convnet, zfnet
from torchviz_cnn.models.efficientnet_lite import efficientnet_lite0
from torchviz_cnn.models.keras.weights import load_keras_weights
from torchviz_cnn.models.loading import load_model
from torchviz_cnn.models.xception import mini_xception, mini_xception_fer2013, xception

__all__ = [
    "convnet_2017",
    "convnet_2025",
    "efficientnet_lite0",
    "fashion_mnist_convnet",
    "load_keras_weights",
    "load_model",
    "mini_xception",
    "mini_xception_fer2013",
    "model_names",
    "xception",
    "zfnet",
]
