"""The emulated boards of `make test-cross`, and the record of what held on each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cross import board as boards
from cross import sysroot
from cross.emulate import Emulated


@pytest.fixture(scope="session")
def emulation():
    """Skips, with the reason, where boards are not asked for or cannot be had."""
    if os.environ.get("EDGERT_BOARDS") != "1":
        pytest.skip("emulated boards take minutes: `make test-cross` runs them")
    try:
        sysroot.require(boards.ENVIRONMENTS)
    except sysroot.CannotEmulate as error:
        pytest.skip(f"boards cannot be emulated: {error}")


@pytest.fixture(scope="session")
def on_board(emulation, tmp_path_factory):
    """Makes `Emulated` boards: `on_board("pi4")`; one folder, and so one cache, for each board and set of packages."""
    made = {}

    def make(name, environment=None, **changes):
        board = boards.load(name)
        environment = environment or board.environments[0]
        key = (name, environment)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{environment}")
        binds = dict(changes.pop("binds", {}))
        if os.environ.get("EDGERT_MODELS"):
            binds[Path(os.environ["EDGERT_MODELS"]).absolute()] = "/srv/known"
        folder = changes.pop("folder", made[key])
        return Emulated(board, environment, folder, binds=binds, **changes)

    return make


@pytest.fixture(scope="session")
def record():
    """Notes a result for the table of docs/boards.md: `record("pi4", "recovery", "ok")`."""
    path = os.environ.get("EDGERT_BOARDS_RESULTS")

    def note(board, check, words):
        if path:
            line = json.dumps({"board": board, "check": check, "result": words})
            with open(path, "a", encoding="utf-8") as file:  # one write: two workers share the file
                file.write(f"{line}\n")

    return note
