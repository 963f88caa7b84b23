"""Pickles from outside: arrays and plain containers come out, code is refused by its name before it runs."""

import datetime
import io
import pickle
import struct
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pytest

from stf2m_core.data.unpickle import load_plain_pickle
from stf2m_core.errors import ManifestError


def same(found, wanted):
    """Whether two nested things are the same, down to types and dtypes."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, np.ndarray):
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            return False
        if wanted.dtype.hasobject:
            return all(same(a, b) for a, b in zip(found.ravel(), wanted.ravel(), strict=True))
        return found.tobytes() == wanted.tobytes()
    if isinstance(wanted, dict):
        return list(found) == list(wanted) and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted


PLAIN = {
    "nested": {"train": {"text": np.ones((2, 3), np.float32), "id": ["a", "b"]}, 3: (None, True, 1.5, 2 + 1j)},
    "arrays": [np.arange(5), np.zeros((0, 4), np.float16), np.array(["ab", "c"]), np.array([True]), np.float64(3.5)],
    "order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "records": np.zeros(2, [("x", "<f4"), ("n", "<i8")]),
    "objects": np.array(["text", None, 3, np.ones(2)], object),
    "containers": [OrderedDict(b=1, a=2), {1, 2}, frozenset([3]), b"bytes", bytearray(b"more")],
    "big": np.arange(300_000, dtype=np.float32),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PLAIN)
def test_arrays_and_plain_containers_come_out_as_they_went_in(tmp_path, name, protocol):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(PLAIN[name], protocol=protocol))
    assert same(load_plain_pickle(path), PLAIN[name])


def test_a_pickle_of_python_2_and_an_old_numpy_is_read(tmp_path):
    """As Python 2 wrote {'k\\xe4': array([1., 2.])} with numpy.core: byte strings and the old module's name."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02}U\x02k\xe4")  # protocol 2, a dict, a byte string of Python 2
    stream.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR")
    stream.write(b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff")
    stream.write(b"K\x00tb\x89U\x10" + struct.pack("<2d", 1.0, 2.0) + b"tbs.")
    path = tmp_path / "old.pkl"
    path.write_bytes(stream.getvalue())
    content = load_plain_pickle(path)
    assert list(content) == ["kä"]
    assert content["kä"].tolist() == [1.0, 2.0]


class Code:
    """Pickles into a call of whatever it is given."""

    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def named(module, name, *arguments):
    """A pickle that calls a function by name; nothing has to exist here."""
    body = b"".join(b"V" + argument.encode() + b"\n" for argument in arguments)
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
        ("builtins", "getattr"), ("builtins", "__import__"), ("__builtin__", "open"), ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"), ("numpy.ma.core", "_mareconstruct"), ("pickle", "loads"),
        ("torch._utils", "_rebuild_tensor_v2"), ("pandas.core.frame", "DataFrame"), ("copyreg", "_reconstructor"),
        ("numpy", "ndarray.tofile"), ("operator", "attrgetter"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_its_name(tmp_path, module, name):
    path = tmp_path / "evil.pkl"
    path.write_bytes(named(module, name, "x"))
    with pytest.raises(ManifestError, match=f"evil.pkl asks for {module}.{name}, which was not run; expected numpy"):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_does_not_run_wherever_it_hides(tmp_path, protocol):
    mark = tmp_path / "it ran"
    code = Code(exec, f"open({str(mark)!r}, 'w')")
    hidden = {"list": [1, [code]], "key": {"a": (code,)}, "array": np.array([code, 1], object), "first": code}
    for name, content in hidden.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(ManifestError, match="asks for (builtins|__builtin__).exec"):
            load_plain_pickle(path)
    assert not mark.exists()


def test_kinds_that_are_harmless_but_not_plain_are_refused_too(tmp_path):
    path = tmp_path / "date.pkl"
    for value in (datetime.date(2020, 1, 1), defaultdict(list), PurePosixPath("a")):
        path.write_bytes(pickle.dumps([value]))
        with pytest.raises(ManifestError, match="date.pkl asks for .*expected numpy arrays and plain containers"):
            load_plain_pickle(path)


def test_what_is_admitted_only_to_build_arrays_does_not_come_out_itself(tmp_path):
    path = tmp_path / "class.pkl"
    path.write_bytes(b"cnumpy\nndarray\n.")
    with pytest.raises(ManifestError, match="class.pkl holds a builtins.type; expected arrays and plain containers"):
        load_plain_pickle(path)


def test_an_object_kept_elsewhere_is_refused(tmp_path):
    path = tmp_path / "elsewhere.pkl"
    path.write_bytes(b"Vstorage\nQ.")
    with pytest.raises(ManifestError, match="asks for an object outside the file"):
        load_plain_pickle(path)


ODD_CODEC = named("_codecs", "encode", "x", "utf-7")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no pickle", pickle.dumps(PLAIN["big"])[:-1000], b"\x80\x09.", ODD_CODEC]
)
def test_a_damaged_pickle_is_refused(tmp_path, content):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="damaged.pkl cannot be read: .+; expected a whole pickle"):
        load_plain_pickle(path)


def test_a_pickle_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.pkl cannot be read: .*No such file"):
        load_plain_pickle(tmp_path / "nowhere.pkl")


def test_a_container_that_holds_itself_ends(tmp_path):
    path = tmp_path / "loop.pkl"
    loop = [1]
    loop.append(loop)
    path.write_bytes(pickle.dumps(loop))
    found = load_plain_pickle(path)
    assert found[1] is found
