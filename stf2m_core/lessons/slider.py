"""One picture per setting under a slider: alive in a running notebook, a still picture everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from stf2m_core.errors import ConfigError


class PictureSlider:
    """A slider over settings; each picture is drawn when it is first asked for.

    A front end that has a kernel shows the slider. The same output holds the first picture as PNG: what cannot run a
    widget, such as a page of HTML or an executed copy, shows that.

    Args:
        draw: from a setting to its figure.
        settings: to choose from, in order.
        start: the first one shown, and the only one where nothing moves.
        name: what the slider chooses.

    Raises:
        ConfigError: if `start` is none of the settings.
    """

    def __init__(self, draw: Callable[[Any], Figure], settings: Sequence[Any], start: Any, name: str):
        if start not in settings:
            legal = ", ".join(map(str, settings))
            raise ConfigError(f"start = {start!r}", expected=f"one of {legal}", where="PictureSlider")
        self.settings, self.start, self.name = tuple(settings), start, name
        self._draw, self._drawn = draw, {}

    def picture(self, setting: Any) -> bytes:
        """PNG of one setting."""
        if setting not in self._drawn:
            self._drawn[setting] = self._draw(setting)._repr_png_()
        return self._drawn[setting][0]

    def widget(self) -> Any:
        """The slider and its picture, as one ipywidgets box."""
        import ipywidgets

        choose = ipywidgets.SelectionSlider(
            options=self.settings, value=self.start, description=self.name, continuous_update=False
        )
        picture = ipywidgets.Image(value=self.picture(self.start), format="png")
        picture.layout.width = f"{self._drawn[self.start][1]['width']}px"
        choose.observe(lambda change: setattr(picture, "value", self.picture(change["new"])), names="value")
        return ipywidgets.VBox([choose, picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        live = self.widget()._repr_mimebundle_()
        still = {"image/png": self.picture(self.start), "text/plain": f"{self.name} = {self.start}"}
        return {**live, **still}, {"image/png": self._drawn[self.start][1]}
