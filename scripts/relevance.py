"""For channels of a torchvision network's layer, what excites each in a folder of photos, and what it is used for.

python scripts/relevance.py photos/ squeezenet1_0 squeezenet1_0.pth features.12 ["tabby"]
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

photos, name, weights, layer, *target = arguments("FOLDER MODEL WEIGHTS LAYER [CLASS]")
net = tvc.load_model(name, weights)
explained = target[0] if target else None
top = tvc.top_activations(net, photos, layer, by="relevance", target=explained, progress=sys.stderr.isatty())

used = top.strongest_channels(layer)
top.page(layer, used).save(f"{layer}_used_for.png")

view, _ = top.views(layer, used[0])[0]
tvc.channel_heatmap(net, view.photo, layer, used[0], explained).overlay().save(f"{layer}_{used[0]}.png")
print(top, tvc.similar_channels(net, layer, used[0]), sep="\n")
