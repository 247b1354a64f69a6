"""``python -m camkd``."""

import sys

from camkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
