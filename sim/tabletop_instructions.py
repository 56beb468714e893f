"""What a tabletop task is told in words: one canonical sentence, paraphrases to train on, others held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embodied.catalog import nearest
from embodied.errors import UserError

CHOICES = ("canonical", "training", "held_out")


def check_choice(choice: str) -> None:
    """
    Raises:
        UserError: none of `CHOICES`.
    """
    if choice not in CHOICES:
        raise UserError(
            expected="the kind of sentences for task.instructions",
            found=f"'{choice}'",
            remedy=nearest(str(choice), CHOICES),
        )


@dataclass(frozen=True)
class Instructions:
    """Sentences of one task, with {fields} for what a start decides."""

    canonical: str
    training: tuple[str, ...]  # the canonical one may be met in training, too
    held_out: tuple[str, ...]  # for evaluation alone

    def sentence(self, choice: str, start_id: int, words: Mapping[str, str]) -> str:
        """The sentence for a start: the same one for the same id."""
        if choice == "canonical":
            return self.canonical.format(**words)
        sentences = (self.canonical, *self.training) if choice == "training" else self.held_out
        place = np.random.default_rng([start_id, len(sentences)]).integers(len(sentences))
        return sentences[int(place)].format(**words)


PICK = Instructions(
    "pick {item}",
    ("pick up the {item}", "grab the {item}", "lift the {item} from the table", "take the {item}"),
    ("raise the {item} off the table", "get hold of the {item} and hold it up", "could you pick the {item} up"),
)
MOVE_NEAR = Instructions(
    "move {item} near {target}",
    ("move the {item} close to the {target}", "bring the {item} to the {target}", "put the {item} beside the {target}"),
    ("place the {item} next to the {target}", "the {item} belongs by the side of the {target}"),
)
OPEN_DRAWER = Instructions(
    "open {height} drawer",
    ("open the {height} drawer", "pull the {height} drawer open", "pull out the {height} drawer"),
    ("draw the {height} drawer out", "i need the {height} drawer open"),
)
CLOSE_DRAWER = Instructions(
    "close {height} drawer",
    ("close the {height} drawer", "push the {height} drawer shut", "push the {height} drawer in"),
    ("shut the {height} drawer", "i need the {height} drawer closed"),
)
PUT_IN_DRAWER = Instructions(
    "put {item} in {height} drawer",
    (
        "open the {height} drawer and put the {item} in",
        "put the {item} into the {height} drawer",
        "place the {item} in the {height} drawer",
    ),
    ("stow the {item} away in the {height} drawer", "the {item} goes inside the {height} drawer"),
)
PUT_ON = Instructions(
    "put {item} on {target}",
    ("put the {item} on the {target}", "place the {item} on the {target}", "lay the {item} on the {target}"),
    ("set the {item} down on the {target}", "the {item} belongs on the {target}"),
)
STACK = Instructions(
    "stack {item} on {target}",
    ("stack the {item} on the {target}", "put the {item} on top of the {target}", "place the {item} onto the {target}"),
    ("build a tower with the {item} above the {target}", "the {item} goes over the {target}"),
)
PUT_IN_BASKET = Instructions(
    "put {item} in {target}",
    ("put the {item} in the {target}", "place the {item} into the {target}", "drop the {item} in the {target}"),
    ("let the {item} fall inside the {target}", "the {item} belongs in the {target}"),
)
