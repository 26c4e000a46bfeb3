"""Heat: how warm the board is, and whether its firmware or kernel slows the processor down for it.

| sign of throttling | where | who has it |
|---|---|---|
| the firmware's flags | soc:firmware/get_throttled in sysfs, else the command vcgencmd | Raspberry Pi |
| a processor's cooling device in use | /sys/class/thermal/cooling_device* | ARM boards, ACPI |
| a count of throttling that grew | cpu*/thermal_throttle/*_throttle_count | x86 |
| a zone at its passive trip point | /sys/class/thermal/thermal_zone* | all that have zones |

A low clock alone is no sign: an idle governor lowers it, too. All is read below a root folder, so that any board can be
given.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FLAGS: Mapping[int, str] = {  # bit -> what is so now (bits 16 to 19: what was since boot, which decides nothing)
    0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit",
}  # fmt: skip
"""Of the Raspberry Pi's firmware (its documentation of `vcgencmd get_throttled`)."""
_FIRMWARE = (
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/devices/platform/soc@*/*firmware/get_throttled",
)
_VCGENCMD_LIMIT_S = 1.0
_COOLED_C = 5.0
"""A zone must fall that far below its trip point before it counts as cool again."""


@dataclass(frozen=True, slots=True)
class Heat:
    """One look at the board."""

    temperature_c: float | None = None
    """Of the warmest zone; None where there is none."""
    trip_c: float | None = None
    """The lowest temperature at which the kernel begins to slow the processor down."""
    speed: float | None = None
    """Clock of the slowest core now over its highest; None where no core tells."""
    capped: float | None = None
    """The highest clock that the kernel allows now over the highest that there is."""
    signs: tuple[str, ...] = ()
    """Of throttling now; empty when there is none."""
    counts: int = 0
    """How often the processor throttled itself since boot."""

    @property
    def warm(self) -> bool:
        """Whether it is too near to its trip point to count as cool."""
        return self.temperature_c is not None and self.trip_c is not None and (
            self.temperature_c > self.trip_c - _COOLED_C
        )  # fmt: skip

    def text(self) -> str:
        """For people: the signs, then the figures."""
        figures = [f"{self.temperature_c:.0f} °C"] if self.temperature_c is not None else []
        figures += [f"clock at {self.speed:.0%}"] if self.speed is not None else []
        return ", ".join([*self.signs, *figures])


def watchable(root: Path = Path("/")) -> bool:
    """Whether this board has anything that `look` reads."""
    return any(
        next(root.glob(pattern), None) is not None
        for pattern in (
            *_FIRMWARE, "sys/class/thermal/thermal_zone*/temp", "sys/class/thermal/cooling_device*/cur_state",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        )
    ) or _has_vcgencmd(root)  # fmt: skip


def look(root: Path = Path("/"), before: Heat | None = None) -> Heat:
    """The board now.

    Args:
        root: tests give a folder that holds a sys (and a proc).
        before: the last look: a count that grew since is a sign.
    """
    temperature_c, trip_c, zones = _zones(root)
    counts = sum(_number(path) or 0 for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_count"))
    signs = [*_firmware_signs(root), *_cooling_signs(root), *zones]
    if before is not None and counts > before.counts:
        signs.append("the processor throttled itself")
    return Heat(
        temperature_c, trip_c, _clock(root, "scaling_cur_freq"), _clock(root, "scaling_max_freq"), tuple(signs), counts
    )


@dataclass(slots=True)
class Hysteresis:
    """Turns looks into a state that does not flicker: throttled after `rise` looks in a row with a sign, not so after
    `fall` in a row without one and with every zone well below its trip point.
    """

    rise: int = 2
    fall: int = 15
    throttled: bool = False
    _run: int = 0

    def update(self, heat: Heat) -> bool:
        """Take a look into account; True when the state changed."""
        turning = not heat.signs and not heat.warm if self.throttled else bool(heat.signs)
        self._run = self._run + 1 if turning else 0
        if self._run < (self.fall if self.throttled else self.rise):
            return False
        self.throttled, self._run = not self.throttled, 0
        return True


def _firmware_signs(root: Path) -> list[str]:
    text = next((_text(path) for pattern in _FIRMWARE for path in root.glob(pattern)), "")
    if not text and _has_vcgencmd(root):
        text = _vcgencmd()
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", text)
    flags = int(match[1], 16) if match else 0
    return [name for bit, name in FLAGS.items() if flags >> bit & 1]


def _has_vcgencmd(root: Path) -> bool:
    board = _text(root / "proc/device-tree/model")
    return root == Path("/") and board.startswith("Raspberry Pi") and shutil.which("vcgencmd") is not None


def _vcgencmd() -> str:
    """What the firmware says where the kernel does not pass it on; '' when the command may not ask it."""
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=_VCGENCMD_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _cooling_signs(root: Path) -> list[str]:
    """Processors that the kernel slows down; fans are cooling devices, too, and no sign."""
    found = []
    for folder in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind = _text(folder / "type")
        state, most = _number(folder / "cur_state"), _number(folder / "max_state")
        if ("cpufreq" in kind or kind == "Processor") and state:
            found.append(f"{kind} cooled by {state} of {most or '?'} steps")
    return found


def _zones(root: Path) -> tuple[float | None, float | None, list[str]]:
    """Temperature of the warmest zone, the lowest passive trip point, and the zones that are at theirs."""
    temperatures: list[float] = []
    trips: list[float] = []
    signs: list[str] = []
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        now = _number(folder / "temp")
        if now is None:
            continue
        temperatures.append(now / 1000)
        kinds = sorted(folder.glob("trip_point_*_type"))
        points = [_number(path.with_name(path.name.replace("_type", "_temp"))) for path in kinds
                  if _text(path) == "passive"]  # fmt: skip
        own = min((point / 1000 for point in points if point and point > 0), default=None)
        if own is not None:
            trips.append(own)
            if now / 1000 >= own:
                signs.append(f"{_text(folder / 'type') or folder.name} at {now / 1000:.0f} °C of {own:.0f} °C")
    return max(temperatures, default=None), min(trips, default=None), signs


def _clock(root: Path, name: str) -> float | None:
    """The least of the cores' clocks over their highest."""
    found = []
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        now, most = _number(folder / name), _number(folder / "cpuinfo_max_freq")
        if now and most:
            found.append(now / most)
    return min(found, default=None)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:  # this board has no such file, or its sensor is asleep
        return ""
