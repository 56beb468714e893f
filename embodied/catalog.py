"""What can be named on the command line or in a checkpoint. Lazy, so that naming a thing imports nothing."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from embodied.errors import UserError

if TYPE_CHECKING:
    from embodied.protocols import Executor, Policy, Variant

# "family/*" serves a whole family: the names that are files of conf/task/family, or, without such a folder, any name.
TASKS = {
    "adroit/door": "embodied.sim.adroit:DoorTask",
    "adroit/hammer": "embodied.sim.adroit:HammerTask",
    "adroit/pen": "embodied.sim.adroit:PenTask",
    "adroit/relocate": "embodied.sim.adroit:RelocateTask",
    "gymnasium/*": "embodied.sim.gymnasium_task:NamedGymnasiumTask",
    "metaworld/*": "embodied.sim.metaworld_world:MetaworldTask",
    "pusht/keypoints": "embodied.sim.pusht:PushTKeypoints",
    "pusht/pixels": "embodied.sim.pusht:PushTPixels",
    "pusht/state": "embodied.sim.pusht:PushTState",
    "robosuite/can": "embodied.sim.can:CanTask",
    "robosuite/door": "embodied.sim.robosuite_door:DoorTask",
    "robosuite/lift": "embodied.sim.lift:LiftTask",
    "robosuite/square": "embodied.sim.square:SquareTask",
    "robosuite/stack": "embodied.sim.stack:StackTask",
    "tabletop/close_drawer": "embodied.sim.tabletop_drawer:CloseDrawerTask",
    "tabletop/move_near": "embodied.sim.tabletop_move_near:MoveNearTask",
    "tabletop/open_drawer": "embodied.sim.tabletop_drawer:OpenDrawerTask",
    "tabletop/pick_can": "embodied.sim.tabletop_pick:PickCanTask",
    "tabletop/put_in_basket": "embodied.sim.tabletop_placing:PutInBasketTask",
    "tabletop/put_in_drawer": "embodied.sim.tabletop_put_in_drawer:PutInDrawerTask",
    "tabletop/put_on": "embodied.sim.tabletop_placing:PutOnTask",
    "tabletop/stack": "embodied.sim.tabletop_placing:StackTask",
}
EXPERTS = {
    "gymnasium/*": "embodied.sim.gymnasium_task:expert_of",
    "metaworld/*": "embodied.sim.metaworld_expert:MetaworldExpert",
    "robosuite/can": "embodied.sim.can:CanExpert",
    "robosuite/door": "embodied.sim.robosuite_door:DoorExpert",
    "robosuite/lift": "embodied.sim.lift:LiftExpert",
    "robosuite/square": "embodied.sim.square:SquareExpert",
    "robosuite/stack": "embodied.sim.stack:StackExpert",
    "tabletop/close_drawer": "embodied.sim.tabletop_drawer:CloseDrawerExpert",
    "tabletop/move_near": "embodied.sim.tabletop_move_near:MoveNearExpert",
    "tabletop/open_drawer": "embodied.sim.tabletop_drawer:OpenDrawerExpert",
    "tabletop/pick_can": "embodied.sim.tabletop_pick:PickCanExpert",
    "tabletop/put_in_basket": "embodied.sim.tabletop_placing:BasketExpert",
    "tabletop/put_in_drawer": "embodied.sim.tabletop_put_in_drawer:PutInDrawerExpert",
    "tabletop/put_on": "embodied.sim.tabletop_placing:PlacingExpert",
    "tabletop/stack": "embodied.sim.tabletop_placing:PlacingExpert",
}
# By task family: the environment as its own users run it, to measure ours against. The tabletop world is measured
# against robosuite's Lift.
BARE_ENVIRONMENTS = {
    "adroit": "embodied.sim.adroit_bare:BareAdroit",
    "gymnasium": "embodied.sim.gymnasium_bare:BareGymnasium",
    "metaworld": "embodied.sim.metaworld_bare:BareMetaworld",
    "pusht": "embodied.sim.pusht_bare:BarePushT",
    "robosuite": "embodied.sim.robosuite_bare:BareRobosuite",
    "tabletop": "embodied.sim.tabletop_bare:BareLift",
}
# By task family: `variants(task name)`, the ways in which its tasks can be varied, the task as it is first.
VARIANTS = {
    "pusht": "embodied.sim.moved_object:variants",
    "robosuite": "embodied.sim.moved_object:variants",
    "tabletop": "embodied.sim.tabletop_variants:variants",
}
# By task family: what logs a world's motion and fits the dynamics of another to it.
IDENTIFICATION = {"tabletop": "embodied.sim.system_identification:TabletopIdentification"}
TASK_EXPERT = {"name": "task"}  # conf/expert/task.yaml
# Experts made from a policy that a user has, for any task.
TEACHERS = {
    "lerobot": "embodied.policies.lerobot_teacher:LeRobotTeacher",
    "module": "embodied.policies.module_teacher:ModuleTeacher",
    "npz": "embodied.policies.npz_teacher:NpzTeacher",
    "onnx": "embodied.policies.onnx_teacher:OnnxTeacher",
    "torchscript": "embodied.policies.torchscript_teacher:TorchScriptTeacher",
}
POLICIES = {
    "diffusion": "embodied.policies.diffusion:DiffusionPolicy",
    "flow_map": "embodied.policies.flow_map:FlowMapPolicy",
    "rnr": "embodied.policies.rnr:NoiseRelayingPolicy",
    "sdp": "embodied.policies.sdp:StreamingDiffusionPolicy",
}
# What a student of few calls learns from a teacher.
OBJECTIVES = {
    "consistency": "embodied.policies.objectives.consistency:Consistency",
    "ode_pair": "embodied.policies.objectives.ode_pair:OdePair",
}
# The policies that a student can be distilled from, and what answers its objective's questions.
DISTILLED = {"diffusion": "embodied.policies.objectives.diffusion_teacher:DiffusionTeacher"}
# Between clean actions and noise, and what a network predicts on the way.
PATHS = {
    "ddpm": "embodied.policies.ddpm_path:DdpmPath",
    "flow": "embodied.policies.flow_path:FlowPath",
}
# What runs a policy's network.
ENGINES = {
    "compile": "embodied.policies.engines.compiled:CompiledEngine",
    "cuda_graph": "embodied.policies.engines.cuda_graph:CudaGraphEngine",
    "eager": "embodied.policies.engines.eager:EagerEngine",
    "onnxruntime": "embodied.policies.engines.onnx_runtime:OnnxRuntimeEngine",
}
NETWORKS = {
    "transformer": "embodied.policies.networks.transformer:Transformer1d",
    "unet": "embodied.policies.networks.unet:Unet1d",
}

ENCODERS = {
    "conv_small": "embodied.policies.encoders.conv_small:ConvSmallEncoder",
    "resnet18_gn": "embodied.policies.encoders.resnet18_gn:ResNet18Encoder",
    "state": "embodied.policies.encoders.state:StateEncoder",
    "timm": "embodied.policies.encoders.timm:TimmEncoder",
}
# What turns chunks into one action a control step.
EXECUTORS = {
    "chunk": "embodied.executors.chunk:ChunkExecutor",
    "temporal_ensembling": "embodied.executors.temporal_ensembling:TemporalEnsemblingExecutor",
    "weighted_overlap": "embodied.executors.weighted_overlap:WeightedOverlapExecutor",
}
CHUNK_EXECUTOR = {"name": "chunk"}  # conf/executor/chunk.yaml, and what evaluations without one have
STATE_ENCODER = {"name": "state", "state": None}  # conf/encoder/state.yaml, and what checkpoints without one have


def nearest(name: str, known: Iterable[str]) -> str:
    """`known` in words, the nearest to `name` first, for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = ", ".join(names) or "(none)"
    return f"did you mean '{close[0]}'? known: {listing}" if close else f"known: {listing}"


def names(registry: Mapping[str, str]) -> list[str]:
    """Every name of `registry`, with those of whole families; "family/*" itself where any name will do."""
    every: list[str] = []
    for name in registry:
        family, _, rest = name.partition("/")
        every += (_family(family) if rest == "*" else None) or [name]
    return every


def is_known(registry: Mapping[str, str], name: str) -> bool:
    """Whether `name` stands for something in `registry`."""
    family = f"{name.partition('/')[0]}/*"
    return name in names(registry) or (family in registry and family in names(registry))


def lookup(kind: str, registry: Mapping[str, str], name: str) -> Any:
    """The object that `name` stands for in `registry`; imports its module.

    Raises:
        UserError: an unknown name; lists the known ones and the nearest.
    """
    if not isinstance(name, str) or not is_known(registry, name):
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(
            expected=f"the name of {article} {kind}", found=f"'{name}'", remedy=nearest(str(name), names(registry))
        )
    entry = registry[name] if name in registry else registry[f"{name.partition('/')[0]}/*"]
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _family(family: str) -> list[str]:
    """The tasks of conf/task/family, by name; none without such a folder."""
    folder = resources.files("embodied.conf") / "task" / family
    files = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [f"{family}/{file.removesuffix('.yaml')}" for file in files if file.endswith(".yaml")]


def make(kind: str, registry: Mapping[str, str], config: Mapping[str, Any], *given: Any, **supplied: Any) -> Any:
    """Build what `config["name"]` stands for, with the rest of `config` as keyword arguments.

    Args:
        given, supplied: further arguments, which are the program's to give and not the user's.

    Raises:
        UserError: an unknown name, or settings that it does not take.
    """
    settings = {key: value for key, value in config.items() if key != "name"}
    constructor = lookup(kind, registry, config["name"])
    signature = inspect.signature(constructor)
    try:
        signature.bind(*given, **settings, **supplied)
    except TypeError as error:
        own = [name for name in list(signature.parameters)[len(given) :] if name not in supplied]
        raise UserError(
            expected=f"settings that {kind} '{config['name']}' takes: {', '.join(own) or '(none)'}",
            found=str(error),
            remedy=f"compare with conf/{kind}/",
        ) from error
    return constructor(*given, **settings, **supplied)


def in_words(config: Mapping[str, Any]) -> str:
    """The name and settings of a configuration: "temporal_ensembling m=0.01"."""
    return " ".join([config["name"], *(f"{key}={value}" for key, value in config.items() if key != "name")])


def make_executor(config: Mapping[str, Any], policy: Policy) -> Executor:
    """The executor of a conf/executor configuration, for this policy's chunks."""
    return make("executor", EXECUTORS, config, policy.spec.action, policy.inference_delay)


def make_task(config: dict[str, Any]) -> Any:
    """The task of a conf/task configuration."""
    return make("task", TASKS, config)


def make_expert(task: Any, config: Mapping[str, Any] = TASK_EXPERT) -> Any:
    """The expert for a task, of a conf/expert configuration: the task's own, or one of `TEACHERS`.

    Raises:
        UserError: the task has none of its own, or the teacher does not fit.
    """
    if config["name"] != TASK_EXPERT["name"]:
        return make("expert", TEACHERS, config, task)
    name = task.spec.task
    if not is_known(EXPERTS, name):
        raise UserError(
            expected=f"an expert for task {name}",
            found="none",
            remedy="choose a teacher (expert=npz, module, ...), a store with data.store=..., or another task",
        )
    return lookup("expert", EXPERTS, name)(task)


@dataclass(frozen=True)
class TaskAsItIs:
    """The one `Variant` that every task has."""

    id: str = "base"
    axis: str = "base"
    protocol: str = ""
    counted: bool = True


def variants(task: str) -> tuple[Variant, ...]:
    """Every variant of a task, the task as it is first."""
    family = task.partition("/")[0]
    if family not in VARIANTS:
        return (TaskAsItIs(),)
    return tuple(lookup("family of variants", VARIANTS, family)(task))


def chosen_variants(task: str, words: Sequence[str]) -> tuple[Variant, ...]:
    """The variants that are meant by ids, by axes ("light") or by protocols ("variant_aggregation"), each once.

    Raises:
        UserError: no word, or one that means no variant of this task.
    """
    known = variants(task)
    chosen: dict[str, Variant] = {}
    for word in words:
        meant = [variant for variant in known if word in (variant.id, variant.axis, variant.protocol)]
        if not meant:
            every = dict.fromkeys(name for v in known for name in (v.id, v.axis, v.protocol) if name)
            raise UserError(
                expected=f"variants of {task}, by id, axis or protocol", found=f"'{word}'", remedy=nearest(word, every)
            )
        chosen |= {variant.id: variant for variant in meant}
    if not chosen:
        raise UserError(
            expected=f"at least one variant of {task}", found="none", remedy="set variants=[base] for the task as it is"
        )
    return tuple(chosen.values())


def task_config(name: str) -> dict[str, Any]:
    """The settings of a task as conf/task has them.

    Raises:
        UserError: an unknown task, or one without settings of its own.
    """
    file = resources.files("embodied.conf") / "task" / f"{name}.yaml"
    if not is_known(TASKS, name) or not file.is_file():
        raise UserError(expected="the name of a task", found=f"'{name}'", remedy=nearest(name, names(TASKS)))
    from omegaconf import OmegaConf

    config = OmegaConf.create(file.read_text(encoding="utf-8"))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
