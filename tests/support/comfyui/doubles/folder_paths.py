"""Stands for ComfyUI's module: where outputs go."""

from pathlib import Path

output_directory = ""


def get_output_directory() -> str:
    assert output_directory, "the test has set no output directory"
    return output_directory


def get_user_directory() -> str:
    assert output_directory, "the test has set no output directory"
    return str(Path(output_directory).with_name("user"))


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    full = Path(output_dir, filename_prefix)
    if ".." in full.parts:
        raise Exception("**** ERROR: Saving image outside the output folder is not allowed.\n full_output_folder: /x")
    full.parent.mkdir(parents=True, exist_ok=True)
    counter = 1 + len(list(full.parent.glob(f"{full.name}_*")))
    subfolder = str(full.parent.relative_to(output_dir))
    return str(full.parent), full.name, counter, subfolder, filename_prefix
