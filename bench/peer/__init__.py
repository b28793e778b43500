"""Times a public trainer beside ours: a user's checkout, in a process of its own.

May import the package, step/ and bench/common.py.
The comparison itself is step/'s; nothing of the checkout is copied here.
"""
