"""A TensorRT plan of the user's own on a (fake) GPU: run as it is, in shapes that it allows, or refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from engines.errors import CheckpointError, EngineBusy, EngineError
from engines.finished_plan import PlanTensor, read_plan
from engines.heads import DenseLayer, Head, save_head
from engines.profiles import Profile, Range, shapes_within
from pipeline.assembly import open_encode_stage, open_postprocess_stage
from pipeline.errors import UserError, WorkerFailure
from pipeline.settings import EnsembleSettings, validate_settings
from schemas.packs import SECOND_TEXT
from stages.encode import Encoded
from stages.packing import pack_rows
from tests import fake_gpu
from tests.fake_gpu import FakeGpu, OutOfMemory, finished_plan
from tests.onnx_files import VOCAB, WIDTH, exported, vectors

LONGEST = 60
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

PlanFile = Callable[..., Path]


def profile(
    least: tuple[int, int], best: tuple[int, int], most: tuple[int, int], inputs: Sequence[str] = INPUTS
) -> fake_gpu.Profile:
    return dict.fromkeys(inputs, (least, best, most))


USUAL = profile((1, 1), (4, 32), (16, 64))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """A model's folder that is no more than its config."""

    def write(**config: Any) -> str:
        path = tmp_path / "folder"
        path.mkdir(exist_ok=True)
        config = {"model_type": "mpnet", "hidden_size": WIDTH, "vocab_size": VOCAB} | config
        (path / "config.json").write_text(json.dumps({name: each for name, each in config.items() if each is not None}))
        return str(path)

    return write


@pytest.fixture
def plan_file(tmp_path: Path) -> PlanFile:
    """A plan, and beside it the ONNX file that it was built of."""

    def write(*profiles: fake_gpu.Profile, number_types: dict[str, str] | None = None, **file: Any) -> Path:
        model = exported(tmp_path / "model.onnx", **file)
        path = tmp_path / "model.plan"
        path.write_bytes(finished_plan(model.read_bytes(), *profiles, number_types=number_types))
        return path

    return write


def settings_of(*models: dict[str, Any], max_length: int = LONGEST, **engine: Any) -> EnsembleSettings:
    data = {
        "name": "mine",
        "models": [{"name": f"x{number}"} | model for number, model in enumerate(models)],
        "engine": {"kind": "tensorrt", "instances": 1} | engine,
        "tokenizer": {"max_length": max_length},
        "batching": {"row_length": 64, "max_batch_tokens": 512},
    }
    return validate_settings(data, EnsembleSettings, origin="")


def windows(count: int, *, longest: int = LONGEST, seed: int = 5) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, VOCAB, draw.integers(1, longest + 1), np.int32) for _ in range(count)]


def encoded(settings: EnsembleSettings, texts: list[np.ndarray]) -> Encoded:
    stage = open_encode_stage(settings)
    try:
        return stage(texts)
    finally:
        stage.close()


def as_onnx(settings: EnsembleSettings) -> EnsembleSettings:
    """The same models of the file beside the plan, on ONNX Runtime."""
    data = settings.model_dump(include={"name", "models", "tokenizer", "batching"}, exclude_unset=True)
    for model in data["models"]:
        model["onnx"] = model.pop("plan").with_suffix(".onnx")
        if "plan_output" in model:
            model["onnx_output"] = model.pop("plan_output")
    return EnsembleSettings.model_validate(data)


def agree(settings: EnsembleSettings, *, error: float = 1e-5, counts: Sequence[int] = (1, 7, 100)) -> None:
    stage, wanted = open_encode_stage(settings), open_encode_stage(as_onnx(settings))
    longest = settings.tokenizer.max_length or LONGEST
    for count in counts:
        texts = windows(count, longest=longest, seed=count)
        found = stage(texts)
        assert not found.failed
        asked = wanted(texts)
        for name, rows in asked.outputs.items():
            np.testing.assert_allclose(found.outputs[name], rows, atol=error)
        assert found.of_tokens.keys() == asked.of_tokens.keys()
        for name, tokens in asked.of_tokens.items():
            assert [len(each) for each in tokens] == [*map(len, texts)]
            np.testing.assert_allclose(np.concatenate(found.of_tokens[name]), np.concatenate(tokens), atol=error)
    stage.close()
    wanted.close()


@pytest.mark.parametrize("output", ["last_hidden_state", "logits"])
@pytest.mark.parametrize("ids", [TensorProto.INT64, TensorProto.INT32])
def test_answers_are_those_of_the_file(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile, output: str, ids: int
) -> None:
    plan = plan_file(USUAL, outputs=(output,), ids=ids)
    agree(settings_of({"source": folder(), "plan": plan}))
    assert gpu.launches > 0
    assert (gpu.pushed, gpu.contexts_detached, gpu.built) == (0, 1, [])


def test_numbers_of_tokens(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    labels = {str(number): f"L{number}" for number in range(WIDTH)}
    model = {"source": folder(id2label=labels), "plan": plan_file(USUAL)}
    agree(settings_of(model | {"task": "feature-extraction"}, model | {"pooling": "mean"}))
    agree(settings_of(model | {"task": "token-classification"}))


def test_half_precision_becomes_single(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    model = {"source": folder(), "plan": plan_file(USUAL, kind=TensorProto.FLOAT16)}
    agree(settings_of(model | {"pooling": "mean"}, model | {"pooling": "cls"}), error=2e-2)


def test_positions_begin_where_the_model_s_do(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    inputs = ("input_ids", "attention_mask", "position_ids")
    plan = plan_file(profile((1, 1), (4, 32), (16, 64), inputs), inputs=inputs)
    source = folder(model_type="roberta", pad_token_id=1)
    agree(settings_of({"source": source, "plan": plan, "normalize": False}))


@pytest.mark.parametrize("inputs", [INPUTS, ("input_ids", "attention_mask", "position_ids"), INPUTS[:2]])
def test_the_second_text_of_a_pair_is_of_the_second_type(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile, inputs: tuple[str, ...]
) -> None:
    """Where the model tells types apart; elsewhere it is no more than the rest of a text."""
    plan = plan_file(profile((1, 1), (4, 32), (16, 64), inputs), inputs=inputs)
    settings = settings_of({"source": folder(model_type="roberta", pad_token_id=1), "plan": plan})
    texts = windows(20)
    pairs = [np.where(np.arange(text.size) < text.size // 2, text, text + SECOND_TEXT) for text in texts]
    found = encoded(settings, pairs).outputs["x0"]
    np.testing.assert_allclose(found, encoded(as_onnx(settings), pairs).outputs["x0"], atol=1e-5)
    assert np.array_equal(found, encoded(settings, texts).outputs["x0"]) == ("token_type_ids" not in inputs)


def test_models_of_one_output_share_a_plan(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile, tmp_path: Path
) -> None:
    draw = np.random.default_rng(2)
    layer = DenseLayer(weight=draw.normal(size=(3, WIDTH)).astype(np.float32), bias=np.ones(3, np.float32))
    save_head(tmp_path / "head.safetensors", Head(labels=("a", "b", "c"), layers=(layer,)), metadata={})
    model = {"source": folder(), "plan": plan_file(USUAL, outputs=("last_hidden_state", "other"))}
    settings = settings_of(
        model | {"pooling": "mean", "normalize": True},
        model | {"pooling": "cls"},
        model | {"pooling": "max"},
        model | {"head": tmp_path / "head.safetensors", "pooling": "mean", "normalize": True},
    )
    agree(settings)
    assert gpu.loaded == 1
    agree(settings_of(model, model | {"plan_output": "other"}))
    assert gpu.loaded == 3


def test_a_plan_of_fixed_shape(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    plan = plan_file(dims=(4, 32), texts=4, tokens=32)
    settings = settings_of({"source": folder(), "plan": plan}, max_length=30)
    found = encoded(settings, texts := windows(9, longest=30))
    for text, vector in zip(texts, found.outputs["x0"], strict=True):
        np.testing.assert_allclose(vector, vectors(text).mean(axis=0), atol=1e-5)
    assert gpu.contexts_made == 1


def test_each_shape_is_computed_in_the_profile_that_has_it(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile
) -> None:
    plan = plan_file(profile((1, 1), (16, 32), (16, 32)), profile((2, 33), (4, 64), (8, 64)))
    agree(settings_of({"source": folder(), "plan": plan}))
    assert gpu.contexts_made == 4, "2x32 and 16x32, 2x60 and 8x60"


def test_it_is_said_that_nothing_is_compared(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_file(USUAL)
    with caplog.at_level("INFO", logger="penstock.plans"):
        encoded(settings_of({"source": folder(), "plan": plan}), windows(1))
    assert [record.message for record in caplog.records] == [
        f"{plan}: a plan of your own, run as it is and compared with nothing; tokens: 2x32, 16x32, 1x60, 8x60"
    ]


def test_without_recording_each_launch_is_made_anew(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refuses_recording = True
    agree(settings_of({"source": folder(), "plan": plan_file(USUAL)}))
    assert "not recorded, each launch takes longer" in caplog.text
    assert gpu.launches == 0


def test_what_lies_beside_a_text_does_not_reach_it(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile
) -> None:
    """Not the rows of no text, and not the rest of its own."""
    text = np.array([3, 4], np.int32)

    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[1:] = np.nan
        rows[:, 2:] = np.nan
        return rows

    gpu.spoils = spoil
    found = encoded(settings_of({"source": folder(), "plan": plan_file(USUAL)}), [text])
    assert not found.failed
    np.testing.assert_allclose(found.outputs["x0"][0], vectors(text).mean(axis=0), atol=1e-5)


def test_a_nan_costs_its_text_alone(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    texts = [np.array([number + 1] * 3, np.int32) for number in range(6)]

    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[np.abs(rows[:, 0] - vectors(texts[2])[0]).max(axis=1) < 1e-4] = np.nan
        return rows

    gpu.spoils = spoil
    assert list(encoded(settings_of({"source": folder(), "plan": plan_file(USUAL)}), texts).failed) == [2]


def test_a_gpu_without_memory_is_busy(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    stage = open_encode_stage(settings_of({"source": folder(), "plan": plan_file(USUAL)}))
    [engine] = stage._engines
    gpu.fails = OutOfMemory("cuMemAlloc failed: out of memory")
    [group] = pack_rows(windows(1), row_length=64)
    with pytest.raises(EngineBusy, match="CUDA_ERROR_OUT_OF_MEMORY"):
        engine.run(group.rows)
    gpu.fails = fake_gpu.Error("cuLaunchKernel failed: invalid argument")
    with pytest.raises(EngineError, match=r"GPU 0 \(Fake H100\): CUDA graph: CUDA_ERROR"):
        engine.run(group.rows)
    assert np.isfinite(engine.run(group.rows)["x0"]).all()
    stage.close()


def test_it_is_on_every_gpu(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    agree(settings_of({"source": folder(), "plan": plan_file(USUAL)}, devices=[0, 1]))
    assert (gpu.loaded, gpu.contexts_detached) == (2, 2)


# What can't be served, each in one line of its place.


def refusal(settings: EnsembleSettings) -> str:
    with pytest.raises(UserError) as raised:
        open_encode_stage(settings)
    [line] = raised.value.lines
    return line


def test_texts_longer_than_the_plan_reads(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    plan = plan_file(USUAL)
    settings = settings_of({"source": folder(), "plan": plan}, max_length=65)
    assert refusal(settings) == f"tokenizer.max_length: 65 tokens are more than {plan} reads; allowed: at most 64"
    assert (gpu.pushed, gpu.contexts_detached) == (0, 1)


def test_a_plan_of_another_version_or_chip(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    plan = plan_file(USUAL)
    plan.write_bytes(b"of another version")
    assert refusal(settings_of({"source": folder(), "plan": plan})) == (
        f"models[0].plan: {plan}: can't be loaded on GPU 0 (Fake H100) by TensorRT 10.6.0: The engine plan file is not "
        "compatible with this version of TensorRT: build it with this TensorRT on this kind of GPU, or name the ONNX "
        "file in onnx"
    )
    assert gpu.contexts_detached == 1


def test_a_plan_that_is_not_there(gpu: FakeGpu, folder: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "none.plan"
    assert refusal(settings_of({"source": folder(), "plan": path})) == (
        f"models[0].plan: {path}: can't be read (No such file or directory): name a TensorRT plan, such as trtexec "
        "saves"
    )


@pytest.mark.parametrize(
    ("config", "file", "model", "says"),
    [
        (
            {"hidden_size": 7},
            {},
            {},
            "plan: {plan}: output 'last_hidden_state' is 6 wide, and config.json says hidden_size 7: take both from "
            "one model",
        ),
        (
            {},
            {},
            {"task": "text-classification"},
            "plan: {plan}: output 'last_hidden_state' is of tokens, and no logits: export the model with its head, or "
            "give a head's file",
        ),
        (
            {},
            {"outputs": ("logits",)},
            {"task": "text-classification"},
            "plan: {plan}: output 'logits' has 6 logits, and config.json 2 labels: take both from one model",
        ),
        (
            {},
            {"outputs": ("logits",)},
            {"pooling": "cls"},
            "plan: {plan}: output 'logits' is pooled already: leave pooling out",
        ),
        (
            {},
            {},
            {"plan_output": "x"},
            "plan: {plan}: no output 'x': name one of them in plan_output: last_hidden_state",
        ),
    ],
)
def test_what_is_not_the_config_s_is_told(
    gpu: FakeGpu,
    folder: Callable[..., str],
    plan_file: PlanFile,
    config: dict[str, Any],
    file: dict[str, Any],
    model: dict[str, Any],
    says: str,
) -> None:
    plan = plan_file(USUAL, **file)
    line = refusal(settings_of({"source": folder(**config), "plan": plan} | model))
    assert line == "models[0]." + says.format(plan=plan)
    assert (gpu.pushed, gpu.contexts_detached) == (0, 1)


def test_postprocess_needs_the_width_from_the_config(folder: Callable[..., str], tmp_path: Path) -> None:
    source = folder(hidden_size=None)
    with pytest.raises(UserError) as raised:
        open_postprocess_stage(settings_of({"source": source, "plan": tmp_path / "none.plan"}))
    assert raised.value.lines == (
        f"models[0].source: {source}/config.json does not say hidden_size: write the vector's width there",
    )
    open_postprocess_stage(settings_of({"source": folder(), "plan": tmp_path / "none.plan"}))


def tensor(name: str, dims: tuple[int, ...] = (-1, -1), number_type: str = "INT64", **changes: Any) -> PlanTensor:
    least_best_most = ((1, 1), (4, 32), (16, 64))
    values = {"is_input": True, "profiles": (least_best_most,)} | changes
    return PlanTensor(name=name, dims=dims, number_type=number_type, **values)


def answered(name: str, dims: tuple[int, ...], number_type: str = "FLOAT") -> PlanTensor:
    return tensor(name, dims, number_type, is_input=False, profiles=())


IDS, MASK = tensor("input_ids"), tensor("attention_mask")
HIDDEN = answered("last_hidden_state", (-1, -1, 6))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([IDS, HIDDEN], "no input 'attention_mask': export the model with it"),
        (
            [IDS, MASK, tensor("pixel_values"), HIDDEN],
            "nothing to put into its input 'pixel_values'; known: input_ids, attention_mask, token_type_ids, "
            "position_ids",
        ),
        (
            [IDS, tensor("attention_mask", number_type="BOOL"), HIDDEN],
            "input 'attention_mask' is BOOL: build the plan with INT32 or INT64",
        ),
        (
            [IDS, tensor("attention_mask", (-1, 1, 1, -1)), HIDDEN],
            "input 'attention_mask' is (?, 1, 1, ?): (texts, tokens) is wanted",
        ),
        (
            [IDS, tensor("attention_mask", profiles=(((1, 65), (4, 70), (16, 80)),)), HIDDEN],
            "its inputs have no shape in common in optimization profile 0: build the plan with the same shapes for all "
            "of them",
        ),
        (
            [IDS, MASK, answered("logits", (-1, -1))],
            "output 'logits' is (?, ?): (texts, width) or (texts, tokens, width) is wanted, the width as a number",
        ),
        (
            [IDS, MASK, answered("x", (-1,))],
            "output 'x' is (?): (texts, width) or (texts, tokens, width) is wanted, the width as a number",
        ),
        (
            [IDS, MASK, answered("logits", (-1, 3), "BF16")],
            "output 'logits' is BF16: build the plan with FLOAT or HALF there, as with trtexec "
            "--outputIOFormats=fp32:chw",
        ),
        (
            [IDS, MASK, answered("a", (-1, 3)), answered("b", (-1, 3))],
            "several outputs, and none of a usual name: name one of them in plan_output: a, b",
        ),
    ],
)
def test_a_plan_that_can_t_be_served_is_told(tensors: list[PlanTensor], says: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_plan(Path("a.plan"), tensors)
    assert str(raised.value) == f"a.plan: {says}"


def test_texts_that_are_not_apart_are_told(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    """An output that only looks like one of texts: here of the first text of all."""
    plan = plan_file(dims=(4, 32), texts=4, tokens=32, outputs=("logits",))
    gpu.shapes["logits"] = (1, WIDTH)
    line = refusal(settings_of({"source": folder(), "plan": plan}, max_length=32))
    assert line == (
        f"models[0].plan: {plan}: output 'logits' of 4x32 tokens is (1, 6): (4, 6) is wanted, each text apart"
    )


def test_an_output_without_a_size_is_told_though_nobody_reads_it(
    gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile
) -> None:
    plan = plan_file(USUAL, outputs=("last_hidden_state", "other"))
    gpu.shapes["other"] = (-1, WIDTH)
    line = refusal(settings_of({"source": folder(), "plan": plan}))
    assert line == (
        f"models[0].plan: {plan}: output 'other' has no size before it is computed: build the plan without it"
    )


def test_a_shape_that_is_not_taken_is_told(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    gpu.refuses_shapes = True
    plan = plan_file(USUAL)
    assert refusal(settings_of({"source": folder(), "plan": plan})) == (
        f"models[0].plan: {plan}: does not take 2x32 tokens: TensorRT does not say why"
    )
    assert (gpu.pushed, gpu.contexts_detached) == (0, 1)


def test_a_gpu_without_room_is_told(gpu: FakeGpu, folder: Callable[..., str], plan_file: PlanFile) -> None:
    gpu.has_no_room = True
    with pytest.raises(WorkerFailure, match=r"GPU 0 \(Fake H100\): no room for a plan: TensorRT does not say why"):
        open_encode_stage(settings_of({"source": folder(), "plan": plan_file(USUAL)}))


# Which shapes there are.


def shapes(profiles: Sequence[Profile], **changes: int) -> dict[str, int]:
    found = shapes_within(profiles, **{"max_length": 128, "max_batch_tokens": 1024} | changes)
    return {str(shape): number for shape, number in found.items()}


def test_lengths_double_and_rows_are_a_batch_s_and_an_eighth_of_it() -> None:
    everything = Profile(Range(1, 8, 1024), Range(1, 64, 512))
    assert shapes([everything]) == dict.fromkeys(("4x32", "32x32", "2x64", "16x64", "1x128", "8x128"), 0)
    assert shapes([everything], max_length=20) == dict.fromkeys(("7x20", "51x20"), 0)


def test_shapes_are_the_next_that_a_profile_has() -> None:
    assert shapes([Profile(Range(2, 4, 8), Range(48, 64, 200))], max_length=200) == dict.fromkeys(
        ("3x48", "8x48", "2x64", "8x64", "2x128", "8x128", "2x200", "5x200"), 0
    )
    assert shapes([Profile(Range(64, 64, 64), Range(128, 128, 128))]) == {"64x128": 0}


def test_of_several_profiles_the_nearest_is_taken() -> None:
    one, short, long = (
        Profile(Range(1, 1, 1), Range(1, 64, 128)),
        Profile(Range(1, 32, 64), Range(1, 32, 32)),
        Profile(Range(1, 8, 64), Range(65, 128, 512)),
    )
    assert shapes([one, short, long]) == {"4x32": 1, "32x32": 1, "1x64": 0, "1x128": 0, "8x128": 2}
    assert shapes([short, long], max_length=200) == {"4x32": 0, "32x32": 0, "2x65": 1, "15x65": 1} | {
        "1x128": 1,
        "8x128": 1,
        "1x200": 1,
        "5x200": 1,
    }


def test_the_fake_has_what_tensorrt_has(builder: ModuleType, gpu: FakeGpu) -> None:
    """A plan can't be loaded without a GPU, but the names of what is asked of one can be looked up."""
    import tensorrt

    for kind in ("ICudaEngine", "IExecutionContext"):
        ours = {name for name in vars(getattr(tensorrt, kind)) if name.startswith(("get_", "set_", "num_", "create_"))}
        assert ours - {*dir(getattr(builder, kind))} == set()
    for kind in ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy"):
        assert {each.name for each in getattr(tensorrt, kind)} <= {*getattr(builder, kind).__members__}
