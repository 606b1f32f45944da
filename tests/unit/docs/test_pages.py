"""What the pages say is there: links, configurations, code, commands, flags, metrics, headers, plugins."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.scenarios import SCENARIOS
from epp.api.plugin import Plugin
from epp.cli.check import examine
from epp.cli.flags import REMOVED, serve_flags
from epp.cli.main import COMMANDS, main
from epp.cli.plugins import describe
from epp.config.load import DEFAULT_CONFIG
from epp.registry.catalog import Catalog
from epp.registry.inspection import verify
from epp.transport.limits import Limits
from epp_simulator.options import SimOptions

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"))
    if "build" not in path.parts
)
HEAD = "".join(DEFAULT_CONFIG.splitlines(keepends=True)[:2])
# Of programs that are not ours: vLLM, llm-d's sidecar and simulator, Helm, kubectl.
FOREIGN_FLAGS = {
    "set",
    "set-string",
    "context",
    "kv-transfer-config",
    "model-server-port",
    "kv-connector",
    "secure-proxy",
    "enable-prefix-caching",
    "enable-scale-out",
    "chat-template-content-format",
    "default-chat-template-kwargs",
    "exclude-tools-when-tool-choice-none",
    "enable-prompt-tokens-details",
    "data-parallel-hybrid-lb",
    "event-batch-size",
}

by_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


@functools.cache
def sources() -> str:
    """The text of everything that runs."""
    kinds = (".py", ".yaml", ".sh", ".tpl", ".json", ".tmpl", ".toml")
    folders = ("epp", "plugins", "benchmarks", "deploy", "configs")
    return "\n".join(
        path.read_text() for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds
    )


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks, without their indentation."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.S | re.M)
    return [textwrap.dedent(block[2]) for block in found]


def anchors(page: Path) -> list[str]:
    """As GitHub makes them from headings."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{sum(one.startswith(slug) for one in found)}")
    return found


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@by_page
def test_files_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:docs|configs|deploy|epp|plugins|tests|benchmarks)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


@by_page
def test_configurations_work(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        tree = yaml.safe_load(block)
        assert isinstance(tree, dict), f"not to be copied as it is:\n{block}"
        if tree.get("kind", "EndpointPickerConfig") != "EndpointPickerConfig" or "endpoints" in tree:
            continue
        text = block if "kind" in tree else HEAD + (block if "plugins" in tree else "plugins: []\n" + block)
        if list(tree) == ["kvBlockIndexConfig"]:
            producer = {"type": "precise-prefix-cache-producer", "parameters": {"indexerConfig": tree}}
            text = HEAD + yaml.safe_dump({"plugins": [producer]})
        for file, name in re.findall(r"\./(\w+\.py):(\w+)", block):
            code = next(code for code in blocks(page, "python") if f"class {name}(" in code)
            (tmp_path / file).write_text(code)
        (tmp_path / "password").touch()
        path = tmp_path / f"{number}.yaml"
        path.write_text(text.replace("/etc/redis", str(tmp_path)))
        examine(str(path), allow_experimental=True)


@by_page
def test_code_is_python_and_whole_plugins_are_plugins(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        if not block.startswith("import epp\n"):
            continue
        names: dict[str, Any] = {"__name__": "of_a_page"}
        exec(block, names)
        made = [value for value in names.values() if isinstance(value, type) and issubclass(value, Plugin)]
        assert made
        for kind in made:
            verify(kind)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `epp ...` that a reader may type."""
    text = page.read_text()
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in re.sub(r"\\\n\s*", "", text).splitlines()]
    typed = [line.strip() for line in lines if re.match(r"(?: {4}|)epp [a-z]", line)]
    for command in (*typed, *re.findall(r"`(?:\.venv/bin/)?(epp [a-z][^`\n]*)`", text)):
        yield command.partition("#")[0].split()[1:]


@by_page
def test_commands_are_there(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands(page):
        assert name in COMMANDS, name
        inner = [word for word in words[:1] if (name, word) in {("kv", "watch"), ("kv", "check"), ("plugins", "new")}]
        try:
            main([name, *inner, "--help"])
        except SystemExit as ended:
            assert ended.code == 0  # noqa: PT017
        helped = capsys.readouterr().out
        for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert flag in helped, f"epp {name} {flag}"


@by_page
def test_flags_are_there(page: Path) -> None:
    ours = {flag.name for flag in serve_flags()} | set(REMOVED)
    ours |= {field.name.replace("_", "-") for field in dataclasses.fields(SimOptions)}
    ours |= set(re.findall(r'"--([a-z-]+)"', sources())) | set(re.findall(r"--([a-z]+)\)", sources()))
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])(?![\w*-])", page.read_text()):
        assert flag in ours | FOREIGN_FLAGS | {"flag"}, flag


def test_makefile_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets
        assert set(re.findall(r"^ {4}make ([a-z-]+)", page.read_text(), re.M)) <= targets


@functools.cache
def metrics() -> re.Pattern[str]:
    """Every name that the code gives to a metric; what it puts together at run time may be anything there."""
    found: set[str] = set()
    for folder in ("epp", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= set(re.findall(r"^(?:llm_d_epp_)?([a-z0-9]+_[a-z_0-9]+)$", node.value))
                elif isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
                    if re.fullmatch("[a-z_]+_[a-z_]+", "".join(parts)):
                        found.add("[a-z_]+".join(filter(None, parts)) if parts[0] else "[a-z_]+" + "".join(parts))
    return re.compile("|".join(sorted(found)))


def metric_names(page: Path) -> Iterator[str]:
    """Those with the prefix, and those in the first column of tables whose heading says that it is left out."""
    text = page.read_text()
    yield from re.findall(r"llm_d_epp_([a-z0-9_]*[a-z0-9])", text)
    for table in re.findall(r"^\|[^|\n]*`llm_d_epp_[`…][^|\n]*\|[^\n]*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M):
        for row in table.splitlines():
            yield from re.findall(r"`([a-z0-9]+_[a-z0-9_]+)(?:\{[a-z, ]*\})?`", row.split("|")[1])


@by_page
def test_metrics_are_there(page: Path) -> None:
    for name in metric_names(page):
        assert metrics().fullmatch(name), name


def test_the_names_of_the_tables_are_found() -> None:
    assert "prefix_indexer_size" in set(metric_names(ROOT / "docs/prefix-cache.md"))
    assert "kv_event_lag_seconds" in set(metric_names(ROOT / "docs/kv-events.md"))
    assert not metrics().fullmatch("kv_events_lag_seconds")


@by_page
def test_headers_are_there(page: Path) -> None:
    for name in re.findall(r"(?<![\w-])x-[a-z][a-z0-9-]*[a-z0-9]", page.read_text()):
        assert name in sources(), name


def plugin_rows() -> Iterator[tuple[list[str], str, str]]:
    """(types, marks, parameters) of the tables in docs/plugins.md."""
    page = (ROOT / "docs/plugins.md").read_text().partition("## Deviations")[0]
    for row in page.splitlines():
        if row.startswith("| `"):
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            yield re.findall(r"`([a-z][a-z0-9-]+)`", cells[0]), cells[0], cells[1]


def test_every_plugin_is_on_its_page() -> None:
    catalog = Catalog.load()
    shipped = [kind for kind in catalog.types() if catalog.origin(kind).startswith("epp ")]
    told = {kind for kinds, _, _ in plugin_rows() for kind in kinds}
    assert told == set(shipped)


def test_parameters_and_defaults_on_the_page_are_those_of_the_code() -> None:
    catalog = Catalog.load()
    for kinds, _, cell in plugin_rows():
        if re.search("see |those of", cell):
            continue
        for kind in kinds:
            known = describe(catalog, kind)["parameters"]
            names = {one["name"].replace("[]", "").rpartition(".")[2] for one in known}
            told = {name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z.]+)`", cell)}
            assert told <= names | {"vllm", "local"}, kind
            expected = {
                one["name"]
                for one in known
                if "." not in one["name"] and not re.search("no effect|deprecated|refused", one["description"])
            }
            assert expected <= set(re.findall(r"`([A-Za-z]+)[`.]", cell)), kind
            for name, default in re.findall(r"`([A-Za-z]+)`(?: ⁺)? \(([\d.]+|true|false)\)", cell):
                told_default = next(one["default"] for one in known if one["name"].endswith(name))
                assert float(yaml.safe_load(default)) == float(told_default), f"{kind} {name}"


def test_marks_of_stability_on_the_page_are_those_of_the_code() -> None:
    marks = {"ᵃ": "alpha", "ᵈ": "deprecated", "ˢ": "stable"}
    for _, cell, _ in plugin_rows():
        for kind, mark in re.findall(r"`([a-z0-9-]+)` ?([ᵃᵈˢ]?)", cell):
            assert describe(Catalog.load(), kind)["stability"] == marks.get(mark, "beta"), kind


def test_limits_of_the_transport_are_its_own() -> None:
    page = (ROOT / "docs/transport.md").read_text()
    table = page.partition("## Limits")[2].partition("\n\n## ")[0]
    told = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert told <= {field.name for field in dataclasses.fields(Limits)}


def test_scenarios_of_the_page_are_those_of_the_benchmarks() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    table = page.partition("| scenario |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.M)) == set(SCENARIOS)


def test_flags_without_effect_are_listed() -> None:
    from epp.cli.flags import NOT_YET_EFFECTIVE

    page = (ROOT / "docs/coming-from-llm-d-router.md").read_text()
    listed = page.partition("## Accepted, without effect yet")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `--([a-z-]+)`", listed, re.M)) == set(NOT_YET_EFFECTIVE)


def test_types_that_are_said_not_to_be_here_are_not() -> None:
    page = (ROOT / "docs/coming-from-llm-d-router.md").read_text()
    types = Catalog.load().types()
    for row in re.findall(r"^\| (`[^|]*)\|", page.partition("## Not here (yet)")[2], re.M):
        for kind in re.findall(r"`([a-z-]+)`", row):
            assert kind not in types
