"""The `tw-seg` command."""
