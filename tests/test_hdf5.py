"""What a hostile HDF5 file may claim, and that nothing of it is read, followed or waited for."""

import os
import resource
import struct
import time
import zlib

import h5py
import numpy as np
import pytest

from vla_cli import hdf5


@pytest.fixture
def made(tmp_path):
    """Call with a function that fills a file; gives it opened for reading."""
    files = []

    def make(fill):
        path = tmp_path / f"{len(files)}.hdf5"
        with h5py.File(path, "w") as file:
            fill(file)
        files.append(h5py.File(path, "r"))
        return files[-1]

    yield make
    for file in files:
        file.close()


def refused(call, *fragments: str) -> None:
    """Quickly, with a sentence."""
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:
        call()
    assert time.monotonic() - began < 1
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_soft_links_within_the_file_are_followed(made) -> None:
    def fill(file):
        file["a/b/x"] = np.arange(3.0)
        file["near"] = h5py.SoftLink("a/b")
        file["a/far"] = h5py.SoftLink("/near/x")

    file = made(fill)
    assert np.array_equal(hdf5.array(hdf5.group(file, "a"), "far"), np.arange(3.0))
    assert np.array_equal(hdf5.array(file, "near/x"), np.arange(3.0)) and hdf5.has(file, "a/far")


def test_nothing_leads_into_another_file(made, tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for ever

    def fill(file):
        file["out"] = h5py.ExternalLink(str(pipe), "/x")
        file["through"] = h5py.SoftLink("/out/x")
        file.create_dataset("raw", (4,), "u1", external=[("/etc/passwd", 0, 4)])
        layout = h5py.VirtualLayout((4,), "u1")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
        file.create_virtual_dataset("virtual", layout)

    file = made(fill)
    for name in ("out", "out/x", "through", "raw", "virtual"):
        refused(lambda name=name: hdf5.dataset(file, name), "another file")
    assert not hdf5.has(file, "out")


def test_links_in_circles_and_groups_in_themselves_end(made) -> None:
    def fill(file):
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        file["self"] = h5py.SoftLink("self")
        file["grows"] = h5py.SoftLink("grows/grows")
        file["nowhere"] = h5py.SoftLink("/not/there")
        inner = file.create_group("g")
        inner["g"] = inner

    file = made(fill)
    for name in ("a", "self", "grows"):
        refused(lambda name=name: hdf5.member(file, name), "leads nowhere")
    refused(lambda: hdf5.member(file, "nowhere"), "has no 'not'")
    assert hdf5.names(hdf5.group(file, "g/g/g/g")) == ["g"]


def test_absurd_claims_are_refused_before_anything_is_read(made) -> None:
    def fill(file):
        file.create_dataset("unwritten", (2**40, 2**40), "f8", chunks=(1, 64))
        file.create_dataset("wraps", (2**32, 2**32), "u1", chunks=(1, 64))  # bytes overflow to 0
        file.create_dataset("rows", (2**50, 0), "f8", maxshape=(None, 4), chunks=(1, 4))
        file.create_dataset("never", (10,), "f8")
        file.create_dataset("chunk", (1, 2**29), "u1", chunks=(1, 2**29))
        file["null"] = h5py.Empty("f8")
        bomb = file.create_dataset("bomb", (512, 2**20), "u1", chunks=(16, 2**20), compression="gzip")
        packed = zlib.compress(bytes(16 * 2**20))
        for row in range(0, 512, 16):
            bomb.id.write_direct_chunk((row, 0), packed)

    file = made(fill)
    assert file["bomb"].id.get_storage_size() < 2**20
    refused(lambda: hdf5.table(file, "unwritten"), "claims")
    refused(lambda: hdf5.dataset(file, "wraps"), "claims")
    refused(lambda: hdf5.table(file, "rows"), "not [T, D]")
    refused(lambda: hdf5.dataset(file, "never"), "never written")
    refused(lambda: hdf5.dataset(file, "chunk"), "chunks of")
    refused(lambda: hdf5.dataset(file, "null"), "holds nothing")
    refused(lambda: hdf5.dataset(file, "bomb"), "claims 512 MiB")


def test_only_numbers_are_numbers(made) -> None:
    def fill(file):
        file.create_dataset("text", data=["a", "b"], dtype=h5py.string_dtype())
        ragged = file.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype("f8"))
        ragged[0] = ragged[1] = [1.0, 2.0]
        file.create_dataset("reference", data=[file.ref], dtype=h5py.ref_dtype)
        file["compound"] = np.zeros(3, [("x", "f8"), ("y", "i4")])
        file["complex"] = np.zeros(3, complex)
        file["fixed"] = np.array([b"demo_0", b"demo_1"])
        file["deep"] = np.zeros((2, 2, 2))
        file["long"] = np.zeros((hdf5.MOST_ROWS + 1,), np.uint8)
        file["wide"] = np.zeros((2, 3), np.float16)

    file = made(fill)
    for name in ("text", "ragged", "reference", "compound", "complex"):
        refused(lambda name=name: hdf5.array(file, name), "not numbers")
        refused(lambda name=name: hdf5.table(file, name), "not numbers")
    refused(lambda: hdf5.table(file, "fixed"), "not numbers")
    refused(lambda: hdf5.table(file, "deep"), "not [T, D]")
    refused(lambda: hdf5.table(file, "long"), "too large")
    assert hdf5.table(file, "wide").dtype == np.float16
    assert hdf5.words(file, "fixed") == ["demo_0", "demo_1"] and hdf5.words(file, "text") == ["a", "b"]
    refused(lambda: hdf5.words(file, "wide"), "not text")
    refused(lambda: hdf5.words(file, "ragged"), "not text")


def test_attributes_are_plain_and_bounded(made) -> None:
    def fill(file):
        file.attrs["text"], file.attrs["bytes"] = "grüße", np.bytes_("x")
        file.attrs["number"], file.attrs["one"], file.attrs["nan"] = 3, np.array([4.0]), np.nan
        file.attrs["names"], file.attrs["empty"] = ["a", "b"], h5py.Empty("f8")
        file.attrs.create("reference", file.ref, dtype=h5py.ref_dtype)
        file.attrs.create("many", ["x"] * 300, dtype=h5py.string_dtype())

    file = made(fill)
    assert hdf5.text(file, "text") == "grüße" and hdf5.text(file, "bytes") == "x" and hdf5.text(file, "none", "") == ""
    assert hdf5.number(file, "number", 0) == 3.0 == hdf5.number(file, "none", 3) and hdf5.number(file, "one", 0) == 4.0
    assert hdf5.attribute(file, "names") == ["a", "b"] and hdf5.attribute(file, "empty") == ""
    refused(lambda: hdf5.number(file, "nan", 0), "no number")
    refused(lambda: hdf5.number(file, "names", 0), "no number")
    refused(lambda: hdf5.attribute(file, "reference"), "neither text nor numbers")
    refused(lambda: hdf5.attribute(file, "many"), "too large")
    refused(lambda: hdf5.attribute(file, "none"), "has no attribute")


def test_a_text_that_claims_gigabytes_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["long"] = "x" * 12345
        file.create_dataset("list", data=["y" * 12344], dtype=h5py.string_dtype())
    data = bytearray(path.read_bytes())
    for length in (12345, 12344):
        stated = struct.pack("<I", length)
        found = [i for i in range(len(data) - 8) if data[i : i + 4] == stated and any(data[i + 4 : i + 8])]
        assert len(found) == 1  # where the file refers to the text, not where the text stands
        data[found[0] : found[0] + 4] = struct.pack("<I", 2**32 - 2**16)
    path.write_bytes(data)
    limit, before = resource.getrlimit(resource.RLIMIT_AS), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with h5py.File(path, "r") as file:
        for read in (lambda: hdf5.text(file, "long"), lambda: hdf5.words(file, "list")):
            with pytest.raises((ValueError, OSError)), hdf5.bounded_memory():
                read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # KiB
    with pytest.raises(ValueError, match="more than 640 MiB"), hdf5.bounded_memory():
        np.ones(2**30, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_a_heap_of_texts_that_goes_nowhere_is_refused_before_it_is_read(tmp_path) -> None:
    """HDF5 itself would walk over it for ever; `fuzz_readers.py --formats robomimic --seed 1000995` found it."""
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["text"] = "some text of any length"
    hdf5.check_heaps(path)
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    free = heap + 16 + 16 + 24  # after the collection's header, and the one text with its own
    assert heap > 0 and data[free : free + 2] == bytes(2)
    data[free + 8 : free + 16] = bytes(8)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    refused(lambda: hdf5.check_heaps(path), "texts", "damaged")


def test_a_file_larger_than_the_bound_on_memory_is_opened(tmp_path) -> None:
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file["pictures"] = np.zeros((96, 2**20), np.uint8)
        file.attrs["note"] = "a text of any length"
    with hdf5.bounded_memory(48 * 2**20), hdf5.opened(path) as file:
        assert file.attrs["note"] == "a text of any length"
        assert path.stat().st_size > 96 * 2**20


def test_a_heap_is_found_wherever_the_blocks_of_the_search_end(tmp_path, monkeypatch) -> None:
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["note"] = "told" * 100
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    index, free = 1, heap + 16
    while index:  # to the free object at the end
        index, size = struct.unpack_from("<H6xQ", data, free)
        free += 16 + (size + 7) // 8 * 8 if index else 0
    struct.pack_into("<Q", data, free + 8, 8)
    path.write_bytes(data)
    for block in range(heap + 1, heap + 9):
        monkeypatch.setattr(hdf5, "_BLOCK", block)
        hdf5._heap_problem.cache_clear()
        refused(lambda: hdf5.check_heaps(path), "texts", f"at byte {heap} ")
