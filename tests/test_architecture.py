"""The house: which floor a module stands on, and that imports only run down."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGE = SRC / "servicekit"

FLOORS: list[set[str]] = [
    {"errors", "metadata", "clock", "method", "call", "current", "wire"},
    {
        "endpoint",
        "explain",
        "order",
        "telemetry",
        "instruments",
        "metrics",
        "mapping",
        "inherit",
        "verdict",
        "principal",
        "refreshed",
        "finalizer",
        "policy",
        "call_report",
        "loop_lag",
    },
    {"middleware", "discovery", "http2"},
    {"grpcio", "native", "memory", "balance"},
    {"transport"},
    {"checked", "wires", "server", "client", "process"},
    {"testing", "http", "cli"},
    {""},  # the face
]
"""The rooms of each floor, the lowest first: a file of the package, or a folder."""

GRPC_ROOMS = {"grpcio", "transport"}
PLAIN_GRPC = "servicekit.testing.middleware_bare"  # tries a middleware on what somebody else has made with grpc
GENERATED = "_pb2"


@dataclass(frozen=True)
class Import:
    """One import of one module by another."""

    importer: str
    imported: str
    typing_only: bool

    def __str__(self) -> str:
        """Return "importer imports imported"."""
        return f"{self.importer} imports {self.imported}"


def modules() -> dict[str, Path]:
    """Return every module of the package that people write, by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if GENERATED in path.name:
            continue
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path) -> list[Import]:
    """Return what a module imports, relative imports resolved, as far as it is spelled out in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        found.extend(Import(name, target, id(node) in for_types) for target in targets)
    return found


def known(target: str, names: dict[str, Path]) -> str | None:
    """Return the module of the package that ``target`` is or is in, or None for a stranger."""
    while target and target not in names:
        target = target.rpartition(".")[0]
    return target or None


def room(module: str) -> str:
    """Return the file or folder of the package that a module is in; the face is ""."""
    return module.removeprefix("servicekit").removeprefix(".").partition(".")[0]


def floor(module: str) -> int:
    """Return the floor that a module stands on."""
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


MODULES = modules()
IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, path)]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_has_a_floor(name: str) -> None:
    """A new room is built on purpose: it is named in the plan above."""
    assert any(room(name) in rooms for rooms in FLOORS)


def test_imports_only_run_down() -> None:
    """A module knows its own floor and those below it, for its types too."""
    up = [
        str(found)
        for found in IMPORTS
        if (target := known(found.imported, MODULES)) and floor(target) > floor(found.importer)
    ]
    assert up == []


def test_middleware_do_not_know_each_other() -> None:
    """A link is one file that can be read alone: siblings never import each other."""
    siblings = [
        str(found)
        for found in IMPORTS
        if (target := known(found.imported, MODULES))
        and room(found.importer) == room(target) == "middleware"
        and found.importer != "servicekit.middleware"
    ]
    assert siblings == []


def test_wires_do_not_know_each_other() -> None:
    """What a wire needs of the world is in the seam: no wire imports another one."""
    wires = FLOORS[3]
    crossed = [
        str(found)
        for found in IMPORTS
        if (target := known(found.imported, MODULES))
        and room(found.importer) in wires
        and room(target) in wires
        and room(found.importer) != room(target)
    ]
    assert crossed == []


def test_nobody_inside_imports_the_face() -> None:
    """The face is for users: an insider that imports it makes a circle."""
    assert [str(found) for found in IMPORTS if known(found.imported, MODULES) == "servicekit" != found.importer] == []


def test_there_is_no_import_circle() -> None:
    """Every module can be read after those that it imports, types included."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        target = known(found.imported, MODULES)
        # A package's own face imports its parts; a part that asks for a sibling goes through that face's name only.
        if target and target != found.importer and not found.importer.startswith(f"{target}."):
            graph[found.importer].add(target)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_grpc_is_known_in_two_rooms_only() -> None:
    """What generated code and grpc core look like is the affair of transport and of grpcio; others may name a type."""
    strangers = [
        str(found)
        for found in IMPORTS
        if found.imported.partition(".")[0] in {"grpc", "grpc_health", "grpc_reflection"}
        and room(found.importer) not in GRPC_ROOMS
        and found.importer != PLAIN_GRPC
        and not found.typing_only
        and GENERATED not in found.imported
    ]
    assert strangers == []


def test_the_seam_knows_errors_and_calls_only() -> None:
    """A wire can be written by who knows nothing of this package but three small files."""
    seam = {known(found.imported, MODULES) for found in IMPORTS if found.importer == "servicekit.wire"} - {None}
    assert seam <= {"servicekit.errors", "servicekit.method", "servicekit.metadata"}


def test_the_tree_is_never_deeper_than_a_folder_and_a_file() -> None:
    """One look at the folder shows the architecture: there are no rooms inside rooms."""
    deep = [name for name in MODULES if name.count(".") > 2 and ".testing.v1" not in name]
    assert deep == []


def test_the_reference_service_uses_the_public_face_only() -> None:
    """What the example can do, any user can: it imports nothing of ours but the face, and its business not even that."""
    for path in (SRC / "encryption").glob("*.py"):
        for found in imports_of(f"encryption.{path.stem}", path):
            root = found.imported.partition(".")[0]
            assert root != "grpc", f"{path.name} imports grpc"
            if root == "servicekit":
                assert path.stem in {"servicer", "main", "demo"}, f"{path.name} is business, and imports servicekit"
                assert found.imported.count(".") == 1, f"{path.name}: {found.imported} is not of the face"


def test_importing_the_face_imports_nothing_optional() -> None:
    """Who installs the core alone can import it, and pays for nothing else."""
    optional = {
        "opentelemetry.sdk",
        "prometheus_client",
        "uvloop",
        "pydantic_settings",
        "starlette",
        "uvicorn",
        "cryptography",
    }  # grpc itself imports grpc_tools and grpc_reflection where it finds them
    code = f"import sys, servicekit; print(sorted(set({sorted(optional)!r}) & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
