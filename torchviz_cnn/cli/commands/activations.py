"""The command `activations`."""

import argparse

import torchviz_cnn as tvc
from torchviz_cnn.cli import arguments
from torchviz_cnn.core.errors import InputError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_photos(parser)
    arguments.add_out(parser)
    arguments.add_layers(parser, "all convolution and pooling layers")
    parser.add_argument("--save", action="store_true", help="also write the tensors, as safetensors")
    arguments.add_network(parser)


def run(args: argparse.Namespace) -> None:
    """Draw what layers give for photos: a grid of channels for each layer."""
    from torchviz_cnn.cli import shared
    from torchviz_cnn.cli.outputs import Outputs
    from torchviz_cnn.core.progress import progress_bar
    from torchviz_cnn.runs import files

    photos = shared.named_photos(args)
    outputs = Outputs(args, photos)
    net = shared.network(args)
    for paths, images in shared.batches(photos, args, net.preprocess):
        acts = tvc.capture(net, images, args.layers)
        drawn = [name for name, maps in acts.items() if maps.ndim == 4 and maps.shape[2] * maps.shape[3] > 1]
        single = [name for name, maps in acts.items() if maps.ndim == 4 and name not in drawn]
        if not drawn and not single:
            raise InputError(f"none of the layers {', '.join(acts)} has maps to draw")
        for index, path in enumerate(paths):
            folder = outputs.path([photos[path]], "", [path])
            shared.say(f"{path} -> {folder}")
            with progress_bar(True, total=len(drawn), desc=photos[path], unit=" layers") as bar:
                for place, name in enumerate(drawn):
                    files.save_image(folder / f"{place:02d}_{files.safe_name(name)}.png", acts.plot(name, index))
                    shape, dead = " x ".join(map(str, acts[name].shape[1:])), int(acts.dead(name)[index].sum())
                    shared.say(f"  {name}: {shape}, {dead} dead, sparsity {float(acts.sparsity(name)[index]):.0%}")
                    bar.update()
            for name in single:
                values = acts[name][index].flatten().float()
                strongest = ", ".join(
                    f"{int(c)} ({float(values[c]):.3g})" for c in values.topk(min(5, len(values))).indices
                )
                shared.say(
                    f"  {name}: one value for each of {counted(len(values), 'channel')}; the largest: {strongest}"
                )
            if args.save:
                one = tvc.Activations({name: tensor[index : index + 1] for name, tensor in acts.items()})
                one.save(folder / "activations.safetensors")


COMMAND = arguments.Command(
    "activations",
    run,
    add_arguments,
    "IMAGE ...",
    (
        "activations coffee.png",
        "activations coffee.png --layers 'blocks.*' --out activations",
        "activations photos/ --layers blocks.4 --save",
    ),
)
