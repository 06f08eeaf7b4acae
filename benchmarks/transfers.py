"""Uploads and downloads against a minimal socket server and a copy of the file."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import wire
from benchmarks.report import MIB, Options, Ratio, Row, median
from benchmarks.servers import MeasuredFrontend, Memory, Transport, frontends
from tests.support.server import Process

MB = 10**6
HEIGHT, WIDTH = 320, 576
_GROWTH_MIB = 100
_UPLOAD_SHARE, _DOWNLOAD_SHARE = 0.5, 0.7


class _Series:
    """What was measured of one way, round by round."""

    def __init__(self, process: Process | None, transfer: Callable[[], object]) -> None:
        self._process = process
        self._transfer = transfer
        self.seconds: list[float] = []
        self.cpu_s: list[float] = []
        self.growth_bytes = 0

    def run(self) -> object:
        """Measure one transfer; gives what it gave."""
        if self._process is None:
            return self._timed()
        cpu_s = self._process.cpu_s()
        with Memory(self._process.pid) as memory:
            answer = self._timed()
        self.cpu_s.append(self._process.cpu_s() - cpu_s)
        self.growth_bytes = max(self.growth_bytes, memory.growth_bytes)
        return answer

    def _timed(self) -> object:
        began = time.perf_counter()
        answer = self._transfer()
        self.seconds.append(time.perf_counter() - began)
        return answer


def measure_transfers(options: Options) -> list[Row]:
    """MB/s, CPU seconds for each GB, and growth of memory."""
    sizes = [20 * MB] if options.quick else [100 * MB, *([1000 * MB] if options.large else [])]
    with frontends(options.folder / "transfers", Transport.LANES, Transport.UPLOADS) as servers:
        return [row for size in sizes for row in _of_size(options, servers, size)]


def _of_size(options: Options, servers: dict[Transport, MeasuredFrontend], size: int) -> list[Row]:
    folder = options.folder / f"transfers-{size}"
    folder.mkdir()
    frames = size // (HEIGHT * WIDTH * 3)
    source = wire.write_noise(folder / "source", frames * HEIGHT * WIDTH * 3)
    disk, shm = servers[Transport.LANES], servers[Transport.UPLOADS]
    uploaded = wire.upload(disk.url, source, frames, HEIGHT, WIDTH)
    *_, last = wire.generate(disk.url, pipeline_id="passthrough", input_path=uploaded, num_frames=frames)
    output = str(last.data["output_path"])
    with _baseline_server(folder) as (baseline, baseline_url):
        download = f"/api/v1/generate/download?path={output}"
        uploads = {
            server: _Series(server, partial(wire.upload, server.url, source, frames, HEIGHT, WIDTH))
            for server in (disk, shm)
        }
        sink = _Series(baseline, partial(wire.send_file, baseline_url, "/", source, {}))
        down = _Series(disk, partial(wire.receive_file, disk.url, download))
        origin = _Series(baseline, partial(wire.receive_file, baseline_url, "/"))
        copy = _Series(None, partial(shutil.copyfile, source, folder / "copy"))
        warm = partial(wire.warm_memory, folder, size)
        for _ in range(options.rounds):
            for server, series in uploads.items():
                warm()
                server.forget(str(series.run()))
            warm()
            sink.run()
            (folder / "sink").unlink()
            down.run()
            origin.run()
            warm()
            copy.run()
            (folder / "copy").unlink()
    disk.forget(output, uploaded)
    source.unlink()
    num_bytes = frames * HEIGHT * WIDTH * 3
    return [
        *_rows("upload", uploads[disk], "baseline sink", sink, num_bytes, share=_UPLOAD_SHARE),
        *_rows("upload to /dev/shm", uploads[shm], "baseline sink to disk", sink, num_bytes),
        *_rows("download", down, "baseline source", origin, num_bytes, share=_DOWNLOAD_SHARE),
        _speed("baseline sink", sink, "copy of the file", copy, num_bytes),
        _speed("baseline source", origin, "copy of the file", copy, num_bytes),
    ]


def _rows(
    what: str, series: _Series, name: str, baseline: _Series, num_bytes: int, *, share: float | None = None
) -> list[Row]:
    growth_mib = series.growth_bytes / MIB
    size = f"{num_bytes / MB:.0f} MB"
    return [
        _speed(what, series, name, baseline, num_bytes, share=share),
        Row(
            f"{what}, {size}: CPU of the server",
            f"{_cpu_s(series, num_bytes):.2f} s/GB",
            f"{name} {_cpu_s(baseline, num_bytes):.2f} s/GB",
            f"{_cpu_s(series, num_bytes) / max(_cpu_s(baseline, num_bytes), 0.01):.2f}",
        ),
        Row(
            f"{what}, {size}: growth of memory",
            f"{growth_mib:.0f} MiB at most",
            f"{name} {baseline.growth_bytes / MIB:.0f} MiB",
            target=f"<= {_GROWTH_MIB} MiB",
            holds=growth_mib <= _GROWTH_MIB,
        ),
    ]


def _speed(
    what: str, series: _Series, name: str, baseline: _Series, num_bytes: int, *, share: float | None = None
) -> Row:
    ratio = Ratio.of(baseline.seconds, series.seconds)
    return Row(
        f"{what}, {num_bytes / MB:.0f} MB",
        f"{num_bytes / MB / median(series.seconds):.0f} MB/s",
        f"{name} {num_bytes / MB / median(baseline.seconds):.0f} MB/s",
        str(ratio),
        f">= {share}" if share else "",
        ratio.median >= share if share else None,
    )


def _cpu_s(series: _Series, num_bytes: int) -> float:
    """CPU seconds for each GB; the clock of processes ticks in hundredths, so all rounds count together."""
    return sum(series.cpu_s) / len(series.cpu_s) / num_bytes * 1000 * MB


@contextmanager
def _baseline_server(folder: Path) -> Iterator[tuple[Process, str]]:
    process = Process(folder / "baseline.log", "benchmarks.baseline_server", str(folder))
    try:
        port = process.wait_for_log(r"(\d+)\n")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.stop()
