"""`embodied serve` as a process: ready, asked, told to swap and to end; and each mistake as one line."""

import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from lerobot_checkpoints import save_checkpoint
from test_commands import embodied
from toy_policies import SDP, TINY, toy_policy
from toy_specs import toy_spec

from embodied.client import PolicyClient, PolicyServerError
from embodied.commands import serve
from embodied.commands.served_checkpoint import load_checkpoint
from embodied.configuration import check
from embodied.errors import UserError
from embodied.policies.lerobot_policy import LeRobotPolicy
from embodied.policies.policy_file import PolicyDescription, save_policy
from embodied.serving.access import TokenBucket, check_exposure
from embodied.serving.metrics import ServingMetrics
from embodied.serving.observation_reader import range_limits
from embodied.serving.tls import server_context
from embodied.types import Observation

SETTINGS = {**SDP, "history": 1}


def checkpoint(folder: Path, seed=0, highest=1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    policy = toy_policy(SETTINGS, seed=seed)
    limits = {"mean": [0, 0], "std": [1, 1], "minimum": [-1, -1], "maximum": [highest, highest], "count": 9}
    statistics = {"state/point": limits, "state/goal": limits}
    save_policy(folder, policy, PolicyDescription(toy_spec(), SETTINGS, TINY, {}, statistics, 0, {}))
    return folder


def message(value=0.0):
    return {"state/point": np.full(2, value, np.float32), "state/goal": np.zeros(2, np.float32), "deadline_s": 10.0}


class Served:
    """The process and its address."""

    def __init__(self, process):
        self.process, self.lines = process, []
        self.address = process.stdout.readline().strip().rpartition(" ")[2]

    def log(self, event):
        """Wait for the line with this event."""
        while line := self.process.stderr.readline():
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no {event} in {self.lines}")


@contextmanager
def serving(folder, *words, **environment):
    command = [sys.executable, "-m", "embodied", "serve", str(folder), "port=0", "drain_s=0.5", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, env=os.environ | environment)
    try:
        yield Served(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def test_a_server_serves_swaps_and_ends_as_it_is_told(tmp_path):
    folder = checkpoint(tmp_path / "policy")
    with serving(folder, http_proxy="http://127.0.0.1:9") as server:
        client = PolicyClient(server.address)
        before = client.infer(message())
        assert server.log("ready")["policy"] == "sdp k=2"
        assert "no_proxy=127.0.0.1,localhost" in server.lines[0]["event"]
        checkpoint(folder, seed=1)
        server.process.send_signal(signal.SIGHUP)
        swapped = server.log("swapped")
        after = client.infer(message())
        assert (before["episode"], after["episode"]) == (1, 1) and after["asked_s"] == pytest.approx(0.4)
        assert after["policy"] == swapped["weights"] != before["policy"]
        (folder / "policy.safetensors").write_bytes(b"damaged")
        server.process.send_signal(signal.SIGHUP)
        assert "weights in" in server.log("the checkpoint stays")["why"]
        assert client.infer(message())["policy"] == after["policy"]
        server.process.terminate()
        assert server.log("draining")["sessions"] == 1
        with pytest.raises(PolicyServerError, match="1001"):
            while True:
                client.infer(message())
                time.sleep(0.1)
        server.log("ended")
        assert server.process.wait(20) == 0


def test_a_swapped_checkpoint_brings_the_range_of_its_own_training_data(tmp_path):
    folder = checkpoint(tmp_path / "policy")
    config = check("serve", [f"run={folder}", "port=0", "lerobot.on=true", "lerobot.port=0", "range_margin=1.0"])
    present = load_checkpoint(config)
    server = serve._server(config, present, None, None, None)
    readers = [server.reader, serve._lerobot(config, server, present, None).reader]
    robots = [message(4.0), {"observation.state": np.array([4.0, 4.0, 0.0, 0.0])}]
    server.start(present.warm_up_observation())
    try:
        for reader, observation in zip(readers, robots, strict=True):
            with pytest.raises(UserError, match="between -3 and 3"):
                reader.read(observation)
        checkpoint(folder, seed=1, highest=3)
        newest = serve._swapped(config, server, readers, present)
        assert server.sessions.weights == newest.weights != present.weights
        for reader, observation in zip(readers, robots, strict=True):
            assert reader.read(observation).state["point"].tolist() == [4.0, 4.0]
        checkpoint(folder, seed=2, highest=1)
        serve._swapped(config, server, readers, newest)
        for reader, observation in zip(readers, robots, strict=True):
            with pytest.raises(UserError, match="between -3 and 3"):
                reader.read(observation)
    finally:
        server.drain(0.0)


def test_lerobots_clients_are_served_beside_openpis_on_the_same_sessions(tmp_path):
    from lerobot_client import Client as LeRobotClient

    folder = checkpoint(tmp_path / "policy")
    with serving(folder, "lerobot.on=true", "lerobot.port=0", EMBODIED_API_KEY="secret") as server:
        lerobot_port = int(server.process.stdout.readline().rpartition(":")[2])
        with LeRobotClient(lerobot_port, (("authorization", "Api-Key secret"),)) as client:
            client.begin()
            client.send(1000.0, 0, must_go=True, **dict.fromkeys(("x.pos", "y.pos"), 0.0))
            found = [action.action.tolist() for action in client.actions()]
        with LeRobotClient(lerobot_port) as stranger, pytest.raises(grpc.RpcError, match="Api-Key"):
            stranger.begin()
        expected = PolicyClient(server.address, api_key="secret").infer({**message(), "reset": True})["actions"]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg="`Ready` began the second episode too")
        server.process.terminate()
        server.log("ended")
        assert server.process.wait(20) == 0


def test_a_lerobot_port_in_use_ends_the_server_with_one_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [str(checkpoint(tmp_path / "policy")), "port=0", "drain_s=0", "lerobot.on=true", f"lerobot.port={port}"]
        status, _, printed = embodied(capsys, "serve", *words)
    assert status == 2 and f"127.0.0.1:{port} to be free" in printed and "Traceback" not in printed


def test_without_grpc_the_lerobot_side_is_one_readable_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "embodied.serving.lerobot_grpc", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    words = [str(checkpoint(tmp_path / "policy")), "port=0", "lerobot.on=true"]
    status, _, printed = embodied(capsys, "serve", *words)
    assert status == 2 and "grpcio and protobuf, for lerobot.on=true" in printed
    assert "pip install 'embodied-policies[grpc]'" in printed and "Traceback" not in printed


@pytest.fixture(scope="module")
def lerobot_folder(tmp_path_factory):
    """An ACT checkpoint with random weights, as LeRobot saves it."""
    from lerobot.policies.act.configuration_act import ACTConfig

    folder = tmp_path_factory.mktemp("lerobot") / "pretrained_model"
    sizes = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1, "latent_dim": 4}
    save_checkpoint(folder, ACTConfig(chunk_size=4, n_action_steps=4, n_vae_encoder_layers=1, **sizes))
    return folder


OF_LEROBOT = ["lerobot_checkpoint.observation=[point]", "lerobot_checkpoint.environment_state=[goal]"]


def test_a_lerobot_checkpoint_is_served_by_the_spec_of_a_file(tmp_path, lerobot_folder):
    spec = tmp_path / "robot.json"
    spec.write_text(json.dumps(toy_spec().to_json()))
    with serving(lerobot_folder, f"lerobot_checkpoint.spec={spec}", *OF_LEROBOT) as server:
        client = PolicyClient(server.address)
        assert client.metadata["policy"] == "lerobot act" and client.metadata["action_steps"] == 4
        found = client.infer(message(0.5))["actions"]
    policy = LeRobotPolicy(toy_spec(), lerobot_folder, observation=["point"], environment_state=["goal"])
    seen = Observation({"point": np.full(2, 0.5, np.float32), "goal": np.zeros(2, np.float32)})
    (chunk,), _ = policy.step([[seen]], [policy.initial_state(0)], [0])
    np.testing.assert_allclose(found, chunk.actions, atol=1e-5)


LEROBOT_MISTAKES = {
    "no spec": ([], "the robot's spec for a LeRobot checkpoint, which does not say it; found none; add task="),
    "two": (["lerobot_checkpoint.spec=a.json", "task=robosuite/lift"], "found lerobot_checkpoint.spec and task= both"),
    "no file": (["lerobot_checkpoint.spec=a.json"], "a task's spec as JSON in a.json; found none that can be read"),
    "settings": (["policy.k=2"], "no policy settings for a LeRobot checkpoint"),
}


@pytest.mark.parametrize("name", LEROBOT_MISTAKES)
def test_a_lerobot_checkpoint_that_cannot_be_served_is_one_line(name, capsys, lerobot_folder):
    words, expected = LEROBOT_MISTAKES[name]
    status, _, printed = embodied(capsys, "serve", lerobot_folder, *words)
    assert status == 2 and expected in printed and "Traceback" not in printed


MISTAKES = {
    "lerobot": (["lerobot.on=perhaps"], "true or false for lerobot.on; found lerobot.on=perhaps"),
    "lerobot port": (["lerobot.on=true", "lerobot.port=-1"], "lerobot.port between 0 and 65535; found -1"),
    "lerobot limit": (["lerobot.poll_s=0"], "lerobot.poll_s above 0; found 0"),
    "lerobot keys": (["lerobot.on=true", "lerobot.keys={state/pint: a}", "port=0"], "found 'state/pint'"),
    "task": (["task=robosuite/lift"], "a LeRobot checkpoint with task= or lerobot_checkpoint.spec="),
    "no checkpoint": (["nowhere"], "a checkpoint in nowhere; found no such folder"),
    "public": (["host=0.0.0.0"], "an API key for the public address 0.0.0.0; found none in EMBODIED_API_KEY"),
    "refusals": (["refusals=no"], "refusals answer or text; found no"),
    "limit": (["listening.rate_limit=0"], "listening.rate_limit above 0; found 0"),
    "drain": (["drain_s=-1"], "drain_s of 0 or more; found -1; set drain_s"),
    "margin": (["range_margin=-1"], "range_margin of 0 or more; found -1; set range_margin"),
    "port": (["port=70000"], "port between 0 and 65535; found 70000"),
    "key alone": (["tls.key=a.pem"], "tls.certificate and tls.key together; found tls.key alone"),
    "no certificate": (["tls.key=a.pem", "tls.certificate=b.pem"], "the file b.pem; found none"),
    "keys": (["observation_keys={state/pint: a}"], "found 'state/pint'; did you mean 'state/point'"),
    "host": (["host=127.0.0.300", "allow_anybody=true"], "to listen on 127.0.0.300, port 8000; found"),
    "engine": (["policy.engine=onnx"], "the name of an engine; found 'onnx'"),
    "device": (["device=tpu"], "device cpu or cuda; found tpu"),
    "device without numbers": (["device=meta"], "device cpu or cuda; found meta"),
    "no such device": (["device=cuda:99"], "a CUDA device for device=cuda:99; found"),
}


def test_no_time_to_drain_and_no_margin_are_allowed():
    serve.check(check("serve", ["run=policy", "drain_s=0", "range_margin=0"]))
    unchecked = check("serve", ["run=policy", "range_margin=inf"])
    serve.check(unchecked)
    seen = {"state/point": {"minimum": [0.0, 1.0], "maximum": [1.0, 1.0]}}
    ((low, high),) = range_limits(toy_spec(), seen, unchecked.range_margin).values()
    assert (low == -np.inf).all() and (high == np.inf).all()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("EMBODIED_API_KEY", raising=False)
    words, expected = MISTAKES[name]
    if words[0] != "nowhere":
        words = [str(checkpoint(tmp_path / "policy")), *words]
    status, _, printed = embodied(capsys, "serve", *words)
    assert status == 2 and expected in printed and "Traceback" not in printed


def test_damaged_weights_are_one_line(capsys, tmp_path):
    folder = checkpoint(tmp_path / "policy")
    (folder / "policy.safetensors").write_bytes(b"damaged")
    status, _, printed = embodied(capsys, "serve", str(folder))
    assert status == 2 and "that fit policy.json" in printed


def test_settings_that_no_policy_can_be_made_of_are_one_line(capsys, tmp_path):
    folder = checkpoint(tmp_path / "policy")
    described = json.loads((folder / "policy.json").read_text())
    described["network"]["width"] = None
    (folder / "policy.json").write_text(json.dumps(described))
    status, _, printed = embodied(capsys, "serve", str(folder))
    assert status == 2 and "policy.json that a policy can be made of" in printed and "Traceback" not in printed


def test_a_swap_that_fails_in_an_unforeseen_way_leaves_the_present_checkpoint(tmp_path, monkeypatch):
    metrics = ServingMetrics()
    server = SimpleNamespace(sessions=SimpleNamespace(metrics=metrics))
    config, present = check("serve", [f"run={checkpoint(tmp_path / 'policy')}"]), object()
    for error in (FileNotFoundError("pruned meanwhile"), MemoryError("too large")):
        monkeypatch.setattr(serve, "load_checkpoint", Mock(side_effect=error))
        assert serve._swapped(config, server, [], present) is present
    assert 'embodied_checkpoint_swaps_total{outcome="refused"} 2.0' in metrics.text().decode()


PROXIES = {
    "upper case": ({"HTTP_PROXY": "http://127.0.0.1:9"}, True),
    "of websockets alone": ({"ws_proxy": "http://127.0.0.1:9"}, True),
    "for others": ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "10.127.0.0.1"}, True),
    "not for this machine": ({"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "localhost,127.0.0.1"}, False),
    "for nobody": ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "*"}, False),
    "none": ({"no_proxy": "localhost"}, False),
}


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_would_stand_before_this_machine_is_said(name, monkeypatch):
    environment, is_said = PROXIES[name]
    for variable in [variable for variable in os.environ if variable.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    warning = Mock()
    monkeypatch.setattr(serve.LOG, "warning", warning)
    serve._hint_at_proxies()
    assert warning.called is is_said


def certificate(folder, *, days_from, days_to, name="server"):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days_from))
        .not_valid_after(now + datetime.timedelta(days=days_to))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return files


def test_a_certificate_that_is_not_valid_is_refused_before_anybody_connects(tmp_path):
    with pytest.raises(UserError, match="that is valid now; found certificate has expired; renew it"):
        server_context(*certificate(tmp_path, days_from=-2, days_to=-1))
    with pytest.raises(UserError, match="that is valid now; found certificate is not yet valid"):
        server_context(*certificate(tmp_path, days_from=1, days_to=2))
    one = certificate(tmp_path, days_from=-1, days_to=1, name="one")
    other = certificate(tmp_path, days_from=-1, days_to=1, name="other")
    with pytest.raises(UserError, match="a certificate and its own private key"):
        server_context(one[0], other[1])
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(UserError, match="a certificate and its own private key"):
        server_context(tmp_path / "text.pem", one[1])


def test_robots_speak_through_tls_and_see_whom_they_speak_to(tmp_path):
    from serving_policies import TellingPolicy
    from test_policy_server import served
    from websockets.sync.client import connect

    from embodied import wire

    files = certificate(tmp_path, days_from=-1, days_to=1)
    with served(TellingPolicy(), host="localhost", tls=server_context(*files)) as server:
        address = server.address.replace("127.0.0.1", "localhost").replace("[::1]", "localhost")
        assert address.startswith("wss://")
        trust = ssl.create_default_context(cafile=files[0])
        with connect(address, ssl=trust, proxy=None) as connection:
            connection.recv(timeout=10)
            connection.send(wire.pack(message()))
            assert wire.unpack(connection.recv(timeout=10))["actions"].shape == (4, 3)
        client = PolicyClient(address, ca_file=files[0])
        assert client.infer(message())["actions"].shape == (4, 3)
        client.close()
        with pytest.raises(PolicyServerError, match="a certificate of wss:.* trusted here; found self.signed.*ca_file"):
            PolicyClient(address)
        other = certificate(tmp_path, days_from=-1, days_to=1, name="other")
        with pytest.raises(PolicyServerError, match="a certificate of wss:.* that is trusted here"):
            PolicyClient(address, ca_file=other[0])


def test_a_file_of_certificates_that_is_none_is_named(tmp_path):
    (tmp_path / "text.pem").write_text("no certificate")
    for file, found in (("absent.pem", "No such file"), ("text.pem", "")):
        with pytest.raises(UserError, match=f"certificates in PEM form in .*{file}; found .*{found}"):
            PolicyClient("wss://localhost:1", ca_file=tmp_path / file)
    with pytest.raises(UserError, match="a wss:// address with ca_file; found 'ws://localhost:1'"):
        PolicyClient("ws://localhost:1", ca_file=tmp_path / "text.pem")


def test_an_expired_certificate_is_one_line_for_the_robot(tmp_path):
    from serving_policies import TellingPolicy
    from test_policy_server import served

    files = certificate(tmp_path, days_from=-2, days_to=-1)
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # `server_context` refuses it
    unchecked.load_cert_chain(*files)
    with served(TellingPolicy(), host="localhost", tls=unchecked) as server:
        address = server.address.replace("127.0.0.1", "localhost").replace("[::1]", "localhost")
        with pytest.raises(PolicyServerError, match="found certificate has expired; .*must be renewed"):
            PolicyClient(address, ca_file=files[0])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "robot.local"])
def test_a_public_address_needs_a_key(host):
    with pytest.raises(UserError, match=f"an API key for the public address {host}"):
        check_exposure(host, None, False)
    check_exposure(host, "key", False)
    check_exposure(host, None, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    check_exposure(host, None, False)


def test_a_rate_limit_lets_bursts_through_and_no_lasting_excess():
    bucket = TokenBucket(10.0, burst_s=0.5)
    assert [bucket.take(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert sum(bucket.take(0.01 * step) for step in range(1, 1001)) == pytest.approx(100, abs=1)
