"""Where classes are found, and what is said when they are not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import epp
from epp.config.roles import Role
from epp.registry import Catalog

PLUGIN = """
import epp

class Mine(epp.Scorer):
    type = "mine"
    class Params(epp.Params, frozen=True):
        names: list[str] = []
    def score(self, request, endpoints):
        return endpoints.waiting
"""


class Half(epp.Scorer[epp.NoParams]):
    type = "half"

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        return endpoints.waiting


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Pretend that packages with these entry points are installed."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, entry_points: str, **modules: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    return install


def test_an_entry_point_is_found_and_imported_when_used(installed: Any) -> None:
    installed("one", "[epp.plugins]\nmine = one_module:Mine\nlost = nowhere_at_all:X\n", one_module=PLUGIN)
    catalog = Catalog.load()
    assert {"mine", "lost"} <= set(catalog.types())
    assert catalog.origin("mine") == "one 1.0"
    assert catalog.resolve("mine").type == "mine"
    assert catalog.resolve("mine") is catalog.resolve("mine")
    assert catalog.roles("mine") == {Role.SCORER}
    with pytest.raises(epp.ConfigError, match=r"`lost` of one 1\.0: there is no module `nowhere_at_all`"):
        catalog.resolve("lost")


def test_a_catalog_is_found(installed: Any) -> None:
    table = "CATALOG = {'mine': 'two_plugin:Mine'}"
    installed("two", "[epp.plugins.catalogs]\nall = two_catalog:CATALOG\n", two_catalog=table, two_plugin=PLUGIN)
    assert Catalog.load().resolve("mine").__module__ == "two_plugin"


def test_a_broken_catalog_names_its_package(installed: Any) -> None:
    installed("three", "[epp.plugins.catalogs]\nall = three_catalog:CATALOG\n", three_catalog="1 / 0")
    with pytest.raises(epp.ConfigError, match=r"three_catalog:CATALOG of three 1\.0 cannot be loaded"):
        Catalog.load()


def test_two_packages_with_one_type(installed: Any) -> None:
    installed("four", "[epp.plugins]\nmine = four_module:Mine\n")
    installed("five", "[epp.plugins]\nmine = five_module:Mine\n")
    with pytest.raises(epp.ConfigError, match=r"`mine` is brought by both (four|five) 1\.0"):
        Catalog.load()


def test_unknown_types_get_a_suggestion() -> None:
    catalog = Catalog({"half": Half})
    with pytest.raises(epp.ConfigError, match=r"unknown plugin type `hlaf` \(did you mean `half`\?\)"):
        catalog.resolve("hlaf")
    with pytest.raises(epp.ConfigError, match="`epp plugins` lists"):
        Catalog({f"type-{i}": "a:B" for i in range(30)}).resolve("zzzzzz")
    assert catalog.roles("hlaf") == frozenset()
    assert catalog.origin("hlaf") == "configuration"


def test_module_and_class() -> None:
    assert Catalog().resolve("epp_plugins.parsers.passthrough:PassthroughParser").type == "passthrough-parser"
    with pytest.raises(epp.ConfigError, match=r"there is no `PassthruParser` in it \(did you mean `PassthroughParser`"):
        Catalog().resolve("epp_plugins.parsers.passthrough:PassthruParser")


def test_importing_may_fail(installed: Any) -> None:
    installed("six", "", six_module="raise RuntimeError('no licence')")
    with pytest.raises(epp.ConfigError, match="importing `six_module` failed: RuntimeError: no licence"):
        Catalog().resolve("six_module:X")
    installed("seven", "", seven_module="import sys; sys.exit('usage: seven')")
    with pytest.raises(epp.ConfigError, match="importing `seven_module` failed: SystemExit: usage: seven"):
        Catalog().resolve("seven_module:X")


def test_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    catalog = Catalog(directory=tmp_path)
    found = catalog.resolve("./mine.py:Mine")
    assert found.type == "mine"
    assert catalog.roles("./mine.py:Mine") == {Role.SCORER}
    assert Catalog(directory=tmp_path).resolve("mine.py:Mine") is found
    assert Catalog().resolve(f"{tmp_path}/mine.py:Mine") is found


def test_files_that_do_not_work(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import not_there_at_all")
    with pytest.raises(epp.ConfigError, match=r"broken\.py failed: ModuleNotFoundError"):
        Catalog(directory=tmp_path).resolve("./broken.py:X")
    with pytest.raises(epp.ConfigError, match="there is no plugin file"):
        Catalog(directory=tmp_path).resolve("./missing.py:X")
    with pytest.raises(epp.ConfigError, match="use --config-file, or an absolute path"):
        Catalog().resolve("./mine.py:X")


def test_given_classes_are_checked() -> None:
    with pytest.raises(epp.ConfigError, match="registered as `other`"):
        Catalog({"other": Half})
