"""The comparisons without their trainings: what is trained when, and what the tables say; and what is timed."""

import asyncio
import dataclasses
import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import comparison, gpu, input_pipeline, serving, step_profile, train_step
from benchmarks.camvid import CAMVID
from benchmarks.comparison import Training
from benchmarks.shapes import SHAPES
from kerasseg.methods.method import SegmenterConfig
from serving.engine import has_gpu
from training.config import RunConfig

MIOU = {"supervised": (0.50, 0.40), "s4gan": (0.51, 0.43), "mlmt": (0.52, 0.44), "unimatch": (0.55, 0.41)}
METHODS = tuple(MIOU)


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """(configuration, the runs that were trained), with a training that only writes what a finished run leaves."""
    trained = []

    def training(command, **_):
        given = dict(zip(command[3::2], command[4::2], strict=True))
        run = Training(given["--method"], given["--labeled"], int(given["--seed"]))
        trained.append(run)
        folder = run.folder(config)
        if run.method == "mlmt":
            s4gan = run._replace(method="s4gan").folder(config)
            assert (s4gan / "model.keras").exists() and given["--branch-run"] == str(s4gan)
        folder.mkdir(parents=True)
        settings = dataclasses.asdict(RunConfig(method=run.method, dataset="camvid", labeled=run.labeled, steps=2))
        branch = "s4gan" if run.method == "mlmt" else run.method
        settings |= {"classes": [], "palette": [], "fields": {branch: dataclasses.asdict(SegmenterConfig())}}
        settings |= {"split_fingerprint": "f", "commit": "c", "machine": "m", "versions": {}, "finished": True}
        settings |= {"command": f"python -m training.run --dataset {config.dataset}"}
        score = MIOU[run.method][run.seed] + (0.1 if run.labeled == "all" else 0)
        result = {"mIoU": score, "without_gate": {"mIoU": MIOU["s4gan"][run.seed]}, "seconds": 9.0}
        (folder / "config.json").write_text(json.dumps(settings, default=str))
        (folder / "result.json").write_text(json.dumps(result))
        found = {"error_detection_auc": 0.75 + 0.125 * run.seed, "expected_calibration_error": 0.1, "bins": []}
        confidence = {"softmax": found} | ({"critic": found} if run.method == "s4gan" else {})
        (folder / "diagnostics.json").write_text(json.dumps({"confidence": confidence}))
        (folder / "model.keras").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(comparison.subprocess, "run", training)
    results = tmp_path / "camvid.md"
    results.write_text("before\n<!-- table -->\nan earlier table\n<!-- end of table -->\nafter\n")
    config = dataclasses.replace(
        CAMVID,
        dataset=str(tmp_path / "camvid"),
        weights=tmp_path / "w.h5",
        runs=tmp_path / "runs",
        results=results,
        seeds=(0, 1),
        methods=METHODS,
        more_labels=("all",),
    )
    return config, trained


def test_the_tables_compare_with_supervised_by_seed_and_with_more_labels(benchmark):
    config, _ = benchmark
    assert comparison.main(config)["s4gan"] == pytest.approx(47)
    text = config.results.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "earlier" not in text
    assert "| s4gan | 51.0 | 43.0 | 47.0 | 5.7 | +1.0 +3.0 (mean +2.0) | 9 |" in text
    assert "| mlmt (gate on) | 52.0 | 44.0 | 48.0 | 5.7 | +2.0 +4.0 (mean +3.0) | 9 |" in text
    assert (
        "| 12 pictures | 50.0 | 40.0 | 45.0 | 7.1 |" in text and "| 367 pictures | 60.0 | 50.0 | 55.0 | 7.1 |" in text
    )
    assert "| s4gan | 0.750, 0.750 | 0.875, 0.875 |" in text
    assert text.count("0.750") == 2, "of the others there is no critic"
    assert config.dataset not in text
    assert "--dataset DATASET --weights WEIGHTS" in text and "(camvid.svg)" in text
    drawn = config.results.with_suffix(".svg").read_text()
    for word in ("unimatch", "labelled pictures (all but supervised: 12, side by side)", "367"):
        assert f"<!-- {word} -->" in drawn  # so matplotlib notes a text that it draws as paths


def test_the_tables_say_which_runs_are_to_come(benchmark, monkeypatch):
    config, _ = benchmark
    comparison.main(config)
    for path in (Training("s4gan", "12", 1).kept(config), Training("unimatch", "12", 0).kept(config)):
        path.unlink()
    for seed in config.seeds:
        Training("mlmt", "12", seed).kept(config).unlink()
    assert comparison.write_results(config).keys() == {"supervised", "s4gan", "unimatch"}
    text = config.results.read_text()
    assert "| s4gan | 0.750, 0.750 | - |" in text
    assert "| s4gan | 51.0 | - | 51.0 | - | +1.0 (mean +1.0) | 9 |" in text
    assert "| unimatch | - | 41.0 | 41.0 | - | +1.0 (mean +1.0) | 9 |" in text
    assert "mlmt" not in text.partition("```")[0]


def test_kept_scores_stand_for_runs_that_are_gone(benchmark):
    config, trained = benchmark
    comparison.main(config)
    expected = [(method, "12", seed) for method in METHODS for seed in (0, 1)]
    assert sorted(trained) == sorted(expected + [("supervised", "all", seed) for seed in (0, 1)])
    kept = Training("supervised", "12", 1).kept(config).read_text()
    assert json.loads(kept)["result"]["mIoU"] == 0.40 and config.dataset not in kept

    config.runs.rename(config.runs.with_name("gone"))
    trained.clear()
    comparison.main(config)
    assert trained == []

    # The classifier of mlmt needs the segmenter of s4gan, not only its score.
    Training("mlmt", "12", 1).kept(config).unlink()
    comparison.main(config)
    assert trained == [("s4gan", "12", 1), ("mlmt", "12", 1)]


@pytest.mark.parametrize("name", ["backbone", "learning_rate"])
def test_scores_of_methods_with_other_segmenters_are_refused(benchmark, name):
    config, _ = benchmark
    comparison.main(config)
    for seed in config.seeds:
        path = Training("supervised", "12", seed).kept(config)
        kept = json.loads(path.read_text())
        (kept["settings"] if name == "backbone" else kept["settings"]["fields"]["supervised"])[name] = "another"
        path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=f"supervised and s4gan differ in {name}: delete"):
        comparison.main(config)


def test_scores_of_other_settings_are_refused(benchmark):
    config, _ = benchmark
    comparison.main(config)
    path = Training("s4gan", "12", 1).kept(config)
    path.write_text(path.read_text().replace('"steps": 2,', '"steps": 3,'))
    with pytest.raises(ValueError, match="s4gan with seeds 0 and 1 differ in steps: delete"):
        comparison.main(config)


def test_a_run_that_was_stopped_is_resumed(benchmark, monkeypatch):
    config, _ = benchmark
    run = Training("supervised", "12", 0)
    folder = run.folder(config)
    folder.mkdir(parents=True)
    settings = {"method": "", "dataset": "", "steps": 2, "classes": [], "palette": [], "split_fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(settings))
    commands = []

    def stopped(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 130)

    monkeypatch.setattr(comparison.subprocess, "run", stopped)
    with pytest.raises(ValueError, match="exit status 130"):
        comparison.train(config, run, [0])
    assert commands[0][-1] == "--resume"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"methods": ("supervised", "mlmt")}, "give --methods s4gan too"),
        ({"methods": ("supervised", "cutmix")}, "--methods must be of supervised, .*; got cutmix"),
        ({"more_labels": ("12",)}, "further ones than the 12"),
    ],
)
def test_impossible_requests(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CAMVID, **fields)


def test_shapes_needs_no_data():
    assert SHAPES.data_flags == {"--dataset": "shapes"}
    assert SHAPES.count(SHAPES.labeled) / SHAPES.count("all") == 1 / 8


def test_both_input_pipelines_give_the_same_kind_of_batch(tmp_path):
    """As far as it goes without PyTorch: its side of the work is Pillow's and NumPy's."""
    kilobytes = input_pipeline.make_pictures(tmp_path / "pictures", 3)
    assert 70 < kilobytes < 120
    images, labels = next(input_pipeline.kerasseg_batches(tmp_path / "pictures", 3, 0))
    input_pipeline.check(np.asarray(images), np.asarray(labels), 3)
    theirs = input_pipeline.TorchPictures(tmp_path / "pictures", seed=0)
    images_BCHW, labels = (np.stack(parts) for parts in zip(*(theirs[i] for i in range(len(theirs))), strict=True))
    images = images_BCHW.transpose(0, 2, 3, 1)
    input_pipeline.check(images, labels, 3)
    with pytest.raises(ValueError, match="do not do the same: range of images"):
        input_pipeline.check(images / 255, labels, 3)


@pytest.mark.parametrize("name", train_step.PASSES)
def test_the_floor_has_the_passes_of_the_step(name, eager):
    import tensorflow as tf

    from kerasseg.methods import METHODS
    from tests.methods import tiny

    critics = {
        "advsemiseg": lambda: tiny.pixel_discriminator(),
        "s4gan": lambda: tiny.discriminator(),
        "ecs": lambda: tiny.judge(tiny.K + 1, "corrector"),
    }
    method = METHODS[name](tiny.segmenter(), *(critic() for key, critic in critics.items() if key == name))
    method.compile()
    config = train_step.TrainStep(methods=(name,), crop=(8, 9), labeled=2, unlabeled=3, classes=tiny.K)
    x, y = train_step.make_batch(config)
    sizes: dict[str, list[int]] = {network: [] for network in method.network_names}
    for network in method.network_names:
        call = getattr(method, network).call

        def counted(inputs, *args, call=call, counts=sizes[network], **kwargs):
            counts.append(len(tf.nest.flatten(inputs)[0]))
            return call(inputs, *args, **kwargs)

        getattr(method, network).call = counted
    method.update(tiny.tensors(x, y))

    count = {"labeled": 2, "unlabeled": 3}
    passes = train_step.PASSES[name]
    assert sizes == {network: [sum(map(count.get, each.batches)) for each in passes[network]] for network in passes}


def test_the_floor_runs_forward_and_both_ways_back():
    from tests.methods import tiny

    network = tiny.judge(tiny.K + 1, "corrector")
    config = train_step.TrainStep(crop=(4, 5), classes=tiny.K)
    x, _ = train_step.make_batch(config)
    both = train_step.Pass(("labeled", "unlabeled"), weights=True, segmentation=True)
    forward, by_weights, by_segmentation, forward_alone = train_step.network_passes(
        network, x, [both, train_step.Pass(("labeled",))]
    )()
    assert forward[0].shape == (4, 4, 5, tiny.K + 1) and forward_alone[0].shape == (2, 4, 5, tiny.K + 1)
    assert [gradient.shape for gradient in by_weights] == [weight.shape for weight in network.trainable_variables]
    assert by_segmentation.shape == (4, 4, 5, tiny.K) and np.abs(by_segmentation).min() > 0


def test_sides_that_do_not_do_the_same_are_refused():
    side = {"parameters": {"segmenter": 7}, "shape": [1, 2], "losses": {"L_ce": 3.0, "L_ecs": 0.1}}
    train_step.check(side, side | {"losses": {"L_ce": 4.0, "L_ecs": 2.0}})
    for change, message in (
        ({"parameters": {"segmenter": 8}}, "do the same: parameters"),
        ({"shape": [1, 3]}, "do the same: shape"),
        ({"losses": {"L_ce": 3.0}}, "not have the same losses"),
        ({"losses": {"L_ce": 9.0, "L_ecs": 0.1}}, "begin alike: L_ce is 3 and 9"),
        ({"losses": {"L_ce": 3.0, "L_ecs": float("nan")}}, "begin alike: L_ecs"),
    ):
        with pytest.raises(ValueError, match=message):
            train_step.check(side, side | change)
    with pytest.raises(ValueError, match="--methods must be of supervised, .*; got mlmt"):
        train_step.TrainStep(methods=("mlmt",))


NO_TORCH = "PyTorch, of the extra `bench`, is not installed"


def test_the_discriminators_of_both_sides_have_as_many_parameters():
    pytest.importorskip("torch", reason=NO_TORCH)
    from benchmarks.pytorch_networks import ImageDiscriminator, PixelDiscriminator
    from kerasseg.critics import build_image_discriminator, build_pixel_discriminator

    for build, theirs in (
        (build_pixel_discriminator, PixelDiscriminator),
        (build_image_discriminator, ImageDiscriminator),
    ):
        count = sum(parameter.numel() for parameter in theirs(5, channels=4).parameters())
        assert build(5, channels=4).count_params() == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, method", [("deeplab_v3plus-mobilenet_v2", "s4gan"), ("deeplab_v2-resnet50", "ecs")], ids=str
)
def test_both_sides_of_a_training_step_do_the_same(network, method, eager):
    pytest.importorskip("torch", reason=NO_TORCH)
    config = train_step.TrainStep(networks=(network,), methods=(method,), crop=(33, 49), cores=1)
    sides = []
    for make in (train_step.kerasseg_run, train_step.pytorch_run):
        facts, run = make(config)
        sides.append(facts | {"losses": run(1)})
    train_step.check(*sides)


def test_answers_before_and_after_a_turn_are_not_counted():
    """With many requests at a time those under way at its ends would make a server look faster than it is."""

    async def answer(reader, writer):
        for delay in (0.0, 1.5, 1.5):
            if not await reader.readline():
                break
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(delay)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def replies(seconds):
        port = serving.free_port()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            counted = await serving.closed_loop(
                port, [serving.post("/", b"")], concurrency=8, seconds=seconds, lead=0.75
            )
            await asyncio.sleep(0.2)  # until both ends are closed
            return counted

    # Each client is answered at 0, at 1.5 and at 3 s; the turn is from 0.75 to 2.25 s.
    assert [reply.status for reply in asyncio.run(replies(1.5))] == [200] * 8
    assert len(asyncio.run(replies(0.1))) == 1


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_the_benchmark_of_a_gpu_says_that_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="an NVIDIA GPU, and none can be used here"):
        gpu.main(gpu.Gpu(models=tmp_path))


def test_the_profile_counts_the_operations_of_tensorflow(tmp_path):
    multiply = tf.function(lambda x: x @ x)
    multiply(tf.ones((256, 256)))
    with tf.profiler.experimental.Profile(str(tmp_path)):
        for _ in range(3):
            multiply(tf.ones((256, 256)))
    milliseconds = [taken for kind, taken in step_profile.operations(tmp_path) if kind in ("MatMul", "_MklMatMul")]
    assert len(milliseconds) == 3
    assert 0 < min(milliseconds) <= max(milliseconds) < 1000
