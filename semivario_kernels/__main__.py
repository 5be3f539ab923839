"""`python -m semivario_kernels variogram EMBEDDINGS LATLON -o OUT`."""

import sys

from semivario_kernels.command import main

sys.exit(main())
