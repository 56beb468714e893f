"""What may be changed of a trained policy: settings by name, checked, and taken back where they do not fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from embodied.catalog import nearest
from embodied.errors import UserError


class RunTimeSettings(ABC):
    """Each setting is an attribute of its name."""

    run_time_settings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def prepare(self) -> None:
        """Check the run-time settings and compute what depends on them alone."""

    def configure(self, **settings: Any) -> None:
        """Change run-time settings of a trained policy.

        Raises:
            UserError: a setting that this policy does not have, or a value that it cannot run with.
        """
        for name in settings:
            if name not in self.run_time_settings:
                raise UserError(
                    expected=f"a run-time setting of {type(self).__name__}",
                    found=f"policy.{name}",
                    remedy=nearest(name, self.run_time_settings),
                )
        previous = {name: getattr(self, name) for name in settings}
        for name, value in settings.items():
            setattr(self, name, value)
        try:
            self.prepare()
        except UserError:
            for name, value in previous.items():
                setattr(self, name, value)
            self.prepare()
            raise

    def check_between(self, name: str, lowest: int, highest: int, meaning: str) -> None:
        """
        Args:
            meaning: of `highest`, with the number in it.

        Raises:
            UserError: the setting `name` is no whole number between the two.
        """
        value = getattr(self, name)
        if not isinstance(value, int) or not lowest <= value <= highest:
            raise UserError(
                expected=f"policy.{name} between {lowest} and {meaning}",
                found=str(value),
                remedy=f"change policy.{name}",
            )
