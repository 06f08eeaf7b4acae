"""Settings that the server does not know."""

from collections.abc import Callable

from tests.support.server import Frontend


def test_an_unknown_variable_is_a_warning_at_start(start_frontend: Callable[..., Frontend]) -> None:
    environment = {"FILMSTRIP_API_KEY": "secret-value", "FILMSTRIP_SERVER": "http://127.0.0.1:9"}
    frontend = start_frontend("--triton-url", "127.0.0.1:9", environment=environment)
    warnings = [line for line in frontend.log().splitlines() if "unknown setting" in line]
    assert len(warnings) == 1
    assert "unknown setting FILMSTRIP_API_KEY; did you mean FILMSTRIP_API_KEYS?" in warnings[0]
    assert "secret-value" not in frontend.log()
