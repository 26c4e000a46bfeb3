"""How an executor comes to life: spawned here, started in a thread, or met where somebody else started it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from edgert.errors import EdgertError
from edgert.execution.executor import Executor
from edgert.execution.limits import Limits
from edgert.execution.loop import Loop
from edgert.execution.mail import Mail, fresh_endpoint
from edgert.execution.member import Member, Transport, watch
from edgert.transport.child import Child
from edgert.transport.endpoints import fresh_ipc
from edgert.transport.messages import Bye, Message, Speaks, Welcome
from edgert.transport.sockets import mismatch


class Launcher:
    """Belongs to the loop."""

    def __init__(
        self, loop: Loop, limits: Limits, transport: Transport, service: str, *, lost: Callable[[Member, str], None],
        heard: Callable[[Message], None],
    ) -> None:  # fmt: skip
        """Args:
        loop: of the fleet.
        limits: how long a start may take.
        transport: over which this process and the executors that it starts talk.
        service: what a child runs.
        lost: told of the end of a member's life, once each.
        heard: told of messages that come over a connection of ours.
        """
        self._loop, self._mail, self._limits = loop, loop.mail, limits
        self._transport, self._service, self._lost, self._heard = transport, service, lost, heard
        self._life = random.getrandbits(63)
        self._who = f"pipelines of process {os.getpid()}"

    def start(self, member: Member) -> None:
        """Spawn it, or greet the one that somebody else started."""
        member.state, member.beat, member.life = "starting", None, 0
        generation = member.started_s = time.monotonic()
        self._loop.after(self._limits.start_s, lambda: self._late(member, generation))
        try:
            self._begin_life(member, generation)
        except (EdgertError, OSError, RuntimeError) as error:  # no file, process or thread is left to be had
            reason = error.message if isinstance(error, EdgertError) else f"it cannot be started: {error}"
            self._loop.post(lambda: self._lost_life(member, generation, reason))

    def _begin_life(self, member: Member, generation: float) -> None:
        """Raises what the system refuses."""
        if member.place.endpoint:
            self._mail.know(member.place.endpoint, member.place.key)
            member.endpoint = member.place.endpoint
            self._loop.apart(partial(self._meet, member, generation))
        elif self._transport == "inproc":
            member.thread = Executor(member.device, Mail.bound(fresh_endpoint("inproc")))
            threading.Thread(target=member.thread.serve, name=str(member.place), daemon=True).start()
            self._greet(member, member.thread.endpoint, 0)
        else:
            # In a folder of this process, which ends with it: a process that is killed removes nothing.
            member.listens = fresh_ipc() if self._transport == "ipc" else fresh_endpoint(self._transport)
            process = member.process = Child(self._service, name=str(member.place))
            self._loop.apart(partial(self._begin, member, generation, process, member.listens))

    def _begin(self, member: Member, generation: float, process: Child, listens: str) -> None:
        """In a thread of its own: wait until a child listens."""
        try:
            body, _ = process.call(
                "serve", {"device": asdict(member.device), "endpoint": listens},
                timeout_s=self._limits.start_s,
            )  # fmt: skip
        except EdgertError as error:
            message = error.message
            self._loop.post(lambda: self._lost_life(member, generation, message))
        else:
            self._loop.post(lambda: self._spawned(member, generation, process, str(body["endpoint"])))

    def _spawned(self, member: Member, generation: float, process: Child, endpoint: str) -> None:
        if member.started_s != generation or member.process is not process:
            return

        def gone() -> None:
            words = process.ending().message
            self._loop.post(lambda: self._lost_life(member, generation, words))

        member.unwatch = watch(process.pid, gone, self._loop.apart)
        self._greet(member, endpoint, process.pid)

    def _greet(self, member: Member, endpoint: str, pid: int) -> None:
        member.endpoint, member.pid = endpoint, pid
        facts = {"heartbeat_s": self._limits.heartbeat_s}
        if not self._mail.send(endpoint, self._mail.hello(self._who, self._life, facts, listens=True)):
            generation = member.started_s
            self._loop.post(lambda: self._lost_life(member, generation, f"{endpoint} cannot be reached"))

    def _meet(self, member: Member, generation: float) -> None:
        """In a thread of its own: greet an executor that this process did not start, and hear it, since it may not
        reach our inbox.
        """
        endpoint = member.place.endpoint
        hello = self._mail.hello(self._who, self._life, {"heartbeat_s": self._limits.heartbeat_s}, listens=False)
        try:
            sent = self._mail.send(endpoint, hello)
        except EdgertError as error:
            message = error.message
            self._loop.post(lambda: self._lost_life(member, generation, message))
            return
        if not sent:
            self._loop.post(lambda: self._lost_life(member, generation, f"nobody answers at {endpoint}"))
            return
        for answer in self._mail.answers(endpoint):
            if isinstance(answer, Speaks):
                words = mismatch(endpoint, answer).message
                self._loop.post(partial(self._lost_life, member, generation, words))
                continue
            # What it calls its own inbox (0.0.0.0, or an address behind a router) is not how it is reached.
            known = replace(answer, endpoint=endpoint) if isinstance(answer, Welcome) else answer
            self._loop.post(partial(self._heard, known))

    def welcome(self, member: Member, message: Welcome) -> None:
        """It answered our greeting."""
        member.state, member.life, member.heard_s = "up", message.life, time.monotonic()
        member.near = message.host == self._mail.host
        if member.place.endpoint:
            self._mail.spare(member.endpoint)
            if member.near:
                generation = member.started_s
                words = "its process ended"
                member.unwatch = watch(
                    message.pid, lambda: self._loop.post(lambda: self._lost_life(member, generation, words)),
                    self._loop.apart,
                )  # fmt: skip

    def part(self, member: Member) -> None:
        """Tell one that somebody else started that it is not needed here any more."""
        if member.up and member.place.endpoint:
            self._mail.send(member.endpoint, Bye(self._who, self._life, "closed"))

    def _late(self, member: Member, generation: float) -> None:
        if member.state == "starting" and member.started_s == generation:
            self._lost(member, f"it did not answer within {self._limits.start_s:.0f} s of its start")

    def _lost_life(self, member: Member, generation: float, reason: str) -> None:
        if member.started_s == generation:
            self._lost(member, reason)
