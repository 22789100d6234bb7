"""The process beside a worker (`pipeline.guard`): answers one request after the other until its connection closes or it dies.

read            a ticket for a span -> its next piece, or no row where none follows
probe:STAGE     a piece -> nothing; loads what the stage needs, and tries it on a document without text
prepare, encode a piece -> the piece, one stage further
"""

from __future__ import annotations

import json
import os
import pickle  # of what the worker that started this process sends, and nobody else  # nosec B403
import sys
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from operators.devices import is_device_lost, is_out_of_memory
from pipeline.batch import Batch, from_block, from_todo_block, to_block
from pipeline.steps import Steps
from pipeline.watchdog import armed, die
from pipeline.wording import describe

_LATER_SECONDS = 60.0
"""The worker ends this process at the limit; a timer of its own does where the worker is gone."""


def main(descriptor: int) -> None:
    """Serve the worker at the other end of the socket `descriptor`."""
    connection = Connection(descriptor)
    connection.send_bytes(b"{}")
    recipe, threads = pickle.loads(connection.recv_bytes())  # as above  # nosec B301
    steps = Steps(recipe, threads)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            table = pa.ipc.open_stream(connection.recv_bytes()).read_all()
        except (EOFError, OSError):  # the worker has no more to ask, or is gone
            os._exit(0)
        with armed(request["seconds"] + _LATER_SECONDS):
            header, answer = _answer(steps, request["kind"], table)
        connection.send_bytes(json.dumps(header).encode())
        if answer is not None:
            connection.send_bytes(memoryview(answer))


def _answer(steps: Steps, kind: str, table: pa.Table) -> tuple[dict[str, Any], pa.Buffer | None]:
    try:
        answer = _do(steps, kind, table)
    except Exception as error:  # noqa: BLE001 -- the worker decides what it means
        if is_device_lost(error):
            die(describe(error))
        reason = "oom" if is_out_of_memory(error) else "task_failed"
        return {"error": describe(error), "reason": reason}, None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    return {}, sink.getvalue()


def _do(steps: Steps, kind: str, table: pa.Table) -> pa.Table:
    if kind == "read":
        (todo,) = from_todo_block(table)
        batch: Batch | None = next(steps.read(todo), None)
        return to_block(batch) if batch is not None else pa.table({})
    (batch,) = from_block(table)
    if kind.startswith("probe:"):
        steps.probe(kind.removeprefix("probe:"), batch)
        return pa.table({})
    return to_block(steps.prepare(batch) if kind == "prepare" else steps.encode(batch))


if __name__ == "__main__":
    main(int(sys.argv[1]))
