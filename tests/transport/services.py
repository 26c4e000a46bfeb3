"""What lives in the children of the tests: named 'tests.transport.services:Odd'."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading

import numpy as np

from edgert.errors import ShapeMismatch
from edgert.transport.child import Child


class Odd:
    """Does what it is told, mostly harm."""

    def __init__(self):
        self.inner = None

    def handle(self, method, body, data):
        made = getattr(self, method)(body, data)
        return made if isinstance(made, tuple) else (made or {}, {})

    def echo(self, body, data):
        return body, data

    def pid(self, body, data):
        return {"pid": os.getpid(), "session": os.getsid(0), "modules": sorted(sys.modules)}

    def die(self, body, data):
        os.kill(os.getpid(), getattr(signal, body["signal"]))
        threading.Event().wait()

    def segfault(self, body, data):
        ctypes.string_at(0)

    def leave(self, body, data):
        os._exit(body["status"])

    def speak_and_die(self, body, data):
        os.write(2, body["words"].encode() + b"\n")
        os._exit(3)

    def chatter(self, body, data):
        for _ in range(2000):
            os.write(2, b"vendor: warning: " + b"x" * 500 + b"\n")
            os.write(1, b"vendor: progress\n")
        return {"done": True}

    def hang(self, body, data):
        ctypes.PyDLL(None).pause()  # with the interpreter lock held

    def refuse(self, body, data):
        raise ShapeMismatch("input 'x' is odd.", "Make it even.", name="x", axis=1)

    def throw(self, body, data):
        raise ZeroDivisionError("oops")

    def unsendable(self, body, data):
        return {"thing": object()}, {}

    def allocate(self, body, data):
        return {"sum": int(np.ones(body["bytes"], np.uint8).sum())}

    def limits(self, body, data):
        return {"core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                "oom": open("/proc/self/oom_score_adj", encoding="ascii").read().strip()}  # fmt: skip

    def hang_grandchild(self, body, data):
        """Stands for the parent that is killed: its own child hangs with the interpreter lock held."""
        self.inner = Child("tests.transport.services:Odd", name="grandchild")
        found, _ = self.inner.call("pid")
        if body["hang"]:
            threading.Thread(target=self.inner.call, args=("hang",), daemon=True).start()
        return {"pid": found["pid"]}
