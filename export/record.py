"""What a pipeline was exported from, in a file beside its engines: for commands that change or check it later."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from export.config import CheckpointConfig, load_config
from export.errors import BadConfig

RECORD_FILE = "export.json"


class ExportRecord(BaseModel):
    """An export.

    Attributes:
        config: of the checkpoint's networks.
        checkpoint: its folder, or the folders and hub ids that a preset took its files from.
        preset: None without one.
        loras: files by name.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=False)

    config: CheckpointConfig
    checkpoint: tuple[str, ...]
    preset: str | None = None
    loras: Mapping[str, str] = {}

    def write(self, version: Path) -> None:
        """Write the file into a model's version folder."""
        (version / RECORD_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, version: Path) -> "ExportRecord":
        """Read the file of a model's version folder.

        Raises:
            BadConfig: it is missing or wrong: an earlier version has exported the pipeline.
        """
        path = version / RECORD_FILE
        try:
            return cls.model_validate_json(path.read_text("utf-8-sig"), by_name=True, by_alias=False)
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise BadConfig(
                f"{path} can't be read: export the pipeline again, or name the folder of its checkpoint"
            ) from error


def network_of(name: str, repository: Path = Path("models")) -> tuple[str, CheckpointConfig]:
    """The configuration of a checkpoint's folder, or of an exported pipeline's, also by its id in the repository.

    Raises:
        BadConfig: it is neither.
    """
    folder = Path(name)
    if not folder.is_dir() and (repository / name).is_dir():
        folder = repository / name
    if (folder / "config.json").is_file():
        return name, load_config(folder)
    versions = [path.parent for path in (*folder.glob(f"*/{RECORD_FILE}"), folder / RECORD_FILE) if path.is_file()]
    if versions:
        return name, ExportRecord.read(versions[-1]).config
    if any(folder.glob("*/pipeline.json")):
        raise BadConfig(
            f"{name} was exported by an earlier version: export it again, or name the folder of its checkpoint"
        )
    raise BadConfig(
        f"{name} is neither a checkpoint's folder, which has a config.json, nor a pipeline that this version exported"
    )
