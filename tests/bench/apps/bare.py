"""The yardstick for memory: imports the modules it is given and nothing else."""

from __future__ import annotations

import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
print("ready", flush=True)
sys.stdin.read()
