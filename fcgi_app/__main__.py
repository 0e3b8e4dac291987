"""``python -m fcgi_app`` is the command ``fcgi-app``."""

from __future__ import annotations

from .cli.entry import main

if __name__ == "__main__":
    main()
