"""The study file that is kept in the store beside its results: a mismatch names the keys that differ. Torch-free.

A stage writes the copy before it works. A store that has none, because an earlier version filled it, is read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dit.errors import ConfigError
from dit.runtime.distributed import environment_rank
from dit.storage import Store
from dit.study import layout
from dit.study.config import StudyConfig
from dit.study.hashing import digest
from dit.study.keys import as_written
from dit.study.study_file import load_text

_SHOWN = 5


def key_of(config: StudyConfig) -> str:
    """Where the whole study, defaults spelled out, is in the store."""
    return layout.submitted(config, digest(config.to_yaml()))


def keep_study(config: StudyConfig, store: Store) -> None:
    """Write the study beside its results; of several ranks, the first does."""
    if environment_rank() == 0:
        store.write(key_of(config), config.to_yaml().encode())


def differences(
    config: StudyConfig, store: Store, hash_of: Callable[[StudyConfig], str], made_with: str, sections: str
) -> str | None:
    """Words for the keys in which `config` differs from the kept study of the hash `made_with`; None without one.

    `hash_of` gives the hash of a study, `sections` names the sections that it covers.
    """
    folder = key_of(config).rpartition("/")[0]
    other = next((kept for kept in kept_studies(store, folder) if hash_of(kept) == made_with), None)
    if other is None:
        return None
    names = [name for name in config.identities() if name in sections]
    changes = _changes(other, config, names)
    changed = [f"{key}={as_written(old)} instead of {as_written(new)}" for key, old, new in changes]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(changed[:_SHOWN]) + more or None


def kept_studies(store: Store, folder: str) -> Iterator[StudyConfig]:
    """The studies that are kept in a folder `submitted/`, without those of other versions."""
    for key in store.list(folder):
        try:
            yield load_text(store.read(key).decode(errors="replace"))
        except ConfigError:
            continue  # of a version with other keys


def _changes(old: StudyConfig, new: StudyConfig, sections: list[str]) -> Iterator[tuple[str, Any, Any]]:
    hashed = [_flat({name: study.identities()[name] for name in sections}) for study in (old, new)]
    # The values come from the whole study, because a later key with its default is in no hash.
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in dict.fromkeys([*hashed[0], *hashed[1]]):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
