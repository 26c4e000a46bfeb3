"""Where a run's outputs go: computed into shared memory where the library can and the readers map it, and told to the
next executors in messages that were written before the run began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from edgert.errors import Garbage
from edgert.execution.arrivals import Job
from edgert.execution.checks import check_values
from edgert.execution.mail import Mail
from edgert.graph import Value
from edgert.tensor import Array, Data, DType, numpy_dtype
from edgert.transport.messages import Descriptor, Done, Message, Work
from edgert.transport.shm import ORDERED, Slot
from edgert.transport.sockets import Draft


class Outgoing:
    """Of one run at a time; belongs to the executor's loop."""

    def __init__(self, mail: Mail) -> None:
        """Args:
        mail: that sends.
        """
        self._mail = mail
        self._job: Job | None = None
        self._slots: dict[str, Slot] = {}
        self._drafts: dict[int, Draft] = {}
        """Send of the leg -> its message, where all its values have slots."""
        self._declared: Sequence[Value] = ()
        self._sound: set[str] = set()
        """Values whose slots are as they were declared."""
        self._ahead = False

    def begin(self, job: Job, declared: Sequence[Value] = (), *, ahead: bool = False) -> None:
        """The next run is this one's.

        Args:
            job: which.
            declared: what it must give.
            ahead: show the readers its messages before the run, so that they see by themselves when it is over.
        """
        self._job, self._declared, self._ahead = job, declared, ahead and ORDERED

    def place(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
        """See `edgert.devices.backend.Place`."""
        assert self._job is not None  # `begin` was called
        if name in self._slots:  # it asks again, and will not use what it got before
            self._slots.pop(name).drop()
        slot = self._mail.room(_readers(self._job, name), dtype, shape)
        if slot is None:
            return np.empty(shape, numpy_dtype(dtype))
        self._slots[name] = slot
        self._hold_against(name, slot.array)
        self._draft(self._job, name)
        return slot.array

    def _hold_against(self, name: str, array: Array) -> None:
        """Look before the run at what need not be looked at after it."""
        self._sound.discard(name)
        with suppress(Garbage):  # is told after the run, if it gives that
            check_values("", {name: array}, [value for value in self._declared if value.name == name], sizes=False)
            self._sound.add(name)

    def is_sound(self, outputs: Mapping[str, Data]) -> bool:
        """Whether a run gave what was declared, in slots that were seen before it to be of that type and shape; where
        not, `checks` tells.
        """
        return all(
            value.name in self._sound and outputs.get(value.name) is self._slots[value.name].array
            for value in self._declared
        )

    def hand_on(self, job: Job, outputs: Mapping[str, Data], run_s: float) -> None:
        """Send every reader what it reads."""
        work = job.work
        published: dict[str, Descriptor] = {}
        if job is self._job:  # else what was promised for another one would come true
            for name, slot in self._slots.items():
                if outputs[name] is slot.array:
                    published[name] = slot.publish(_readers(job, name))
        for index, send in enumerate(job.leg.sends):
            draft = self._drafts.get(index)
            if draft is not None and all(name in published for name in send.values):
                self._mail.post(send.endpoint, draft)
                continue
            home, values = self._mail.place(send.endpoint, {name: outputs[name] for name in send.values}, published)
            if send.segment:
                message: Message = Work(
                    work.request, work.attempt, work.deadline_s, work.route, send.segment, values, home
                )
            else:
                message = Done(work.request, work.attempt, work.segment, values, home, {"run_s": run_s})
            self._mail.send(send.endpoint, message)
        self.drop()

    def drop(self) -> None:
        """Give back what a run did not fill; harmless for slots that were published."""
        for slot in self._slots.values():
            slot.drop()
        self._slots.clear()
        self._drafts.clear()
        self._sound.clear()

    def _draft(self, job: Job, name: str) -> None:
        """Write the messages for which this value was the last to get a slot. After the run, which has thrown this code
        out of the caches, only the time left is to be filled in.
        """
        work = job.work
        for index, send in enumerate(job.leg.sends):
            if send.segment and name in send.values and all(each in self._slots for each in send.values):
                values = {each: self._slots[each].promised for each in send.values}
                message = Work(
                    work.request, work.attempt, work.deadline_s, work.route, send.segment, values, self._mail.endpoint
                )
                draft = self._mail.draft(send.endpoint, message)
                if draft is not None:
                    self._drafts[index] = draft
                    if self._ahead:
                        draft.announce()


def _readers(job: Job, name: str) -> list[str]:
    return [send.endpoint for send in job.leg.sends if name in send.values]
