import pytest

pytest.register_assert_rewrite("tests.support.recovery", "tests.support.processes", "tests.support.refusals")
