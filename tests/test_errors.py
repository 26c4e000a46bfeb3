"""The error tree: complete, typed across processes, with a message and a remedy."""

from __future__ import annotations

import json
import re

import pytest

from edgert import errors
from edgert.errors import DtypeMismatch, EdgertError, InputError, ShapeMismatch

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgertError)]


def test_the_tree_at_the_top_of_the_file_is_the_real_one():
    drawn = re.findall(r"^[ │├└─]*([A-Z]\w+)", errors.__doc__.partition("Each message")[0], re.MULTILINE)
    assert sorted(drawn[1:]) == sorted(kind.__name__ for kind in KINDS)  # drawn[0]: the first sentence


def test_every_error_is_exported():
    assert {kind.__name__ for kind in KINDS} | {"to_json", "from_json"} == set(errors.__all__)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_as_json_with_its_type_and_facts(kind):
    sent = kind("input 'a' is odd.", "Make it even.", name="a", got=[1, 2])
    got = errors.from_json(json.loads(json.dumps(errors.to_json(sent))))
    assert type(got) is kind
    assert (str(got), got.remedy, got.name, got.got) == (
        "input 'a' is odd. Make it even.",
        "Make it even.",
        "a",
        [1, 2],
    )


def test_an_unknown_kind_of_error_becomes_the_root():
    got = errors.from_json({"type": "FromTheFuture", "message": "it broke."})
    assert type(got) is EdgertError
    assert str(got) == "it broke."


def test_an_error_without_remedy_ends_with_its_message():
    assert str(EdgertError("it broke.")) == "it broke."


def test_every_error_has_a_docstring():
    assert not [kind.__name__ for kind in KINDS if not kind.__doc__]


def test_input_errors_can_be_caught_as_one():
    assert issubclass(ShapeMismatch, InputError)
    assert issubclass(DtypeMismatch, InputError)
    assert not issubclass(InputError, errors.TargetError)
