from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from q8core.errors import Q8Error
from q8core.importing.run import Imported, import_model
from q8core.say_once import warn_once


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    warn_once.cache_clear()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Path], str]:
    """Import a folder that is refused; return the sentence, after a look that nothing is left."""

    def ask(folder: Path) -> str:
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        with pytest.raises(Q8Error) as error:
            import_model(str(folder), place / "out")
        assert list(place.iterdir()) == []
        assert ".out.import-" not in str(error.value)
        return str(error.value)

    return ask


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[Path], Imported]:
    """Import a folder; nothing but the result is left beside it."""

    def ask(folder: Path) -> Imported:
        found = import_model(str(folder), tmp_path / "place" / "out")
        assert [path.name for path in found.folder.parent.iterdir()] == ["out"]
        assert found.proof.largest_difference <= 1e-4
        assert found.proof.inputs == 20
        return found

    return ask
