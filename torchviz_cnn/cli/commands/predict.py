"""The command `predict`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_network(parser)
    shared.add_photos(parser)
    shared.add_output(parser, "holds the class scores")
    parser.add_argument("--k", type=shared.positive, default=5, help="how many classes (%(default)s)")
    parser.add_argument("--top", dest="k", type=shared.positive, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Print the likeliest classes of photos."""
    net = shared.network(args)
    for paths, images in shared.batches(shared.named_photos(args), args, net.preprocess):
        predictions = tvc.predict(net, images, output=args.output)
        shared.require_labels(args, net, predictions.shape[1])
        for image, path in enumerate(paths):
            shared.say(str(path))
            for name, index, value in predictions.table(args.k, image):
                shared.say(f"  {value:.3f}  {name} ({index})")


COMMAND = shared.Command("predict", run, add_arguments)
