"""Benchmarks: what a request costs us, beside other FastCGI libraries.

    python -m tests.bench                        everything, some 25 minutes
    python -m tests.bench hello-kept --rounds 3  one scenario, quicker
    python -m tests.bench --write                also write tests/bench/RESULTS.md, with
                                                 results.svg and results.png

Needed: Linux and a C compiler (`cc`) for the load generator; for the peers the Debian
packages libfcgi-dev, libfcgi-perl, nginx-light and wrk, and pip with an index that has
flup, flipflop, fcgisgi and uwsgi, which it installs at the first run; for the picture of
`--write` matplotlib: `pip install -e '.[bench]'`. What is built lands in `.bench/` of the
checkout, which git ignores and which can be deleted.

How it is measured. A program of `apps/` gets a listening Unix socket on descriptor 0
and runs on one CPU; the load generator (`load.c`) runs on another one, sends
requests with the 30 params (1.1 KB) that nginx sends, no two the same, and checks every
byte of each answer. It never sleeps, so that no program pays for waking it. In each
round every program is started anew, warmed up, and loaded for some seconds, in four
slices; the programs take turns, slice by slice. The main figure is the CPU time, user
and system, that the server's processes spent on a request, in the best slice: another
process on the machine or a slow client changes it little. Absolute figures of different
runs differ by tens of per cent all the same, so the limits are ratios within a round: the
median of the rounds counts, the least and the greatest are shown beside it.

    hello-*    reads two environment variables, prints a head and `Hello, world`
    params-*   the same with 120 params of 30 KB
    echo       gives the 1 MiB body back
    download   writes 64 MiB in pieces of 64 KiB
    files      the same from a file: send_file, reads and writes, memory
    nginx-*    hello behind a real nginx, which wrk asks with 16 clients; nginx and wrk
               share the other CPU
    memory     resident memory of a worker above that of two bare interpreters
    start      from the start of a process to its first answer
    idle       5,000 idle kept connections: memory, and what they cost the others
    fdpass     clients that httpd hands over, beside a receiver in C (`fdpass.c`)
    threads    `run(…, threads=16)` with 16 and with 1,000 kept connections
    multiplexed  64 requests at a time, on one connection and on 64
    cookies    200,000 requests, each with its own cookie: how memory grows
    levers     the steps that a request is quick by, each in the ways it can be done, timed
               alone in this process: no server, no client, no limits

Two programs are ours: `fcgi_app` with the backend that it takes by itself, or by
FCGI_APP_BACKEND and the other settings (`FCGI_APP_...`) in the environment, and
`fcgi_app, pure` with the pure one. A process of each is asked which it has.

Each limit is what "must" be, and with some there is an "aim" beyond it. Verdicts:

    aim        the aim is reached
    holds      the limit is kept
    fails      it is not, or our program did not do the job
    no peer    the peer is not there, cannot serve such a load, or did not do the job:
               with 16 kept connections flup and flipflop leave some without an answer

The exit status is 0 when every limit is kept, 1 when one is not or something could not be
measured, 2 for a wrong command line, and 3 when nothing fails, but a limit has no peer.

To add a program to compare with, add a `Program` in `programs.py`; to add a load, add a
`Comparison` in `comparisons.py`; limits stand with the load.

What operations on a pool of ``fcgi-app start`` cost, and what its supervisor does, is
measured by ``python -m tests.bench.pool``.

This folder has no tests and asserts no times: pytest does not collect it.
"""
