"""`python -m rocforge` is the `rocforge` command."""

import sys

from rocforge.cli import main

sys.exit(main())
