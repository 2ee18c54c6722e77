"""Which module may import what, and what an import of the package must not do."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

import attrs
import pytest

import stormphase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunPython

# DESIGN.md's rooms, from the top. A module imports only from the rows above its own. On one row, a comma parts rooms
# that know nothing of each other; a plus joins files of one room, which may import each other but not in a circle. A
# name stands for a module, or for a package with all that is in it, whose files are one room.
ROOMS = """
    _derived_ids, _speedups, _version, exceptions, typing
    _arrays, _attribute_counts, _clock, _copying, _histogram, _marks, _model, _said_lines, _secret_spans, _sites
    _launch_names, _start_counts, _torch_group
    _caught, _redaction
    _attempts, _attributes + _plain_values, _bell, _counts, _ids, _liveness, _paths, _process, _status, _tasks, _totals
    _record + _record_fields + _recording + _attribution + _phase_boundary + _lost + _owner_records
    _phase + _boundary + _errors + _misuse + _enter + _exits + _moves + _noop + _lane + _native + _lanes + _recorder
    _signals
    _ambient, _bridge, _rank + _environ + _launchers + _process_facts + _session_id + _carried + _starters
    _decorator + _awaitables + _filters + _options + _recipe + _suspension + _wrappers, _drain
    capture, journal
    stores
    _claims, _configuration, _logging_sink, _sinks + _overdue, _summary + _table + _render + _rich_view + _terminal
    _tracker + _session + _claim_place + _early + _capturing + _carrying + _journaling + _last_words + _workers
    otel, analysis, export, records, testing + _store_conformance
    integrations, cli
    __init__
"""
ALWAYS_INSTALLED = {"attr", "attrs", "stormphase"}
OTEL_ALWAYS_INSTALLED = ("opentelemetry.exporter", "opentelemetry.instrumentation")  # ... all but these two
OPTIONAL_OR_HEAVY = ("opentelemetry.sdk", "asyncio", "sqlite3", "rich", "torch")

PACKAGE = Path(stormphase.__file__).parent


@attrs.frozen
class Import:
    """One imported module, as a line of source names it."""

    importer: str
    imported: str
    line: int
    is_for_types: bool
    is_at_module_level: bool

    def __str__(self) -> str:
        """Return where it stands and what it imports."""
        return f"{self.importer}:{self.line} imports {self.imported}"


def place_of(room_name: str) -> tuple[int, str]:
    """Return the row and the room of a first component, as ROOMS has them."""
    for row, line in enumerate(ROOMS.strip().splitlines()):
        for room in line.split(","):
            if room_name in (name.strip() for name in room.split("+")):
                return row, room.strip()
    raise AssertionError(f"stormphase.{room_name} has no room: give it one in ROOMS, as DESIGN.md has it")


def module_names(root: Path) -> dict[str, Path]:
    """Return the files of a package by their dotted names; `__init__` for its own, as for a subpackage's."""
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}


class ImportReader(ast.NodeVisitor):
    """Reads every import in a module of the package: relative ones resolved, `import_module("...")` included."""

    def __init__(self, name: str, known: frozenset[str]) -> None:
        self.found: list[Import] = []
        self.name = name
        self.known = known
        self.is_for_types = False
        self.is_at_module_level = True

    def visit_Import(self, node: ast.Import) -> None:
        """Note each module that `import a, b` names."""
        for alias in node.names:
            self.note(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note the modules that `from a import b` names: `a.b` if that is one, else `a`."""
        package = ["stormphase", *self.name.split(".")[:-1]]
        base = package[: len(package) + 1 - node.level] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{origin}.{alias.name}"
            self.note(node, whole if is_module(whole, self.known) else origin)

    def visit_Call(self, node: ast.Call) -> None:
        """Note the module that `import_module("a")` names."""
        if getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    self.note(node, str(argument.value))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Read `if TYPE_CHECKING` as what never runs."""
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)
            return
        self.is_for_types = True
        for child in node.body:
            self.visit(child)
        self.is_for_types = False
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Read a function's body as what runs later."""
        self.read_later(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Read a coroutine function's body as what runs later."""
        self.read_later(node)

    def read_later(self, node: ast.AST) -> None:
        """Read what is inside as not at module level."""
        outside, self.is_at_module_level = self.is_at_module_level, False
        self.generic_visit(node)
        self.is_at_module_level = outside

    def note(self, node: ast.stmt | ast.Call, imported: str) -> None:
        """Keep one import with where and how it stands."""
        self.found.append(Import(self.name, imported, node.lineno, self.is_for_types, self.is_at_module_level))


def imports_of(name: str, source: str, known: frozenset[str]) -> list[Import]:
    """Return every import in one module of the package; `known` names all its modules."""
    reader = ImportReader(name, known)
    reader.visit(ast.parse(source))
    return reader.found


def is_module(dotted: str, known: frozenset[str]) -> bool:
    """Whether a dotted name is a module of ours, rather than something in one."""
    inner = dotted.removeprefix("stormphase.")
    return dotted.startswith("stormphase.") and (inner in known or f"{inner}.__init__" in known)


def own_imports(name: str, source: str, known: frozenset[str]) -> Iterator[tuple[Import, str]]:
    """Yield each import of our own package that runs, with the name inside it; those for types only never run."""
    for each in imports_of(name, source, known):
        parts = each.imported.split(".")
        if parts[0] == "stormphase" and not each.is_for_types:
            inner = ".".join(parts[1:]) or "__init__"
            yield each, inner if inner in known else f"{inner}.__init__"


def broken_rooms(sources: dict[str, str]) -> list[str]:
    """Return a line for each import that points up or sideways, and one for each circle within a room."""
    known = frozenset(sources)
    broken: list[str] = []
    siblings: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        row, room = place_of(name.split(".")[0])
        for each, inner in own_imports(name, source, known):
            imported_row, imported_room = place_of(inner.split(".")[0])
            if imported_room == room and inner != name:
                siblings[name].add(inner)
            elif imported_row >= row:
                broken.append(f"{each}: it points {'sideways' if imported_row == row else 'up'}")
    return broken + [f"{' -> '.join(circle)}: a circle" for circle in circles(siblings)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return each way from a node back to itself, once."""
    found: dict[frozenset[str], list[str]] = {}

    def follow(way: list[str]) -> None:
        for following in sorted(graph.get(way[-1], ())):
            if following in way:
                circle = [*way[way.index(following) :], following]
                found.setdefault(frozenset(circle), circle)
            else:
                follow([*way, following])

    for start in sorted(graph):
        follow([start])
    return list(found.values())


def otel_outside_its_room(sources: dict[str, str]) -> list[str]:
    """Return the imports of OpenTelemetry outside otel/; for types as well, since a type is knowledge too."""
    known = frozenset(sources)
    return [
        str(each)
        for name, source in sources.items()
        if not name.startswith("otel.")
        for each in imports_of(name, source, known)
        if each.imported.split(".", maxsplit=1)[0] == "opentelemetry"
    ]


def optional_at_module_level(sources: dict[str, str]) -> list[str]:
    """Return the imports, run as soon as their module is, of what may not be installed."""
    known = frozenset(sources)
    return [
        str(each)
        for name, source in sources.items()
        for each in imports_of(name, source, known)
        if each.is_at_module_level and not each.is_for_types and not is_always_installed(each.imported)
    ]


def is_always_installed(module: str) -> bool:
    """Whether a module comes with Python or with our runtime dependencies."""
    top = module.split(".", maxsplit=1)[0]
    if top == "opentelemetry":
        return not module.startswith(OTEL_ALWAYS_INSTALLED)
    return top in ALWAYS_INSTALLED or top in sys.stdlib_module_names


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Return the source of every module of the package by its name inside it."""
    return {name: path.read_text(encoding="utf-8") for name, path in module_names(PACKAGE).items()}


def test_every_import_points_to_a_room_above(sources: dict[str, str]) -> None:
    """No module imports a room below or beside its own, and no room goes in a circle."""
    assert [] == broken_rooms(sources)


def test_opentelemetry_is_known_in_otel_only(sources: dict[str, str]) -> None:
    """Whoever never asks for telemetry never loads a line of it: only stormphase/otel/ imports it."""
    assert [] == otel_outside_its_room(sources)


def test_optional_packages_are_imported_where_used(sources: dict[str, str]) -> None:
    """A module can be imported without the extras, and says which one is missing only when it is needed."""
    assert [] == optional_at_module_level(sources)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("_status", "from stormphase._recorder import x", ["_status:1 imports stormphase._recorder: it points up"]),
        ("_status", "def f():\n  import stormphase.otel.x", ["_status:2 imports stormphase.otel.x: it points up"]),
        ("_status", "from . import _ids", ["_status:1 imports stormphase._ids: it points sideways"]),
        ("_status", "import stormphase", ["_status:1 imports stormphase: it points up"]),
        ("_status", "from stormphase import phase", ["_status:1 imports stormphase: it points up"]),
        ("_status", "import_module('stormphase.otel')", ["_status:1 imports stormphase.otel: it points up"]),
        ("_status", "from stormphase._model import x", []),
        ("_status", "if TYPE_CHECKING:\n  import stormphase.otel.x", []),
        ("_lanes", "from stormphase import _phase", ["_lanes -> _phase -> _lanes: a circle"]),
        ("otel.x", "from .y import f", ["otel.x -> otel.y -> otel.x: a circle"]),
        ("otel.x", "from .._model import f", []),
        ("otel.x", "from ..analysis import f", ["otel.x:1 imports stormphase.analysis: it points sideways"]),
        ("otel.x", "from ..cli import f", ["otel.x:1 imports stormphase.cli: it points up"]),
    ],
)
def test_the_rule_of_rooms_sees_a_breach(name: str, source: str, expected: list[str]) -> None:
    """A check that finds nothing is worth something only if it would find a breach."""
    package = {
        "__init__": "",
        "_ids": "",
        "_model": "",
        "_status": "",
        "_recorder": "",
        "_lanes": "",
        "_phase": "from stormphase import _lanes",
        "otel.__init__": "from stormphase.otel import x",
        "otel.x": "",
        "otel.y": "import stormphase.otel.x",
        "analysis.__init__": "",
        "cli.__init__": "",
    }
    assert [] == broken_rooms(package)
    assert expected == broken_rooms(package | {name: source})


def test_a_module_without_a_room_is_refused() -> None:
    """Who adds a module decides where it stands."""
    with pytest.raises(AssertionError, match="give it one in ROOMS"):
        broken_rooms({"helpers": ""})


def test_the_rule_of_opentelemetry_sees_a_breach() -> None:
    """An import of OpenTelemetry outside its room is found, for types and inside functions too."""
    sources = {
        "_tracker": "if TYPE_CHECKING:\n  from opentelemetry.trace import Span\ndef f():\n  import opentelemetry",
        "otel.x": "import opentelemetry.sdk",
    }
    expected = ["_tracker:2 imports opentelemetry.trace", "_tracker:4 imports opentelemetry"]
    assert expected == otel_outside_its_room(sources)


def test_the_rule_of_optional_packages_sees_a_breach() -> None:
    """What may be missing is found at module level, in a try and in a class too; inside a function it is fine."""
    sources = {
        "_summary": "try:\n  import rich.tree\nexcept ImportError:\n  pass\nclass A:\n  import numpy",
        "otel.x": "import opentelemetry.sdk.trace\nimport opentelemetry.exporter.otlp.proto.http\nimport json, attrs",
        "cli.x": "def f():\n  import rich\nif TYPE_CHECKING:\n  import torch",
    }
    expected = [
        "_summary:2 imports rich.tree",
        "_summary:6 imports numpy",
        "otel.x:2 imports opentelemetry.exporter.otlp.proto.http",
    ]
    assert expected == optional_at_module_level(sources)


WATCHED_IMPORT = """
import _thread, functools, json, os, sys, threading

opened, started, read = [], [], []

def audit(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        opened.append(str(arguments[0]))

def watched(start):
    @functools.wraps(start)
    def wrapper(*args, **kwargs):
        started.append(start.__name__)
        return start(*args, **kwargs)
    return wrapper

for module in (_thread, threading):  # all the ways in which Pythons from 3.10 on start a thread
    for name in dir(module):
        if name.lstrip("_").startswith("start_") and name.endswith("_thread"):
            setattr(module, name, watched(getattr(module, name)))

class Watched(type(os.environ)):
    def __getitem__(self, name):
        read.append(name)
        return super().__getitem__(name)
    def __iter__(self):
        read.append("all of it")
        return super().__iter__()

before = set(sys.modules)
os.environ.__class__ = Watched
sys.addaudithook(audit)
exec(sys.argv[1])
seen = {"opened": opened[:], "started": started[:], "read": read[:], "threads": threading.active_count()}
print(json.dumps({**seen, "modules": sorted(set(sys.modules) - before)}))
"""
# Coverage measures children by itself; it would load sqlite3 into the very process whose imports are looked at.
WITHOUT_COVERAGE = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": "", "PYTHONDONTWRITEBYTECODE": "1"}


def test_import_does_nothing_but_import(run_python: RunPython) -> None:
    """Importing stormphase starts no thread, opens no file of its own and reads no environment variable."""
    seen = json.loads(run_python(WATCHED_IMPORT, "import stormphase", env=WITHOUT_COVERAGE).stdout)
    assert ([], [], [], 1) == (seen["opened"], seen["started"], seen["read"], seen["threads"])


def test_import_loads_nothing_optional_or_heavy(run_python: RunPython) -> None:
    """Importing stormphase loads neither OTel's SDK nor asyncio, sqlite3, rich or torch."""
    loaded = json.loads(run_python(WATCHED_IMPORT, "import stormphase", env=WITHOUT_COVERAGE).stdout)["modules"]
    assert [] == [name for name in loaded if f"{name}.".startswith(tuple(f"{heavy}." for heavy in OPTIONAL_OR_HEAVY))]
    assert "stormphase" in loaded


def test_the_watch_on_an_import_sees_a_breach(run_python: RunPython, tmp_path: Path) -> None:
    """A thread, a file, an environment variable and a heavy module are all seen by the watch."""
    file = tmp_path / "opened.txt"
    source = (
        f"import asyncio, threading; open({str(file)!r}, 'w').close(); os.environ.get('HOME');"
        "os.getenv('STORMPHASE_SUMMARY'); t = threading.Thread(target=int); t.start(); t.join()"
    )
    seen = json.loads(run_python(WATCHED_IMPORT, source, env=WITHOUT_COVERAGE).stdout)
    assert [str(file)] == seen["opened"]
    assert 1 <= len(seen["started"])
    assert {"HOME", "STORMPHASE_SUMMARY"} <= set(seen["read"])
    assert "asyncio" in seen["modules"]


def test_the_installed_package_is_what_is_tested() -> None:
    """The tests run on what pip installed, be it a wheel or an editable checkout, not on the working directory."""
    installed = importlib.metadata.distribution("stormphase")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        folder = Path(url2pathname(urlparse(origin["url"]).path))
    else:
        folder = Path(str(installed.locate_file("")))
    assert (folder / "stormphase").resolve() == PACKAGE.resolve()


def test_the_version_stands_in_one_place() -> None:
    """What pip reports, what the package says and what our spans carry is one version."""
    assert importlib.metadata.version("stormphase") == stormphase.__version__
