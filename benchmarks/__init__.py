"""Speed measurements of azjax: ``python -m benchmarks --help``.

Every case runs in a process of its own, which chooses its devices, compiles, warms up and prints one JSON line; the
driver adds machine and versions and writes the lines of a session into one file. Nothing here is a test.
"""
