"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# A machine that others load at the same time is slow now and then: that says nothing about the code.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")
