"""What Python source shows of its DP training: patterns, read and never run.

Best effort, and no proof either way: a pattern is looked for in one file, names are taken at their
word, and what another module does is not seen. Numbers need a description
(``lint_description.py``).

Patterns, by rule:

- sampling: ``poisson_sampling=False``.
- engine-per-round: an engine or accountant is made inside a function that is called every round,
  in a loop over rounds, or in what one of the two calls. Every round: a name with ``round`` in it;
  what is decorated with ``@app.train()`` or ``@app.evaluate()``; ``fit``, ``train`` and
  ``evaluate``, beside Flower or where they take a round's arguments (``parameters``, ``config``)
  or return weights with the length of something.
- batch-norm: a BatchNorm layer, in a file without ``ModuleValidator.fix``.
- normaliser: ``len(...)`` in ``expected_batch_size``, ``sample_rate`` or a divisor of a gradient;
  ``make_private``, which takes both from the length of the data, in a file that does not set
  ``expected_batch_size`` and the ``sample_rate`` of a loader to something else.
- weights: ``len(...)`` as ``num-examples``, or second in what a round's function returns.
- metrics: a loss or score by name in what a round's function returns, or in a ``MetricRecord``.
- noise-seed: a seed for the generator of torch, which Opacus draws noise from unless
  ``secure_mode=True``; a seed for numpy's, in a file that draws normal numbers from it.
- noise-generator: ``PrivacyEngine`` without ``secure_mode=True``.
- accountant: RDP, or the central limit of GDP.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tacit.core.errors import ConfigError
from tacit.privacy.lint import Finding, Report, Severity, report_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_DP_MODULES = ("opacus", "tensorflow_privacy", "dp_accounting")
_ENGINES = ("PrivacyEngine", "RDPAccountant", "PRVAccountant", "GaussianAccountant")
_PRIVATE_MAKERS = ("make_private", "make_private_with_epsilon")
_LOADERS = (
    "DPDataLoader",
    "UniformWithReplacementSampler",
    "DistributedUniformWithReplacementSampler",
)
_SIZE_NAME = re.compile(r"expected_batch_size|sample_rate|normali[sz]er|n_samples_per_batch")
_GRADIENT_NAME = re.compile(r"grad|noise|summed|sigma", re.IGNORECASE)
_WEIGHT_NAME = re.compile(r"num[-_]examples|num[-_]samples")
_ROUND_NAMES = ("fit", "train", "evaluate")
_ROUND_ARGUMENT = re.compile(
    r"parameters|config|server_round|rnd|(global|server)_(weights|parameters|model|state)"
)
_SCORE_NAME = re.compile(r"(.*[-_])?(loss|acc|accuracy|auc|f1|precision|recall|score)")
_TORCH_SEED = re.compile(r"(.*\.)?manual_seed(_all)?")
_NUMPY_SEED = re.compile(r"(np|numpy)\.random\.(seed|default_rng|RandomState)")
_NUMPY_NOISE = re.compile(r"(np|numpy|.*rng|.*generator)(\.random)?\.(standard_)?normal")


def lint_source(text: str, *, source: str) -> Report:
    """Look for patterns that break a rule in one file of Python.

    Args:
        text: the file's content.
        source: what to call the file.

    Raises:
        ConfigError: it is not Python (``E-LINT-SYNTAX``), or uses no library for DP that is known
            here (``E-LINT-NOT-DP``).
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError("E-LINT-SYNTAX", f"expected Python in {source}:{line or 1}") from error
    if not any(name.startswith(_DP_MODULES) for name in _imported(tree)):
        raise ConfigError(
            "E-LINT-NOT-DP",
            f"expected Python that imports {', '.join(_DP_MODULES)}, found none in {source}",
            hint="Describe what the code does in a TOML file: docs/pitfalls.md shows one.",
        )
    return report_of(_Reader(tree, source).findings(), claimed=None, epsilon=None)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _name(node: ast.AST) -> str:
    """Return a dotted name, or nothing for what is not one."""
    if isinstance(node, ast.Attribute):
        inner = _name(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _has_length(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) and _name(each.func) == "len" for each in ast.walk(node))


def _is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_secure(node: ast.Call) -> bool:
    return any(
        keyword.arg == "secure_mode" and _is_constant(keyword.value, value=True)
        for keyword in node.keywords
    )


def _text(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


class _Reader:
    """One walk over one file."""

    def __init__(self, tree: ast.Module, source: str) -> None:
        self._tree = tree
        self._source = source
        own = set(_nodes_of_rounds(tree))
        self._in_own_round = own  # and what these call:
        self._in_round = _with_called(tree, own)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self._sizes_are_public = _has_public_batch(tree) and any(map(_is_public_loader, calls))
        self._is_secure = any(_is_secure(call) for call in calls)
        self._draws_by_numpy = any(_NUMPY_NOISE.fullmatch(_name(call.func)) for call in calls)
        self._fixes_layers = any(_name(node) == "ModuleValidator.fix" for node in ast.walk(tree))

    def findings(self) -> Iterator[Finding]:
        """Yield what was found, in the order of the file, once per place and rule."""
        seen: set[tuple[str, str]] = set()
        nodes = (node for node in ast.walk(self._tree) if isinstance(node, (ast.expr, ast.stmt)))
        for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
            for finding in self._of(node):
                if (finding.rule, finding.place) not in seen:
                    seen.add((finding.rule, finding.place))
                    yield finding

    def _of(self, node: ast.AST) -> Iterator[Finding]:
        if isinstance(node, ast.Call):
            yield from self._of_call(node)
        elif isinstance(node, ast.Dict):
            yield from self._of_entries(node)
        elif isinstance(node, ast.Return):
            yield from self._of_return(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from self._of_size(_name(target).rpartition(".")[2], node.value)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield from self._of_quotient(node)

    def _of_call(self, node: ast.Call) -> Iterator[Finding]:
        called = _name(node.func)
        last = called.rpartition(".")[2]
        if last in _ENGINES:
            yield from self._of_engine(node, last)
        if last in _PRIVATE_MAKERS and not self._sizes_are_public:
            yield self._finding(node, "normaliser", _BY_MAKER)
        if re.fullmatch(r"(Lazy|Sync)?BatchNorm(\dd)?", last) and not self._fixes_layers:
            yield self._finding(node, "batch-norm", _BY_BATCH_NORM)
        seeds = (_TORCH_SEED,) * (not self._is_secure) + (_NUMPY_SEED,) * self._draws_by_numpy
        if node.args and any(seed.fullmatch(called) for seed in seeds):
            yield self._finding(node, "noise-seed", _BY_SEED)
        for keyword in node.keywords:
            if keyword.arg == "poisson_sampling" and _is_constant(keyword.value, value=False):
                yield self._finding(keyword.value, "sampling", _BY_SHUFFLING)
            yield from self._of_size(keyword.arg or "", keyword.value)
            yield from self._of_weight(keyword.arg or "", keyword.value)
        if last == "MetricRecord":
            for entry in ast.walk(node):
                if isinstance(entry, ast.Dict):
                    yield from self._of_scores(entry)

    def _of_engine(self, node: ast.Call, last: str) -> Iterator[Finding]:
        if node in self._in_round:
            yield self._finding(node, "engine-per-round", _BY_ENGINE)
        arguments = {keyword.arg: keyword.value for keyword in node.keywords}
        if last == "PrivacyEngine" and not _is_secure(node):
            yield self._finding(node, "noise-generator", _BY_TORCH, Severity.WEAKER)
        named = _text(arguments.get("accountant"))
        if named == "gdp" or last == "GaussianAccountant":
            yield self._finding(node, "accountant", _BY_GDP)
        if named == "rdp" or last == "RDPAccountant":
            yield self._finding(node, "accountant", _BY_RDP, Severity.NOTE)

    def _of_size(self, name: str, value: ast.expr) -> Iterator[Finding]:
        if _SIZE_NAME.fullmatch(name) and _has_length(value):
            yield self._finding(value, "normaliser", _BY_LENGTH)

    def _of_quotient(self, node: ast.BinOp) -> Iterator[Finding]:
        if _has_length(node.right) and _mentions(node.left, _GRADIENT_NAME):
            yield self._finding(node, "normaliser", _BY_LENGTH)

    def _of_weight(self, name: str, value: ast.expr) -> Iterator[Finding]:
        if _WEIGHT_NAME.fullmatch(name) and _has_length(value):
            yield self._finding(value, "weights", _BY_COUNT)

    def _of_entries(self, node: ast.Dict) -> Iterator[Finding]:
        for key, value in zip(node.keys, node.values, strict=True):
            yield from self._of_weight(_text(key), value)

    def _of_scores(self, node: ast.Dict) -> Iterator[Finding]:
        for key in node.keys:
            if key is not None and _SCORE_NAME.fullmatch(_text(key)):
                yield self._finding(key, "metrics", _BY_SCORE)

    def _of_return(self, node: ast.Return) -> Iterator[Finding]:
        if node not in self._in_own_round or node.value is None:
            return
        parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if _returns_count(node):
            yield self._finding(parts[1], "weights", _BY_COUNT)
        for part in parts:
            if isinstance(part, ast.Dict):
                yield from self._of_scores(part)
            elif len(parts) > 1 and _is_score(part):
                yield self._finding(part, "metrics", _BY_SCORE)

    def _finding(
        self,
        node: ast.expr | ast.stmt,
        rule: str,
        words: tuple[str, str],
        severity: Severity = Severity.BROKEN,
    ) -> Finding:
        claimed, actual = words
        place = f"{self._source}:{node.lineno}"
        return Finding(rule=rule, severity=severity, place=place, claimed=claimed, actual=actual)


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _returns_count(node: ast.Return) -> bool:
    """Whether weights leave with a count, and perhaps metrics, as from Flower's NumPyClient."""
    parts = node.value.elts if isinstance(node.value, ast.Tuple) else []
    return len(parts) in (2, 3) and _has_length(parts[1])


def _is_score(node: ast.expr) -> bool:
    """Whether a value is a loss or score by name, or a number made of one: ``float(loss)``."""
    if isinstance(node, ast.Call):
        own = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        return any(map(_is_score, (*own, *node.args)))
    return bool(_SCORE_NAME.fullmatch(_name(node).rpartition(".")[2]))


def _has_public_batch(tree: ast.Module) -> bool:
    """Whether ``expected_batch_size`` is set to something else than a length."""
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if _name(target).rpartition(".")[2] == "expected_batch_size"
    ]
    return not all(map(_has_length, values))


def _is_public_loader(node: ast.Call) -> bool:
    rates = [keyword.value for keyword in node.keywords if keyword.arg == "sample_rate"]
    is_loader = _name(node.func).rpartition(".")[2] in _LOADERS
    return is_loader and bool(rates) and not _has_length(rates[0])


def _functions(tree: ast.Module) -> list[_Function]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _nodes_of_rounds(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield every node inside a function, or a loop, that runs once a round."""
    is_flower = any(name.startswith("flwr") for name in _imported(tree))
    for function in _functions(tree):
        if _runs_each_round(function, is_flower=is_flower):
            yield from ast.walk(function)
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and _mentions_round(node):
            yield from (inner for part in node.body for inner in ast.walk(part))


def _runs_each_round(function: _Function, *, is_flower: bool) -> bool:
    decorators = [
        _name(each.func if isinstance(each, ast.Call) else each) for each in function.decorator_list
    ]
    if any(name.endswith((".train", ".evaluate")) for name in decorators):
        return True
    if function.name not in _ROUND_NAMES:
        return "round" in function.name
    taken = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return (
        is_flower
        or any(_ROUND_ARGUMENT.fullmatch(each.arg) for each in taken)
        or any(isinstance(each, ast.Return) and _returns_count(each) for each in ast.walk(function))
    )


def _with_called(tree: ast.Module, nodes: set[ast.AST]) -> set[ast.AST]:
    """Return nodes with those of the file's functions that they call by name, and so on."""
    bodies = {function.name: function for function in _functions(tree)}
    found, new = set(nodes), set(nodes)
    while new:
        names = {
            _name(node.func).removeprefix("self.") for node in new if isinstance(node, ast.Call)
        }
        called = [bodies[name] for name in sorted(names & bodies.keys())]
        new = {inner for body in called for inner in ast.walk(body)} - found
        found |= new
    return found


def _mentions_round(node: ast.For) -> bool:
    pattern = re.compile(r"(^|.*_)(num_)?rounds?(_.*|$)|rnd", re.IGNORECASE)
    return _mentions(node.target, pattern) or _mentions(node.iter, pattern)


def _mentions(node: ast.AST, pattern: re.Pattern[str]) -> bool:
    return any(
        pattern.search(each.id if isinstance(each, ast.Name) else each.attr)
        for each in ast.walk(node)
        if isinstance(each, (ast.Name, ast.Attribute))
    )


# What each pattern claims, and what is so.
_BOUNDED = "epsilon bounds what leaves"
_BY_SHUFFLING = (
    "the accountant's epsilon, which is that of Poisson samples",
    "batches are shuffled: there is no amplification, each epoch costs a full release",
)
_BY_ENGINE = (
    "the epsilon that this engine shows",
    "it starts at zero each time this runs: the run costs all rounds together",
)
_BY_BATCH_NORM = (
    "each record's gradient is clipped",
    "the layer mixes the records of a batch, and its running statistics leave without noise",
)
_BY_LENGTH = (
    "add/remove: one record more moves the sum by the clip",
    "it also moves the sampling rate or the divisor: no epsilon can be shown",
)
_BY_MAKER = (
    "add/remove: one record more moves the sum by the clip",
    "Opacus takes the sampling rate and the divisor from the length of the data: they move as well",
)
_BY_COUNT = (_BOUNDED, "the exact number of records leaves, and weighs the mean")
_BY_SCORE = (_BOUNDED, "an exact function of the records leaves beside the update")
_BY_SEED = ("noise that nobody knows", "who knows the seed draws the same noise and takes it off")
_BY_TORCH = ("noise that nobody can predict", "it comes from torch's generator for simulation")
_BY_GDP = ("an upper bound", "the central limit of GDP is no bound: it shows too little")
_BY_RDP = ("a tight bound", "RDP is a bound, and a loose one")
