#!/usr/bin/python3
"""The command `edgert` of the Debian package, with the modules that it alone needs."""

import sys

sys.path[:0] = ["/usr/lib/edgert", "/usr/lib/edgert/command"]

from edgert.__main__ import main  # noqa: E402 - found through the line above

if __name__ == "__main__":
    main()
