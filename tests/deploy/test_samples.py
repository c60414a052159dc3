"""The sample configurations are read by the classes that the daemons read theirs with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tacit.client.configuration import Approval, ClientConfig
from tacit.client.preparation import PREPARED_NAME, PrepareJob
from tacit.client.prepare import prepare_data
from tacit.core.configuration import load_config
from tacit.core.specification import PrivacyMode, RunSpec, canonical_json
from tacit.learning.prepared import load_prepared
from tacit.server.configuration import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "deploy" / "samples"
HEART = ROOT / "simulation" / "data" / "heart"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("server.toml", ServerConfig), ("client.toml", ClientConfig), ("run.toml", RunSpec)],
)
def test_sample_is_valid(name: str, kind: type) -> None:
    """Each sample parses without a single problem."""
    assert isinstance(load_config(SAMPLES / name, kind).value, kind)


def test_server_sample_shows_the_defaults() -> None:
    """What the server sample says is the default is the default, but for names and log form."""
    sample = load_config(SAMPLES / "server.toml", ServerConfig).value
    default = ServerConfig(names=sample.names, log_form=sample.log_form)
    assert default == sample


def test_client_sample_admits_the_run_sample() -> None:
    """The run of the samples is one that the owner of the samples lets through by rule."""
    client = load_config(SAMPLES / "client.toml", ClientConfig).value
    run = load_config(SAMPLES / "run.toml", RunSpec).value
    rule = client.policy.rules["heart"]
    assert client.policy.approve is Approval.RULE
    assert run.data_set in client.data_sets
    assert run.privacy.mode in client.policy.modes
    assert run.privacy.mode in rule.modes
    assert (run.privacy.epsilon or 99.0) <= min(rule.max_epsilon, client.policy.max_epsilon_per_run)
    assert run.participation.rounds <= rule.max_rounds
    assert run.participation.min_clients >= client.policy.min_clients


def test_client_sample_refuses_modes_without_owner_side_noise() -> None:
    """The owner's sample policy names no mode in which the owner's own noise is absent."""
    client = load_config(SAMPLES / "client.toml", ClientConfig).value
    assert not {PrivacyMode.NONE, PrivacyMode.CENTRAL} & set(client.policy.modes)


def test_client_sample_declares_every_column_of_the_run() -> None:
    """The data set of the client sample has the columns that the run sample asks for."""
    client = load_config(SAMPLES / "client.toml", ClientConfig).value
    run = load_config(SAMPLES / "run.toml", RunSpec).value
    assert run.data is not None
    columns = client.data_sets[run.data_set].columns
    assert {*run.data.columns, run.data.label} <= set(columns)


def test_client_sample_cleans_the_hospitals_for_the_run(tmp_path: Path) -> None:
    """The sample's rules fit the heart data, and what is left keeps the run sample's contract."""
    client = load_config(SAMPLES / "client.toml", ClientConfig).value
    lines = (HEART / "va.csv").read_text().splitlines(keepends=True)
    (tmp_path / "heart.csv").write_text("".join(lines[1:]))
    job = PrepareJob(
        specification=canonical_json(load_config(SAMPLES / "run.toml", RunSpec).value),
        data_set=replace(client.data_sets["heart"], path=tmp_path / "heart.csv"),
        folder=tmp_path,
        split_key=bytes(32),
    )
    prepare_data(job)
    sets = load_prepared(tmp_path / PREPARED_NAME)
    assert len(sets.train) + len(sets.validation) == len(lines) - 1
