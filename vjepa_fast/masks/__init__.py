"""Which tokens are context and which are targets (numpy and torch only)."""
