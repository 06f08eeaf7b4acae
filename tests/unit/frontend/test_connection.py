"""Request bodies with back-pressure, and what is bound to a connection's end."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Quart, Response, request

from filmstrip.errors import SlowBody
from frontend.connection import HIGH_WATER_BYTES, BoundedBody, BoundedRequest, Connection, Pace, on_close

LONG = Pace(60.0, 0)
FULL = bytes(HIGH_WATER_BYTES)


def body() -> BoundedBody:
    return BoundedBody(None, None)


async def is_blocked(task: asyncio.Task[None]) -> bool:
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


async def whole(of: BoundedBody, pace: Pace) -> bytes:
    return b"".join([piece async for piece in of.pieces(pace)])


def feeding(to: BoundedBody, *pieces: bytes, end: bool = True) -> asyncio.Task[None]:
    async def feed() -> None:
        for piece in pieces:
            await to.feed(piece)
        if end:
            to.set_complete()

    return asyncio.create_task(feed())


# -- Order and back-pressure --------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_bytes_come_out_in_the_order_in_which_they_went_in(pieces: list[bytes]) -> None:
    async def through() -> bytes:
        given_body = body()
        task = feeding(given_body, *pieces)
        data = await whole(given_body, LONG)
        await task
        return data

    assert asyncio.run(through()) == b"".join(pieces)


async def test_pieces_that_come_while_someone_reads_are_read_in_order() -> None:
    given_body = body()
    sent = [bytes([number % 256]) * (number * 1000) for number in range(1, 90)]
    task = feeding(given_body, *sent)
    assert b"".join([piece async for piece in given_body.pieces(LONG)]) == b"".join(sent)
    await task


async def test_feeding_goes_on_below_the_high_water_mark_and_stops_at_it() -> None:
    given_body = body()
    task = feeding(given_body, FULL[:-200], end=False)
    assert not await is_blocked(task)
    task = feeding(given_body, b"x" * 200, end=False)
    assert await is_blocked(task)
    assert await anext(given_body) == FULL[:-200]
    assert not await is_blocked(task)


async def test_many_small_pieces_count_for_the_memory_they_take() -> None:
    given_body = body()
    task = feeding(given_body, *[b"xy"] * 100_000, end=False)
    assert await is_blocked(task)


async def test_feeding_stops_again_after_it_was_let_go() -> None:
    given_body = body()
    task = feeding(given_body, FULL, FULL, FULL)
    for _ in range(3):
        assert await is_blocked(task)
        assert len(await anext(given_body)) == HIGH_WATER_BYTES
    assert not await is_blocked(task)
    with pytest.raises(StopAsyncIteration):
        await anext(given_body)


async def test_a_body_never_holds_more_than_the_mark_and_one_piece() -> None:
    given_body = body()
    fed = 0

    async def feed() -> None:
        nonlocal fed
        for _ in range(100):
            fed += 100_000
            await given_body.feed(bytes(100_000))
        given_body.set_complete()

    task = asyncio.create_task(feed())
    read = 0
    async for piece in given_body.pieces(LONG):
        read += len(piece)
        await asyncio.sleep(0)
        assert fed - read < HIGH_WATER_BYTES + 100_000
    await task
    assert read == 10_000_000


async def test_an_empty_body_ends_at_once() -> None:
    given_body = body()
    given_body.set_complete()
    assert await whole(given_body, LONG) == b""


# -- Limits -------------------------------------------------------------------------------------------------


async def test_a_body_that_stops_is_too_slow() -> None:
    given_body = body()
    await feeding(given_body, b"some", end=False)
    with pytest.raises(SlowBody, match=r"0\.02 s"):
        await whole(given_body, Pace(0.02, 0))


async def test_a_long_body_is_not_slow_while_it_keeps_coming() -> None:
    given_body = body()

    async def feed() -> None:
        for _ in range(10):
            await asyncio.sleep(0.02)
            await given_body.feed(b"x")
        given_body.set_complete()

    task = asyncio.create_task(feed())
    assert await whole(given_body, Pace(0.15, 0)) == b"x" * 10
    await task


async def test_a_body_that_trickles_is_too_slow_after_a_while() -> None:
    given_body = body()

    async def feed() -> None:
        while True:
            await asyncio.sleep(0.01)
            await given_body.feed(b"x")

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        feeding_slowly = group.create_task(feed())
        with pytest.raises(SlowBody, match="less than 1000 bytes per second"):
            await whole(given_body, Pace(0.1, 1000))
        feeding_slowly.cancel()


async def test_what_is_done_with_a_piece_is_not_the_clients_time() -> None:
    given_body = body()
    task = feeding(given_body, *[b"x" * 1000] * 10)
    received = 0
    async for piece in given_body.pieces(Pace(0.05, 100_000)):
        received += len(piece)
        await asyncio.sleep(0.02)
    await task
    assert received == 10_000


# -- Discarding ---------------------------------------------------------------------------------------------


async def test_discarding_reads_to_the_end() -> None:
    given_body = body()
    task = feeding(given_body, FULL, FULL, b"rest")
    await given_body.discard(2 * HIGH_WATER_BYTES + 4, 60)
    assert task.done()


async def test_discarding_stops_at_its_limit_and_lets_every_feed_go() -> None:
    given_body = body()
    task = feeding(given_body, FULL, FULL, FULL, FULL, end=False)
    await asyncio.wait_for(given_body.discard(HIGH_WATER_BYTES, 60), 5)
    assert not await is_blocked(task)
    task = feeding(given_body, FULL, FULL, end=False)
    assert not await is_blocked(task)


async def test_discarding_gives_up_on_a_slow_body_and_lets_its_feed_go() -> None:
    for wait_s in (0, 0.01):
        given_body = body()
        await feeding(given_body, b"some", end=False)
        await asyncio.wait_for(given_body.discard(1000, wait_s), 5)
        assert not await is_blocked(feeding(given_body, FULL, FULL, end=False))


async def test_discarding_gives_up_on_a_body_that_trickles() -> None:
    given_body = body()

    async def trickle() -> None:
        while True:
            await given_body.feed(b"x")
            await asyncio.sleep(0)

    task = asyncio.create_task(trickle())
    await asyncio.wait_for(given_body.discard(10**9, 0.01), 5)
    task.cancel()


async def test_what_comes_after_a_discard_is_not_kept() -> None:
    given_body = body()
    await given_body.discard(1000, 0.01)
    await given_body.feed(FULL)
    given_body.set_complete()
    assert await whole(given_body, LONG) == b""


async def test_discarding_a_body_that_was_read_ends_at_once() -> None:
    given_body = body()
    await feeding(given_body, b"all")
    assert await whole(given_body, LONG) == b"all"
    await asyncio.wait_for(given_body.discard(0, 60), 5)


# -- Connections --------------------------------------------------------------------------------------------


class App(Quart):
    request_class = BoundedRequest
    asgi_http_class = Connection


def app_that_tells(ended: list[str]) -> Quart:
    app = App(__name__)

    @app.post("/<how>")
    async def answer(how: str) -> Response:
        on_close(request).callback(ended.append, how)
        on_close(request).callback(ended.append, "inner")
        if how == "wait":
            await asyncio.Event().wait()
        assert isinstance(request.body, BoundedBody)
        return Response(await whole(request.body, LONG))

    return app


async def test_what_is_bound_to_a_connection_runs_after_the_answer_last_first() -> None:
    ended: list[str] = []
    answer = await app_that_tells(ended).test_client().post("/echo", data=b"hello")
    assert await answer.get_data() == b"hello"
    assert ended == ["inner", "echo"]


async def test_what_is_bound_to_a_connection_runs_when_the_client_goes_away() -> None:
    ended: list[str] = []
    async with app_that_tells(ended).test_client().request("/wait", method="POST") as connection:
        await connection.send(b"some")
        await asyncio.sleep(0.05)
        assert ended == []
        await connection.disconnect()
    assert ended == ["inner", "wait"]


async def test_a_body_in_several_messages_is_one_body_and_ends_with_the_last() -> None:
    async with app_that_tells([]).test_client().request("/echo", method="POST") as connection:
        for piece in (b"one ", b"", b"two"):
            await connection.send(piece)
            await asyncio.sleep(0.01)
        await connection.send_complete()
        assert await connection.receive() == b"one two"
