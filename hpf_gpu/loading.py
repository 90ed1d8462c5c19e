"""load, public: a model or an ensemble from its file, whichever it is."""

from __future__ import annotations

import os

from .ensemble import HPFEnsemble
from .estimator import HPF
from .files.ensemble_file import ENSEMBLE
from .files.model_file import MODEL
from .files.tensor_file import format_of
from .files.whole_file import path_of


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> HPF | HPFEnsemble:
    """Read what :meth:`hpf_gpu.HPF.save` or :meth:`hpf_gpu.HPFEnsemble.save` wrote.

    Parameters
    ----------
    path : str or path-like
        File to read.  Loading executes no code from the file.
    mmap : bool
        Whether to map the file rather than read it, as for :meth:`hpf_gpu.HPF.load`.

    Returns
    -------
    HPF or HPFEnsemble
        The fitted model or ensemble that was saved.

    Raises
    ------
    ModelFileError
        If the file is damaged, neither a model nor an ensemble, or written by a newer version.  It is a
        ValueError.
    OSError
        If the file cannot be read.
    """
    kind = format_of(path_of("path", path), (MODEL, ENSEMBLE))
    return (HPF if kind is MODEL else HPFEnsemble).load(path, mmap=mmap)
