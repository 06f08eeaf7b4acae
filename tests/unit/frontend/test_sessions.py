"""Session cookies: which are valid, where, and for how long."""

import re

import pytest

from frontend.sessions import LIFETIME_S, Sessions
from frontend.settings import ApiKey

ALICE, ALICE_2, BOB = ApiKey("alice", "a-key"), ApiKey("alice", "another"), ApiKey("bob", "b-key")
NOW = 1_800_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions([ALICE, ALICE_2, BOB], now=clock)


def test_a_session_is_its_clients_until_it_expires(sessions: Sessions, clock: Clock) -> None:
    for key in (ALICE, ALICE_2, BOB):
        clock.now = NOW
        session = sessions.start(key)
        assert session.expires_at == NOW + LIFETIME_S
        assert sessions.client(session.token) == key.client
        clock.now = session.expires_at - 1
        assert sessions.client(session.token) == key.client
        clock.now = session.expires_at
        assert sessions.client(session.token) is None


def test_a_session_is_valid_wherever_its_key_is(sessions: Sessions, clock: Clock) -> None:
    token = sessions.start(ALICE).token
    for keys in ([ALICE], [BOB, ALICE], [ALICE_2, ALICE]):
        assert Sessions(keys, now=clock).client(token) == "alice"
    for keys in ([], [BOB], [ALICE_2], [ApiKey("bob", ALICE.key)], [ApiKey("alice", BOB.key)]):
        assert Sessions(keys, now=clock).client(token) is None


def test_servers_share_sessions_only_with_the_same_secret(clock: Clock) -> None:
    token = Sessions([ALICE], "secret", now=clock).start(ALICE).token
    assert Sessions([ALICE], "secret", now=clock).client(token) == "alice"
    for other in ("", "Secret", "secret "):
        assert Sessions([ALICE], other, now=clock).client(token) is None


def test_nothing_of_a_session_can_be_changed(sessions: Sessions, clock: Clock, subtests: pytest.Subtests) -> None:
    token = sessions.start(BOB).token
    client, expires, nonce, signature = token.split(".")
    for number, letter in enumerate(token):
        for other in ("x", "0", ".", "A") if number % 8 == 0 else ("x",):
            changed = token[:number] + other + token[number + 1 :]
            if other != letter:
                assert sessions.client(changed) is None, changed
    forged = [
        f"alice.{expires}.{nonce}.{signature}",
        f"{client}.{int(expires) + 1}.{nonce}.{signature}",
        f"{client}.0{expires}.{nonce}.{signature}",
        f"{client}.{expires}.{nonce}.",
        f"{client}.{expires}.{nonce}",
        f"{client}.{expires}..{signature}",
        f"{client}.99999999999999999999.{nonce}.{signature}",
        f"{client}.-1.{nonce}.{signature}",
        f"{client}.\u0661.{nonce}.{signature}",
        f"{token}\n",
        f" {token}",
        f'"{token}"',
        f"{token}.{signature}",
        f"../{token}",
        "bob",
        "b-key",
        "",
        "." * 1000,
    ]
    for text in forged:
        with subtests.test(repr(text)):
            assert sessions.client(text) is None
    assert sessions.client(token) == "bob"


def test_an_ended_session_stays_ended_and_others_do_not_end(sessions: Sessions, clock: Clock) -> None:
    first, second = sessions.start(ALICE).token, sessions.start(ALICE).token
    assert first != second
    sessions.end(first)
    sessions.end("nonsense")
    assert sessions.client(first) is None
    assert sessions.client(second) == "alice"
    clock.now += LIFETIME_S
    for _ in range(3):  # what has expired is forgotten
        sessions.end(sessions.start(BOB).token)
    assert sessions.client(first) is None
    assert len(sessions._ended) == 3


def test_the_memory_of_ended_sessions_is_bounded(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.sessions._MAX_ENDED", 3)
    tokens = [sessions.start(BOB).token for _ in range(5)]
    for token in tokens:
        sessions.end(token)
    assert [sessions.client(token) for token in tokens] == ["bob", "bob", None, None, None]


def test_a_cookie_contains_no_key_and_no_character_that_needs_quotes(sessions: Sessions) -> None:
    token = sessions.start(ALICE).token
    assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
    assert ALICE.key not in token
    assert ApiKey("alice", "other").key not in repr(sessions.start(ApiKey("alice", "other")))
