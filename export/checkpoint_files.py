"""The files that a checkpoint consists of: where each is, and what it is.

config.json     see export.config
*.pt ...        the transformer, in one file or several
lora/           adapters that belong to the checkpoint and are merged (LongLive's lora.pt)
vace/           optional: only weights that begin with `vace_` are read
vae/            the VAE, or the tiny autoencoder in its place
text_encoder/   optional: UMT5's encoder, its config.json and tokenizer.json
tokenizer/      optional: tokenizer.json, if it is not in text_encoder/

Files of other networks beside the transformer, as releases have them, are told apart by the names of their weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from export.config import CheckpointConfig, TextEncoderConfig, load_config, load_text_encoder_config
from export.errors import BadCheckpoint
from export.recognition import Kind, Recognition, best_set, num_known, recognise, why_unknown
from export.spec import Component
from export.tensor_files import SUFFIXES, Notes, TensorSet, WeightChoice, WeightSet, choose_set, read_sets, weight_files


@dataclass(frozen=True)
class WeightFile:
    """A file of weights, opened.

    Attributes:
        path: of the file.
        chosen: the set of tensors in it that is used.
        recognition: what that is.
    """

    path: Path
    chosen: TensorSet
    recognition: Recognition

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors that are used, by their names in the file."""
        return self.chosen.tensors


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint's networks.

    Attributes:
        transformer: in one file or several.
        loras: adapters to merge.
        vace: the VACE branch; empty if it is in the transformer's files, or there is none.
        vae: or a tiny autoencoder.
        text_encoder: empty if the checkpoint has none.
        configs: the files that its configuration was read from.
        tokenizer: None if it has none.
    """

    transformer: tuple[WeightFile, ...]
    loras: tuple[WeightFile, ...]
    vace: tuple[WeightFile, ...]
    vae: tuple[WeightFile, ...]
    text_encoder: tuple[WeightFile, ...]
    configs: tuple[Path, ...]
    tokenizer: Path | None

    def of_component(self, component: Component) -> list[Path]:
        """The files that a component's graphs are built from, including each `config.json`."""
        files = {
            Component.TRANSFORMER: (*self.transformer, *self.loras, *self.vace),
            Component.VAE: self.vae,
            Component.TEXT_ENCODER: self.text_encoder,
        }
        return [*self.configs, *(file.path for file in files[component])]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, ready to be read.

    Attributes:
        root: the folder that its files' names are relative to.
        config: of its networks.
        text_encoder: of its text encoder.
        files: where the weights are.
        choice: which weights were used where a file has several sets.
    """

    root: Path
    config: CheckpointConfig
    text_encoder: TextEncoderConfig | None
    files: CheckpointFiles
    choice: WeightChoice

    def name_of(self, path: Path) -> str:
        """A file's name in manifests and reports: its path in the checkpoint's folder."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def open_checkpoint(folder: Path, choice: WeightChoice, notes: Notes) -> Checkpoint:
    """Open the files of a checkpoint's folder.

    Raises:
        BadConfig: its config.json is missing or wrong, or its text encoder's is wrong.
        BadCheckpoint: a file can't be read, or files are missing.
    """
    config = load_config(folder)
    if choice.weights is None and config.weights is not None:
        choice = WeightChoice(WeightSet(config.weights))
    files = _CheckpointFolder(folder, choice, notes)
    encoder_config = None
    if (folder / "text_encoder").is_dir() or files.has(Kind.TEXT_ENCODER):
        encoder_config = load_text_encoder_config(folder / "text_encoder", text_dim=config.text_dim)
    encoder = files.part("text_encoder", Kind.TEXT_ENCODER)
    vae = files.part("vae", Kind.VAE, Kind.TAE)
    if not vae:
        raise BadCheckpoint(f"{folder} has no VAE: put Wan2.1_VAE.pth, or a tiny autoencoder, into {folder / 'vae'}")
    vace = files.part("vace", Kind.VACE) if config.vace_layers else []
    transformer = [file for file in files.beside if file.recognition.kind in (Kind.TRANSFORMER, None)]
    if not transformer:
        raise BadCheckpoint(f"{folder} has no weights of a transformer: no file ends in {', '.join(SUFFIXES)}")
    configs = (folder / "config.json", folder / "text_encoder" / "config.json")
    return Checkpoint(
        folder,
        config,
        encoder_config,
        CheckpointFiles(
            transformer=tuple(transformer),
            loras=tuple(files.part("lora", Kind.LORA, may_be_empty=True)),
            vace=tuple(vace),
            vae=tuple(vae),
            text_encoder=tuple(encoder),
            configs=tuple(path for path in configs if path.is_file()),
            tokenizer=tokenizer_in(folder),
        ),
        choice,
    )


class _CheckpointFolder:
    """The weights in a checkpoint's folder: those beside its config.json, and those of folders with fixed names."""

    def __init__(self, folder: Path, choice: WeightChoice, notes: Notes) -> None:
        self._folder = folder
        self._notes = notes
        self.beside = [open_weights(path, choice, notes) for path in weight_files(folder, notes)]

    def has(self, kind: Kind) -> bool:
        """Whether a file beside config.json is of a kind."""
        return any(file.recognition.kind is kind for file in self.beside)

    def part(self, name: str, *kinds: Kind, may_be_empty: bool = False) -> list[WeightFile]:
        """The files of a network: those in its folder, and without that folder those beside config.json."""
        folder = self._folder / name
        beside = [file for file in self.beside if file.recognition.kind in kinds]
        paths = weight_files(folder, self._notes)
        if folder.is_dir() and not paths and not may_be_empty:
            raise BadCheckpoint(f"{folder} has no weights: no file ends in {', '.join(SUFFIXES)}")
        if beside and (not paths or kinds == (Kind.LORA,)):
            for file in beside:
                self._notes.add(f"{file.path.name} is used as in the folder {name}: it is a {file.recognition.kind}")
            return beside + [open_part(path, kinds, self._notes) for path in paths]
        return [open_part(path, kinds, self._notes) for path in paths]


def open_weights(path: Path, choice: WeightChoice, notes: Notes) -> WeightFile:
    """Open a file, whatever its weights are.

    Raises:
        BadCheckpoint: it can't be read, or nothing says which of several sets is meant.
    """
    return WeightFile(path, *best_set(path, read_sets(path), choice, notes))


def open_part(path: Path, kinds: Sequence[Kind], notes: Notes) -> WeightFile:
    """Open a file that must be one of some kinds.

    Raises:
        BadCheckpoint: it can't be read, or it is another network.
    """
    sets = read_sets(path)
    # Only training checkpoints of the transformer come in several sets; elsewhere an average is the better one.
    average = WeightChoice(WeightSet.EMA, is_default=True)
    counters = [num_known(kind) for kind in kinds]
    chosen = choose_set(path, sets, lambda tensors: max(count(tensors) for count in counters), average, notes)
    found = recognise(chosen.tensors)
    if not any(count(chosen.tensors) for count in counters):
        what = f"a {found.kind}" if found.is_usable else why_unknown(chosen.tensors, found)
        raise BadCheckpoint(f"{path.name} is not the {kinds[0]}: it is {what}".replace("it is it is", "it is"))
    return WeightFile(path, chosen, found)


def tokenizer_in(folder: Path) -> Path | None:
    """The tokenizer.json of a checkpoint's folder, from `text_encoder/` or `tokenizer/`, or Wan's google/umt5-xxl."""
    places = (folder / name / "tokenizer.json" for name in ("text_encoder", "tokenizer", "google/umt5-xxl", "."))
    return next((path for path in places if path.is_file()), None)


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer.json of a checkpoint's folder.

    Raises:
        BadCheckpoint: there is none; the message says where to get one.
    """
    path = tokenizer_in(folder)
    if path is None:
        raise BadCheckpoint(
            f"{folder} has no tokenizer.json in text_encoder or tokenizer: copy the one of the encoder's release "
            "(Wan's is google/umt5-xxl), or have transformers make it from a spiece.model: "
            "T5Tokenizer.from_pretrained(folder).save_pretrained(folder), with sentencepiece installed"
        )
    return path
