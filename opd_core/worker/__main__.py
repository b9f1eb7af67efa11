"""`python -m opd_core.worker`: how the supervisor starts it."""

from __future__ import annotations

import sys

from opd_core.worker import main

if __name__ == "__main__":
    sys.exit(main())
