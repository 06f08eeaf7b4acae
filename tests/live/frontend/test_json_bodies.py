"""JSON bodies: their number of values, their memory all together, and other requests meanwhile."""

import asyncio
import contextlib
import json
import re
import select
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.errors import InvalidField, Overloaded
from frontend import bodies
from frontend.bodies import MAX_VALUES, JsonBodies, count_values
from frontend.connection import BoundedBody, Pace
from frontend.schema import LoadRequest
from tests.faults.test_slow_checks import always_healthy
from tests.support.http import GENERATE
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_recovers, eventually
from tests.support.server import Frontend, frontend_on

MIB = 2**20
PACE = Pace(60, 0)
SIGNS = st.sampled_from(['"', "\\", '\\"', '\\\\",[', "[{:,"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(st.characters(codec="utf-8")) | SIGNS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)


@given(JSON, st.booleans(), st.integers(1, 9))
def test_values_are_counted_outside_of_strings(value: Any, ascii_only: bool, piece_bytes: int) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    expected = len(re.findall(rb"[,:\[{]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_PIECE_BYTES", piece_bytes)
        assert count_values(data, 10**9) == expected


@contextlib.asynccontextmanager
async def reading(bodies: JsonBodies, data: bytes, client: str = "") -> AsyncIterator[LoadRequest]:
    body = BoundedBody(len(data), None)

    async def feed() -> None:
        await body.feed(data)
        body.set_complete()

    feeding = asyncio.create_task(feed())
    try:
        async with bodies.read(LoadRequest, body, content_length=len(data), client=client, pace=PACE) as parsed:
            yield parsed
    finally:
        feeding.cancel()


async def read(bodies: JsonBodies, data: bytes, client: str = "") -> LoadRequest:
    async with reading(bodies, data, client) as parsed:
        return parsed


def load_body(num_bytes: int) -> bytes:
    body = b'{"pipeline_ids": ["gray"]}'
    return body + b" " * (num_bytes - len(body))


async def test_bodies_count_from_their_first_byte_until_they_are_done_with() -> None:
    bodies = JsonBodies(limit_bytes=4 * MIB, total_bytes=8 * MIB)
    arriving = BoundedBody(None, None)
    reader = bodies.read(LoadRequest, arriving, content_length=None, client="", pace=PACE)
    entering = asyncio.create_task(reader.__aenter__())
    for _ in range(3):
        await arriving.feed(bytes(MIB))
    async with asyncio.timeout(5):
        while bodies._held.total() < 3 * MIB:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with reading(bodies, load_body(4 * MIB)) as parsed:
        assert parsed.pipeline_ids == ["gray"]
        with pytest.raises(Overloaded) as refused:
            await read(bodies, load_body(MIB))
        assert refused.value.headers == {"Retry-After": "1"}
        assert await read(bodies, load_body(60_000))  # a small one finds room
    assert await read(bodies, load_body(4 * MIB))
    entering.cancel()
    await asyncio.wait([entering])
    assert not bodies._held


async def test_a_client_has_half_of_the_memory() -> None:
    bodies = JsonBodies(limit_bytes=2 * MIB, total_bytes=8 * MIB)
    with bodies.reserving("alice") as first:
        first.grow(2 * MIB)
        with pytest.raises(Overloaded, match="your JSON bodies"):
            await read(bodies, load_body(2 * MIB), "alice")
        assert await read(bodies, load_body(2 * MIB), "bob")


async def test_too_many_values_are_refused_and_long_strings_are_not() -> None:
    bodies = JsonBodies(limit_bytes=16 * MIB, total_bytes=64 * MIB)
    for piece in (b"[],", b"0,", b'{"a":1},', b'"",'):
        data = b'{"pipeline_ids": [' + piece * (MAX_VALUES + 1) + b"0]}"
        with pytest.raises(InvalidField, match=f"{MAX_VALUES} keys"):
            await read(bodies, data)
    assert count_values(b'{"prompt": "' + b',[{:\\"\\\\' * MAX_VALUES + b'"}', MAX_VALUES) == 2
    long = json.dumps({"pipeline_ids": ["gray"], "load_params": {"x": ',[{:"\\' * 7000}}).encode()
    assert await read(bodies, long + b" " * 2 * MIB)


HEAVY = {
    "lists": b'{"prompt":[' + b"[]," * (5 * MIB) + b"[]]}",
    "keys": b"{" + b",".join(b'"a%d":1' % number for number in range(1_000_000)) + b"}",
    "numbers": b'{"denoising_steps":[' + b"1," * (8 * MIB - 40) + b"1]}",
}


async def test_bodies_of_millions_of_values_hold_nobody_up(server: Frontend) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        with assert_recovers(server), always_healthy(server):
            for body in HEAVY.values():
                posts = [client.post(f"{server.url}{GENERATE}", content=body) for _ in range(8)]
                answers = await asyncio.gather(*posts)
                assert {answer.status_code for answer in answers} <= {422, 503}
                assert 422 in {answer.status_code for answer in answers}
        for piece in (b"[],", b"{},"):  # as many as allowed
            body = b'{"pipeline_id":"probe","prompt":[' + piece * (MAX_VALUES // 2 - 10) + b"0]}"
            assert (await client.post(f"{server.url}{GENERATE}", content=body)).status_code == 422


def test_many_large_bodies_that_are_held_open_share_a_budget(server: Frontend, tmp_path_factory: Any) -> None:
    with frontend_on(server, tmp_path_factory.mktemp("budget")) as frontend:
        frontend.generate(**PROBE)
        before = frontend.rss_bytes()
        clients = [RawClient(frontend.url) for _ in range(60)]
        try:
            piece = b" " * MIB
            for client in clients:
                client.send_head("POST", GENERATE, {"Content-Length": str(16 * MIB)})
            for _ in range(15):
                for client in clients:
                    with contextlib.suppress(ConnectionError):  # refused, and no longer listened to
                        client.send(piece)
            assert frontend.generate(**PROBE)[-1][0] == "complete"  # a small body finds room
            assert frontend.rss_bytes() - before < 3 * 64 * MIB  # pieces on their way are not bodies yet
            sockets = [client.socket for client in clients]
            eventually(lambda: len(select.select(sockets, [], [], 0)[0]) >= 60 - 4)  # 4 bodies of 15 MiB are held
            refused = select.select(sockets, [], [], 0)[0]
            for client in clients:
                if client.socket in refused:
                    with contextlib.suppress(ConnectionError):
                        answer = client.read_head()
                        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            eventually(lambda: frontend.rss_bytes() - before < 2 * 64 * MIB)
        finally:
            for client in clients:
                client.reset()
        with assert_recovers(frontend, outputs=1):
            eventually(lambda: frontend.rss_bytes() - before < 64 * MIB)
            assert frontend.generate(**PROBE)[-1][0] == "complete"
