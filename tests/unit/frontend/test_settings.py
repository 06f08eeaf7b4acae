"""Settings from the environment: what is unknown is named, what is outside its limits refused."""

import pytest
from pydantic import ValidationError

from frontend.settings import OTHER_VARIABLES, Settings, unknown_variables


def test_unknown_variables_are_named_with_what_was_meant() -> None:
    known = [f"FILMSTRIP_{name.upper()}" for name in Settings.model_fields]
    assert not unknown_variables([*known, *OTHER_VARIABLES, "filmstrip_port", "PATH", "FILMSTRIPS"])
    assert unknown_variables(["FILMSTRIP_KEEPALIVE_S", "FILMSTRIP_API_KEY", "FILMSTRIP_TOKEN", "FILMSTRIP_XYZ"]) == {
        "FILMSTRIP_API_KEY": "FILMSTRIP_API_KEYS",
        "FILMSTRIP_KEEPALIVE_S": "FILMSTRIP_KEEP_ALIVE_S",
        "FILMSTRIP_XYZ": None,
    }


@pytest.mark.parametrize(("seconds", "is_good"), [(0, False), (0.1, True), (15, True), (15.1, False)])
def test_keep_alive_is_what_clients_rely_on(seconds: float, *, is_good: bool) -> None:
    if is_good:
        assert Settings(keep_alive_s=seconds).keep_alive_s == seconds
    else:
        with pytest.raises(ValidationError, match="keep_alive_s"):
            Settings(keep_alive_s=seconds)
