"""Dataset preflight: `edgetl check`."""
