"""The test suite: ``sh tests/run.sh`` runs it against the installed wheel."""
