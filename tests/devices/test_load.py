"""Other work on the machine is seen: against a made /proc, and against a real busy process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgert.devices.load import ForeignLoad


def write_proc(folder, busy_ticks, own):
    (folder / "stat").write_text(f"cpu  {busy_ticks} 0 0 777 5 0 0 0 0 0\ncpu0 1 2 3\n")
    for pid, ticks in own.items():
        (folder / str(pid)).mkdir(exist_ok=True)
        (folder / str(pid) / "stat").write_text(f"{pid} (a) name) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 9\n")


def test_only_what_others_used_counts(tmp_path, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr("edgert.devices.load.time.monotonic", lambda: now_s)
    tick = os.sysconf("SC_CLK_TCK")
    write_proc(tmp_path, 0, {os.getpid(): 0, 7: 0})
    load = ForeignLoad(tmp_path)
    load.start([7])
    write_proc(tmp_path, 4 * tick, {os.getpid(): tick, 7: tick})
    now_s += 4.0
    assert load.cores([7]) == pytest.approx(0.5)


def test_without_a_kernel_that_tells_nobody_disturbs(tmp_path):
    load = ForeignLoad(tmp_path)
    load.start([])
    assert load.cores([]) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_busy_process_is_foreign_until_it_is_ours():
    """One process spins: seen as foreign, and not when its pid is named."""
    spin = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        spin.stdout.readline()
        foreign, named = ForeignLoad(), ForeignLoad()
        foreign.start([])
        named.start([spin.pid])
        total = 0
        while foreign.cores([]) <= named.cores([spin.pid]) + 0.05:  # ends when a few ticks were charged to it
            total += 1
    finally:
        spin.kill()
        spin.communicate()
    assert foreign.cores([]) > 0
