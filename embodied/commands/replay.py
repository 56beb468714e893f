"""`embodied replay`: a rollout of an evaluation, an episode of a store or a served session as a Rerun recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from embodied.catalog import make_task
from embodied.commands.replay_sessions import SESSIONS, chosen_session, follow, write_recording_of
from embodied.console import say
from embodied.datasets.open_store import is_store, open_store
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.replay.recording import write_demonstration, write_recording
from embodied.replay.rollout_file import load_rollout, read_start_id
from embodied.replay.viewer import how_to_view, open_recording
from embodied.run_directory import RunDirectory, find_run
from embodied.session_files.layout import is_session_file, session_name
from embodied.summaries import read_summary
from embodied.types import Episode, Json

VOLATILE = ("open", "viewer", "live_s")
RUNS = ("eval", "train", "distill", "collect", "serve")  # that hold something to replay, in order of preference
ROLLOUTS = "rollouts"  # folder of an evaluation
DEMONSTRATIONS = "demonstrations.zarr"  # store of a collection


@dataclass
class _Source:
    """What to replay."""

    kind: str  # "rollout", "demonstration", "session" or "recording"
    path: Path  # of the rollout, the store, the session or the recording
    start: int | None = None  # start id; None for a recording
    index: int = 0  # in the store


def run(config: DictConfig) -> Path:
    """Write the recording, open it where that is wanted and possible, and return the path of `summary.json`.

    A recording is made anew each time: it takes under a second, and what it shows may have changed.

    Raises:
        UserError: nothing to replay there, no such episode (lists those there are), or a damaged file.
    """
    path, run_root = Path(str(config.run)), Path(str(config.run_root))
    if config.live:
        return _follow(config, _serving_run(path, run_root))
    source = _find(path, _start_id(config.episode), run_root, config.session)
    directory = RunDirectory.open("replay", _stem(source), config, volatile=VOLATILE)
    with directory.lock():
        if source.kind == "recording":
            recording, about = source.path.resolve(), {}
        else:
            recording = directory.path / f"{_recording_stem(source)}.rrd"
            about = _write(source, recording)
        shown = source.path if source.kind == "recording" else recording
        say(f"recording: {shown}")
        if config.open is False:
            pass
        elif open_recording(shown):
            say("opened in the viewer")
        else:
            say(f"no screen here: {how_to_view(shown)}")
        name = str(recording) if source.kind == "recording" else recording.name
        return directory.write_summary(_result(source.kind, source.path, name, about, source.start))


def _result(kind: str, source: Path, recording: str, about: Json, start: int | None = None) -> Json:
    known = ("task", "success_ever", "success_last", "first_success", "steps", "session")
    return {
        "kind": kind,
        "source": str(source),
        "recording": recording,
        "start": start,
        **{name: about.get(name) for name in known},
    }


def _follow(config: DictConfig, run: Path) -> Path:
    """Show a server's sessions while it runs; their recordings lie in the run directory afterwards."""
    directory = RunDirectory.open("replay", f"{run.resolve().name}-live", config, volatile=VOLATILE)
    with directory.lock():
        recordings = follow(config, run, directory.path / SESSIONS)
        for recording in recordings:
            say(f"recording: {recording}")
        return directory.write_summary(_result("live", run, SESSIONS, {}))


def _serving_run(path: Path, run_root: Path) -> Path:
    """
    Raises:
        UserError: no run of a server that records.
    """
    run = path if (path / SESSIONS).is_dir() else find_run(path, commands=["serve"], run_root=run_root)
    if not (run / SESSIONS).is_dir():
        raise UserError(expected=f"sessions in {run}", found="none", remedy="serve with record=on")
    return run


def _recording_stem(source: _Source) -> str:
    return session_name(source.path) if source.kind == "session" else f"start_{source.start}"


def _stem(source: _Source) -> str:
    """A recognisable name: of the evaluation or store, and the start."""
    path = source.path.resolve()
    if source.kind == "session":
        return f"{path.parent.parent.name}-{session_name(path)}"
    if source.start is None:
        return path.stem
    if path.parent.name == ROLLOUTS:
        name = path.parent.parent.name
    else:
        name = path.parent.name if path.name == DEMONSTRATIONS else path.stem
    return f"{name}-start{source.start}"


def _start_id(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise UserError(expected="episode= to be a start id", found=f"'{value}'", remedy="give a whole number, or null")


def _find(path: Path, start: int | None, run_root: Path, session: object) -> _Source:
    """What `path` names: a rollout, a recording, a store, a session, or the run that holds one."""
    if is_session_file(path):
        return _Source("session", path)
    if (path / SESSIONS).is_dir():
        return _Source("session", chosen_session(path / SESSIONS, session))
    if path.is_file() and path.suffix == ".rrd":
        return _Source("recording", path)
    if path.is_file() and path.suffix == ".npz":
        return _rollout([path], start, path)
    if is_store(path):
        return _episode(path, start)
    if not (path / ROLLOUTS).is_dir():
        path = _evaluation_of(find_run(path, commands=RUNS, run_root=run_root))
    if (path / SESSIONS).is_dir():
        return _Source("session", chosen_session(path / SESSIONS, session))
    if (path / DEMONSTRATIONS).is_dir() and not (path / ROLLOUTS).is_dir():
        return _episode(path / DEMONSTRATIONS, start)
    return _rollout(sorted((path / ROLLOUTS).glob("*.npz")), start, path)


def _evaluation_of(path: Path) -> Path:
    """The run itself, or the evaluation that a training run names in its summary."""
    if any((path / name).is_dir() for name in (ROLLOUTS, DEMONSTRATIONS, SESSIONS)):
        return path
    named = read_summary(path / "summary.json").get("evaluation")
    if not isinstance(named, dict) or "path" not in named:
        return path
    return path / str(named["path"])


def _rollout(files: list[Path], start: int | None, where: Path) -> _Source:
    by_start = {read_start_id(file): file for file in files}
    chosen = _choose(sorted(by_start), start, where)
    return _Source("rollout", by_start[chosen], chosen)


def _episode(path: Path, start: int | None) -> _Source:
    seeds = [row.seed for row in open_store(path).rows]
    chosen = _choose(seeds, start, path)
    return _Source("demonstration", path, chosen, seeds.index(chosen))


def _choose(starts: list[int], start: int | None, where: Path) -> int:
    """`start`, or the first there is.

    Raises:
        UserError: it is not there; says which are.
    """
    if not starts:
        raise UserError(
            expected=f"recorded episodes in {where}",
            found="none",
            remedy="evaluate again with recordings, or name a run, a store, a rollout (.npz) or a recording (.rrd)",
        )
    if start is None:
        return starts[0]
    if start not in starts:
        listing = ", ".join(str(known) for known in starts[:20])
        more = f" and {len(starts) - 20} more" if len(starts) > 20 else ""
        raise UserError(
            expected=f"an episode of {where}", found=f"episode={start}", remedy=f"recorded starts: {listing}{more}"
        )
    return start


def _write(source: _Source, recording: Path) -> Json:
    """Write the recording of what was found, and return what the summary says of it."""
    if source.kind == "session":
        return write_recording_of(source.path, recording)
    if source.kind == "rollout":
        saved = load_rollout(source.path)
        write_recording(recording, saved, f"{saved.rollout.episode.task}, start {source.start}")
        return _about(saved.rollout.episode)
    store = open_store(source.path)
    episode = store.episode(source.index)
    scene_task = _task_of(store)
    try:
        scene_task.reset(episode.seed)
        scene = scene_task.scene()
        if scene.bodies and not episode.physics.shape[1]:
            raise UserError(
                expected="an episode with the simulator's states, from which it can be drawn",
                found=f"start {episode.seed} of {store.path}, which holds none",
                remedy="collect the demonstrations again",
            )
        poses = scene_task.body_poses(episode.physics)
        title = f"{episode.task}, demonstration {source.start}"
        write_demonstration(recording, episode, scene, poses, store.spec, title)
    finally:
        scene_task.close()
    return _about(episode)


def _task_of(store: DemonstrationStore):
    """The simulated task that made the store, without its cameras: only geometry and poses are asked of it."""
    recorded = store.provenance.get("task")
    settings = dict(recorded) if isinstance(recorded, dict) else {}
    if "cameras" in settings:
        settings["cameras"] = []
    return make_task({"name": store.spec.task, **settings})


def _about(episode: Episode) -> Json:
    return {
        "task": episode.task,
        "success_ever": episode.success_ever,
        "success_last": episode.success_last,
        "first_success": episode.first_success,
        "steps": episode.length,
    }
