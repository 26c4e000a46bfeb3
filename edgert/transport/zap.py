"""Who may connect: the answer to libzmq's question, by the protocol ZAP 1.0 (rfc.zeromq.org/spec/27)."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import zmq
from zmq.utils import z85

from edgert.transport.keys import Keyring

_log = logging.getLogger(__name__)
_ADDRESS = "inproc://zeromq.zap.01"  # the protocol's own
_MOST_NAMED = 100
"""So many refused keys are logged with their address; more may be an attack on the log."""


class Gate:
    """Lets the peers of a keyring into the sockets of one context, and whoever holds the secret key of this machine;
    nobody else.
    """

    def __init__(self, context: zmq.Context[Any], keyring: Keyring, own: str) -> None:
        self.refused = 0
        """Connections that were turned away."""
        self._keyring, self._own = keyring, own
        self._questions: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._questions.linger = 0
        self._questions.bind(_ADDRESS)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="edgert gate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it: nobody is let in any more."""
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._questions, zmq.POLLIN)
        poller.register(self._stop_read, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop_read in ready:
                self._questions.close()
                return
            self._questions.send_multipart(self._answer(self._questions.recv_multipart()))

    def _answer(self, question: list[bytes]) -> list[bytes]:
        version, number, _, address, _, mechanism, *credentials = question
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
        if key and (key == self._own or key in self._keyring.peers().values()):
            return [version, number, b"200", b"OK", key.encode(), b""]
        self.refused += 1
        if self.refused <= _MOST_NAMED:
            _log.warning("refused a connection from %s: key %s is not allowed", address.decode("ascii", "replace"), key)
        return [version, number, b"400", b"", b"", b""]
