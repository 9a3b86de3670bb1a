"""Sealing: only the key opens, keys are rotated without a restart, and a file that others may read is refused."""

import stat
from pathlib import Path

import pytest

from sanderling import secrets
from sanderling.errors import InvalidInput, SecretUnreadable, SettingsRefused
from sanderling.secrets import Keyring
from sanderling.settings import Secrets

SECRET = "a secret of mine"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    assert secrets.add(made) == 0
    return made


def ring(file: Path) -> Keyring:
    return Keyring(Secrets(key_file=str(file)))


def test_a_secret_is_opened_by_who_has_the_key_and_looks_like_nothing_before(file: Path) -> None:
    sealed = ring(file).seal(SECRET)
    assert SECRET not in sealed
    assert ring(file).unseal(sealed) == SECRET
    assert ring(file).seal(SECRET) != sealed, "equal secrets must not look equal"


def test_a_key_file_is_its_owners_alone(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(SettingsRefused, match="others"):
        ring(file)


def test_a_new_key_opens_at_once_and_seals_when_it_is_promoted_in_a_process_that_runs(file: Path) -> None:
    running = ring(file)
    old = running.seal(SECRET)
    first = file.read_text()
    assert secrets.add(file) == 1
    assert file.read_text().startswith(first), "a node without the new key must understand who has it"
    between = running.seal(SECRET)
    assert secrets.promote(file) == 2
    fresh = running.seal(SECRET)
    assert running.unseal(old) == running.unseal(between) == running.unseal(fresh) == SECRET
    file.write_text(file.read_text().splitlines()[0])
    assert running.unseal(fresh) == SECRET
    for sealed in (old, between):
        with pytest.raises(SecretUnreadable, match="add that key"):
            running.unseal(sealed)
    with pytest.raises(SecretUnreadable):
        running.unseal(fresh[:-4] + "AAA=")


def test_every_step_of_a_rotation_leaves_nodes_that_understand_each_other(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for step in (None, secrets.add, secrets.promote):
        before = file.read_text()
        other.write_text(before)
        other.chmod(0o600)
        if step is not None:
            step(file)
        one, two = ring(file), ring(other)
        assert two.unseal(one.seal(SECRET)) == one.unseal(two.seal(SECRET)) == SECRET
        assert {*one.derived("test")} >= {two.derived("test")[0]}
        assert one.derived("test")[0] in two.derived("test"), "what it signs with is known to who has not taken the step"


def test_a_key_that_is_alone_cannot_be_promoted_and_nothing_is_lost(file: Path) -> None:
    before = file.read_text()
    with pytest.raises(InvalidInput, match="no second key"):
        secrets.promote(file)
    assert file.read_text() == before


def test_without_a_key_nothing_is_sealed_and_the_reason_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SecretUnreadable, match="sanderling key new"):
        Keyring(Secrets()).seal(SECRET)
    with pytest.raises(SecretUnreadable, match="cannot be read"):
        ring(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "# nothing\n", "not a key\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsRefused, match="key_file"):
        ring(file)


def test_of_a_key_file_that_is_no_text_nothing_is_told_and_nothing_is_lost(file: Path) -> None:
    key = file.read_bytes()
    file.write_bytes(held := b"# Schl\xfcssel\n" + key)
    for use, refused in ((secrets.add, InvalidInput), (secrets.promote, InvalidInput), (ring, SettingsRefused)):
        with pytest.raises(refused, match="UTF-8") as caught:
            use(file)
        assert str(file) in str(caught.value)
        assert key.decode().strip() not in repr(caught.value)
    assert file.read_bytes() == held


def test_a_process_that_runs_says_what_has_become_of_its_key_file(file: Path) -> None:
    running = ring(file)
    file.write_bytes(b"# Schl\xfcssel\n" + file.read_bytes())
    with pytest.raises(SettingsRefused, match="UTF-8"):
        running.seal(SECRET)
    file.unlink()
    file.mkdir(mode=0o700)
    with pytest.raises(SecretUnreadable, match="cannot be read"):
        running.seal(SECRET)


def test_a_key_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be written"):
        secrets.add(tmp_path / "none" / "keys")
