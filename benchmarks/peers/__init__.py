"""The same measurements of other trainers, each in a virtual environment of its own (requirement files beside this)."""
