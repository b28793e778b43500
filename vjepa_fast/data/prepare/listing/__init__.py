"""Files before FFmpeg opens them: which are videos, by name or first bytes, and which are whole.

May import: data.ffmpeg (BadVideo), data.manifest, data.prepare.scan_journal. Decodes nothing.
What a video holds, and whether it can be used, belongs to `data.prepare.inspect`.
"""
