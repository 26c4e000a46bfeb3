"""What is committed: small, and silent about the machines that it was made on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In two halves, so that this file does not hold what it forbids.
FORBIDDEN = tuple(
    first + second
    for first, second in (
        ("pypi", ".org"), ("python", "hosted.org"), ("deb.", "debian.org"), ("npm", "js.org"),
        ("/work", "/main"), ("/work", "/shared"), ("/opt", "/ed/"),
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Everything that is committed; links themselves, not what they lead to."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def test_no_file_is_larger_than_a_megabyte_and_all_stay_under_five(files: list[Path]) -> None:
    sizes = {file: file.stat().st_size for file in files}
    assert [str(file) for file, size in sizes.items() if size > 1_000_000] == []
    assert sum(sizes.values()) < 5_000_000


def test_no_file_names_a_registry_host_or_a_path_of_one_machine(files: list[Path]) -> None:
    guilty = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in files
        for word in FORBIDDEN
        if word.encode() in file.read_bytes()
    ]
    assert guilty == []


@pytest.mark.parametrize("name", ["devices", "partitioner"])
def test_links_for_type_checkers_are_relative(name: str) -> None:
    assert (ROOT / "edgert" / name).readlink() == Path("..") / name
