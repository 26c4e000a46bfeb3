"""What this box has: `glance` in milliseconds, `probe` after having tried everything.

`probe` finds the devices, asks each backend in a child process which of them it drives, runs the conformance network on
each of those ways, measures what is left standing, and remembers it all until a device, a driver or a version changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgert import devices, store
from edgert.devices import cpu, gpu, hosts, npu, stamp
from edgert.errors import CacheUnwritable, ChildError, EdgertError, MissingPackage, OptionError
from edgert.machine import BackendInfo, Device, Link, Machine, Reach

if TYPE_CHECKING:  # the child's machinery is needed only when something is really tried
    from edgert.devices.remote import Remote

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Told what is going on and which share is done."""

PLUGINS: tuple[str, ...] = ("onnxruntime-ep-webgpu", "onnxruntime-qnn")
"""Distributions that give a backend further devices: their versions are part of the cache's key."""
SIMULATED = "simulated"
"""The backend that no discovery finds a device for."""
RULES = 3
"""Raised when what `probe` does changes, so that nothing older is read from a cache."""
ASK_LIMIT_S = 60.0
"""For a backend to say what it drives; importing one on a cold, small board takes tens of seconds."""
WORKERS = 4


def probe(*, refresh: bool = False, cache_dir: Path | None = None, progress: Progress | None = None) -> Machine:
    """The devices, the backends, which of them count right together, and how fast the devices are.

    Seconds the first time, and well under one from the cache, which knows it by a key over everything that can be read
    cheaply and would change the answer: devices, drivers, versions, the variables that hide devices.

    Args:
        refresh: look again, whatever the cache says.
        cache_dir: else EDGERT_CACHE, else the platform's cache folder.
        progress: told what is going on.

    Raises:
        CacheUnwritable: a cache folder was asked for and cannot be written.
        OptionError: the hosts file is malformed.
    """
    folder = store.folder(cache_dir)
    known = None if refresh else _unchanged(folder)
    if known is not None:
        return with_hosts(known)
    seen = glance()
    path = _entry(folder, seen)
    machine = None if refresh else _cached(path)
    if machine is None:
        machine = _look(seen, progress or (lambda _message, _share: None))
        _keep(path, machine.to_json(), must=cache_dir is not None)
    if folder is not None and path is not None:
        _keep(stamp.path(folder), {"machine": path.name}, must=False)
    return with_hosts(machine)


def with_hosts(machine: Machine) -> Machine:
    """The machine with what the hosts file names, asked anew each time: another box comes and goes.

    Raises:
        OptionError: the file is malformed.
    """
    named = hosts.named()
    if not named:
        return machine
    from edgert.devices import far  # which loads the sockets

    return far.joined(machine, named)


def known_or_glance(cache_dir: Path | None = None) -> Machine:
    """What an earlier `probe` found, if nothing changed since, else `glance`: milliseconds either way."""
    known = _unchanged(cache_dir)
    if known is not None:
        return known
    seen = glance()
    return _cached(_entry(cache_dir, seen)) or seen


def glance(root: Path = Path("/")) -> Machine:
    """The CPU and which backends are installed, in milliseconds; nothing is run, so every reach is 'untested'.

    GPUs and NPUs are left to `probe`. `root` is where /proc and /sys are read.
    """
    clusters = cpu.discover(root)
    infos = tuple(installed(name) for name in devices.names())
    ours = [info.name for info in infos if info.usable and info.name in devices.BACKENDS and info.name != SIMULATED]
    return Machine(
        architecture=architecture(),
        devices=clusters,
        backends=infos,
        reaches=tuple(Reach(name, device.id) for name in ours for device in clusters),
        system=_system(root),
    )


def architecture(kernel: str = "", pointer_bytes: int = struct.calcsize("P")) -> str:
    """What this Python runs as, as pip names it: 'x86_64', 'aarch64', 'armv7l'.

    The kernel tells its own: a 32-bit Raspberry Pi OS has a 64-bit one, and takes no wheel for aarch64.

    Args:
        kernel: `platform.machine()` of another machine; else of this one.
        pointer_bytes: of the Python there.
    """
    kernel = kernel or platform.machine()
    return _NARROW.get(kernel, kernel) if pointer_bytes == 4 else kernel


_NARROW: Mapping[str, str] = {  # 64-bit kernel -> what its 32-bit programs run as
    "aarch64": "armv7l", "arm64": "armv7l", "armv8l": "armv7l", "armv8b": "armv7l", "x86_64": "i686", "AMD64": "x86",
    "riscv64": "riscv32",
}  # fmt: skip


def installed(name: str) -> BackendInfo:
    """A backend by what the packages' metadata say, without importing its library."""
    if name not in devices.BACKENDS:  # another's package is not even imported: that is left to a child
        return BackendInfo(name, _foreign_version(name))
    try:
        return BackendInfo(name, devices.backend(name).version())
    except MissingPackage as error:
        return BackendInfo(name, reason=error.message, remedy=error.remedy)


def _foreign_version(name: str) -> str:
    for point in metadata.entry_points(group=devices.ENTRY_POINTS, name=name):
        if point.dist is not None:
            return point.dist.version
    return ""


def _look(seen: Machine, say: Progress) -> Machine:
    """Everything that takes time: find, ask, check, measure."""
    from edgert.devices import peaks

    say("looking for devices", 0.0)
    found = (*seen.devices, *gpu.discover(), *npu.discover())
    infos, reaches = examine(found, [info for info in seen.backends if info.name != SIMULATED], say)
    others = tuple(info for info in seen.backends if info.name == SIMULATED)
    done = []
    for number, device in enumerate(found):
        say(f"measuring {device.id}", 0.8 + 0.2 * number / len(found))
        done.append(peaks.measured(device, reaches))
    reaches = (*reaches, *nobody(found, reaches))
    machine = replace(seen, devices=tuple(done), backends=(*infos, *others), reaches=reaches)
    machine = replace(machine, links=links_of(machine, say))
    say("done", 1.0)
    return machine


def links_of(machine: Machine, say: Progress) -> tuple[Link, ...]:
    """Between the CPU and each other device that some backend drives right; none of those whose child fails."""
    from edgert.devices import links
    from edgert.devices.remote import Remote

    good = {reach.device for reach in machine.reaches if reach.health == "ok" and not reach.device.startswith("cpu:")}
    remotes = {device.id: Remote(f"link to {device.id}") for device in machine.devices if device.id in good}
    if not remotes:
        return ()
    say(f"measuring the links to {', '.join(remotes)}", 0.98)
    try:
        return links.measure(remotes, machine)
    except ChildError as error:
        log.warning("links were not measured: %s", error)
        return ()
    finally:
        for remote in remotes.values():
            remote.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    info: BackendInfo
    reaches: tuple[Reach, ...] = ()


def examine(
    found: Sequence[Device], infos: Iterable[BackendInfo], say: Progress, limit_s: float = ASK_LIMIT_S
) -> tuple[tuple[BackendInfo, ...], tuple[Reach, ...]]:
    """Ask each backend what it drives, and check the answers; each in a child of its own, several at once.

    Returns the backends with what came of asking them, and the reaches with their health, both in order.
    """
    from edgert.devices.conformance import cases
    from edgert.devices.remote import Remote

    infos = list(infos)
    hired: list[Remote] = []

    def hire(purpose: str) -> Remote:
        hired.append(Remote(purpose))
        return hired[-1]

    pool = ThreadPoolExecutor(WORKERS)
    try:
        remotes = {info.name: hire(f"probing {info.name}") for info in infos if info.usable}
        asked = list(pool.map(lambda info: _ask(remotes.get(info.name), info, found, limit_s), infos))
        # Read here, once: two threads that parse at a time end in a SystemError on Python 3.11 (cpython#106905).
        cases()
        say("checking the numbers of each device", 0.2)
        jobs: list[Future[list[Reach]]] = []
        for answer in asked:
            for reaches in _apart(answer.reaches):
                remote = remotes[answer.info.name] if _is_plain(reaches[0]) else hire(f"probing {_way(reaches[0])}")
                jobs.append(pool.submit(_check, remote, reaches, found, limit_s))
        for number, job in enumerate(as_completed(jobs), 1):
            told = ", ".join(f"{_way(reach)} {reach.health}" for reach in job.result())
            say(told, 0.2 + 0.6 * number / len(jobs))
        return tuple(answer.info for answer in asked), tuple(reach for job in jobs for reach in job.result())
    finally:
        # Who interrupts does not wait for a driver that hangs: nothing more starts, and the children are killed.
        pool.shutdown(wait=False, cancel_futures=True)
        for remote in hired:
            remote.close()


def _apart(reaches: Iterable[Reach]) -> list[list[Reach]]:
    """What is checked in one child, one after another: the CPU's plain kernels.

    Every other way has a child to itself, for its driver may take the child down.
    """
    reaches = list(reaches)
    plain = [reach for reach in reaches if _is_plain(reach)]
    others = [[reach] for reach in reaches if not _is_plain(reach)]
    return [plain, *others] if plain else others


def _is_plain(reach: Reach) -> bool:
    return reach.device.startswith("cpu:") and not reach.variant


def _check(remote: Remote, reaches: Sequence[Reach], found: Sequence[Device], limit_s: float) -> list[Reach]:
    from edgert.devices import conformance

    by_id = {device.id: device for device in found}
    return [conformance.check(remote, reach, by_id[reach.device], limit_s) for reach in reaches]


def _way(reach: Reach) -> str:
    """'onnxruntime+webgpu@gpu:0'."""
    return f"{reach.backend}{'+' if reach.variant else ''}{reach.variant}@{reach.device}"


def _ask(remote: Remote | None, info: BackendInfo, found: Sequence[Device], limit_s: float) -> _Asked:
    """What a backend drives. The CPU is asked for apart: a driver that crashes the library costs only itself."""
    if remote is None:
        return _Asked(info)
    clusters = [device for device in found if device.kind == "cpu"]
    others = [device for device in found if device.kind != "cpu"]
    try:
        version, reaches = remote.reaches(info.name, clusters, timeout_s=limit_s)
    except MissingPackage as error:
        return _Asked(replace(info, version="", reason=error.message, remedy=error.remedy))
    except EdgertError as error:
        log.warning("backend %s is not usable: %s", info.name, error)
        remedy = error.remedy or f"pip install --force-reinstall the packages of {info.name}"
        return _Asked(replace(info, version="", reason=error.message, remedy=remedy))
    if others:
        try:
            reaches += remote.reaches(info.name, others, timeout_s=limit_s)[1]
        except ChildError as error:
            log.warning("backend %s died of looking at %s: %s", info.name, ", ".join(d.id for d in others), error)
            reaches += tuple(Reach(info.name, device.id, "", "failed", error.message) for device in others)
    return _Asked(replace(info, version=version), reaches)


def nobody(found: Iterable[Device], reaches: Iterable[Reach]) -> Iterable[Reach]:
    """For each device that no backend says a word about, a row that gives the reason; its backend is 'none'."""
    mentioned = {reach.device for reach in reaches}
    for device in found:
        if device.id not in mentioned:
            reason = device.attributes.get("lacks") or "no backend that is installed drives it"
            yield Reach("none", device.id, "", "failed", reason)


def _entry(folder: Path | None, seen: Machine) -> Path | None:
    """Where what `probe` finds on this box, in this Python, is remembered; None without a cache."""
    if folder is None:
        return None
    facts = {
        "rules": RULES,
        "edgert": _version("edgert"),
        "machine": [seen.fingerprint, seen.architecture, seen.system],
        "backends": [(info.name, info.version, info.reason) for info in seen.backends],
        "plugins": [_version(name) for name in PLUGINS],
        "gpus": gpu.facts(),
        "npus": [(device.name, device.driver, dict(device.attributes)) for device in npu.discover()],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "machines" / f"{digest}.json"


def _unchanged(folder: Path | None) -> Machine | None:
    """What was found when everything that the stamp covers was as it is now."""
    filed = store.read_or_drop(stamp.path(folder)) if folder is not None else None
    return _cached(folder / "machines" / str(filed.get("machine"))) if filed and folder is not None else None


def _cached(path: Path | None) -> Machine | None:
    content = store.read_or_drop(path) if path is not None else None
    if content is None:
        return None
    try:
        return Machine.from_json(content)
    except OptionError as error:
        log.warning("cache entry %s is of no use (%s): probing again", path, error.message)
        return None


def _keep(path: Path | None, content: Mapping[str, object], *, must: bool) -> None:
    """Remember what was found; that it cannot be is an error only when the caller named the folder."""
    if path is None:
        return
    try:
        store.write_json(path, content)
    except CacheUnwritable as error:
        if must:
            raise
        log.warning("%s The next probe starts anew.", error.message)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _system(root: Path) -> str:
    """Kernel and distribution, for people; and that the programs are narrower than the kernel, where they are."""
    kernel = f"{platform.system()} {platform.release()}"
    if platform.machine() != architecture():
        kernel += f" ({platform.machine()}, running {architecture()} programs)"
    try:
        release = platform.freedesktop_os_release() if root == Path("/") else {}
    except OSError:  # not Linux, or a minimal image
        release = {}
    return f"{kernel}, {release['PRETTY_NAME']}" if "PRETTY_NAME" in release else kernel
