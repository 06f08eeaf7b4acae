"""Which events of a generation are new, and when a client connects again; really cut: test_generations_live."""

import json

import httpx
import pytest

from filmstrip import endpoints, following
from filmstrip.client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    GenerationsUnsupported,
    Progress,
    Queued,
    ServerUnreachable,
    StreamBroken,
    TimedOut,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.errors import (
    FilmstripError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    QueueFull,
    ShuttingDown,
    Unauthorized,
    UnknownPath,
)
from filmstrip.following import Following

PROGRESS = {"total_chunks": 9, "frames": 3, "latency": 1.0, "fps": 3.0}
COMPLETE = {"output_path": "out", "video_shape": [5, 4, 6, 3], "num_frames": 5, "num_chunks": 1, "chunk_size": 12}
CUT = ConnectionFailed("cut")


def progress(number: int) -> tuple[str, str, str]:
    return "progress", json.dumps({"chunk": number, **PROGRESS}), str(number)


def connected(max_reconnects: int = 3) -> Following:
    found = Following("my-cat", max_reconnects=max_reconnects)
    found.connected()
    return found


def test_events_come_once_and_queued_ones_always():
    followed = Following("my-cat", after=2)
    followed.connected()
    received = [followed.receive(*progress(number)) for number in (1, 2, 3, 3, 4)]
    assert [event and event.chunk for event in received] == [None, None, 3, None, 4]
    assert followed.receive("queued", '{"position": 2}', "4") == Queued(2)
    assert followed.receive("message", "", "4") is None  # what httpx-sse makes of a comment
    assert followed.receive("invented later", "{}", "5") is None
    assert followed.after == 5  # the next stream does not repeat what this version does not know
    assert followed.call().headers["Last-Event-ID"] == "5"
    assert not followed.is_complete
    followed.receive("complete", json.dumps(COMPLETE), "6")
    assert followed.is_complete
    with pytest.raises(UnexpectedAnswer, match="unexpected progress event"):
        followed.receive("progress", "{}", "7")


def test_attempts_are_bounded_and_a_new_event_starts_the_count_again():
    followed = connected()
    for number in range(5):
        for _ in range(3):
            assert followed.pause_s(CUT) > 0
        followed.connected()
        followed.receive(*progress(number + 1))
    followed.receive("queued", '{"position": 2}', "5")
    for _ in range(2):
        followed.pause_s(CUT)
        followed.receive("queued", '{"position": 2}', "5")  # nothing new
    followed.pause_s(CUT)
    with pytest.raises(
        StreamBroken, match=r"generation my-cat after event 5, and 3 attempts to reconnect failed: cut$"
    ) as lost:
        followed.pause_s(CUT)
    assert (lost.value.id, lost.value.after) == ("my-cat", 5)


def test_a_stream_that_lasted_is_no_failed_attempt(monkeypatch):
    moments = iter(range(0, 10_000, 100))
    monkeypatch.setattr(following.time, "monotonic", lambda: float(next(moments)))
    followed = connected(max_reconnects=1)
    for _ in range(5):
        followed.pause_s(CUT)
        followed.connected()


def test_pauses_grow_and_respect_the_server():
    followed = connected(max_reconnects=20)
    pauses = [followed.pause_s(CUT) for _ in range(12)]
    for number, pause in enumerate(pauses):
        longest = min(0.25 * 2**number, 10)
        assert longest / 2 <= pause <= longest
    for asked, shortest, longest in (("7", 7, 10), ("0", 5, 10), ("100000", 300, 300), ("soon", 5, 10)):
        error = Overloaded("not now")
        error.headers = {"Retry-After": asked}
        assert shortest <= followed.pause_s(error) <= longest


def test_what_does_not_pass_is_raised_at_once(subtests: pytest.Subtests):
    passing = [CUT, TimedOut("slow"), ServerUnreachable("refused"), UnexpectedAnswer("proxy", 502), ShuttingDown("bye")]
    for error in passing:
        with subtests.test(type(error).__name__):
            connected().pause_s(error)
    for error in (NotFound("gone"), Unauthorized("no key"), UnexpectedAnswer("page", 200), UntrustedCertificate("no")):
        with subtests.test(type(error).__name__), pytest.raises(type(error)):
            connected().pause_s(error)
    # Before the first answer, only a connection that broke may have started something.
    Following("my-cat").pause_s(CUT)
    for error in (ServerUnreachable("refused"), TimedOut("slow"), QueueFull("full"), ShuttingDown("bye")):
        with subtests.test(f"first {type(error).__name__}"), pytest.raises(type(error)):
            Following("my-cat").pause_s(error)


def test_a_server_without_generations_is_recognised(subtests: pytest.Subtests):
    cases: list[tuple[FilmstripError | UnexpectedAnswer, bool]] = [
        (NotFound("nothing here"), True),
        (MethodNotAllowed("no PUT"), True),
        (UnexpectedAnswer("a proxy's page", 404), True),
        (UnexpectedAnswer("a proxy's page", 405), True),
        (UnknownPath("no such file"), False),
        (QueueFull("full"), False),
        (UnexpectedAnswer("a proxy's page", 502), False),
    ]
    call = endpoints.submit_and_follow({}, "my-cat")
    for error, is_unsupported in cases:
        with subtests.test(repr(error)):
            expected = GenerationsUnsupported if is_unsupported else type(error)
            with pytest.raises(expected):
                Following("my-cat", start=call).pause_s(error)
            with pytest.raises(type(error)):  # attaching to what does not exist is another matter
                Following("my-cat").pause_s(error)


def test_ids_and_keys_that_cannot_be_sent_are_refused():
    with Client("http://filmstrip.test") as client:
        for name in ("", "a/b", "x" * 65, "caf\u00e9"):
            with pytest.raises(ValueError, match="is not the id of a generation"):
                client.generations.get(name)
        with pytest.raises(ValueError, match="not both"):
            client.generations.submit(id="a", idempotency_key="b", pipeline_id="gray", prompt="")
        with pytest.raises(ValueError, match="255 printable"):
            client.generations.submit(idempotency_key="", pipeline_id="gray", prompt="")


class OlderServer:
    """Answers as servers before generations with an id did, and keeps the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(f"{request.method} {request.url.path}")
        if request.url.path == "/api/v1/generate":
            text = f"id: 1\nevent: complete\ndata: {json.dumps(COMPLETE)}\n\n"
            return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})
        return httpx.Response(404, json=NotFound("nothing here").body())

    async def asynchronously(self, request: httpx.Request) -> httpx.Response:
        return self(request)


async def test_a_run_on_an_older_server_is_the_classic_way():
    older = OlderServer()
    with Client("http://filmstrip.test", transport=httpx.MockTransport(older)) as client:
        assert client.run(pipeline_id="gray", prompt="").num_frames == 5
        for call in (client.generations.submit, client.generations.dry_run):
            with pytest.raises(GenerationsUnsupported):
                call(pipeline_id="gray", prompt="")
        assert not client.decodes_video_files()
    put, post, *_ = older.paths
    assert put.startswith("PUT /api/v1/generations/")
    assert post == "POST /api/v1/generate"
    async with AsyncClient("http://filmstrip.test", transport=httpx.MockTransport(older.asynchronously)) as client:
        assert (await client.run(pipeline_id="gray", prompt="")).num_frames == 5
        with pytest.raises(GenerationsUnsupported):
            await client.generations.submit(pipeline_id="gray", prompt="")
        assert not await client.decodes_video_files()


async def test_a_submission_whose_answer_is_lost_is_repeated_under_its_id(monkeypatch):
    monkeypatch.setattr(following, "_FIRST_PAUSE_S", 0.001)
    bodies: list[tuple[str, bytes]] = []

    def lose(request: httpx.Request) -> httpx.Response:
        bodies.append((request.url.path, request.read()))
        if len(bodies) % 3:
            raise httpx.ReadError("cut", request=request)
        resource = {"id": request.url.path.rpartition("/")[2], "state": "running", "created_at": 1}
        return httpx.Response(202, json=resource)

    async def lose_asynchronously(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return lose(request)

    with Client("http://filmstrip.test", transport=httpx.MockTransport(lose)) as client:
        submitted = client.generations.submit(pipeline_id="gray", prompt="", on_disconnect="cancel")
    async with AsyncClient("http://filmstrip.test", transport=httpx.MockTransport(lose_asynchronously)) as other:
        await other.generations.submit(pipeline_id="gray", prompt="", previews={"every": 2})
    assert len(set(bodies[:3])) == 1
    assert bodies[0][0] == f"/api/v1/generations/{submitted.id}"
    assert json.loads(bodies[0][1]) == {"pipeline_id": "gray", "prompt": "", "on_disconnect": "cancel"}
    assert json.loads(bodies[3][1])["previews"] == {"every": 2}


def test_progress_is_what_its_class_says():
    followed = connected()
    assert followed.receive(*progress(1)) == Progress(1, 9, 3, 1.0, 3.0)
