"""The store of all results: `file://` and `s3://` behind one interface. Torch-free."""

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
