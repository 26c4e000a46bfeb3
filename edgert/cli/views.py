"""What a machine, a plan and a receipt look like to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgert.machine import BackendInfo, Device, Link, Machine, Reach
from edgert.plan import Plan, Receipt
from edgert.profile import OutputError, Row, Target
from edgert.units import rate_text, size_text, time_text

_HEALTH = {"ok": "green", "wrong": "bold red", "failed": "red", "untested": "yellow"}
_LOW_PRECISION = ("bf16", "f16")


def machine_view(machine: Machine) -> RenderableType:
    """Devices, then backends, which of them drives which device and whether it counts right there, and the links."""
    title = f"[bold]{escape(machine.system or machine.architecture)}[/]"
    return Group(
        title,
        f"[dim]fingerprint {machine.fingerprint}[/]",
        _devices(machine.devices),
        _backends(machine.backends),
        _reaches(machine.reaches),
        *([_links(machine.links)] if machine.links else []),
    )


def table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table in the house look: no frame, a rule under the head.

    Args:
        columns: their heads.
        right: those that are flush right, and never broken.
        whole: others that are never broken.
    """
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in (*right, *whole))
    return made


def _devices(devices: Sequence[Device]) -> RenderableType:
    made = table("device", "what it is", "memory", "copy", "peak", right=("memory", "copy"), whole=("device", "peak"))
    for device in devices:
        made.add_row(
            f"[bold]{device.id}[/]",
            "\n".join(_device_lines(device)),
            size_text(device.memory_bytes),
            rate_text(device.bandwidth_bytes_per_s or 0, "B"),
            "\n".join(f"{rate_text(peak, 'op')} {dtype}" for dtype, peak in device.peak_ops_per_s.items()) or "-",
        )
    return made


def _device_lines(device: Device) -> Iterable[str]:
    yield escape(device.name) + (" [yellow](software: true numbers, no speed)[/]" if device.software else "")
    if device.cores:
        yield f"{len(device.cores)} cores: {ranges(device.cores)}"
    if device.features:
        yield f"[dim]{escape(' '.join(device.features))}[/]"
    if device.driver:
        yield f"[dim]{escape(device.driver)}[/]"


def ranges(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) as '0-2,5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _backends(backends: Sequence[BackendInfo]) -> RenderableType:
    made = table("backend", "version", "", whole=("backend", "version"))
    for backend in backends:
        if backend.usable:
            made.add_row(f"[bold]{escape(backend.name)}[/]", f"[green]{escape(backend.version)}[/]", "")
        else:
            made.add_row(f"[bold]{escape(backend.name)}[/]", "[red]missing[/]", _reason(backend.reason, backend.remedy))
    return made


def _reason(reason: str, remedy: str) -> str:
    return escape(reason) + (f"\n[dim]try:[/] {escape(remedy)}" if remedy else "")


def _reaches(reaches: Sequence[Reach]) -> RenderableType:
    if not reaches:
        return Text("no backend reaches a device", style="red")
    made = table("device", "driven by", "numbers", "", whole=("device", "driven by", "numbers"))
    for reach in sorted(reaches, key=lambda reach: (reach.device, reach.backend, reach.variant)):
        way = f"{reach.backend}+{reach.variant}" if reach.variant else reach.backend
        made.add_row(f"[bold]{reach.device}[/]", escape(way), f"[{_HEALTH[reach.health]}]{reach.health}[/]",
                     escape(reach.detail))  # fmt: skip
    return made


def _links(links: Sequence[Link]) -> RenderableType:
    made = table("from", "to", "latency", "bandwidth", right=("latency", "bandwidth"), whole=("from", "to"))
    for link in links:
        made.add_row(f"[bold]{link.source}[/]", f"[bold]{link.sink}[/]", time_text(link.latency_s),
                     rate_text(link.bandwidth_bytes_per_s, "B"))  # fmt: skip
    return made


def plan_view(plan: Plan) -> RenderableType:
    """What runs where and how fast, how it was checked, and everything that was considered."""
    parts: list[RenderableType] = [f"plan [bold]{plan.id}[/] for {plan.objective}, precision {plan.precision}"]
    parts += [Padding(line, (0, 0, 0, 2)) for line in _plan_lines(plan)]
    parts += [Padding(f"[yellow]note:[/] {escape(text)}", (0, 0, 0, 2)) for text in plan.notes]
    if plan.candidates:
        parts += candidates_view(plan.candidates, set(plan.targets))
    return Group(*parts)


def _plan_lines(plan: Plan) -> Iterable[str]:
    for target in dict.fromkeys(plan.targets):
        instances = Counter(plan.segments[instance.segment].target for instance in plan.instances)[target]
        times = f" x {instances} instances" if instances > 1 else ""
        yield f"[dim]runs on[/]   [bold green]{target}[/]{times}"
    if plan.measured_s:
        rate = f", {plan.items_per_s:.0f} items/s" if plan.items_per_s else ""
        yield f"[dim]measured[/]  {time_text(plan.measured_s)} a request{rate}"
    check = plan.verification
    if check.verified:
        yield f"[dim]checked[/]   against {escape(check.reference)}: {quality(check.errors, plan.targets[0])}"
    else:
        yield f"[dim]checked[/]   [yellow]no[/] {escape(check.reason)}"
    if plan.fallbacks:
        yield f"[dim]falls to[/]  {', '.join(str(target) for target in plan.fallbacks)}"


def candidates_view(rows: Sequence[Row], chosen: set[Target]) -> list[RenderableType]:
    """Two tables: what was timed, fastest first, and what is out and why."""
    timed = [row for row in rows if row.outcome == "ok" and row.timing is not None]
    out = [row for row in rows if row not in timed]
    parts: list[RenderableType] = []
    if timed:
        numbers = ("p50", "p95", "off by", "memory")
        made = table("", "target", *numbers, right=numbers, whole=("", "target"))
        for row in timed:
            assert row.timing is not None
            style = "bold green" if row.target in chosen else ""
            made.add_row("→" if row.target in chosen else "", str(row.target), time_text(row.timing.p50_s),
                         time_text(row.timing.p95_s), quality(row.errors, row.target), size_text(row.memory_bytes),
                         style=style)  # fmt: skip
        parts.append(made)
    if out:
        made = table(" ", "target", "out", "why", whole=("target", "out"))
        for row in out:
            made.add_row(" ", str(row.target), row.outcome, escape(row.reason), style="dim")
        parts.append(made)
    return parts


def quality(errors: Sequence[OutputError], target: Target) -> str:
    """The worst of the outputs, in the measure that its kind is judged by."""
    if not errors:
        return "-"
    for error in errors:
        if error.mismatch:
            return escape(error.mismatch)
    lsb, share = max(error.lsb for error in errors), max(error.range_fraction for error in errors)
    if lsb:
        return f"{lsb} LSB"
    if share == 0:
        return "equal"
    if target.precision in _LOW_PRECISION:
        return f"{min(error.sqnr_db for error in errors):.0f} dB"
    return f"{share:.0e} of range"


def receipt_line(receipt: Receipt) -> str:
    """One line: who answered, how fast, by which plan, and what to know about it."""
    targets = " → ".join(str(target) for target in receipt.targets)
    state = "[green]verified[/]" if receipt.verified else "[yellow]not verified[/]"
    if receipt.degraded:
        state += f", [bold yellow]degraded[/]: {escape(receipt.reason)}"
    if receipt.throttled:
        state += f" · [yellow]throttled[/]: {escape(receipt.throttled)}"
    if receipt.turns:
        state += f" · {receipt.turns} segments took turns in memory"
    return f"[dim]receipt[/]  [bold]{targets}[/] in {time_text(receipt.run_s)} · plan {receipt.plan} · {state}"
