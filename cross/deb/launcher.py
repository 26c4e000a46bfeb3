#!/usr/bin/python3
"""The command `edgert` of the Debian package, whose modules are in a folder of their own."""

import sys

sys.path.insert(0, "/usr/lib/edgert")

from edgert.cli import main

if __name__ == "__main__":
    main()
