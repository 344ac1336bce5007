"""Sources of architectures: one module each, registered in edgetl.core.registry."""
