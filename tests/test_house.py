"""Check that imports go one way, between the package's rooms and in them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bnlasagne"

# Each may import from those before it.
ROOMS = ("compat", "theano_tools", "networks", "kernels", "averages",
         "parallel", "layers", "population", "accumulation", "folding",
         "weights", "moved", "__init__", "__main__")


def name_of(path):
    """A module's name, relative to the package; a room's for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__"
                    else parts)


def imports_of(name, source, modules):
    """The package's modules that a module imports, wherever it does."""
    package = name.split(".")[:-1]
    if any(other.startswith(name + ".") for other in modules):
        package = name.split(".")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                above = package[:len(package) + 1 - node.level]
                base = ["bnlasagne"] + above + base
            targets = [base + [alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "bnlasagne":
                full, room = ".".join(target[1:]), ".".join(target[1:-1])
                found.update({full, room} & set(modules))
    return found - {name}


def sources():
    return {name_of(path): path.read_text(encoding="utf-8")
            for path in sorted(PACKAGE.rglob("*.py"))}


def upward(modules):
    """Pairs of a module and one that it must not import."""
    rooms = {name: name.split(".")[0] for name in modules}
    return [(name, other) for name, source in modules.items()
            for other in imports_of(name, source, modules)
            if ROOMS.index(rooms[other]) > ROOMS.index(rooms[name])]


def in_circles(modules):
    """The modules that import themselves in the end."""
    imports = {name: imports_of(name, source, modules)
               for name, source in modules.items()}
    while True:
        leaves = {name for name, others in imports.items() if not others}
        if not leaves:
            return sorted(imports)
        imports = {name: others - leaves for name, others in imports.items()
                   if name not in leaves}


def test_every_module_is_in_a_room():
    assert {name.split(".")[0] for name in sources()} == set(ROOMS)


def test_no_import_goes_upward():
    assert upward(sources()) == []


def test_no_imports_go_in_circles():
    assert in_circles(sources()) == []


@pytest.mark.parametrize("line", [
    "from ..layers import layer",
    "from ..layers.layer import BatchNormLayer",
    "def late():\n    from bnlasagne.layers.layer import BatchNormLayer",
    "import bnlasagne.layers.layer",
])
def test_an_upward_import_is_found(line):
    modules = {"kernels.ops": line, "layers.layer": "", "layers": ""}
    assert ("kernels.ops", "layers.layer") in upward(modules)


def test_a_circle_is_found():
    modules = {"kernels.ops": "from .moments import Moments",
               "kernels.moments": "from . import ops", "kernels.cpp": ""}
    assert in_circles(modules) == ["kernels.moments", "kernels.ops"]
