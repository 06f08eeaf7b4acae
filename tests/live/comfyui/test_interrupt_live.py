"""The stop button, busy servers, and everything that goes wrong: against the real server."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import comfyui.client
from comfyui import generation
from comfyui.client import ServerClient, server_address
from comfyui.errors import FilmstripError
from comfyui.nodes_server import FilmstripServer
from tests.support import http
from tests.support.comfyui.host import Comfy, array_of, ramp
from tests.support.comfyui.nodes import chunk_spec, generate, pipeline
from tests.support.recovery import SOON_S, assert_recovers, eventually, is_generating
from tests.support.server import MODELS, Frontend, frontend_on


@contextmanager
def pressed_stop(comfy: Comfy, when: object) -> Iterator[list[float]]:
    """Somebody presses stop as soon as a condition holds; gives the moment."""
    assert callable(when)
    moments: list[float] = []

    def press() -> None:
        eventually(when)
        moments.append(time.monotonic())
        comfy.model_management.interrupt_current_processing()

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield moments
    finally:
        thread.join(30)


@pytest.fixture
def patience_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a call that was stopped waits for its own thread; it raises sooner only if that thread has ended.

    Longer than a busy machine needs, and shorter than the connection's timeout, which would end the thread as well.
    """
    monkeypatch.setattr(comfyui.client, "_JOIN_S", 20.0)
    return 20.0


def num_cancels(server: Frontend) -> int:
    """How often a generation was ended by a request."""
    return server.log().count("DELETE /api/v1/generations/")


def test_stop_cancels_on_the_server_within_a_second(server: Frontend, comfy: Comfy):
    probe, before = pipeline(server), len(server.probe_entries())
    with (
        assert_recovers(server),
        pressed_stop(comfy, lambda: len(server.probe_entries()) > before) as moments,
        pytest.raises(comfy.interrupted),
    ):
        generate(probe, prompt="!sleep 30")
    assert time.monotonic() - moments[0] < 20  # the checks of `assert_recovers` are within
    probed = [entry for entry in server.probe_entries()[before:] if entry["event"] == "cancelled"]
    assert len(probed) == 1, "the model was told"


def test_stop_raises_at_once_and_frees_the_slot(server: Frontend, comfy: Comfy, patience_s: float):
    probe, before, asked = pipeline(server), len(server.probe_entries()), num_cancels(server)
    with pressed_stop(comfy, lambda: len(server.probe_entries()) > before) as moments, pytest.raises(comfy.interrupted):
        generate(probe, prompt="!sleep 30")
    assert time.monotonic() - moments[0] < SOON_S
    eventually(lambda: not is_generating(server), SOON_S)
    assert num_cancels(server) == asked + 1


def test_stop_while_waiting_does_not_cancel_the_generation_of_another(server: Frontend, comfy: Comfy):
    with server.stream(pipeline_id="probe", prompt="!sleep 0.5", num_frames=33) as events:
        waits = lambda: any("busy" in text for text in comfy.texts)  # noqa: E731
        with pressed_stop(comfy, waits) as moments, pytest.raises(comfy.interrupted):
            generate(pipeline(server), wait_when_busy_s=60)
        assert time.monotonic() - moments[0] < SOON_S
        assert [name for name, _ in events][-1] == "complete"


def test_stop_before_the_generation_is_accepted_cancels_nobody(server: Frontend, comfy: Comfy):
    with server.stream(pipeline_id="probe", prompt="!sleep 0.5", num_frames=9) as events:
        probe = pipeline(server)
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.interrupted):
            generate(probe)
        assert [name for name, _ in events][-1] == "complete"


def test_a_busy_server_is_waited_for_visibly(server: Frontend, comfy: Comfy):
    with server.stream(pipeline_id="probe", prompt="!sleep 0.7", num_frames=9) as events:
        next(iter_until_running(server))
        reader = threading.Thread(target=lambda: list(events))
        reader.start()
        _, count, report = generate(pipeline(server), wait_when_busy_s=30)
        reader.join(30)
    assert count == 33
    assert report["busy_s"] > 0
    assert comfy.texts.count("the server is busy with another generation; waiting up to 30 s") == 1


def iter_until_running(server: Frontend) -> Iterator[None]:
    eventually(lambda: is_generating(server))
    yield


def test_a_server_that_stays_busy_is_an_error_after_the_set_time(server: Frontend, comfy: Comfy):
    with server.stream(pipeline_id="probe", prompt="!sleep 20", num_frames=9):
        eventually(lambda: is_generating(server))
        started = time.monotonic()
        with pytest.raises(FilmstripError, match=r"the server is busy: .*Gave up after [12] s: see longest wait"):
            generate(pipeline(server), wait_when_busy_s=1)
        assert 1 <= time.monotonic() - started < 1 + SOON_S
        with pytest.raises(FilmstripError, match=r"^the server is busy: [^.]*\.$") as caught:
            generate(pipeline(server), wait_when_busy_s=0)
        assert caught.value.code == "busy"


def test_a_refused_field_is_one_readable_error(server: Frontend, comfy: Comfy):
    with pytest.raises(FilmstripError, match="height: 72 is not a multiple of 16, try 64 or 80") as caught:
        generate(pipeline(server), height=72)
    assert (caught.value.code, caught.value.field) == ("invalid_field", "height")
    with pytest.raises(FilmstripError, match="chunk 99"):
        generate(pipeline(server), chunk_specs=chunk_spec(99, text="x"))
    with pytest.raises(FilmstripError, match=r"^control strength: gray does not support vace"):
        generate(pipeline(server, "gray"), images=comfy.tensor(ramp(2)), vace_context_scale=0.2)


@pytest.mark.parametrize(
    ("prompt", "code"), [("!error", "model_error"), ("!raise", "model_error"), ("!shape", "bad_model_output")]
)
def test_a_model_that_fails_is_one_readable_error(server: Frontend, comfy: Comfy, prompt: str, code: str):
    with assert_recovers(server), pytest.raises(FilmstripError) as caught:
        generate(pipeline(server), prompt=prompt)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert "/opt" not in str(caught.value)


def test_somebody_elses_cancel_is_an_error_and_no_short_video(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    probe = pipeline(server)

    def cancel() -> None:
        eventually(lambda: len(server.probe_entries()) > before)
        (running,) = http.get(f"{server.url}/api/v1/generations?state=running").json()["generations"]
        http.post(f"{server.url}{running['links']['cancel']}")

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(FilmstripError, match=r"cancelled by someone else, after (9|21) frames"):
        generate(probe, prompt="!sleep 0.4", num_frames=60)
    thread.join(30)


def test_a_server_that_is_down_is_a_readable_error(comfy: Comfy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            FilmstripError, match=f"cannot reach a Filmstrip server at {url}: Connection refused"
        ) as caught:
            pipeline(url)
    assert caught.value.code == "unreachable"
    assert caught.value.__cause__ is None


def test_a_server_that_dies_under_way_is_a_readable_error(
    comfy: Comfy, start_frontend: Callable[..., Frontend], monkeypatch: pytest.MonkeyPatch
):
    frontend = start_frontend("--embedded", model_repository=MODELS)  # with a Triton of its own, which dies with it
    frontend.wait_healthy()
    monkeypatch.setattr(generation, "REATTACH_S", 1.0)
    probe = pipeline(frontend)

    def kill() -> None:
        eventually(frontend.probe_entries)
        frontend.process.kill()
        frontend.process.wait(10)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(FilmstripError, match=r"lost the connection|ended the stream before|cannot reach") as caught:
        generate(probe, prompt="!sleep 3")
    thread.join(30)
    assert caught.value.code in ("broken", "unreachable")
    with pytest.raises(FilmstripError, match="cannot reach a Filmstrip server"):
        generate(probe)


def test_a_silent_server_is_a_timeout(comfy: Comfy):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FilmstripError, match=f"the Filmstrip server at {url} sent nothing for 1 s") as caught:
            FilmstripServer().check(address=url, timeout_s=1.0)
    assert caught.value.code == "timed_out"


def test_stop_ends_any_wait(comfy: Comfy, patience_s: float):
    accepted: list[socket.socket] = []

    def connected() -> bool:
        accepted.append(silent.accept()[0])
        return True

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        with pressed_stop(comfy, connected) as moments, pytest.raises(comfy.interrupted):
            pipeline(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - moments[0] < patience_s
    accepted[0].close()


@pytest.mark.parametrize("call", ["upload", "download"])
def test_stop_ends_a_transfer_that_stands_still(call: str, patience_s: float):
    """Against a server that takes a request's head, and sends that of an answer, but moves no bytes of a video."""
    accepted: list[socket.socket] = []

    def answer() -> None:
        connection, _ = stalled.accept()
        accepted.append(connection)
        connection.recv(2**12)
        if call == "download":
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\n"
            )

    polled = itertools.count()

    def stop() -> None:
        if next(polled) == 5:
            raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as stalled:
        thread = threading.Thread(target=answer)
        thread.start()
        client = ServerClient(server_address(f"http://127.0.0.1:{stalled.getsockname()[1]}"), stop)
        frame = np.zeros((1024, 1024, 3), np.uint8).data
        started = time.monotonic()
        calls = {
            "upload": lambda: client.upload((50, 1024, 1024, 3), [frame] * 50),
            "download": lambda: client.download("output-x", lambda _, frames: list(frames)),
        }
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        assert time.monotonic() - started < patience_s
        thread.join(10)
        accepted[0].close()


def test_images_that_are_no_numbers_are_named(server: Frontend, comfy: Comfy):
    broken = ramp(3)
    broken[1, 5, 5] = np.nan
    with assert_recovers(server), pytest.raises(FilmstripError, match="NaN"):
        generate(pipeline(server, "passthrough"), images=comfy.tensor(broken), num_frames=0)
    with assert_recovers(server), pytest.raises(FilmstripError, match="control frames") as caught:
        generate(pipeline(server), vace_frames=comfy.tensor(broken), num_frames=9)
    assert caught.value.code == "bad_input"


def test_https_to_a_server_without_is_a_readable_error(server: Frontend, comfy: Comfy):
    with pytest.raises(FilmstripError, match="cannot open a TLS connection to the Filmstrip server at https://"):
        pipeline(server.url.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        ("404 Not Found", "not here\n", r"no Filmstrip server at this address.*404 Not Found\): 'not here'"),
        ("200 OK", "<html>", r"a web page, perhaps a network's"),
        (
            "200 OK",
            '{"pipelines": [{"id": "x", "features": {}}]}',
            r"is not a Filmstrip server: it answered \{'pipelines'",
        ),
        ("500 Oops", '{"error": {"code": "internal_error", "message": "a fault", "field": "seed"}}', "^seed: a fault$"),
    ],
)
def test_another_kind_of_server_is_named(head: str, body: str, message: str):
    def answer() -> None:
        connection, _ = other.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=answer)
        thread.start()
        client = ServerClient(server_address(f"http://127.0.0.1:{other.getsockname()[1]}"), lambda: None)
        with pytest.raises(FilmstripError, match=message):
            client.pipelines()
        thread.join(10)


def test_a_server_with_keys_takes_the_token_and_says_when_it_is_missing(
    server: Frontend, comfy: Comfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with frontend_on(server, tmp_path, api_keys="studio:the-key-of-the-studio-0123456789") as frontend:
        with pytest.raises(FilmstripError, match=r"token of the Server node, or in FILMSTRIP_TOKEN") as caught:
            pipeline(frontend)
        assert caught.value.code == "unauthorized"
        images, _, report = generate(pipeline(frontend, token="the-key-of-the-studio-0123456789"), num_frames=9)
        assert array_of(images).shape == (9, 64, 96, 3)
        assert "the-key" not in str(report)
        monkeypatch.setenv("FILMSTRIP_TOKEN", "the-key-of-the-studio-0123456789")
        with pytest.raises(FilmstripError, match="only to the address that FILMSTRIP_SERVER names"):
            pipeline(frontend)
        monkeypatch.setenv("FILMSTRIP_SERVER", f" {frontend.url}/ ")
        assert "the-key" not in repr(pipeline(frontend))


def test_a_refused_upload_shows_the_servers_message(server: Frontend, comfy: Comfy, tmp_path: Path):
    with frontend_on(server, tmp_path, upload_bytes=2**20, refused_body_bytes=0) as frontend:
        with pytest.raises(FilmstripError) as caught:
            generate(pipeline(frontend, "passthrough"), images=comfy.tensor(ramp(200)), num_frames=0)
        assert caught.value.code == "too_large", str(caught.value)
