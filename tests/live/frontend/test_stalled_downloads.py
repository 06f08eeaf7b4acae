"""Downloads whose readers stop: their memory, what they leave, and their limit."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import http
from tests.support.http import DOWNLOAD
from tests.support.raw_client import RawClient
from tests.support.recovery import eventually
from tests.support.server import Frontend, frontend_on

MIB = 2**20
LARGE = {"pipeline_id": "probe", "prompt": "x", "num_frames": 64, "height": 512, "width": 512}  # 48 MiB: no buffer
WITHOUT_GC = """
import gc, signal, sys
gc.disable()
signal.signal(signal.SIGUSR2, lambda *_: print("unreachable:", gc.collect(), file=sys.stderr, flush=True))
sys.argv = ["frontend", *sys.argv[4:]]
from frontend.__main__ import main
main()
"""
"""The server, which collects reference cycles only on SIGUSR2, and then prints how many objects it found."""


def unreachable_objects(frontend: Frontend) -> int:
    """How many objects were in reference cycles that nothing refers to; they are gone after it."""
    before = frontend.log().count("unreachable:")
    frontend.process.send_signal(signal.SIGUSR2)
    eventually(lambda: frontend.log().count("unreachable:") > before)
    return int(re.findall(r"unreachable: (\d+)", frontend.log())[-1])


@contextmanager
def stalled_readers(frontend: Frontend, output: str, count: int) -> Iterator[list[RawClient]]:
    """Clients that have read the head of a download and read no more; they leave with a reset and without, in turn."""
    with ExitStack() as stack:
        clients = []
        for number in range(count):
            client = RawClient(frontend.url, small_buffers=True)
            stack.callback(client.close if number % 2 else client.reset)
            client.send_head("GET", f"{DOWNLOAD}?path={output}")
            clients.append(client)
        for client in clients:
            assert client.read_head().status == 200
        yield clients


def test_memory_comes_back_from_readers_that_stop(server: Frontend, tmp_path: Path) -> None:
    """100 of them five times over. They leave no reference cycles: the server here does not look for any by itself."""
    with frontend_on(server, tmp_path, launcher=(sys.executable, "-c", WITHOUT_GC)) as frontend:
        output = str(frontend.generate(**LARGE)[-1][1]["output_path"])
        whole = (frontend.data_dir / "outputs" / output).read_bytes()
        with stalled_readers(frontend, output, 10):
            pass
        unreachable_objects(frontend)
        start = frontend.rss_bytes()
        for _ in range(5):
            with stalled_readers(frontend, output, 100):
                assert frontend.rss_bytes() - start < 64 * MIB
            eventually(lambda: frontend.rss_bytes() - start < 64 * MIB, 20)
        assert unreachable_objects(frontend) < 500 * 10  # some of werkzeug's for each request, none of a connection
        answer = http.get(f"{frontend.url}{DOWNLOAD}", params={"path": output})
        assert answer.content == whole
        (frontend.data_dir / "outputs" / output).unlink()


def test_downloads_have_a_limit(server: Frontend, tmp_path: Path) -> None:
    """Refusals say when to retry; responses without a file do not count, and ended downloads no longer count."""
    with frontend_on(server, tmp_path, downloads=2) as frontend:
        output = str(frontend.generate(**LARGE)[-1][1]["output_path"])
        address, path = f"{frontend.url}{DOWNLOAD}", {"path": output}
        with stalled_readers(frontend, output, 2):
            refused = http.get(address, params=path)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "too_many_downloads"
            assert int(refused.headers["retry-after"]) > 0
            assert http.head(address, params=path).status_code == 200
            assert http.get(address, params=path, headers={"If-None-Match": "*"}).status_code == 304
            assert http.get(address, params={"path": "x"}).status_code == 404
            assert http.get(f"{frontend.url}/health").status_code == 200
        for _ in range(5):  # ranges that cannot be had, and downloads to the end, give their places back, too
            eventually(lambda: http.get(address, params=path, headers={"Range": "bytes=0-99"}).status_code == 206)
            assert http.get(address, params=path, headers={"Range": "bytes=-0"}).status_code == 416
        (frontend.data_dir / "outputs" / output).unlink()


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_what_a_stalled_reader_reads_stays_readable(server: Frontend, tmp_path: Path, how: str) -> None:
    """A stopped reader gets the rest of a file that was deleted or has expired meanwhile."""
    with frontend_on(server, tmp_path, store_ttl_s=3600 if how == "deleted" else 2) as frontend:
        output = str(frontend.generate(**LARGE)[-1][1]["output_path"])
        place = frontend.data_dir / "outputs" / output
        whole = place.read_bytes()
        with RawClient(frontend.url, small_buffers=True) as client:
            client.send_head("GET", f"{DOWNLOAD}?path={output}", {"Connection": "close"})
            answer = client.read_head()
            if how == "deleted":
                place.unlink()
            else:
                eventually(lambda: http.get(f"{frontend.url}{DOWNLOAD}?path={output}").status_code == 404, 10)
            assert answer.read() == whole
