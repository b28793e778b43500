"""Times a public trainer beside ours: a user's checkout of facebookresearch/jepa, in a process.

May import the package, step/ and bench/common.py.
The comparison itself is step/'s; nothing of the checkout is copied here.
"""
