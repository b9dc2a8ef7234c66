"""``python -m minires`` is ``minires``."""

import sys

from minires.cli import main

sys.exit(main())
