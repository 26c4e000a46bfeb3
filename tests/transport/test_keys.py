"""The folder of keys, by the library and by the command."""

from __future__ import annotations

import json
import stat

import pytest
from typer.testing import CliRunner

from edgert.cli import app
from edgert.errors import OptionError
from edgert.transport.keys import KeyPair, Keyring, checked


@pytest.fixture
def ring(tmp_path):
    return Keyring(tmp_path / "keys")


def test_a_pair_is_made_once_and_its_secret_is_for_the_user_alone(ring):
    made = ring.make()
    assert ring.own() == made
    assert stat.S_IMODE((ring.folder / "own.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    with pytest.raises(OptionError, match="already"):
        ring.make()
    assert ring.own() == made
    assert [each.name for each in ring.folder.iterdir()] == ["own.json"]


def test_a_secret_is_not_shown_by_accident(ring):
    made = ring.make()
    assert made.secret not in repr(made)


def test_a_secret_that_others_can_read_is_not_used(ring):
    ring.make()
    (ring.folder / "own.json").chmod(0o640)
    with pytest.raises(OptionError, match="chmod 600"):
        ring.own()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"public": 1, "secret": 2}', '{"public": "short"}', "\xff"])
def test_a_damaged_pair_is_an_error_with_a_remedy(ring, content):
    ring.make()
    (ring.folder / "own.json").write_text(content, encoding="latin-1")
    with pytest.raises(OptionError, match=r"edgert keys|is no key"):
        ring.own()


def test_a_missing_pair_names_the_command(ring):
    with pytest.raises(OptionError, match="edgert keys make"):
        ring.own()


def test_peers_are_allowed_by_name_and_removed(ring):
    first, second = KeyPair.random().public, KeyPair.random().public
    ring.allow("a", first)
    ring.allow("a", first)
    ring.allow("b.lan", second)
    assert ring.peers() == {"a": first, "b.lan": second}
    assert ring.key_of("a") == first
    assert ring.key_of(second) == second
    with pytest.raises(OptionError, match="another key already"):
        ring.allow("a", second)
    ring.remove("a")
    assert ring.peers() == {"b.lan": second}
    for unknown in ("a", "c"):
        with pytest.raises(OptionError):
            ring.remove(unknown)
        with pytest.raises(OptionError):
            ring.key_of(unknown)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-o", "a b", "x" * 65])
def test_a_name_cannot_leave_the_folder(ring, name):
    with pytest.raises(OptionError, match="is no name"):
        ring.allow(name, KeyPair.random().public)


@pytest.mark.parametrize("key", ["", "x" * 39, "x" * 41, "~" * 40, "é" * 40, None, 5])
def test_what_is_no_key_is_refused(ring, key):
    with pytest.raises(OptionError, match="is no key"):
        checked(key)


def test_a_file_that_holds_no_key_counts_as_none_and_the_others_stay(ring, caplog):
    good = KeyPair.random().public
    ring.allow("good", good)
    (ring.folder / "peers" / "bad.pub").write_text("nonsense")
    assert ring.peers() == {"good": good}
    assert "bad.pub is ignored" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_option_error(tmp_path):
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(OptionError, match="EDGERT_KEYS"):
        Keyring(tmp_path / "keys").make()


def test_a_public_key_never_looks_like_an_option():
    assert not any(KeyPair.random().public.startswith("-") for _ in range(300))


def test_two_machines_come_to_know_each_other_by_the_command(tmp_path):
    run = CliRunner()

    def on(machine, *words, code=0):
        done = run.invoke(app, ["keys", *words], env={"EDGERT_KEYS": str(tmp_path / machine), "COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return done.stdout

    keys = {name: json.loads(on(name, "make", "--json"))["public"] for name in ("a", "b")}
    on("a", "allow", "b", keys["b"])
    on("b", "allow", "a", keys["a"])
    assert keys["b"] in on("a", "list")
    shown = json.loads(on("a", "list", "--json"))
    assert (shown["own"], shown["peers"]) == (keys["a"], {"b": keys["b"]})
    on("a", "make", code=1)
    on("a", "remove", "b")
    assert json.loads(on("a", "list", "--json"))["peers"] == {}
    assert Keyring(tmp_path / "a").own().public == keys["a"]
