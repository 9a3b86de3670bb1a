"""What the conductor's unit tests share: its surroundings, with a schema that is made once for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import House, migrated


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated(tmp_path_factory.mktemp("records") / "template.sqlite")


@pytest.fixture
def house(tmp_path: Path, template: Path) -> Iterator[House]:
    built = House(tmp_path, template)
    yield built
    built.close()
