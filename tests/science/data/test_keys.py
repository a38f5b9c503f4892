"""Sample keys that WebDataset readers read whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from dit.data.keys import unique_keys


@given(st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), max_size=20))
def test_any_file_name_becomes_a_unique_key_that_webdataset_reads_whole(names: list[tuple[str, str]]) -> None:
    keys = unique_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert base_plus_ext(f"{key}.moments.npy") == (key, "moments.npy")
        assert not key.startswith("__")
        assert len(f"{key}.moments.npy".encode()) < 250
