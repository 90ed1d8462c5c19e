"""Replaces C functions of compiled Cython modules by Python functions.

Cython modules call each other through tables of C pointers (``__pyx_capi__``), which are read when the
calling module is imported.  So the pointers must be replaced before that.  They are to small C functions,
compiled here, that call Python: unlike ctypes callbacks they hand exceptions on to their caller.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from . import captures, compilation, toolchain

_HEAD = """
#include <cstddef>
#include <cstdint>
extern "C" {
struct PyObject;
PyObject* PyObject_CallFunction(PyObject*, const char*, ...);
long long PyLong_AsLongLong(PyObject*);
double PyFloat_AsDouble(PyObject*);
void Py_DecRef(PyObject*);
__attribute__((visibility("default"))) PyObject* callables[COUNT];
}
template <class T>
static T number(PyObject* result, T on_error) {
  if (!result) return on_error;
  const T value = static_cast<T>(PyLong_AsLongLong(result));
  Py_DecRef(result);
  return value;
}
static float real(PyObject* result) {
  if (!result) return 0;
  const double value = PyFloat_AsDouble(result);
  Py_DecRef(result);
  return static_cast<float>(value);
}
#define PUBLIC extern "C" __attribute__((visibility("default")))
"""

#: C types of arguments, and their letters in PyObject_CallFunction.  What is not here are the options
#: that Cython adds at the end; their defaults are taken, but for those in OPTIONS.
_LETTERS = {"PyObject *": "O", "int": "i", "intptr_t": "n", "size_t": "n", "unsigned int": "I"}

#: Functions with one option, an int, and its default.  Cython passes a struct: how many options there are,
#: and then those.
OPTIONS = {"streamBeginCapture": captures.RELAXED}

#: C types of results, and how they are made of a Python object.  On an error CuPy's functions return
#: NULL, -1, 0 and 0 respectively.
_RESULTS = {
    "PyObject *": "{}",
    "int": "number<int>({}, -1)",
    "intptr_t": "number<intptr_t>({}, 0)",
    "float": "real({})",
}

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype = ctypes.c_char_p
_capsule_name.argtypes = [ctypes.py_object]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

# C code points to the functions and names for as long as the process lives, longer than this module.
_keep = ctypes.pythonapi.Py_IncRef
_keep.argtypes = [ctypes.py_object]


def replace(module: ModuleType, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Let calls of a Cython module's functions, from C and from Python, go to ``functions``."""
    table = module.__pyx_capi__
    exported = [name for name in functions if name in table]
    signatures = {name: _capsule_name(table[name]) for name in exported}
    library = _compile(signatures)
    callables = (ctypes.c_void_p * len(exported)).in_dll(library, "callables")
    for number, (name, signature) in enumerate(signatures.items()):
        _keep(functions[name])
        _keep(signature)
        callables[number] = id(functions[name])
        pointer = ctypes.cast(library[f"stub_{number}"], ctypes.c_void_p).value
        table[name] = _new_capsule(pointer, signature, None)
    for name, function in functions.items():
        setattr(module, name, function)


def _compile(signatures: Mapping[str, bytes]) -> ctypes.PyDLL:
    text = f"#define COUNT {len(signatures)}\n{_HEAD}"
    for number, (name, signature) in enumerate(signatures.items()):
        text += _stub(number, signature.decode(), OPTIONS.get(name))
    flags = [*toolchain.COMMON_FLAGS, "-O1", "-shared"]
    return ctypes.PyDLL(str(compilation.cached("stubs", {"stubs.cpp": text}, [*flags, "stubs.cpp"])))


def _stub(number: int, signature: str, option: int | None) -> str:
    """Write the C function for a signature such as ``intptr_t (size_t, int __pyx_skip_dispatch)``."""
    match = re.fullmatch(r"(.*?) ?\((.*)\)", signature)
    assert match is not None, signature
    # Every Cython class is a Python object.
    result = "PyObject *" if match[1].startswith("struct __pyx_obj") else match[1]
    declared = [part for part in match[2].split(", ") if part != "void"]
    types = [part for part in declared if "__pyx" not in part]
    parameters = [f"{kind} a{i}" for i, kind in enumerate(types)]
    parameters += ["int* options" if "*" in part else "int" for part in declared[len(types) :]]
    letters = "".join(_LETTERS[kind] for kind in types)
    values = "".join(f", a{i}" for i in range(len(types)))
    if option is not None:
        letters, values = letters + "i", f"{values}, options && options[0] ? options[1] : {option}"
    call = _RESULTS[result].format(f'PyObject_CallFunction(callables[{number}], "({letters})"{values})')
    return f"PUBLIC {result} stub_{number}({', '.join(parameters)}) {{ return {call}; }}\n"
