"""The help of `training.run`: a short page, true defaults, and fields of the method that is named."""

import re

import pytest

from serving import run as server
from serving.batch import command as batch
from training import lists, run


@pytest.fixture
def page(capsys):
    """The flags and their words that a page of help shows, by flag."""

    def read(command, *args):
        with pytest.raises(SystemExit) as stop:
            command.run(list(args))
        out = capsys.readouterr().out
        assert stop.value.code == 0
        entries = re.split(r"^  (?=--)", out, flags=re.M)[1:]
        return {re.split(r"[,\s]", entry)[0]: " ".join(entry.split()) for entry in entries}

    return read


def test_the_first_page_has_the_common_flags(page):
    assert page(run.COMMAND, "--help").keys() == set(run.COMMON)
    every = page(run.COMMAND, "--help-all")
    assert set(run.COMMON) < every.keys() and {"--blur", "--s4gan.momentum"} < every.keys()
    assert not every.keys() & run.SYNONYMS.keys()


@pytest.mark.parametrize(
    ("command", "least"), [(server.COMMAND, {"--port", "--grpc-port"}), (batch.COMMAND, {"--rank"})]
)
def test_common_flags_of_the_other_commands_exist(page, command, least):
    shown = page(command, "--help")
    assert shown.keys() == set(command.common([])) and least < shown.keys() < page(command, "--help-all").keys()


def test_defaults_are_those_of_the_dataset_and_the_method(page, dataset):
    shapes = page(run.COMMAND, "--help")
    assert "(default: mlmt)" in shapes["--method"] and "(default: 96 96)" in shapes["--crop"]
    photos = page(run.COMMAND, "--dataset", str(dataset), "--help")
    assert "(default: meanteacher)" in photos["--method"] and "(default: auto)" in photos["--size"]
    assert "(default: 1500)" in photos["--steps"] and "(default: 0.0003)" in photos["--learning-rate"]
    assert "_meanteacher_all_seed0)" in photos["--out"]


def test_a_method_that_is_named_shows_its_own_fields(page):
    shown = page(run.COMMAND, "--method", "ecs", "--help").keys() - set(run.COMMON)
    assert "--ecs.class-swap" in shown and {flag.split(".")[0] for flag in shown} == {"--ecs"}
    shared = page(run.COMMAND, "--method=ecs", "--help-all").keys() - shown
    assert {"--ecs.momentum", "--ecs.dice-weight"} <= shared


def test_every_method_is_listed_with_when_to_use_it(capsys):
    with pytest.raises(SystemExit):
        lists.METHOD_LIST.run([])
    entries = capsys.readouterr().out.split("\n\n")
    assert [entry.split(":")[0] for entry in entries] == list(lists.METHODS)
    for entry, method in zip(entries, lists.METHODS.values(), strict=True):
        assert method.when in entry and " ".join(method.about.split()) in " ".join(entry.split())


def test_lists_are_those_of_the_flags(capsys):
    for flag, command in (("--list-recipes", lists.RECIPE_LIST), ("--list-backbones", lists.BACKBONE_LIST)):
        printed = []
        for start in (lambda flag=flag: run.main([flag]), lambda command=command: command.run([])):
            with pytest.raises(SystemExit) as stop:
                start()
            printed.append(capsys.readouterr().out)
            assert stop.value.code == 0
        assert printed[0] == printed[1] and printed[0].count("\n") > 20
