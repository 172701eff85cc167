"""Scenes by task: each a function from `Draw` to a `Scene` of a few turns, whose right answers are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from samples.nano.texts.dialogues import Scene
from samples.nano.texts.scenes import clock, home, lists, sums, talk, timers, units, weather
from samples.nano.texts.scenes.draw import Draw

# A scene named twice comes twice as often.
SCENES: Mapping[str, tuple[Callable[[Draw], Scene], ...]] = {
    "clock": (clock.now, clock.in_a_city, clock.in_a_city, clock.date, clock.weekday, clock.later),
    "timers": (timers.set_timer, timers.set_timer, timers.clarified, timers.cancel, timers.left),
    "alarms": (timers.set_alarm, timers.set_alarm, timers.alarm_clarified, timers.cancel_alarm),
    "lights": (home.light, home.light, home.clarified, home.dim),
    "devices": (home.device, home.device, home.heating),
    "sums": (sums.operation, sums.operation, sums.operation, sums.percent, sums.chain, sums.more),
    "units": (units.convert, units.convert, units.two),
    "lists": (lists.shopping, lists.shopping, lists.chores),
    "weather": (weather.day, weather.day, weather.rain, weather.warm, weather.clarified, weather.without_tool),
    "talk": (talk.small, talk.small, talk.introduced, talk.named, talk.nameless, talk.again),
    "refusals": (talk.refused, talk.refused, talk.refused, talk.unclear),
}
