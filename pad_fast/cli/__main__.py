"""`python -m pad_fast.cli`: the command line where its script is not installed, and under torchrun."""

import sys

from .main import main

sys.exit(main())
