"""Commands that look at a network and its layers: `layers`, `predict`, `activations`, `deconvnet`."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

import torchviz_cnn as tvc
from torchviz_cnn.cli.shared import (
    Pictures,
    add_network,
    add_other_activations,
    add_out,
    add_photos,
    batches,
    named_photos,
    network,
    positive,
    together,
)
from torchviz_cnn.core.errors import InputError
from torchviz_cnn.layers.defaults import convolutions
from torchviz_cnn.runs import files


def add_layers(parser: argparse.ArgumentParser) -> None:
    add_network(parser)


def layers(args: argparse.Namespace) -> None:
    """print the network's layers: shapes, parameters, receptive fields"""
    net = network(args)
    print(tvc.describe(net.model, net.input_size))


def add_predict(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_photos(parser)
    parser.add_argument("--top", type=positive, default=5, help="how many classes (%(default)s)")


def predict(args: argparse.Namespace) -> None:
    """print the classes that the network sees in photos"""
    net = network(args)
    photos = named_photos(args.images)
    for paths, x in batches(net, photos, args):
        chances = tvc.predict(net.model, x)
        values, indices = chances.topk(min(args.top, chances.shape[1]))
        for path, row, classes in zip(paths, values.tolist(), indices.tolist(), strict=True):
            print(path)
            for value, index in zip(row, classes, strict=True):
                print(f"  {value:.3f}  {net.category(index)} ({index})")


def add_activations(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_photos(parser)
    add_out(parser)
    parser.add_argument(
        "--layer", nargs="+", help="names or glob patterns (default: all convolution and pooling layers)"
    )
    parser.add_argument("--save", action="store_true", help="also write the tensors, as safetensors")


def activations(args: argparse.Namespace) -> None:
    """draw what layers give for photos: a grid of channels per layer"""
    net = network(args)
    photos = named_photos(args.images)
    for paths, x in batches(net, photos, args):
        acts = tvc.capture(net.model, x, args.layer or None)
        drawn = [name for name, maps in acts.items() if maps.ndim == 4 and maps.shape[2] * maps.shape[3] > 1]
        if not drawn:
            raise InputError(f"none of the layers {', '.join(acts)} has maps larger than one pixel to draw")
        for index, path in enumerate(paths):
            folder = args.out / photos[path]
            print(f"{path} -> {folder}")
            for place, name in enumerate(tqdm(drawn, photos[path], leave=False, disable=not sys.stderr.isatty())):
                files.save_image(folder / f"{place:02d}_{files.safe_name(name)}.png", acts.plot(name, index))
                shape = " x ".join(map(str, acts[name].shape[1:]))
                print(f"  {name}: {shape}, {float(acts.sparsity(name)[index]):.0%} of the channels all zero")
            if args.save:
                one = tvc.Activations({name: tensor[index : index + 1] for name, tensor in acts.items()})
                one.save(folder / "activations.safetensors")


def add_deconvnet(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_photos(parser)
    add_out(parser)
    add = parser.add_argument
    add("--layer", nargs="+", help="a column each (default: the first convolution at each size of the map)")
    add("--channel", type=int, nargs="+", help="channels of each layer (default: the strongest for each photo)")
    add("--top", type=positive, help="how many of the strongest channels (default: 4)")
    add_other_activations(parser)


def deconvnet(args: argparse.Namespace) -> None:
    """project the strongest units of layers down to the pixels of photos that drove them"""
    if args.top and args.channel:
        raise InputError("--top chooses channels and --channel names them: give one of the two")
    net = network(args)
    photos = named_photos(args.images)
    pictures = Pictures(args.out, photos)
    for paths, x in batches(net, photos, args):
        layers = list(dict.fromkeys(args.layer or convolutions(net.model, x[:1], first=True)))
        top = None if args.channel else args.top or 4
        found = tvc.deconvnet(net.model, x, layers, args.channel, k=top, other_activations=args.other_activations)
        found.save(args.out / together("deconvnet", photos, paths))
        for index, path in enumerate(paths):
            (file,) = pictures.paths(photos[path], ["deconvnet"])
            files.save_image(file, found.plot(tvc.read_image(path), index=index))
            units = zip(found.layers, found.channels[index].tolist(), found.activations[index].tolist(), strict=True)
            print(f"{path} -> {file}")
            for layer, channel, activation in units:
                print(f"  {layer} channel {channel}: {activation:.3g}")
