"""V-JEPA's networks on one flat token axis. They take plain arguments and know no config."""
