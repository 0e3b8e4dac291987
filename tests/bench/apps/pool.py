"""The measured program as the one worker of a pool; its argument is the handler."""

from __future__ import annotations

import os
import sys
from pathlib import Path

worker = Path(__file__).with_name("ours.py")
start = [sys.executable, "-m", "fcgi_app", "start", "--bind", "fd:0", "--workers", "1"]
os.execv(sys.executable, [*start, "--", sys.executable, str(worker), *sys.argv[1:]])
