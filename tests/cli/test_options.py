"""What options mean as arguments of `edgert.load`."""

from __future__ import annotations

import pytest
import typer

from edgert.cli.options import Objective, Precision, load_arguments, size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096), ("300MB", 300_000_000), ("300 m", 300_000_000), ("1.5GiB", 3 << 29), ("64kib", 65536),
        ("2G", 2 * 10**9),
    ],
)  # fmt: skip
def test_a_size_is_read_with_its_unit(text, expected):
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "1.2.3MB", "300 MBit", "1TB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no size"):
        size_bytes(text)


def test_no_limit_is_no_argument():
    arguments = Objective.latency, Precision.own, None, None, 10.0
    assert "memory_limit_bytes" not in load_arguments(*arguments)
    assert load_arguments(*arguments, memory_limit="1kB")["memory_limit_bytes"] == 1000
