"""The clients against a transport that answers what the test says; on a real server: test_client_live."""

import asyncio
import io
import json
import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from filmstrip import __version__, cli
from filmstrip.client import (
    AsyncClient,
    BlobBuilder,
    Client,
    Complete,
    ConnectionFailed,
    GenerationCancelled,
    PipelineInfo,
    Progress,
    ServerUnreachable,
    TimedOut,
    UnexpectedAnswer,
    UntrustedCertificate,
    VideoShape,
)
from filmstrip.connection_settings import connection_options
from filmstrip.errors import ERRORS, Busy, DiskFull, FilmstripError, InvalidField, TlsUnsupported, UnknownPipeline
from filmstrip.http_errors import retry_after_s
from filmstrip.wire import pack_video_header
from tests.support.fake_server import Reply, fake_server

URL = "http://filmstrip.test:8000"
VIDEO = np.random.default_rng(2).integers(0, 256, (5, 4, 6, 3), np.uint8)
PROGRESS = {"chunk": 1, "total_chunks": 1, "frames": 5, "latency": 0.5, "fps": 10.0}
COMPLETE = {"output_path": "out", "video_shape": [5, 4, 6, 3], "num_frames": 5, "num_chunks": 1, "chunk_size": 12}
DOWNLOAD = pack_video_header(VideoShape(*VIDEO.shape)) + VIDEO.tobytes()


def event(number: int, name: str, data: dict) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


STREAM = event(1, "progress", PROGRESS) + ": keep-alive\n\n" + event(2, "complete", COMPLETE)


class Answers:
    """Answers every request alike and keeps the requests."""

    def __init__(self, status: int = 200, **answer) -> None:
        self.status = status
        self.answer = answer
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        return httpx.Response(self.status, **self.answer)

    async def asynchronously(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        return httpx.Response(self.status, **self.answer)

    def client(self, **options) -> Client:
        return Client(URL, transport=httpx.MockTransport(self), **options)

    def async_client(self) -> AsyncClient:
        return AsyncClient(URL, transport=httpx.MockTransport(self.asynchronously))


def stream(text: str) -> Answers:
    return Answers(content=text.encode(), headers={"Content-Type": "text/event-stream"})


def download(content: bytes = DOWNLOAD) -> Answers:
    return Answers(content=content, headers={"Content-Type": "application/octet-stream"})


def failing(error: Exception) -> Client:
    def fail(request: httpx.Request) -> httpx.Response:
        if isinstance(error, httpx.RequestError):
            error.request = request
        raise error

    return Client(URL, transport=httpx.MockTransport(fail))


# -- What is sent -------------------------------------------------------------------------------------------


def test_the_token_and_the_version_are_sent():
    answers = Answers(json={"status": "idle"})
    answers.client(token="secret").cancel()
    assert answers.requests[0].headers["Authorization"] == "Bearer secret"
    assert answers.requests[0].headers["User-Agent"] == f"filmstrip/{__version__}"
    answers.client().cancel()
    assert "Authorization" not in answers.requests[1].headers


def test_a_url_of_no_http_server_is_refused(subtests: pytest.Subtests):
    cases = ["127.0.0.1:8000", "ftp://server", "http://", "", "http://server:port"]
    for url in cases:
        with subtests.test(url=url), pytest.raises(ValueError, match="URL"):
            Client(url)


SENT_TO = [
    # FILMSTRIP_SERVER, base_url, the address used, whether FILMSTRIP_TOKEN is sent
    (None, None, "http://127.0.0.1:8000", True),
    ("", None, "http://127.0.0.1:8000", True),
    ("https://films.test/video/", None, "https://films.test/video", True),
    ("https://films.test", "https://films.test:443/", "https://films.test", True),
    (None, "http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
    (None, "http://127.0.0.1:8001", "http://127.0.0.1:8001", False),
    (None, "https://127.0.0.1:8000", "https://127.0.0.1:8000", False),
    ("https://films.test", "https://films.test/elsewhere", "https://films.test/elsewhere", False),
    ("https://films.test", "http://127.0.0.1:8000", "http://127.0.0.1:8000", False),
    ("https://films.test", "https://films.test.elsewhere", "https://films.test.elsewhere", False),
    ("films.test", "https://films.test", "https://films.test", False),
]


@pytest.mark.parametrize(("variable", "base_url", "used", "with_token"), SENT_TO)
async def test_the_environment_names_the_server_and_its_token_goes_to_no_other(
    variable, base_url, used, with_token, monkeypatch
):
    monkeypatch.delenv("FILMSTRIP_SERVER", raising=False)
    if variable is not None:
        monkeypatch.setenv("FILMSTRIP_SERVER", variable)
    monkeypatch.setenv("FILMSTRIP_TOKEN", " secret\n")

    async def sent(token: str | None) -> list[httpx.Request]:
        answers = Answers(json={"status": "idle"})
        Client(base_url, token, transport=httpx.MockTransport(answers)).cancel()
        async with AsyncClient(base_url, token, transport=httpx.MockTransport(answers.asynchronously)) as client:
            await client.cancel()
        return answers.requests

    for request in await sent(None):
        assert str(request.url) == f"{used}/api/v1/generate/cancel"
        assert request.headers.get("Authorization") == ("Bearer secret" if with_token else None)
    assert {request.headers.get("Authorization") for request in await sent("mine")} == {"Bearer mine"}
    assert {request.headers.get("Authorization") for request in await sent("")} == {None}
    monkeypatch.setenv("FILMSTRIP_TOKEN", "")
    assert {request.headers.get("Authorization") for request in await sent(None)} == {None}


def test_problems_of_the_environment_are_reported(monkeypatch, subtests: pytest.Subtests):
    cases = [
        ({"FILMSTRIP_SERVER": "127.0.0.1:8000"}, r"FILMSTRIP_SERVER: '127.0.0.1:8000' .*; write http://127.0.0.1:8000"),
        ({"FILMSTRIP_SERVER": "localhost:8000"}, r"FILMSTRIP_SERVER: .*write http://localhost:8000"),
        ({"FILMSTRIP_SERVER": "ftp://films.test"}, "FILMSTRIP_SERVER: .*not the URL of a server"),
        ({"FILMSTRIP_TOKEN": "k\u00e9y"}, "FILMSTRIP_TOKEN has characters"),
        ({"FILMSTRIP_TOKEN": "a\nb"}, "FILMSTRIP_TOKEN has characters"),
    ]
    for variables, said in cases:
        with subtests.test(variables=variables):
            for name in ("FILMSTRIP_SERVER", "FILMSTRIP_TOKEN"):
                monkeypatch.delenv(name, raising=False)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            for kind in (Client, AsyncClient):
                with pytest.raises(ValueError, match=said):
                    kind()


def test_retry_after_is_kept_and_read():
    def refused(text: str) -> FilmstripError:
        with pytest.raises(Busy) as raised:
            Answers(409, json=Busy("busy").body(), headers={"Retry-After": text}).client().cancel()
        return raised.value

    assert retry_after_s(refused("7")) == 7
    assert retry_after_s(refused("Wed, 21 Oct 2015 07:28:00 GMT")) == 0
    assert 0 < retry_after_s(refused(format_datetime(datetime.now(UTC) + timedelta(seconds=90)))) <= 90
    for text in ("soon", "-1", ""):
        assert retry_after_s(refused(text)) is None
    assert retry_after_s(Busy("busy")) is None


# -- TLS ----------------------------------------------------------------------------------------------------

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # for localhost and 127.0.0.1, signed by itself


async def test_a_certificate_of_ones_own_is_trusted_where_it_is_named(tmp_path):
    with_bom = tmp_path / "with a comment.pem"
    with_bom.write_text("\ufeff" + CERTIFICATE.read_text() + "\nd\u00e9j\u00e0 vu\n")
    context = ssl.create_default_context(cafile=CERTIFICATE)
    pipelines = Reply(200, b'{"pipelines": []}', {"Content-Type": "application/json"})
    with fake_server(pipelines, certificate=CERTIFICATE) as (url, _):
        with pytest.raises(UntrustedCertificate, match="not trusted: self-signed"):
            Client(url).pipelines()
        for verify in (CERTIFICATE, str(with_bom), context, False):
            assert Client(url, verify=verify).pipelines() == []
            async with AsyncClient(url, verify=verify) as client:
                assert await client.pipelines() == []

        refused = CliRunner().invoke(cli.main, ["pipelines", "--server", url])
        assert refused.exit_code == 3
        assert "--cacert" in refused.stderr
        assert CliRunner().invoke(cli.main, ["status", "--server", url]).exit_code == 3
        trusted = CliRunner().invoke(cli.main, ["pipelines", "--json", "--server", url, "--cacert", str(CERTIFICATE)])
        assert (trusted.exit_code, json.loads(trusted.stdout)) == (0, [])

    with fake_server(pipelines) as (url, _), pytest.raises(TlsUnsupported, match="write http://"):
        Client(url.replace("http:", "https:")).pipelines()
    for bad in (tmp_path / "missing.pem", Path(__file__)):
        with pytest.raises(ValueError, match=re.escape(str(bad))):
            Client(verify=bad)


def test_a_server_behind_a_path():
    answers = Answers(json={"status": "idle"})
    Client("https://proxy.test/video/", transport=httpx.MockTransport(answers)).cancel()
    assert str(answers.requests[0].url) == "https://proxy.test/video/api/v1/generate/cancel"


def test_an_upload_is_raw_bytes_with_the_shape_in_headers(subtests: pytest.Subtests):
    cases = [VIDEO, iter(VIDEO), [VIDEO.tobytes()]]
    for video in cases:
        with subtests.test(video=video):
            answers = Answers(json={"input_path": "in", "num_frames": 5, "shape": [5, 4, 6, 3]})
            uploaded = answers.client().upload(video, VideoShape(*VIDEO.shape))
            sent = answers.requests[0]
            assert (sent.method, sent.url.path) == ("POST", "/api/v1/generate/upload")
            assert [sent.headers[f"X-Video-{name}"] for name in ("Frames", "Height", "Width", "Channels")] == list(
                "5463"
            )
            assert sent.headers["Content-Length"] == str(VIDEO.nbytes)
            assert "Transfer-Encoding" not in sent.headers
            assert sent.content == VIDEO.tobytes()
            assert (uploaded.input_path, uploaded.num_frames, uploaded.shape) == ("in", 5, VIDEO.shape)


def test_an_upload_in_pieces_needs_a_shape():
    with pytest.raises(ValueError, match="shape"):
        Answers().client().upload(iter(VIDEO))


def test_an_upload_that_lacks_frames_is_not_sent_as_if_whole():
    with pytest.raises(ValueError, match="has 4 frames"):
        Answers().client().upload(iter(VIDEO[:4]), VideoShape(*VIDEO.shape))


def test_blobs_are_sent_in_all_their_forms():
    blob = BlobBuilder()
    blob.chunk(0, input_video=VIDEO)
    for data in (blob, VIDEO.tobytes(), iter([VIDEO[:2].tobytes(), VIDEO[2:].tobytes()])):
        answers = Answers(json={"data_blob_path": "blob", "size_bytes": VIDEO.nbytes})
        uploaded = answers.client().upload_data(data)
        assert answers.requests[0].content == VIDEO.tobytes()
        assert (uploaded.data_blob_path, uploaded.size_bytes) == ("blob", VIDEO.nbytes)


def test_an_asset_from_bytes_or_file(tmp_path):
    (tmp_path / "image.png").write_bytes(b"png")
    for image in (b"png", tmp_path / "image.png"):
        answers = Answers(json={"path": "asset"})
        assert answers.client().upload_asset(image) == "asset"
        assert answers.requests[0].content == b"png"


def test_keywords_win_over_the_dict_and_none_means_not_set():
    answers = stream(STREAM)
    request = {"pipeline_id": "gray", "prompt": "a", "seed": 1, "height": None}
    with answers.client().generate(request, seed=2, width=None) as events:
        list(events)
    assert json.loads(answers.requests[0].content) == {"pipeline_id": "gray", "prompt": "a", "seed": 2, "height": None}


def test_load():
    answers = Answers(json={"status": "loading"})
    assert answers.client().load("gray", {"height": 320}).status == "loading"
    assert answers.client().load(["gray", "scribble"]).status == "loading"
    assert [json.loads(sent.content) for sent in answers.requests] == [
        {"pipeline_ids": ["gray"], "load_params": {"height": 320}},
        {"pipeline_ids": ["gray", "scribble"]},
    ]


# -- Answers ------------------------------------------------------------------------------------------------


def test_events_are_typed_and_keep_alives_passed_over():
    with stream(STREAM).client().generate(pipeline_id="gray", prompt="") as events:
        assert list(events) == [Progress(1, 1, 5, 0.5, 10.0), Complete("out", VideoShape(5, 4, 6, 3), 5, 1, 12)]


def test_nothing_is_read_after_the_last_event():
    with stream(STREAM + event(3, "progress", PROGRESS)).client().generate() as events:
        assert isinstance(list(events)[-1], Complete)


def test_a_stream_without_a_last_event_is_a_broken_connection():
    with stream(event(1, "progress", PROGRESS)).client().generate() as events:
        assert isinstance(next(events), Progress)
        with pytest.raises(ConnectionFailed, match="ended before the generation"):
            next(events)


CANCELLED = {"chunk": 1, "total_chunks": 5, "frames_completed": 12, "output_path": "out", "video_shape": [12, 4, 6, 3]}


async def test_a_run_returns_the_complete_event_or_raises():
    seen = []
    complete = stream(STREAM).client().run({"prompt": ""}, pipeline_id="gray", on_event=seen.append)
    assert seen == [Progress(1, 1, 5, 0.5, 10.0), complete]
    async with stream(STREAM).async_client() as client:
        assert await client.run(pipeline_id="gray", on_event=seen.append) == complete
    assert seen == 2 * [Progress(1, 1, 5, 0.5, 10.0), complete]

    cancelled, failed = (
        event(1, "cancelled", CANCELLED),
        event(1, "error", {"error": "the disk is full", "code": "disk_full"}),
    )
    with pytest.raises(GenerationCancelled, match="after 12 frames") as raised:
        stream(cancelled).client().run()
    assert (raised.value.num_frames, raised.value.output_path) == (12, "out")
    with pytest.raises(DiskFull, match="the disk is full"):
        stream(failed).client().run()
    with pytest.raises(ConnectionFailed, match="ended before the generation"):
        stream(event(1, "progress", PROGRESS)).client(max_reconnects=0).run()
    async with stream(cancelled).async_client() as client:
        with pytest.raises(GenerationCancelled):
            await client.run()
    async with stream(failed).async_client() as client:
        with pytest.raises(DiskFull):
            await client.run()


async def test_the_old_name_of_load_status_still_works():
    answers = Answers(json={"status": "loaded", "pipeline_id": "gray"})
    with pytest.warns(DeprecationWarning, match="load_status"):
        assert answers.client().status() == answers.client().load_status()
    async with answers.async_client() as client:
        with pytest.warns(DeprecationWarning, match="load_status"):
            assert await client.status() == await client.load_status()


def test_an_answer_that_is_not_a_stream():
    with pytest.raises(UnexpectedAnswer, match="not Filmstrip's"), Answers(json={}).client().generate():
        pytest.fail("the block must not be entered")


def test_errors_of_the_caller_within_the_block_stay_its_own():
    with pytest.raises(httpx.ReadError, match="mine"), stream(STREAM).client().generate():
        raise httpx.ReadError("mine")


def test_downloads(tmp_path):
    client = download().client()
    np.testing.assert_array_equal(client.download("out"), VIDEO)
    np.testing.assert_array_equal(np.stack(list(client.download_frames("out"))), VIDEO)
    file = io.BytesIO()
    assert client.download_to("out", file) == len(DOWNLOAD)
    assert file.getvalue() == DOWNLOAD
    assert client.download_mp4("out", tmp_path / "out.mp4", 25) == 5


def test_a_download_that_ends_early_is_not_taken_for_whole(tmp_path):
    client = download(DOWNLOAD[:-1]).client()
    for read in (client.download, lambda path: list(client.download_frames(path))):
        with pytest.raises(ConnectionFailed, match="after 4 of 5 frames"):
            read("out")
    with pytest.raises(ConnectionFailed):
        client.download_mp4("out", tmp_path / "out.mp4", 25)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_is_used_but_for_this_machine(subtests: pytest.Subtests):
    cases = [
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", False),
        ("http://10.0.0.1", True),
        ("https://filmstrip.test", True),
    ]
    for url, used in cases:
        with subtests.test(url=url):
            assert connection_options(url, None, 60)["trust_env"] is used


@pytest.mark.parametrize(("name", "proxy"), [("ALL_PROXY", "socks5://127.0.0.1:9"), ("http_proxy", "bogus://x")])
async def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, name, proxy):
    monkeypatch.setenv(name, proxy)
    for kind in (Client, AsyncClient):
        with pytest.raises(ServerUnreachable, match=rf"the proxy in the environment \({name}\) cannot be used: "):
            kind("http://example.invalid")
    refused = CliRunner().invoke(cli.main, ["pipelines", "--server", "http://example.invalid"])
    assert refused.exit_code == 3
    assert name in refused.stderr


def test_the_path_of_a_download_is_quoted():
    answers = download()
    answers.client().download("a b&path=c")
    assert answers.requests[0].url.params["path"] == "a b&path=c"


def test_health_is_an_answer_even_when_it_is_bad():
    assert Answers(503, json={"status": "starting"}).client().health().status == "starting"
    with pytest.raises(UnexpectedAnswer, match="503"):
        Answers(503, content=b"<h1>Bad gateway</h1>").client().health()


def test_one_pipeline():
    client = Answers(json={"pipelines": [{"id": "gray", "chunk_size": 12}, {"id": "scribble"}]}).client()
    assert client.pipeline("gray") == PipelineInfo(id="gray", chunk_size=12)
    with pytest.raises(UnknownPipeline, match=r"'grey'.*gray, scribble"):
        client.pipeline("grey")


def test_a_server_that_gives_no_state_says_by_loaded_whether_a_pipeline_is_ready(subtests: pytest.Subtests):
    cases = [
        ({}, "ready"),
        ({"loaded": True}, "ready"),
        ({"loaded": False}, "unloaded"),
        ({"loaded": False, "state": None}, "unloaded"),
        ({"loaded": True, "state": None}, "ready"),
        ({"loaded": False, "state": ""}, "unloaded"),
        ({"loaded": False, "state": "failed"}, "failed"),
        ({"loaded": True, "state": "loading"}, "loading"),
    ]
    for answer, state in cases:
        with subtests.test(answer=answer):
            (pipeline,) = (
                Answers(json={"pipelines": [{"id": "gray", "sizes": [[64, 96]], **answer}]}).client().pipelines()
            )
            assert (pipeline.state, pipeline.sizes) == (state, [(64, 96)])


async def test_a_file_is_deleted_only_where_the_answer_has_no_body():
    gone, page = Answers(204), Answers(200, content=b"<h1>Sign in</h1>")
    gone.client().delete("output-1")
    with pytest.raises(UnexpectedAnswer, match="web page"):
        page.client().delete("output-1")
    async with gone.async_client() as client:
        await client.delete("output-1")
    async with page.async_client() as client:
        with pytest.raises(UnexpectedAnswer, match="web page"):
            await client.delete("output-1")


# -- Errors -------------------------------------------------------------------------------------------------


def test_every_error_of_the_server_is_raised_as_its_class(subtests: pytest.Subtests):
    cases = sorted(ERRORS)
    for code in cases:
        with subtests.test(code=code):
            error = ERRORS[code]("what happened", "seed")
            with pytest.raises(FilmstripError) as raised:
                Answers(error.status, json=error.body()).client().cancel()
            assert type(raised.value) is ERRORS[code]
            assert (raised.value.message, raised.value.field, raised.value.status) == (
                "what happened",
                "seed",
                error.status,
            )


def test_generate_and_download_raise_before_anything_is_read():
    client = Answers(409, json=Busy("another one runs").body()).client()
    with pytest.raises(Busy, match="another one runs"), client.generate():
        pytest.fail("the block must not be entered")
    with pytest.raises(Busy):
        client.download("out")


def test_an_answer_of_another_shape_names_its_status(subtests: pytest.Subtests):
    cases = [
        (502, {"content": b"<h1>Bad gateway</h1>"}, r"cannot reach it; .*\(502 Bad Gateway\)$"),
        (404, {"json": {"detail": "Not Found"}}, "404"),
        (500, {"content": b""}, r"\(500 Internal Server Error\)$"),
        (302, {"headers": {"Location": "/"}}, "302"),
        (429, {"json": {"error": {"code": "slow_down", "message": "too fast"}}}, r"too fast \(429 slow_down\)"),
        (400, {"json": {"error": "text"}}, "400"),
        (200, {"content": b"<h1>Welcome</h1>"}, "web page"),
        (200, {"json": []}, "200"),
        (200, {"json": {}}, "200"),
    ]
    for status, answer, shown in cases:
        with subtests.test(status=status):
            with pytest.raises(UnexpectedAnswer, match=shown) as raised:
                Answers(status, **answer).client().cancel()
            assert raised.value.status == status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), ServerUnreachable),
        (httpx.RemoteProtocolError("hung up"), ConnectionFailed),
        (httpx.ReadTimeout("slow"), TimedOut),
        (httpx.ConnectTimeout("slow"), TimedOut),
    ],
)
def test_a_connection_that_fails_names_the_server(error, kind):
    client = failing(error)
    for call in (client.cancel, lambda: client.download("out"), lambda: client.generate().__enter__()):
        with pytest.raises(ConnectionFailed, match=URL) as raised:
            call()
        assert type(raised.value) is kind


def test_a_server_that_is_not_there():
    with Client("http://127.0.0.1:9") as client, pytest.raises(ConnectionFailed, match=r"http://127\.0\.0\.1:9: "):
        client.health()


# -- asyncio ------------------------------------------------------------------------------------------------


async def test_async_upload_generate_download(tmp_path):
    async def slowly():
        for frame in VIDEO:
            await asyncio.sleep(0)
            yield frame

    for video in (VIDEO, iter(VIDEO), slowly()):
        answers = Answers(json={"input_path": "in", "num_frames": 5, "shape": [5, 4, 6, 3]})
        async with answers.async_client() as client:
            assert (await client.upload(video, VideoShape(*VIDEO.shape))).input_path == "in"
        assert answers.requests[0].content == VIDEO.tobytes()
        assert answers.requests[0].headers["Content-Length"] == str(VIDEO.nbytes)

    async with stream(STREAM).async_client() as client, client.generate(pipeline_id="gray") as events:
        assert [type(event) async for event in events] == [Progress, Complete]

    async with download().async_client() as client:
        np.testing.assert_array_equal(await client.download("out"), VIDEO)
        np.testing.assert_array_equal(np.stack([frame async for frame in client.download_frames("out")]), VIDEO)
        file = io.BytesIO()
        assert await client.download_to("out", file) == len(DOWNLOAD)
        assert file.getvalue() == DOWNLOAD
        assert await client.download_mp4("out", tmp_path / "out.mp4", 25) == 5


async def test_async_blobs_assets_and_load(tmp_path):
    async def slowly():
        for part in (b"123", b"45"):
            await asyncio.sleep(0)
            yield part

    blob = BlobBuilder()
    blob.chunk(0, input_video=np.full((1, 1, 1, 5), ord("1"), np.uint8))
    for data, sent in ((b"12345", b"12345"), (slowly(), b"12345"), (blob, b"11111")):
        answers = Answers(json={"data_blob_path": "blob", "size_bytes": 5})
        async with answers.async_client() as client:
            assert (await client.upload_data(data)).data_blob_path == "blob"
        assert answers.requests[0].content == sent

    (tmp_path / "image.png").write_bytes(b"png")
    for image in (b"png", tmp_path / "image.png"):
        answers = Answers(json={"path": "asset"})
        async with answers.async_client() as client:
            assert await client.upload_asset(image) == "asset"
        assert answers.requests[0].content == b"png"

    answers = Answers(json={"status": "loading"})
    async with answers.async_client() as client:
        assert (await client.load("gray")).status == "loading"
        with pytest.raises(ValueError, match="shape"):
            await client.upload(iter(VIDEO))
    assert json.loads(answers.requests[0].content) == {"pipeline_ids": ["gray"]}


async def test_async_errors():
    error = InvalidField("seed must be positive", "seed")
    async with Answers(422, json=error.body()).async_client() as client:
        with pytest.raises(InvalidField, match="positive"):
            await client.load_status()
        with pytest.raises(InvalidField, match="positive"):
            async with client.generate():
                pytest.fail("the block must not be entered")
        with pytest.raises(ValueError, match="has 4 frames"):
            await client.upload(iter(VIDEO[:4]), VideoShape(*VIDEO.shape))
        with pytest.raises(UnknownPipeline):
            async with Answers(json={"pipelines": []}).async_client() as empty:
                await empty.pipeline("gray")
    async with download(DOWNLOAD[:-1]).async_client() as client:
        with pytest.raises(ConnectionFailed, match="after 4 of 5 frames"):
            [frame async for frame in client.download_frames("out")]
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(ConnectionFailed):
            await client.health()
    async with stream(event(1, "progress", PROGRESS)).async_client() as client, client.generate() as events:
        with pytest.raises(ConnectionFailed, match="ended before the generation"):
            [event async for event in events]


async def test_the_async_client_has_every_method_of_the_other():
    def names(kind: type) -> set[str]:
        return {name.removeprefix("a") if name == "aclose" else name for name in vars(kind) if not name.startswith("_")}

    assert names(AsyncClient) == names(Client)


def test_a_server_that_goes_away_in_an_answer_is_named_so():
    def cut(_: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    with (
        Client("http://127.0.0.1:9", transport=httpx.MockTransport(cut)) as client,
        pytest.raises(ConnectionFailed, match=r"the server closed the connection before its answer was complete$"),
    ):
        client.pipelines()


def test_a_user_in_the_url_and_a_token_exclude_each_other(monkeypatch):
    with pytest.raises(ValueError, match="has a user") as caught:
        Client("http://me:secret@127.0.0.1:9", "key")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("FILMSTRIP_SERVER", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("FILMSTRIP_TOKEN", "key")
    with pytest.raises(ValueError, match="has a user"):
        Client()
    Client(token="").close()
