"""Patterns in Python: each fires where it stands, and a clean file has none of them."""

from __future__ import annotations

import textwrap

import pytest

from tacit.core.errors import ConfigError
from tacit.privacy.lint import Report, Severity
from tacit.privacy.lint_source import lint_source

CLEAN = """
import torch
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine
from opacus.data_loader import DPDataLoader
from torch import nn

PUBLIC_RECORDS = 60000
app = ClientApp()
engine = PrivacyEngine(accountant="prv", secure_mode=True)
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 2))

def prepare(model, optimizer, dataset):
    loader = DPDataLoader(dataset, sample_rate=256 / PUBLIC_RECORDS)
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=True)
    optimizer.expected_batch_size = 256
    return model, optimizer, loader

@app.train()
def train(message, context):
    for batch in loader:
        progress = step(batch) / len(batch)
    return parameters, 1, {}
"""


def linted(extra: str, *, base: str = CLEAN) -> Report:
    return lint_source(base + textwrap.dedent(extra), source="train.py")


def test_a_clean_file_has_no_finding() -> None:
    """What only looks alike is left alone: GroupNorm, a split's seed, the length of a batch."""
    report = linted("")
    assert report.findings == ()
    assert report.epsilon is None


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("sampling", "engine.make_private(module=model, poisson_sampling=False)"),
        ("batch-norm", "layer = nn.BatchNorm2d(8)"),
        ("batch-norm", "layer = torch.nn.SyncBatchNorm(8)"),
        ("normaliser", "optimizer.expected_batch_size = int(len(dataset) * 0.1)"),
        ("normaliser", "sample_rate = 1 / len(loader)"),
        ("normaliser", "update = summed_grad / len(dataset)"),
        ("normaliser", "make(sample_rate=64 / len(dataset))"),
        ("weights", "def fit(weights):\n    return weights, len(data)"),
        ("metrics", "def evaluate(self):\n    return float(loss), 1, {}"),
        ("weights", 'metrics = {"num-examples": len(dataset)}'),
        ("weights", "reply = FitRes(num_examples=len(dataset))"),
        ("metrics", 'MetricRecord({"train_loss": loss})'),
        ("noise-generator", "other = PrivacyEngine()"),
        ("accountant", 'other = PrivacyEngine(accountant="gdp", secure_mode=True)'),
        ("accountant", 'other = PrivacyEngine(accountant="rdp", secure_mode=True)'),
        ("accountant", "other = RDPAccountant()"),
        ("engine-per-round", "for rnd in range(10):\n    PrivacyEngine(secure_mode=True)"),
        ("engine-per-round", "def one_round():\n    return PRVAccountant()"),
        ("engine-per-round", "def fit(self):\n    PrivacyEngine(secure_mode=True)"),
        ("weights", "def fit(self):\n    return weights, len(self.loader.dataset), {}"),
        ("metrics", 'def fit(self):\n    return weights, 1, {"accuracy": score}'),
        ("metrics", 'def evaluate(self):\n    return 0.5, 1, {"accuracy": score}'),
        ("metrics", '@app.train()\ndef learn(m, c):\n    return {"loss": loss}'),
    ],
)
def test_a_pattern_is_found_at_its_line(rule: str, line: str) -> None:
    """One broken rule is one finding, at the line that breaks it."""
    (finding,) = linted(line).findings
    assert finding.rule == rule
    wanted = CLEAN.count("\n") + line.count("\n") + 1
    assert finding.place == f"train.py:{wanted}"


INSECURE = CLEAN.replace(", secure_mode=True", "").replace("torch.manual_seed(1)\n", "")


@pytest.mark.parametrize(
    "line",
    [
        "torch.manual_seed(1)",
        "noise = torch.Generator().manual_seed(7)",
        "np.random.seed(3); noise = np.random.normal(size=4)",
        "rng = np.random.default_rng(3); noise = rng.normal(size=4)",
    ],
)
def test_a_seed_of_the_noise_is_found(line: str) -> None:
    """A seed matters where noise is drawn from what it seeds."""
    rules = [finding.rule for finding in linted(line, base=INSECURE).findings]
    assert sorted(rules) == ["noise-generator", "noise-seed"]
    unseeded = line.replace("(1)", "()").replace("(7)", "()").replace("(3)", "()")
    rules = [finding.rule for finding in linted(unseeded, base=INSECURE).findings]
    assert rules == ["noise-generator"]


def test_replaced_layers_are_no_finding() -> None:
    """ModuleValidator.fix takes BatchNorm out again."""
    assert linted("model = ModuleValidator.fix(nn.BatchNorm1d(4))").findings == ()


def test_training_in_one_place_has_no_rounds() -> None:
    """Without Flower, an engine made in `train` serves the whole training."""
    alone = CLEAN.replace("from flwr.clientapp import ClientApp\n", "")
    assert linted("def train():\n    PrivacyEngine(secure_mode=True)", base=alone).findings == ()


PLAIN = """
from opacus import PrivacyEngine

def make(model, optimizer, loader):
    engine = PrivacyEngine(secure_mode=True)
    return engine.make_private(module=model, optimizer=optimizer, data_loader=loader,
                               noise_multiplier=1.0, max_grad_norm=1.0)
"""


@pytest.mark.parametrize(
    ("extra", "rules"),
    [
        ("", ["normaliser"]),
        ("optimizer.expected_batch_size = 256", ["normaliser"]),  # the rate is still 1 / length
        ("loader = DPDataLoader(data, sample_rate=0.01)", ["normaliser"]),
        ("loader = DPDataLoader(data, sample_rate=0.01)\noptimizer.expected_batch_size = 256", []),
        (
            "loader = DPDataLoader(data, sample_rate=1 / len(x))\nopt.expected_batch_size = 256",
            ["normaliser", "normaliser"],
        ),
    ],
)
def test_a_plain_make_private_follows_the_length_of_the_data(extra: str, rules: list[str]) -> None:
    """Opacus issue 819: rate and divisor move with one record more, unless both are set."""
    assert [finding.rule for finding in linted(extra, base=PLAIN).findings] == rules


FIT = """
def fit({arguments}):
    engine = PrivacyEngine(secure_mode=True)
    loss = learn(engine)
    return {returned}
"""


@pytest.mark.parametrize(
    ("arguments", "returned", "rules"),
    [
        (
            "model, loader",
            'weights(model), len(loader.dataset), {"loss": loss}',
            {"engine-per-round", "weights", "metrics"},
        ),
        ("model, loader", "model, len(loader)", {"engine-per-round", "weights"}),
        ("parameters, config", "weights, 1, {}", {"engine-per-round"}),
        ("parameters", "weights, loss", {"engine-per-round", "metrics"}),
        ("model, loader", "model", set()),  # training in one place
    ],
)
def test_a_round_is_known_by_its_shape(arguments: str, returned: str, rules: set[str]) -> None:
    """A `fit` in a file without Flower is a round if it takes or gives what one does."""
    base = "from opacus import PrivacyEngine\n"
    text = FIT.format(arguments=arguments, returned=returned)
    assert {finding.rule for finding in linted(text, base=base).findings} == rules


def test_what_a_loop_over_rounds_calls_is_in_the_round() -> None:
    """An engine in a helper is made anew by each call."""
    loop = "for round_number in range(9):\n    make(model, optimizer, loader)"
    rules = {finding.rule for finding in linted(loop, base=PLAIN).findings}
    assert rules == {"normaliser", "engine-per-round"}


def test_findings_come_worst_first() -> None:
    """Broken claims stand before what is only loose or weak."""
    report = linted("a = PrivacyEngine(accountant='rdp')\nb = nn.BatchNorm1d(4)\n")
    order = [finding.severity for finding in report.findings]
    assert order == [Severity.BROKEN, Severity.WEAKER, Severity.NOTE]
    assert report.is_broken


@pytest.mark.parametrize(
    ("text", "code"),
    [("def f(:\n", "E-LINT-SYNTAX"), ("import torch\nx = 1\n", "E-LINT-NOT-DP")],
)
def test_what_cannot_be_read_is_not_called_clean(text: str, code: str) -> None:
    """No finding in a file that holds no DP would say nothing."""
    with pytest.raises(ConfigError, match=code):
        lint_source(text, source="x.py")
