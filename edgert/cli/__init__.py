"""The command line: `edgert probe | plan | run | compile | profile | bench | demo | version`.

A command is one short function in a module of its own: parse, call the library, show. Nothing heavy is imported
before a command needs it, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgert import interrupts
from edgert.cli import bench, compile, daemon, demo, executor, keys, plan, plan_diff, probe, profile, run, version
from edgert.cli.console import BUG, FAILED, INTERRUPTED, show_error
from edgert.errors import EdgertError

__all__ = ["app", "main"]

EXITS = (
    "Exit codes: 0 done; 1 edgert could not (stderr says why, and what to try); 2 the command line is wrong; "
    "3 done in part, or by a fallback; 70 a fault in edgert itself; 130 interrupted."
)


class Commands(TyperGroup):
    """Takes commands of two words, and turns the errors that edgert raises on purpose into one line and exit code 1,
    and Ctrl-C into 130.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # `plan MODEL` takes a path, so `diff` cannot be a command below it; a model of that name is ./diff.
        words = " ".join(args[:2])
        return super().resolve_command(ctx, [words, *args[2:]] if words in self.commands else args)

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                interrupts.tidily()
                return super().invoke(ctx)
            finally:
                interrupts.immediately()
        except (EdgertError, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) or interrupts.came():
                interrupts.tell()
                raise typer.Exit(INTERRUPTED) from error
            show_error(error)
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    cls=Commands,
    name="edgert",
    help="Runs any ONNX or TFLite model the fastest correct way that this machine has.",
    epilog=EXITS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(probe.probe)
app.command()(plan.plan)
app.command("plan diff")(plan_diff.plan_diff)
app.command()(run.run)
app.command("compile")(compile.compile_)
app.command()(profile.profile)
app.command()(bench.bench)
app.command()(daemon.daemon)
app.command()(executor.executor)
app.add_typer(keys.keys, name="keys")
app.command()(demo.demo)
app.command()(version.version)


@app.callback()
def settings(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to stderr; twice for details.")] = 0,
) -> None:
    """Options of every command."""
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line; does not return. `edgert.__main__` calls it, after it has seen to Ctrl-C."""
    if "_EDGERT_COMPLETE" in os.environ:  # a shell asks what may come next; its script is in the Debian package
        from typer import completion

        vars(completion)["completion_init"]()  # it has no public name
    try:
        app()
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:  # noqa: BLE001 - the outermost frame: anything here is a fault in edgert, told apart by its code
        if interrupts.came():  # a library made another exception of it
            interrupts.tell()
            sys.exit(INTERRUPTED)
        traceback.print_exc()
        sys.stderr.write("\nThis is a fault in edgert, not in what you did. Please report it with the lines above.\n")
        sys.exit(BUG)
