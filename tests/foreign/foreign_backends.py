"""Backends of another package, most of them bad: each computes y = 2 x + 1 and misbehaves in its own way.

`BY_NAME` becomes the entry points `edgert.backends`. `FAIL` and `DIE_IN_RUN` make `fickle` fail where they are set:
in the process of the test, and not in the children, which import a copy of their own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from edgert.errors import PrepareRefused, RunFailed
from edgert.machine import Reach
from edgert.profile import Target

FAIL = threading.Event()
"""Set: every run of `fickle` in this process raises RunFailed."""


class Right:
    """Fast and right: plain numpy."""

    name = "right"
    reentrant = True
    threads = (0,)

    def version(self):
        return "1.0"

    def reaches(self, devices):
        return tuple(Reach(self.name, device.id) for device in devices)

    def targets(self, source, device, variant, threads):
        return tuple(Target(self.name, device.id, "f32", count) for count in self.threads)

    def prepare(self, source, target, device, cache=None):
        return Line(self, target)

    def run(self, x):
        return 2 * x + 1


class Line:
    """The one model that these backends know."""

    def __init__(self, backend, target):
        self.ran_on = {target.device: 2}
        self.backend, self.target = backend, target
        self.runs = 0

    def run(self, inputs):
        self.runs += 1
        if self.target.threads > 1:
            return {"y": self.backend.run_late(inputs["x"], self.runs)}
        return {"y": self.backend.run(inputs["x"])}

    def close(self):
        self.backend = None


class CrashesInPrepare(Right):
    name = "crashes_in_prepare"

    def prepare(self, source, target, device, cache=None):
        os.write(2, b"foreign: assertion failed: tensor != nullptr\n")
        ctypes.string_at(0)


class HangsInPrepare(Right):
    """Holds the interpreter lock for ever, as a library written in C may."""

    name = "hangs_in_prepare"

    def prepare(self, source, target, device, cache=None):
        ctypes.PyDLL(None).pause()


class DiesInRace(Right):
    """Survives the trial, and then crashes."""

    name = "dies_in_race"

    def prepare(self, source, target, device, cache=None):
        self.calls = 0
        return super().prepare(source, target, device, cache)

    def run(self, x):
        self.calls += 1
        if self.calls > 30:
            os.kill(os.getpid(), signal.SIGSEGV)
        return 2 * x + 1


class HalfDies(Right):
    """Its one-thread target is right; the one of two threads ends the process that both live in, in the race."""

    name = "half_dies"
    threads = (1, 2)

    def run_late(self, x, runs):
        if runs > 30:
            os.kill(os.getpid(), signal.SIGSEGV)
        return 2 * x + 1


class Nan(Right):
    name = "nan"

    def run(self, x):
        return np.full_like(x, np.nan)


class OffByOnePercent(Right):
    name = "off_by_one_percent"

    def run(self, x):
        return (2 * x + 1) * np.float32(1.01)


class WrongShape(Right):
    name = "wrong_shape"

    def run(self, x):
        return (2 * x + 1).reshape(-1)


class WrongDtype(Right):
    name = "wrong_dtype"

    def run(self, x):
        return (2 * x + 1).astype(np.float64)


class NoOutput(Right):
    name = "no_output"

    def prepare(self, source, target, device, cache=None):
        made = super().prepare(source, target, device, cache)
        made.run = lambda inputs: {}
        return made


class WantsTooMuch(Right):
    name = "wants_too_much"

    def prepare(self, source, target, device, cache=None):
        np.empty(1 << 50, np.uint8)


class EatsMemory(Right):
    """Takes a piece of memory after the other, and writes to none: it would take long to fill a large box."""

    name = "eats_memory"

    def prepare(self, source, target, device, cache=None):
        pieces = []
        while len(pieces) < 1 << 16:
            pieces.append(np.empty(64 << 20, np.uint8))


class Killed(Right):
    """What somebody at a terminal, or a supervisor, does."""

    name = "killed"

    def prepare(self, source, target, device, cache=None):
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Right):
    name = "slow"

    def run(self, x):
        time.sleep(0.02)
        return 2 * x + 1


class Refuses(Right):
    name = "refuses"

    def prepare(self, source, target, device, cache=None):
        raise PrepareRefused("foreign: Mul is not known.", target=str(target))


class Throws(Right):
    """Raises what no backend should."""

    name = "throws"

    def prepare(self, source, target, device, cache=None):
        raise ZeroDivisionError("oops")


class Fickle(Right):
    """Right, until `FAIL` is set in its process."""

    name = "fickle"

    def run(self, x):
        if FAIL.is_set():
            raise RunFailed("foreign: the device fell off the bus.")
        return 2 * x + 1


class Picky(Right):
    """Runs up to four rows; so does `fussy`."""

    name = "picky"

    def run(self, x):
        if len(x) > 4:
            raise RunFailed(f"foreign: {len(x)} rows are too many.")
        return 2 * x + 1


class Fussy(Picky):
    name = "fussy"


class DiesOnDemand(Right):
    """Ends its process during a run whose first number is 666, and hangs for ever at 999."""

    name = "dies_on_demand"

    def run(self, x):
        if x.flat[0] == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        if x.flat[0] == 999:
            ctypes.PyDLL(None).pause()
        return 2 * x + 1


class Lonely(Right):
    """Crashes its process when two of its instances run at once."""

    name = "lonely"
    threads = (1,)
    busy = threading.Lock()

    def run(self, x):
        if not self.busy.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(1e-4)
        self.busy.release()
        return 2 * x + 1


class Marks(Right):
    """Leaves a file beside the model for every preparation, so that a test can count them."""

    name = "marks"

    def prepare(self, source, target, device, cache=None):
        if not source.path.name.startswith("conformance"):  # that one lies in the package, and in no test's folder
            (source.path.parent / f"prepared.{os.getpid()}.{time.monotonic_ns()}").touch()
        return super().prepare(source, target, device, cache)


class Waits(Right):
    """Prepares only when a file `go` lies beside the model."""

    name = "waits"

    def prepare(self, source, target, device, cache=None):
        while not (Path(source.path).parent / "go").exists():
            time.sleep(0.01)
        return super().prepare(source, target, device, cache)


HEAVY = frozenset({"MatMul", "Conv", "Gemm", "CONV_2D", "FULLY_CONNECTED"})


class Genuine(Right):
    """Runs any model, through its format's own library; the ones below refuse some ops, get some wrong, or take their
    time: a declared one, so that which of them is faster is no question of the machine.
    """

    name = "genuine"
    refused = frozenset()
    wrong = frozenset()
    late_s = 0.0
    """For each op of `HEAVY`."""
    numerics = {"onnx": "onnxruntime", "tflite": "litert"}  # noqa: RUF012 - nobody changes it

    def targets(self, source, device, variant, threads):
        return tuple(Target(self.name, device.id, source.precision, count) for count in self.threads)

    def prepare(self, source, target, device, cache=None):
        from edgert.devices import backend  # here: the others start faster without
        from edgert.formats import open_model

        nodes = [node.op for node in open_model(source.path).graph.nodes]
        ops = set(nodes)
        if ops & self.refused:
            raise PrepareRefused(f"foreign: {min(ops & self.refused)} is not known.", target=str(target))
        cpu = dataclasses.replace(device, id="cpu:0", kind="cpu")
        library = self.numerics[source.format]
        own = Target(library, "cpu:0", source.precision, 0 if library == "reference" else 1)
        inner = backend(library).prepare(source, own, cpu)
        return Tampered(inner, bool(ops & self.wrong), self.late_s * sum(op in HEAVY for op in nodes))


class Tampered:
    def __init__(self, inner, wrong, late_s):
        self.inner, self.wrong, self.late_s = inner, wrong, late_s
        self.ran_on = inner.ran_on

    def run(self, inputs):
        time.sleep(self.late_s)
        outputs = self.inner.run(inputs)
        return {name: array * np.float32(1.05) for name, array in outputs.items()} if self.wrong else outputs

    def close(self):
        self.inner.close()


class Crawls(Genuine):
    """Takes everything."""

    name = "crawls"
    late_s = 0.005


class Swift(Genuine):
    name = "swift"
    refused = frozenset({"Tanh"})


class Blunt(Genuine):
    """Fast at all that is heavy, and does not know how a classifier ends."""

    name = "blunt"
    refused = frozenset({"Softmax", "SOFTMAX"})


class Ambles(Genuine):
    """Takes everything, in twice the time of `Crawls`."""

    name = "ambles"
    late_s = 0.01


class Lingers(Genuine):
    """Takes everything, in four times the time of `Crawls`: long beside what a busy machine adds to a hop."""

    name = "lingers"
    late_s = 0.02


class Trudges(Genuine):
    """Takes everything, slowly enough for any machine to see."""

    name = "trudges"
    late_s = 0.05


class Rowwise(Genuine):
    """Takes its time for each row: best at few of them."""

    name = "rowwise"

    def prepare(self, source, target, device, cache=None):
        made = super().prepare(source, target, device, cache)
        run = made.run

        def slowed(inputs):
            time.sleep(0.01 * len(inputs["x"]))
            return run(inputs)

        made.run = slowed
        return made


class Plods(Genuine):
    """Takes what only the evaluator takes, and as slowly."""

    name = "plods"
    numerics = {"onnx": "reference"}  # noqa: RUF012 - as above
    late_s = 0.2


class Drags(Genuine):
    """Takes only a part, and takes longer for it than `Crawls` for the whole."""

    name = "drags"
    refused = frozenset({"Tanh"})
    late_s = 0.05


class Bends(Genuine):
    name = "bends"
    wrong = frozenset({"Tanh"})


class Blind(Right):
    """Sums over the axes that an input names, and takes a negative one for its absolute value."""

    name = "blind"

    def prepare(self, source, target, device, cache=None):
        return Sum(self, target)


class Sum(Line):
    def run(self, inputs):
        axes = tuple(abs(int(axis)) for axis in inputs["axes"])
        return {"y": inputs["x"].sum(axis=axes, keepdims=True)}


class Treacherous(Genuine):
    """Runs any model, and misbehaves where the first number of its first input is 100 x (its device's number + 1) + a
    code of `TREACHERY`.
    """

    name = "treacherous"

    def prepare(self, source, target, device, cache=None):
        made = super().prepare(source, target, device, cache)
        return Traitor(made.inner, 100 * (int(device.id.partition(":")[2]) + 1))


TREACHERY = {"killed": 1, "exits": 2, "hangs": 3, "hangs with the lock": 4, "wrong shape": 5, "device lost": 6}


class Traitor(Tampered):
    def __init__(self, inner, base):
        super().__init__(inner, False, 0.0)
        self.base = base
        self.lost = False

    def run(self, inputs):
        code = int(next(iter(inputs.values())).flat[0]) - self.base
        if code == TREACHERY["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if code == TREACHERY["exits"]:
            os._exit(3)
        if code == TREACHERY["hangs"]:
            threading.Event().wait(3600)
        if code == TREACHERY["hangs with the lock"]:
            ctypes.PyDLL(None).pause()
        if code == TREACHERY["device lost"]:
            self.lost = True
        if self.lost:
            raise RunFailed("foreign: the device fell off the bus.")
        outputs = self.inner.run(inputs)
        if code == TREACHERY["wrong shape"]:
            return {name: array.reshape(-1) for name, array in outputs.items()}
        return outputs


BY_NAME = {
    kind.name: kind
    for kind in (
        Right, CrashesInPrepare, HangsInPrepare, DiesInRace, HalfDies, Nan, OffByOnePercent, WrongShape, WrongDtype,
        NoOutput, WantsTooMuch, EatsMemory, Killed, Slow, Refuses, Throws, Fickle, Picky, Fussy, DiesOnDemand, Lonely,
        Marks, Waits, Genuine, Crawls, Ambles, Lingers, Swift, Blunt, Trudges, Rowwise, Plods, Drags, Bends,
        Treacherous, Blind,
    )
}  # fmt: skip
