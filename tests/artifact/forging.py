"""Forged and damaged artifacts, and what loading, asking and verifying one comes to."""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import LightVLMError

MANIFEST = "lightvlm.json"
JUNK = [None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, "", "x", "\0", "../x", "/etc/hostname", "a" * 5000, [],
        [[]], [None], [-1], ["x"], {}, {"x": 1}, {"file": "decode.onnx"}]  # fmt: skip
TEXTS = [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"{}", b'{"max_new_tokens": NaN}',
         b'{"max_new_tokens": 1e999}', b'{"max_new_tokens": "4"}', b'{"temperature": "hot"}', b'{"top_k": [3]}', b'{"do_sample": "no"}',
         b'{"max_new_tokens": -3}', b'{"eos_token_id": "x"}', b"9" * 5000]  # fmt: skip
SHAPES = ["(1099511627776,)", "(1, 1099511627776)", "(-1, 4)", "(2, 61)", "(0,)", "()", "(2, 'x')", "x", "(((((", "(2.5, 3)", "(10**400,)"]
DTYPES = ["<f4", "|O", "<i8", "<U4", "V8", "zz", "<f4, <f4", "<M8[s]"]


class Forger:
    """Forges one artifact a call, a copy in the folder `home`; returns what was done."""

    def __init__(self, source, random):
        self.source, self.random = Path(source), random
        self.manifest = json.loads((self.source / MANIFEST).read_text())
        self.names = sorted(self.manifest["files"])

    def __call__(self, home):
        shutil.copytree(self.source, home)
        kind = self.random.choice([self.values, self.values, self.removed, self.renamed, self.damaged, self.damaged, self.replaced,
                                   self.graph, self.array, self.text, self.added])  # fmt: skip
        return f"{kind.__name__}: {kind(home)}"

    def seal(self, home, *names):
        """Say in the manifest that these files are what was exported."""
        found = json.loads((home / MANIFEST).read_text())
        for name in names:
            data = (home / name).read_bytes()
            found["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (home / MANIFEST).write_text(json.dumps(found))

    def place(self, found):
        """A random place in the manifest: what holds it, its key, and the way there."""
        way = []
        while True:
            key = self.random.choice(list(found) if isinstance(found, dict) else range(len(found)))
            way.append(key)
            if not isinstance(found[key], dict | list) or not found[key] or self.random.random() < 0.15:
                return found, key, way
            found = found[key]

    def values(self, home):
        found = json.loads((home / MANIFEST).read_text())
        holder, key, way = self.place(found)
        old = holder[key]
        near = [old + 1, old - 1, old * 10**6, float(old), str(old)] if type(old) is int else []
        holder[key] = self.random.choice([*JUNK, *near, *near])
        (home / MANIFEST).write_text(json.dumps(found))
        return f"{way} = {repr(holder[key])[:40]}"

    def removed(self, home):
        found = json.loads((home / MANIFEST).read_text())
        holder, key, way = self.place(found)
        del holder[key]
        (home / MANIFEST).write_text(json.dumps(found))
        return way

    def renamed(self, home):
        """A path in the manifest that leads elsewhere."""
        found = json.loads((home / MANIFEST).read_text())
        to = self.random.choice(["../x", "/etc/hostname", "samples/../../x", "", ".", "\0", "a" * 300, "config.json", MANIFEST,
                                 "decode.onnx"])  # fmt: skip
        stage = self.random.choice(list(found["buckets"][0]["stages"].values()))
        sample = self.random.choice(list(found["buckets"][0]["samples"]))
        name = self.random.choice(self.names)
        what = self.random.choice(["stage", "sample", "file"])
        if what == "stage":
            stage["file"] = to
        elif what == "sample":
            found["buckets"][0]["samples"][sample] = to
        else:
            found["files"][to] = found["files"].pop(name)
        (home / MANIFEST).write_text(json.dumps(found))
        return f"{what} {name} -> {to[:20]!r}"

    def damaged(self, home):
        """Bytes that a disk or a copy lost, sealed or not."""
        name = self.random.choice([*self.names, MANIFEST])
        data = bytearray((home / name).read_bytes())
        how = self.random.choice(["flip", "cut", "empty", "longer", "zeros", "noise"])
        at = self.random.randrange(len(data))
        if how == "flip":
            data[at] ^= 1 << self.random.randrange(8)
        elif how == "cut":
            del data[at:]
        elif how == "empty":
            data.clear()
        elif how == "longer":
            data += self.random.randbytes(100)
        elif how == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            data[at : at + 64] = self.random.randbytes(len(data[at : at + 64]))
        (home / name).write_bytes(data)
        # a sealed change of a weight or a graph may be one that no sample shows: those are `graph`
        sealed = name != MANIFEST and not name.endswith((".onnx", ".data")) and self.random.random() < 0.5
        if sealed:
            self.seal(home, name)
        return f"{how} {name} {'sealed' if sealed else ''}"

    def replaced(self, home):
        """Something other than a regular file of the folder."""
        name = self.random.choice([*self.names, MANIFEST, MANIFEST, "generation_config.json", "samples"])
        how = self.random.choice(["fifo", "folder", "link out", "loop", "dangling", "gone", "socket", "other file", "device"])
        path = home / name
        outside = home.with_name(home.name + ".outside")
        path.rename(outside) if how == "link out" else shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "fifo":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        elif how == "link out":
            path.symlink_to(outside)
        elif how == "loop":
            path.symlink_to(path.name)
        elif how == "dangling":
            path.symlink_to("nowhere")
        elif how == "socket":
            os.mknod(path, 0o600 | 0o140000)
        elif how == "device":
            path.symlink_to("/dev/zero")
        elif how == "other file":
            shutil.copyfile(home / self.random.choice([n for n in self.names if n != name and (home / n).is_file()]), path)
        return f"{name} is a {how}"

    def graph(self, home):
        """Graphs that are sealed: others, no graphs, or with weights elsewhere."""
        names = [n for n in self.names if n.endswith(".onnx")]
        name = self.random.choice(names)
        data = (home / name).read_bytes()
        how = self.random.choice(["swapped", "cut", "noise", "elsewhere", "beyond", "text"])
        if how == "swapped":
            data = (home / self.random.choice([n for n in names if n != name])).read_bytes()
        elif how == "cut":
            data = data[: self.random.randrange(len(data))]
        elif how == "noise":
            data = self.random.randbytes(len(data))
        elif how == "elsewhere":
            to = self.random.choice([b"../x.onnx.data00", b"/etc/hostname000", b"config.json00000", b"nowhere.onnx.dat"])
            data = data.replace(b"model.onnx.data", to[:15])
        elif how == "beyond":
            data = data.replace(b"offset\x12", b"length\x12", 1)
        else:
            data = self.random.choice(TEXTS)
        (home / name).write_bytes(data)
        self.seal(home, name)
        return f"{how} {name}"

    def array(self, home):
        """Headers of samples that claim what is not there, sealed."""
        name = self.random.choice([n for n in self.names if n.endswith(".npy")])
        shape, dtype = self.random.choice(SHAPES), self.random.choice(DTYPES)
        header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        version = self.random.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
        length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) + self.random.choice([0, 0, 0, 60000]))
        (home / name).write_bytes(b"\x93NUMPY" + version + length + header + bytes(64))
        self.seal(home, name)
        return f"{name} {version!r} {header!r}"

    def text(self, home):
        """JSON that is none, or says what cannot be, sealed."""
        name = self.random.choice(["generation_config.json", "generation_config.json", MANIFEST])
        data = self.random.choice(TEXTS)
        (home / name).write_bytes(data)
        if name != MANIFEST:
            self.seal(home, name)
        return f"{name} {data[:30]!r}"

    def added(self, home):
        name = self.random.choice(["special_tokens_map.json", "chat_template.json", "preprocessor_config.json", "notes.md", "a/b.json"])
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("{}")
        return name


def judge(folder, inputs, truth, new):
    """"clear", or what is wrong: every way in answers as the untouched artifact, or raises one of our errors.

    A change that is sealed may make another artifact of it: then `verify` has to say so.
    """
    answers, said = [], "clear"
    for checked in (True, False):
        try:
            vlm = lightvlm.load(folder, verify=checked)
            if not checked:  # both answer alike
                answers.append(vlm.generate(**inputs, max_new_tokens=new, do_sample=False).tolist() == truth)
        except LightVLMError as error:
            said = said if names(str(error), folder) else f"wrong: the error names no file: {error}"
    try:
        code = lightvlm.verify(folder).exit_code
    except LightVLMError as error:
        code = 2
        said = said if names(str(error), folder) else f"wrong: the error names no file: {error}"
    return "wrong: answered otherwise, and verify says it is good" if not all(answers) and code == 0 else said


def names(message, folder):
    """Whether an error says of which file or bucket it is."""
    return str(folder) in message or message.startswith("no bucket of the artifact takes this batch:\n  bucket ")
