"""A lock on a folder for all processes of one command; rank 0 holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.training.distributed.host_group import HostGroup


@contextmanager
def sole_writers(
    folder: Path,
    group: HostGroup,
    instead: str,
    unwritable: Callable[[OSError], str],
    file: str = "",
) -> Iterator[None]:
    """A context in which no other command writes to a folder, or to one file in it. Collective.

    Args:
        folder: it is made, if it is not there.
        group: the processes that write to it.
        instead: what to do other than wait for the other command, for the message.
        unwritable: the message where nothing can be written.
        file: name of the file in the folder; "": the whole folder.

    Raises:
        UserError: another command holds the lock, or nothing can be written there; raised on every
            process.
    """
    with ExitStack() as stack:
        mistake = None
        if group.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(sole_writer(folder / file, instead))
            except UserError as error:
                mistake = str(error)
            except OSError as error:
                mistake = unwritable(error)
        if mistake := group.all_gather(mistake)[0]:
            raise UserError(mistake)
        yield
