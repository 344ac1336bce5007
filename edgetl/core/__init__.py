"""What every layer shares: errors, configuration, file names, statistics, registry; standard library only."""
