"""docs/raspberry-pi.md is run, block by block, in a booted Debian."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from cross.systemd import container as systemd
from cross.systemd.container import Container
from tests.system.test_systemd import CACHE, package_of

PAGE = Path(__file__).resolve().parents[2] / "docs/raspberry-pi.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(os.environ.get("EDGERT_SYSTEMD") != "1", reason="run by `make test-systemd`"),
    pytest.mark.skipif(bool(systemd.missing()), reason=f"no container can be booted: it {systemd.missing()}"),
]


def test_every_command_of_the_page_works_in_order(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    blocks = [block.replace("_arm64.deb", "_amd64.deb") for block in BLOCK.findall(PAGE.read_text())]
    assert len(blocks) >= 7
    package = package_of("amd64")
    shutil.copy(package, tmp_path / "edgert_0.1.0_amd64.deb")
    before = 'set -eu; cd /root; export USER=root; sudo() { "$@"; }\n'
    said = ""
    with Container(systemd.make_root(CACHE), share=tmp_path) as box:
        box.run("cp", "/share/edgert_0.1.0_amd64.deb", "/root/")
        for block in blocks:
            (tmp_path / "block.sh").write_text(before + block)
            done = box.run("bash", "/share/block.sh", check=False, timeout_s=300)
            assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            said += done.stdout
    # The daemon's answer and the library's, each with its receipt.
    assert said.count("Receipt(plan=") == 2
    assert "edgert.service" in said
