"""What a pool and its workers do, to look at: as text, JSON and OpenMetrics.

=====================  ============================================================
module                 what lives there
=====================  ============================================================
``snapshot.py``        a scoreboard at one moment, as values
``process.py``         what proc(5) tells of a process
``listenqueue.py``     how many connections wait in a listening socket's queue
``observe.py``         what a supervisor notes down of that
``render.py``          the values as text for people and programs
``page.py``            the answer to a request for the status path or the ping path
``service.py``         a program that answers nothing else, for ``--status-listen``
=====================  ============================================================

Names of numbers are php-fpm's, so that whatever reads its status page reads ours.
"""
