"""The process that `prepare_peer` starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from q8core.bench.peers.registry import prepare_here

if __name__ == "__main__":
    _request = json.loads(sys.argv[1])
    prepare_here(_request["name"], Path(_request["folder"]), _request["task"])
