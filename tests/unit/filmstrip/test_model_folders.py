"""Model repositories: which models they hold, and that no two have one name."""

import os
from pathlib import Path

import pytest

from filmstrip.model_folders import DuplicateModel, check_unique, model_folders


def model(repository: Path, name: str, *, exported: bool = False, age_s: int = 0) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").touch()
    os.utime(folder / "config.pbtxt", (10**9 - age_s, 10**9 - age_s))
    if exported:
        (folder / "1" / "pipeline.json").touch()
    return folder


def test_models_of_all_repositories(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    names = ("gray", "a b", "empty")
    expected = {name: [model(here, name)] for name in names} | {"longlive": [model(there, "longlive", exported=True)]}
    (here / "notes.txt").touch()
    for hidden in (".git", "__pycache__", "lost+found"):
        (here / hidden).mkdir()
    for name, target in (("gone", "nowhere"), ("loop", "loop")):
        (here / name).symlink_to(target)
        expected[name] = [here / name]
    odd = os.fsencode(here) + b"/caf\xe9"
    os.mkdir(odd)
    expected["caf\\xe9"] = [Path(os.fsdecode(odd))]
    assert model_folders([here, there, tmp_path / "missing"]) == expected
    check_unique([here, there, here / ".." / "here"])


@pytest.mark.parametrize(
    ("first", "second", "to_delete"),
    [
        ({}, {"exported": True}, "second"),  # what comes with the code stays
        ({"exported": True}, {}, "first"),
        ({"exported": True, "age_s": 60}, {"exported": True}, "first"),  # an export made before
        ({"exported": True}, {"exported": True, "age_s": 60}, "second"),
        ({}, {}, "second"),
    ],
)
def test_two_models_of_one_name_are_refused(
    tmp_path: Path, first: dict[str, int], second: dict[str, int], to_delete: str
) -> None:
    folders = {
        "first": model(tmp_path / "1 st", "same", **first),  # type: ignore[arg-type]
        "second": model(tmp_path / "2 nd", "same", **second),  # type: ignore[arg-type]
    }
    model(tmp_path / "2 nd", "other")
    with pytest.raises(DuplicateModel) as refused:
        check_unique([tmp_path / "1 st", tmp_path / "2 nd"])
    assert f"'same': {folders['first']} and {folders['second']}; delete {folders[to_delete]}" in str(refused.value)
