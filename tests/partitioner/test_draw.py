"""Pictures of plans: nothing is lost, nothing overlaps, and nothing in a model's names breaks them."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.dom import minidom

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import OptionError
from edgert.graph import Graph, Node
from edgert.partitioner.draw import draw_svg
from edgert.partitioner.layout import lay_out
from edgert.partitioner.outline import BOXES, fold
from edgert.partitioner.page import draw_html
from edgert.partitioner.scene import overview
from tests.partitioner.pictures import CPU, GPU, NPU, chain, graph_of, plan_of, with_weight


@st.composite
def reads(draw, most=120):
    count = draw(st.integers(1, most))
    return [sorted(draw(st.sets(st.integers(max(0, k - 8), k - 1), max_size=3))) if k else [] for k in range(count)]


def all_nodes(boxes):
    return sorted(node for box in boxes for copy in (box.nodes, *box.copies) for node in copy)


@settings(max_examples=60, deadline=None)
@given(reads(), st.integers(4, 40))
def test_folding_keeps_every_node_once(before, limit):
    graph = graph_of(before, [("Conv", "Relu", "Add")[k % 3] for k in range(len(before))])
    boxes = fold(graph, range(len(before)), limit)
    assert all_nodes(boxes) == list(range(len(before)))
    for box in boxes:
        if box.parts:
            assert all_nodes(box.parts) == sorted(box.nodes)


@settings(max_examples=60, deadline=None)
@given(reads(), st.integers(0, 3))
def test_lines_of_a_drawing_never_go_up(before, parts):
    graph = graph_of(before)
    cuts = sorted({len(before) * part // 4 for part in range(1, parts + 1)} - {0})
    scene = overview(graph, plan_of(graph, cuts, (CPU, GPU, NPU, CPU)), 12)
    assert all(source < sink for source, sink in scene.lines)
    assert [item.band for item in scene.items] == sorted(item.band for item in scene.items)


@settings(max_examples=60, deadline=None)
@given(reads(40), st.integers(1, 3))
def test_boxes_never_overlap_and_lines_go_down(before, bands):
    sizes = [(40.0 + 13 * (k % 7), 26.0 + 14 * (k % 2)) for k in range(len(before))]
    edges = [(source, sink) for sink, sources in enumerate(before) for source in sources]
    placed = lay_out(sizes, edges, [bands * k // len(before) for k in range(len(before))])
    for one, other in combinations(range(len(before)), 2):
        (x, y), (to_x, to_y) = placed.centres[one], placed.centres[other]
        apart_x = (sizes[one][0] + sizes[other][0]) / 2 - abs(x - to_x)
        apart_y = (sizes[one][1] + sizes[other][1]) / 2 - abs(y - to_y)
        assert apart_x < 0.01 or apart_y < 0.01
    for points in placed.routes.values():
        assert all(low <= high for (_, low), (_, high) in pairwise(points))
    assert all(
        w / 2 - 0.01 <= x <= placed.width - w / 2 + 0.01 for (x, _), (w, _) in zip(placed.centres, sizes, strict=True)
    )


def test_equal_layers_are_drawn_once_with_their_number():
    layer = ["MatMul", "Add", "Relu", "Conv", "Softmax", "Conv", "Clip"]
    graph = chain(3 + 8 * len(layer), (*["Cast", "Flatten", "Gemm"], *(layer * 8)))
    scene = overview(graph, plan_of(graph))
    framed = [item.box for item in scene.items if item.box and item.box.frame]
    assert {len(box.copies) for box in framed} == {7}
    assert sum(len(box.nodes) for box in framed) == len(layer)
    assert ">8 x<" in draw_svg(plan_of(graph), graph)


def test_a_small_graph_shows_each_node():
    graph = chain(12)
    svg = draw_svg(plan_of(graph), graph)
    assert svg.count(">Conv<") == svg.count(">Relu<") == 6


@pytest.mark.parametrize("count", [0, 1, 300, 2000])
def test_a_drawing_of_any_size_stays_small(count):
    graph = graph_of([[k - 1, k - 3] if k > 3 else [] for k in range(count)])
    assert len(overview(graph, plan_of(graph)).items) <= BOXES + 8
    minidom.parseString(draw_svg(plan_of(graph), graph))


def test_a_picture_tells_of_segments_costs_and_transfers():
    graph = with_weight(chain(12), 0, 5000)
    svg = draw_svg(plan_of(graph, (4, 9), (CPU, GPU, NPU)), graph, "net.onnx")
    for words in ("net.onnx", "segment 1", "segment 3", "openvino@npu:0/i8", "5.00 kB of weights", "4.00 ms",
                  "segment 2: 1 value, 32 B"):  # fmt: skip
        assert words in svg


def test_a_transfer_is_labelled_between_its_segments():
    graph = graph_of([[], [0], [1], [2], [3], [4, 1], [5]])
    svg = minidom.parseString(draw_svg(plan_of(graph, (3,), (CPU, GPU)), graph))
    grounds = [node for node in svg.getElementsByTagName("rect") if node.getAttribute("fill-opacity") == "0.35"]
    shift = float(svg.getElementsByTagName("g")[0].getAttribute("transform").split()[1].rstrip(")"))
    (_, end), (start, _) = [(float(g.getAttribute("y")), float(g.getAttribute("y")) + float(g.getAttribute("height")))
                            for g in grounds]  # fmt: skip
    labels = [node for node in svg.getElementsByTagName("text") if node.firstChild.data == "32 B"]
    assert len(labels) == 2
    assert all(end < float(label.getAttribute("y")) + shift < start for label in labels)


def test_devices_have_colours_of_their_own():
    graph = chain(12)
    svg = draw_svg(plan_of(graph, (4, 9), (CPU, GPU, NPU)), graph)
    boxes = re.findall(r'rx="6" fill="(#\w+)"', svg)
    assert [boxes.count(colour) for colour in dict.fromkeys(boxes)] == [4, 5, 3]


def test_names_cannot_break_the_markup():
    evil = '</text><script>alert("1")</script>\x00&'
    made = chain(3)
    nodes = tuple(Node(f"{evil}{k}", f"{evil}::{evil}", n.inputs, n.outputs) for k, n in enumerate(made.nodes))
    graph = Graph("onnx", evil, nodes, made.inputs, made.outputs, made.values, {})
    assert "<script" not in minidom.parseString(draw_svg(plan_of(graph), graph, evil)).toxml()
    assert "<script" not in draw_html(plan_of(graph), graph, evil)


def test_the_page_is_well_formed():
    graph = graph_of([[k - 1, k - 3] if k > 3 else [] for k in range(90)])
    page = draw_html(plan_of(graph, (50,), (CPU, GPU)), graph)
    minidom.parseString(page.replace('<meta charset="utf-8">', "").replace("<!DOCTYPE html>", ""))


def test_every_node_is_some_clicks_away_in_the_page():
    graph = graph_of([[k - 1, k - 3] if k > 3 else [] for k in range(500)])
    page = draw_html(plan_of(graph, (200,), (CPU, GPU)), graph)
    told = re.findall(r"<(?:td|title|p)>([^<]*)", page)
    assert {f"n{k}" for k in range(500)} <= set(re.findall(r"\bn\d+\b", " ".join(told)))
    links = set(re.findall(r'href="#([\w-]+)"', page))
    assert links <= set(re.findall(r'id="([\w-]+)"', page))
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_plan_of_another_model_is_told():
    with pytest.raises(OptionError, match="n5"):
        draw_svg(plan_of(chain(8), (4,), (CPU, GPU)), chain(5))
    with pytest.raises(OptionError, match="no segment for node 'n8'"):
        draw_svg(plan_of(chain(8), (4,), (CPU, GPU)), chain(9))
