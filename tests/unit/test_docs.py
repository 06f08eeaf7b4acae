"""The documentation says what the code does: settings, errors, events, endpoints, metrics, commands, links."""

import importlib.util
import re
import shlex
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path

import click
import pytest
from pydantic import AliasChoices
from pydantic_core import PydanticUndefined

from export.config import (
    UMT5_XXL,
    WAN_LATENTS_MEAN,
    WAN_LATENTS_STD,
    CheckpointConfig,
    LightTaeConfig,
    TaeConfig,
    TextEncoderConfig,
    VaeConfig,
)
from filmstrip.cli import main as filmstrip_command
from filmstrip.contract import Features
from filmstrip.errors import ERRORS
from filmstrip.models import Cancelled, Complete, ErrorEvent, Progress
from frontend.__main__ import main as frontend_command
from frontend.app import create_app
from frontend.features import FEATURE_OF_FIELD
from frontend.metrics import REGISTRY
from frontend.schema import ChunkSpec, GenerateRequest
from frontend.settings import GIB, MIB, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = (
    *("benchmarks", "checkpoints", "comfyui", "demo", "deploy", "docs", "examples", "export", "filmstrip", "frontend"),
    *("model_repository", "research", "tests"),
)
MARKDOWN = sorted((*ROOT.glob("*.md"), *(path for name in DOCUMENTED for path in (ROOT / name).rglob("*.md"))))
FOLDERS = (
    "filmstrip",
    "frontend",
    "model_repository",
    "demo",
    "comfyui",
    "export",
    "examples",
    "research",
    "tests",
    "docs",
    ".ci",
)
FILES = (".md", ".py", ".toml", ".lock", ".pbtxt", ".svg", ".triton", "Makefile", "LICENSE")
ALWAYS_SENT = ("seed", "unused")  # clients have defaults for them: older servers do not send them
EVENTS = {"progress": Progress, "complete": Complete, "cancelled": Cancelled, "error": ErrorEvent}

api = (ROOT / "docs" / "api.md").read_text()
operations = (ROOT / "docs" / "operations.md").read_text()
readme = (ROOT / "README.md").read_text()


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or a higher one."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"there is no {heading!r}"
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, those under the head."""
    tables = re.findall(r"^\|[-| ]+\|\n((?:\|.*\|\n?)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" |")] for table in tables for line in table.splitlines()]


def prose(text: str) -> str:
    """All but the blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands in backticks."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose(text))]


def code_lines(text: str) -> list[str]:
    """The lines of all shell blocks, those that go on joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


# -- Settings, errors, events, endpoints, metrics -----------------------------------------------------------------


def shown(name: str, default: object) -> str:
    """A setting's default as the table gives it."""
    if default in ("", ()):
        return ""
    if name == "model_repository":
        return "`model_repository`, `models`"  # in the checkout, wherever that is
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    if name.endswith("_bytes"):
        assert isinstance(default, int)
        size = f"{default // GIB} GiB" if default % GIB == 0 else f"{default // MIB} MiB"
        return f"`{default}` ({size})"
    if isinstance(default, bool | StrEnum):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_is_in_the_table_with_its_default_and_meaning():
    expected = [
        [f"`FILMSTRIP_{name.upper()}`", shown(name, field.default), field.description]
        for name, field in Settings.model_fields.items()
    ]
    assert rows(section(operations, "## Settings")) == expected


def test_every_error_code_is_in_the_table_with_its_status():
    table = {row[0]: row[1:] for row in rows(section(api, "## Errors")) if len(row) == 3}
    assert {code: meaning[0] for code, meaning in table.items()} == {
        f"`{code}`": str(error.status) for code, error in ERRORS.items()
    }
    assert all(meaning[1] for meaning in table.values())


@pytest.mark.parametrize("name", EVENTS)
def test_every_key_of_an_event_is_in_its_section(name: str):
    table = {row[0]: row[1] for row in rows(section(api, f"### `{name}`"))}
    assert set(table) == {f"`{field.name}`" for field in fields(EVENTS[name])}
    for field in fields(EVENTS[name]):
        is_optional = field.default is not MISSING and field.name not in ALWAYS_SENT
        assert is_optional == ("missing when" in table[f"`{field.name}`"])


PARAMETER = r"{\1}"


def test_every_endpoint_is_in_the_table(tmp_path: Path):
    app = create_app(Settings(data_dir=tmp_path))
    expected = {
        f"`{method} {re.sub('<(?:[^>]*:)?([^>]*)>', PARAMETER, rule.rule)}`"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {row[0] for row in rows(section(api, "## Endpoints"))} == expected


@pytest.mark.parametrize(
    ("heading", "model"),
    [("## The request of `/api/v1/generate`", GenerateRequest), ("### ChunkSpec", ChunkSpec)],
)
def test_every_field_is_in_the_table(heading: str, model: type[GenerateRequest | ChunkSpec]):
    text = section(api, heading).partition("\n### ")[0]
    table = {name: row for row in rows(text) for name in quoted(row[0])}
    assert set(table) == set(model.model_fields)
    for name, field in model.model_fields.items():
        default = table[name][2].strip("`")
        if field.default is PydanticUndefined:
            assert default == "required"
        else:
            value = "null" if field.default is None else str(field.default)
            assert default == (value.lower() if isinstance(field.default, bool) else value)


def test_every_feature_is_in_the_table_with_its_fields():
    table = {quoted(row[0])[0]: row[1] for row in rows(section(api, "### Features")) if len(row) == 2}
    for feature in (field.name for field in fields(Features)):
        needing = {name for name, needs in FEATURE_OF_FIELD.items() if needs == feature}
        by_wildcard = {name for name in needing if name.startswith("vace_") and "`vace_*`" in table[feature]}
        assert needing - by_wildcard == set(quoted(table[feature])) - {"vace_*"}


def test_every_metric_is_in_the_table_with_its_meaning():
    metrics = {metric.name + ("_total" if metric.type == "counter" else ""): metric for metric in REGISTRY.collect()}
    table = {row[0]: row[2] for row in rows(section(operations, "## Metrics"))}
    assert table == {f"`{name}`": metric.documentation for name, metric in metrics.items()}


def configuration_rows(prefix: str, config: type[CheckpointConfig | VaeConfig]) -> dict[str, str]:
    """The names of a configuration's keys and their defaults, as the table gives them."""
    expected = {}
    for field_name, field in config.model_fields.items():
        if field.exclude or field_name == "vae":  # checked and not used; its keys have rows of their own
            continue
        alias = field.validation_alias
        keys = alias.choices if isinstance(alias, AliasChoices) else [field_name]
        name = " or ".join(f"`{prefix}{key}`" for key in keys)
        if field.is_required():
            expected[name] = "required"
        elif field.default in (WAN_LATENTS_MEAN, WAN_LATENTS_STD):
            expected[name] = "Wan2.1's"
        elif isinstance(field.default, tuple):
            expected[name] = str(list(field.default)).lower() if field.default else "none"
        else:
            expected[name] = str(field.default).lower()
    return expected


def test_every_key_of_a_checkpoints_configuration_is_in_the_table():
    text = section((ROOT / "docs" / "export.md").read_text(), "## config.json")
    table = {row[0]: row[1] for row in rows(text.partition("\n### ")[0])}
    assert table == configuration_rows("", CheckpointConfig) | configuration_rows("vae.", VaeConfig)
    table = {row[0]: row[1:3] for row in rows(section(text, "### Tiny autoencoders"))}
    tae, light = configuration_rows("vae.", TaeConfig), configuration_rows("vae.", LightTaeConfig)
    assert table == {name: [tae[name], light[name]] for name in tae}


def test_every_key_of_a_text_encoders_configuration_is_in_the_table():
    table = {row[0]: row[1:3] for row in rows(section((ROOT / "docs" / "export.md").read_text(), "## Text encoder"))}
    expected = {}
    for field_name, field in TextEncoderConfig.model_fields.items():
        if field.exclude:
            continue
        alias = field.validation_alias
        (name,) = alias.choices if isinstance(alias, AliasChoices) else [field_name]
        default = "required" if field.is_required() else str(field.default)
        expected[f"`{name}`"] = [default, str(UMT5_XXL.get(name, default))]
    assert table == expected


def test_every_pipeline_is_in_the_readme():
    models = {path.parent.name for path in (ROOT / "model_repository").glob("*/config.pbtxt")}
    models |= {path.name for path in (ROOT / "checkpoints").glob("*") if (path / "README.md").is_file()}
    assert {quoted(row[0])[0] for row in rows(section(readme, "## Pipelines"))} == models


def test_every_guarantee_of_security_names_tests_that_exist():
    guarantees = rows(section((ROOT / "docs" / "security.md").read_text(), "## Guarantees"))
    assert guarantees
    for guarantee, tests in guarantees:
        assert quoted(tests), guarantee
        for name in quoted(tests):
            assert (ROOT / name).is_file(), name


# -- Commands, links, paths ---------------------------------------------------------------------------------------


def test_every_make_target_exists(subtests: pytest.Subtests):
    for path in MARKDOWN:
        with subtests.test(str(path.relative_to(ROOT))):
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            text = path.read_text()
            named = re.findall(r"^make ([a-z-]+)", "\n".join(code_lines(text)), re.MULTILINE)
            named += [words.split()[1] for words in quoted(text) if words.startswith("make ")]
            assert set(named) <= set(targets)


def test_the_readme_names_the_main_commands():
    assert {"make demo", "make test", "make serve"} <= set(quoted(readme))


def test_no_word_is_doubled(subtests: pytest.Subtests):
    for path in MARKDOWN:
        with subtests.test(str(path.relative_to(ROOT))):
            assert re.findall(r"\b([A-Za-z]+) \1\b", re.sub(r"`[^`]*`", "", prose(path.read_text()))) == []


def test_every_link_leads_somewhere(subtests: pytest.Subtests):
    for path in MARKDOWN:
        with subtests.test(str(path.relative_to(ROOT))):
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
                if target.startswith("https://"):
                    continue
                name, _, anchor = target.partition("#")
                there = (path.parent / name).resolve() if name else path
                assert there.exists(), target
                assert there.is_relative_to(ROOT), target
                if anchor:
                    headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                    assert anchor in [
                        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
                    ]


def test_every_file_that_is_named_exists(subtests: pytest.Subtests):
    for path in MARKDOWN:
        with subtests.test(str(path.relative_to(ROOT))):
            text = path.read_text()
            words = [word for line in code_lines(text) for word in shlex.split(line, comments=True)] + quoted(text)
            for word in words:
                name = word.partition("=")[2] if word.startswith("--") else word
                in_folder = re.fullmatch(r"[\w./-]+/[\w./-]*", name) and name.split("/")[0] in FOLDERS
                at_top = re.fullmatch(r"[A-Z]\w*(\.\w+)?", name) and (name.endswith(FILES) or "file" in name)
                assert (ROOT / name).exists() or not (in_folder or at_top), word


def test_every_command_exists_with_its_flags(subtests: pytest.Subtests):
    for path in MARKDOWN:
        with subtests.test(str(path.relative_to(ROOT))):
            for line in code_lines(path.read_text()):
                words = shlex.split(line, comments=True)
                for module in (words[at + 1] for at, word in enumerate(words[:-1]) if word == "-m"):
                    assert importlib.util.find_spec(module), line
                if "frontend" in words and "-m" in words:
                    _check_flags(frontend_command, words)
                for at, word in enumerate(words):
                    if word.endswith("bin/filmstrip") or (word == "filmstrip" and (at == 0 or "=" in words[at - 1])):
                        command = filmstrip_command.commands[words[at + 1]]
                        _check_flags(frontend_command if command.name == "serve" else command, words)


def _check_flags(command: click.Command, words: list[str]) -> None:
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
