"""Relays that end and are replaced, with programs in their place that end just as a test needs it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from frontend.relay import ChunkCall, FileSlice, Relay, RelayDied
from tests.support.aftermath import eventually

# The first to start ends at once, but something keeps its output open; the second answers when it is let.
RELAYS = """#!/bin/sh
cd "{folder}"
if mkdir first 2>/dev/null; then
    sleep 600 2>/dev/null &
    echo $! > holder
    exit
fi
read call
read go < go
echo '{{"number": 2, "answer": {{"shape": [1], "stages": {{}}}}}}'
read end
"""


@pytest.fixture
def relays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "relay"
    program.write_text(RELAYS.format(folder=tmp_path))
    program.chmod(0o755)
    os.mkfifo(tmp_path / "go")
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def test_a_dead_relay_fails_its_own_calls_and_not_those_of_its_successor(relays: Path) -> None:
    place = FileSlice(relays, None, 0, 0)
    call = ChunkCall("m", 1, starts=True, start_timeout_s=1, timeout_s=60, parameters="", tensors=(), frames=place)

    async def run() -> None:
        relay = Relay("unused")
        first = asyncio.create_task(relay.call(call))
        await asyncio.to_thread(eventually, lambda: relay._process is not None and relay._process.returncode == 0)
        second = asyncio.create_task(relay.call(call))
        with await asyncio.to_thread((relays / "go").open, "w") as go:  # returns when the second has its call
            os.kill(int((relays / "holder").read_text()), signal.SIGKILL)
            with pytest.raises(RelayDied):
                await first
            go.write("\n")
        assert (await second).shape == (1,)
        await relay.close()

    asyncio.run(run())
