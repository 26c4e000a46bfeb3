"""A child may crash, hang, exit or eat memory: its parent gets a typed error and stays as it was."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from edgert.errors import ChildDied, ChildTimeout, NotEnoughMemory, RunFailed, ShapeMismatch, WireError
from edgert.transport.child import Child
from tests.conftest import open_descriptors

SERVICE = "tests.transport.services:Odd"


@pytest.fixture
def child():
    with Child(SERVICE, name="the child") as made:
        yield made


def wait_until_gone(pid, timeout_s=30):
    """Until no process of that number runs: by its descriptor, so nothing is polled."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(handle):
        return bool(select.select([handle], [], [], timeout_s)[0])


def test_a_call_returns_what_the_service_returns(child):
    body, data = child.call("echo", {"a": 1}, {"x": np.arange(3), "y": None})
    assert body == {"a": 1}
    assert data["x"].tolist() == [0, 1, 2]
    assert data["y"] is None


def test_large_arrays_travel_both_ways(child):
    array = np.random.default_rng(0).integers(0, 255, 20_000_000, np.uint8)
    assert np.array_equal(child.call("echo", {}, {"x": array})[1]["x"], array)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGILL", "SIGFPE"])
def test_a_crash_names_the_signal_the_child_and_the_call(child, name):
    with pytest.raises(ChildDied, match=f"the child died of {name}.*'die'") as caught:
        child.call("die", {"signal": name})
    assert (caught.value.signal, caught.value.exit_code) == (getattr(signal, name), None)
    assert not child.alive


def test_a_real_segmentation_fault_is_a_typed_error(child):
    with pytest.raises(ChildDied, match="SIGSEGV"):
        child.call("segfault")


def test_a_kill_from_outside_is_told_from_the_kernels(child, monkeypatch):
    child.call("pid")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match="somebody killed it"):
        child.call("echo")
    monkeypatch.setattr(child, "_kills", -1)  # since then the kernel has ended a process
    with pytest.raises(ChildDied, match="the kernel was out of memory"):
        child.call("echo")


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_names_its_status(child, status):
    with pytest.raises(ChildDied, match=f"exited with status {status}") as caught:
        child.call("leave", {"status": status})
    assert (caught.value.signal, caught.value.exit_code) == (None, status)


def test_the_last_words_are_in_the_message(child):
    with pytest.raises(ChildDied, match=r"last words: .*tensor != nullptr"):
        child.call("speak_and_die", {"words": "vendor: assertion failed: tensor != nullptr"})


def test_a_dead_child_stays_dead_and_says_so_again(child):
    for _ in range(2):
        with pytest.raises(ChildDied):
            child.call("leave", {"status": 1})


def test_a_library_that_writes_without_end_blocks_nothing(child):
    assert child.call("chatter", timeout_s=60)[0] == {"done": True}


def test_a_hang_with_the_interpreter_lock_held_ends_in_a_kill(child):
    child.call("pid")
    with pytest.raises(ChildTimeout, match=r"the child: no answer to 'hang' within 0\.3 s; it was killed") as caught:
        child.call("hang", timeout_s=0.3)
    assert caught.value.timeout_s == 0.3
    assert not child.alive


def test_a_child_that_reads_no_more_is_killed_in_time(child):
    child.call("pid")
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)  # the signal takes its time
    with pytest.raises(ChildTimeout):
        child.call("echo", {}, {"x": np.zeros(20_000_000, np.uint8)}, timeout_s=0.3)
    assert not child.alive


def test_a_service_that_does_not_start_says_why():
    with Child("tests.transport.services:Nothing", name="x") as made, pytest.raises(ChildDied, match="Nothing"):
        made.call("echo")


def test_errors_of_the_tree_come_back_as_themselves(child):
    with pytest.raises(ShapeMismatch, match="odd") as caught:
        child.call("refuse")
    assert (caught.value.name, caught.value.axis, caught.value.remedy) == ("x", 1, "Make it even.")
    assert child.call("echo", {"a": 1})[0] == {"a": 1}


def test_other_exceptions_come_back_as_a_failed_run_with_their_type(child):
    with pytest.raises(RunFailed, match="ZeroDivisionError in 'throw': oops"):
        child.call("throw")
    assert child.call("echo")[0] == {}


def test_an_answer_that_cannot_be_sent_is_an_error_and_not_the_end(child):
    with pytest.raises(RunFailed, match="cannot be sent"):
        child.call("unsendable")
    assert child.call("echo", {"a": 1})[0] == {"a": 1}


def test_a_request_that_cannot_be_sent_harms_nobody(child):
    with pytest.raises(WireError):
        child.call("echo", {}, {"x": object()})
    assert child.call("echo", {"a": 1})[0] == {"a": 1}


def test_beyond_its_memory_limit_allocations_fail_and_the_child_lives():
    with Child(SERVICE, name="small", memory_limit_bytes=2 << 30) as made:
        assert made.call("allocate", {"bytes": 1 << 20})[0] == {"sum": 1 << 20}
        with pytest.raises(NotEnoughMemory, match="out of memory"):
            made.call("allocate", {"bytes": 4 << 30})
        assert made.call("allocate", {"bytes": 1 << 20})[0] == {"sum": 1 << 20}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's killer is Linux's")
def test_a_child_leaves_no_core_and_is_first_to_go_when_memory_runs_out(child):
    assert child.call("limits")[0] == {"core": 0, "oom": "1000"}


def test_a_child_has_a_session_of_its_own_so_control_c_does_not_reach_it(child):
    found = child.call("pid")[0]
    assert found["session"] == found["pid"] != os.getsid(0)


def test_control_c_in_the_parents_group_leaves_the_child_working():
    script = (
        "import os, signal\n"
        "from edgert.transport.child import Child\n"
        # a shell's background job, which a test run may be, inherits an ignored interrupt
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"with Child({SERVICE!r}) as child:\n"
        "    child.call('pid')\n"
        "    try:\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        signal.sigtimedwait([], 5)\n"
        "    except KeyboardInterrupt:\n"
        "        print(child.call('echo', {'alive': True})[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "{'alive': True}"


@pytest.mark.parametrize("hang", [False, True], ids=["idle", "holding the interpreter lock"])
def test_the_parents_death_is_the_childs(hang):
    with Child(SERVICE, name="parent") as parent:
        grandchild = parent.call("hang_grandchild", {"hang": hang})[0]["pid"]
        os.kill(parent.pid, signal.SIGKILL)
        assert wait_until_gone(grandchild)


def test_a_child_that_is_closed_is_gone_with_all_its_descriptors():
    with Child(SERVICE) as made:
        made.call("pid")
    before = open_descriptors()
    for method in ("echo", "segfault", "refuse"):
        with suppress(ChildDied, ShapeMismatch), Child(SERVICE) as made:
            made.call(method)
        assert wait_until_gone(made.pid)
    with Child(SERVICE) as made:
        pass  # closed before it was ready
    gc.collect()
    assert open_descriptors() == before


def test_closing_twice_is_harmless(child):
    child.close()
    child.close()
    assert not child.alive


def test_calls_of_several_threads_do_not_mix(child):
    wrong = []

    def work(mark):
        for number in range(30):
            body, data = child.call("echo", {"mark": mark, "number": number}, {"x": np.full(1000, mark)})
            if body != {"mark": mark, "number": number} or set(data["x"].tolist()) != {mark}:
                wrong.append(body)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_child_imports_what_its_parent_can(child, tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "class Service:\n    def handle(self, *_):\n        return {'here': True}, {}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Child("elsewhere:Service") as made:
        assert made.call("anything")[0] == {"here": True}


def test_a_child_loads_no_model_library_of_its_own_accord(child):
    modules = set(child.call("pid")[0]["modules"])
    assert not modules & {"onnx", "onnxruntime", "openvino", "ai_edge_litert", "zmq"}


def test_a_child_that_nobody_holds_any_more_is_ended() -> None:
    child = Child(SERVICE)
    child.call("echo")
    process = child._process
    del child
    gc.collect()
    assert process.poll() is not None
