"""A client's connection, where `tests/test_client.py` does not reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgert.transport.sockets import Inbox

FORGETS = """
import sys, time
from edgert.transport.line import Line
from edgert.transport.messages import Call
line = Line(sys.argv[1])
line.send(Call(1, "status", {}, {}, time.monotonic() + 60), 60)
"""


def test_a_program_that_ends_without_closing_its_connection_ends_quietly(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    inbox = Inbox(f"ipc://{tmp_path}/silent.sock")
    done = subprocess.run([sys.executable, "-c", FORGETS, inbox.endpoint], capture_output=True, text=True, check=False)
    inbox.close()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
