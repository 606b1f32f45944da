"""A table that most tests of producers begin with."""

import pytest

from epp.api import Endpoint, EndpointTable


@pytest.fixture
def table() -> EndpointTable:
    """`pod-0` to `pod-2` at 10.0.0.0 to 10.0.0.2, port 8000."""
    table = EndpointTable()
    for number in range(3):
        table.add(Endpoint(f"pod-{number}", f"10.0.0.{number}", 8000))
    return table
