"""Benchmarks: what a request costs us, beside other Python FastCGI servers.

    python -m tests.bench                        everything, about ten minutes
    python -m tests.bench hello-kept --rounds 3  one scenario, quicker
    python -m tests.bench --write                also write tests/bench/RESULTS.md

Needed: Linux, a C compiler (`cc`) for the load generator, and, for the first run of
a comparison, pip with an index that has flup and flipflop. What is built lands in
`.bench/` of the checkout, which git ignores and which can be deleted.

How it is measured. A program of `apps/` gets a listening Unix socket on descriptor 0
and runs on one CPU; the load generator (`load.c`) runs on another one, sends
requests with the 30 params (1.1 KB) that nginx sends, no two the same, and checks every
byte of each answer. It never sleeps, so that no program pays for waking it. In each
round every program is started anew, warmed up, and loaded for some seconds, in four
slices; the programs take turns. The main figure is the CPU time, user and system, that
the server's process spent on a request, in its best slice: another process on the
machine or a slow client changes it little. Absolute figures of different runs differ
by tens of per cent all the same, so the limits are ratios within a round: the median
of the rounds counts, the least and the greatest are shown beside it.

    hello-*    reads two environment variables, prints a head and `Hello, world`
    echo       gives the 1 MiB body back
    download   writes 64 MiB in pieces of 64 KiB
    memory     resident memory beside an interpreter that imported the same modules
    idle       5,000 idle kept connections: memory, and what they cost the others
    fdpass     clients that httpd hands over, beside a receiver in C (`fdpass.c`)
    threads    `run(…, threads=16)` with 16 and with 1,000 kept connections
    multiplexed  64 requests at a time, on one connection and on 64
    cookies    200,000 requests, each with its own cookie: how memory grows

What operations on a pool of ``fcgi-app start`` cost, and what its supervisor does, is
measured by ``python -m tests.bench.pool``.

To add a program to compare with, add a `Program` in `programs.py` and a limit for it
in `comparisons.py`; to add a load, add a `Comparison`. Settings (`FCGI_APP_...`) in
the environment reach our program. The exit status is 0 when no limit is passed, 1 when
one is or something could not be measured, 2 for a wrong command line. "no peer" says
that the peer did not do the job: with 16 kept connections flup and flipflop leave some
without an answer.

This folder has no tests and asserts no times: pytest does not collect it.
"""
