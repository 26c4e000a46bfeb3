"""What runs on an emulated board: `checks.py NAME ARGUMENTS`; the last line written is the answer, as JSON.

`checks.py all '[["NAME", "ARGUMENT", ...], ...]'` does several in one process, since starting one takes seconds under
emulation: a line for each, the check with its answer, or with the error that it ended with.

On the public API wherever it has words for it. `tests/cross/test_boards.py` judges the answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert import data, errors
from edgert.devices import cpu

BUDGET_S = 1.0
"""For one load: under emulation times mean nothing, so the race need not be long."""
OUT = Path(os.environ.get("EDGERT_OUT", "/srv/out"))
"""Where arrays and files are left."""
KNOWN = Path("/srv/known")
"""Where EDGERT_MODELS is mounted; an absolute path leads elsewhere."""
IMAGES = 16
"""Of the bundled digits."""


def clusters() -> Any:
    """The CPU as the board's whole description has it, whatever cores this machine allows."""
    return [
        {"name": device.name, "cores": device.cores, "features": device.features, "memory_bytes": device.memory_bytes}
        for device in cpu.discover(Path("/srv/board"))
    ]


def probe() -> Any:
    """What `edgert probe` finds: backends with the reason of those that are not usable, and which ways are right."""
    machine = edgert.probe()
    return {
        "architecture": machine.architecture,
        "devices": [device.name for device in machine.devices],
        "features": [device.features for device in machine.devices],
        "memory_bytes": [device.memory_bytes for device in machine.devices],
        "backends": {info.name: {"version": info.version, "reason": info.reason} for info in machine.backends},
        "reaches": {f"{reach.backend}{'+' * bool(reach.variant)}{reach.variant}": [reach.health, reach.detail]
                    for reach in machine.reaches},
    }  # fmt: skip


def digits(name: str, *targets: str) -> Any:
    """Load, plan and run a bundled digits model: its plan, how often it is right, its answers on the first images."""
    pixels, labels = _digits()
    with edgert.load(data.path(name), budget_s=BUDGET_S, targets=targets or None) as model:
        feeds = [_feed(model.inputs[0], image) for image in pixels]
        results = [model.run(feed) for feed in feeds]
        receipt = results[0].receipt
        rows = np.concatenate([np.asarray(next(iter(result.values()))) for result in results])
        np.save(OUT / f"{name}.npy", rows)
        return {
            "targets": [str(target) for target in receipt.targets],
            "verified": receipt.verified,
            "degraded": receipt.degraded,
            "fallbacks": [str(target) for target in model.plan.fallbacks],
            "limit_bytes": model.plan.residency.limit_bytes if model.plan.residency else 0,
            "right": int((rows.argmax(axis=1) == labels).sum()),
            "of": len(labels),
        }


def known(file: str, feeds: str, expected: str, *targets: str) -> Any:
    """A model with a known answer, each target alone: the greatest distance in steps, and whether it is `verified`."""
    inputs = dict(np.load(KNOWN / feeds))
    answers = dict(np.load(KNOWN / expected))
    distances = {}
    for target in targets:
        with edgert.load(KNOWN / file, budget_s=BUDGET_S, targets=[target]) as model:
            result = model.run(inputs)
            steps = max(_steps(result[name], answer) for name, answer in answers.items())
            distances[target] = [steps, result.receipt.verified]
    return distances


def lacking(path: str) -> Any:
    """A model with an operator that LiteRT has in floats alone: how each target fared, and the answer."""
    with edgert.load(path, budget_s=BUDGET_S, targets=["litert@*/1t"]) as model:
        result = model.run(np.arange(64, dtype=np.int8)[None] * 2)
        return {
            "targets": [str(target) for target in result.receipt.targets],
            "outcomes": {str(row.target): row.outcome for row in model.plan.candidates},
            "values": np.asarray(next(iter(result.values()))).tolist(),
        }


def recovery() -> Any:
    """Kill the process that holds a model: the loss is told as itself, and the next start answers as before."""
    from edgert.devices.backend import Source
    from edgert.devices.remote import Remote
    from edgert.machine import Machine
    from edgert.profile import Target

    machine: Machine = edgert.probe()
    way = next(
        reach for reach in machine.reaches if reach.health == "ok" and reach.backend in ("litert", "onnxruntime")
    )
    file = data.path("digits_i8.tflite" if way.backend == "litert" else "digits_i8.onnx")
    with edgert.load(file, budget_s=BUDGET_S, targets=[f"{way.backend}@*"]) as model:
        plan = model.plan
        feed = {model.inputs[0].name: _feed(model.inputs[0], _digits()[0][0])}
        expected = model.run(feed)
    source = Source(file, plan.format, plan.inputs, plan.outputs, plan.own_precision)
    target = Target(way.backend, "cpu:0", plan.own_precision, 1)
    with closing(Remote("victim")) as remote:
        runnable = remote.prepare(source, target, machine.devices[0])
        before = runnable.run(feed)
        os.kill(remote.pid, signal.SIGKILL)
        told = _error(lambda: runnable.run(feed))
        after = remote.prepare(source, target, machine.devices[0]).run(feed)
    same = all(np.array_equal(before[name], expected[name]) and np.array_equal(after[name], expected[name])
               for name in expected)  # fmt: skip
    return {"told": told, "same": same}


def executor() -> Any:
    """A model through an executor of its own over ipc; the executor is killed, and no request is lost by it.

    The planner keeps CPUs in the caller's process, so the board's CPU stands for an accelerator too, as npu:0.
    """
    from dataclasses import replace

    from edgert.devices.backend import Source
    from edgert.execution.fleet import Fleet
    from edgert.execution.limits import Limits
    from edgert.execution.start import start
    from edgert.measure import REMOTES

    file = data.path("digits_i8.tflite")
    with edgert.load(file, budget_s=BUDGET_S) as model:
        feed = {model.inputs[0].name: _feed(model.inputs[0], _digits()[0][0])}
        expected = dict(model.run(feed))
        plan = model.plan
    REMOTES.close()  # what stays are executors
    machine = edgert.probe()
    machine = replace(machine, devices=(*machine.devices, replace(machine.devices[0], id="npu:0", kind="npu")))
    (segment,) = plan.segments
    accelerated = replace(segment, target=replace(segment.target, device="npu:0"))
    plan = replace(plan, segments=(accelerated,), fallbacks=(segment.target,), controls=None)
    source = Source(file, plan.format, plan.inputs, plan.outputs, plan.own_precision)
    patient = Limits(fewest_hang_s=120.0, lapse_s=120.0, start_s=300.0, prepare_s=300.0)
    fleet = Fleet(patient)
    with closing(start(plan, source, machine, fleet=fleet)) as pipeline:
        before = pipeline.run(feed)
        first = _children()
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        during = pipeline.run(feed)
        deadline_s = time.monotonic() + 300
        while not any(event.kind == "restored" for event in pipeline.events()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        after = pipeline.run(feed)
        second = _children()
        kinds = [event.kind for event in pipeline.events()]
    answers = [made.outputs for made in (before, during, after)]
    same = all(np.array_equal(each[name], expected[name]) for each in answers for name in expected)
    reasons = [before.reason, during.reason, after.reason]
    return {"same": same, "first": first, "second": second, "reasons": reasons, "events": kinds}


def _children() -> list[int]:
    """Processes that this one started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:  # ended meanwhile
            continue
        if f"PPid:\t{os.getpid()}\n" in text and "zombie" not in text:
            found.append(int(path.parent.name))
    return found


def memory_limit(name: str, limit_bytes: str) -> Any:
    """A model under a memory limit: refused with the figures, or run in turns."""

    def attempt() -> None:
        with edgert.load(data.path(name), budget_s=BUDGET_S, memory_limit_bytes=int(limit_bytes)) as model:
            model.run(_feed(model.inputs[0], _digits()[0][0]))

    return _error(attempt)


def orphan() -> Any:
    """A child of a parent that is killed: dead too, though nobody closed anything."""
    import subprocess

    program = (
        "import os, signal; from edgert.devices.remote import Remote; remote = Remote('orphan'); "
        "remote.call('empty'); print(remote.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=600)
    pid = int(told.stdout)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8"):
            return {"gone": True}
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return {"gone": False}


def refusal(path: str, *targets: str) -> Any:
    """Load what cannot be loaded here: the error's kind and words."""

    def attempt() -> None:
        with edgert.load(path, budget_s=BUDGET_S, targets=targets or None) as model:
            model.run(_feed(model.inputs[0], _digits()[0][0]))

    return _error(attempt)


def compile_bundle(name: str) -> Any:
    """A bundle of a bundled model for this board, at /srv/out/digits.edgert."""
    from edgert.compile import compile_model

    made = compile_model(data.path(name), OUT / "digits.edgert", budget_s=BUDGET_S)
    return {"targets": [str(target) for target in made.plan.targets], "architecture": made.machine.architecture}


def run_bundle(path: str) -> Any:
    """Open a bundle and run it: who answers, and whether as a fallback."""
    with edgert.load(path) as model:
        result = model.run(_feed(model.inputs[0], _digits()[0][0]))
        np.save(OUT / "answers.npy", np.asarray(next(iter(result.values()))))
        receipt = result.receipt
        return {
            "targets": [str(target) for target in receipt.targets],
            "degraded": receipt.degraded,
            "reason": receipt.reason,
            "readers": sorted({"onnx", "onnx_ir", "ortools"} & set(sys.modules)),
        }


def clock() -> Any:
    """The year that this board believes in, and whether a model loads, is remembered and loads again in it."""
    answers = []
    for _ in range(2):
        with edgert.load(data.path("digits_i8.tflite"), budget_s=BUDGET_S) as model:
            answers.append(np.asarray(next(iter(model.run(_feed(model.inputs[0], _digits()[0][0])).values()))))
            plan = model.plan.id
    return {"year": time.gmtime().tm_year, "same": bool(np.array_equal(*answers)), "plan": plan}


def resident(path: str, target: str) -> Any:
    """Resident memory of the guest after one inference on a plan that an earlier load made; see below for how."""
    with edgert.load(path, budget_s=BUDGET_S, targets=[target]) as model:
        model.run({value.name: np.zeros(value.shape, value.dtype) for value in model.inputs})
        return {"bytes": _guest_resident_bytes(), "targets": [str(item) for item in model.plan.targets],
                "readers": sorted({"onnx", "onnx_ir", "ortools"} & set(sys.modules))}  # fmt: skip


def _guest_resident_bytes() -> int:
    """Resident bytes of the guest's own pages.

    QEMU shows the guest's mappings in /proc/self/maps and its own, the translated code among them, in
    /proc/self/smaps; a 64-bit guest lies at its own addresses in QEMU's. So what counts are the mappings of smaps
    that lie within those of maps.
    """
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        first, last = (int(word, 16) for word in line.split()[0].split("-"))
        spans.append((first, last))
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(word, 16) for word in head.split("-"))
            inside = any(first < end and start < last for start, end in spans)
        elif head == "Rss:" and inside:
            total += int(line.split()[1]) * 1024
    return total


def _digits() -> tuple[Any, Any]:
    with np.load(data.path("digits.npz")) as arrays:
        images = next(arrays[name] for name in arrays.files if arrays[name].ndim == 3)
        labels = next(arrays[name] for name in arrays.files if arrays[name].ndim == 1)
    return images[:IMAGES], labels[:IMAGES]


def _feed(value: Any, image: Any) -> Any:
    """One grey image of 0 to 16, as a digits model's only input wants it."""
    pixels = image.astype(np.float32) / 16
    if value.quantization is not None and value.dtype in ("int8", "uint8"):
        limits = np.iinfo(value.dtype)
        scale, zero = value.quantization.scales[0], value.quantization.zero_points[0]
        pixels = np.clip(np.round(pixels / scale) + zero, limits.min, limits.max).astype(value.dtype)
    return pixels.reshape([1 if not isinstance(size, int) else size for size in value.shape])


def _steps(got: Any, expected: Any) -> float:
    """Distance in units of the last place of an integer output; of a float one, the greatest difference."""
    got, expected = np.asarray(got), np.asarray(expected)
    kind = np.int64 if expected.dtype.kind in "iu" else np.float64
    return float(np.abs(got.astype(kind) - expected.astype(kind)).max())


def _error(attempt: Callable[[], object]) -> Mapping[str, str]:
    try:
        attempt()
    except errors.EdgertError as error:
        return {"kind": type(error).__name__, "message": error.message, "remedy": error.remedy or ""}
    return {"kind": "", "message": "nothing was raised", "remedy": ""}


CHECKS: Mapping[str, Callable[..., Any]] = {
    check.__name__: check
    for check in (clusters, probe, digits, known, lacking, recovery, executor, memory_limit, orphan, refusal,
                  compile_bundle, run_bundle, clock, resident)
}  # fmt: skip


def everything(works: list[list[str]]) -> None:
    """Each check in turn; one that ends with an error leaves the others be."""
    for work in works:
        try:
            told = {"answer": CHECKS[work[0]](*work[1:])}
        except Exception:  # noqa: BLE001 - whatever it is, it is told as the check's own
            told = {"failed": traceback.format_exc()}
        sys.stdout.write(f"\n{json.dumps({'work': work, **told})}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "all":
        everything(json.loads(sys.argv[2]))
    else:
        sys.stdout.write(f"\n{json.dumps(CHECKS[sys.argv[1]](*sys.argv[2:]))}\n")
