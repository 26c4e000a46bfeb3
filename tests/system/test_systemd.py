"""The Debian package under a real systemd: `make test-systemd` builds it, boots a container and runs these.

EDGERT_DEBS names the folder of the packages (`make deb`).

Figures that are printed are times of this machine; no test judges them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cross.systemd import container as systemd
from cross.systemd.container import Container
from edgert.data import path as data

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CACHE = Path(
    os.environ.get("EDGERT_CI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgert-ci"
)
INSIDE = ("/usr/bin/python3", "/share/inside_container.py")
FAULTS = "/run/faults"

pytestmark = [
    pytest.mark.skipif(os.environ.get("EDGERT_SYSTEMD") != "1", reason="run by `make test-systemd`"),
    pytest.mark.skipif(bool(systemd.missing()), reason=f"no container can be booted: it {systemd.missing()}"),
]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_in(tmp_path_factory.mktemp("share"))


def share_in(folder: Path) -> Path:
    """What the container sees as /share: two versions of the package, models, and what asks the daemon."""
    folder.chmod(0o755)
    package = folder / "old.deb"
    shutil.copy(package_of("amd64"), package)
    raise_version(package, folder / "new.deb")
    shutil.copy(HERE / "inside_container.py", folder)
    shutil.copytree(HERE / "faults", folder / "faults")
    for name in ("digits_i8.tflite", "digits_f32.tflite"):
        shutil.copy(data(name), folder)
    return folder


def package_of(architecture: str) -> Path:
    """The package that is to be tried."""
    return next(Path(os.environ["EDGERT_DEBS"]).glob(f"edgert_*_{architecture}.deb"))


def raise_version(package: Path, to: Path) -> None:
    """The same package as the next version."""
    tree = to.with_suffix(".tree")
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join(f"{line.rstrip()}+next\n" if line.startswith("Version:") else line for line in lines))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, to], check=True, capture_output=True)
    shutil.rmtree(tree)


@pytest.fixture(scope="module")
def fresh(share: Path) -> Iterator[Container]:
    """A booted container with nothing installed yet."""
    with Container(systemd.make_root(CACHE), share=share) as container:
        yield container


@pytest.fixture(scope="module")
def box(fresh: Container) -> Container:
    """The package installed, one model served, faults on demand, and a watchdog that bites soon."""
    fresh.run("dpkg", "-i", "/share/old.deb")
    fresh.run("mkdir", "-p", FAULTS, "/etc/systemd/system/edgert.service.d")
    drop_in = "[Service]\nEnvironment=PYTHONPATH=/share/faults\nWatchdogSec=3\nTimeoutAbortSec=1\n"
    put(fresh, "/etc/systemd/system/edgert.service.d/test.conf", drop_in)
    fresh.run("cp", "/share/digits_i8.tflite", "/var/lib/edgert/models/digits.tflite")
    fresh.run("systemctl", "daemon-reload")
    fresh.run("systemctl", "restart", "edgert")
    return fresh


@pytest.fixture(autouse=True)
def _no_fault_outlives_its_test(request: pytest.FixtureRequest, share: Path) -> Iterator[None]:
    yield
    (share / "stop").unlink(missing_ok=True)
    if "box" in request.fixturenames:
        request.getfixturevalue("box").run("find", FAULTS, "-type", "f", "-delete", check=False)


def put(box: Container, place: str, text: str) -> None:
    box.run("sh", "-c", f"cat >{place} <<'END'\n{text}\nEND")


def ask(box: Container, *what: str) -> dict[str, Any]:
    """What `inside_container.py` says."""
    return dict(json.loads(box.run(*INSIDE, *what).stdout.splitlines()[-1]))


def answer(box: Container) -> dict[str, Any]:
    """One answered request for the model."""
    got = ask(box, "ask", "digits")
    assert "receipt" in got, got
    return got


def until_answered(box: Container) -> dict[str, Any]:
    return ask(box, "until", "digits")


def wait_for(what: str, look: Any, limit_s: float = 60.0) -> Any:
    """What `look` gives once it is true."""
    until_s = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < until_s, f"{what}: not within {limit_s} s"
        time.sleep(0.05)
    return found


def main_pid(box: Container) -> int:
    return int(box.show("edgert", "MainPID")["MainPID"])


def kill(box: Container, unit: str = "edgert") -> None:
    """SIGKILL its main process, whichever that is by now."""
    box.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", unit)


def figure(name: str, seconds: float) -> None:
    sys.stdout.write(f"figure: {name}: {seconds:.2f} s\n")


# ---- what is installed


def test_units_are_well_formed_and_hardly_exposed(box: Container) -> None:
    for file, unit in (
        ("edgert.service", "edgert.service"),
        ("edgert-executor@.service", "edgert-executor@npu:0.service"),
    ):
        box.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", f"/lib/systemd/system/{file}")
        # In tenths: 30 is an exposure of 3.0.
        box.run("systemd-analyze", "security", "--threshold=30", unit)


def test_installing_starts_the_daemon_which_waits_for_models(fresh: Container, box: Container) -> None:
    assert box.show("edgert", "ActiveState", "UnitFileState") == {"ActiveState": "active", "UnitFileState": "enabled"}


def test_a_model_in_the_folder_is_answered_for(box: Container) -> None:
    got = answer(box)
    assert got["receipt"]["targets"][0].startswith("litert@cpu:0/i8")
    assert [len(row) for row in got["outputs"]["probabilities"]] == [10]


def test_the_daemon_runs_as_nobody_in_particular(box: Container) -> None:
    status = box.run("cat", f"/proc/{main_pid(box)}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["Uid"].split()[0]) >= 61184  # systemd's range for dynamic users
    assert fields["CapEff"].strip("0") == ""
    assert fields["NoNewPrivs"] == "1"


def test_only_the_group_may_use_the_socket(box: Container) -> None:
    box.run("sh", "-c", "id one || useradd -G edgert one; id other || useradd other")
    member = box.run("runuser", "-u", "one", "--", *INSIDE, "ask", "digits").stdout
    stranger = box.run("runuser", "-u", "other", "--", *INSIDE, "ask", "digits").stdout
    assert "receipt" in json.loads(member)
    assert json.loads(stranger)["error"] == "PeerUnreachable"


def test_completion_and_manual_are_there(box: Container) -> None:
    script = (
        ". /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/edgert; "
        "COMP_WORDS=(edgert dae) COMP_CWORD=1; _edgert_completion edgert; echo ${COMPREPLY[@]}"
    )
    assert "daemon" in box.run("bash", "-c", script).stdout
    # The container's base leaves manuals out; the package has them.
    pages = box.run("dpkg", "-L", "edgert").stdout
    assert "/usr/share/man/man1/edgert-daemon.1.gz" in pages


# ---- what may happen


def test_it_answers_soon_after_the_start(box: Container) -> None:
    wait_for("a measured plan, which is remembered", lambda: digits(box).get("measured"))
    box.run("systemctl", "stop", "edgert")
    began_s = time.monotonic()
    box.run("systemctl", "start", "edgert")
    ready_s = time.monotonic() - began_s
    until_answered(box)
    figure("first answer after the unit's start, the asking program's own start included", time.monotonic() - began_s)
    figure("ready after the unit's start", ready_s)


def test_after_a_kill_it_is_back_and_clients_find_it(box: Container, share: Path) -> None:
    pid = main_pid(box)
    asking = box.start(*INSIDE, "stream", "digits", "2")
    assert asking.stdout is not None
    wait_for("the first answer", lambda: "receipt" in json.loads(asking.stdout.readline()))
    killed_s = time.monotonic()
    kill(box)
    outcomes = []
    while not outcomes or "error" in outcomes[-1]:
        outcomes.append(json.loads(asking.stdout.readline()))
        if len(outcomes) == 1 and "receipt" in outcomes[0]:
            outcomes.clear()  # answered before the kill
            if main_pid(box) not in (0, pid):
                break
    figure("answered again after kill -9", time.monotonic() - killed_s)
    (share / "stop").touch()
    asking.communicate(timeout=60)
    assert main_pid(box) not in (0, pid)
    assert {got["error"] for got in outcomes if "error" in got} <= {"PeerUnreachable"}


def test_a_model_that_hangs_has_the_watchdog_restart_the_daemon(box: Container) -> None:
    pid = main_pid(box)
    box.run("touch", f"{FAULTS}/hang")
    began_s = time.monotonic()
    wait_for("the watchdog", lambda: main_pid(box) != pid)
    figure("the watchdog (3 s) acts on a hang", time.monotonic() - began_s)
    assert "Watchdog timeout" in box.run("journalctl", "-u", "edgert", "--no-pager").stdout
    box.run("rm", f"{FAULTS}/hang")
    assert "receipt" in until_answered(box)


def test_a_lost_device_degrades_and_nothing_is_restarted(box: Container) -> None:
    wait_for("a measured plan", lambda: digits(box).get("measured"))
    pid, before = main_pid(box), answer(box)
    box.run("touch", f"{FAULTS}/lost")
    after = answer(box)
    assert (before["receipt"]["degraded"], after["receipt"]["degraded"]) == (False, True)
    assert "device is gone" in after["receipt"]["reason"]
    assert after["outputs"] == before["outputs"]
    assert main_pid(box) == pid
    box.run("rm", f"{FAULTS}/lost")
    box.run("systemctl", "restart", "edgert")


def test_a_restart_costs_clients_no_request(box: Container, share: Path) -> None:
    put(box, f"{FAULTS}/slow", "0.3")
    pid = main_pid(box)
    asking = box.start(*INSIDE, "stream", "digits", "6")
    wait_for("requests in flight", lambda: ask(box, "status")["waiting"] >= 4)
    box.run("systemctl", "restart", "edgert")
    until_answered(box)
    (share / "stop").touch()
    said, _ = asking.communicate(timeout=60)
    outcomes = [json.loads(line) for line in said.splitlines()]
    # What was taken is answered before the end, and what came later waits for the next one.
    assert [got for got in outcomes if "error" in got] == []
    assert len(outcomes) >= 6
    assert main_pid(box) != pid
    assert "requests unanswered" not in box.run("journalctl", "-u", "edgert", "--no-pager").stdout


def test_a_new_file_is_taken_up_and_a_broken_one_leaves_the_old_answering(box: Container) -> None:
    before = answer(box)
    box.run("sh", "-c", "head -c 1500 /share/digits_f32.tflite >/var/lib/edgert/models/digits.tflite")
    state = wait_for("the refusal", lambda: digits(box) if digits(box)["error"] else None)
    assert (state["condition"], state["version"]) == ("stale", 1)
    assert answer(box)["outputs"] == before["outputs"]
    kill(box)  # nor does a power cut bring it up
    assert until_answered(box)["outputs"] == before["outputs"]
    box.run("cp", "/share/digits_f32.tflite", "/var/lib/edgert/models/digits.tflite")
    wait_for("version 2", lambda: digits(box)["version"] == 2)
    assert answer(box)["receipt"]["targets"][0].startswith("litert@cpu:0/f32")


def digits(box: Container) -> dict[str, Any]:
    status = wait_for("the daemon", lambda: (got := ask(box, "status")) and "models" in got and got)
    return dict(status["models"].get("digits") or {"error": None, "version": None})


# ---- other versions, and the end


def test_an_upgrade_in_place_keeps_models_and_clients(box: Container, share: Path) -> None:
    version = digits(box)["version"]
    asking = box.start(*INSIDE, "stream", "digits", "2")
    assert asking.stdout is not None
    wait_for("the first answer", lambda: "receipt" in json.loads(asking.stdout.readline()))
    box.run("dpkg", "-i", "/share/new.deb")
    answered = until_answered(box)
    (share / "stop").touch()
    said, _ = asking.communicate(timeout=60)
    outcomes = [json.loads(line) for line in said.splitlines()]
    assert "receipt" in outcomes[-1]
    assert {got["error"] for got in outcomes if "error" in got} <= {"PeerUnreachable", "Closed", "ModelNotServed"}
    assert box.run("dpkg-query", "-W", "-f", "${Version}", "edgert").stdout.endswith("+next")
    assert digits(box)["version"] == version
    assert "outputs" in answered


def test_removing_stops_it_and_purging_leaves_the_models_alone(box: Container) -> None:
    box.run("dpkg", "-r", "edgert")
    assert box.show("edgert", "ActiveState")["ActiveState"] == "inactive"
    assert box.run("test", "-e", "/usr/lib/edgert", check=False).returncode != 0
    assert box.run("test", "-d", "/var/lib/private/edgert-daemon", check=False).returncode == 0
    box.run("dpkg", "-P", "edgert")
    left = box.run("find", "/var/lib", "/var/cache", "/etc", "/usr", "-name", "*edgert*", check=False).stdout.split()
    # The administrator's own: his models, the drop-in of these tests.
    assert set(left) <= {"/var/lib/edgert", "/etc/systemd/system/edgert.service.d"}
    box.run("test", "-s", "/var/lib/edgert/models/digits.tflite")
