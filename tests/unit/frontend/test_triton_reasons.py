"""Why a model is not served: the sentence for clients in what Triton says."""

from pathlib import Path

import pytest

from frontend.triton import public_reason, without_folders

AT = "\n\nAt:\n  /srv/models/gray/1/model.py(3): initialize\n  <frozen importlib._bootstrap>(241): _call\n"


@pytest.mark.parametrize(
    ("said", "sentence_of_ours"),
    [
        (
            f"Internal: ValueError: transformer.onnx is damaged: export it again{AT}",
            "transformer.onnx is damaged: export it again",
        ),
        (
            "load failed for model 'gray': version 1 is at UNAVAILABLE state: "
            f"Internal: TritonModelException: no file /srv/my models/gray/1/vae.onnx{AT};\n",
            "no file vae.onnx",
        ),
        (
            f"Internal: ModuleNotFoundError: No module named 'einops'{AT}",
            "ModuleNotFoundError: No module named 'einops'",
        ),
        ("Internal: Stub process 'gray_0_0' is not healthy.", "its process ended while it started"),
        ("failed to load 'gray', failed to poll from model repository", "cannot read its model folder"),
        ("at least one version must be available under the version policy of model 'gray'", "has no version folder"),
        (
            'Traceback (most recent call last):\n  File "/srv/model.py", line 3, in load\n    f()\n'
            "RuntimeError: '/srv/a/w.onnx' and /srv/b/x.onnx differ, see https://example.com/a/b, 1/2 or ~/c d/e.txt",
            "'w.onnx' and x.onnx differ, see https://example.com/a/b, 1/2 or e.txt",
        ),
        ("", "Triton does not say why"),
        ("a" * 1000, "…"),
    ],
)
def test_a_sentence_for_clients(said: str, sentence_of_ours: str) -> None:
    made = public_reason(said)
    assert sentence_of_ours in made
    assert "/srv" not in made
    assert "\n" not in made
    assert len(made) <= 500


PATHS = {  # what a model says: what clients read
    "no file file:///home/user/m/model.py": "no file model.py",
    "no file FILE://localhost/home/user/model.py": "no file model.py",
    "no file //home/user//deep///model.py": "no file model.py",
    "see unix:///run/user/1/model.py, please": "see unix:model.py, please",
    "[Errno 2] No such file: '/data/a:b/secret it, all/model.py'": "[Errno 2] No such file: 'model.py'",
    """No such file: "/home/o'brien/x y/model.py", or 'file:///a/b'""": """No such file: "model.py", or 'b'""",
    "no file /data/a:b/secret/model.py: is it there?": "no file model.py: is it there?",
    "no file /home/o'brien/x/model.py, which isn't in /srv/x": "no file model.py, which isn't in x",
    "no file ~someone/x/model.py": "no file model.py",
    "no file /known/it's: odd' /gray/1/model.py": "no file model.py",
    "see https://example.com/a/b or 1/2": "see https://example.com/a/b or 1/2",
}


@pytest.mark.parametrize("said", PATHS)
def test_no_folder_of_the_server_reaches_clients(said: str) -> None:
    assert without_folders(said, [Path("/known/it's: odd' ")]) == PATHS[said]
    assert public_reason(f"Internal: RuntimeError: {said}{AT}", [Path("/known/it's: odd' ")]) == PATHS[said].rstrip(".")
