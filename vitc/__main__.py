"""`python -m vitc` is `vitc`."""

from __future__ import annotations

import sys

from vitc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
