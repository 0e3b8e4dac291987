#!/bin/sh
# A CGI program that hands its request to a FastCGI program which is already running.
# Replace @SOCK@ by the path of that program's Unix socket (or by host:port), make this
# file executable, and name it in apache-cgi.conf.  cgi-fcgi is packaged as libfcgi-bin.
exec /usr/bin/cgi-fcgi -bind -connect @SOCK@
