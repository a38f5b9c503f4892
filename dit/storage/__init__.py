"""The store of all results: `file://` and `s3://` behind one interface. Torch-free.

Example:
    store = open_store("s3://bucket/prefix")
    write_record(store, layout.train_record(config, spec), record)
    read_record(store, layout.train_record(config, spec), TrainRecord)  # None if there is none
    weights = store.local(f"{layout.checkpoint(config, spec, 1500)}/{layout.EMA_WEIGHTS}")  # a local path
"""

from dit.storage.base import Store, cache_dir, sha256_file
from dit.storage.open import fetch_file, fetch_folder, open_store, read_record, write_record

__all__ = [
    "Store",
    "cache_dir",
    "fetch_file",
    "fetch_folder",
    "open_store",
    "read_record",
    "sha256_file",
    "write_record",
]
