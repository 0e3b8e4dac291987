"""The commands: options become library calls, errors become exit statuses.

Nothing else in the package calls ``sys.exit``, and nothing below needs click.
"""
