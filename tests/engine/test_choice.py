"""The choice of engine and precision by `precision="auto"` and `--fast`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import openblip
from openblip import bench, processor
from openblip.cli import app
from openblip.cli import options as cli_options
from openblip.engine import choice
from openblip.engine.choice import FASTEST, choose, read_measurement, write_measurement

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    cli_options._print_once.cache_clear()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), "orange").save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["amx", "avx512_bf16", "vnni", "other"])
@pytest.mark.parametrize("openvino", [True, False])
def test_the_class_of_the_processor_decides(monkeypatch: pytest.MonkeyPatch, kind: str, openvino: bool) -> None:
    monkeypatch.setattr(choice, "processor_class", lambda: kind)
    monkeypatch.setattr(choice, "has_openvino", lambda: openvino)
    chosen = choose("auto", "auto", "cpu")
    assert (chosen.engine, chosen.precision) == FASTEST[kind][0 if openvino else 1]
    assert kind in chosen.reason
    assert choose("torch", "auto", "cpu").precision == FASTEST[kind][1][1]
    assert choose("openvino", "auto", "cpu").precision == FASTEST[kind][0][1]
    unchanged = choose("auto", "fp32", "cpu")
    assert (unchanged.engine, unchanged.precision) == ("auto", "fp32")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("sse avx512_bf16 avx512_vnni amx_bf16 amx_int8", "amx"),
        ("sse avx512_bf16 avx512_vnni", "avx512_bf16"),
        ("asimd bf16 i8mm", "avx512_bf16"),
        ("avx2 avx_vnni", "vnni"),
        ("avx2", "other"),
        ("", "other"),
    ],
)
def test_classes_of_processors(monkeypatch: pytest.MonkeyPatch, flags: str, kind: str) -> None:
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
    assert processor.processor_class() == kind


def test_a_measurement_counts_for_its_machine_and_libraries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    write_measurement({"torch:fp32": 1.0, "torch:bf16": 3.0, "openvino:int8": 2.0})
    assert (choose("auto", "auto", "cpu").engine, choose("auto", "auto", "cpu").precision) == ("torch", "bf16")
    assert choose("openvino", "auto", "cpu").precision == "int8"
    assert "doctor" in choose("auto", "auto", "cpu").reason
    monkeypatch.setattr(choice, "processor_name", lambda: "another processor")
    assert read_measurement() is None
    monkeypatch.undo()


def test_a_damaged_measurement_is_ignored(tmp_path: Path) -> None:
    path = write_measurement({"torch:fp32": 1.0})
    path.write_text("{")
    assert read_measurement() is None


def test_auto_loads_the_choice_and_keeps_fp32_by_default(photo: Path) -> None:
    write_measurement({"torch:int8": 2.0})
    blip = openblip.load("pocket", precision="auto", device="cpu")
    assert (blip.engine, blip.precision) == ("torch", "int8")
    default = openblip.load("pocket", device="cpu")
    assert default.precision == "fp32"
    plain = openblip.load("pocket", engine="torch", device="cpu")
    assert default.caption(photo) == plain.caption(photo)
    assert blip.caption(photo).text


def test_fast_prints_the_choice_once(photo: Path) -> None:
    write_measurement({"torch:int8": 2.0})
    result = run("caption", photo, photo, "--fast")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("engine torch, precision int8 (measured by") == 1
    refused = run("caption", photo, "--fast", "--precision", "fp32", "--engine", "torch")
    assert refused.exit_code == 2
    assert "leave out --engine and --precision" in refused.stderr


def test_a_job_does_not_mix_two_choices(photo: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.jpg"
    second.write_bytes(photo.read_bytes())
    out = tmp_path / "captions.jsonl"
    write_measurement({"torch:int8": 2.0})
    assert run("caption", photo, "--fast", "--to", "jsonl", "--out", out).exit_code == 0
    journal = next(path for path in tmp_path.iterdir() if path.name.startswith(out.name) and path != out)
    header = json.loads(journal.read_text().splitlines()[0])
    expected = {"requested": "auto:auto", "engine": "torch", "precision": "int8", "version": openblip.__version__}
    assert header["ran"] == expected

    write_measurement({"torch:fp32": 2.0})
    refused = run("caption", photo, second, "--fast", "--to", "jsonl", "--out", out)
    assert refused.exit_code != 0
    assert "pass --engine torch --precision int8" in refused.stderr
    resumed = run("caption", photo, second, "--engine", "torch", "--precision", "int8", "--to", "jsonl", "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert "1 done before" in resumed.stderr or "1 skipped" in resumed.stderr or "1 written" in resumed.stderr
    assert len(out.read_text().splitlines()) == 2


def test_doctor_measures_and_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TOKENS", 2)
    monkeypatch.setattr(bench, "candidates", lambda: [("torch", "fp32"), ("torch", "int8"), ("torch", "fp64")])
    monkeypatch.setattr(bench, "_time_base", lambda setting, folder: 0.5 if setting[1] == "int8" else 2.0)
    result = run("doctor", "--bench", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["state"] for line in lines] == ["ok", "ok", "missing", "ok"]
    assert "fp64" in lines[2]["detail"]
    measurement = read_measurement()
    assert measurement is not None
    assert measurement.settings.keys() == {"torch:fp32", "torch:int8"}
    assert lines[3]["detail"].startswith("engine ")


def test_no_setting_starts_after_the_time() -> None:
    results = list(bench.measure_settings(seconds=0.0, small=True))
    assert [reason for _, reason in results] == ["no time left after 0 s"] * len(bench.candidates())
