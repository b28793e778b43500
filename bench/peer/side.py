"""The third side of bench/throughput.py: a user's checkout of facebookresearch/jepa, whose steps
bench/peer/process.py takes in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peer.process import PARTS, not_a_checkout

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError

SCRIPT = Path(__file__).resolve().parent / "process.py"


def check_folder(folder: Path) -> None:
    """Raises UserError if the modules that we need aren't in `folder`."""
    for module in PARTS.values():
        file = Path(*module.split(".")).with_suffix(".py")
        if not (folder / file).is_file():
            raise not_a_checkout(folder, f"no {file} in it")


def commit_of(folder: Path) -> str | None:
    """The checkout's commit, None where git doesn't know."""
    if not (folder / ".git").exists():
        return None
    git = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


class Peer:
    """A process that takes steps of the checkout when it is asked to.

    Args:
        folder: the checkout.
        config: of the other sides; the process gets a copy.

    Raises UserError if the folder or this environment lacks something.
    """

    name = "peer"

    def __init__(self, folder: Path, config: Config) -> None:
        check_folder(folder)
        self.folder, self.commit = folder, commit_of(folder)
        with TemporaryDirectory(prefix="vjepa_fast_peer_") as temporary:
            file = Path(temporary) / "config.json"
            file.write_text(config.model_dump_json(), encoding="utf-8")
            options = "--config", file, "--threads", str(torch.get_num_threads())
            self._process = subprocess.Popen(
                # its warnings about outdated calls are not the user's
                [sys.executable, "-W", "ignore", SCRIPT, folder, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            try:
                self.parameters: dict[str, int] = self._answer()["parameters"]
            except BaseException:
                self.close()
                raise

    def turn(self, steps: Sequence[int]) -> float:
        """Seconds of a step, by the process's own clock, of the steps with these numbers."""
        return self._ask({"steps": list(steps)})["seconds"]

    def memory(self, step: int) -> int | None:
        """Bytes that a step takes beside weights and optimiser, at the peak."""
        return self._ask({"memory": step})["bytes"]

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, question: dict) -> dict:
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"--peer: found that the code in {self.folder} ended with the error above, "
                "expected it to train; try the published main branch with these versions"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer
