"""A process that may open few more files makes its first sockets. A program: says what came of it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import edgert  # noqa: F401 - imports open files too
from edgert.errors import EndpointError
from edgert.transport.sockets import Inbox, Outbox


def main(folder, left):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    held = []
    while True:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range(left):
        os.close(held.pop())
    sockets = []
    try:
        sockets.append(Inbox(f"ipc://{folder}/a"))
        sockets.append(Outbox(f"ipc://{folder}/a"))
    except EndpointError as error:
        said = error.message
    else:
        said = "made"
    for descriptor in held:
        os.close(descriptor)
    for socket in sockets:
        socket.close()
    Inbox(f"ipc://{folder}/a").close()  # it can, now that it may
    sys.stdout.write(said)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
