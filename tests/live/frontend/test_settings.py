"""Settings from the environment: what is unknown is named, what is outside its limits refused."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from frontend.settings import OTHER_VARIABLES, Settings, unknown_variables
from tests.support.server import Frontend


def test_unknown_variables_are_named_with_what_was_meant() -> None:
    known = [f"FILMSTRIP_{name.upper()}" for name in Settings.model_fields]
    assert not unknown_variables([*known, *OTHER_VARIABLES, "filmstrip_port", "PATH", "FILMSTRIPS"])
    assert unknown_variables(["FILMSTRIP_KEEPALIVE_S", "FILMSTRIP_API_KEY", "FILMSTRIP_TOKEN", "FILMSTRIP_XYZ"]) == {
        "FILMSTRIP_API_KEY": "FILMSTRIP_API_KEYS",
        "FILMSTRIP_KEEPALIVE_S": "FILMSTRIP_KEEP_ALIVE_S",
        "FILMSTRIP_XYZ": None,
    }


def test_an_unknown_variable_is_a_warning_at_start(start_frontend: Callable[..., Frontend]) -> None:
    environment = {"FILMSTRIP_API_KEY": "secret-value", "FILMSTRIP_SERVER": "http://127.0.0.1:9"}
    frontend = start_frontend("--triton-url", "127.0.0.1:9", environment=environment)
    warnings = [line for line in frontend.log().splitlines() if "unknown setting" in line]
    assert len(warnings) == 1
    assert "unknown setting FILMSTRIP_API_KEY; did you mean FILMSTRIP_API_KEYS?" in warnings[0]
    assert "secret-value" not in frontend.log()


@pytest.mark.parametrize(("seconds", "is_good"), [(0, False), (0.1, True), (15, True), (15.1, False)])
def test_keep_alive_is_what_clients_rely_on(seconds: float, *, is_good: bool) -> None:
    if is_good:
        assert Settings(keep_alive_s=seconds).keep_alive_s == seconds
    else:
        with pytest.raises(ValidationError, match="keep_alive_s"):
            Settings(keep_alive_s=seconds)
