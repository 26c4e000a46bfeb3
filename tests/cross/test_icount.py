"""The gate of instruction counts and the table of boards, on made-up figures."""

from __future__ import annotations

import pytest

from cross import icount, table

TABLE = {"pi4 m-f32.onnx onnxruntime": 1000, "pi4 m-i8.onnx onnxruntime": 600, "pi4 m-i8.onnx onnxruntime call": 7}


def test_a_rise_within_the_gate_passes():
    assert icount.compare({"pi4 m-f32.onnx onnxruntime": 1029}, TABLE) == []


def test_a_rise_beyond_the_gate_is_named_with_its_figure():
    (words,) = icount.compare({"pi4 m-f32.onnx onnxruntime": 1040}, TABLE)
    assert "pi4 m-f32.onnx onnxruntime" in words
    assert "+4.0%" in words


def test_a_row_that_the_table_has_not_is_named():
    (words,) = icount.compare({"pi5 m-f32.onnx onnxruntime": 1}, TABLE)
    assert "not in icount.json" in words


def test_a_call_may_add_no_more_than_its_share():
    counts = {"pi4 m-i8.onnx onnxruntime": 1000, "pi4 m-i8.onnx onnxruntime call": 10}
    assert icount.compare(counts, counts) == []
    (words,) = icount.compare({**counts, "pi4 m-i8.onnx onnxruntime call": 11}, counts)
    assert "1.10%" in words


def test_the_section_has_a_column_a_board_and_a_row_a_model_and_library():
    text = icount.section({**TABLE, "pi5 m-f32.onnx onnxruntime": 2_500_000})
    assert "| model | library | pi4 | pi5 |" in text
    assert "| m-f32.onnx | onnxruntime | 0.00 | 2.50 |" in text
    assert "| m.onnx | 0.60 |  |" in text
    assert "| m-i8.onnx onnxruntime | 7 (1.17%) |  |" in text


def test_a_ratio_is_taken_on_the_best_way_of_each_precision():
    more = {**TABLE, "pi4 m-i8.onnx other": 500, "pi4 m-f32.onnx other": 2000}
    assert icount.ratios(more) == [("pi4 m.onnx", pytest.approx(0.5))]


def test_one_run_is_the_least_of_some_without_what_a_mark_costs():
    marks = {200: 1000, 201: 1003, 202: 1003 + 53, 203: 1003 + 53 + 60, 100: 7, 300: 9}
    assert icount._one_run(marks, 2) == 50


def test_the_table_has_a_column_for_each_board_that_was_tested():
    results = table.read([
        '{"board": "pi5", "check": "probe", "result": "litert 2"}',
        '{"board": "pi4", "check": "probe", "result": "litert 1"}',
        '{"board": "pi4", "check": "recovery", "result": "ok"}',
    ])  # fmt: skip
    assert table.matrix(results).splitlines() == [
        "| check | pi4 | pi5 |",
        "|---|---|---|",
        "| probe | held | held |",
        "| recovery | held |  |",
    ]
    assert "| probe | litert 1 |" in table.tables(results)
