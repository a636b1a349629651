"""A plain function, run in a thread, so that it may block: `lmos run examples/weather.py`."""

import zlib

from lmos_mesh import Agent

agent = Agent("weather", description="Forecasts the weather in European cities.")

CITIES = (
    "Amsterdam", "Athens", "Berlin", "Bonn", "Budapest", "Hamburg", "Lisbon", "London", "Madrid",
    "Munich", "Oslo", "Paris", "Prague", "Rome", "Vienna", "Warsaw",
)  # fmt: skip
SKIES = ("sunny", "cloudy with bright spells", "rainy, take an umbrella", "windy and dry")


@agent.capability(
    examples=[
        "what is the weather like in Rome?",
        "will it rain tomorrow?",
        "do I need an umbrella in Paris today?",
        "how warm will it be at the weekend?",
        "is it sunny in Athens?",
    ]
)
def forecast(question: str) -> str:
    """Forecast the weather in a city: temperature, rain and wind."""
    city = next((one for one in CITIES if one.casefold() in question.casefold()), None)
    if city is None:
        return f"For which city? I know {', '.join(CITIES[:5])} and {len(CITIES) - 5} more."
    seed = zlib.crc32(city.encode())
    return f"{city} will be {SKIES[seed % len(SKIES)]}, at {8 + seed // 7 % 20} °C."
