"""Numbers for people: three digits and a unit."""

from __future__ import annotations

import math


def time_text(seconds: float) -> str:
    """'850 ns', '12.3 µs', '4.56 ms', '7.89 s'; '-' for 0 or less, which means not measured."""
    if not seconds > 0 or not math.isfinite(seconds):
        return "-"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 0.9995:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{three_digits(seconds * 1e9)} ns"


def size_text(size_bytes: float) -> str:
    """'512 B', '3.61 MB', '25.3 GB' (powers of 1000); '-' for 0."""
    return _scaled(size_bytes, "B")


def rate_text(per_second: float, unit: str) -> str:
    """'12.3 GB/s', '1.85 Tops/s'; '-' for 0."""
    text = _scaled(per_second, unit)
    return text if text == "-" else f"{text}/s"


def three_digits(number: float) -> str:
    """'1.23', '12.3', '123', '1234'."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    rounded = float(f"{number:.3g}") if abs(number) < 1000 else number  # 0.9999 has the digits of 1.00
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _scaled(number: float, unit: str) -> str:
    if not number > 0:
        return "-"
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{three_digits(number) if prefix else f'{number:.0f}'} {prefix}{unit}"
        number /= 1000
    return f"{three_digits(number)} T{unit}"
