"""Weather through a tool: told, asked yes or no, the city asked back, the tool failing or not offered."""

from __future__ import annotations

from random import Random

from samples.nano.texts import numbers, tools
from samples.nano.texts.dialogues import Scene, Turn
from samples.nano.texts.grammar import words
from samples.nano.texts.scenes.draw import Draw

Asked = tuple[str, str, str, int]  # city, day, condition, degrees


def day(draw: Draw) -> Scene:
    asked = draw.values("weather.day", _weather)
    city, when, *_ = asked
    turns = (draw.ask("weather.day", asked, city=city, day=_phrase(when)), *_told(draw, asked))
    return Scene(turns, needs=("get_weather",))


def clarified(draw: Draw) -> Scene:
    asked = draw.values("weather.city", _weather)
    turns = (
        draw.ask("weather.vague", day=_phrase(asked[1])),
        draw.say("weather.where", ["which city|what city|where"]),
        draw.ask("weather.city", asked, city=asked[0]),
        *_told(draw, asked),
    )
    return Scene(turns, needs=("get_weather",))


def rain(draw: Draw) -> Scene:
    asked = draw.values("weather.rain", _weather_with_much_rain)
    city, when, condition, degrees = asked
    answer = (
        draw.say("weather.rain", ["yes", city], city=city)
        if condition == "rainy"
        else draw.say("weather.no_rain", ["no", city, condition], city=city, condition=condition)
    )
    call = draw.call(tools.call("get_weather", city=city, day=when))
    forecast = draw.result(tools.result(condition=condition, degrees=degrees))
    turns = (draw.ask("weather.rain", asked, city=city, day=_phrase(when)), call, forecast, answer)
    return Scene(turns, needs=("get_weather",))


def warm(draw: Draw) -> Scene:
    asked = draw.values("weather.warm", _weather)
    city, when, condition, degrees = asked
    said = numbers.speak(degrees)
    turns = (
        draw.ask("weather.warm", asked, city=city, day=_phrase(when)),
        draw.call(tools.call("get_weather", city=city, day=when)),
        draw.result(tools.result(condition=condition, degrees=degrees)),
        draw.say("weather.warm", [f"{said} degrees", city], city=city, degrees=said),
    )
    return Scene(turns, needs=("get_weather",))


def without_tool(draw: Draw) -> Scene:
    """Not among the functions offered, so it can't be had."""
    asked = draw.values("weather.day", _weather)
    question = draw.ask("weather.day", asked, city=asked[0], day=_phrase(asked[1]))
    return Scene((question, draw.say("weather.no_tool", ["can't|cannot"])), lacks=("get_weather",))


def _told(draw: Draw, asked: Asked) -> tuple[Turn, ...]:
    city, when, condition, degrees = asked
    call = draw.call(tools.call("get_weather", city=city, day=when))
    if draw.chance(0.08):
        failed = draw.result(tools.failed(draw.random.choice(("no connection", "unknown city", "timeout"))))
        return call, failed, draw.say("weather.failed", ["can't|cannot"])
    said = {"city": city, "condition": condition, "degrees": numbers.speak(degrees)}
    act = "weather.today" if when == "today" else "weather.day"
    facts = [city, condition, f"{said['degrees']} degrees"]
    slots = said if when == "today" else said | {"day": _phrase(when)}
    return call, draw.result(tools.result(condition=condition, degrees=degrees)), draw.say(act, facts, **slots)


def _weather(random: Random) -> Asked:
    """Any day; snow in the cold alone, so that what is said makes sense. Not one degree, for the plural's sake."""
    degrees = random.choice([d for d in range(-9, 37) if abs(d) != 1])
    conditions = [c for c in words("conditions") if degrees < 3 or c != "snowy"]
    conditions = [c for c in conditions if degrees > 0 or c != "rainy"]
    return random.choice(words("cities")), random.choice(words("days")), random.choice(conditions), degrees


def _weather_with_much_rain(random: Random) -> Asked:
    city, when, condition, degrees = _weather(random)
    return (city, when, "rainy", abs(degrees) + 2) if random.random() < 0.4 else (city, when, condition, degrees)


def _phrase(when: str) -> str:
    return when if when in ("today", "tomorrow") else f"on {when}"
