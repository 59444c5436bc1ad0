"""`labelwise label`: a person labels images in the browser."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labelwise.datasets.journal import FOLDER
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError, did_you_mean, require_at_least
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.samples import Kind
from labelwise.verbs.labelling_folder import labelling_folder

_METHOD = "pixelpick"


def label(
    data: Path,
    *,
    mode: str = "points",
    split: str = "train",
    run: Path | None = None,
    pixels: int = 10,
    queries: Path | None = None,
    classes: Sequence[str] = (),
    background: bool = True,
    out: Path | None = None,
    port: int = 0,
    browser: bool = True,
    method: str = _METHOD,
    preset: str | None = None,
    options: Mapping[str, Any] | None = None,
    ready: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the annotator's page on this machine until Ctrl-C; the same call again goes on.

    Labels go into the data set where it is in VOC layout, each written before it is acknowledged. Any other data set,
    or a bare folder of images, is copied to a new folder in VOC layout first, with the labels that it has.

    Args:
        data: the data set's folder, or a folder of images.
        mode: what to label: points, tags, boxes, masks; or browse.
        split: whose images.
        run: a trained run: it chooses the pixels, and its predictions can be shown and corrected.
        pixels: of each image to ask for at a time.
        queries: a file of pixels to ask for, as `select` writes it.
        classes: the names of the classes, for images without labels.
        background: put the class `background` in front of these, where it is not there already.
        out: a new folder in VOC layout, or the one of an earlier call; required unless `data` is in VOC layout.
        port: to listen on; 0 = any free one.
        browser: open the page in the browser. Other users of this machine can find the address among its processes.
        method: what is trained on the points when the page asks for it; it has to learn from points.
        preset: of the method.
        options: of the method or the machine, for that training.
        ready: is called with the page's address once the server listens. The address lets in whoever has it.

    Returns:
        `data` (where the labels are), `images`, `signal` (the number of the signal that ended it), and `statistics` of
        the answers given.

    Raises:
        UserError: the call or the data is wrong, or packages are missing.
        BadFile: a file that has to be read is broken.
    """
    _require_packages()
    from labelwise.annotator.jobs import PREDICTIONS, QUERIES, Jobs, JobSettings
    from labelwise.annotator.server import HOST, MODES, bind, create_app, serve
    from labelwise.annotator.session import AnnotationSession

    if mode not in MODES:
        raise UserError(f"--mode {mode}: no such mode{did_you_mean(mode, MODES)}")
    require_at_least("pixels", pixels, 1)
    words = _training_words(method, preset, options or {})
    with bind(port) as listening:
        dataset = labelling_folder(Path(data), out, classes, background)
        if run is not None:
            _require_fitting(run, dataset)
        folder = dataset.root / FOLDER
        asked, shown = queries or _existing(folder / QUERIES), _existing(folder / PREDICTIONS)
        session = AnnotationSession(dataset, split, folder, queries=asked, predictions=shown)
        if queries is not None:
            # So that a call without the file goes on with it.
            atomic_write(folder / QUERIES, Path(queries).read_bytes())
        settings = JobSettings(
            folder=folder,
            split=split,
            pixels=pixels,
            method=method,
            preset=preset,
            options=words,
            run=None if run is None else Path(run).resolve(),
        )
        jobs = Jobs(session, settings)
        number, token = listening.getsockname()[1], secrets.token_urlsafe(32)
        address = f"http://{HOST}:{number}/?token={token}"
        ready(address)
        if browser:
            _open_browser(address)
        try:
            session.start_checking()
            if mode == "points" and not session.queries(1)["total"]:
                jobs.start("select")
            signum = serve(create_app(session, jobs, token, number, mode), listening)
        finally:
            jobs.close()
            session.close()
    return {
        "data": str(dataset.root),
        "images": len(session.ids),
        "signal": signum,
        "statistics": session.statistics(),
    }


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _require_packages() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(f"label: {' and '.join(missing)} not installed; run `pip install 'labelwise[annotator]'`")


def _training_words(method: str, preset: str | None, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of the training as the shell takes them, checked before the page opens.

    Raises:
        UserError: no such method, preset or option, or the method does not learn from points.
    """
    if (method, preset, dict(options)) == (_METHOD, None, {}):
        # Nothing to check, and much to import for it.
        return ()
    from labelwise.supervision import Supervision
    from labelwise.verbs.preparation import prepare_method
    from labelwise.verbs.train import as_words

    machine = {field.name for field in fields(Hardware)}
    Hardware(**{name: value for name, value in options.items() if name in machine})
    own = {name: value for name, value in options.items() if name not in machine}
    method_class, config = prepare_method(method, preset, own)
    if not method_class.card.needs.fit(Supervision.parse(Kind.POINTS.value).kinds):
        raise UserError(
            f"--method {method}: cannot learn from points; `labelwise methods --labels points` lists those that can"
        )
    return tuple(as_words(options, type(config)))


def _require_fitting(run: Path, dataset: VOC) -> None:
    """Refuse a run that is none, or knows other classes."""
    from labelwise.saved import load_model
    from labelwise.verbs.preparation import require_same_classes

    require_same_classes(load_model(Path(run)).classes, dataset)


def _open_browser(address: str) -> None:
    """Open the page, where there is a screen; a browser in the terminal would take that from the server."""
    has_screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if has_screen or sys.platform in ("darwin", "win32"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
