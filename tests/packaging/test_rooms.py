"""Who may import whom: `service` stands on `q8core`, and each of its rooms on those below it alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

# From top to bottom. A room (a folder or a file of the package) imports rooms below its own row, and none beside it.
SERVICE_ROOMS = (
    ("__main__",),
    ("cli",),
    ("hosts",),
    ("http",),
    ("operations",),
    ("core",),
    ("answering",),
    ("second_opinion",),
    ("telemetry",),
    ("tasks",),
    ("models",),
    ("queueing",),
    ("errors", "lifecycle", "settings"),
    ("client", "loadtest"),
)
Q8CORE_ROOMS = (
    ("cli",),
    ("reproduce",),
    ("bench",),
    ("training",),
    ("evaluate", "export", "importing"),
    ("engines",),
    ("checkpoint",),
    ("tasks",),
    ("tokenizer",),
    ("tokenizer_agreement",),
    ("tokenizer_build",),
    ("machine", "quant", "tokenizer_config"),
    ("cpus", "documents", "native", "tokenizer_classes"),
    ("model", "special_tokens", "text_file", "words"),
    ("arrays", "cache", "errors", "once_per_tokenizer", "say_once", "waiting"),
)
ENGINE_ROOMS = (
    ("__init__",),
    ("load",),
    ("choice",),
    ("loaders",),
    ("engine", "self_test"),
    ("layers",),
    ("memory", "protocol"),
    ("kernels", "packing", "tensors"),
)
QUANT_ROOMS = (
    ("__init__",),
    ("dequantized", "qat"),
    ("bits", "weights"),
    ("plan", "rules"),
    ("codes", "ops", "schemes"),
    ("quantizer",),
)
NOT_FOR_Q8CORE = {"service", "fastapi", "starlette", "uvicorn", "prometheus_client"}


def imports(file: Path, package: Path, name: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of whatever a file of the package imports, in functions and for type checkers, too."""
    here = (*name.split("."), *file.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) + 1 - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def wrong_arrows(package: Path, rows: Sequence[Sequence[str]], inside: str = "") -> list[str]:
    """Every import within a package that does not lead down, and every room that the rows have too few or too many.

    The package's own ``__init__`` stands below all rooms where no row has it. `inside` is the package's parent, for a
    package in another.
    """
    whole = f"{inside}.{package.name}" if inside else package.name
    height = {"__init__": -1} | {room: place for place, row in enumerate(reversed(rows)) for room in row}
    found_rooms = {_room(file, package) for file in package.rglob("*.py")}
    wrong = [f"{package.name}/{room}: in no row" for room in sorted(found_rooms - height.keys())]
    wrong += [f"{package.name}/{room}: in a row, and not there" for room in sorted(height.keys() - found_rooms)]
    for file in sorted(package.rglob("*.py")):
        own = _room(file, package)
        for line, name in imports(file, package, whole):
            within = f"{name}.".startswith(f"{whole}.")
            first = name.removeprefix(f"{whole}.").partition(".")[0]
            other = first if first in found_rooms else "__init__"
            if not within or other == own or not {own, other} <= height.keys():
                continue
            if height[other] >= height[own]:
                place = f"{package.name}/{file.relative_to(package)}:{line}"
                wrong.append(f"{place}: {own} imports {name}, and {other} is not below it")
    return wrong


def _room(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def test_every_room_of_the_service_imports_rooms_below_it(root: Path) -> None:
    assert wrong_arrows(root / "service", SERVICE_ROOMS) == []


def test_every_room_of_q8core_imports_rooms_below_it(root: Path) -> None:
    assert wrong_arrows(root / "q8core", Q8CORE_ROOMS) == []


def test_every_room_of_the_engines_imports_rooms_below_it(root: Path) -> None:
    assert wrong_arrows(root / "q8core" / "engines", ENGINE_ROOMS, "q8core") == []


def test_every_room_of_quant_imports_rooms_below_it(root: Path) -> None:
    assert wrong_arrows(root / "q8core" / "quant", QUANT_ROOMS, "q8core") == []


def test_q8core_knows_no_service(root: Path) -> None:
    package = root / "q8core"
    wrong = [
        f"{file.relative_to(root)}:{line}: {name}"
        for file in sorted(package.rglob("*.py"))
        for line, name in imports(file, package, package.name)
        if name.partition(".")[0] in NOT_FOR_Q8CORE
    ]
    assert wrong == []


def test_the_check_sees_every_kind_of_import(tmp_path: Path) -> None:
    package = tmp_path / "house"
    files = {
        "__init__.py": "VERSION = 1",
        "roof/__init__.py": "",
        "roof/tile.py": "import house\nfrom house.floor import board\nfrom house.cellar import vault",
        "floor/__init__.py": "",
        "floor/board.py": "from house import VERSION, cellar, roof\nfrom . import nail\n\nfrom .. import roof",
        "floor/nail.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.roof.tile import Tile",
        "wall.py": "def build():\n    import house.roof.tile\n    from house.floor import board",
        "cellar.py": "from .roof import tile",
        "shed/__init__.py": "",
    }
    for name, content in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content + "\n")
    assert wrong_arrows(package, [("roof",), ("floor", "wall"), ("cellar",), ("attic",)]) == [
        "house/shed: in no row",
        "house/attic: in a row, and not there",
        "house/cellar.py:1: cellar imports house.roof.tile, and roof is not below it",
        "house/floor/board.py:1: floor imports house.roof, and roof is not below it",
        "house/floor/board.py:4: floor imports house.roof, and roof is not below it",
        "house/floor/nail.py:3: floor imports house.roof.tile.Tile, and roof is not below it",
        "house/wall.py:2: wall imports house.roof.tile, and roof is not below it",
        "house/wall.py:3: wall imports house.floor.board, and floor is not below it",
    ]
