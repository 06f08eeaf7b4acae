"""Settings from the environment: what is unknown is named, what is outside its limits refused."""

import pytest
from pydantic import ValidationError

from frontend.embedded.supervisor import visible_gpu
from frontend.settings import OTHER_VARIABLES, Settings, unknown_variables


def test_unknown_variables_are_named_with_what_was_meant() -> None:
    known = [f"FILMSTRIP_{name.upper()}" for name in Settings.model_fields]
    assert not unknown_variables([*known, *OTHER_VARIABLES, "filmstrip_port", "PATH", "FILMSTRIPS"])
    assert unknown_variables(["FILMSTRIP_KEEPALIVE_S", "FILMSTRIP_API_KEY", "FILMSTRIP_TOKEN", "FILMSTRIP_XYZ"]) == {
        "FILMSTRIP_API_KEY": "FILMSTRIP_API_KEYS",
        "FILMSTRIP_KEEPALIVE_S": "FILMSTRIP_KEEP_ALIVE_S",
        "FILMSTRIP_XYZ": None,
    }


def test_how_many_tritons(monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    for text, number in (("true", 1), ("1", 1), ("on", 1), ("0", 0), ("False", 0), ("", 0), ("3", 3)):
        with subtests.test(text=text):
            monkeypatch.setenv("FILMSTRIP_EMBEDDED", text)
            assert Settings().embedded == number
    monkeypatch.delenv("FILMSTRIP_EMBEDDED")
    assert Settings().embedded == 0
    for text in ("-1", "65", "many"):
        with subtests.test(text=text), pytest.raises(ValidationError, match="embedded"):
            Settings(embedded=text)
    monkeypatch.setenv("FILMSTRIP_TRITON_URL", "one:8001, unix:/run/two ,")
    assert Settings().triton_url == ("one:8001", "unix:/run/two")
    for text in ("one:8001,one:8001", ","):
        with subtests.test(text=text), pytest.raises(ValidationError, match="triton_url"):
            Settings(triton_url=text)


def test_each_of_several_tritons_sees_one_gpu() -> None:
    assert visible_gpu(None, {"CUDA_VISIBLE_DEVICES": "4,5"}) == {}
    assert visible_gpu(1, {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    shown = {"CUDA_VISIBLE_DEVICES": "4, GPU-5"}
    assert [visible_gpu(number, shown)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["4", "GPU-5", ""]


@pytest.mark.parametrize(("seconds", "is_good"), [(0, False), (0.1, True), (15, True), (15.1, False)])
def test_keep_alive_is_what_clients_rely_on(seconds: float, *, is_good: bool) -> None:
    if is_good:
        assert Settings(keep_alive_s=seconds).keep_alive_s == seconds
    else:
        with pytest.raises(ValidationError, match="keep_alive_s"):
            Settings(keep_alive_s=seconds)
