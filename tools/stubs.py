"""Write a stub, `atomrl_nb/X.pyi`, for each exported module: what editors and type checkers read instead of it.

A stub sees the methods that `@patch` gives to a class where they belong, and holds in docstrings what the module says in
comments behind parameters and fields: meaning, shape and unit. Private functions are left out. The same docstrings are
written into `atomrl_nb/_docs.py`, from which `help()` has them.
"""
import ast
import copy
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "atomrl_nb"
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
PATCHES = {"as_prop": "property", "cls_method": "classmethod", "static_method": "staticmethod"}  # fastcore's -> Python's
DECORATORS = {"property", "classmethod", "staticmethod", "dataclass", "contextmanager", "setter", "cached_property"}
ANY = ast.Name("Any")


def modules(folder=ROOT / PACKAGE):
    """Return the modules that notebooks export."""
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def private(name):
    """Tell whether a name is nobody else's."""
    return name.startswith("_") and not name.endswith("__")


def indented(lines):
    """Return lines, four spaces further in."""
    return ["    " + line if line else "" for line in lines]


def docstring(text, notes):
    """Return the lines of a docstring: what was said, then `name: comment` for each note."""
    text = "\n\n".join(filter(None, [text, "\n".join(f"{name}: {note}" for name, note in notes.items())]))
    if not text:
        return []
    quoted = text.replace("\\", "\\\\").replace('"""', r'\"\"\"')
    end = ['"""'] if "\n" in text or text.endswith('"') else []
    lines = f'"""{quoted}'.splitlines()
    return lines + end if end else [lines[0] + '"""']


def literal(node):
    """Return the value of a plain literal in a list; an empty list where it is none."""
    try:
        return [ast.literal_eval(node)]
    except ValueError:
        return []


def type_of(value):
    """Write the type of a plain value, such as `tuple[str, ...]`."""
    def inside(values):
        return " | ".join(sorted({type_of(v) for v in values})) or "Any"
    if isinstance(value, dict):
        return f"dict[{inside(value)}, {inside(value.values())}]"
    if isinstance(value, tuple):
        return f"tuple[{inside(value)}, ...]"
    if isinstance(value, (list, set)):
        return f"{type(value).__name__}[{inside(value)}]"
    return "None" if value is None else type(value).__name__


class Module:
    """A module as its stub shows it."""

    def __init__(self, source):
        self.tree = ast.parse(source)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        self.classes = {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}
        self.imported = {a.asname or a.name for node in self.tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
        self.patched = {name: [] for name in self.classes}
        self.body = []
        self.docs = {}  # path, such as "Class.method" -> docstring, where comments have added something
        for node in self.tree.body:
            patch = self.patch_of(node)
            for name in patch:
                self.patched[name].append(patch[name])
            if not patch:
                self.body.append(node)

    def patch_of(self, node):
        """Return {class: method} where a function is patched into classes of this module."""
        for found in getattr(node, "decorator_list", []):
            call = found.func if isinstance(found, ast.Call) else found
            if not (isinstance(call, ast.Name) and call.id == "patch"):
                continue
            method, first = copy.deepcopy(node), node.args.args[0]
            kinds = [PATCHES[k.arg] for k in getattr(found, "keywords", []) if k.arg in PATCHES]
            method.decorator_list = [ast.Name(kind) for kind in kinds] + [d for d in node.decorator_list if d is not found]
            if "staticmethod" not in kinds:
                method.args.args[0].annotation = None
            return {name.id: method for name in ast.walk(first.annotation) if isinstance(name, ast.Name)}
        return {}

    def notes_of(self, node):
        """Return {parameter: comment} of a function, with that of its result."""
        args = node.args
        everyone = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
        everyone = [arg for arg in everyone if arg]
        lines = [arg.lineno for arg in everyone]
        notes = {arg.arg: self.comments[arg.lineno] for arg in everyone
                 if arg.lineno in self.comments and lines.count(arg.lineno) == 1 and arg.lineno > node.lineno}
        if node.returns and node.returns.end_lineno in self.comments:
            notes["returns"] = self.comments[node.returns.end_lineno]
        return notes

    def document(self, path, node, notes):
        """Return the lines of the docstring of a class or function, and remember it where comments add to it."""
        lines = docstring(ast.get_docstring(node), notes)
        if notes:
            self.docs[path] = ast.literal_eval("\n".join(lines)).strip()
        return lines

    def function(self, node, owner=""):
        """Return the lines of a function, or of a method of the class `owner`."""
        shown = [d for d in node.decorator_list if DECORATORS & {n.id if isinstance(n, ast.Name) else getattr(n, "attr", "")
                                                                for n in ast.walk(d)}]
        args, returns = copy.deepcopy(node.args), node.returns
        args.defaults = [self.default(value) for value in args.defaults]
        args.kw_defaults = [value and self.default(value) for value in args.kw_defaults]
        gives = [n for n in ast.walk(node) if isinstance(n, (ast.Yield, ast.YieldFrom)) or isinstance(n, ast.Return) and n.value]
        if not returns and not gives:
            returns = ast.Constant(None)
        result = f" -> {ast.unparse(returns)}" if returns else ""
        doc = self.document(f"{owner}.{node.name}".strip("."), node, self.notes_of(node))
        head = [f"@{ast.unparse(d)}" for d in shown] + [f"def {node.name}({ast.unparse(args)}){result}:"]
        return head + indented(doc) if doc else [*head[:-1], head[-1] + " ..."]

    def default(self, value):
        """Return a default as the stub shows it: `...` where it is not a plain literal."""
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
            kept = [k for k in value.keywords if k.arg in ("init", "kw_only")]
            given = any(k.arg in ("default", "default_factory") for k in value.keywords)
            if kept or not given:
                return ast.Call(value.func, [], kept + [ast.keyword("default", ast.Constant(...))] * given)
        return value if literal(value) else ast.Constant(...)

    def guess(self, value, known=None):
        """Return the annotation of what is assigned: from a literal, a parameter of that name, or a class that is called.

        With `known`, the parameters, it is a first value that may be followed by others.
        """
        for plain in literal(value):
            vague = plain in (None, ...) or known is not None and isinstance(plain, (int, float, tuple)) and not isinstance(plain, bool)
            return ANY if vague else ast.parse(type_of(plain), mode="eval").body
        if isinstance(value, ast.Name):
            return (known or {}).get(value.id) or ANY
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            name = value.func.id
            a_class = name in ("dict", "list", "tuple", "set", "frozenset", *self.classes) or name in self.imported and name[0].isupper()
            return ast.Name(name) if a_class else ANY
        kinds = {ast.Dict: "dict", ast.DictComp: "dict", ast.List: "list", ast.ListComp: "list", ast.SetComp: "set"}
        return ast.Name(kinds[type(value)]) if type(value) in kinds else ANY

    def assigned(self, node):
        """Yield (target, value) of an assignment, one by one where several are assigned at once."""
        for target in node.targets:
            if not isinstance(target, ast.Tuple):
                yield target, node.value
            elif isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(target.elts):
                yield from zip(target.elts, node.value.elts)
            else:
                yield from ((element, ast.Constant(...)) for element in target.elts)

    def constants(self, node, used=(), shared=False):
        """Return the lines of an assignment outside of functions; what annotations are made of stays as it is.

        `shared`: it stands in a dataclass, but is no field.
        """
        note = f"  # {self.comments[node.end_lineno]}" if node.end_lineno in self.comments else ""
        if isinstance(node, ast.AnnAssign):
            return [f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{note}"]
        lines = []
        for target, value in self.assigned(node):
            name = ast.unparse(target)
            if name == "__all__" or name in used:
                lines.append(f"{name} = {ast.unparse(value)}")
            elif isinstance(target, ast.Name) and not private(name):
                kind = ast.unparse(self.guess(value))
                lines.append(f"{name}: {f'ClassVar[{kind}]' if shared else kind}{note}")
        return lines

    def members(self, name):
        """Return the names that a class of this module, or one that it extends, declares or assigns to itself."""
        node = self.classes.get(name)
        if node is None:
            return set()
        own = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
        own |= {n.name for n in [*node.body, *self.patched[name]] if isinstance(n, FUNCTION)}
        own |= {target.id for n in node.body if isinstance(n, ast.Assign) for target, _ in self.assigned(n)}
        return own.union(*(self.members(base) | set(self.attributes(base)) for base in map(ast.unparse, node.bases)))

    def attributes(self, name):
        """Return {attribute: annotation} of what `__init__` of a class assigns to `self` and nobody declares."""
        found, node = {}, self.classes.get(name)
        for method in [n for n in node.body if getattr(n, "name", "") == "__init__"] if node else []:
            known = {arg.arg: arg.annotation for arg in [*method.args.args, *method.args.kwonlyargs]}
            for n in ast.walk(method):
                for target, value in self.assigned(n) if isinstance(n, ast.Assign) else []:
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and not private(target.attr):
                        found.setdefault(target.attr, self.guess(value, known))
        return {key: kind for key, kind in found.items() if key not in self.members(name)} if node else {}

    def fields(self, node):
        """Return the lines of what a class declares, or assigns to itself."""
        lines = []
        for n in node.body:
            if isinstance(n, ast.AnnAssign):
                value = "" if n.value is None else f" = {ast.unparse(self.default(n.value))}"
                lines.append(f"{ast.unparse(n.target)}: {ast.unparse(n.annotation)}{value}")
            elif isinstance(n, ast.Assign):
                lines += self.constants(n, shared=any("dataclass" in ast.unparse(d) for d in node.decorator_list))
        return lines + [f"{name}: {ast.unparse(kind)}" for name, kind in self.attributes(node.name).items()]

    def klass(self, node):
        """Return the lines of a class, with the methods that are patched in."""
        notes = {n.target.id: self.comments[n.end_lineno] for n in node.body
                 if isinstance(n, ast.AnnAssign) and n.end_lineno in self.comments}
        methods = {m.name + ast.unparse(m.decorator_list): m for m in [*node.body, *self.patched[node.name]]
                   if isinstance(m, FUNCTION) and not private(m.name)}
        lines = self.document(node.name, node, notes) + self.fields(node)
        lines += [line for m in methods.values() for line in self.function(m, node.name)]
        bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
        head = [f"@{ast.unparse(d)}" for d in node.decorator_list]
        return [*head, f"class {node.name}({bases}):" if bases else f"class {node.name}:", *indented(lines or ["..."])]

    def imports(self, used):
        """Return the module's imports of names that the stub uses."""
        outermost = [n for top in self.tree.body for n in (ast.walk(top) if isinstance(top, (ast.Try, ast.If)) else [top])]
        for node in outermost:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                bound = [a for a in node.names if (a.asname or a.name.split(".")[0]) in used]
                if bound:
                    yield ast.unparse(type(node)(**{**vars(node), "names": bound}))

    def stub(self):
        """Return the stub."""
        used, chunks = set(), []
        for _ in range(3):  # what is private is shown where what is shown is made of it
            chunks = [self.shown(node, used) for node in self.body]
            tree = ast.parse("\n".join(line for lines in chunks for line in lines))
            annotations = [n.annotation for n in ast.walk(tree) if isinstance(n, (ast.arg, ast.AnnAssign)) and n.annotation]
            annotations += [n.returns for n in ast.walk(tree) if isinstance(n, FUNCTION) and n.returns]
            annotations += [b for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for b in n.bases]
            annotations += [n.value for n in tree.body if isinstance(n, ast.Assign)]
            used = {n.id for a in annotations for n in ast.walk(a) if isinstance(n, ast.Name)}
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        lines = [*docstring(ast.get_docstring(self.tree), {}), "# AUTOGENERATED from the module by tools/stubs.py! DO NOT EDIT!"]
        imports = list(self.imports(names))
        bound = {a.asname or a.name for line in imports for a in ast.parse(line).body[0].names}
        imports = [f"from typing import {name}" for name in ("Any", "ClassVar") if name in names - bound] + imports
        return "\n".join(lines + imports + [line for chunk in chunks for line in chunk]) + "\n"

    def shown(self, node, used):
        """Return the lines for one statement of the module."""
        if isinstance(node, ast.ClassDef) and (not private(node.name) or node.name in used):
            return ["", *self.klass(node)]
        if isinstance(node, FUNCTION) and not private(node.name):
            return ["", *self.function(node)]
        return self.constants(node, used) if isinstance(node, (ast.Assign, ast.AnnAssign)) else []


def write(folder=ROOT / PACKAGE):
    """Write a stub beside each module, delete those of modules that are gone, and write what `help()` shows."""
    for old in set(folder.glob("*.pyi")) - {path.with_suffix(".pyi") for path in modules(folder)}:
        old.unlink()
    lines = ['"""Docstrings with what comments say of parameters and fields: `help()` shows them."""',
             "# AUTOGENERATED from the modules by tools/stubs.py! DO NOT EDIT!", "DOCS = {"]
    for path in modules(folder):
        module = Module(path.read_text(encoding="utf-8"))
        path.with_suffix(".pyi").write_text(module.stub(), encoding="utf-8")
        lines += [f"    {path.stem!r}: {{", *(f"        {name!r}: {text!r}," for name, text in module.docs.items()), "    },"]
    (folder / "_docs.py").write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
