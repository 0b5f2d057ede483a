"""Switch off a layer's strongest channels one after the other, and print how the prediction for a photo changes.

python scripts/hooks.py coffee.png efficientnet_lite0 head
"""

import torch
from usage import arguments

import torchviz_cnn as tvc

photo, name, layer = arguments("PHOTO MODEL LAYER")
net = tvc.load_model(name)
x = net.preprocess(tvc.read_image(photo))[None]
print(net.predict(x))
top = int(net.predict(x).argmax())
strongest = tvc.capture(net, x, layer)[layer].mean((0, 2, 3)).argsort(descending=True)


def without(k: int) -> torch.Tensor:
    """The probabilities where the k strongest channels give zeros."""
    with tvc.HookManager(net.model) as hooks, torch.no_grad():
        hooks.on_forward(layer, lambda name, output: output.index_fill(1, strongest[:k], 0))
        probabilities: torch.Tensor = hooks.run(x, stop_early=False).softmax(1)[0]
        return probabilities


for k in (1, 3, 10, 30):
    changed = without(k)
    now = net.category(int(changed.argmax()))
    print(f"without {k} channels: {net.category(top)} {float(changed[top]):.3f}; predicted: {now}")
