"""What a keyring promises of secrets at rest."""

from pathlib import Path

import pytest

from sanderling.errors import KeyMissing, SettingsRefused
from sanderling.secrets import Keyring, new_key
from sanderling.settings import Secrets


def keyring(folder: Path, *keys: str, mode: int = 0o640) -> Keyring:
    file = folder / "keys"
    file.write_text("\n".join(keys) + "\n")
    file.chmod(mode)
    return Keyring(Secrets(key_file=str(file)))


def test_a_sealed_secret_shows_nothing_and_opens_again(tmp_path: Path) -> None:
    ring = keyring(tmp_path, new_key())
    sealed = ring.seal("a canary, größer")
    assert "canary" not in sealed
    assert ring.unseal(sealed) == "a canary, größer"
    assert ring.seal("a canary, größer") != sealed


def test_after_a_change_of_keys_the_new_one_seals_and_the_old_one_still_opens(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    before = keyring(tmp_path, old).seal("x")
    both = keyring(tmp_path, new, old)
    after = both.seal("y")
    assert both.unseal(before) == "x"
    assert keyring(tmp_path, new).unseal(after) == "y"
    with pytest.raises(KeyMissing, match="none of the keys"):
        keyring(tmp_path, new).unseal(before)


def test_what_was_tampered_with_does_not_open(tmp_path: Path) -> None:
    ring = keyring(tmp_path, new_key())
    sealed = ring.seal("x")
    for spoilt in ("", "größer", sealed[:-4] + "AAA=", "x" + sealed):
        with pytest.raises(KeyMissing):
            ring.unseal(spoilt)


def test_without_a_key_file_nothing_is_sealed_and_nothing_opened() -> None:
    ring = Keyring(Secrets())
    assert not ring.has_keys
    with pytest.raises(KeyMissing, match="key_file"):
        ring.seal("x")
    with pytest.raises(KeyMissing, match="key_file"):
        ring.unseal("x")


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o660, 0o604])
def test_a_key_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsRefused, match="open to others"):
        keyring(tmp_path, new_key(), mode=mode)


@pytest.mark.parametrize("content", ["", "  \n", "not-a-key", "größer", f"{new_key()}\nAAAA"])
def test_a_key_file_without_sound_keys_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    with pytest.raises(SettingsRefused, match=r"\[secrets\] key_file") as refusal:
        keyring(tmp_path, content)
    assert all(line not in refusal.value.detail for line in content.split())


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="No such file"):
        Keyring(Secrets(key_file=str(tmp_path / "none")))


def test_a_keyring_does_not_show_its_keys(tmp_path: Path) -> None:
    key = new_key()
    assert key not in repr(vars(keyring(tmp_path, key)))
