"""Which proxy leads to a server, by the environment."""

from __future__ import annotations

import pytest

from epp.kubernetes.proxy import from_environment

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("server", "environment", "proxy"),
    [
        ("https://api.example:6443", {}, ""),
        ("https://api.example:6443", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://api.example:6443", {"https_proxy": "proxy:3128"}, PROXY),
        ("https://api.example:6443", {"HTTP_PROXY": PROXY}, ""),
        ("http://api.example", {"HTTP_PROXY": PROXY}, PROXY),
        ("https://localhost:6443", {"HTTPS_PROXY": PROXY}, ""),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": PROXY}, ""),
        ("https://[::1]:6443", {"HTTPS_PROXY": PROXY}, ""),
    ],
)
def test_variables(server: str, environment: dict[str, str], proxy: str) -> None:
    assert from_environment(server, environment) == proxy


@pytest.mark.parametrize(
    ("host", "without", "asked"),
    [
        ("api.example", "*", False),
        ("api.example", "other, api.example", False),
        ("api.example", "EXAMPLE", False),
        ("api.example", ".example", False),
        ("example", ".example", True),
        ("api.example", "*.example", False),
        ("api.example", "pi.example", True),
        ("api.example", "api.example:6443", False),
        ("api.example", "api.example:443", True),
        ("10.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "192.168.0.0/16,10.1.2.4", True),
        ("10.1.2.3", "10.1.2.3:6443", False),
        ("10.1.2.3", "example", True),
        ("[fd00::1]", "fd00::/8", False),
        ("[fd00::1]", "fd00::1", False),
        ("[fd00::1]", "[fd00::1]", False),
        ("[fd00::1]", "[fd00::1]:6443", False),
        ("[fd00::1]", "[fd00::1]:443", True),
        ("api.example", ",", True),
    ],
)
def test_who_is_asked_without_it(host: str, without: str, asked: bool) -> None:
    found = from_environment(f"https://{host}:6443", {"HTTPS_PROXY": PROXY, "NO_PROXY": without})
    assert found == (PROXY if asked else "")
