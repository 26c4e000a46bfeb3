"""The scripts behind the planner's figures: growing chains, random placements, plans against single targets."""

from __future__ import annotations

import json

import pytest

from bench.chain_scaling import Chain, Large, chain, exponent
from bench.chain_scaling import show as scaling_table
from bench.never_slower import Case
from bench.never_slower import table as slower_table
from bench.placement_families import FAMILIES, Answer, measure, own_clock, problem_file, problem_of
from bench.placement_families import table as families_table
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.solve import solve


def test_a_chain_is_one_and_is_proved():
    problem = chain(200)
    assert len(problem.blocks) == len(problem.flows) + 1 == 200
    assert solve(problem, 30.0).proved


def test_the_exponent_is_that_of_the_times():
    assert exponent([Chain(n, 3e-6 * n**1.5) for n in (1000, 2000, 4000)]) == pytest.approx(1.5)
    text = scaling_table([Chain(1000, 0.5), Chain(2000, 1.0)], [Large("chain", 5000, 4.0, 0.25)])
    assert "Exponent 1.00." in text
    assert "| chain | 5000 | 4.00 s | 25% |" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_problem_files_that_can_be_solved(family):
    data = json.loads(json.dumps(problem_file(family, 30, 0)))
    assert len(problem_from_json(data, "latency").blocks) == len(problem_of(family, 30, 0, "latency").blocks)
    assert problem_file(family, 30, 0) != problem_file(family, 30, 1)
    problem = problem_of(family, 12, 0, "throughput")
    answer = measure(family, problem, "throughput", short_s=1.0, long_s=1.0, clock=own_clock())
    assert answer.bound <= answer.best <= answer.short


def test_the_worst_answer_is_named():
    found = [Answer("layered", 9, 2, "latency", short, 10.0, 9.0) for short in (10.0, 11.0, 12.0)]
    assert families_table(found).endswith("Above the best: median 10.0%, worst 20.0%.\n")


def test_a_plan_is_slower_only_when_its_whole_interval_lies_above_the_limit():
    met, missed = Case("m", "a", "b", 1.03, 1.01, 1.05), Case("n", "a", "b", 1.04, 1.03, 1.05)
    assert (met.met, missed.met) == (True, False)
    text = slower_table([met, missed])
    assert "| n | a | b | 1.040 (1.030-1.050), MISSED |" in text
    assert "1 of 2." in text
