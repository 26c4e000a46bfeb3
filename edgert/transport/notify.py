"""What a service tells systemd: ready, stopping, still making progress.

The protocol is sd_notify(3): datagrams of `KEY=value` lines to the Unix socket that `NOTIFY_SOCKET` names, a leading
'@' standing for an abstract one. Without that variable nobody listens, and nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)


def tell(**lines: str | int) -> bool:
    """Send `KEY=value` lines, such as `tell(READY=1, STATUS="3 models answer")`.

    Returns:
        Whether somebody took them. False where no service manager listens; an address that cannot be reached is
        logged, since the service can do its work without.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    text = "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in lines.items())
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.sendto(text.encode(), name)
    except OSError as error:
        _log.warning("systemd cannot be told %s: %s: %s", next(iter(lines), "anything"), address, error)
        return False
    return True


def watchdog_s() -> float | None:
    """Within how many seconds `WATCHDOG=1` must be told again and again; None when nobody watches this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process, whose environment this one inherited
    try:
        limit_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return limit_us / 1e6 if limit_us > 0 else None
