"""`edgetl compare`: a plan of runs, each trained in a process of its own, and what they show together."""
