"""`python -m torchviz_cnn`."""

import sys

from torchviz_cnn.cli.main import main

sys.exit(main())
