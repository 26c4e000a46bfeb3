"""What one process says and hears: its inbox, an outbox to each peer, and the shared memory behind large values.

An array goes into a slot of this process's own pool when its reader is on the same system, and into the message when
it is small, when the reader is elsewhere or could not map it, or when the pool is full: the last two are counted and
logged, since they cost speed.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgert.errors import Closed, EdgertError, Overloaded, PeerUnreachable, SharedMemoryError
from edgert.tensor import Array, Data, DType, numpy_dtype
from edgert.transport.keys import Keyring
from edgert.transport.messages import Carried, Descriptor, Done, Free, Hello, Message, Work
from edgert.transport.port import Lookout
from edgert.transport.shm import Pool, Reader, Slot
from edgert.transport.sockets import Draft, Inbox, Outbox, host_id

_log = logging.getLogger(__name__)
_SMALL_BYTES = 2048
"""An array of so few bytes is copied faster than a slot is found."""
_PEER = "peer:"
"""In place of an endpoint: the connection over which a sender came."""
_CONNECT_S = 3.0
"""For the first message to a peer, which listens already when its endpoint is told."""
_numbers = itertools.count()


class Mail:
    """Thread-safe, but for `receive`, which belongs to one thread."""

    def __init__(self, inbox: Inbox, keyring: Keyring | None = None) -> None:
        """Args:
        inbox: where this process listens.
        keyring: for peers over tcp.
        """
        self.endpoint = inbox.endpoint
        self.host = host_id()
        self._inbox, self._keyring = inbox, keyring
        self._keys: dict[str, str] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._new: set[str] = set()
        """Peers that nothing was sent to yet."""
        self._lock = threading.Lock()
        self._pool = Pool()
        self._reader = Reader()
        self._apart: set[str] = set()
        """Readers that cannot map this process's memory."""
        self._departed: set[str] = set()
        """Peers whose connection was found gone."""
        self.counts: Counter[str] = Counter()
        """What is out of the ordinary, by name."""

    @classmethod
    def bound(cls, endpoint: str, *, group: bool = False, keyring: Keyring | None = None) -> Mail:
        """Listening at an endpoint.

        Args:
            endpoint: as for `Inbox`.
            group: an ipc socket that the folder's group may use too.
            keyring: whose keys count over tcp; else the user's own.

        Raises:
            EndpointError: nothing can listen there.
            OptionError: tcp without a key pair.
        """
        ring = keyring or Keyring()
        return cls(Inbox(endpoint, keyring=ring if endpoint.startswith("tcp:") else None, group=group), ring)

    def hello(self, who: str, life: int, facts: Mapping[str, Any], *, listens: bool) -> Hello:
        """The first word to a peer, which can answer to this inbox or (not `listens`) over its own connection."""
        return Hello(who, self.endpoint if listens else "", os.getpid(), self.host, life, facts)

    def receive(self, wait_s: float | None, lookout: Lookout | None = None) -> tuple[Message, str] | None:
        """The next message and where to answer a sender that listens nowhere; None when `wait_s` passed first (None:
        no limit) or somebody called `wake`. For `lookout` see `Inbox.receive`.
        """
        received = self._inbox.receive(None if wait_s is None else time.monotonic() + wait_s, lookout=lookout)
        return None if received is None else (received.message, f"{_PEER}{received.peer.hex()}")

    def know(self, endpoint: str, key: str) -> None:
        """The key that a peer over tcp must have; without, it must be this machine's own."""
        if key:
            self._keys[endpoint] = key

    def answers(self, endpoint: str) -> Iterator[Message]:
        """What comes back over the connection to a peer, for a thread of its own; ends when it is dropped."""
        outbox = self.reach(endpoint)
        with suppress(Closed):
            while True:
                message = outbox.receive(None)
                if message is not None:
                    yield message

    def wake(self) -> None:
        """End a `receive` that waits. From any thread or signal handler."""
        self._inbox.wake()

    def send(self, endpoint: str, message: Message) -> bool:
        """Send, or count and log that it could not be: whoever waits for an answer has a limit of its own.

        Returns:
            Whether it is under way.
        """
        try:
            if endpoint.startswith(_PEER):
                self._inbox.answer(bytes.fromhex(endpoint[len(_PEER) :]), message)
                return True
            outbox = self._outboxes.get(endpoint)
            if outbox is None or endpoint in self._new:
                outbox = self.reach(endpoint)
                if endpoint.startswith("tcp:"):
                    outbox.ready(time.monotonic() + _CONNECT_S)
                self._new.discard(endpoint)
            outbox.send(message)
            return True
        except (EdgertError, MemoryError) as error:
            words = error.message if isinstance(error, EdgertError) else str(error)
            self._note("unsent", f"{type(message).__name__} to {endpoint}: {words}")
            if isinstance(error, PeerUnreachable) and endpoint.startswith(_PEER):
                self._departed.add(endpoint)
                self.wake()
            return False

    def departed(self) -> list[str]:
        """Senders that listen nowhere and were found gone since this was last asked; `receive` is woken for them."""
        return [self._departed.pop() for _ in range(len(self._departed))]

    def hint(self, endpoint: str, message: Message) -> None:
        """Send what is not missed when it is lost, where that is cheap."""
        outbox = self._outboxes.get(endpoint)
        if outbox is not None and endpoint not in self._new:
            outbox.hint(message)

    def draft(self, endpoint: str, message: Work) -> Draft | None:
        """A message written in advance; None where that saves nothing."""
        outbox = self._outboxes.get(endpoint)
        return None if outbox is None or endpoint in self._new else outbox.draft(message)

    def post(self, endpoint: str, draft: Draft) -> bool:
        """Send what was written in advance; else as `send`."""
        return draft.sent() or self.send(endpoint, draft.message)

    def watch(self, message: Work) -> Callable[[], bool]:
        """What tells whether the slots of a message are published; see `shm.Reader.watch`, which it raises as."""
        return self._reader.watch(value for value in message.values.values() if isinstance(value, Descriptor))

    def rehearse(self, message: Work) -> dict[str, Data]:
        """Read a message that came before once more, as `receive` and `view` would read one like it, whatever its slots
        hold by now; for nobody's use. Changes nothing.

        Raises:
            SharedMemoryError: a slot is gone.
        """
        self._inbox.rehearse(message)
        values = message.values.items()
        return {name: self._reader.rehearse(value) for name, value in values if isinstance(value, Descriptor)}

    def reach(self, endpoint: str) -> Outbox:
        """Start to connect to a peer, so that the first message need not wait for it."""
        with self._lock:
            outbox = self._outboxes.get(endpoint)
            if outbox is None:
                outbox = self._outboxes[endpoint] = self._connected(endpoint)
                self._new.add(endpoint)
            return outbox

    def expect(self, endpoint: str) -> None:
        """As `reach`, for a reader that may also be one that came by itself, and is connected already."""
        if not endpoint.startswith(_PEER):
            self.reach(endpoint)

    def _connected(self, endpoint: str) -> Outbox:
        if not endpoint.startswith("tcp:") or self._keyring is None:
            # The path of an executor that was started here is its own for ever; others connect again by themselves.
            return Outbox(endpoint, patient=True)
        own = self._keyring.own()
        return Outbox(endpoint, keys=own, server_key=self._keys.get(endpoint, own.public))

    def drop(self, endpoint: str) -> None:
        """A peer is gone: close what leads to it, and take back what it would have read."""
        with self._lock:
            outbox = self._outboxes.pop(endpoint, None)
            self._new.discard(endpoint)
        if outbox is not None:
            outbox.close()
        self._pool.reclaim(endpoint)
        self._apart.discard(endpoint)

    def place(
        self, reader: str, values: Mapping[str, Data], published: Mapping[str, Descriptor] | None = None
    ) -> tuple[str, dict[str, Carried]]:
        """Values as a message to `reader` carries them, and where their slots are to be given back ('': no slots).

        Args:
            reader: its endpoint.
            values: by name.
            published: of those that lie in a slot already, which was published for this reader too.
        """
        if not self._shares(reader):
            return "", dict(values)
        home, carried = "", dict[str, Carried]()
        for name, value in values.items():
            carried[name] = value
            if published and name in published:
                carried[name], home = published[name], self.endpoint
            elif isinstance(value, np.ndarray) and value.nbytes > _SMALL_BYTES and value.dtype != object:
                try:
                    carried[name] = self._pool.put(value, (reader,), deadline_s=0.0)
                    home = self.endpoint
                except (Overloaded, SharedMemoryError) as error:
                    self._note("inline", error.message)
        return home, carried

    def room(self, readers: Sequence[str], dtype: DType, shape: tuple[int, ...]) -> Slot | None:
        """A slot to compute a value into, so that it need not be copied; None where it would not travel in one."""
        small = math.prod(shape) * numpy_dtype(dtype).itemsize <= _SMALL_BYTES
        if small or not readers or not all(map(self._shares, readers)):
            return None
        try:
            return self._pool.take(dtype, shape, deadline_s=0.0)
        except (Overloaded, SharedMemoryError) as error:
            self._note("inline", error.message)
            return None

    def _shares(self, reader: str) -> bool:
        """Whether a reader maps this process's memory."""
        return not (reader.startswith(("tcp:", _PEER)) or reader in self._apart)

    def view(self, descriptor: Descriptor) -> Data:
        """The array in place, read-only; see `shm.Reader.view`."""
        return self._reader.view(descriptor)

    def check(self, values: Mapping[str, Carried]) -> None:
        """After use: see `shm.Reader.check`."""
        descriptors = [value for value in values.values() if isinstance(value, Descriptor)]
        if descriptors:
            self._reader.check(*descriptors)

    def release(self, home: str, values: Mapping[str, Carried]) -> None:
        """Tell the owner of these values that they were read."""
        slots = tuple(value.slot for value in values.values() if isinstance(value, Descriptor))
        if home and slots:
            self.send(home, Free(self.endpoint, slots))

    def freed(self, message: Free) -> None:
        """A reader released slots of ours."""
        self._pool.release(message.reader, *message.slots)

    def spare(self, endpoint: str) -> None:
        """A reader cannot map our memory: its values go in the messages from now on."""
        if endpoint not in self._apart:
            self._apart.add(endpoint)
            self._note("apart", f"{endpoint} cannot map our memory: values are sent as bytes.")

    def discard(self, message: Work | Done | Message) -> None:
        """Nobody waits for this any more; give its slots back."""
        self.counts["late"] += 1
        if isinstance(message, Work | Done):
            self.release(message.home, message.values)

    def odd(self, message: Message, why: str = "nobody sends it here") -> None:
        """A message that nobody sends here on purpose."""
        self._note("odd", f"a message of the kind {type(message).__name__} was dropped: {why}.")

    def used_bytes(self) -> int:
        """Of shared memory, in slots that are being written or read."""
        return self._pool.used_bytes

    def close(self) -> None:
        """Close everything. Harmless twice."""
        with self._lock:
            outboxes, self._outboxes = list(self._outboxes.values()), {}
        for outbox in outboxes:
            outbox.close()
        self._inbox.close()
        self._reader.forget()
        self._pool.close()

    def _note(self, name: str, text: str) -> None:
        self.counts[name] += 1
        if self.counts[name] in (1, 10, 100, 1000, 10_000):  # a fault that repeats must not fill the disk
            _log.warning("%s (seen %d times): %s", name, self.counts[name], text)


def open_values(mail: Mail, values: Mapping[str, Carried], *, copy: bool = False) -> dict[str, Data]:
    """The values themselves.

    Args:
        mail: with which they came.
        values: as a message carries them.
        copy: whether they outlive their slots. Else call `Mail.check` after use.

    Raises:
        StaleSlot, SharedMemoryError: a slot cannot be read, or was given to somebody else; or (`shortage`) there is no
            memory for a copy.
    """
    opened: dict[str, Data] = {}
    for name, value in values.items():
        if not isinstance(value, Descriptor):
            opened[name] = value
        elif copy:
            array = mail.view(value)
            assert isinstance(array, np.ndarray)
            opened[name] = _copied(name, array)
        else:
            opened[name] = mail.view(value)
    if copy:
        mail.check(values)
    return opened


def _copied(name: str, array: Array) -> Array:
    """Raises as `open_values`."""
    try:
        return array.copy()
    except MemoryError as error:
        words = f"no memory is left for {name!r} of {array.nbytes} bytes."
        raise SharedMemoryError(words, "Send fewer requests at a time, or raise the limit.", shortage=True) from error


def fresh_endpoint(transport: str) -> str:
    """One that nobody else of this process uses."""
    number = next(_numbers)
    if transport == "ipc":
        return "ipc://*"
    if transport == "inproc":
        return f"inproc://edgert.{os.getpid()}.{number}"
    return "tcp://127.0.0.1:*"
