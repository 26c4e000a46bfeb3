"""Man pages and shell completions out of the command line's own help: `python cross/deb/manual.py FOLDER`.

Writes man/edgert.1 and man/edgert-COMMAND.1, and bash, zsh and fish, into the folder.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.completion import get_completion_script

import edgert
from edgert.cli import app

SHELLS = ("bash", "zsh", "fish")


def main(folder: Path) -> None:
    pages = folder / "man"
    pages.mkdir(parents=True, exist_ok=True)
    group: Any = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands
    (pages / "edgert.1").write_text("\n".join(overview(group, commands)), encoding="utf-8")
    for name, command in commands.items():
        page = pages / f"edgert-{name.replace(' ', '-')}.1"
        page.write_text("\n".join(manual(name, command)), encoding="utf-8")
    for shell in SHELLS:
        script = get_completion_script(prog_name="edgert", complete_var="_EDGERT_COMPLETE", shell=shell)
        (folder / shell).write_text(script + "\n", encoding="utf-8")


def overview(group: Any, commands: dict[str, Any]) -> Iterator[str]:
    """The page of `edgert` itself."""
    yield from _head("edgert", "run models the fastest correct way that this machine has")
    yield ".B edgert\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]"
    yield f".SH DESCRIPTION\n{_text(group.help or '')}"
    yield ".SH COMMANDS"
    for name, command in commands.items():
        yield f".TP\n.BR edgert\\-{_text(name).replace(' ', chr(92) + '-')} (1)\n{_first(command)}"
    yield ".SH OPTIONS"
    yield from _options(group, group.context_class(group, info_name="edgert"))
    yield f".SH EXIT STATUS\n{_text(group.epilog or '')}"
    yield ".SH FILES"
    for path, what in (
        ("/var/lib/edgert/models", "Models that edgert.service answers for: .onnx, .tflite, .edgert."),
        ("/run/edgert/edgert.sock", "Its socket, for members of the group edgert."),
        ("/etc/default/edgert", "Options of the services."),
    ):
        yield f".TP\n.I {path}\n{what}"
    yield ""


def manual(name: str, command: Any) -> Iterator[str]:
    """The page of one command."""
    context = command.context_class(command, info_name=f"edgert {name}")
    yield from _head(f"edgert-{name.replace(' ', '-')}", _first(command).rstrip("."))
    yield f".B edgert {_text(name)}\n{_text(' '.join(command.collect_usage_pieces(context)))}"
    yield f".SH DESCRIPTION\n{_text(inspect.cleandoc(command.help or ''))}"
    yield ".SH OPTIONS"
    yield from _options(command, context)
    yield ".SH SEE ALSO\n.BR edgert (1)"
    yield ""


def _head(name: str, what: str) -> Iterator[str]:
    yield f'.TH {name.upper()} 1 "" "edgert {edgert.__version__}" "User Commands"'
    yield f".SH NAME\n{_text(name)} \\- {what[:1].lower()}{what[1:]}"
    yield ".SH SYNOPSIS"


def _options(command: Any, context: Any) -> Iterator[str]:
    for item in command.get_params(context):
        record = item.get_help_record(context)
        if record is not None:
            yield f".TP\n\\fB{_text(record[0])}\\fR\n{_text(record[1])}"


def _first(command: Any) -> str:
    """The first sentence of its help."""
    return _text(inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ").split(". ")[0])


def _text(words: str) -> str:
    """Plain text as troff."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in escaped.split("\n"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
