"""``python -m azjax``."""

import sys

from azjax.cli import main

sys.exit(main())
