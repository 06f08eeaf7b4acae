"""A model's folder that can't be loaded says what is wrong with it."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.errors import LoadFailed
from filmstrip.model_folders import EXPORT_FILE
from filmstrip.runtime.longlive import load_longlive
from tests.models.runtime.longlive.pipeline import CPU, Tiny


def test_missing_files_are_reported_one_at_a_time(tmp_path: Path, tiny: Tiny):
    folder = tmp_path / "longlive" / "1"
    folder.mkdir(parents=True)
    with pytest.raises(LoadFailed, match=r"pipeline\.json can't be read"):
        load_longlive(folder, device=CPU, num_threads=1)
    (folder / EXPORT_FILE).write_text("{}")
    with pytest.raises(LoadFailed, match="another version of the export"):
        load_longlive(folder, device=CPU, num_threads=1)
    (folder / EXPORT_FILE).write_text(tiny.pipeline().config.to_json())
    again = r"holds no engines\. Export it again: python -m export longlive .* --id longlive"
    with pytest.raises(LoadFailed, match=again):
        load_longlive(folder, device=CPU, num_threads=1)
    if not torch.cuda.is_available():
        with pytest.raises(LoadFailed, match="needs an NVIDIA GPU"):
            load_longlive(folder, device=torch.device("cuda:0"), num_threads=1)
