"""What the terminal shows of answers, decisions and logs; and that the command line is light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from lmos_mesh.cli.agents import table_of
from lmos_mesh.cli.conversing import Margin, Terminal, explained, in_short, text_only, unanswered
from lmos_mesh.cli.demo import TOUR, reasons
from lmos_mesh.cli.doctor import is_awaited
from lmos_mesh.cli.known_settings import known_settings, settings_in, unknown_settings
from lmos_mesh.cli.log_lines import read_line, shown
from lmos_mesh.cli.screen import plural
from lmos_mesh.endings import last_words
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import (
    Answer,
    AnsweredPart,
    Candidate,
    Decision,
    FoundThing,
    Instance,
    Part,
)
from lmos_mesh.things import Capability

INDENT = "    "
PIECES = st.lists(st.text(alphabet="ab \n", max_size=30), max_size=12)


def text_of(renderable: RenderableType, *, width: int = 120) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# -- the answer --


def wrapped(pieces: list[str], width: int) -> str:
    margin = Margin(INDENT, width)
    return "".join(map(margin.take, pieces)) + margin.flush()


@given(PIECES, st.integers(min_value=25, max_value=60))
def test_however_an_answer_is_cut_into_pieces_it_looks_the_same(
    pieces: list[str], width: int
) -> None:
    assert wrapped(pieces, width) == wrapped(["".join(pieces)], width)


@given(PIECES, st.integers(min_value=25, max_value=60))
def test_no_line_of_an_answer_is_too_long_and_no_word_is_lost(
    pieces: list[str], width: int
) -> None:
    whole = "".join(pieces)
    shown_text = wrapped(pieces, width)

    assert shown_text.split() == whole.split()
    for line in shown_text.split("\n"):
        assert not line or line.startswith(INDENT)
        assert len(line) < width or len(line.split()) == 1


def test_line_breaks_of_an_answer_stay() -> None:
    assert wrapped(["one\n\ntwo ", "three"], 80) == "    one\n\n    two three"


def test_an_agent_cannot_move_the_cursor_or_retitle_the_window(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = Terminal()
    view.piece("a\x1b]0;owned\x07b\x1b[2Jc\rd\x9be\tf\n")
    view.close()

    assert capsys.readouterr().out == "a]0;ownedb[2Jcde\tf\n"


def test_an_answer_that_begins_anew_begins_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = Terminal()
    view.piece("Your bill")
    view.restarted("billing-1 was lost")
    view.piece("Your bill is 3 €.")
    view.close()

    said = capsys.readouterr()
    assert said.out == "Your bill\nYour bill is 3 €.\n"
    assert "billing-1 was lost; the answer begins anew" in said.err


# -- the decision --

ROUTED = Decision(
    outcome="routed",
    agent="billing",
    capability="view_bill",
    confidence=0.934,
    candidates=(
        Candidate(
            agent="billing",
            capability="view_bill",
            capability_name="view bill",
            score=0.93,
            similarity=0.87,
            evidence="how much do I owe?",
        ),
        Candidate(agent="travel", capability="find_train", score=0.05, similarity=0.2),
        Candidate(agent="weather", capability="forecast", score=0.001),
    ),
    reason="it is like an example",
    encoder="all-MiniLM-L6-v2",
    time_ms={"total": 7.34},
)


def test_a_decision_is_one_line() -> None:
    assert in_short(ROUTED) == "billing · view bill · 93 % sure"
    assert in_short(Decision(outcome="nobody")) == "no agent is there to answer"
    assert "asks back" in in_short(Decision(outcome="unsure", confidence=0.2))
    explicit = ROUTED.model_copy(update={"method": "explicit", "subset": "canary"})
    assert in_short(explicit) == "billing (canary) · view bill · as you said"


def test_why_names_every_candidate_its_share_and_its_evidence() -> None:
    said = text_of(explained(ROUTED))

    for part in ("▸", "travel", "5 %", "0.87", "how much do I owe?", "vector", "7.3 ms"):
        assert part in said
    assert "all-MiniLM-L6-v2" in said


def test_the_tour_says_what_spoke_for_the_agent_and_who_else_came_near() -> None:
    assert reasons(ROUTED) == [
        "nearest: “how much do I owe?” of billing, similarity 0.87",
        "others: travel 5 %",
    ]
    assert reasons(Decision(outcome="nobody", reason="no agent")) == ["no agent"]


def test_the_tour_has_a_follow_up_and_a_question_that_nobody_can_answer() -> None:
    assert len(TOUR) >= 5
    assert any(question.same for question in TOUR)
    assert not TOUR[0].same


# -- the agents --


def test_agents_are_a_table_with_those_that_are_down_last() -> None:
    up = FoundThing(
        name="zeta",
        version="1.1.0",
        live=True,
        capabilities=(Capability(id="view_bill", name="view bill"),),
        instances=(
            Instance(instance="a", version="1.0.0", in_flight=2),
            Instance(instance="b", version="1.1.0", in_flight=1),
        ),
    )
    down = FoundThing(name="alpha", version="2.0.0", live=False)

    lamp = FoundThing(name="urn:example:lamp", kind="thing", live=None)
    hidden = [lamp, down.model_copy(update={"name": "beta"}), lamp]

    lines = text_of(table_of([down, up], hidden=hidden)).splitlines()

    assert lines[1].split() == [
        "zeta",
        "1.0.0,",
        "1.1.0",
        "stable",
        "view",
        "bill",
        "2",
        "3",
        "●",
        "live",
    ]
    assert lines[2].split()[0] == "alpha"
    assert "○ down" in lines[2]
    assert lines[3] == "Not live: 1 agent, 2 things; --all shows them"


def test_a_mirrored_agent_leaves_the_table_readable_in_80_columns() -> None:
    name = "billing@127.0.0.1:8420"
    bill = Capability(id="view_bill", name="view bill")
    mirrored = FoundThing(
        name=name,
        version="1.0.0",
        origin="127.0.0.1:8420",
        external=True,
        live=None,
        capabilities=(bill,),
    )
    lamp = FoundThing(
        name="urn:example:lamp", title="Lamp", version="1.0.0", kind="thing", live=None
    )
    canary = FoundThing(name="canary", version="1.0.0", subset="canary", live=True)

    assert text_of(table_of([mirrored]), width=80).splitlines()[1].split() == [
        name, "1.0.0", "stable", "view", "bill", "0", "0", "○", "listed"
    ]  # fmt: skip
    lines = text_of(table_of([mirrored, lamp, canary]), width=80).splitlines()
    assert lines[0].split() == [
        "agent", "version", "subset", "capability", "instances", "calls", "origin", "health"
    ]  # fmt: skip
    dead = mirrored.model_copy(update={"live": False})
    assert text_of(table_of([dead]), width=80).splitlines()[1].split()[-1] == "down"
    # Folded, if it must be: nothing is cut off.
    assert "".join(line.split()[0] for line in lines[2:4]).startswith(name[:20])
    assert "…" not in "".join(lines)


def test_of_many_capabilities_the_first_are_shown() -> None:
    many = tuple(Capability(id=f"c{number}", name=f"c{number}") for number in range(9))
    shown = text_of(table_of([FoundThing(name="busy", capabilities=many)]))
    assert "c0, c1, c2, c3, c4, and 4 more" in shown


def test_without_agents_it_says_how_to_get_one() -> None:
    assert "lmos run" in text_of(table_of([]))


def test_an_adapter_that_nobody_has_chosen_is_not_missing() -> None:
    assert [is_awaited("mdns", {"http"}), is_awaited("mdns", {"mdns"})] == [False, True]
    assert is_awaited("http", ())
    assert is_awaited("registry", ())


def test_words_are_counted_in_english() -> None:
    assert [plural(1, "agent"), plural(2, "agent"), plural(0, "process")] == [
        "1 agent",
        "2 agents",
        "0 processes",
    ]


# -- the logs --


def test_a_line_of_json_reads_as_a_sentence_with_the_rest_behind_it() -> None:
    raw = json.dumps(
        {
            "event": "not registered yet",
            "level": "warning",
            "timestamp": "2026-01-02T03:04:05Z",
            "service": "billing",
            "instance": "billing-1",
            "tenant": "demo",
        }
    )

    said = shown(read_line(raw)).plain

    assert said.endswith("warning not registered yet  tenant=demo")
    assert "billing-1" not in said


def test_the_trace_of_an_error_is_shown_below_it() -> None:
    raw = json.dumps({"event": "failed", "level": "error", "exception": "Traceback\nValueError: x"})

    assert shown(read_line(raw)).plain == "error failed\nTraceback\nValueError: x"


def test_a_line_of_the_nats_server_loses_its_prefix() -> None:
    raw = "[5069] 2026/11/22 14:19:37.288570 [WRN] Slow consumer"

    assert shown(read_line(raw)).plain == "14:19:37 warning Slow consumer"


@given(st.text(max_size=200))
def test_any_line_at_all_can_be_shown(raw: str) -> None:
    line = read_line(raw)

    assert line.raw == raw
    assert shown(line).plain is not None


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("\n\n", ""),
        ('{"event": "up"}\nregistry: bad settings\n\n', "registry: bad settings"),
        (
            '{"event": "failed", "exception": "Traceback\\nValueError: x"}\n',
            "failed: ValueError: x",
        ),
        ('{"event": "half a li', '{"event": "half a li'),
        ("[1, 2]\n", "[1, 2]"),
    ],
)
def test_the_last_words_of_a_log_are_its_last_line(tmp_path: Path, log: str, said: str) -> None:
    file = tmp_path / "x.log"
    file.write_text(log)

    assert last_words(file) == said
    assert last_words(file, since=len(log)) == ""
    assert last_words(tmp_path / "none.log") == ""


# -- settings --


def test_the_settings_of_every_service_are_known_without_importing_it() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from lmos_mesh.cli.known_settings import known_settings;"
            "print('\\n'.join(known_settings()));"
            "assert not [m for m in sys.modules if m.startswith('lmos_mesh_')]",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(done.stdout.split())

    assert {"LMOS_NATS_URL", "LMOS_ROUTER_THRESHOLD", "LMOS_HTTP_PORT", "LMOS_STATE_DIR"} <= known
    assert {"LMOS_DRAIN_TIMEOUT_S", "LMOS_MODELS_DIR", "LMOS_RUNTIME_CONCURRENCY"} <= known


def test_a_misspelt_setting_is_named_with_the_one_that_was_meant() -> None:
    environ = {"LMOS_NATS_ULR": "x", "LMOS_TENANT": "x", "LMOS_QQQQ": "1", "HOME": "/"}

    assert unknown_settings(environ, known_settings()) == {
        "LMOS_NATS_ULR": "LMOS_NATS_URL",
        "LMOS_QQQQ": "",
    }


def test_settings_are_read_from_classes_and_strings_and_never_from_broken_files() -> None:
    source = 'class FaxSettings(Settings):\n    fax_number: str = ""\nx = "LMOS_FAX_TONE"\n'

    assert settings_in(source) == {"LMOS_FAX_NUMBER", "LMOS_FAX_TONE"}
    assert settings_in("def (") == set()


# -- light --


def test_help_needs_nothing_heavy() -> None:
    heavy = ["asyncio", "nats", "opentelemetry", "lmos_mesh.bus", "lmos_mesh.agent", "watchfiles"]
    code = (
        "import sys, lmos_mesh.cli as cli; sys.argv = ['lmos', 'version', '--help']\n"
        "try: cli.main()\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_requests_of_a_message_that_nobody_answered_are_named_with_the_reason() -> None:
    several = Decision(
        outcome="several",
        parts=(
            Part(text="show my bill", agent="billing", capability="view_bill"),
            Part(text="knit me a\x1b sweater", outcome="out_of_scope"),
        ),
    )
    answer = Answer(
        answer="x",
        conversation="c",
        turn="t",
        parts=(
            AnsweredPart(text="show my bill", agent="billing"),
            AnsweredPart(
                text="play jazz", agent="music", state="failed", error={"detail": "no records"}
            ),
            AnsweredPart(text="louder", agent="music", state="skipped"),
            AnsweredPart(text="knit me a sweater", agent="", state="asked_back"),
        ),
    )

    assert in_short(several) == "billing · view_bill + nobody for “knit me a sweater”"
    assert unanswered(answer) == [
        "failed: music · “play jazz”: no records",
        "not begun: music · “louder”",
        "nobody can, or who is not clear: “knit me a sweater”",
    ]


def test_what_is_no_text_is_refused_with_a_sentence() -> None:
    told = pytest.raises(SettingsError, match="standard input is not UTF-8 text")
    with told, text_only("standard input"):
        b"\xff\xfe".decode()
    with pytest.raises(SettingsError, match="surrogates"), text_only("the message"):
        "\udcff".encode()
