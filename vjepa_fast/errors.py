"""The one exception that stands for a user's mistake, and how the command line prints mistakes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A user's mistake, in one sentence: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def exit_status(command: Callable[[], int]) -> int:
    """Run a command of ours; a user's mistake is one sentence on stderr and status 2.

    So is a place that cannot be written to or read, and an install that lacks the training part.
    Anything else is a bug and keeps its traceback.
    """
    try:
        return command()
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vjepa_fast":
            raise
        message = (
            f"found no module {error.name}, expected the packages for training; install them with "
            "pip install 'vjepa-fast[train]'"
        )
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        message = (
            f"{error.filename or 'a file'}: found {error.strerror}, expected to be able to use it; "
            "free space or change the permissions and start the same command again"
        )
    print(f"error: {message}", file=sys.stderr)
    return 2
