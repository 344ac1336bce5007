"""`edgetl compare`: training strategies on one data set."""
