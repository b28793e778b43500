"""Which videos there are: entries in columns, the files that hold them, where their bytes are.

May import: errors, locks. Opens manifests and checks files, but decodes nothing.
Text lists belong to `prepare`, as their videos must be inspected; `data.open_manifest` takes both.
"""
