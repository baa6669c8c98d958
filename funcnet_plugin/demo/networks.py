"""Finds which networks of the demo model carry which skill, as `funcnet atlas` and `lesion` do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from funcnet_plugin.demo.evaluate import GROUP, TASK, skill_tasks, write_tasks
from funcnet_plugin.demo.skills import SKILLS, documents
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.lesioning import lesion_study
from funcnet_plugin.lesions.choice import specific_to
from funcnet_plugin.lesions.effects import Effect, effects, write_effects
from funcnet_plugin.lesions.study import Study
from funcnet_plugin.surveying import make_atlas

CHANCE = 0.25
HALF, SPARED = 0.5, 0.05  # what a network that carries a skill takes of it, and leaves of others
HURT = 0.1  # what it takes at least, to be spoken of
COMPONENTS = 32  # networks of each layer
THRESHOLD = 2.0  # entry of a map, in deviations, that makes a member
DRAWS = 3
SHARE = 0.95  # of the skills, for the fewest networks
CHOSEN_ON, TOLD_ON = 16, 48  # questions per skill: networks are chosen on the first, told on others
_SIZES = (2, 3, 4)  # networks that are tried together, besides single ones
_MODEL_ARGS = "dtype=float32,add_bos_token=True,batch_size=64"


@dataclass(frozen=True)
class Carrier:
    """Holds what the networks chosen for a skill do.

    Attributes:
        skill: key of SKILLS.
        networks, neurons, share: their names, the neurons that are silenced, of all.
        effects: skill -> what their lesion did to it, beside random neurons.
    """

    skill: str
    networks: tuple[str, ...]
    neurons: int
    share: float
    effects: Mapping[str, Effect]

    @property
    def taken(self) -> float:
        """Tell which share of the skill's distance to chance is lost."""
        effect = self.effects[self.skill]
        return effect.change / (CHANCE - (effect.value - effect.change))

    @property
    def worst_other(self) -> tuple[str, float]:
        """Give the other skill that loses most, and what it loses."""
        losses = {s: -e.change for s, e in self.effects.items() if s != self.skill}
        worst = max(losses, key=losses.__getitem__)
        return worst, losses[worst]

    @property
    def most_by_random(self) -> float:
        """Give what random neurons take of the skill that loses most by them, mean over draws."""
        return max(-(effect.control or 0.0) for effect in self.effects.values())

    @property
    def hurts_it_alone(self) -> bool:
        """Tell whether the skill loses by this lesion, the others do not, and by no random one."""
        loss = -self.effects[self.skill].change
        return loss >= HURT and self.worst_other[1] <= SPARED and self.most_by_random < SPARED

    @property
    def carries(self) -> bool:
        """Tell whether that is half of what the skill has above chance, or more."""
        return self.taken >= HALF and self.hurts_it_alone


@dataclass(frozen=True)
class Kept:
    """Holds the fewest networks that keep the skills where all other neurons are silent.

    Attributes:
        networks, neurons, share: how many; of all neurons.
        mean: what that does to the mean of the skills, beside keeping random neurons.
    """

    networks: int
    neurons: int
    share: float
    mean: Effect


@dataclass(frozen=True)
class Anatomy:
    """Holds what was found.

    Attributes:
        networks, neurons: of the model.
        dense: skill -> accuracy on the questions that the effects are told on.
        carriers: of every skill that a network hurts more than it hurts any other.
        kept: None where all networks together do not keep that much.
    """

    networks: int
    neurons: int
    dense: Mapping[str, float]
    carriers: tuple[Carrier, ...]
    kept: Kept | None


def find_networks(model: Path, out: Path) -> Anatomy:
    """Make an atlas of the dense model, and study what its networks carry.

    Args:
        model: checkpoint with the demo's skills.
        out: `atlas` and `lesions` are written there; neither may be there.
    """
    atlas = make_atlas(
        model,
        documents(320, seed=0, split="train"),
        out / "atlas",
        parameters={"n_components": COMPONENTS},
        samples=160,
        window=128,
    )
    folders = {}
    for name, first, limit in (("choose", 0, CHOSEN_ON), ("tell", CHOSEN_ON, TOLD_ON)):
        folders[name] = out / "lesions" / f"tasks-{name}"
        folders[name].mkdir(parents=True, exist_ok=True)
        write_tasks(folders[name], limit, first)
    sets = _chosen(model, out, folders["choose"])
    # without any lesion named every network would be measured, and the dense model is needed
    some = next(name for name in atlas.networks if atlas.neurons([name], THRESHOLD))
    lesions = list(sets.values()) or [some]
    study = _study(folders["tell"], sets=lesions, draws=DRAWS if sets else 0)
    rows = lesion_study(model, out / "atlas", out / "lesions" / "tell", study)
    found = effects(rows)
    write_effects(out / "lesions" / "tell", found)
    by_lesion = {row["lesion"]: row for row in rows if row["draw"] is None}
    carriers = [
        Carrier(
            skill,
            tuple(label.split("+")),
            by_lesion[label]["neurons"],
            by_lesion[label]["share"],
            {s: found[label][f"task/{TASK}_{s}"] for s in SKILLS},
        )
        for skill, label in sets.items()
    ]
    return Anatomy(
        networks=len(atlas.networks),
        neurons=sum(map(len, atlas.means.values())),
        dense={s: rows[0]["tasks"][f"{TASK}_{s}"] for s in SKILLS},
        carriers=tuple(carriers),
        kept=_kept(model, out, folders["tell"]),
    )


def _study(folder: Path, tasks: list[str] | None = None, **fields) -> Study:
    return Study(
        thresholds=(THRESHOLD,),
        tasks=tasks or skill_tasks(),
        include_path=str(folder),
        model_args=_MODEL_ARGS,
        **fields,
    )


def _chosen(model: Path, out: Path, folder: Path) -> dict[str, str]:
    """Choose the networks of every skill on the first questions.

    Single networks are tried first, then the most specific ones together.

    Returns:
        skill -> lesion, as in L0.N3+L1.N0; none for a skill that every lesion leaves, or hurts less
        than another.
    """
    place = out / "lesions" / "choose"
    single = effects(lesion_study(model, out / "atlas", place, _study(folder, draws=0)))
    write_effects(place, single)
    sets = {}
    for task in skill_tasks():
        ranked = specific_to(single, task)
        sets |= {"+".join(ranked[:n]): None for n in _SIZES if len(ranked) >= n}
    tried = dict(single)
    if sets:
        study = _study(folder, sets=list(sets), draws=0)
        tried |= effects(lesion_study(model, out / "atlas", place, study))
    best = {}
    for skill, task in zip(SKILLS, skill_tasks(), strict=True):
        ranked = specific_to(tried, task)
        if ranked:
            best[skill] = ranked[0]
    return best


def _kept(model: Path, out: Path, folder: Path) -> Kept | None:
    """Look for the fewest networks that keep the mean of all skills."""
    study = _study(folder, [GROUP], sets=[f"enough:{GROUP}:{SHARE}"], draws=DRAWS)
    try:
        rows = lesion_study(model, out / "atlas", out / "lesions" / "keep", study)
    except AtlasError:  # all of them are not enough
        return None
    found = effects(rows)
    (label,) = {row["lesion"] for row in rows if row["draw"] is not None}
    (row,) = [row for row in rows if row["lesion"] == label and row["draw"] is None]
    return Kept(len(row["networks"]), row["neurons"], row["share"], found[label][f"task/{GROUP}"])
