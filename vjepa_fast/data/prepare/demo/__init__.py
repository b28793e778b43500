"""Demo data: labeled videos that are drawn, not downloaded.

May import: data.manifest, data.decode.color, data.prepare.encode, data.workers, errors, locks.
Each set is a file that draws a clip; `write` encodes any of them. The command is in commands/.
"""
