"""Training: Lightning modules, data modules, callbacks and the command line."""
