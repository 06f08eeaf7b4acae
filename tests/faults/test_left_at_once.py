"""A client that leaves while its generation is only being set up leaves nothing either."""

import json
import socket
import time
from urllib.parse import urlsplit

from tests.support.recovery import assert_recovers, eventually
from tests.support.server import Frontend


def test_a_client_leaves_before_the_first_chunk(victim: Frontend) -> None:
    address = urlsplit(victim.url)
    body = json.dumps({"pipeline_id": "probe", "prompt": "x", "num_frames": 9}).encode()
    head = f"POST /api/v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    before, outputs = victim.in_shm(), victim.stored("outputs")
    for number in range(200):
        with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
            connection.sendall(head + body)
            time.sleep(0.002 + number * 0.0001)  # not a wait: where in the set-up it leaves
        victim.wait_idle()
    with victim.triton_client() as client:  # the last generation may be set up only after its client has left
        eventually(lambda: victim.in_shm() == before and not client.get_system_shared_memory_status().regions)
    assert len(victim.stored("outputs")) - len(outputs) < 200  # most left in time
    with assert_recovers(victim):
        pass
