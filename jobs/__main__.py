"""The command line: `tidemill COMMAND` or `python -m jobs COMMAND`. Each command is a thin file of its own."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import typer

from jobs import (
    console,
    diff,
    doctor,
    evaluate,
    export,
    files,
    history,
    plan,
    publish,
    report,
    rollback,
    run,
    status,
    submit,
    vacuum,
)
from pipeline.errors import Stuck, Terminated, TidemillError
from pipeline.wording import describe, frames

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
app.command("report")(report.command)
app.command("files")(files.command)
app.command("history")(history.command)
app.command("diff")(diff.command)
app.command("rollback")(rollback.command)
app.command("eval")(evaluate.command)
app.command("export")(export.command)
app.command("publish")(publish.command)
app.command("vacuum")(vacuum.command)
app.command("doctor")(doctor.command)

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """Run a command and exit with the code of the public contract."""
    try:
        code = app(standalone_mode=False)
    except TidemillError as error:
        try:
            console.fail(str(error), error.exit_code, getattr(error, "run_id", None))
        finally:
            if isinstance(error, (Terminated, Stuck)):
                _leave(error.exit_code)
    except Exception as error:  # noqa: BLE001 -- the last resort: an error that is ours
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage errors of the command line itself
            console.fail(f"{error.format_message()}; see tidemill --help", error.exit_code)
        # Messages of libraries may quote a document: the frames say where it was, and no more.
        if os.environ.get("TIDEMILL_TRACEBACK"):
            traceback.print_exc()
        else:
            console.err.print("\n".join(frames(error)), markup=False, highlight=False, soft_wrap=True)
        console.fail(f"{describe(error)}; TIDEMILL_TRACEBACK=1 shows the messages too, which may quote a document", 1)
    if code == _INTERRUPTED:
        try:
            console.fail("interrupted; what was recorded stays, and the same command goes on from there", code)
        finally:
            _leave(code)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int) -> NoReturn:
    """Without waiting for threads: those that hang would keep the process for ever. Engines were shut down before."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
