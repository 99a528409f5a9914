"""What a test that names a plane itself needs to say."""

import importlib.util

import pytest

needs_nixl = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)
