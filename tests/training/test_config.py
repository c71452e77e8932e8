"""Run descriptions: read, overridden, checked, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.training.toy import tree

from equibit.structures import ConfigError
from equibit.training.config import TrainingConfig, config_schema, load_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path)))
    return path


def test_a_file_becomes_a_frozen_configuration(path: Path) -> None:
    config = load_config(path)
    assert config.optimization.epochs == 2
    assert config.network.elements == (1, 8)
    assert config.loss.forces == 1.0
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_a_configuration_survives_the_folder_it_is_kept_in(path: Path) -> None:
    config = load_config(path)
    again = yaml.safe_load(yaml.safe_dump(json.loads(config.model_dump_json())))
    assert TrainingConfig.model_validate(again) == config


def test_overrides_replace_and_add(path: Path) -> None:
    config = load_config(
        path,
        [
            "optimization.epochs=7",
            "optimization.learning_rate=1e-3",
            "loss.kind=mse",
            "data.validation=null",
            "network.elements=[1, 6, 8]",
            "run.output=elsewhere/a=b",
        ],
    )
    assert config.optimization.epochs == 7
    assert config.optimization.learning_rate == 1e-3
    assert config.loss.kind == "mse"
    assert config.network.elements == (1, 6, 8)
    assert config.run.output == Path("elsewhere/a=b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.epoch=3", r"optimization\.epoch: no such key; did you mean epochs\?"),
        ("optimisation.epochs=3", r"optimisation: no such key; did you mean optimization\?"),
        ("run.zzzzz=3", r"run\.zzzzz: no such key$"),
        ("optimization.epochs=0", r"optimization\.epochs: .*greater than or equal to 1"),
        ("optimization.epochs=many", r"optimization\.epochs: .*integer"),
        ("optimization.learning_rate=-1", r"optimization\.learning_rate"),
        ("optimization.ema_decay=1", r"optimization\.ema_decay"),
        ("loss.kind=huber", r"loss\.kind: .*'mae' or 'mse'"),
        ("network.irreps=8x0e+8x1e", "natural parity"),
        ("network.layer=2", r"network\.layer: .*did you mean layers\?"),
        ("network.architecture=nequip", "network.*equivariant_transformer"),
        ("run.device=tpu", r"run\.device"),
        ("data={}", r"data\.dataset: Field required"),
        ("epochs", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("data.dataset.name=x", "dataset is a value, not a section"),
        ("run.seed=[1", "not YAML"),
    ],
)
def test_mistakes_name_the_key(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_all_mistakes_are_named_at_once(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["optimization.epochs=0", "loss.energie=1", "run.threads=0"])
    for key in ("optimization.epochs", "loss.energie", "run.threads", str(path)):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or no mapping"),
        (b"- a\n- b\n", "no mapping"),
        (b"data: [1\n", "not YAML"),
        (b"\xff\xfe\x00garbage", "not YAML"),
        (b"PK\x03\x04\x00\x00", "YAML"),
        (b"data: {dataset: x}\n", "network: Field required"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_config(tmp_path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    marker = tmp_path / "ran"
    path.write_text(f"data: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(path)
    assert not marker.exists()


def test_schema_describes_every_section() -> None:
    schema = json.loads(config_schema())
    assert set(schema["properties"]) == {
        "data",
        "network",
        "start",
        "loss",
        "optimization",
        "run",
    }
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"data", "network"}
    definitions = schema["$defs"]
    assert {"EquivariantTransformerConfig", "So3kratesConfig"} <= set(definitions)
    assert definitions["OptimizationConfig"]["properties"]["epochs"]["minimum"] == 1


def test_shipped_examples_are_valid() -> None:
    import equibit.training.config as module

    examples = sorted((Path(module.__file__).parent / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        assert load_config(example).optimization.epochs >= 1


def test_a_loss_with_nothing_to_learn_is_refused(path: Path) -> None:
    assert load_config(path, ["loss.forces=0"]).loss.energies_alone
    assert not load_config(path, ["loss.energy=0"]).loss.energies_alone
    with pytest.raises(ConfigError, match="there is nothing to learn"):
        load_config(path, ["loss.energy=0", "loss.forces=0"])
