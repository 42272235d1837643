"""Relax atomic structures in fewer force evaluations; the parts are in the modules."""
import sys
from contextlib import suppress
from types import ModuleType

from ._docs import DOCS

__version__ = "0.1.0"


def _one_thread_in_own_notebooks():
    """Take one thread where `nbdev_test` runs this project's notebooks: it runs one on every core already.

    nbdev reads no such setting, and the networks are so small that a second thread only waits. Nobody else's
    process is touched: not a script, not a kernel, not the notebooks of a project that uses this package.
    """
    import os
    from pathlib import Path

    if "IN_TEST" not in os.environ or Path(__file__).parents[1] / "nbs" not in [Path.cwd(), *Path.cwd().parents]:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch, which reads it on import, and for other processes
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


_one_thread_in_own_notebooks()


class _Documented(ModuleType):
    """The package: each module gets on import what comments say of its parameters, so that `help()` shows it."""

    def __setattr__(self, name, value):
        """Note a module that was imported, and write its docstrings."""
        super().__setattr__(name, value)
        for path, text in DOCS.get(name, {}).items():
            owner, _, attribute = path.rpartition(".")
            with suppress(AttributeError, KeyError, TypeError):  # what is gone, or something else by now
                found = vars(getattr(value, owner) if owner else value)[attribute]
                getattr(found, "__func__", found).__doc__ = text


sys.modules[__name__].__class__ = _Documented
