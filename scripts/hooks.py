"""Switch off the channels of a layer one by one, and print which of them a photo's predicted class depends on most.

python scripts/hooks.py coffee.png efficientnet_lite0 head
"""

import sys

import torch

import torchviz_cnn as tvc

if len(sys.argv) != 4:
    sys.exit(__doc__)
photo, name, layer = sys.argv[1:]
net = tvc.load_model(name)
x = net.preprocess(tvc.read_image(photo))[None]
print(net.predict(photo))
likely = int(net.predict(photo).argmax())

shares = {}
with tvc.HookManager(net.model) as hooks, torch.no_grad():
    for channel in range(tvc.capture(net, photo, layer)[layer].shape[1]):
        keep = torch.ones(1, 1 + channel, 1, 1)
        with hooks.on_forward(layer, lambda name, output, c=channel: output.index_fill(1, torch.tensor([c]), 0)):
            shares[channel] = float(hooks.run(x).softmax(1)[0, likely])
