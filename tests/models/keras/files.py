"""Keras files written by hand: a description, and arrays where Keras puts them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]
"""Arrays by their place in the HDF5 file; a shape stands for small random numbers."""


def layer(kind: str, name: str, *sources: Any, **config: Any) -> dict[str, Any]:
    """A layer as Keras 3 writes it; a source is a layer's name, or (name, call), or numbers in place of a result."""

    def tensor(source: Any) -> Any:
        history = [source, 0, 0] if isinstance(source, str) else [*source, 0]
        return {"class_name": "__keras_tensor__", "config": {"keras_history": history}}

    nodes = [{"args": [tensor(source)], "kwargs": {}} for source in sources]
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def merge(kind: str, name: str, *sources: str, **config: Any) -> dict[str, Any]:
    """A layer that is called with a list."""
    made = layer(kind, name, *sources, **config)
    return {**made, "inbound_nodes": [{"args": [[node["args"][0] for node in made["inbound_nodes"]]], "kwargs": {}}]}


def photo(name: str = "in", height: Any = 8, width: Any = 8, channels: Any = 3) -> dict[str, Any]:
    return layer("InputLayer", name, batch_shape=[None, height, width, channels])


def conv(name: str, *sources: Any, filters: int = 4, **config: Any) -> dict[str, Any]:
    return layer("Conv2D", name, *sources, **{"filters": filters, "kernel_size": [3, 3], "padding": "same"}, **config)


def functional(*layers: dict[str, Any], name: str = "net", inputs: Any = None, outputs: Any = None) -> dict[str, Any]:
    inputs = [[layers[0]["name"], 0, 0]] if inputs is None else inputs
    outputs = [[layers[-1]["name"], 0, 0]] if outputs is None else outputs
    config = {"name": name, "layers": list(layers), "input_layers": inputs, "output_layers": outputs}
    return {"class_name": "Functional", "name": name, "config": config}


def small() -> tuple[dict[str, Any], dict[str, Any]]:
    """A description of a network with most kinds of calls, and its arrays."""
    inside = functional(photo("inner_in", None, None), conv("inner_conv", "inner_in", filters=3), name="nested")
    description = functional(
        photo(),
        layer("Rescaling", "rescaling", "in", scale=1 / 255, offset=0.0),
        {**inside, "inbound_nodes": layer("", "", "rescaling")["inbound_nodes"]},
        conv("conv", "nested", filters=3, activation="relu"),
        layer("BatchNormalization", "norm", "conv", axis=-1),
        merge("Add", "add", "norm", "nested"),
        layer("MaxPooling2D", "pool", "add", pool_size=[2, 2], strides=[2, 2], padding="same"),
        layer("Flatten", "flatten", "pool"),
        layer("Dense", "dense", "flatten", units=5, activation="softmax"),
    )
    kernel, vector = (3, 3, 3, 3), (3,)
    arrays = {
        **{"layers/functional/layers/conv2d/vars/0": kernel, "layers/functional/layers/conv2d/vars/1": vector},
        **{"layers/conv2d/vars/0": kernel, "layers/conv2d/vars/1": vector},
        **{f"layers/batch_normalization/vars/{place}": vector for place in range(4)},
        **{"layers/dense/vars/0": (48, 5), "layers/dense/vars/1": (5,)},
    }
    return description, arrays


def fill(group: Any, arrays: Arrays, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for place, value in arrays.items():
        group[place] = random.uniform(0.1, 0.5, value).astype("float32") if isinstance(value, tuple) else value


def archive(path: Path, description: Any, arrays: Arrays, version: str = "3.5.0") -> Path:
    """A `.keras` file."""
    import h5py

    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        fill(file, arrays)
    with zipfile.ZipFile(path, "w") as file:
        text = description if isinstance(description, (str, bytes)) else json.dumps(description)
        file.writestr("config.json", text)
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
        file.writestr("model.weights.h5", weights.getvalue())
    return path


def legacy(path: Path, description: Any, groups: Mapping[str, Arrays], version: str = "2.9.0") -> Path:
    """An `.h5` file, as Keras 2 writes it: the arrays of each layer at the top by their names."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(description)
        file.attrs["keras_version"] = version
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in groups]
        for name, arrays in groups.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in arrays]
            fill(group, arrays)
    return path
