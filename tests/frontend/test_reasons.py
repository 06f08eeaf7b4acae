"""Why a model is not served: the sentence for clients in what Triton says."""

import pytest

from frontend.reasons import sentence

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
    made = sentence(said)
    assert sentence_of_ours in made
    assert "/srv" not in made
    assert "\n" not in made
    assert len(made) <= 500
