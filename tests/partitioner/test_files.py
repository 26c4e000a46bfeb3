"""Problem files and the command: the published problems, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.placement_families import own_clock
from edgert.errors import Infeasible, OptionError
from edgert.partitioner.evaluate import evaluate
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.indexed import index
from edgert.partitioner.intervals import item_orders, place_intervals
from edgert.partitioner.solve import solve
from tests.partitioner.problems import file_cost, file_problems

PLACEMENT = Path(os.environ.get("EDGERT_PLACEMENT", Path(__file__).parents[2] / "../shared/placement"))
published = pytest.mark.skipif(
    not PLACEMENT.is_dir(), reason="the published placement problems are not there: set EDGERT_PLACEMENT"
)
ROWS = [  # file, contiguous, best published cost
    ("throughput/bert24_layers", False, 17.715),
    ("throughput/bert24_layers", True, 17.790),
    ("throughput/resnet50_layers", False, 33.77),
    ("throughput/resnet50_layers", True, 33.77),
    ("throughput/bert3_operators", False, 21.908),
    ("throughput/bert3_operators", True, 27.918),
    ("latency/bert24_layers", False, 100.2185),
    ("latency/bert3_operators", False, 408.48),
    ("latency/resnet50_operators", False, 839.5),
]
TINY = {
    "nodes": [
        {"id": 3, "cpuLatency": 10.0, "fpgaLatency": 1.0, "size": 4, "supportedOnFpga": 1},
        {"id": 5, "cpuLatency": 2.0, "fpgaLatency": 1.0, "size": 4, "supportedOnFpga": 0},
    ],
    "edges": [{"sourceId": 3, "destId": 5, "cost": 0.5}],
    "maxFPGAs": 1,
    "maxCPUs": 1,
    "maxSizePerFPGA": 4,
}


def _run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert.partitioner", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@published
@pytest.mark.parametrize(("name", "contiguous", "best"), ROWS)
def test_a_quick_answer_is_near_the_best_published(name: str, contiguous: bool, best: float, tmp_path: Path) -> None:
    objective: Any = name.split("/", maxsplit=1)[0]
    path = PLACEMENT / f"{name}.json"
    problem = problem_from_json(json.loads(path.read_text()), objective, contiguous)
    solution = solve(problem, 2.0, own_clock())  # its own time: other work does not count
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps({"placement": dict(solution.placement)}))
    command = [sys.executable, str(PLACEMENT / "evaluate.py"), str(path), str(answer), "--objective", objective]
    judged = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert judged["cost"] == pytest.approx(solution.cost)
    assert judged["contiguous"] or not contiguous
    assert solution.bound <= solution.cost <= 1.15 * best


@published
@pytest.mark.parametrize(("name", "contiguous", "best"), ROWS)
def test_costs_are_those_of_the_published_evaluator(name: str, contiguous: bool, best: float, tmp_path: Path) -> None:
    objective: Any = name.split("/", maxsplit=1)[0]
    path = PLACEMENT / f"{name}.json"
    problem = problem_from_json(json.loads(path.read_text()), objective, contiguous)
    indexed = index(problem)
    for assignment in list(place_intervals(indexed, item_orders(indexed)[0]))[:3]:
        placement = indexed.named(assignment)
        answer = tmp_path / "answer.json"
        answer.write_text(json.dumps({"placement": placement}))
        command = [sys.executable, str(PLACEMENT / "evaluate.py"), str(path), str(answer), "--objective", objective]
        judged = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        assert evaluate(problem, placement).cost == pytest.approx(judged["cost"])


@settings(max_examples=300, deadline=None)
@given(file_problems(), st.randoms(use_true_random=False), st.sampled_from(["throughput", "latency"]), st.booleans())
def test_costs_are_those_of_the_rules_in_words(data: dict[str, Any], chance: Any, objective: Any, joined: bool) -> None:
    contiguous = joined and objective == "throughput"
    devices = ["cpu", *(f"acc:{k}" for k in range(data["maxFPGAs"]))]
    place = {node["id"]: chance.choice(devices) for node in data["nodes"]}
    problem = problem_from_json(data, objective, contiguous)
    expected = file_cost(data, place, objective, contiguous)
    named = {str(node): device for node, device in place.items()}
    if expected == float("inf"):
        with pytest.raises(Infeasible):
            evaluate(problem, named)
    else:
        assert evaluate(problem, named).cost == pytest.approx(expected)


def test_the_command_prints_the_answer_and_its_certificate(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    done = _run(path, "--objective", "latency", "--time-limit", "60")
    answer = json.loads(done.stdout)
    assert answer.pop("seconds") >= 0
    assert answer == {"placement": {"3": "acc:0", "5": "cpu"}, "cost": 3.5, "bound": 3.5, "gap": 0.0, "proved": True}
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "JSON object"),
        ("{}", "maxFPGAs"),
        (json.dumps({**TINY, "nodes": []}), "no block"),
        (json.dumps({**TINY, "nodes": [1]}), "nodes is not a list of objects"),
        (json.dumps({**TINY, "maxFPGAs": -1}), "maxFPGAs is -1"),
        (json.dumps({**TINY, "maxFPGAs": 1e9}), "maxFPGAs is 1e+09"),
        (json.dumps({**TINY, "edges": [{"sourceId": 3, "destId": 4, "cost": 1}]}), "'4'"),
        (json.dumps({**TINY, "edges": [{"sourceId": 3, "destId": 5}]}), "'cost'"),
        (
            json.dumps({**TINY, "edges": [{"sourceId": a, "destId": b, "cost": 1} for a, b in ((3, 5), (5, 3))]}),
            "cycle",
        ),
        (json.dumps(TINY).replace("10.0", "NaN"), "nan"),
        (json.dumps(TINY).replace("0.5", "NaN"), "cost of edge 3 -> 5 is nan"),
        (json.dumps(TINY).replace("10.0", "1e308"), "beyond 1e+100"),
        (json.dumps(TINY).replace("10.0", "1" + "0" * 400), "401 digits"),
        (json.dumps(TINY).replace('"maxFPGAs": 1', '"maxFPGAs": 1, "maxFPGAs": 2'), "'maxFPGAs' twice"),
        (json.dumps({**TINY, "nodes": [TINY["nodes"][0]] * 2, "edges": []}), "'3' is there twice"),
        (json.dumps(TINY).replace('"id": 3', '"id": [3]'), "id of a node is [3]"),
        (json.dumps(TINY).replace('"supportedOnFpga": 0', '"supportedOnFpga": "no"'), "supportedOnFpga of node 5"),
        (json.dumps(TINY).replace('"size"', '"sise"'), "Is 'size' meant?"),
        (json.dumps(TINY).replace('"maxSizePerFPGA"', '"maxSizePerFpgas"'), "Is 'maxSizePerFPGA' meant?"),
        (json.dumps(TINY).replace("10.0", "-1"), "-1"),
        (json.dumps(TINY).replace("10.0", '"x"'), "'x'"),
    ],
)
def test_a_bad_file_ends_with_status_1_and_the_reason(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    done = _run(path, "--objective", "throughput")
    assert done.returncode == 1
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path / "none.json", "--objective", "latency")
    assert done.returncode == 1
    assert "none.json" in done.stderr


@pytest.mark.parametrize("field", ["nodes", "edges", "maxFPGAs", "maxSizePerFPGA"])
@given(value=st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=3)))
def test_a_field_of_the_wrong_type_raises_a_typed_error(field: str, value: Any) -> None:
    with pytest.raises(OptionError):
        problem_from_json({**TINY, field: value}, "latency")
