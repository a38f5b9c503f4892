"""Sample keys that WebDataset readers read whole."""

from __future__ import annotations

from dataset_fixtures import lines_run
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


def test_many_names_that_are_equal_cost_linear_time() -> None:
    few, many = (lines_run(lambda count=count: unique_keys([("cat", "1")] * count)) for count in (200, 2000))
    assert many < 11 * few
    assert unique_keys([("a", "x-2"), *[("a", "x")] * 3, ("a", "x-2"), ("a", "x")]) == [
        "a/x-2", "a/x", "a/x-3", "a/x-4", "a/x-2-2", "a/x-5"
    ]  # fmt: skip
