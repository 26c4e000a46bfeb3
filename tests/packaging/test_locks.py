"""The lock files fit pyproject.toml, and say nothing of where packages come from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("ci.txt", "low.txt", "tflite-runtime.txt")


def requirements(extras: set[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for on this machine, with some extras; those that name other extras opened up."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if requirement.name == "edgert":
            yield from requirements(requirement.extras)
        else:
            yield requirement


def pins(lock: str) -> dict[str, str]:
    """Name -> version of the lines of a lock that count on this machine and Python."""
    found = {}
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        if line[:1].isalnum():
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                assert pin.operator == "=="
                found[canonicalize_name(requirement.name)] = pin.version
    return found


@pytest.mark.parametrize("extras", [{"all"}, {"test"}])
def test_ci_lock_has_a_fitting_version_of_all_that_pyproject_asks_for(extras: set[str]) -> None:
    locked = pins("ci.txt")
    wrong = [str(want) for want in requirements(extras) if not want.specifier.contains(locked.get(want.name, "0"))]
    assert wrong == []


def test_low_lock_has_the_lower_end_of_every_range() -> None:
    """Lower end as pyproject.toml writes it: 1.17 is met by 1.17.0 and 1.17.3, not by 1.18."""
    if default_environment()["platform_machine"] != "x86_64":
        pytest.skip("the lock of the lower ends is for x86-64")
    locked = pins("low.txt")
    for want in requirements({"onnx", "openvino", "tflite", "image"}):
        (low,) = [part.version for part in want.specifier if part.operator == ">="]
        assert f"{locked[want.name]}.".startswith(f"{low}."), f"{want}: {locked[want.name]} is locked"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_carries_its_hashes(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    assert blocks
    assert [block.split(maxsplit=1)[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_index(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert re.search(r"://|index-url|find-links|trusted-host", text) is None
