"""What a run sends to other services, by stand-ins for their packages, and what TensorBoard shows of its settings."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from training.callbacks import MetricsLog
from training.trackers import require_installed, trackers

CONFIG = {"method": "s4gan", "seed": 3, "flip": True, "fields": {"s4gan": {"gamma": 0.5}}, "versions": {"keras": "3"}}
SETTINGS = {"method": "s4gan", "seed": 3, "flip": True, "s4gan.gamma": 0.5}
PANELS = np.zeros((2, 4, 16, 3), np.uint8)


def stand_in(monkeypatch, name, **functions):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    """The calls of Weights & Biases."""
    calls = []

    def init(**options):
        calls.append(("init", options))
        run = SimpleNamespace(id=options["id"] or "first")
        run.log = lambda values, step: calls.append(("log", values, step))
        run.finish = lambda exit_code: calls.append(("finish", exit_code))
        return run

    stand_in(monkeypatch, "wandb", init=init, Image=lambda panel: panel.shape)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    """The calls of MLflow."""
    calls = []

    def start_run(run_id, run_name):
        calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "first"))

    def noted(name):
        return lambda *arguments, **options: calls.append((name, *arguments, options))

    functions = {name: noted(name) for name in ("log_params", "log_metrics", "log_image", "end_run")}
    stand_in(monkeypatch, "mlflow", start_run=start_run, **functions)
    return calls


def test_wandb_gets_settings_curves_and_images_and_goes_on_where_the_run_does(tmp_path, wandb):
    with trackers(("wandb",), tmp_path, CONFIG) as [tracker]:
        tracker.log(20, {"L_ce": 0.5})
        tracker.show(20, PANELS)
    named = {"project": "kerasseg", "name": tmp_path.name, "resume": "allow", "dir": str(tmp_path)}
    assert wandb == [
        ("init", named | {"id": None, "config": SETTINGS}),
        ("log", {"L_ce": 0.5}, 20),
        ("log", {"val images": [(4, 16, 3)] * 2}, 20),
        ("finish", 0),
    ]
    with pytest.raises(ValueError, match="no longer finite"), trackers(("wandb",), tmp_path, CONFIG):
        raise ValueError("L_ce is no longer finite")
    assert wandb[4] == ("init", named | {"id": "first", "config": SETTINGS}) and wandb[5] == ("finish", 1)


def test_mlflow_gets_the_same(tmp_path, mlflow):
    for _ in range(2):
        with trackers(("mlflow",), tmp_path, CONFIG) as [tracker]:
            tracker.log(20, {"L_ce": 0.5})
            tracker.show(20, PANELS[:1])
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": "first"}
    assert mlflow[:2] == [
        ("start_run", None, tmp_path.name),
        ("log_params", {name: str(value) for name, value in SETTINGS.items()}, {}),
    ]
    assert mlflow[2] == ("log_metrics", {"L_ce": 0.5}, {"step": 20})
    assert mlflow[3][0] == "log_image" and mlflow[3][2] == {"artifact_file": "val_images/0_step_0000020.png"}
    assert mlflow[4] == ("end_run", {"status": "FINISHED"})
    assert mlflow[5:7] == [("start_run", "first", tmp_path.name), ("log_metrics", {"L_ce": 0.5}, {"step": 20})]


def test_a_service_that_is_missing_or_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--log-to wandb needs the package wandb: pip install wandb"):
        require_installed(("wandb",))

    def init(**options):
        raise RuntimeError("no key:\n log in first")

    stand_in(monkeypatch, "wandb", init=init)
    with pytest.raises(ValueError, match="--log-to wandb: no key: log in first"), trackers(("wandb",), tmp_path, {}):
        pass


def test_tensorboard_has_the_settings_and_the_services_each_line(tmp_path, wandb):
    with trackers(("wandb",), tmp_path, CONFIG) as services:
        log = MetricsLog(tmp_path, 0, last=2, every=1, images_per_step=2, trackers=services)
        log.describe(CONFIG)
        log.set_model(SimpleNamespace(main_optimizer=SimpleNamespace(learning_rate=0.5)))
        log.on_train_batch_end(0, {"L_ce": 2.0})
        log.show(PANELS)
        log.on_train_end()
    sent = next(call for call in wandb if call[0] == "log")
    assert sent[1].keys() == {"learning_rate", "L_ce", "seconds", "images_per_second"}
    assert (sent[1]["learning_rate"], sent[1]["L_ce"], sent[2]) == (0.5, 2.0, 1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [content] = [
        HParamsPluginData.FromString(data)
        for data in events.PluginTagToContent("hparams").values()
        if HParamsPluginData.FromString(data).HasField("session_start_info")
    ]
    found = content.session_start_info.hparams
    assert (found["s4gan.gamma"].number_value, found["flip"].bool_value) == (0.5, True)
    assert found["method"].string_value == "s4gan" and "versions.keras" not in found
