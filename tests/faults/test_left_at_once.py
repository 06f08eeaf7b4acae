"""A client that leaves while its generation is being set up leaves nothing behind."""

import time

from tests.support.http import GENERATE
from tests.support.raw_client import RawClient
from tests.support.recovery import assert_recovers, eventually
from tests.support.server import Frontend


def test_a_client_leaves_before_the_first_chunk(victim: Frontend) -> None:
    before, outputs = victim.in_shm(), victim.stored("outputs")
    for number in range(200):
        with RawClient(victim.url) as client:
            client.post_json(GENERATE, {"pipeline_id": "probe", "prompt": "x", "num_frames": 9})
            time.sleep(0.002 + number * 0.0001)  # not a wait: it varies the moment of leaving
        victim.wait_idle()
    with victim.triton_client() as triton:  # the last generation may be set up only after its client has left
        eventually(lambda: victim.in_shm() == before and not triton.get_system_shared_memory_status().regions)
    assert len(victim.stored("outputs")) - len(outputs) < 200  # most left in time
    with assert_recovers(victim):
        pass
