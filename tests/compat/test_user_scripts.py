"""Ordinary scripts of users, which run with transformers 5.23 and with the import changed, and return the same.

Each script gets a library, and returns what its user would look at: losses, logits, tokens, files, counts, names. The
test runs it with both libraries and compares.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compat.compat_toys import close
from tests.compat.script_toys import (
    PUBLISHED,
    Captions,
    Library,
    batch,
    files,
    labeled,
    losses,
    photos,
    write_checkpoints,
)

accelerate = pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]

Script = Callable[[Library], Any]
SCRIPTS: dict[str, Script] = {}
CAPTIONER, ANSWERER, MATCHER, TOWERS = PUBLISHED
LAYER = "text_decoder.bert.encoder.layer.0"


def script(function: Script) -> Script:
    SCRIPTS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def plain(value: Any) -> Any:
    """Results without the classes of a library."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, float):
        return torch.tensor(value)
    if hasattr(value, "keys"):
        return {str(name): plain(value[name]) for name in value.keys()}  # noqa: SIM118 (not all are dicts)
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


# Loading and saving.


@script
def load_by_keyword(library: Library) -> Any:
    model = library.BlipForConditionalGeneration.from_pretrained(
        pretrained_model_name_or_path=library.checkpoints[CAPTIONER]
    )
    return model(**batch(library)).logits


@script
def load_a_state_dict(library: Library) -> Any:
    source = library.load()
    state = {name: tensor * 0.9 for name, tensor in source.state_dict().items()}
    model = library.BlipForConditionalGeneration.from_pretrained(None, config=source.config, state_dict=state)
    return model(**batch(library)).logits


@script
def load_in_bfloat16(library: Library) -> Any:
    model = library.load(dtype=torch.bfloat16)
    return [str(model.dtype), {str(tensor.dtype) for tensor in model.parameters()}.pop()]


@script
def load_on_one_device(library: Library) -> Any:
    model = library.load(device_map="cpu")
    return [model.device.type, model(**batch(library)).logits]


@script
def load_on_several_devices(library: Library) -> Any:
    model = library.load(device_map={"vision_model": "cpu", "text_decoder": "cpu"})
    return [hasattr(model, "hf_device_map"), model(**batch(library)).logits]


@script
def load_with_other_settings(library: Library) -> Any:
    model = library.load(label_smoothing=0.3, output_hidden_states=True)
    return [model.config.label_smoothing, model.config.output_hidden_states, model(**batch(library)).logits]


@script
def loading_info(library: Library) -> Any:
    _, info = library.BlipForImageTextRetrieval.from_pretrained(library.checkpoints[MATCHER], output_loading_info=True)
    return [len(info["missing_keys"]), len(info["unexpected_keys"]), len(info["mismatched_keys"])]


@script
def name_or_path(library: Library) -> Any:
    model = library.load()
    return [model.name_or_path, model.config.name_or_path]


@script
def save_and_load(library: Library) -> Any:
    library.load().save_pretrained(library.folder)
    again = library.BlipForConditionalGeneration.from_pretrained(library.folder)
    return [files(library.folder), again(**batch(library)).logits]


@script
def save_in_shards(library: Library) -> Any:
    library.load(MATCHER).save_pretrained(library.folder, max_shard_size="30KB")
    again = library.BlipForImageTextRetrieval.from_pretrained(library.folder)
    return [files(library.folder), again(**batch(library)).itm_score]


@script
def save_with_a_function(library: Library) -> Any:
    model = library.load()
    state = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(library.folder, is_main_process=True, state_dict=state, save_function=torch.save)
    again = library.BlipForConditionalGeneration.from_pretrained(library.folder)
    return [files(library.folder), again(**batch(library)).logits]


@script
def save_shared_tensors(library: Library) -> Any:
    from safetensors.torch import load_model, save_model

    model, target = library.load(), library.load()
    save_model(model, str(library.folder / "weights.safetensors"))
    missing, unexpected = load_model(target, str(library.folder / "weights.safetensors"))
    return [sorted(missing), sorted(unexpected), target(**batch(library)).logits]


@script
def torch_save_and_load(library: Library) -> Any:
    buffer = io.BytesIO()
    model = library.load()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    result = model.load_state_dict(torch.load(buffer))
    return [list(result.missing_keys), list(result.unexpected_keys), sorted(model.state_dict())]


@script
def copy_and_pickle(library: Library) -> Any:
    model = library.load()
    return [copy.deepcopy(model)(**batch(library)).logits, pickle.loads(pickle.dumps(model))(**batch(library)).logits]


# Names.


@script
def names_of_modules(library: Library) -> Any:
    return [[name for name, _ in library.load(cls).named_modules()] for cls in PUBLISHED]


@script
def names_of_parameters(library: Library) -> Any:
    return [[(name, list(p.shape)) for name, p in library.load(cls).named_parameters()] for cls in PUBLISHED]


@script
def names_of_buffers(library: Library) -> Any:
    return [[(name, buffer) for name, buffer in library.load(cls).named_buffers()] for cls in PUBLISHED]


@script
def names_of_the_state(library: Library) -> Any:
    return [sorted(library.load(cls).state_dict()) for cls in PUBLISHED]


@script
def classes_of_modules(library: Library) -> Any:
    names = {type(module).__name__ for cls in PUBLISHED for module in library.load(cls).modules()}
    return sorted(name for name in names if name.startswith("Blip"))


@script
def modules_by_path(library: Library) -> Any:
    model = library.load()
    query = model.text_decoder.bert.encoder.layer[0].crossattention.self.query
    qkv = model.vision_model.encoder.layers[0].self_attn.qkv
    return [query.weight, qkv.weight, model.get_submodule(f"{LAYER}.intermediate.dense").weight]


# Replaced modules, hooks and transforms.


@script
def replace_a_query(library: Library) -> Any:
    model = library.load()
    attention = model.text_decoder.bert.encoder.layer[0].crossattention.self
    torch.manual_seed(0)
    attention.query = nn.Sequential(attention.query, nn.Linear(32, 32))
    return [model(**batch(library)).logits, model.generate(**batch(library), max_new_tokens=5)]


@script
def replace_a_fused_projection(library: Library) -> Any:
    model = library.load()
    torch.manual_seed(0)
    model.vision_model.encoder.layers[1].self_attn.qkv = nn.Linear(32, 96, bias=False)
    return model(**batch(library)).logits


class RoundedLinear(nn.Module):
    """A linear layer with 8-bit weights, as a quantization library replaces it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax() / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        codes: Any = self.codes
        return nn.functional.linear(x, codes.to(x.dtype) * self.scale, self.bias)


@script
def replace_all_linear_layers(library: Library) -> Any:
    model = library.load()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("decoder")]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, RoundedLinear(model.get_submodule(name)))
    return [names, model(**batch(library)).logits, model.generate(**batch(library), max_new_tokens=4)]


@script
def replace_an_mlp(library: Library) -> Any:
    model = library.load()
    model.vision_model.encoder.layers[0].mlp = nn.Identity()
    return model(**batch(library)).logits


def recorded(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[Any]]:
    """The outputs of all modules, by name, as forward hooks get them."""
    outputs: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(lambda _m, _args, out, name=name: outputs.setdefault(name, []).append(_first(out)))
        for name, module in model.named_modules()
    ]
    run()
    for handle in handles:
        handle.remove()
    return {name: plain(outputs[name]) for name in sorted(outputs)}


def _first(output: Any) -> Any:
    """Copies of an output's tensors: caches differ between the libraries, and 5.23 changes embeddings in place."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [value.detach().clone() for value in values if isinstance(value, Tensor)]


@script
def forward_hooks(library: Library) -> Any:
    model = library.load()
    return recorded(model, lambda: model(**batch(library)))


@script
def forward_hooks_of_answers(library: Library) -> Any:
    model = library.load(ANSWERER)
    return recorded(model, lambda: model(**labeled(library)))


@script
def forward_hooks_while_generating(library: Library) -> Any:
    model = library.load()
    outputs = recorded(model, lambda: model.generate(**batch(library), max_new_tokens=3, min_new_tokens=3))
    return {name: values for name, values in outputs.items() if not name.endswith("position_embeddings")}


@script
def inputs_of_attention(library: Library) -> Any:
    model, seen = library.load(), []
    attention = model.text_decoder.bert.encoder.layer[1].crossattention

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append([args[0], kwargs["encoder_hidden_states"], sorted(kwargs)])

    attention.register_forward_pre_hook(hook, with_kwargs=True)
    model(**batch(library))
    return seen


@script
def attention_maps_by_hook(library: Library) -> Any:
    model, maps = library.load(MATCHER), []
    for layer in model.text_encoder.encoder.layer:
        layer.crossattention.self.register_forward_hook(lambda _m, _args, out: maps.append(out[1]))
    model(**batch(library))
    return maps


@script
def hooks_change_outputs(library: Library) -> Any:
    model = library.load()
    model.vision_model.encoder.layers[0].register_forward_hook(lambda _m, _args, out: out * 0.5)
    model.text_decoder.bert.embeddings.register_forward_hook(lambda _m, _args, out: out + 0.1)
    return [model(**batch(library)).logits, model.generate(**batch(library), max_new_tokens=4)]


@script
def backward_hooks(library: Library) -> Any:
    model, gradients = library.load(), []
    for module in (model.vision_model.encoder.layers[0], model.text_decoder.bert.encoder.layer[0].intermediate):
        module.register_full_backward_hook(lambda _m, grad_in, grad_out: gradients.append([grad_in[0], grad_out[0]]))
    model(**labeled(library)).loss.backward()
    return gradients


@script
def grad_cam(library: Library) -> Any:
    model, kept = library.load(MATCHER), []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        output[1].retain_grad()
        kept.append(output[1])

    model.text_encoder.encoder.layer[1].crossattention.self.register_forward_hook(keep)
    score: Any = model(**batch(library)).itm_score[:, 1].sum()
    score.backward()
    return (kept[0] * kept[0].grad.clamp(min=0)).mean(1)


@script
def functional_call(library: Library) -> Any:
    model = library.load()
    parameters = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    return torch.func.functional_call(model, parameters, (), batch(library)).logits


@script
def prune_and_parametrize(library: Library) -> Any:
    model = library.load()
    from torch.nn.utils import prune as pruning

    prune: Any = pruning
    prune.l1_unstructured(model.vision_model.encoder.layers[0].mlp.fc1, "weight", amount=0.5)
    torch.nn.utils.parametrizations.weight_norm(model.text_decoder.bert.encoder.layer[0].output.dense)
    return model(**batch(library)).logits


@script
def gradients_of_all_parameters(library: Library) -> Any:
    model = library.load()
    model(**labeled(library)).loss.backward()
    return [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]


@script
def export_a_graph(library: Library) -> Any:
    model, inputs = library.load(), batch(library)
    inputs = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"]}
    program = torch.export.export(model, (), inputs, strict=False)
    return program.module()(**inputs)["logits"]


# Training.


@script
def train_a_captioner(library: Library) -> Any:
    return losses(library.load(), labeled(library))


@script
def train_an_answerer(library: Library) -> Any:
    inputs = labeled(library)
    inputs.pop("attention_mask")
    return losses(library.load(ANSWERER), inputs)


@script
def train_two_towers(library: Library) -> Any:
    return losses(library.load(TOWERS), {**batch(library), "return_loss": torch.tensor(True)})


@script
def train_a_matcher(library: Library) -> Any:
    model, values = library.load(MATCHER), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        loss: Any = nn.functional.cross_entropy(model(**batch(library)).itm_score, torch.tensor([1, 0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss))
    return values


@script
def train_with_dropout(library: Library) -> Any:
    model = library.load()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    torch.manual_seed(0)
    return losses(model, labeled(library), 2)


@script
def train_with_checkpointing(library: Library) -> Any:
    model = library.load()
    model.gradient_checkpointing_enable()
    values = [model.is_gradient_checkpointing, *losses(model, labeled(library), 2)]
    model.gradient_checkpointing_disable()
    return [*values, model.is_gradient_checkpointing, *losses(model, labeled(library), 1)]


@script
def checkpointing_of_every_second_layer(library: Library) -> Any:
    model = library.load()
    model.activation_checkpointing_enable(every_n_layers=2)
    flags = [getattr(module, "gradient_checkpointing", None) for module in model.modules()]
    return [[flag for flag in flags if flag is not None], losses(model, labeled(library), 1)]


@script
def gradients_of_frozen_embeddings(library: Library) -> Any:
    model = library.load().requires_grad_(False)
    model.enable_input_require_grads()
    embeddings, ids = model.get_input_embeddings(), torch.tensor([[5, 6]])
    before = embeddings(ids).requires_grad
    model.disable_input_require_grads()
    return [before, embeddings(ids).requires_grad]


@script
def freeze_the_image_encoder(library: Library) -> Any:
    model = library.load()
    for parameter in model.vision_model.parameters():
        parameter.requires_grad = False
    return [model.num_parameters(only_trainable=True), losses(model, labeled(library), 2)]


@script
def train_in_bfloat16(library: Library) -> Any:
    model = library.load().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**labeled(library)).loss
    loss.backward()
    return [round(float(loss), 1), str(loss.dtype)]


@script
def label_smoothing(library: Library) -> Any:
    model = library.load()
    model.text_decoder.label_smoothing = 0.1
    return [model(**labeled(library)).loss, model(**labeled(library), num_items_in_batch=5).loss]


@script
def unreduced_loss(library: Library) -> Any:
    model, inputs = library.load(), labeled(library)
    states = model.vision_model(inputs["pixel_values"])[0]
    return model.text_decoder(
        inputs["input_ids"], encoder_hidden_states=states, labels=inputs["labels"], reduction="none"
    ).loss


# transformers.Trainer.


def arguments(library: Library, **options: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(library.folder / "run"),
        per_device_train_batch_size=2,
        learning_rate=0.1,
        optim="sgd",  # Adam would enlarge rounding errors of tiny gradients
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 3, "logging_steps": 1, "save_strategy": "no", **options},
    )


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def trainer_of(library: Library, model: Any, *, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    from transformers import Trainer

    dataset = Captions(library)
    settings = arguments(library, **(options or {}))
    return Trainer(model=model, args=settings, train_dataset=dataset, eval_dataset=dataset, **kwargs)


@script
def trainer_losses(library: Library) -> Any:
    trainer = trainer_of(library, library.load())
    trainer.train()
    return [logged(trainer), trainer.evaluate()["eval_loss"]]


@script
def trainer_accumulates(library: Library) -> Any:
    trainer = trainer_of(library, library.load(), options={"gradient_accumulation_steps": 2, "max_steps": 2})
    trainer.train()
    return logged(trainer)


@script
def trainer_saves(library: Library) -> Any:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer = trainer_of(library, library.load(), options=options)
    trainer.train()
    trainer.save_model(str(library.folder / "final"))
    again = library.BlipForConditionalGeneration.from_pretrained(library.folder / "run" / "checkpoint-2")
    return [files(library.folder), again(**batch(library)).logits]


@script
def trainer_resumes(library: Library) -> Any:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = trainer_of(library, library.load(), options=options)
    trainer.train()
    resumed = trainer_of(library, library.load(), options=options)
    resumed.train(resume_from_checkpoint=str(library.folder / "run" / "checkpoint-2"))
    return [logged(trainer), logged(resumed)]


@script
def trainer_loads_the_best_model(library: Library) -> Any:
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "max_steps": 2,
    }
    trainer = trainer_of(library, library.load(), options=options)
    trainer.train()
    return [trainer.state.best_global_step, trainer.evaluate()["eval_loss"], trainer.model(**batch(library)).logits]


@script
def trainer_with_a_processor(library: Library) -> Any:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = trainer_of(library, library.load(), options=options, processing_class=library.processor)
    trainer.train()
    folder = library.folder / "run" / "checkpoint-1"
    again = library.BlipProcessor.from_pretrained(folder)
    return again(images=photos(), text="a cat", return_tensors="pt")


@script
def trainer_with_checkpointing(library: Library) -> Any:
    trainer = trainer_of(library, library.load(), options={"gradient_checkpointing": True, "max_steps": 2})
    trainer.train()
    return logged(trainer)


@script
def trainer_with_an_adapter(library: Library) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(library.load(), config)
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "label_names": ["labels"]}
    trainer = trainer_of(library, model, options=options)
    trainer.train()
    return [logged(trainer), files(library.folder)]


@script
def trainer_predicts_by_generating(library: Library) -> Any:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    settings = Seq2SeqTrainingArguments(
        output_dir=str(library.folder / "run"),
        predict_with_generate=True,
        generation_num_beams=2,
        generation_max_length=12,
        per_device_eval_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = library.load()
    model.config.pad_token_id = 0
    trainer = Seq2SeqTrainer(model=model, args=settings, eval_dataset=Captions(library))
    output = trainer.predict(Captions(library))
    return torch.tensor(output.predictions)  # the loss differs: 5.23 writes [DEC] into the inputs (`caller-tensors`)


# accelerate.


@script
def accelerate_prepares(library: Library) -> Any:
    accelerator = accelerate.Accelerator(cpu=True)
    model = library.load().train()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    values = []
    for _ in range(2):
        loss = model(**labeled(library)).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss))
    return values


@script
def accelerate_saves_and_loads_its_state(library: Library) -> Any:
    accelerator = accelerate.Accelerator(cpu=True)
    model = library.load()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    accelerator.save_state(str(library.folder))
    before = model(**batch(library)).logits
    model(**labeled(library)).loss.backward()
    optimizer.step()
    accelerator.load_state(str(library.folder))
    return [before, model(**batch(library)).logits, files(library.folder)]


@script
def accelerate_saves_a_model(library: Library) -> Any:
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(library.load())
    accelerator.unwrap_model(model).save_pretrained(
        library.folder / "pretrained",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
    )
    accelerator.save_model(model, str(library.folder / "model"))
    return files(library.folder)


@script
def cpu_offload(library: Library) -> Any:
    model = accelerate.cpu_offload(library.load(), execution_device=torch.device("cpu"))
    return [model(**batch(library)).logits, model.generate(**batch(library), max_new_tokens=3)]


@script
def disk_offload(library: Library) -> Any:
    model = library.load(device_map={"vision_model": "disk", "text_decoder": "cpu"}, offload_folder=library.folder)
    return model(**batch(library)).logits


@script
def infer_a_device_map(library: Library) -> Any:
    model = library.load()
    device_map = accelerate.infer_auto_device_map(
        model, max_memory={0: 60_000, "cpu": 10**9}, no_split_module_classes=sorted(model._no_split_modules)
    )
    return {name: str(device) for name, device in device_map.items()}


@script
def load_into_an_empty_model(library: Library) -> Any:
    library.load(MATCHER).save_pretrained(library.folder)
    with accelerate.init_empty_weights():
        model = library.BlipForImageTextRetrieval(library.load(MATCHER).config)
    model = accelerate.load_checkpoint_and_dispatch(model, str(library.folder), device_map={"": "cpu"})
    return model.eval()(**batch(library)).itm_score


# peft.


def adapted(library: Library, cls: str = CAPTIONER, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 2, "init_lora_weights": False, "target_modules": ["query", "value"], **options})
    return peft.get_peft_model(library.load(cls), config).eval()


@script
def adapters_by_list(library: Library) -> Any:
    model = adapted(library)
    return [model.get_nb_trainable_parameters(), sorted(model.state_dict()), model(**batch(library)).logits]


@script
def adapters_by_expression(library: Library) -> Any:
    model = adapted(library, target_modules=r".*vision_model.*\.(qkv|projection)|.*crossattention\.self\.query")
    return [model.get_nb_trainable_parameters(), model(**batch(library)).logits]


@script
def adapters_in_all_linear_layers(library: Library) -> Any:
    model = adapted(library, target_modules="all-linear")
    return [model.get_nb_trainable_parameters(), model(**batch(library)).logits]


@script
def adapters_of_a_matcher(library: Library) -> Any:
    model = adapted(library, MATCHER, modules_to_save=["itm_head"])
    return [model.get_nb_trainable_parameters(), sorted(model.state_dict()), model(**batch(library)).itm_score]


@script
def adapters_with_saved_modules(library: Library) -> Any:
    model = adapted(library, modules_to_save=["transform"])
    values = losses(model, labeled(library), 2)
    model.save_pretrained(library.folder)
    from safetensors.torch import load_file

    return [values, load_file(library.folder / "adapter_model.safetensors")]


@script
def adapters_generate(library: Library) -> Any:
    model = adapted(library)
    with model.disable_adapter():
        without = model.generate(**batch(library), max_new_tokens=5)
    return [model.generate(**batch(library), max_new_tokens=5), without]


@script
def merge_and_unload(library: Library) -> Any:
    model = adapted(library).merge_and_unload()
    return [type(model).__name__, sorted(model.state_dict()), model(**batch(library)).logits]


@script
def unload_adapters(library: Library) -> Any:
    model = adapted(library).unload()
    return [sorted(model.state_dict()), model(**batch(library)).logits]


@script
def adapters_of_the_other_library(library: Library) -> Any:
    folder = library.folder / "adapter"
    writer = Library("openblip" if library.name == "transformers" else "transformers", library.checkpoints, folder)
    adapted(writer).save_pretrained(folder)
    model = peft.PeftModel.from_pretrained(library.load(), folder).eval()
    return [files(folder), model(**batch(library)).logits]


@script
def adapter_weights(library: Library) -> Any:
    return peft.get_peft_model_state_dict(adapted(library))


@script
def two_adapters(library: Library) -> Any:
    model = adapted(library)
    torch.manual_seed(1)
    second = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["qkv"])
    model.add_adapter("second", second)
    model.set_adapter("second")
    return [model.active_adapter, model(**batch(library)).logits]


# datasets and collators.


@script
def map_a_dataset(library: Library) -> Any:
    processor = library.processor
    rows = datasets.Dataset.from_dict({"text": ["a cat", "two dogs on a mat"], "number": [0, 1]})

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return dict(processor(text=row["text"], padding="max_length", max_length=8))

    return [dict(row) for row in rows.map(encode)]


@script
def collate_with_padding(library: Library) -> Any:
    from transformers import DataCollatorWithPadding

    tokenizer = library.tokenizer
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=4)
    return dict(collate([tokenizer("a cat"), tokenizer("two dogs on a mat")]))


@script
def iterate_a_loader(library: Library) -> Any:
    loader = torch.utils.data.DataLoader(Captions(library), batch_size=2)
    model = library.load()
    return [model(**inputs).loss for inputs in loader]


# generate.


STEPS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True}


def steps(output: Any) -> Any:
    return {name: output[name] for name in output.keys() if name != "past_key_values"}  # noqa: SIM118


@script
def caption_greedily(library: Library) -> Any:
    processor, model = library.processor, library.load()
    ids = model.generate(**processor(images=photos(), return_tensors="pt"))
    return [ids, processor.batch_decode(ids, skip_special_tokens=True)]


@script
def caption_with_a_prompt(library: Library) -> Any:
    processor = library.processor
    inputs = processor(images=photos(), text=["a photo of"] * 2, return_tensors="pt")
    ids = library.load().generate(**inputs, num_beams=3, max_length=20)
    return [ids, processor.decode(ids[0], skip_special_tokens=True)]


@script
def answer_questions(library: Library) -> Any:
    inputs = library.processor(images=photos(), text=["what is on the mat"] * 2, return_tensors="pt")
    return library.load(ANSWERER).generate(**inputs, num_beams=2)


@script
def steps_of_greedy_decoding(library: Library) -> Any:
    return steps(library.load().generate(**batch(library), **STEPS, output_attentions=True, max_new_tokens=5))


@script
def steps_of_sampling(library: Library) -> Any:
    torch.manual_seed(0)
    options = {**STEPS, "do_sample": True, "num_return_sequences": 2, "max_new_tokens": 5}
    return steps(library.load().generate(batch(library)["pixel_values"], **options))


@script
def steps_of_a_beam_search(library: Library) -> Any:
    options = {**STEPS, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    return steps(library.load().generate(batch(library)["pixel_values"], **options))


@script
def scores_of_tokens(library: Library) -> Any:
    model, pixel_values = library.load(), batch(library)["pixel_values"]
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 5}
    greedy = model.generate(pixel_values, **options)
    beams = model.generate(pixel_values, num_beams=2, **options)
    decoder = model.text_decoder
    return [
        decoder.compute_transition_scores(greedy.sequences, greedy.scores, normalize_logits=True),
        decoder.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices),
    ]


@script
def generation_config_of_transformers(library: Library) -> Any:
    import transformers

    untyped: Any = transformers
    config = untyped.GenerationConfig(num_beams=2, max_new_tokens=6, min_new_tokens=3, repetition_penalty=1.2)
    return library.load().generate(batch(library)["pixel_values"], generation_config=config)


@script
def logits_processors(library: Library) -> Any:
    from transformers import LogitsProcessorList, MinLengthLogitsProcessor, SuppressTokensLogitsProcessor

    processors = LogitsProcessorList([MinLengthLogitsProcessor(9, 3), SuppressTokensLogitsProcessor([50, 60])])
    return library.load().generate(batch(library)["pixel_values"], logits_processor=processors, num_beams=2)


@script
def stopping_criteria(library: Library) -> Any:
    from transformers import StoppingCriteriaList

    criteria = StoppingCriteriaList([lambda ids, _scores, **_kwargs: ids[:, -1] % 3 == 0])
    return library.load().generate(batch(library)["pixel_values"], stopping_criteria=criteria)


@script
def stream_text(library: Library) -> Any:
    class Streamer:
        def __init__(self) -> None:
            self.values: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.values.append(value.tolist())

        def end(self) -> None:
            self.values.append("end")

    streamer = Streamer()
    library.load().generate(batch(library)["pixel_values"][:1], streamer=streamer, max_new_tokens=6)
    return streamer.values


@script
def bad_words(library: Library) -> Any:
    model, pixel_values = library.load(), batch(library)["pixel_values"]
    banned = model.generate(pixel_values, max_new_tokens=6)[:, 2].tolist()
    return model.generate(pixel_values, bad_words_ids=[[banned[0]], [banned[1], 7]], num_beams=2, max_new_tokens=6)


@script
def min_p_sampling(library: Library) -> Any:
    torch.manual_seed(0)
    return library.load().generate(batch(library)["pixel_values"], do_sample=True, min_p=0.1, top_k=0)


@script
def other_sampling(library: Library) -> Any:
    model, pixel_values, results = library.load(), batch(library)["pixel_values"], []
    for options in ({"typical_p": 0.6}, {"epsilon_cutoff": 0.01}, {"eta_cutoff": 0.01}, {"top_p": 0.5, "top_k": 0}):
        torch.manual_seed(0)
        results.append(model.generate(pixel_values, do_sample=True, max_new_tokens=5, **options))
    return results


@script
def allowed_tokens(library: Library) -> Any:
    def allow(row: int, ids: Tensor) -> list[int]:
        return [20 + row, 30, 40] if len(ids) < 6 else [3]

    model, pixel_values = library.load(), batch(library)["pixel_values"]
    return [model.generate(pixel_values, prefix_allowed_tokens_fn=allow, num_beams=beams) for beams in (1, 2)]


@script
def forced_tokens(library: Library) -> Any:
    options = {"forced_eos_token_id": 3, "max_new_tokens": 5, "begin_suppress_tokens": [40], "renormalize_logits": True}
    return library.load().generate(batch(library)["pixel_values"], **options)


@script
def decode_text_alone(library: Library) -> Any:
    model = library.load().text_decoder
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[598, 20], [598, 30]])
    return model.generate(input_ids=ids, encoder_hidden_states=states, max_new_tokens=4)


# Methods.


@script
def output_embeddings(library: Library) -> Any:
    model = library.load()
    head = model.text_decoder.get_output_embeddings()
    shared = head.weight is model.get_input_embeddings().weight
    return [model.get_output_embeddings(), type(head).__name__, shared, head.bias]


@script
def attention_implementation(library: Library) -> Any:
    model = library.load()
    model.set_attn_implementation("eager")
    return model(**batch(library)).logits


@script
def sizes(library: Library) -> Any:
    return [
        [
            model.get_memory_footprint(),
            model.get_memory_footprint(return_buffers=False),
            model.num_parameters(),
            model.num_parameters(exclude_embeddings=True),
            model.num_parameters(only_trainable=True),
        ]
        for model in map(library.load, PUBLISHED)
    ]


@script
def resize_embeddings(library: Library) -> Any:
    model = library.load()
    embeddings = model.resize_token_embeddings(610)
    smaller = library.load()
    smaller.resize_token_embeddings(599)
    shapes = [list(tensor.shape) for _, tensor in sorted(model.state_dict().items())]
    return [shapes, embeddings.weight[:600], model.config.text_config.vocab_size, smaller(**batch(library)).logits]


@script
def resize_embeddings_to_a_multiple(library: Library) -> Any:
    model = library.load()
    model.resize_token_embeddings(601, pad_to_multiple_of=64, mean_resizing=False)
    return [list(model(**batch(library)).logits.shape), model.text_decoder.cls.predictions.bias]


@script
def initialize_weights(library: Library) -> Any:
    model = library.load()
    model.init_weights()
    model.post_init()
    return sorted(name for name, _ in model.named_parameters())


@script
def who_can_generate(library: Library) -> Any:
    return [getattr(library, cls).can_generate() for cls in (*PUBLISHED, "BlipVisionModel", "BlipTextModel")]


@script
def base_classes(library: Library) -> Any:
    return [
        issubclass(library.BlipForConditionalGeneration, library.BlipPreTrainedModel),
        issubclass(library.BlipTextLMHeadModel, library.BlipTextPreTrainedModel),
        library.BlipForConditionalGeneration.main_input_name,
        library.BlipForConditionalGeneration.base_model_prefix,
        library.BlipForConditionalGeneration.supports_gradient_checkpointing,
        [type(part).__name__ for part in (library.load().get_decoder(), library.load(ANSWERER).get_encoder())],
    ]


@script
def tags(library: Library) -> Any:
    model = library.load()
    model.add_model_tags(["toy", "toy"])
    return model.model_tags


# Configurations.


@script
def configuration_files(library: Library) -> Any:
    config = library.load().config
    config.to_json_file(library.folder / "values.json")
    again = library.BlipConfig.from_json_file(library.folder / "values.json")
    return [again.text_config.hidden_size, again.vision_config.image_size, again.projection_dim]


@script
def configuration_values(library: Library) -> Any:
    config = library.load().config
    text = config.get_text_config()
    return [type(text).__name__, text.vocab_size, config.is_encoder_decoder, text.get_text_config() is text]


@script
def configuration_differences(library: Library) -> Any:
    values = library.load().config.to_diff_dict()
    for key in ("text_config", "vision_config"):
        values[key] = {name: values[key][name] for name in sorted(values[key])}
    return {name: values[name] for name in sorted(values) if name not in ("transformers_version", "architectures")}


# Tokenizers and processors.


@script
def pad_encoded_texts(library: Library) -> Any:
    tokenizer = library.tokenizer
    rows = [tokenizer("a cat"), tokenizer("two dogs on a mat")]
    return [
        dict(tokenizer.pad(rows, return_tensors="pt")),
        dict(tokenizer.pad({"input_ids": [[2, 5, 3], [2, 3]]}, padding="max_length", max_length=6)),
        dict(tokenizer.pad(tokenizer("a cat"), pad_to_multiple_of=8)),
    ]


@script
def add_tokens(library: Library) -> Any:
    tokenizer = library.tokenizer
    added = [tokenizer.add_tokens(["<left>", "cat"]), tokenizer.add_special_tokens({"bos_token": "[DEC]"})]
    ids = tokenizer("a <left> cat [DEC]")["input_ids"]
    return [added, len(tokenizer), ids, tokenizer.decode(ids, skip_special_tokens=True), tokenizer.bos_token_id]


@script
def added_tokens_are_saved(library: Library) -> Any:
    tokenizer = library.tokenizer
    tokenizer.add_tokens(["<left>"])
    tokenizer.save_pretrained(library.folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(library.folder)("a <left> cat")["input_ids"]


@script
def tokens_to_text(library: Library) -> Any:
    tokenizer = library.tokenizer
    tokens = tokenizer.tokenize("two dogs on a mat")
    return [tokens, tokenizer.convert_tokens_to_string(tokens), tokenizer.convert_tokens_to_ids(tokens)]


@script
def facts_of_tokenizers(library: Library) -> Any:
    tokenizer = library.tokenizer
    return [
        tokenizer.is_fast,
        tokenizer.num_special_tokens_to_add(),
        tokenizer.pad_token_type_id,
        tokenizer.special_tokens_map,
        tokenizer.get_special_tokens_mask([2, 9, 3], already_has_special_tokens=True),
    ]


@script
def processors_of_transformers(library: Library) -> Any:
    from transformers import BertTokenizer, BlipImageProcessor

    folder = library.checkpoints[CAPTIONER]
    processor = library.BlipProcessor(BlipImageProcessor.from_pretrained(folder), BertTokenizer.from_pretrained(folder))
    return dict(processor(images=photos(), text=["a cat"] * 2, return_tensors="pt"))


@script
def processor_files(library: Library) -> Any:
    library.processor.save_pretrained(library.folder)
    from transformers import BlipProcessor

    return dict(BlipProcessor.from_pretrained(library.folder)(images=photos(), text="a cat", return_tensors="pt"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    results = []
    for library in ("transformers", "openblip"):
        folder = tmp_path / library
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(plain(SCRIPTS[name](Library(library, checkpoints, folder))))
    theirs, ours = results
    close(ours, theirs, 2e-4)


def test_there_are_enough_scripts() -> None:
    assert len(SCRIPTS) >= 80


# What needs a process of its own: the Auto classes change, and the address of the hub is read on import.

AUTO = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
import openblip
from tests.compat.script_toys import photos
folder, results = Path(sys.argv[1]), []
options = {"images": photos(1)[0], "text": "a cat", "generate_kwargs": {"max_new_tokens": 5}}
for registered in (False, True):
    if registered:
        openblip.register_with_transformers()
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    run = pipeline("image-text-to-text", model=model, processor=processor)
    results.append((type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0], run(**options)))
model, processor = openblip.BlipForConditionalGeneration, openblip.BlipProcessor
run = pipeline(
    "image-text-to-text", model=model.from_pretrained(folder), processor=processor.from_pretrained(folder)
)
results.append(run(**options))
assert [row[:2] for row in results[:2]] == [("transformers", "transformers"), ("openblip", "openblip")]
assert results[0][2] == results[1][2] == results[2] != []
print("equal")
"""
PUSH = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import openblip, transformers
from tests.compat.loopback_hub import serve_hub
import huggingface_hub.constants as constants
pushed = []
for library in (transformers, openblip):
    with serve_hub() as (address, files):
        from huggingface_hub import hf_api
        constants.ENDPOINT = hf_api.ENDPOINT = address
        hf_api.api.endpoint = address
        folder = Path(sys.argv[1])
        model = library.BlipForConditionalGeneration.from_pretrained(folder)
        model.push_to_hub("owner/toy", token="hf_toy", private=True)
        library.BlipProcessor.from_pretrained(folder).tokenizer.push_to_hub("owner/toy", token="hf_toy")
        pushed.append(sorted(files))
names = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
assert names <= set(pushed[0]) and names <= set(pushed[1]), pushed
print("equal")
"""


@pytest.mark.parametrize("code", [AUTO, PUSH], ids=["auto-classes-and-pipelines", "push-to-hub"])
def test_scripts_of_their_own_process(code: str, checkpoints: dict[str, Path]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0" if code is PUSH else "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(checkpoints[CAPTIONER])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr[-2000:]
