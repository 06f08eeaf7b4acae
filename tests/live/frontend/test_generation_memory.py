"""The server's memory does not grow with the generations that it remembers: their requests and events are on disk."""

from pathlib import Path

import pytest

from tests.support.generations import Generations
from tests.support.recovery import PROBE
from tests.support.server import Frontend, frontend_on

MIB = 2**20
LONG_PROMPT = "x" * 100_000


@pytest.mark.timeout(300)
def test_a_thousand_ended_generations_take_little_memory(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path) as frontend:
        own = Generations(frontend)

        def add(names: range) -> None:
            """One in ten completes, the others are cancelled while they wait for it."""
            for number in names:
                prompt = "!sleep 0.2" if number % 10 == 0 else f"{number} {LONG_PROMPT}"[:100_000]
                own.start(f"g{number}", PROBE | {"prompt": prompt, "num_frames": 9})
                if number % 10:
                    own.cancel(f"g{number}")
                if number % 10 == 9:
                    own.events(f"g{number // 10 * 10}")

        add(range(100))
        before = frontend.rss_bytes()
        add(range(100, 1100))  # 90 MB of requests
        growth = frontend.rss_bytes() - before
        assert growth < 24 * MIB
        pages, after = 0, None
        while pages == 0 or after is not None:
            page = own.page(limit=100, **({"after": after} if after else {}))
            after = page["next"]
            pages += 1
        assert pages == 11
        assert len(own.get("g101")["request"]["prompt"]) == 100_000
        assert own.events("g100")[-1].name == "complete"
