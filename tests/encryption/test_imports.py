import ast
from pathlib import Path

import pytest

import encryption

MODULES = sorted(Path(encryption.__file__).parent.glob("*.py"))
TRANSPORT = {"servicer.py", "main.py", "demo.py"}


def imported(module: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.stem))
def test_the_reference_service_is_written_as_a_users_would_be(module: Path) -> None:
    """The business knows no transport; the transport knows the public face and generated code, and never grpc."""
    outside = {name for name in imported(module) if name.split(".")[0] in {"grpc", "google", "servicekit"}}
    generated = {name for name in imported(module) if name.startswith("encryption.v1.")}
    assert outside <= ({"servicekit"} if module.name in TRANSPORT else set())
    assert not generated or module.name in TRANSPORT
