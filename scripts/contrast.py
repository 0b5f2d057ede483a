"""Show why a network says one class and not another: red is evidence for the first, blue for the second.

python scripts/contrast.py photo.jpg tabby "Egyptian cat" [vgg16 vgg16-397923af.pth]
"""

from usage import arguments

import torchviz_cnn as tvc

photo, a, b, *model = arguments("PHOTO CLASS CLASS [MODEL WEIGHTS]")
net = tvc.load_model(*(model or ["efficientnet_lite0"]))
heat = tvc.grad_cam(net, photo, target=tvc.targets.contrast(a, b), relu=False)

print(f"{heat.headline()}; {heat.method} at {heat.layer}")
heat.overlay(alpha=0.7).save("contrast.png")
