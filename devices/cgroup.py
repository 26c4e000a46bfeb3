"""What control groups leave of the box: processors and memory that this process may really use.

Both generations are read (v1: one hierarchy a controller; v2: one for all), and every group from this
process's own up to the mount, because a limit anywhere above holds as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Limits:
    """The tightest limits over all groups that hold this process."""

    cpus: float | None = None
    """Processor time per time: 1.5 is one and a half cores. None without a quota."""
    memory_bytes: int | None = None
    """None without a limit."""


@dataclass(frozen=True, slots=True)
class _Mount:
    controllers: frozenset[str]
    """Of a v1 hierarchy; empty for v2."""
    root: PurePosixPath
    """Which group appears at `point` (a container without a namespace of its own sees only its subtree)."""
    point: PurePosixPath
    unified: bool


def limits(root: Path = Path("/")) -> Limits:
    """The limits on this process, read below `root` (tests give a folder that holds a proc and a sys)."""
    mounts = tuple(_mounts(root))
    groups = _groups(root)
    cpus = [quota for folder in _folders(root, mounts, groups, "cpu") if (quota := _quota(folder)) is not None]
    memory = [size for folder in _folders(root, mounts, groups, "memory") if (size := _memory(folder)) is not None]
    return Limits(min(cpus, default=None), min(memory, default=None))


def memory_left_bytes(root: Path = Path("/")) -> int | None:
    """What the tightest group leaves before its kernel would kill: limit - used, the cached files that it can drop
    (inactive_file, as the kernel's own estimate of available memory counts them) not counted as used. None without a
    limit.
    """
    mounts, groups = tuple(_mounts(root)), _groups(root)
    left = [
        size - _used(folder)
        for folder in _folders(root, mounts, groups, "memory")
        if (size := _memory(folder)) is not None
    ]
    return max(0, min(left)) if left else None


def _used(folder: Path) -> int:
    text = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    used = int(text) if text.isdigit() else 0
    # v1 counts the groups below under names of their own; v2 has no such name, and counts them always.
    names = ("total_inactive_file", "inactive_file")
    counts = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if line.count(" ") == 1)
    droppable = next((int(counts[name]) for name in names if counts.get(name, "").isdigit()), 0)
    return max(0, used - droppable)


def _mounts(root: Path) -> Iterator[_Mount]:
    """Where the hierarchies are mounted, by /proc/self/mountinfo (proc(5) gives its fields)."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 5 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        unified = tail[0] == "cgroup2"
        controllers = frozenset() if unified or len(tail) < 3 else frozenset(tail[2].split(","))
        yield _Mount(controllers, PurePosixPath(_plain(fields[3])), PurePosixPath(_plain(fields[4])), unified)


def _groups(root: Path) -> dict[str, PurePosixPath]:
    """Controller -> this process's group; '' for the unified hierarchy."""
    found = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in [""] if number == "0" else controllers.split(","):
            found[controller] = PurePosixPath(path)
    return found


def _folders(
    root: Path, mounts: tuple[_Mount, ...], groups: dict[str, PurePosixPath], controller: str
) -> Iterator[Path]:
    """Folders of every group that holds this process, innermost first, in whichever hierarchy has the controller."""
    for mount in mounts:
        group = groups.get("" if mount.unified else controller)
        if group is None or not (mount.unified or controller in mount.controllers):
            continue
        top = root / str(mount.point).lstrip("/")
        folder = top / _below(group, mount.root)
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _below(group: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """The group's path relative to the mount; the mount itself when the group lies outside what is mounted."""
    if group.is_relative_to(mounted) and ".." not in group.parts:
        return group.relative_to(mounted)
    return PurePosixPath()


def _quota(folder: Path) -> float | None:
    if both := _text(folder / "cpu.max"):
        quota, _, period = both.partition(" ")
    else:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # 'max' (v2) and '-1' (v1) mean none
    return int(quota) / int(period)


def _memory(folder: Path) -> int | None:
    text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    if not text.isdigit():
        return None
    size = int(text)
    return None if size >= 1 << 60 else size  # v1 writes 'no limit' as the largest page-aligned 63-bit number


def _text(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # not mounted, or not readable by us: then it limits nothing that we could know of
        return []


def _plain(field: str) -> str:
    r"""A path as mountinfo writes it, spaces as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
