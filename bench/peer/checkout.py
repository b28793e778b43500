"""The third side of bench/throughput.py: a user's checkout of a public trainer, which runs in
another process (process.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from common import commit_of
from peer.generations import check_config, generation_of
from vjepa_fast.config import Config
from vjepa_fast.errors import UserError

SCRIPT = Path(__file__).resolve().parent / "process.py"


class Peer:
    """A process that runs steps of the checkout on request.

    Args:
        folder: the checkout.
        config: config of the other sides; the process gets a copy.

    Attributes:
        repository: of which the folder is a checkout, as on GitHub.

    Raises UserError if the folder or this environment lacks something it needs, or if the config is
    of another generation.
    """

    name = "peer"

    def __init__(self, folder: Path, config: Config) -> None:
        generation = generation_of(folder)
        check_config(generation, folder, config)
        self.folder, self.repository = folder, generation.repository
        # without .git, git would answer for a repository around it
        self.commit = commit_of(folder) if (folder / ".git").exists() else None
        with TemporaryDirectory(prefix="vjepa_fast_peer_") as temporary:
            file = Path(temporary) / "config.json"
            file.write_text(config.model_dump_json(), encoding="utf-8")
            options = "--config", file, "--threads", str(torch.get_num_threads())
            self._process = subprocess.Popen(
                # hides the checkout's deprecation warnings
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

    def time_steps(self, steps: Sequence[int]) -> float:
        """Mean seconds of these steps, by the process's own clock."""
        return self._ask({"steps": list(steps)})["seconds"]

    def memory(self, step: int) -> int | None:
        """Peak bytes of a step beyond weights and optimizer state."""
        return self._ask({"memory": step})["bytes"]

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, request: dict) -> dict:
        with suppress(BrokenPipeError):  # `_answer` raises then
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"--peer: found that the code in {self.folder} ended with the error above, "
                "expected it to train; use the published main branch"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer
