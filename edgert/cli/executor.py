"""`edgert executor`."""

from __future__ import annotations

import logging
import signal
from typing import Annotated

import typer

from edgert.cli.daemon import log_for_operators

DeviceOption = Annotated[str, typer.Option(help="The device to own, such as npu:0: see `edgert probe`.")]
EndpointOption = Annotated[
    str,
    typer.Option(
        "--endpoint", "--listen", help="Where to listen: ipc:///run/edgert/npu.sock, or tcp://0.0.0.0:5599 with keys."
    ),
]
GroupOption = Annotated[bool, typer.Option("--group", help="Let members of the socket folder's group connect.")]
CoresOption = Annotated[str, typer.Option(help="Logical CPUs to keep to, such as 2,3; else all.")]
WaitingOption = Annotated[int, typer.Option(min=1, help="Requests that may wait.")]


def executor(
    device: DeviceOption,
    endpoint: EndpointOption,
    group: GroupOption = False,
    cores: CoresOption = "",
    waiting: WaitingOption = 4096,
) -> None:
    """Own a device and run segments of plans on it for others, until SIGTERM. Prints nothing; logs to stderr.

    Over TCP both ends must know each other's key: see `edgert keys`.
    """
    from dataclasses import replace

    from edgert.devices.probe import probe
    from edgert.execution.executor import Executor, own_cores
    from edgert.execution.mail import Mail
    from edgert.transport import notify

    log_for_operators()
    machine = probe()
    own = machine.device(device)
    if cores:
        own = replace(own, cores=_numbers(cores))
        own_cores(own.cores)
    made = Executor(own, Mail.bound(endpoint, group=group), most_waiting=waiting, reaches=machine.reaches)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: made.drain())
    logging.getLogger(__name__).info("the executor of %s listens at %s", device, made.endpoint)
    notify.tell(READY=1, STATUS=f"owns {device} ({own.name})")
    made.serve()
    notify.tell(STOPPING=1)


def _numbers(text: str) -> tuple[int, ...]:
    from edgert.errors import OptionError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise OptionError(f"--cores {text!r} is no list of CPUs.", "Write numbers with commas, such as 2,3.")
    return tuple(map(int, parts))
