"""Backends of another package that lie, hang or crash; each wraps the reference evaluator's right numbers.

`BY_NAME` becomes the entry points `edgert.backends`.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import numpy as np

from edgert import devices
from edgert.errors import MissingPackage
from edgert.machine import Reach
from edgert.profile import Target


class Honest:
    """Right numbers, on the CPU."""

    name = "honest"
    reentrant = False

    def version(self):
        return "1.0"

    def reaches(self, found):
        return tuple(Reach(self.name, device.id) for device in found if device.kind == "cpu")

    def targets(self, source, device, variant, threads):
        return (Target(self.name, device.id, source.precision, 0, variant),) if source.format == "onnx" else ()

    def prepare(self, source, target, device, cache=None):
        plain = replace(target, backend="reference", variant="")
        return Wrapped(devices.backend("reference").prepare(source, plain, device), self.spoil)

    def spoil(self, outputs):
        return outputs


class Wrapped:
    def __init__(self, runnable, spoil):
        self.ran_on = runnable.ran_on
        self._runnable = runnable
        self._spoil = spoil

    def run(self, inputs):
        return self._spoil(self._runnable.run(inputs))

    def close(self):
        self._runnable.close()


class Liar(Honest):
    """Answers something else."""

    name = "liar"

    def spoil(self, outputs):
        return {name: np.zeros_like(array) for name, array in outputs.items()}


class Halver(Honest):
    """Computes in bfloat16 what was asked for in float32."""

    name = "halver"

    def spoil(self, outputs):
        kept = {name: np.ascontiguousarray(array).view(np.uint32) & 0xFFFF0000 for name, array in outputs.items()}
        return {name: bits.astype(np.uint32).view(np.float32) for name, bits in kept.items()}


class Stale(Honest):
    """Repeats its first answer."""

    name = "stale"

    def __init__(self):
        self._first = None

    def spoil(self, outputs):
        self._first = self._first or outputs
        return self._first


class Nans(Honest):
    name = "nans"

    def spoil(self, outputs):
        return {name: np.full_like(array, np.nan) for name, array in outputs.items()}


class Shapeless(Honest):
    name = "shapeless"

    def spoil(self, outputs):
        return {name: array.ravel() for name, array in outputs.items()}


class Elsewhere(Honest):
    """Says that it ran somewhere else than asked."""

    name = "elsewhere"

    def prepare(self, source, target, device, cache=None):
        runnable = super().prepare(source, target, device, cache)
        runnable.ran_on = {"cpu:7": 3}
        return runnable


class Hanger(Honest):
    name = "hanger"

    def prepare(self, source, target, device, cache=None):
        threading.Event().wait()


class Crasher(Honest):
    name = "crasher"

    def spoil(self, outputs):
        os.kill(os.getpid(), signal.SIGSEGV)
        return outputs


class Choosy(Honest):
    """Crashes on one device only."""

    name = "choosy"

    def prepare(self, source, target, device, cache=None):
        if device.id == "cpu:0":
            os.kill(os.getpid(), signal.SIGILL)
        return super().prepare(source, target, device, cache)


class Looker(Honest):
    """Crashes when it looks for anything but CPUs, as a broken driver does."""

    name = "looker"

    def reaches(self, found):
        if any(device.kind != "cpu" for device in found):
            os.kill(os.getpid(), signal.SIGABRT)
        return super().reaches(found)


class Absent(Honest):
    """Its library does not load."""

    name = "absent"

    def reaches(self, found):
        raise MissingPackage("package libabsent does not load.", "pip install absent", package="absent")


BY_NAME = {
    kind.name: kind
    for kind in (Honest, Liar, Halver, Stale, Nans, Shapeless, Elsewhere, Hanger, Crasher, Choosy, Looker, Absent)
}
