"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# No test is judged by the clock: a machine that others share can be any number of times slower.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
