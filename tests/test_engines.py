"""Engines: each gives the plain model's logits; the fastest that agrees is chosen, said, remembered and used."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import tiny_run, vitrail
from PIL import Image
from rows import Row
from test_models import FAMILIES, difference, randomise, tiny
from torch import Tensor, nn

from vitrail import optimize
from vitrail.engines import bf16x3, choose, eager, inductor, onnxruntime, openvino, torchao
from vitrail.engines.engine import Engine, Precision, cache_folder, version
from vitrail.errors import UserError

ALLOWED = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.3}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))


def images(count: int = 4, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def toy(row: Row) -> nn.Module:
    return randomise(tiny(row)).eval().requires_grad_(False)


# ---------------------------------------------------------------------- each engine beside the plain model


def assert_gives_the_models_logits(engine: Engine, precision: Precision, row: Row) -> None:
    if missing := engine.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    if why := engine.obstacle():
        pytest.skip(why)
    model, batch = toy(row), images(2, row.side)
    with torch.no_grad():
        expected = model(batch)
    forward = engine.build(copy.deepcopy(model), batch, 2, precision)
    for _ in range(2):
        found = forward(batch)
        assert found.dtype == torch.float32
        assert difference(found, expected) < ALLOWED[precision]


QUICK = [(eager.ENGINE, "bf16"), (openvino.ENGINE, "fp32"), (openvino.ENGINE, "bf16"), (onnxruntime.ENGINE, "fp32")]
LONG = [
    (inductor.ENGINE, "fp32"),
    (inductor.ENGINE, "bf16"),
    (bf16x3.ENGINE, "fp32"),
    (onnxruntime.ENGINE, "int8"),
    (openvino.INT8, "int8"),
    (torchao.ENGINE, "int8"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("engine", "precision"), QUICK)
def test_an_engine_gives_the_models_logits(engine: Engine, precision: Precision) -> None:
    assert_gives_the_models_logits(engine, precision, FAMILIES["vit"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["vit", "swin", "resnet_cifar"])
@pytest.mark.parametrize(("engine", "precision"), LONG)
def test_an_engine_that_compiles_gives_the_models_logits(engine: Engine, precision: Precision, family: str) -> None:
    assert_gives_the_models_logits(engine, precision, FAMILIES[family])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", FAMILIES.values(), ids=lambda row: row.name)
def test_openvino_runs_every_family(row: Row) -> None:
    assert_gives_the_models_logits(openvino.ENGINE, "fp32", row)


@pytest.mark.parametrize("shape", [(197, 64, 96), (5, 40, 50), (1, 3, 1), (70, 33, 31)])
def test_three_bfloat16_products_make_a_float32_one(shape: tuple[int, int, int]) -> None:
    if why := bf16x3.obstacle():
        pytest.skip(why)
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    plain, x = nn.Linear(inputs, outputs).requires_grad_(False), torch.randn(2, rows, inputs)
    assert difference(bf16x3.Linear(plain)(x), plain(x)) < 2e-5
    strided = torch.randn(inputs, rows).t()
    assert difference(bf16x3.Linear(plain)(strided), plain(strided)) < 2e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 197, 64), (5, 40), (1, 3, 4, 1)])
def test_a_packed_linear_layer_is_the_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    torch.manual_seed(0)
    plain = nn.Linear(shape[-1], 48, bias=bias).requires_grad_(False)
    packed = inductor.Packed(plain)
    x = torch.randn(shape)
    assert packed(x).shape == (*shape[:-1], 48)
    assert difference(packed(x), plain(x)) < 1e-6
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    assert difference(packed(strided), plain(strided)) < 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["vit", "resnet_cifar"])
def test_int8_leaves_what_meets_pixels_and_what_gives_logits(family: str) -> None:
    if missing := openvino.INT8.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    row = FAMILIES[family]
    batch = images(2, row.side)
    graph = openvino.imported("openvino").convert_model(toy(row), example_input=batch, input=[list(batch.shape)])
    products = [
        any(side.get_source_output().get_node().get_type_name() == "FakeQuantize" for side in operator.inputs())
        for operator in openvino.quantised(graph, batch, 2).get_ordered_ops()
        if operator.get_type_name() in ("Convolution", "MatMul")
    ]
    assert not products[0]
    assert not products[-1]
    assert sum(products) >= 0.5 * len(products)


REPORTING = """
import importlib, sys, torch
from vitrail.engines import openvino
openvino.build(torch.nn.Conv2d(3, 4, 3), torch.randn(4, 3, 8, 8), 2, "int8")
assert "openvino_telemetry" not in sys.modules
importlib.import_module("openvino_telemetry")
assert openvino.imported("openvino").__name__ == "openvino"
assert "openvino_telemetry" in sys.modules
"""


def test_openvino_reports_nothing_to_anybody() -> None:
    if missing := [*openvino.INT8.missing(), *(["openvino-telemetry"] if not version("openvino-telemetry") else [])]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPORTING],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- the choice


class Slow(nn.Module):
    """A model that takes 5 ms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 4 * 4, 5)

    def forward(self, batch: Tensor) -> Tensor:
        time.sleep(0.005)
        return self.head(batch.flatten(1))


def small(count: int = 6) -> Tensor:
    return images(count, 4)


def fake(
    name: str,
    seconds: float = 0.0,
    harm: Callable[[Tensor], Tensor] = lambda logits: logits,
    precision: Precision = "fp32",
    packages: tuple[str, ...] = (),
) -> Engine:
    """An engine that takes so long and does that to the logits; it counts how often it is built."""

    def build(
        model: nn.Module, _examples: Tensor, batch_size: int, _precision: Precision
    ) -> Callable[[Tensor], Tensor]:
        builds.append(name)

        def forward(batch: Tensor) -> Tensor:
            assert len(batch) == batch_size
            time.sleep(seconds)
            return harm(model.head(batch.flatten(1)))

        return forward

    return Engine(name, packages, (precision,), ("cpu",), build)


builds: list[str] = []


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    builds.clear()
    return lambda *these: monkeypatch.setattr(choose, "ENGINES", (eager.ENGINE, *these))


def fail(_logits: Tensor) -> Tensor:
    raise RuntimeError("no such operator")


def test_what_else_the_machine_did_while_an_engine_ran_does_not_count(engines) -> None:
    turns = itertools.cycle((0.02, 0.0, 0.02))  # two of three turns are disturbed

    def disturbed(logits: Tensor) -> Tensor:
        time.sleep(next(turns))
        return logits

    engines(fake("quick", seconds=0.001, harm=disturbed), fake("quiet", seconds=0.003))
    assert optimize(Slow(), small(), batch_size=6).engine == "quick"


def test_the_fastest_that_agrees_is_kept(engines) -> None:
    engines(
        fake("late", 0.002),
        fake("soon"),
        fake("wrong", harm=lambda logits: logits + 0.01),
        fake("nothing", harm=lambda logits: logits * torch.nan),
        fake("broken", harm=fail),
        fake("absent", packages=("no-such-package",)),
        fake("coarse", precision="bf16"),
    )
    model = Slow()
    found = optimize(model, small())
    assert (found.engine, found.precision) == ("soon", "fp32")
    said = {row.engine: row.verdict for row in found.report}
    assert said["soon"] == "kept"
    assert said["eager"] == said["late"] == "slower than soon in fp32"
    assert "differ by" in said["wrong"]
    assert "differ by" in said["nothing"]
    assert said["broken"] == "failed: RuntimeError: no such operator"
    assert said["absent"].startswith("not installed: no-such-package")
    assert "coarse" not in said
    assert "Not installed: absent" in found.why
    assert "times as fast" in found.why
    torch.testing.assert_close(found(small()), model(small()))


def test_coarser_numbers_are_kept_where_classes_are(engines) -> None:
    def other_classes(logits: Tensor) -> Tensor:
        return logits.roll(1, dims=1)

    engines(
        fake("rough", precision="bf16", harm=lambda logits: logits * 1.01),
        fake("turned", precision="int8", harm=other_classes),
    )
    found = optimize(Slow(), small(), "int8")
    assert (found.engine, found.precision) == ("rough", "bf16")
    kept = next(row for row in found.report if row.engine == "rough")
    assert kept.agreement == 1
    assert kept.difference == pytest.approx(0.01, rel=1e-3)
    assert "images keep their class; 99% must" in next(row.verdict for row in found.report if row.engine == "turned")
    assert optimize(Slow(), small(), "int8", agreement=0.0).engine in ("rough", "turned")


def test_the_plain_model_stays_where_nothing_is_faster(engines) -> None:
    engines(fake("slower", 0.02))
    found = optimize(Slow(), small())
    assert (found.engine, found.precision) == ("eager", "fp32")
    assert found.why == "The plain model in fp32: no other engine was faster and agreed on 6 images."


def test_time_is_bounded(engines) -> None:
    engines(fake("soon"))
    found = optimize(Slow(), small(), seconds=0.0)
    assert found.engine == "eager"
    assert found.report[-1].verdict.startswith("not tried")


def test_the_model_is_left_as_it_was(engines) -> None:
    engines(fake("soon"))
    model = Slow().train()
    before = copy.deepcopy(model.state_dict())
    found = optimize(model, small(), "bf16")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found.train()
    nn.init.zeros_(model.head.weight)  # and goes its own way
    assert found(small()).abs().max() > 0


@pytest.mark.parametrize("count", [0, 1, 4, 6, 9])
def test_any_number_of_images(engines, count: int) -> None:
    engines(fake("soon"))
    model = Slow()
    found = optimize(model, small(), batch_size=4)
    assert found(small(count)).shape == (count, 5)
    torch.testing.assert_close(found(small(count)), model(small(count)))


def test_what_is_no_batch_of_images_is_refused(engines) -> None:
    engines(fake("soon"))
    with pytest.raises(UserError, match="float32"):
        optimize(Slow(), small().to(torch.uint8))
    with pytest.raises(UserError, match="at least one"):
        optimize(Slow(), small(0))
    with pytest.raises(UserError, match="one of fp32, bf16, int8"):
        optimize(Slow(), small(), "fp16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="images are 3x8x8 and the model was optimized for 3x4x4"):
        optimize(Slow(), small())(images(2, 8))


# ---------------------------------------------------------------------- the memory of choices


def test_a_choice_is_remembered_and_checked(engines) -> None:
    engines(fake("late", 0.002), fake("soon"))
    first = optimize(Slow(), small())
    builds.clear()
    again = optimize(Slow(), small())
    assert builds == ["soon"]
    assert (again.report, again.why) == (first.report, first.why)
    engines(fake("late", 0.002), fake("soon", harm=lambda logits: logits + 1))  # it has changed since
    assert optimize(Slow(), small()).engine == "late"


def test_another_model_or_shape_is_another_question(engines) -> None:
    engines(fake("soon"))
    optimize(Slow(), small())
    other = Slow()
    nn.init.ones_(other.head.weight)
    for model, batch_size in ((other, 6), (Slow(), 2)):
        builds.clear()
        optimize(model, small(), batch_size=batch_size)
        assert len(list(cache_folder().glob("*.json"))) > 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"report": 3}', '{"report": [{"engine": "soon"}]}'])
def test_a_damaged_memory_is_no_harm(engines, content: str) -> None:
    engines(fake("soon"))
    optimize(Slow(), small())
    (file,) = cache_folder().glob("*.json")
    whole = json.loads(file.read_text())
    file.write_text(content)
    assert optimize(Slow(), small()).engine == "soon"
    assert json.loads(file.read_text()).keys() == whole.keys()


def test_where_nothing_can_be_remembered_the_choice_is_made_anew(engines, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    engines(fake("soon"))
    assert optimize(Slow(), small()).engine == "soon"


# ---------------------------------------------------------------------- through the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("engines") / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "ENGINES", (openvino.ENGINE, eager.ENGINE))


@pytest.mark.usefixtures("real")
def test_predict_and_eval_through_an_engine(run: Path, pictures: Path) -> None:
    plain, fast = (vitrail("predict", run, pictures, "--json", *more) for more in ([], ["--optimize", "fp32"]))
    assert (plain.code, fast.code) == (0, 0), fast.err
    for one, other in zip(plain.json()["predictions"], fast.json()["predictions"], strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    plain, fast = (vitrail("eval", run, "--json", *more) for more in ([], ["--optimize", "bf16"]))
    assert (plain.code, fast.code) == (0, 0), fast.err
    assert "engine" not in plain.json()
    assert fast.json()["engine"]
    assert fast.json()["top1"] == pytest.approx(plain.json()["top1"], abs=0.1)


def test_an_unknown_precision_is_refused(run: Path, pictures: Path) -> None:
    assert vitrail("predict", run, pictures, "--optimize", "fp8").code == 2


def test_export_to_openvino(run: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    said = vitrail("export", run, tmp_path / "model.xml")
    assert said.code == 0, said.err
    assert (tmp_path / "model.bin").stat().st_size > 1000
    refused = vitrail("export", run, tmp_path / "model.onnx", "--int8", pictures)
    assert refused.code == 1
    assert "cannot be in int8" in refused.err
