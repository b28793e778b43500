"""The exception for a user's mistake, and how a command line ends: by one, or by Ctrl-C."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A user's mistake, in one sentence: "WHERE: found X, expected Y; what to do".

    The command line prints it without a traceback and exits with status 2.
    """


_NO_ACCESS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def exit_status(command: Callable[[], int], resumes: bool = False) -> int:
    """Run a command and print a user's mistake, or that it was interrupted, as one sentence on
    stderr.

    A full disk, a file without permission and a missing package count as the user's mistakes too.
    Every other exception is a bug and keeps its traceback.

    Args:
        command: to run.
        resumes: whether it goes on where it was stopped when it is run again.

    Returns:
        the command's own status; 2 for a user's mistake; 130, as of a shell, for Ctrl-C.
    """
    try:
        return command()
    except KeyboardInterrupt as interrupt:  # whose text tells how far it came
        then = "; run the same command to go on from there" if resumes else ""
        print(f"interrupted {interrupt}".rstrip() + then, file=sys.stderr)
        return 130
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
        if error.errno not in _NO_ACCESS:
            raise
        message = (
            f"{error.filename or 'a file'}: found {error.strerror}, expected access and space; "
            "free space or change the permissions, and run the same command again"
        )
    print(f"error: {message}", file=sys.stderr)
    return 2
