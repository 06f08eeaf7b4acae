"""The images and compose.yaml fit the code and each other: what can be known without a container engine."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.triton import EXIT_TIMEOUT_S, health, start
from frontend import __main__ as frontend_main
from frontend import settings as frontend_settings
from frontend.settings import ApiKey, Settings
from tests.support.server import ROOT

compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
services: dict[str, dict[str, Any]] = compose["services"]
images = {path.suffix[1:]: path.read_text() for path in ROOT.glob("Dockerfile.*")}
requirements = {path.name: path.read_text() for path in (ROOT / "deploy").glob("*.lock")}


def instructions(name: str, kind: str) -> list[str]:
    """What follows an instruction, one string each, those that go on joined."""
    joined = re.sub(r"\\\n\s*", "", images[name])
    return re.findall(rf"^{kind} (.*)$", joined, re.MULTILINE)


def words(name: str, kind: str) -> list[str]:
    """The words of the one instruction of a kind, as JSON has them."""
    (found,) = instructions(name, kind)
    return shlex.split(found.partition("[")[2].rpartition("]")[0].replace(",", " "))


def environment(name: str) -> dict[str, str]:
    """What an image and compose.yaml set for a service."""
    of_image = dict(word.split("=", 1) for line in instructions(name, "ENV") for word in line.split())
    return of_image | services[name].get("environment", {})


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


# -- Settings and secrets -----------------------------------------------------------------------------------------


def test_every_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"FILMSTRIP_{name.upper()}" for name in Settings.model_fields}
    given = {name: value for name, value in environment("frontend").items() if name.startswith("FILMSTRIP_")}
    assert given.keys() <= known
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.triton_url, settings.host, str(settings.data_dir)) == (("triton:8001",), "0.0.0.0", "/data")


def test_secrets_are_files_that_the_settings_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend_settings, "SECRETS_DIR", tmp_path / "none")
    assert Settings().triton_secret == ""
    monkeypatch.setattr(frontend_settings, "SECRETS_DIR", tmp_path)
    values = {"filmstrip_triton_secret": "s3cret", "filmstrip_api_keys": "studio:one,render:two"}
    assert sorted(values) == sorted(services["frontend"]["secrets"]) == sorted(compose["secrets"])
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    settings = Settings()
    assert settings.triton_secret == "s3cret"
    assert settings.api_keys == (ApiKey("studio", "one"), ApiKey("render", "two"))
    monkeypatch.setenv("FILMSTRIP_TRITON_SECRET", "of the environment")
    assert Settings().triton_secret == "of the environment"


def test_triton_reads_its_secret_where_compose_puts_it() -> None:
    assert services["triton"]["secrets"] == ["filmstrip_triton_secret"]
    for kind in ("CMD", "HEALTHCHECK"):
        assert "--secret-file=/run/secrets/filmstrip_triton_secret" in words("triton", kind)


def test_secrets_neither_enter_an_image_nor_git() -> None:
    folder = {Path(secret["file"]).parent for secret in compose["secrets"].values()}
    assert folder == {Path("secrets")}
    assert "deploy/secrets" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_was_exported_for_this_machine_neither_enters_an_image_nor_git() -> None:
    docker_ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in docker_ignored
    assert "!models" not in docker_ignored
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/models/" in ignored
    assert ignored.index("!/checkpoints/longlive-small/") > ignored.index("/checkpoints/*")


# -- Users, memory, networks, times -------------------------------------------------------------------------------


def test_both_run_as_the_same_unprivileged_user() -> None:
    (uid,) = {user for name in images for user in instructions(name, "USER")}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", uid)
    assert not any("user" in service for service in services.values())
    owner = dict(option.partition("=")[::2] for option in compose["volumes"]["shm"]["driver_opts"]["o"].split(","))
    assert f"{owner['uid']}:{owner['gid']}" == uid


def test_both_have_the_same_dev_shm() -> None:
    for name in ("triton", "frontend"):
        assert "shm:/dev/shm" in services[name]["volumes"]
        assert not services[name].keys() & {"ipc", "shm_size", "tmpfs"}


def test_triton_cannot_be_reached_from_outside() -> None:
    assert services["triton"]["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True
    assert "ports" not in services["triton"]
    (published,) = services["frontend"]["ports"]
    assert published.startswith("127.0.0.1:")
    assert published.endswith(f":{Settings.model_fields['port'].default}")


def test_triton_cannot_change_its_models_and_the_export_can() -> None:
    assert "${FILMSTRIP_MODELS:-../models}:/models:ro" in services["triton"]["volumes"]
    assert "${FILMSTRIP_MODELS:-../models}:/models" in services["export"]["volumes"]
    assert services["export"]["image"] == services["triton"]["image"]


def test_both_get_the_time_that_they_take_to_stop() -> None:
    assert seconds(services["frontend"]["stop_grace_period"]) > frontend_main._HARD_LIMIT_S
    assert seconds(services["triton"]["stop_grace_period"]) >= 2 * EXIT_TIMEOUT_S


# -- Images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "command"), [("CMD", start), ("HEALTHCHECK", health)])
def test_the_commands_of_tritons_image_exist_with_their_flags(kind: str, command: Any) -> None:
    python, *rest = words("triton", kind)
    assert (python, rest[:3]) == ("python3", ["-m", "deploy.triton", command.name])
    given = {flag.partition("=")[0] for flag in rest[3:]}
    assert given <= {flag for parameter in command.params for flag in parameter.opts}


def test_the_frontends_image_asks_for_its_health_where_it_listens() -> None:
    assert words("frontend", "CMD") == ["filmstrip", "serve"]
    assert f"http://127.0.0.1:{Settings.model_fields['port'].default}/health" in images["frontend"]


@pytest.mark.parametrize("name", sorted(images))
def test_images_copy_what_exists_and_docker_may_see(name: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in instructions(name, "COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in allowed, source
    assert f"-r deploy/{name}.lock" in "".join(instructions(name, "RUN"))


@pytest.mark.parametrize("name", sorted(images))
def test_what_an_image_copies_is_enough_to_install_the_package(name: str, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for line in instructions(name, "COPY"):
        *sources, target = line.split()
        for source in (ROOT / source for source in sources):
            if source.is_dir():
                shutil.copytree(source, tmp_path / target, dirs_exist_ok=True, ignore=ignored)
            else:
                (tmp_path / target).parent.mkdir(exist_ok=True)
                shutil.copy(source, tmp_path / target)
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert {"filmstrip/cli.py", "filmstrip/server/app.py"} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_frontends_image_is_light_and_audited() -> None:
    assert pins(requirements["frontend.lock"]).items() <= pins((ROOT / "requirements.lock").read_text()).items()
    assert not pins(requirements["frontend.lock"]).keys() & {"torch", "opencv-python-headless", "nvidia-pytriton"}


@pytest.mark.parametrize("name", sorted(requirements))
def test_images_have_the_versions_that_tests_run_with(name: str) -> None:
    files = ("requirements.lock", "requirements-torch.txt", "requirements-tests.txt")
    tested = dict(pin for file in files for pin in pins((ROOT / file).read_text()).items())
    other = {
        package for package, version in pins(requirements[name]).items() if tested.get(package, version) != version
    }
    assert other <= {"ml-dtypes"}  # see `make lock`
    assert requirements[name].count("==") <= requirements[name].count("--hash=sha256:")
