"""Arrays in npz files, without pickle, and read only if they are whole."""

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the content of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpacked(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that `packed` made, all of them as they were.

    `numpy.load` would not do: it believes a damaged table of contents that leaves arrays
    out, and a damaged header that makes one shorter, for then its checksum is not looked at;
    and it takes memory for what a header says before it looks whether the file has it.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(path) as file:
            raw.seek(-22, os.SEEK_END)  # the last record; its fifth field counts the arrays
            count = struct.unpack("<4s4H2LH", raw.read())[4]
            if len(file.infolist()) != count:
                raise ValueError("its table of contents is not whole")
            return {
                info.filename.removesuffix(".npy"): _array(file, info)
                for info in file.infolist()
            }
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is damaged, or not of whence ({error}); restore it from a backup."
        ) from error


def _array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return one array; its header must say just what the file has."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{info.filename} is compressed")
    if info.file_size > Path(str(file.filename)).stat().st_size:
        raise ValueError(f"{info.filename} is longer than the file")
    content = io.BytesIO(file.read(info))  # checks the CRC; no longer than the file is
    version = np.lib.format.read_magic(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(content)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds objects")
    left = info.file_size - content.tell()
    if math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{info.filename} should have shape {shape}, and has {left} bytes")
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)
