"""Where a probe writes: the folder of its results, that of its work, and that of its features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.sole_writers import sole_writers

RESULT, WORK = "probe.json", "probe_work"


@contextmanager
def own_places(output: Path, store: Path | None, group: HostGroup) -> Iterator[None]:
    """A context in which no other probe writes to these folders, which are made. Collective.

    A run that trains does not count, so its folder takes the results of a probe of it.

    Args:
        output: of the results; `WORK` is made in it.
        store: of features that are kept, or None.
        group: the processes.

    Raises:
        UserError: another probe writes there, or nothing can be written.
    """
    with ExitStack() as stack:
        # `WORK` is removed at the end, so the lock is on the file that all probes write.
        stack.enter_context(_own(output, "--output", group, RESULT))
        if store:
            stack.enter_context(_own(store, "--store", group))
        mistake = None
        if group.rank == 0:
            try:
                (output / WORK).mkdir(exist_ok=True)
            except OSError as error:
                mistake = _unwritable(output / WORK, "--output", error)
        if mistake := group.all_gather(mistake)[0]:
            raise UserError(mistake)
        yield


def _own(
    folder: Path, option: str, group: HostGroup, file: str = ""
) -> AbstractContextManager[None]:
    unwritable = partial(_unwritable, folder, option)
    return sole_writers(folder, group, f"name another folder with {option}", unwritable, file)


def _unwritable(folder: Path, option: str, error: OSError) -> str:
    return (
        f"{folder}: found that nothing can be written there ({error.strerror}), expected a folder "
        f"of yours; name another with {option}"
    )
