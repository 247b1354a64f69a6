"""Entry point of ``python -m camkd``."""

import sys

from camkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
