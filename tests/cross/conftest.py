"""The emulated boards of `make test-cross`, and the record of what held on each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cross import board as boards
from cross import sysroot
from cross.emulate import Emulated
from cross.golden import KNOWN
from tests.cross.visits import LACKING, Visit, usual
from tests.formats.lacking import quantised_with

ELSEWHERE = {  # beginning of a test's name -> group that it belongs to in place of its board's
    "test_the_smallest_set": "{board} tflite-runtime",
    "test_a_backend_that_dies": "{board} control",
    "test_the_extra_for": "{board} pip",
    "test_a_bundle_of_64_bits": "pi4",  # where the bundle is made
    "test_a_clock_at_1970": "{board} clock",  # with a cache of its own
}


def group_of(nodeid):
    """Tests of one group share a worker: a board with one set of packages, and so what was asked of it in one visit."""
    test = nodeid.rpartition("::")[2]
    board = test.rpartition("[")[2].rstrip("]").rpartition("-")[2] if "[" in test else test
    other = next((group for start, group in ELSEWHERE.items() if test.startswith(start)), "{board}")
    return other.format(board=board)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """pytest-xdist tells groups by a change to node ids that pytest 9 does not take any more; here their ids serve."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


@pytest.fixture(scope="session")
def emulation():
    """Skips, with the reason, where boards are not asked for or cannot be had."""
    if os.environ.get("EDGERT_BOARDS") != "1":
        pytest.skip("emulated boards take minutes: `make test-cross` runs them")
    try:
        sysroot.require(boards.ENVIRONMENTS)
    except sysroot.CannotEmulate as error:
        pytest.skip(f"boards cannot be emulated: {error}")


def known_cases():
    """Model -> file, feeds and expected answers, as the boards see them; empty where EDGERT_MODELS is not set."""
    folder = os.environ.get("EDGERT_MODELS")
    if not folder:
        return {}
    entries = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))["entries"]
    return {
        entry["id"]: (entry["file"], entry["cases"][0]["feeds"], entry["cases"][0]["expected"])
        for entry in entries
        if entry["id"] in KNOWN
    }


def known_for(environment):
    """As `known_cases`; tflite-runtime is held to its own answers, since its arithmetic is not LiteRT's."""
    own = environment in ("armhf", "arm64-tflite-runtime")
    return {
        model: (file, feeds, f"/srv/checks/golden/tflite-runtime.{model}.npz" if own else expected)
        for model, (file, feeds, expected) in known_cases().items()
    }


@pytest.fixture(scope="session")
def on_board(emulation, tmp_path_factory):
    """Makes boards: `on_board("pi4")` is a `Visit`, whose usual checks share a process; `on_board("pi4", tmpfs=...)` an
    `Emulated` of its own. One folder, and so one cache, for each board and set of packages.
    """
    made, visits = {}, {}

    def make(name, environment=None, **changes):
        board = boards.load(name)
        environment = environment or board.environments[0]
        key = (name, environment)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{environment}")
        plain = not changes
        if plain and key in visits:
            return visits[key]
        binds = dict(changes.pop("binds", {}))
        if os.environ.get("EDGERT_MODELS"):
            binds[Path(os.environ["EDGERT_MODELS"]).absolute()] = "/srv/known"
        folder = changes.pop("folder", made[key])
        emulated = Emulated(board, environment, folder, binds=binds, **changes)
        if not plain:
            return emulated
        (folder / "out").mkdir(exist_ok=True)
        if environment == "arm64":
            (folder / "out" / Path(LACKING).name).write_bytes(quantised_with("SQUARE"))
        visits[key] = Visit(emulated, usual(name, environment, known_for(environment)))
        return visits[key]

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
