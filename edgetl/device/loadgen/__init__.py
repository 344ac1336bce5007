"""MLPerf LoadGen as a second load generator."""
