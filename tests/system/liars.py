"""An executor that answers what cannot be an answer, when a request asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgert.execution.executor import Executor, Hosted
from edgert.execution.mail import open_values
from edgert.transport.messages import Descriptor, Done, Work

LIES = {"wrong id": 11, "wrong attempt": 12, "wrong type": 13, "wrong name": 14, "stale slot": 15}
"""As `TREACHERY` of the foreign backends."""


class Liar(Executor):
    """Lies where the first number of a request's first value says so."""

    def _hand_on(self, job, outputs, run_s):
        first = next(iter(open_values(self._mail, job.values).values()))
        number = int(self.device.id.partition(":")[2])
        code = int(first.flat[0]) - 100 * (number + 1)
        lie = next((name for name, each in LIES.items() if each == code), "")
        honest = self._mail.send

        def send(endpoint, message):
            honest(endpoint, lied(message, lie) if isinstance(message, Work | Done) else message)

        self._mail.send = send
        try:
            # For a copy of the job the messages are not those that were written before the run.
            super()._hand_on(replace(job), outputs, run_s)
        finally:
            self._mail.send = honest


def lied(message, lie):
    """The message, made wrong."""
    name, value = next(iter(message.values.items()))
    match lie:
        case "wrong id":
            return Done(message.request + 12345, message.attempt, message.segment, message.values)
        case "wrong attempt":
            return Done(message.request, message.attempt + 7, message.segment, message.values)
        case "wrong type":
            return replace(message, values={name: np.zeros((2, 4), np.int8)}, home="")
        case "wrong name":
            return replace(message, values={"nonsense": value})
        case "stale slot" if isinstance(value, Descriptor):
            return replace(message, values={name: replace(value, generation=value.generation + 2)})
    return message


class Lying(Hosted):
    """As `Hosted`."""

    kind = Liar
