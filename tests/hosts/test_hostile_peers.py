"""An executor on tcp with hostile peers, one of them with an allowed key: others are served, and it stays small."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from edgert.machine import Device, device_from_json
from edgert.transport import frames
from edgert.transport import messages as say
from edgert.transport.keys import KeyPair, Keyring
from edgert.transport.line import Line
from edgert.transport.sockets import Outbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")
BOX = Path(__file__).parent / "box.py"
ENOUGH_S = 120.0
ROUNDS = 60
IDLE = 100
"""Connections that say one byte and no more."""


class Target:
    """The executor, one good peer, and one that is allowed and hostile."""

    def __init__(self, folder, site):
        self.ring = Keyring(folder / "there")
        self.good, self.evil = KeyPair.random(), KeyPair.random()
        self.public = self.ring.make().public
        self.ring.allow("good", self.good.public)
        self.ring.allow("evil", self.evil.public)
        told = {"site": str(site), "endpoint": "tcp://127.0.0.1:0", "device": dataclasses.asdict(GPU), "backends": []}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(BOX), json.dumps(told)],
                stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "EDGERT_KEYS": str(self.ring.folder)},
            )  # fmt: skip
        self.endpoint = self.process.stdout.readline().strip()
        self.port = int(self.endpoint.rpartition(":")[2])
        self.line = Line(self.endpoint, keys=self.good, server_key=self.public)
        self._asked = 0

    def answers(self):
        """Whether the good peer gets what it asks for."""
        self._asked += 1
        call = say.Call(self._asked, "about", {}, {}, time.monotonic() + ENOUGH_S)
        return device_from_json(self.line.send(call, ENOUGH_S).result().facts["device"]) == GPU

    def hostile(self):
        made = Outbox(self.endpoint, keys=self.evil, server_key=self.public)
        made.ready(time.monotonic() + ENOUGH_S)
        return made

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self):
        self.line.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def target(tmp_path):
    made = Target(tmp_path, tmp_path)
    yield made
    made.close()


def nonsense(chance):
    """Something that is well-formed and makes no sense to an executor."""
    facts = chance.choice(
        ({}, {"heartbeat_s": "x"}, {"heartbeat_s": 1e300}, {"target": 5, "source": [], "reply": 7}, {"segments": 3})
    )
    number = chance.getrandbits(64)
    return chance.choice((
        say.Hello("evil", chance.choice(("", "junk", "ipc://relative")), 1, "nowhere", number, facts),
        say.Prepare(number, "segment", facts),
        say.Route(number, (say.Leg("segment", ("x",), (say.Send("junk", "", ("y",)),), "junk", 10**9),)),
        say.Work(number, 1, None, number, "segment", {"x": [1, {"a": None}]}, "junk"),
        say.Call(number, chance.choice(("release", "host", "nothing")), facts),
        say.Free("nobody", ((number, 2, 3, 4),)),
        say.Bye("somebody else", number),
        say.Answer(number, facts),
    ))  # fmt: skip


def damaged(message, chance):
    parts = [bytearray(part) for part in frames.pack(message)]
    for _ in range(chance.randrange(4)):
        part = chance.choice(parts)
        if part:
            part[chance.randrange(len(part))] = chance.randrange(256)
    del parts[0][chance.choice((len(parts[0]), chance.randrange(len(parts[0])))) :]
    return [bytes(part) for part in parts]


def shout(port, chance):
    """Random bytes at the port, as if it were some other service's or a connection of libzmq that went wrong."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    with socket.create_connection(("127.0.0.1", port)) as raw:
        try:
            raw.sendall(chance.choice((b"", greeting)) + chance.randbytes(chance.randrange(1, 2000)))
        except OSError:
            return  # it was cut off, as it should be


def test_hostile_peers_disturb_nobody_and_leave_nothing(target):
    chance = random.Random(7)
    assert target.answers()
    before = target.descriptors()
    idle = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(IDLE)]
    for each in idle:
        each.send(b"\xff")
    evil = target.hostile()
    for _ in range(ROUNDS):
        for _ in range(20):
            with suppress(zmq.Again):  # it sends faster than is read
                evil._send(damaged(nonsense(chance), chance), False)
        shout(target.port, chance)
        assert target.answers()
    evil.close()
    for each in idle:
        each.close()
    until_s = time.monotonic() + ENOUGH_S
    while target.descriptors() > before + 8:  # a few for the names that it was told to send to
        assert time.monotonic() < until_s
        assert target.answers()
    assert target.process.poll() is None
    log = target.log.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) < 150  # what comes without end must not fill the disk
