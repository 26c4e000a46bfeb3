"""Guest instructions per inference, by board, model, backend and precision: `python -m cross.icount [--write]`.

Counted under QEMU by cross/icount.c, so they are the same on every machine to a fraction of a percent. They say how
much work a target makes of a model on that kind of core; they are never a time. Without `--write` the counts are held
against the committed table, cross/icount.json: more than 3% above it in any row fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cross import sysroot
from cross.board import load
from cross.emulate import Emulated, GuestFailed

TABLE = sysroot.HERE / "icount.json"
DOCUMENT = sysroot.CHECKOUT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by `make icount WRITE=1` -->", "<!-- end of instruction counts -->"
GATE = 0.03
"""Greatest rise of a row over the table; the counts themselves repeat to half a percent."""
OWN_SHARE = 0.01
"""Most that edgert itself may add to an INT8 MobileNetV2 inference."""
BOARDS = ("pi3", "pi4", "pi5", "pi2")
"""One for each kind of core: a Zero 2 W counts as a Pi 3, an RK3588 as a Pi 5."""
SHARED = ("mlperf_tiny_ic_resnet_f32.tflite", "mlperf_tiny_ic_resnet_int8.tflite", "mobilenet_v2_1.0_224_quant.tflite")
"""Of EDGERT_MODELS; their rows are left out where it is not set."""
CALLS = {"litert": "mobilenet_v2_1.0_224_quant.tflite", "onnxruntime": "mobilenet_v2-i8.onnx"}
"""INT8 MobileNetV2, for edgert's own share of a call."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is counted on one board with one set of packages."""

    model: str
    """File name."""
    backend: str
    variant: str = ""
    call: bool = False
    """Whether edgert's own share of a call is asked, not an inference."""

    def key(self, board: str, environment: str) -> str:
        """Its row's name: 'pi4 kws-i8.tflite litert' or 'pi4 ... call'."""
        library = "tflite-runtime" if environment in ("arm64-tflite-runtime", "armhf") else self.backend
        variant = f"+{self.variant}" if self.variant else ""
        return f"{board} {self.model} {library}{variant}{' call' if self.call else ''}"


def models(folder: Path) -> tuple[str, ...]:
    """The models that are counted, laid into `folder`: the zoo's convolutional ones, and those of EDGERT_MODELS."""
    from bench.zoo import build

    made = []
    for form, names in (("onnx", ("kws", "mobilenet_v2")), ("tflite", ("kws", "person"))):
        for name in names:
            for precision in ("f32", "i8"):
                built = build(name, precision, sysroot.cache() / "zoo", format=form)  # type: ignore[arg-type]
                plain = f"{name}-{precision}.{form}"  # without the builder's version: rows outlive it
                (folder / plain).write_bytes(built.read_bytes())
                made.append(plain)
    shared = os.environ.get("EDGERT_MODELS")
    for name in SHARED if shared else ():
        (folder / name).write_bytes(Path(str(shared), name).read_bytes())
        made.append(name)
    return tuple(made)


def jobs(environment: str, files: Sequence[str]) -> list[Job]:
    """What an environment's libraries can count."""
    tflite = [name for name in files if name.endswith(".tflite")]
    found = [Job(name, "litert", variant) for name in tflite for variant in ("", "builtin")]
    backends = ["litert"]
    if environment == "arm64":
        found += [Job(name, "onnxruntime") for name in files if name.endswith(".onnx")]
        backends.append("onnxruntime")
    if environment != "arm64-tflite-runtime":
        found += [Job(CALLS[name], name, call=True) for name in backends if CALLS[name] in files]
    return found


def count(board: str, environment: str, folder: Path, work: Sequence[Job]) -> dict[str, int]:
    """Instructions of each job's row; for a call, those of edgert itself: the whole without the library's own.

    Raises:
        GuestFailed: the program on the board ended with an error.
    """
    with tempfile.TemporaryDirectory() as scratch:
        emulated = Emulated(
            load(board), environment, Path(scratch),
            binds={folder: "/srv/models", sysroot.plugin().parent: "/srv/plugin"},
            variables={
                "QEMU_PLUGIN": "/srv/plugin/icount.so,out=/srv/out/marks",
                "PYTHONHASHSEED": "0",  # the order of sets and dicts moves counts by a percent
            },
        )  # fmt: skip
        out = Path(scratch, "out")
        out.mkdir()
        described = [
            {"model": f"/srv/models/{job.model}", "backend": job.backend, "variant": job.variant, "call": job.call}
            for job in work
        ]
        (out / "jobs.json").write_text(json.dumps(described), encoding="utf-8")
        done = emulated.run("/srv/checks/count.py", "/srv/out/jobs.json")
        if done.returncode:
            raise GuestFailed(f"counting on {board}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        refused = json.loads(done.stdout.splitlines()[-1])
        for number, reason in refused.items():
            sys.stderr.write(f"{work[int(number)].key(board, environment)}: {reason}\n")
        marks = dict(_marks((out / "marks").read_text(encoding="ascii")))
    counts = {}
    for number, job in enumerate(work):
        if str(number) in refused:
            continue
        whole = _one_run(marks, 2 * number)
        counts[job.key(board, environment)] = whole - _one_run(marks, 2 * number + 1) if job.call else whole
    return counts


def _marks(text: str) -> Iterable[tuple[int, int]]:
    for line in text.splitlines():
        number, value = line.split()
        yield int(number), int(value)


def _one_run(marks: Mapping[int, int], job: int) -> int:
    """The least of the runs, less what a mark costs: the first two marks have nothing between them."""
    values = [marks[number] for number in sorted(marks) if number // 100 == job]
    empty, *runs = (after - before for before, after in itertools.pairwise(values))
    return min(runs) - empty


def compare(counts: Mapping[str, int], table: Mapping[str, int]) -> list[str]:
    """What is wrong: rows that rose beyond the gate or that the table has not, calls that cost more than they may."""
    wrong = []
    for key, value in counts.items():
        if key.endswith(" call"):
            share = value / counts[key.removesuffix(" call")]
            if share > OWN_SHARE:
                wrong.append(f"{key}: edgert's own instructions are {share:.2%} of the inference")
        elif key not in table:
            wrong.append(f"{key}: not in {TABLE.name}; write it with `make icount WRITE=1`")
        elif value > table[key] * (1 + GATE):
            wrong.append(f"{key}: {value:,} instructions, {value / table[key] - 1:+.1%} against the table")
    return wrong


def ratios(table: Mapping[str, int]) -> list[tuple[str, float]]:
    """INT8 over float, for each board and model, on the library's best way of each."""
    best: dict[tuple[str, str, str], int] = {}
    for key, value in table.items():
        if key.endswith(" call"):
            continue
        board, model, _ = key.split()
        precision = "i8" if any(mark in model for mark in ("-i8", "int8", "quant")) else "f32"
        plain = model.replace("-i8", "").replace("-f32", "").replace("_int8", "").replace("_f32", "")
        found = (board, plain, precision)
        best[found] = min(value, best.get(found, value))
    return [
        (f"{board} {model}", value / best[board, model, "f32"])
        for (board, model, precision), value in best.items()
        if precision == "i8" and (board, model, "f32") in best
    ]


def section(table: Mapping[str, int]) -> str:
    """The table for docs/benchmarks.md: models down, boards across, in millions of instructions; then the ratios."""
    inferences = {key: value for key, value in table.items() if not key.endswith(" call")}
    boards = [board for board in BOARDS if any(key.startswith(f"{board} ") for key in inferences)]
    rows = sorted({key.partition(" ")[2] for key in inferences})
    head = [f"| model | library | {' | '.join(boards)} |", f"|---|---|{'---:|' * len(boards)}"]
    lines = []
    for row in rows:
        model, library = row.split()
        cells = [f"{inferences[f'{b} {row}'] / 1e6:.2f}" if f"{b} {row}" in inferences else "" for b in boards]
        lines.append(f"| {model} | {library} | {' | '.join(cells)} |")
    seen: dict[str, dict[str, float]] = {}
    for name, ratio in ratios(table):
        board, model = name.split()
        seen.setdefault(model, {})[board] = ratio
    lines += ["", f"| INT8 over float | {' | '.join(boards)} |", f"|---|{'---:|' * len(boards)}"]
    for model, found in sorted(seen.items()):
        lines.append(f"| {model} | {' | '.join(f'{found[b]:.2f}' if b in found else '' for b in boards)} |")
    lines += ["", f"| edgert's own, a call | {' | '.join(boards)} |", f"|---|{'---:|' * len(boards)}"]
    for row in sorted({key.partition(" ")[2] for key in table if key.endswith(" call")}):
        cells = []
        for board in boards:
            own, whole = table.get(f"{board} {row}"), table.get(f"{board} {row.removesuffix(' call')}")
            cells.append(f"{own:,} ({own / whole:.2%})" if own is not None and whole else "")
        lines.append(f"| {row.removesuffix(' call')} | {' | '.join(cells)} |")
    return "\n".join([*head, *lines])


def write_section(table: Mapping[str, int]) -> None:
    """Put the table between the two marks of docs/benchmarks.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{section(table)}\n\n{END}{tail}", encoding="utf-8")


def main() -> None:
    """Count, then write the table or hold the counts against it.

    Exit codes: 0 all well; 1 a row rose, or is not in the table; 3 this machine cannot emulate (with the reason).
    """
    parser = argparse.ArgumentParser(prog="python -m cross.icount", description="Counts guest instructions.")
    parser.add_argument("--board", nargs="+", choices=BOARDS, default=list(BOARDS))
    parser.add_argument("--write", action="store_true", help="write the counts into the table")
    options = parser.parse_args()
    try:
        sysroot.require(["arm64", "armhf"])
    except sysroot.CannotEmulate as error:
        sys.stderr.write(f"icount: {error}\n")
        sys.exit(3)
    table: dict[str, int] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    counts: dict[str, int] = {}
    for found in count_all(options.board):
        counts |= found
        if options.write:  # as it comes: a board takes minutes
            TABLE.write_text(json.dumps(dict(sorted({**table, **counts}.items())), indent=2) + "\n", encoding="utf-8")
    if options.write:
        write_section({**table, **counts})
        return
    wrong = compare(counts, table)
    for line in wrong:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{len(counts)} rows counted, {len(wrong)} outside the gate of {GATE:.0%}\n")
    sys.exit(1 if wrong else 0)


def count_all(boards: Sequence[str]) -> Iterator[dict[str, int]]:
    """The rows of these boards, one set of packages after another, two of them counted side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = models(folder)
        tasks = [
            (board, environment, jobs(environment, files))
            for board in boards
            for environment in load(board).environments
            if environment != "arm64-control"
        ]
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(lambda task: count(task[0], task[1], folder, task[2]), tasks)


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        sys.exit(f"icount: {error}")
