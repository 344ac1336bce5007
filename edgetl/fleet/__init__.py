"""`edgetl bench --host`: benchmarks on remote devices over OpenSSH."""
