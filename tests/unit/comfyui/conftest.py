from tests.support.comfyui.fixtures import comfy, names_of_this_test  # noqa: F401 - fixtures
