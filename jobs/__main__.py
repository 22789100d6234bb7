"""The command line: `tidemill COMMAND` or `python -m jobs COMMAND`. Each command is a thin file of its own."""

from __future__ import annotations

import sys
import traceback

import typer

from jobs import console, diff, doctor, evaluate, export, files, history, plan, publish, rollback, run, status, submit
from pipeline.errors import TidemillError

app = typer.Typer(
    name="tidemill",
    help="Encode a corpus from object storage into a committed table of embeddings, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.command)
app.command("plan")(plan.command)
app.command("submit")(submit.command)
app.command("status")(status.command)
app.command("files")(files.command)
app.command("history")(history.command)
app.command("diff")(diff.command)
app.command("rollback")(rollback.command)
app.command("eval")(evaluate.command)
app.command("export")(export.command)
app.command("publish")(publish.command)
app.command("doctor")(doctor.command)

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """Run a command and exit with the code of the public contract."""
    try:
        code = app(standalone_mode=False)
    except TidemillError as error:
        console.fail(str(error), error.exit_code, getattr(error, "run_id", None))
    except Exception as error:  # noqa: BLE001 -- the last resort: an error that is ours
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage errors of the command line itself
            console.fail(f"{error.format_message()}; see tidemill --help", error.exit_code)
        traceback.print_exc()
        console.fail(f"{type(error).__name__}: {error}", 1)
    if code == _INTERRUPTED:
        console.fail("interrupted; what was recorded stays, and the same command goes on from there", code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
