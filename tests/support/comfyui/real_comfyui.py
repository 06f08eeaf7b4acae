"""A real ComfyUI as a process, and its HTTP API."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, Request, TextMessage

from tests.support import http
from tests.support.server import ROOT

START_S = 100
PACK_FOLDER = "comfyui-filmstrip"


class Page:
    """The websocket of ComfyUI's page."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._connection = connection
        self._websocket = WSConnection(ConnectionType.CLIENT)
        host, port = connection.getpeername()
        connection.sendall(self._websocket.send(Request(host=f"{host}:{port}", target=f"/ws?clientId={name}")))

    def messages(self) -> Iterator[dict[str, Any] | bytes]:
        """What comes: JSON messages as dicts, others as they are."""
        text, raw = "", b""
        while data := self._connection.recv(2**16):
            self._websocket.receive_data(data)
            for event in self._websocket.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        yield json.loads(text)
                        text = ""
                elif isinstance(event, BytesMessage):
                    raw += event.data
                    if event.message_finished:
                        yield raw
                        raw = b""


class RealComfyUI:
    """`main.py --cpu` of the checkout in COMFYUI_DIR, with our pack linked into its custom nodes.

    Its Python is COMFYUI_PYTHON, else the one of the tests.
    """

    def __init__(self, folder: Path) -> None:
        checkout = Path(os.environ["COMFYUI_DIR"])
        self.output = folder / "output"
        self.log_path = folder / "comfyui.log"
        for name in ("custom_nodes", "input", "output", "user", "temp", "models"):
            (folder / name).mkdir()
        (folder / "custom_nodes" / PACK_FOLDER).symlink_to(ROOT / "comfyui")
        shutil.copy(checkout / "input" / "example.png", folder / "input")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", str(port), "--base-directory", str(folder), "--disable-api-nodes"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("FILMSTRIP_", "PYTHON"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if http.get(f"{self.url}/system_stats").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(15)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def object_info(self) -> dict[str, Any]:
        """What ComfyUI tells its page of all nodes."""
        info: dict[str, Any] = http.get(f"{self.url}/object_info").json()
        return info

    def queue(self, graph: dict[str, Any], page: str = "") -> str:
        """Queue a workflow in API format, for a page that listens; gives its id."""
        answer = http.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": page})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt_id"])

    def refusal(self, graph: dict[str, Any]) -> str:
        """What ComfyUI says of a workflow that it doesn't queue."""
        answer = http.post(f"{self.url}/prompt", json={"prompt": graph})
        assert answer.status_code == 400, answer.text
        return answer.text

    def wait(self, prompt_id: str, timeout_s: float = 90) -> dict[str, Any]:
        """The history of a workflow that has ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            history = http.get(f"{self.url}/history/{prompt_id}").json()
            if prompt_id in history:
                ended: dict[str, Any] = history[prompt_id]
                return ended
            assert time.monotonic() < deadline, self.log()[-4000:]
            time.sleep(0.05)

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a workflow that must succeed, by node."""
        ended = self.wait(self.queue(graph))
        assert ended["status"]["status_str"] == "success", ended["status"]
        outputs: dict[str, Any] = ended["outputs"]
        return outputs

    def fails(self, graph: dict[str, Any]) -> dict[str, Any]:
        """What ComfyUI tells of the node at which a workflow fails."""
        messages = dict(self.wait(self.queue(graph))["status"]["messages"])
        error: dict[str, Any] = messages["execution_error"]
        return error

    @contextmanager
    def page(self, name: str) -> Iterator["Page"]:
        """Listen as ComfyUI's page does."""
        with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=30) as connection:
            yield Page(connection, name)

    def interrupt(self) -> None:
        """Press stop."""
        assert http.post(f"{self.url}/interrupt").status_code == 200
