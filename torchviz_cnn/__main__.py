"""`python -m torchviz_cnn`."""

import sys

from torchviz_cnn.cli import main

sys.exit(main())
