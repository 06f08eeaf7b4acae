"""A growing MP4 in a browser: a plain <video> element plays it while its frames are still arriving."""

import asyncio
import json
from pathlib import Path

import pytest

from frontend.settings import Settings
from frontend.store import Store
from frontend.video_files import VideoFiles
from tests.support.browser import CHROMIUM, NO_CHROMIUM, what_a_page_reports
from tests.unit.frontend.test_video_files import Growing, moving, variant

NUM_FRAMES = 160  # ten seconds

SCRIPT = """
  const video = document.createElement("video");
  Object.assign(video, {muted: true, autoplay: true, src: %s});
  const loaded = once(video, "loadeddata"), ended = once(video, "ended");
  document.body.append(video);
  await loaded;
  const [before] = await (await fetch(%s)).json();
  await ended;
  return {before, width: video.videoWidth, end: video.currentTime,
          frames: video.getVideoPlaybackQuality().totalVideoFrames};
"""


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
async def test_a_browser_plays_a_video_that_is_still_growing(tmp_path: Path) -> None:
    store = Store(Settings(data_dir=tmp_path / "data"))
    store.open()
    files = VideoFiles(store)
    source = Growing(store, moving(NUM_FRAMES, 64, 64))  # a few kilobytes in all
    num_frames = 0
    is_shown = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """/video streams in chunks of the transfer encoding, as the server does; /state says how far it has come."""
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if path == b"/state":
            is_shown.set()
            body = json.dumps([num_frames]).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n" + body)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n")
            with files.following(source, variant("format=mp4", source.shape)) as pieces:
                async for piece in pieces:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
            writer.write(b"0\r\n\r\n")
        writer.close()

    async def generate() -> None:
        """Twelve frames at a time; the second half only once the first one is shown."""
        nonlocal num_frames
        for count in (*range(12, NUM_FRAMES, 12), NUM_FRAMES):
            if count > NUM_FRAMES / 2:
                await is_shown.wait()
            await source.grow(count)
            num_frames = count
        source.finish()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        generating = asyncio.create_task(generate())
        script = SCRIPT % (json.dumps(f"{url}/video"), json.dumps(f"{url}/state"))
        found = await asyncio.to_thread(what_a_page_reports, script)
        await generating
    await files.close()
    store.close()
    assert found["width"] == 64, found
    assert found["end"] == pytest.approx(NUM_FRAMES / 16, abs=0.1)
    assert found["frames"] > 10
    assert 0 < found["before"] <= NUM_FRAMES / 2
