"""The server under test: its settings, its processes, and its Triton without the frontend."""

import contextlib
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.servers import MeasuredFrontend, Transport
from frontend.embedded.wheel import STUB
from tests.support import http
from tests.support.processes import command_line, descendants, is_running, relay_processes
from tests.support.recovery import open_sequences
from tests.support.server import MODEL_NAMES

MIB = 2**20
UPLOAD_BYTES, ASSET_BYTES, JSON_BYTES = 6 * MIB, MIB // 4, MIB // 2
STOPPED_S = 2.0
BODY_TIMEOUT_S = STOPPED_S + 1.5  # a resumed frontend checks its timeouts before it reads what has arrived meanwhile
MODELS = tuple(MODEL_NAMES)
_FILE_BYTES = MIB // 2  # roughly the average


class SoakServer:
    """A frontend with its embedded Triton, small limits and short timeouts.

    Args:
        folder: for its files.
        ttl_s: seconds until files expire.
        store_files: maximum number of files.
    """

    def __init__(self, folder: Path, ttl_s: float, store_files: int) -> None:
        settings = {
            "store_ttl_s": ttl_s,
            "store_bytes": store_files * _FILE_BYTES,
            "store_files": store_files,
            "upload_bytes": UPLOAD_BYTES,
            "blob_bytes": UPLOAD_BYTES,
            "asset_bytes": ASSET_BYTES,
            "json_bytes": JSON_BYTES,
            "body_timeout_s": BODY_TIMEOUT_S,
            "chunk_timeout_s": 5,
            "sequence_end_timeout_s": 2,
            "model_restart_window_s": 0,  # the same models are killed repeatedly
            "keep_alive_s": 0.5,
        }
        self.frontend = MeasuredFrontend(folder, Transport.LANES, settings=settings)
        self.pid = self.frontend.pid
        self.url = self.frontend.url
        self.data_dir = self.frontend.data_dir
        self.log = self.frontend.log_path

    def stop(self) -> None:
        """Stop it."""
        self.frontend.stop()

    # -- Its state -------------------------------------------------------------------------------------

    def health(self) -> tuple[bool, bool]:
        """Whether it is healthy, and whether it is generating."""
        with contextlib.suppress(httpx.TransportError):
            answer = http.get(f"{self.url}/health", timeout=10)
            return answer.status_code == 200, bool(answer.json()["generating"])
        return False, False

    def wait_recovered(self, lost: psutil.Process | None, timeout_s: float) -> bool:
        """Wait until it is healthy with all its models and the lost process is gone; False after the timeout."""
        deadline = time.monotonic() + timeout_s
        while (
            (lost is not None and is_running(lost))
            or len(self.model_processes()) != len(MODELS)
            or not self.health()[0]
        ):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def stored_files(self) -> list[Path]:
        """Files in the data directory, without Triton's logs and links."""
        return [path for path in self.data_dir.glob("*/*") if path.parent.name != "triton" and path.is_file()]

    def shm_files(self) -> list[Path]:
        """Files in shared memory, including those of Triton."""
        return self.frontend.all_in_shm()

    # -- Its processes ----------------------------------------------------------------------------------

    def process(self) -> psutil.Process:
        """The frontend."""
        return psutil.Process(self.pid)

    def descendants(self) -> list[psutil.Process]:
        """All child processes of the frontend and their children."""
        return descendants(self.frontend)

    def triton(self) -> psutil.Process | None:
        """The present tritonserver."""
        return next((child for child in self.process().children() if _name(child) == "tritonserver"), None)

    def model_processes(self) -> list[psutil.Process]:
        """The processes of the models."""
        children = self.descendants()
        return [
            child for child in children if Path((command_line(child) or [""])[0]).name == STUB and is_running(child)
        ]

    def relay(self) -> psutil.Process | None:
        """The process that carries arrays after shared memory was refused, if there is one."""
        return next(iter(relay_processes(self.frontend)), None)

    # -- Its Triton, without the frontend ---------------------------------------------------------------

    def num_regions(self) -> int:
        """Shared memory regions registered in Triton."""
        with self.frontend.triton_client() as client:
            return len(client.get_system_shared_memory_status(client_timeout=10).regions)

    def num_sequences(self) -> int:
        """Sequences that the models hold."""
        return sum(open_sequences(self.frontend, model) for model in MODELS)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""
