"""Table formats that follow the ledger; `output.format: <name>` is the module `pipeline.formats.<name>`.

Each is a `pipeline.following.Format`: a new one is one new file, and `tests/contract/test_formats.py` finds it by itself.
"""
