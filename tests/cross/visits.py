"""What is asked of a board in one go: starting a process there takes seconds, and each backend's child some more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cross.board import Board
from cross.emulate import Emulated, GuestFailed

Work = tuple[str, ...]
"""Name of a check of `cross/guest/checks.py`, and its arguments."""
DATA = "/srv/product/edgert/data"
EXECUTORS = ("zero2w", "pi4", "pi5", "pi2")
LIMITS = ("zero2w", "pi4", "pi2")
ORPHANS = ("pi4", "pi2")
LACKING = "/srv/out/square.tflite"
"""A model with an operator for which LiteRT has no integer kernel; laid there before the visit."""
TINY = ("memory_limit", "digits_i8.tflite", "1000000")


@dataclass
class Visit:
    """A board whose usual checks run in one process, when the first of them is asked for."""

    emulated: Emulated
    usual: tuple[Work, ...]
    told: dict[Work, Any] = field(default_factory=dict)
    """What they answered."""
    made: bool = False

    @property
    def board(self) -> Board:
        return self.emulated.board

    @property
    def environment(self) -> str:
        return self.emulated.environment

    @property
    def folder(self) -> Path:
        return self.emulated.folder

    def check(self, *work: str) -> Any:
        """The answer to one check: as of the visit, else, also where the visit ended before it, of a process of its
        own. Raises GuestFailed.
        """
        if work in self.usual and not self.made:
            self.made = True
            self.told = self.emulated.visit(self.usual)
        if work not in self.told:
            return self.emulated.check(*work)
        if isinstance(self.told[work], GuestFailed):
            raise self.told[work]
        return self.told[work]


def usual(name: str, environment: str, known: Mapping[str, tuple[str, str, str]]) -> tuple[Work, ...]:
    """What is asked of a board with a set of packages.

    Args:
        name: the board's.
        environment: the set's.
        known: model -> file, feeds and expected answers, of those with known ones.
    """
    digits: tuple[Work, ...] = (("digits", "digits_i8.tflite"),)
    models = tuple(("known", *known[model], "litert@*") for model in known)
    if environment == "arm64-control":
        return (("probe",), *digits)
    if environment == "arm64-tflite-runtime":
        return (*digits, *models)
    work: tuple[Work, ...] = (("clusters",), ("probe",), *digits)
    work += (("refusal", f"{DATA}/digits_i8.onnx"),) if environment == "armhf" else (("digits", "digits_i8.onnx"),)
    work += models
    work += (TINY,) if name in LIMITS else ()
    work += (("compile_bundle", "digits_i8.tflite"),) if name == "pi4" else ()
    work += (("lacking", LACKING),) if name == "pi4" else ()
    work += (("recovery",),)
    work += (("executor",),) if name in EXECUTORS else ()
    return work + ((("orphan",),) if name in ORPHANS else ())
