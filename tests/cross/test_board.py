"""The descriptions of boards, as the product reads them. Nothing is emulated here."""

from __future__ import annotations

import pytest

from cross import board as boards
from edgert.devices import cpu
from tests.cross.conftest import group_of


@pytest.mark.parametrize("name", boards.names())
def test_a_board_is_read_as_it_is_described(name, tmp_path):
    board = boards.load(name)
    boards.write(boards.overlay(board), tmp_path)
    found = cpu.discover(tmp_path)
    assert [device.cores for device in found] == [cluster.cores for cluster in board.clusters]
    assert [device.name for device in found] == [f"{cluster.design}, {board.model}" for cluster in board.clusters]
    assert {device.memory_bytes for device in found} == {board.memory_bytes}


def test_only_cores_with_the_dot_product_show_it():
    with_dot = {name for name in boards.names() if "asimddp" in boards.load(name).clusters[0].features.split()}
    assert with_dot == {"pi5", "rock5b"}


def test_a_big_and_a_little_cluster_are_two_devices(tmp_path):
    boards.write(boards.overlay(boards.load("rock5b")), tmp_path)
    big, little = cpu.discover(tmp_path)
    assert (big.cores, little.cores) == ((4, 5, 6, 7), (0, 1, 2, 3))
    assert int(big.attributes["clock_mhz"]) > int(little.attributes["clock_mhz"])


def test_fewer_cores_may_be_given_than_the_board_has(tmp_path):
    boards.write(boards.overlay(boards.load("pi4"), available=2), tmp_path)
    assert [device.cores for device in cpu.discover(tmp_path)] == [(0, 1)]


@pytest.mark.parametrize(
    ("node", "group"),
    [
        ("test_probe[pi4]", "pi4"),
        ("test_known[digits_i8.tflite-pi2]", "pi2"),
        ("test_resident[litert@*-known-90-pi4]", "pi4"),
        ("test_the_smallest_set_of_packages_is_exact[pi4]", "pi4 tflite-runtime"),
        ("test_a_bundle_of_64_bits_is_refused_on_32[pi2]", "pi4"),
    ],
)
def test_what_is_asked_of_a_board_in_one_visit_goes_to_one_worker(node, group):
    assert group_of(f"tests/cross/test_boards.py::{node}") == group
