"""The bytes of FastCGI 1.0: numbers, records, name-value pairs; no state, no I/O."""
