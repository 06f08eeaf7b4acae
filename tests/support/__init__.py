import pytest

pytest.register_assert_rewrite("tests.support.aftermath", "tests.support.processes")
