"""Narrows a lock to one Python: `python .ci/lock_for.py 3.13 < requirements/ci.txt`.

`pip download --python-version` judges the markers of a lock by the Python that it runs under, so they must go first.
"""

import sys

from packaging.markers import Marker


def main(version: str) -> None:
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    wanted = True
    for line in sys.stdin:
        text = line
        if line[:1].isalnum():
            pin, _, marker = line.rstrip("\\\n").partition(" ; ")
            wanted = not marker or Marker(marker).evaluate(environment)
            text = f"{pin.rstrip()} \\\n"
        if wanted:
            sys.stdout.write(text)


main(sys.argv[1])
