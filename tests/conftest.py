"""What holds for every test."""

from hypothesis import settings

# Machines are shared, so no test asserts a time; hypothesis would, unless told.
settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")
