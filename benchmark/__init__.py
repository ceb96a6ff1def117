"""The benchmark: `run.py` makes runs, `plot.py` draws them, `speed.py` times; `figures.py` is which runs."""
