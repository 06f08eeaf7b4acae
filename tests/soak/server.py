"""The server under the soak: its settings, its processes, and its Triton seen from beside."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import tritonclient.grpc as triton_grpc

from benchmarks import direct
from benchmarks.servers import MeasuredFrontend, Transport
from filmstrip import contract
from filmstrip.contract import ChunkParameters, Mode
from frontend.embedded.wheel import STUB
from tests.support import http
from tests.support.server import MODEL_NAMES

MIB = 2**20
UPLOAD_BYTES, ASSET_BYTES, JSON_BYTES = 6 * MIB, MIB // 4, MIB // 2
STOPPED_S = 2.0
BODY_TIMEOUT_S = STOPPED_S + 1.5  # a frontend that was stopped sees its clocks before what has come meanwhile
MODELS = tuple(MODEL_NAMES)
_FILE_BYTES = MIB // 2  # of an average file, about
_SHM = Path("/dev/shm")


class SoakServer:
    """One frontend with its embedded Triton, small limits and short times.

    Args:
        folder: for its files.
        ttl_s: how long files live.
        store_files: most of them at once.
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
            "model_restart_window_s": 0,  # the same models are killed again and again
            "keep_alive_s": 0.5,
        }
        self._frontend = MeasuredFrontend(folder, Transport.LANES, settings=settings)
        self.pid = self._frontend.pid
        self.url = self._frontend.url
        self.data_dir = self._frontend.data_dir
        self.log = self._frontend.log_path
        self._triton_url = self._frontend.triton_url
        self._shm_prefix = f"filmstrip-{hashlib.sha256(os.fsencode(self.data_dir.resolve())).hexdigest()[:12]}-"

    def stop(self) -> None:
        """End it."""
        self._frontend.stop()

    # -- Seen from outside ------------------------------------------------------------------------------

    def health(self) -> tuple[bool, bool]:
        """Whether it is healthy, and whether it generates."""
        with contextlib.suppress(httpx.TransportError):
            answer = http.get(f"{self.url}/health", timeout=10)
            return answer.status_code == 200, bool(answer.json()["generating"])
        return False, False

    def wait_whole(self, lost: psutil.Process | None, timeout_s: float) -> bool:
        """Wait until it is healthy with all its models, and a process that was killed is gone; False if not in time."""
        deadline = time.monotonic() + timeout_s
        while (lost is not None and is_alive(lost)) or len(self.stubs()) != len(MODELS) or not self.health()[0]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def stored_files(self) -> list[Path]:
        """Files in the data directory, without Triton's logs and links."""
        return [path for path in self.data_dir.glob("*/*") if path.parent.name != "triton" and path.is_file()]

    def shm_files(self) -> list[Path]:
        """Files in shared memory, Triton's among them."""
        return list(_SHM.glob(f"{self._shm_prefix}*"))

    # -- Its processes ----------------------------------------------------------------------------------

    def process(self) -> psutil.Process:
        """The frontend."""
        return psutil.Process(self.pid)

    def family(self) -> list[psutil.Process]:
        """All processes that the frontend started, and those that these started."""
        return self.process().children(recursive=True)

    def triton(self) -> psutil.Process | None:
        """The tritonserver of the moment."""
        return next((child for child in self.process().children() if _name(child) == "tritonserver"), None)

    def stubs(self) -> list[psutil.Process]:
        """The models' processes."""
        triton = self.triton()
        with contextlib.suppress(psutil.Error):
            return [child for child in triton.children() if _is_stub(child) and is_alive(child)] if triton else []
        return []

    def relay(self) -> psutil.Process | None:
        """The process that carries arrays where shared memory was refused, if one was started."""
        return next((child for child in self.process().children() if "frontend.relay" in _command(child)), None)

    # -- Its Triton, past the frontend ------------------------------------------------------------------

    def num_regions(self) -> int:
        """Regions of shared memory that Triton has registered."""
        with direct.connected(self._triton_url) as client:
            return len(client.get_system_shared_memory_status(client_timeout=10).regions)

    def num_sequences(self) -> int:
        """Sequences that the models hold for others.

        SentRequest with a sequence of one chunk, which is its start and its end.
        """
        told = ChunkParameters(0, 1, 64, 96, Mode.VIDEO)
        chunk = triton_grpc.InferInput(contract.CHUNK.name, [1], contract.CHUNK.dtype)
        chunk.set_data_from_numpy(np.array([told.to_json()], np.object_))
        video = triton_grpc.InferInput(contract.INPUT_VIDEO.name, [1, 64, 96, 3], contract.INPUT_VIDEO.dtype)
        video.set_data_from_numpy(np.zeros((1, 64, 96, 3), np.uint8))
        found = 0
        with direct.connected(self._triton_url) as client:
            for model in MODELS:
                answer = client.infer(
                    model,
                    [chunk, video],
                    sequence_id=time.monotonic_ns(),
                    sequence_start=True,
                    sequence_end=True,
                    timeout=2_000_000,  # microseconds; a sequence that was not ended would hold the one slot
                    client_timeout=10,
                )
                found += int(json.loads(answer.as_numpy(contract.REPORT.name)[0])["open_sequences"])
        return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs and has not ended yet; Triton leaves a dead model a zombie until it unloads it."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_stub(process: psutil.Process) -> bool:
    return Path((_command(process) or [""])[0]).name == STUB


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
