"""What carries stages out: `execute` says which stage comes when, a runner (`local.py`, `ray.py`) where it runs."""
