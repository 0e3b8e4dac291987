#!/usr/bin/env python3
"""The smallest useful program: greet whoever asks."""

import os

from fcgi_app import accept

while accept():  # once as CGI; again and again as FastCGI
    print("Content-Type: text/plain; charset=utf-8", end="\r\n\r\n")
    print("Hello", os.environ.get("REMOTE_ADDR", "world"))
