"""Runs work in processes and threads that may crash or hang; only the failed task is lost.

May import: errors. The picture of the processes is at the top of `process_pool`.
The tasks (decoding, scanning, encoding) belong to the rooms that submit them.
"""
