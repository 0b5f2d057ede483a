"""The command `deconvnet`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import positive
from torchviz_cnn.core.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_photos(parser)
    arguments.add_out(parser)
    arguments.add_layers(parser, "the first convolution at each size of the map")
    arguments.add_channels(parser, "these channels of each layer, instead of the strongest")
    words = "how many of each photo's strongest channels (default: 4)"
    parser.add_argument("--k", type=positive, metavar="CHANNELS", help=words)
    parser.add_argument("--top", dest="k", type=positive, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--other-activations", default="error", **arguments.OTHER_ACTIVATIONS)
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Project the strongest units of layers down to the pixels of photos that drove them."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.cli.outputs import Outputs, together
    from torchviz_cnn.layers.defaults import convolutions
    from torchviz_cnn.media.origin import input_of
    from torchviz_cnn.runs import files

    if args.k and args.channels:
        raise InputError("--k counts the strongest channels and --channels names them: give one of the two")
    photos = shared.named_photos(args)
    outputs = Outputs(args, photos)
    net = shared.network(args)
    k = None if args.channels else args.k or 4
    for paths, images in shared.batches(photos, args, net.preprocess):
        layers = args.layers or convolutions(net, input_of(images[0], net.preprocess)[None], first=True)
        layers = list(dict.fromkeys(layers))
        units = tvc.deconvnet(net, images, layers, args.channels, k=k, other_activations=args.other_activations)
        units.save(outputs.path([together(photos, paths), "deconvnet"], ".npz", paths))
        for index, path in enumerate(paths):
            file = outputs.path([photos[path], "deconvnet"], ".png", [path])
            files.save_image(file, units.plot(index=index))
            shared.say(f"{path} -> {file}")
            of_image = (units.layers, units.channels[index].tolist(), units.activations[index].tolist())
            for layer, channel, activation in zip(*of_image, strict=True):
                shared.say(f"  {layer} channel {channel}: {activation:.3g}")


COMMAND = arguments.Command(
    "deconvnet",
    run,
    add_arguments,
    "IMAGE ...",
    (
        "deconvnet cat.jpg --model cats_and_dogs",
        "deconvnet coffee.png --layers blocks.0 blocks.4 --k 2 --other-activations plain",
        "deconvnet coffee.png --layers blocks.4 --channels 3 12 --other-activations plain",
    ),
)
