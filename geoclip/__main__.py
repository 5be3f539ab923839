"""`python -m geoclip` is `geoclip`."""

import sys

from geoclip.cli import main

sys.exit(main())
