"""Machines on paper: descriptions with their sources, and the table."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest

from bench.paper_bound import Rig, best
from bench.paper_machines import HEADING, Case, into_docs, known_cases, table
from bench.paper_models import MACHINES, machine, model_file, names
from edgert.devices.simulated import Backend, in_virtual_time
from edgert.devices.simulation import Paper
from edgert.formats import open_model

DECLARED = frozenset({"time", "precisions"})
"""Attributes that are choices of the description, and no figures."""


@pytest.mark.parametrize("name", names())
def test_a_description_is_a_machine_in_virtual_time_with_sensible_numbers(name):
    described = machine(name)
    assert described.device("cpu:0").kind == "cpu"
    assert {reach.device for reach in described.reached()} == {device.id for device in described.devices}
    for device in described.devices:
        assert in_virtual_time(device)
        for precision in device.attributes["precisions"].split():
            paper = Paper.of(device, precision)
            assert paper.bytes_per_s <= paper.dram_bytes_per_s
            assert paper.ops_per_s < 1e15
    assert {device.id for device in described.devices} == {
        reach.device for reach in Backend().reaches(described.devices)
    }


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source(name):
    data = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    words = " ".join(data["sources"]).replace(",", " ").split()
    for device in data["devices"]:
        for attribute in device["attributes"].keys() - DECLARED:
            rate = attribute.endswith("ops_per_s")
            assert ("rates" if rate else attribute) in words, f"{name}: {attribute} of {device['id']}"


def test_at_least_four_kinds_of_machines_are_described():
    assert {"core_ultra_155h", "jetson_agx_orin", "rk3588", "pi5_hailo8"} <= set(names())


@pytest.mark.parametrize("name", ["kws-f32", "mobilenet_v2-i8+top5", "pair", "person-i8.tflite"])
def test_models_are_whole(name, tmp_path):
    path = model_file(name, tmp_path)
    if path.suffix == ".onnx":
        onnx.checker.check_model(path)
    assert open_model(path).graph.outputs


def test_the_search_knows_what_a_simulated_device_takes(tmp_path):
    """By the declared figures alone: an image is quantised on the CPU, which spares a slow bus three quarters of it."""
    file = open_model(model_file("mobilenet_v2-i8+top5", tmp_path))
    rig = Rig(file, machine("pi5_hailo8"))
    places = {str(place): number for number, place in enumerate(rig.places)}
    cpu, npu = places["cpu:0/i8"], places["npu:0/i8"]
    top5 = [
        number for number, block in enumerate(rig.blocks) if file.graph.nodes[block.nodes[0]].name.startswith("top5")
    ]
    assert top5
    assert not rig.takes_all(npu, top5)
    assert rig.single() == (rig.seconds([cpu] * len(rig.blocks)), "cpu:0/i8")
    tail = [npu] * (len(rig.blocks) - 2) + [cpu] * 2
    found = best(rig, 0.0)
    assert rig.seconds(found.place) == found.seconds
    assert found.seconds < 0.7 * rig.seconds(tail) < 0.7 * rig.single()[0]
    assert (found.place[0], found.place[1], found.place[-1]) == (cpu, npu, cpu)


def test_a_case_in_the_results_is_not_planned_again(tmp_path):
    results = tmp_path / "results.jsonl"
    assert known_cases(results) == []
    results.write_text(
        "".join(json.dumps(dataclasses.asdict(case)) + "\n" for case in (SPLIT, WHOLE)), encoding="utf-8"
    )
    assert known_cases(results) == [SPLIT, WHOLE]


SPLIT = Case("m", "a", "latency", "cpu:0/i8", 0.02, "npu:0/i8, cpu:0/i8", 2, 0.009, 0.01, 0.008, True)
WHOLE = Case("m", "b", "throughput", "npu:0/i8", 0.02, "", 1, 0.02, 0.02, 0.0, True)


def test_the_table_says_how_far_predictions_were_off():
    text = table([SPLIT, WHOLE])
    assert "| m | a | cpu:0/i8, 20 ms | npu:0/i8, cpu:0/i8 | 9 ms | 10 ms | -10.0% | 2.00x | 2.50x |" in text
    assert "| m | b (throughput) | npu:0/i8, 20 ms | no split |  | 20 ms |  | 1.00x |  |" in text
    assert "1 of 2 are split. Predicted within 15% of the simulated time: 1 of 1" in text


def test_the_table_takes_the_place_of_the_one_in_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"# A\n\n{HEADING}\n\nText.\n\n| old |\n|---|\n\nOld sums.\n\n## Next\n\n| other |\n", encoding="utf-8"
    )
    into_docs(page, table([SPLIT]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# A\n\n{HEADING}\n\nText.\n\n| machine |")
    assert "old" not in text.lower()
    assert text.endswith("## Next\n\n| other |\n")
