"""The run folder: what was asked for, on what, how far it came, and what came out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from labelwise.errors import UserError
from labelwise.files import atomic_write

CONFIG = "config.yaml"
STATUS = "status.json"
RESULTS = "results.json"
_RECORDED = ("labelwise", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow")


class Run:
    """One execution's folder.

    Its `config.yaml` is the request: everything that determines the result. A second call with the same request
    continues an unfinished run; another request is refused.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Look at the folder without writing to it.

        Args:
            folder: the run's folder, which may not exist yet.
            request: plain data (strings, numbers, lists, dictionaries) that determines the result.

        Raises:
            UserError: the folder holds something else or another run.
        """
        self.folder = folder
        self.request = json.loads(json.dumps(request))
        self._refuse_other_content()

    @property
    def checkpoints(self) -> Path:
        """The folder of the resumable checkpoints."""
        return self.folder / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`, empty before the start."""
        return read_json(self.folder / STATUS)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status.get("status") == "finished"

    def start(self) -> None:
        """Create the folder and write the request and the environment into it; call it under the lock."""
        # The request first: a folder that holds anything else without it is taken for something else than a run.
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / CONFIG, yaml.safe_dump(self.request, sort_keys=False, allow_unicode=True))
        atomic_write(self.folder / "environment.json", json.dumps(environment(), indent=2))
        self.checkpoints.mkdir(exist_ok=True)
        for unfinished in (*self.folder.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            unfinished.unlink()
        self.record(status="running", pid=os.getpid(), reason=None)

    def record(self, **entries: Any) -> None:
        """Merge entries into `status.json`."""
        atomic_write(self.folder / STATUS, json.dumps(self.status | entries, indent=2))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write what `evaluate --json` prints into `results.json`."""
        atomic_write(self.folder / RESULTS, json.dumps(results, indent=2))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of this folder.

        Raises:
            UserError: another process is at work in it.
        """
        with locked(self.folder):
            yield

    def _refuse_other_content(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--out {self.folder}: is a file; name a folder")
        # Hidden files are the lock and what a killed process left of its writing.
        if not self.folder.exists() or all(item.name.startswith(".") for item in self.folder.iterdir()):
            return
        config = self.folder / CONFIG
        if not config.is_file():
            raise UserError(f"--out {self.folder}: holds something else than a run; name a new or empty folder")
        before = read_yaml(config)
        if before.get("method") != self.request.get("method"):
            raise UserError(
                f"--out {self.folder}: holds a run of '{before.get('method')}', not of '{self.request.get('method')}'; "
                "name another folder"
            )
        changes = differences(before, self.request)
        if changes:
            raise UserError(
                f"--out {self.folder}: holds a run with other options ({'; '.join(changes)}); "
                "name another folder or repeat the same call to continue it"
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder, which is made if need be.

    Raises:
        UserError: another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            # The lock of a process, not of a file: loader processes that outlive a killed run do not keep it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UserError(
                f"--out {folder}: another process is at work in this run; wait for it or name another folder"
            ) from None
        yield


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The entries that differ, as `name: before -> now`; nested dictionaries count by their own entries."""
    flat_before, flat_now = flatten(before), flatten(now)
    names = [*flat_now, *(name for name in flat_before if name not in flat_now)]
    return [
        f"{name}: {flat_before.get(name)} -> {flat_now.get(name)}"
        for name in names
        if flat_before.get(name) != flat_now.get(name)
    ]


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """One level of `outer.inner` keys from nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": content for inner, content in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); restore or delete it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; restore or delete it")
    return content


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, as plain data.

    Raises:
        UserError: the file is missing, is not YAML, holds a key twice or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(), _StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not usable YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: must hold `name: value` lines")
    return content or {}


def environment() -> dict[str, Any]:
    """Versions, hardware and the command, for `environment.json`."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _RECORDED},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
    }


def _commit() -> str | None:
    """The commit of the package's checkout, where it runs from one."""
    package = Path(__file__).parent
    if not (package.parents[1] / ".git").exists():
        return None
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
