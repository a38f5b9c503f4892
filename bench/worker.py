"""The process of one launch: `python -m bench.worker MODULE JSON` prints MODULE.measure(**JSON) as JSON."""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    module, arguments = sys.argv[1:]
    print(json.dumps(importlib.import_module(module).measure(**json.loads(arguments))))
