"""Which files of a folder and of its tar archives are videos: by name, else by their first bytes.

May import: data.ffmpeg (BadVideo), data.prepare.scan_journal, errors. Decodes nothing.
What a video holds, and whether it can be used, belongs to `data.prepare.inspect`.
"""
