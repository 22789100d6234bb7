"""A proxy between the pipeline and an S3 server that does to requests what networks and busy stores do, by rules and a seed.

    busy, failing       503 SlowDown, or 500 InternalError; the request does not reach the server
    reset               the connection breaks before the request reaches the server
    cut                 the connection breaks while the request's body is sent; nothing reaches the server
    lost                the server does the work, and the connection breaks before its answer
    late                the answer comes `seconds` later
    stuck               no answer, and the connection stays open
    dribble             the answer's body comes in small parts with pauses, `seconds` in all
    torn                the answer's body ends early, against its Content-Length
    short               the same, with a Content-Length that says so: a store that lies
    blind               the condition If-None-Match does not reach the server

One request meets one fault at most: the first rule that applies. Whether a rule with a probability applies is drawn from the
seed, the kind of request (its line without names made up by chance, as of buckets and runs) and how many of it came before,
so a test meets the same faults in every run.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_ERRORS = {
    "busy": (503, "SlowDown", "Please reduce your request rate."),
    "failing": (500, "InternalError", "We encountered an internal error."),
}
_PARTS = 8
_MADE_UP = re.compile(r"[0-9a-f]{8,}")


@dataclass
class Rule:
    """A fault for requests whose "VERB /bucket/key?query" matches `where` (searched, unquoted)."""

    kind: str
    where: str = ""
    probability: float = 1.0
    times: int | None = None
    """Requests it strikes, at most."""
    skip: int = 0
    """Matching requests that it lets pass first."""
    seconds: float = 0.0
    seen: int = 0
    struck: int = 0


@dataclass(frozen=True)
class _Request:
    line: str
    """VERB /bucket/key?query, unquoted."""
    head: bytes
    headers: dict[str, str]


@dataclass
class Proxy:
    """Running between `serve`'s entry and exit. `rules` may be replaced at any time."""

    upstream: str
    seed: int
    rules: Sequence[Rule] = ()
    requests: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    log: list[tuple[str, str]] = field(default_factory=list)
    """Each request's line and the fault that it met, "" for none."""
    port: int = 0
    _came: Counter[str] = field(default_factory=Counter)

    @property
    def endpoint_url(self) -> str:
        """What clients are given for the server's address."""
        return f"http://127.0.0.1:{self.port}"

    def strike(self, line: str) -> Rule | None:
        """The rule that applies to a request, counted and logged."""
        self.requests += 1
        kind = _MADE_UP.sub("", line)
        self._came[kind] += 1
        struck = next((rule for n, rule in enumerate(self.rules) if self._applies(n, rule, line, kind)), None)
        if struck:
            struck.struck += 1
            self.injected[struck.kind] += 1
        self.log.append((line, struck.kind if struck else ""))
        return struck

    def _applies(self, n: int, rule: Rule, line: str, kind: str) -> bool:
        if not re.search(rule.where, line):
            return False
        rule.seen += 1
        if rule.seen <= rule.skip or (rule.times is not None and rule.struck >= rule.times):
            return False
        return random.Random(f"{self.seed} {n} {kind} {self._came[kind]}").random() < rule.probability

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one client until it, or a fault, closes."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (request := await _read_request(reader)) and await self._answer(request, reader, writer):
                pass
        with suppress(ConnectionError, RuntimeError):
            writer.close()

    async def _answer(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is good for another request."""
        rule = self.strike(request.line)
        kind = rule.kind if rule else ""
        length = int(request.headers.get("content-length", "0"))
        if request.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind == "cut":
            await reader.readexactly(length // 2)
            return _reset(writer)
        body = await reader.readexactly(length)
        if kind == "reset":
            return _reset(writer)
        if kind == "stuck":
            await asyncio.sleep(3600)
        if kind in _ERRORS:
            writer.write(_error(kind, head_only=request.line.startswith("HEAD ")))
            await writer.drain()
            return True
        head, answer = await self._forward(request, body, blind=kind == "blind")
        if kind == "lost":
            return _reset(writer)
        if kind == "late" and rule:
            await asyncio.sleep(rule.seconds)
        return await _send(writer, head, answer, rule)

    async def _forward(self, request: _Request, body: bytes, *, blind: bool) -> tuple[bytes, bytes]:
        """The server's answer: its head without Connection and Content-Length, and its body."""
        address = urlsplit(self.upstream)
        dropped = {"connection", "expect", "host", *(["if-none-match"] if blind else [])}
        first, *lines = request.head.split(b"\r\n")
        kept = [line for line in lines if line and line.split(b":")[0].decode().lower() not in dropped]
        head = [first, f"Host: {address.netloc}".encode(), b"Connection: close", *kept]
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
        return tuple(answer.split(b"\r\n\r\n", 1))  # type: ignore[return-value]


@contextmanager
def serve(upstream: str, seed: int, *rules: Rule) -> Iterator[Proxy]:
    """A proxy in a thread of its own, in front of the server at `upstream`."""
    proxy = Proxy(upstream, seed, rules)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def main() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await proxy.connection(reader, writer)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=200)
        proxy.port = server.sockets[0].getsockname()[1]
        started.set()
        await stopping.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stopping = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), name="proxy")
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        loop.close()


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    assert "chunked" not in headers.get("transfer-encoding", ""), "clients here send bodies of known length"
    verb, target, _ = first.split(" ")
    return _Request(f"{verb} {unquote(target)}", head[:-4], headers)


def _error(kind: str, *, head_only: bool) -> bytes:
    status, code, message = _ERRORS[kind]
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if head_only else head + body


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes, rule: Rule | None) -> bool:
    """The answer, with what the rule does to its body. Whether the connection is good for another request."""
    kind = rule.kind if rule else ""
    lines = head.split(b"\r\n")
    length = next((line.split(b":")[1].strip() for line in lines if line.lower().startswith(b"content-length:")), None)
    said = length.decode() if length is not None else str(len(body))
    sent = body[: len(body) // 2] if kind in {"torn", "short"} else body
    if kind == "short" and body:
        said = str(len(sent))
    kept = [line for line in lines if not re.match(rb"(?i)(connection|content-length|transfer-encoding):", line)]
    kept[0] = re.sub(rb"^HTTP/1\.\d", b"HTTP/1.1", kept[0])
    writer.write(b"\r\n".join([*kept, f"Content-Length: {said}".encode()]) + b"\r\n\r\n")
    parts = _PARTS if kind == "dribble" else 1
    step = max(1, -(-len(sent) // parts))
    for start in range(0, len(sent), step):
        writer.write(sent[start : start + step])
        await writer.drain()
        if rule and kind == "dribble":
            await asyncio.sleep(rule.seconds / parts)
    await writer.drain()
    return not (kind == "torn" and body)


def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.transport.abort()
    return False
