"""The Ray engine: tickets for spans flow through an actor pool of encoders; what comes back is one outcome for each piece.

A ticket is a one-row block and a piece on its way is a one-row block (pipeline.batch), so Ray's block shaping can neither
merge nor cut pieces. On CPUs one actor reads, prepares, encodes and writes; on accelerators reading and writing are tasks
of their own. Restarts are bounded: an actor that dies costs a restart and its pieces are done again, with care where they
were begun before (`pipeline.stages`).
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.batch import from_todo_block, todo_block
from pipeline.clusters import refuse_open_cluster, refuse_open_nodes, refuse_unpickling
from pipeline.engines import GRACE_SECONDS
from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.ledger.pieces import Todo
from pipeline.placement import Placement, Resources, Wish, place
from pipeline.recipe import Recipe
from pipeline.stages import Outcome, Stages, from_block, to_block
from pipeline.stopping import Stop
from pipeline.wording import printable, without_secrets

_OBJECT_STORE_BYTES = 512 * 2**20
_STARTS = 3
"""Times that Ray is started, where it gives up by itself."""
_FOR_POISON = 16
"""Deaths of one actor that poison rows may cost: two for the first, and hardly more than one for each further one."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RAY_DEVICE = {"cpu": "CPU", "cuda": "GPU", "npu": "NPU"}


class FusedWorker:
    """Reads, prepares, encodes and writes; two pieces at once, so that the encoder does not wait for files."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        refuse_unpickling()
        self._stages = Stages(recipe, threads=threads, restarted=_restarted())
        # The first pieces are read meanwhile; what goes wrong here is raised by the first call.
        self._loaded = ThreadPoolExecutor(1, "load").submit(self._stages.load)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for todo in from_todo_block(block):
            for item in self._stages.read(todo):
                prepared = self._stages.prepare(item)
                self._loaded.result()
                yield to_block(self._stages.write(self._stages.encode(prepared)))


class EncodeWorker:
    """Encodes prepared pieces; reading and writing happen in other processes."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._stages = Stages(recipe, threads=threads, restarted=_restarted())
        self._stages.load()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for item in from_block(block):
            yield to_block(self._stages.encode(self._stages.begin(item)))


def _restarted() -> bool:
    """Whether this actor takes the place of one that died."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


_joined_here = threading.Event()
_stages_of_this_process: dict[str, Stages] = {}


def _stages(recipe: Recipe) -> Stages:
    """Tokenizers are built once in each process, not once for each task."""
    if recipe.run_id not in _stages_of_this_process:
        refuse_unpickling()
        _stages_of_this_process.clear()
        _stages_of_this_process[recipe.run_id] = Stages(recipe, threads=1)
    return _stages_of_this_process[recipe.run_id]


def read_and_prepare(block: pa.Table, recipe: Recipe) -> Iterator[pa.Table]:
    """Tickets in, prepared pieces out."""
    stages = _stages(recipe)
    for todo in from_todo_block(block):
        for item in stages.read(todo):
            yield to_block(stages.prepare(item))


def write(block: pa.Table, recipe: Recipe) -> Iterator[pa.Table]:
    """Encoded pieces in, outcomes out."""
    stages = _stages(recipe)
    for item in from_block(block):
        yield to_block(stages.write(item))


def start() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local one for this process alone."""
    refuse_unpickling()
    if ray.is_initialized():
        return
    # torch's CPU packs are megabytes each; without these thresholds glibc maps and unmaps every one of them.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**32))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        if address.startswith(("http://", "https://")):
            raise ConfigError(
                "it is a job server's; submit the job to it with `tidemill submit`, or unset it", field="RAY_ADDRESS"
            )
        refuse_open_cluster(address, "RAY_ADDRESS")
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise TidemillError(f"cannot join the Ray cluster at {address}: {str(error).splitlines()[0]}") from error
        try:
            nodes = ray.nodes()  # type: ignore[no-untyped-call]
            refuse_open_nodes([n["NodeManagerAddress"] for n in nodes if n["Alive"]], "RAY_ADDRESS")
        except ConfigError:
            ray.shutdown()
            raise
    else:
        # Ray's core reports at error level that Ray Data's actors have arguments, which is harmless, each time.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        _start_here(quiet)
    _joined_here.set()


def _start_here(quiet: dict[str, Any]) -> None:
    """Start Ray on this machine. It waits half a minute for its own processes, which is little on a busy machine: so again."""
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        except Exception as error:  # Ray raises no type of its own here
            ray.shutdown()
            if attempt == _STARTS:
                what = printable(without_secrets(str(error).strip().split("\n")[0]))
                raise TidemillError(f"Ray did not start on this machine: {what}; run the same command again") from error
        else:
            return


def devices() -> dict[str, int]:
    """Devices of the cluster by kind."""
    total = _total()
    return {kind: int(total.get(name, 0)) for kind, name in _RAY_DEVICE.items()}


def placement(kind: str, wish: Wish) -> Placement:
    """Workers over the whole cluster."""
    total = _total()
    nodes = len([n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")])  # type: ignore[no-untyped-call]
    has = Resources(total.get("CPU", 1.0), total.get(_RAY_DEVICE[kind], 0.0), int(total.get("memory", 0.0)), max(1, nodes))
    return place(kind, has, wish)


def _total() -> dict[str, float]:
    start()
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def execute(recipe: Recipe, placed: Placement, todos: list[Todo], stop: Stop) -> Iterator[Outcome]:
    """Yield an outcome for each piece of `todos`, as they are done. Incomplete where actors died more often than allowed."""
    _configure()
    start()
    stop.install()
    dataset = _flow(ray.data.from_arrow([todo_block(t) for t in todos]), recipe, placed)
    results: queue.Queue[pa.Table | BaseException | None] = queue.Queue()
    over = threading.Event()
    threading.Thread(target=_consume, args=(dataset, results, over), daemon=True).start()
    try:
        yield from _outcomes(recipe, results, stop)
    finally:
        over.set()
    stop.check()


def _outcomes(recipe: Recipe, results: queue.Queue[pa.Table | BaseException | None], stop: Stop) -> Iterator[Outcome]:
    deadline = None
    while True:
        if stop.is_set() and deadline is None:
            recipe.ask_to_stop()
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        try:
            block = results.get(timeout=0.2)
        except queue.Empty:
            continue
        if block is None:
            return
        if isinstance(block, BaseException):
            raise Incomplete(f"the engine stopped: {printable(without_secrets(_reason(block)))}") from block
        for item in from_block(block):
            assert isinstance(item, Outcome)
            yield item


def _reason(error: BaseException) -> str:
    """Ray's exceptions carry whole remote tracebacks: an error of ours at their end says why, else their first line what died."""
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    ours = [line.partition(": ")[2] for line in lines if line.startswith("pipeline.errors.")]
    return ours[-1] if ours else f"{lines[0]}; run the same command again to go on"


def workers() -> list[int]:
    """Ray's processes on this machine that are at work, those with pieces first; on a shared cluster also those of others."""
    found: list[tuple[bool, int]] = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        title, uids = " ".join(process.info["cmdline"] or []), process.info["uids"]
        if title.startswith("ray::") and not title.startswith("ray::IDLE") and uids and uids.real == os.getuid():
            found.append(("Map" not in title, process.pid))
    return [process for _, process in sorted(found)]


def shutdown() -> None:
    """Leave the cluster, or end the local one, unless the caller had joined it before."""
    if _joined_here.is_set():
        _joined_here.clear()
        ray.shutdown()


def _configure() -> None:
    context = DataContext.get_current()
    context.target_max_block_size = 1  # every row (one piece) is a block of its own, handed on as soon as it is there
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.max_consecutive_actor_init_deaths = 2
    context.execution_no_progress_timeout_s = -1  # pipeline.stuck knows how long a piece may take
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _flow(tickets: Dataset, recipe: Recipe, placed: Placement) -> Dataset:
    """read -> prepare -> encode -> write, in one actor or as stages of their own."""
    if placed.fused:
        return _encoders(tickets, FusedWorker, recipe, placed)
    # Ray's annotation knows no functions with arguments of their own.
    read_stage: Any = read_and_prepare
    write_stage: Any = write
    task: dict[str, Any] = {"fn_args": (recipe,), "batch_size": None, "batch_format": "pyarrow", "num_cpus": placed.cpus_per_task}
    task["max_retries"] = _deaths(recipe)
    prepared = tickets.map_batches(read_stage, **task)
    return _encoders(prepared, EncodeWorker, recipe, placed).map_batches(write_stage, **task)


def _deaths(recipe: Recipe) -> int:
    """Times that one worker may die. Without restarts there are none for poison either."""
    return recipe.max_restarts + _FOR_POISON if recipe.max_restarts else 0


def _encoders(dataset: Dataset, worker: Callable[..., Any], recipe: Recipe, placed: Placement) -> Dataset:
    # map_batches refuses batch_size=None with GPUs; the internal form is the same without that check.
    encoded: Dataset = dataset.map_batches_internal(
        worker,
        fn_constructor_args=(recipe, placed.threads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=placed.workers,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=3,
        ),
        max_restarts=_deaths(recipe),
        max_task_retries=_deaths(recipe),
        **placed.ray_options,
    )
    return encoded


def _consume(dataset: Dataset, results: queue.Queue[pa.Table | BaseException | None], over: threading.Event) -> None:
    """Runs in a thread, so that the main one is free to see signals. To let go of the iterator ends the dataset's work."""
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if over.is_set():
                return
            results.put(block)
        results.put(None)
    except BaseException as error:  # noqa: BLE001 -- handed to the main thread, which raises it
        results.put(error)
