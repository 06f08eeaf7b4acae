"""A real Chromium that opens a page of ours, whose script reports what it found."""

import json
import queue
import shutil
import subprocess
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_PAGE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script type="module">
const report = (found) => fetch("/report", {method: "POST", body: JSON.stringify(found)});
const once = (target, name) => new Promise((done, failed) => {
  target.addEventListener(name, done, {once: true});
  target.addEventListener("error", () => failed(`${name}: ${target.error?.message}`), {once: true});
});
try { %s } catch (error) { report({error: String(error)}); }
</script>"""


def what_a_page_reports(script: str, folder: Path, timeout_s: float = 60) -> Any:
    """Open a page in Chromium.

    Args:
        script: of the page, which ends with `report(...)`; `once(target, event)` waits for an event.
        folder: for the browser's profile.
        timeout_s: how long the report may take.
    """
    reports: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer((_PAGE % script).encode())

        def do_POST(self) -> None:
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--no-proxy-server", f"--user-data-dir={folder}"),
            *("--autoplay-policy=no-user-gesture-required", f"http://127.0.0.1:{server.server_port}/"),
        ]
        log = stack.enter_context((folder / "chromium.log").open("wb"))
        browser = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(browser.wait)
        stack.callback(browser.terminate)
        try:
            return reports.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no report:\n{(folder / 'chromium.log').read_text(errors='replace')}") from None
