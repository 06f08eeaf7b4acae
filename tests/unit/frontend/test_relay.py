"""What passes through the relay, and relays that end or talk nonsense: programs that do just what a test needs."""

import asyncio
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from frontend.inference import ChunkCall, ChunkResult, FileSlice, _stage_seconds
from frontend.relay import _MESSAGE, _REPLY, Relay, RelayDied, _Message, _parse_reply, _Reply
from tests.support.recovery import eventually

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
echo '{{"number": 2, "answer": {{"shape": [1], "stage_seconds": {{}}}}}}'
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


def call_with(place: FileSlice) -> ChunkCall:
    return ChunkCall(
        "m", 1, starts=True, start_timeout_s=1, timeout_s=60, parameters="", tensors=(), frames_place=place
    )


def test_a_dead_relay_fails_its_own_calls_and_not_those_of_its_successor(relays: Path) -> None:
    call = call_with(FileSlice(relays, None, 0, 0))

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


# The first of its two calls gets an answer whose number alone can be read, the second not even that.
NONSENSE = """#!/bin/sh
read call
echo '{"number": 1, "answer": {"shape": "round"}}'
read call
echo nonsense
read end
"""


def test_an_answer_that_cannot_be_read_fails_its_own_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "relay"
    program.write_text(NONSENSE)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    call = call_with(FileSlice(tmp_path, None, 0, 0))

    async def run() -> None:
        relay = Relay("unused")
        with pytest.raises(InferenceServerException, match=r"^the relay sent an answer that cannot be read$"):
            await relay.call(call)
        with pytest.raises(RelayDied):
            await relay.call(call)
        await relay.close()

    asyncio.run(run())


def test_a_model_may_report_any_number_of_seconds() -> None:
    reply = _Reply(1, ChunkResult((1,), {"a": math.inf, "b": -math.inf, "c": math.nan}))
    stages = _parse_reply(_REPLY.dump_json(reply)).answer.stage_seconds  # type: ignore[union-attr]
    assert (stages["a"], stages["b"]) == (math.inf, -math.inf)
    assert math.isnan(stages["c"])


def test_a_path_need_not_be_utf8() -> None:
    message = _Message(1, call_with(FileSlice(Path(os.fsdecode(b"/data\xff/\xc3\xa9")), None, 0, 0)))
    assert _MESSAGE.validate_json(_MESSAGE.dump_json(message)) == message


@pytest.mark.parametrize("report", [b"{", b"[]", b'{"stages": {"secret": "x"}}'])
def test_a_bad_report_is_logged_without_its_text(report: bytes) -> None:
    with pytest.raises(InferenceServerException, match=r"^the model sent a report that cannot be read$"):
        _stage_seconds(np.array([report], np.object_))
