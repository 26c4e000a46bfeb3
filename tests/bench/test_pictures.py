"""The pictures of docs/plan.md."""

from __future__ import annotations

import re
from pathlib import Path
from xml.dom import minidom

import pytest

from bench.pictures import MARKER, Subject, page_with, picture_of, section, sections_of
from edgert.data import path as data_path

DOCS = Path(__file__).parents[2] / "docs"


def test_a_model_becomes_a_picture_and_a_section():
    pytest.importorskip("onnxruntime", reason="runs the bundled model")
    pytest.importorskip("onnx", reason="reads the bundled model")
    subject = Subject("digits", "Digits.", data_path("digits_f32.onnx"))
    picture, words = picture_of(subject, 1.0)
    assert "digits_f32.onnx" in minidom.parseString(picture).toxml()
    page = page_with(f"# Above\n{MARKER}\nstale words", [section(subject, words)])
    assert page.startswith("# Above\n")
    assert "segment 1 of 1" in page
    assert "stale words" not in page


def test_parts_of_the_page_can_stay():
    page = (DOCS / "plan.md").read_text(encoding="utf-8")
    parts = sections_of(page)
    assert len(parts) == 6
    assert page_with(page, list(parts.values())) == page


def test_a_page_without_a_marker_is_left_alone():
    with pytest.raises(ValueError, match="no line"):
        page_with("# Above", [])


def test_the_page_shows_pictures_that_are_there():
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (DOCS / "plan.md").read_text(encoding="utf-8"))
    assert len(shown) == 6
    for name in shown:
        minidom.parse(str(DOCS / name))
