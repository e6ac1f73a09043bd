"""One module for each engine that `peers.py` and `npc.py` measure, and the worker that runs it."""
