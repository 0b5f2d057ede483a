"""What a torchvision network predicts of a folder of photos, where it looks, and what it confuses.

python scripts/survey.py photos/ squeezenet1_0 squeezenet1_0.pth [LABELS.csv]
"""

import sys

from usage import arguments

import torchviz_cnn as tvc

if __name__ == "__main__":
    photos, name, weights, *truth = arguments("FOLDER MODEL WEIGHTS [LABELS]")
    net = tvc.load_model(name, weights)
    result = tvc.survey(net, photos, truth=truth[0] if truth else None, out="survey", progress=sys.stderr.isatty())

    print(result)
    print("open survey/index.html")
