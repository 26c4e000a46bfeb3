"""Where a run's outputs go: computed into shared memory where the library can and the readers map it, and told to the
next executors in messages that were written before the run began.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgert.execution.arrivals import Job
from edgert.execution.mail import Mail
from edgert.tensor import Array, Data, DType, numpy_dtype
from edgert.transport.messages import Done, Message, Work
from edgert.transport.shm import Slot
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

    def begin(self, job: Job) -> None:
        """The next run is this one's."""
        self._job = job

    def place(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
        """See `edgert.devices.backend.Place`."""
        assert self._job is not None  # `begin` was called
        if name in self._slots:  # it asks again, and will not use what it got before
            self._slots.pop(name).drop()
        slot = self._mail.room(_readers(self._job, name), dtype, shape)
        if slot is None:
            return np.empty(shape, numpy_dtype(dtype))
        self._slots[name] = slot
        self._draft(self._job, name)
        return slot.array

    def hand_on(self, job: Job, outputs: Mapping[str, Data], run_s: float) -> None:
        """Send every reader what it reads."""
        work = job.work
        published = {
            name: slot.publish(_readers(job, name))
            for name, slot in self._slots.items()
            if outputs[name] is slot.array
        }  # fmt: skip
        for index, send in enumerate(job.leg.sends):
            draft = self._drafts.get(index)
            if draft is not None and job is self._job and all(name in published for name in send.values):
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


def _readers(job: Job, name: str) -> list[str]:
    return [send.endpoint for send in job.leg.sends if name in send.values]
