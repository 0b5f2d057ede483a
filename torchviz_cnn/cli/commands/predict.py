"""The command `predict`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_photos(parser)
    arguments.add_output(parser, "holds the class scores")
    parser.add_argument("--k", type=positive, default=5, metavar="CLASSES", help="how many classes (%(default)s)")
    parser.add_argument("--top", dest="k", type=positive, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Print the likeliest classes of photos."""
    from torchviz_cnn.cli import shared

    net = shared.network(args)
    for paths, images in shared.batches(shared.named_photos(args), args, net.preprocess):
        predictions = tvc.predict(net, images, output=args.output)
        for image, path in enumerate(paths):
            shared.say(str(path))
            for name, index, value in predictions.table(args.k, image):
                shared.say(f"  {value:.3f}  {name} ({index})")


COMMAND = arguments.Command(
    "predict",
    run,
    add_arguments,
    "IMAGE ...",
    ("predict coffee.png", "predict photos/ --k 1", "predict cat.jpg --model cats_and_dogs"),
)
