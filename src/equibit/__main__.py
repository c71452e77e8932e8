"""``python -m equibit``."""

import sys

from equibit.cli.main import main

sys.exit(main())
