"""`tacit server`: make a federation, run its daemon, and invite or revoke its members.

The verbs reach a running daemon over the Unix socket in its state directory, so they work for
whoever may open that directory. When the daemon is stopped, the reading verbs read its database,
and inviting and revoking write it under the directory's lock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer

from tacit.cli.output import Table, emit
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.identity import Authority, Role, check_member_name, encode_token
from tacit.core.state import default_home, home_option, open_state
from tacit.protos import control_pb2
from tacit.protos.channel import error_from_rpc, local_channel
from tacit.protos.control_pb2_grpc import ControlStub
from tacit.server.authority import (
    MemberRecord,
    Membership,
    list_members,
    verify_invitation_ttl,
)
from tacit.server.catalogue import RunStatus, list_runs
from tacit.server.daemon import (
    AUTHORITY_FOLDER,
    read_config,
    run_daemon,
    store_location,
    terms_of,
)
from tacit.server.initialise import initialise
from tacit.server.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.core.state import StateDirectory

app = typer.Typer(add_completion=False)

_TIMEOUT_S = 15.0

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="State directory (default: TACIT_SERVER_HOME, else ~/.local/state/tacit/server).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
RoleName = Annotated[Role, typer.Option("--role", help="What the member may do.")]


@app.command()
def init(
    name: Annotated[
        list[str],
        typer.Option(
            "--name",
            help="Host name or IP address by which members reach this server; repeat it for more.",
        ),
    ],
    home: Home = None,
    listen: Annotated[
        str, typer.Option(help="host:port to listen on, for members.")
    ] = "0.0.0.0:7443",
    enrolment_listen: Annotated[
        str, typer.Option(help="host:port to listen on, for those who join.")
    ] = "0.0.0.0:7444",
    profile: Annotated[
        str,
        typer.Option(help="Name of your operator profile, for `tacit run` (default: default)."),
    ] = "",
    *,
    json: Json = False,
) -> None:
    """Make a federation: authority, server certificate, server.toml and your operator profile.

    Example: tacit server init --name fl.example.org --name 192.0.2.7
    """
    made = initialise(
        _home(home),
        names=tuple(name),
        listen=listen,
        enrolment_listen=enrolment_listen,
        profile=profile,
    )
    value = {
        "home": made.home,
        "config": made.home / "server.toml",
        "addresses": made.addresses,
        "profile": made.profile.name,
        "profile_folder": made.profile.folder,
    }
    emit(value, json=json)
    if not json:
        at = home_option("server", home)
        typer.echo(f"Next: tacit server start{at}, then tacit server invite NAME --role client{at}")


@app.command()
def start(home: Home = None) -> None:
    """Run the daemon in the foreground; Ctrl-C or SIGTERM stops it without losing anything.

    server.toml is read now, and only now: addresses, limits, times and the form of the log.
    """
    run_daemon(_home(home))


@app.command()
def status(home: Home = None, *, json: Json = False) -> None:
    """Say whether the daemon runs, where it is reached, and how much is under way."""
    state = open_state(_home(home), create=False)
    control = _running(state)
    if control is not None:
        with control as stub:
            reply = _call(stub.Status, control_pb2.StatusRequest())
        emit({"state": "draining" if reply.draining else "running", **_plain(reply)}, json=json)
        return
    config = read_config(state)
    with open_store(store_location(state, config), read_only=True) as store:
        runs = list_runs(store)
        members = list_members(store, now=time.time())
    value = {
        "state": "stopped",
        "addresses": terms_of(config).addresses,
        "enrolled_clients": sum(m.role == "client" and m.state == "enrolled" for m in members),
        "running_runs": sum(run.status is RunStatus.RUNNING for run in runs),
        "queued_runs": sum(
            not run.status.ended and run.status is not RunStatus.RUNNING for run in runs
        ),
        "journal": config.journal.value,
    }
    emit(value, json=json)


@app.command()
def invite(
    name: Annotated[
        str, typer.Argument(help="What the member will be called, in lists and results.")
    ],
    role: RoleName = Role.CLIENT,
    ttl_hours: Annotated[
        float,
        typer.Option(
            help="How long the token holds: 0.0167 (a minute) to 2160 (90 days); "
            "0: as server.toml says."
        ),
    ] = 0.0,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    r"""Make a one-time token for a new member; hand it over on a channel that you both trust.

    \b
    Examples:
    tacit server invite cleveland > cleveland.token
    tacit server invite ada --role auditor --ttl-hours 24
    """
    check_member_name(name)
    if ttl_hours:  # here, since a running server answers with no more than a code
        verify_invitation_ttl(ttl_hours * 3600)
    state = open_state(_home(home), create=False)
    control = _running(state)
    if control is not None:
        request = control_pb2.InviteRequest(name=name, role=role.value, ttl_s=ttl_hours * 3600)
        with control as stub:
            reply = _call(stub.Invite, request)
        token, expires_at_s = reply.token, reply.expires_at_s
    else:
        config = read_config(state)
        with _stopped_membership(state) as membership:
            made = membership.invite(
                name, role, ttl_s=ttl_hours * 3600 or config.times.invitation_s
            )
        token, expires_at_s = encode_token(made), made.expires_at.timestamp()
    if json:
        emit(
            {"name": name, "role": role, "token": token, "expires_at": _when(expires_at_s)},
            json=True,
        )
        return
    typer.echo(token)
    verb = "tacit client join TOKEN" if role is Role.CLIENT else "tacit login TOKEN"
    typer.echo(f"{name} uses it once, before {_when(expires_at_s)}: {verb}", err=True)


@app.command()
def members(home: Home = None, *, json: Json = False) -> None:
    """List members and open invitations."""
    state = open_state(_home(home), create=False)
    control = _running(state)
    if control is not None:
        with control as stub:
            reply = _call(stub.ListMembers, control_pb2.ListMembersRequest())
        found = [(_record(member), member.connected) for member in reply.members]
    else:
        with open_store(store_location(state, read_config(state)), read_only=True) as store:
            found = [(record, False) for record in list_members(store, now=time.time())]
    rows = [
        (
            record.name,
            record.role,
            record.state,
            connected,
            _when(record.enrolled_at_s),
            _when(record.last_seen_at_s),
            _when(record.expires_at_s),
        )
        for record, connected in found
    ]
    columns = ("name", "role", "state", "connected", "enrolled", "last seen", "expires")
    value = [{**vars(record), "connected": connected} for record, connected in found]
    emit(value, json=json, table=Table(columns=columns, rows=rows, empty="No members yet."))


@app.command()
def revoke(
    name: Annotated[
        str, typer.Argument(help="Name of a member or an invitation: `tacit server members`.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the database.")] = "",
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """End a membership or an invitation: it is cut off at once."""
    state = open_state(_home(home), create=False)
    control = _running(state)
    if control is not None:
        request = control_pb2.RevokeRequest(name=name, reason=reason)
        with control as stub:
            count = _call(stub.Revoke, request).certificates
    else:
        with _stopped_membership(state) as membership:
            count, _ = membership.revoke(name, reason or "revoked by administrator")
    emit({"name": name, "certificates": count}, json=json)


@app.command()
def drain(home: Home = None, *, json: Json = False) -> None:
    """Begin nothing new: replies are still received, so that the daemon may be stopped."""
    with _need_running(_home(home)) as stub:
        reply = _call(stub.Drain, control_pb2.DrainRequest())
    emit({"state": "draining", "running_runs": reply.running_runs}, json=json)


@app.command()
def stop(
    home: Home = None,
    wait_s: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 60.0,
    *,
    json: Json = False,
) -> None:
    """Stop the daemon without losing anything; runs go on at its next start."""
    path = _home(home)
    with _need_running(path) as stub:
        _call(stub.Stop, control_pb2.StopRequest())
    state = open_state(path, create=False)
    deadline = time.monotonic() + wait_s
    while state.holder() is not None:
        if time.monotonic() > deadline:
            raise UnavailableError(
                "E-SERVER-STOPPING",
                f"expected the daemon to end within {wait_s:g} s; it still finishes uploads",
                hint="Wait a little longer; a second SIGINT to its process skips the waiting.",
            )
        time.sleep(0.05)
    emit({"state": "stopped"}, json=json)


def _home(home: Path | None) -> Path:
    return home or default_home("server")


def _running(state: StateDirectory) -> contextlib.AbstractContextManager[Any] | None:
    """Return a connection to the daemon, or None when it is stopped."""
    return None if state.holder() is None else _connected(state)


@contextlib.contextmanager
def _connected(state: StateDirectory) -> Iterator[Any]:
    with local_channel(state.socket) as channel:
        yield ControlStub(channel)


@contextlib.contextmanager
def _need_running(home: Path) -> Iterator[Any]:
    state = open_state(home, create=False)
    control = _running(state)
    if control is None:
        raise UnavailableError(
            "E-SERVER-STOPPED",
            f"expected a running daemon for {state.path}",
            hint="Start it with `tacit server start`.",
        )
    with control as stub:
        yield stub


def _call(method: Any, request: Any) -> Any:  # noqa: ANN401 - a generated stub
    try:
        return method(request, timeout=_TIMEOUT_S, wait_for_ready=True)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


@contextlib.contextmanager
def _stopped_membership(state: StateDirectory) -> Iterator[Membership]:
    """Work on the members while the daemon is stopped, and keep it from starting meanwhile."""
    config = read_config(state)
    if config.listen.endswith(":0") or config.enrolment_listen.endswith(":0"):
        raise UsageError(
            "E-SERVER-STOPPED",
            "expected a running daemon, since its ports are chosen at each start",
            hint="Start it with `tacit server start`.",
        )
    with state.lock(), open_store(store_location(state, config)) as store:
        authority = Authority.load(state.path / AUTHORITY_FOLDER)
        yield Membership(store, authority, terms_of(config), now=time.time)


def _record(member: control_pb2.Member) -> MemberRecord:
    return MemberRecord(
        **{name: getattr(member, name) for name in MemberRecord.__dataclass_fields__}
    )


def _plain(reply: control_pb2.StatusReply) -> dict[str, object]:
    value = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}
    value["addresses"] = list(reply.addresses)
    value["started_at"] = _when(value.pop("started_at_s"))
    value["certificate_expires_at"] = _when(value.pop("certificate_expires_at_s"))
    value.pop("draining")
    return value


def _when(seconds: float) -> str:
    if not seconds:
        return "-"
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
