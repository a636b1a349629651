"""Talks to an OpenAI-compatible server, so that a decision gets its answer or the reason for none.

Whatever the server does, `LanguageModel.ask` returns within its time. The API key is put into
requests as they leave and is nowhere else: not in the client, not in a log, not in an error.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import ModelUse
from lmos_mesh.settings import Settings
from lmos_mesh_router.hybrid import Policy
from lmos_mesh_router.llm import (
    REPLY_BYTES,
    Answer,
    Ask,
    Breaker,
    Dialect,
    Inquiry,
    NoHelp,
    Received,
    shown,
)
from lmos_mesh_router.prompts import Prompt, Prompts, parse_prompts
from lmos_mesh_router.spending import Budget, Limits, Prices, expected_use, together, use_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

_MARGIN_S = 0.05
"""What is left of the caller's time for the decision itself."""

_WAITING_PER_PLACE = 4
_PROBE_S = 3.0
_REFUSAL_BYTES = 16 * 1024
_HEADERS = frozenset(
    {
        *("host", "accept", "content-type", "content-length", "connection", "transfer-encoding"),
        "x-stainless-raw-response",  # the client reads it from its own request
    }
)
_OF_THE_WIRE = frozenset({"openai", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "ssl"})


class ModelSettings(Settings):
    """How to reach a language model, what it may cost, and when it is asked.

    Attributes:
        router_llm_base_url: Up to and without `/chat/completions`.
        router_llm_api_key: Empty for a server that wants none.
        router_llm_api_key_file: A file that holds the key instead.
        router_llm_timeout_s: How long a decision waits for the model, retries included.
        router_llm_max_tokens: How much it may write, thoughts included.
        router_llm_concurrency: How many questions are asked at a time.
        router_llm_price_prompt: Of a million tokens that are sent.
        router_llm_price_completion: Of a million tokens that are written.
        router_llm_design: Choose from the agents, or say what is needed and search for it.
        router_llm_candidates: How many agents it chooses from by `hybrid`.
        router_llm_agents: How many at the most by `llm`; a search picks them where there are more.
        router_llm_right: How often it is right, for what is believed where it and vectors differ.
        router_hybrid_sure: The least probability with which vectors decide alone.
        router_hybrid_in_scope: The least share of messages in scope that must be as far out.
        router_hybrid_reject: The share below which a message is refused without asking it.
        router_fast_track: LMOS's rule for when it is asked, instead of the two above.
        router_prompts: A directory of prompts.
    """

    router_llm_base_url: str = ""
    router_llm_api_key: SecretStr = SecretStr("")
    router_llm_api_key_file: str = ""
    router_llm_model: str = ""
    router_llm_timeout_s: float = Field(default=5.0, gt=0, le=300)
    router_llm_max_tokens: int = Field(default=500, ge=16, le=100_000)
    router_llm_concurrency: int = Field(default=8, ge=1, le=1_000)
    router_llm_price_prompt: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    router_llm_price_completion: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    router_llm_calls_per_minute: int | None = Field(default=None, ge=0)
    router_llm_calls_per_day: int | None = Field(default=None, ge=0)
    router_llm_cost_per_minute: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    router_llm_cost_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    router_llm_design: Literal["classify", "extract"] = "classify"
    router_llm_candidates: int = Field(default=5, ge=1, le=100)
    router_llm_agents: int = Field(default=20, ge=1, le=500)
    router_llm_right: float = Field(default=0.9, gt=0.5, lt=1)
    router_hybrid_sure: float = Field(default=0.9, ge=0, le=1)
    router_hybrid_in_scope: float = Field(default=0.05, ge=0, lt=1)
    router_hybrid_reject: float = Field(default=0.01, ge=0, lt=1)
    router_fast_track: Literal["", "lmos", "lmos-readme"] = ""
    router_prompts: str = ""

    def policy(self, method: Literal["llm", "hybrid"], *, route: float) -> Policy:
        """What is sure enough; `route` is the least confidence to route with."""
        return Policy(
            sure=self.router_hybrid_sure,
            in_scope=self.router_hybrid_in_scope,
            reject=self.router_hybrid_reject,
            route=route,
            candidates=self.router_llm_candidates if method == "hybrid" else self.router_llm_agents,
            model_right=self.router_llm_right,
            fast_track=self.router_fast_track if method == "hybrid" else "",
        )

    @property
    def router_has_llm(self) -> bool:
        """Whether a language model is configured at all."""
        return bool(self.router_llm_base_url or self.router_llm_model)


class _Refused(Exception):
    """The server answered with something other than success."""

    def __init__(self, received: Received) -> None:
        super().__init__(f"status {received.status}")
        self.received = received


class LanguageModel:
    """One language model behind one endpoint.

    Use it as an async context manager, or close it.

    Raises:
        SettingsError: It cannot be used as configured.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._clock, self._sleep = clock, sleep
        self._url = _base_url(settings)
        self._key = _api_key(settings)
        self._client = _client(self._url, self._send_headers, self._refuse)
        self._dialect = Dialect()
        self._prices = Prices(
            prompt=settings.router_llm_price_prompt, completion=settings.router_llm_price_completion
        )
        self._budget = Budget(
            Limits(
                calls_per_minute=settings.router_llm_calls_per_minute,
                calls_per_day=settings.router_llm_calls_per_day,
                cost_per_minute=settings.router_llm_cost_per_minute,
                cost_per_day=settings.router_llm_cost_per_day,
            )
        )
        self._breaker = Breaker()
        self._places = asyncio.Semaphore(settings.router_llm_concurrency)
        self._waiting = 0

    def __repr__(self) -> str:
        return f"LanguageModel({self._settings.router_llm_model!r} at {self._url})"

    async def __aenter__(self) -> "LanguageModel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()

    @property
    def dialect(self) -> Dialect:
        """How the server likes to be asked, as far as is known."""
        return self._dialect

    @property
    def resting(self) -> str:
        """Why it is not asked at the moment; empty if it is."""
        resting = self._breaker.resting(now=self._clock())
        return resting.note if resting else ""

    async def ask(
        self, prompt: Prompt, *, remaining_s: float | None = None
    ) -> tuple[Answer, ModelUse]:
        """Ask a question, and say what it cost.

        Never raises for what the server does. Cancelling is safe: the request is dropped.

        Args:
            prompt: The question.
            remaining_s: How long the caller waits; None for no limit.
        """
        limit_s = self._settings.router_llm_timeout_s
        if remaining_s is not None:
            limit_s = min(limit_s, remaining_s - _MARGIN_S)
        spent = _Spent(ModelUse(model=self._settings.router_llm_model))
        if limit_s <= 0:
            return NoHelp(failure="timeout", note="there was no time to ask a model"), spent.use
        places = self._settings.router_llm_concurrency
        if self._waiting >= places * (1 + _WAITING_PER_PLACE):
            note = f"{self._waiting} questions to the language model are waiting already"
            return NoHelp(failure="busy", note=note), spent.use
        ends = self._clock() + limit_s
        self._waiting += 1
        try:
            async with asyncio.timeout(limit_s), self._places:
                answer = await self._ask(prompt, spent, ends)
        except TimeoutError:
            answer = self._too_late(spent, limit_s)
        finally:
            self._waiting -= 1
        if isinstance(answer, NoHelp):
            answer = NoHelp(failure=answer.failure, note=self._without_key(answer.note))
        return answer, spent.use

    async def _ask(self, prompt: Prompt, spent: "_Spent", ends: float) -> Answer:
        inquiry = Inquiry(
            prompt=prompt,
            model=self._settings.router_llm_model,
            dialect=self._dialect,
            most_tokens=self._settings.router_llm_max_tokens,
        )
        while True:
            now = self._clock()
            resting = self._breaker.resting(now=now)
            if resting is not None and not inquiry.retried:
                return resting
            request = inquiry.request()
            expected = expected_use(request, self._prices)
            if full := self._budget.take(expected.cost, now=now):
                return NoHelp(failure="budget", note=full)
            spent.begin(expected, now)
            received = await self._send(request)
            now = self._clock()
            use = use_of(received, expected, self._prices)
            self._budget.settle(expected.cost, use.cost, now=now)
            spent.end(use)
            self._breaker.heard(received, now=now)
            step = inquiry.received(received, left_s=ends - now)
            if not isinstance(step, Ask):
                return step
            if step.inquiry.dialect != inquiry.dialect:
                self._learn(step.inquiry.dialect, received)
            inquiry = step.inquiry
            if step.pause_s:
                await self._sleep(step.pause_s)

    def _too_late(self, spent: "_Spent", limit_s: float) -> NoHelp:
        if not spent.open:
            if spent.use.calls:
                note = f"the language model gave no usable answer within {limit_s:.2g} s"
                return NoHelp(failure="timeout", note=note)
            note = f"no place to ask the language model was free within {limit_s:.2g} s"
            return NoHelp(failure="busy", note=note)
        # It may have been answered, and will be paid for: what was set aside stays spent.
        spent.end(spent.open)
        now = self._clock()
        if now - spent.began >= self._settings.router_llm_timeout_s / 2:
            # Not the server's fault if the caller had no time.
            self._breaker.heard(None, now=now)
        return NoHelp(
            failure="timeout", note=f"the language model did not answer within {limit_s:.2g} s"
        )

    def _learn(self, dialect: Dialect, received: Received) -> None:
        if dialect != self._dialect:
            logger.info(
                "the language model's server is asked differently from now on: %s (it said: %s)",
                dialect,
                self._without_key(shown(received.text)),
            )
            self._dialect = dialect

    async def _send(self, request: dict[str, Any]) -> Received:
        rest = {key: value for key, value in request.items() if key not in ("model", "messages")}
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with create(
                model=request["model"],
                messages=request["messages"],
                extra_body=rest,
            ) as response:
                body, whole = bytearray(), True
                async for chunk in response.iter_bytes(8192):
                    body += chunk
                    if len(body) > REPLY_BYTES:
                        whole = False
                        break
            return Received(status=200, text=self._text(bytes(body)), whole=whole)
        except Exception as exc:  # the HTTP library below the client is a different one by version
            if refused := _refused_in(exc):
                return refused
            if not isinstance(exc, OSError) and _home(exc) not in _OF_THE_WIRE:
                logger.exception("a question to the language model failed")
            return Received(status=0, text=self._without_key(_cause(exc)))

    # -- hooks of the HTTP client --

    async def _send_headers(self, request: Any) -> None:
        """What leaves carries the key, and nothing of the client's or the environment's."""
        for name in list(request.headers):
            if name.lower() not in _HEADERS:
                del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        request.headers["user-agent"] = "lmos-mesh"
        if self._key:
            request.headers["authorization"] = f"Bearer {self._key}"

    async def _refuse(self, response: Any) -> None:
        """A refusal is read here, where its length can be bounded.

        Raises:
            _Refused: It is one.
        """
        if response.status_code == 200:
            return
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= _REFUSAL_BYTES:
                break
        raise _Refused(
            Received(
                status=response.status_code,
                text=self._text(bytes(body[:_REFUSAL_BYTES])),
                wait_s=_wait_of(response.headers.get("retry-after")),
            )
        )

    def _text(self, body: bytes) -> str:
        return self._without_key(body.decode("utf-8", "replace"))

    def _without_key(self, text: str) -> str:
        """A server may well repeat what it was sent."""
        return text.replace(self._key, "***") if self._key else text

    # -- at start --

    async def check(self) -> str:
        """What is wrong with the endpoint, in one sentence; empty if nothing is known to be.

        It costs nothing: the server is asked for its models only.
        """
        where = f"the language model at {self._url}"
        try:
            async with asyncio.timeout(min(_PROBE_S, self._settings.router_llm_timeout_s)):
                offered = await self._models()
        except TimeoutError:
            return f"{where} does not answer; until it does, vectors decide"
        except Exception as exc:  # as above
            received = _refused_in(exc)
            if received is None:
                cause = self._without_key(shown(_cause(exc)))
                return f"{where} is not reachable ({cause}); until it is, vectors decide"
            if received.status in (401, 403):
                return (
                    f"{where} refuses our key ({received.status}): check LMOS_ROUTER_LLM_API_KEY; "
                    "until then vectors decide"
                )
            if received.status >= 500:
                return f"{where} answers {received.status}; until it works, vectors decide"
            return ""  # not everybody lists models
        wanted = self._settings.router_llm_model
        if offered and wanted not in offered:
            some = ", ".join(offered[:5])
            return f"{where} does not list LMOS_ROUTER_LLM_MODEL={wanted!r}; it has {some}"
        return ""

    async def _models(self) -> list[str]:
        body = bytearray()
        async with self._client.models.with_streaming_response.list() as response:
            async for chunk in response.iter_bytes(8192):
                body += chunk
                if len(body) > 4 * REPLY_BYTES:
                    return []
        try:
            match json.loads(body):
                case {"data": [*models]}:
                    return [shown(str(one["id"])) for one in models if _has_id(one)]
                case _:
                    return []
        except (ValueError, RecursionError):
            return []


class _Spent:
    """What one question has cost so far, also if it is called off in the middle."""

    def __init__(self, use: ModelUse) -> None:
        self.use = use
        self.open: ModelUse | None = None
        self.began = 0.0

    def begin(self, expected: ModelUse, now: float) -> None:
        self.open, self.began = expected, now

    def end(self, use: ModelUse) -> None:
        self.use = together(self.use, use)
        self.open = None


def _has_id(one: Any) -> bool:
    return isinstance(one, dict) and "id" in one


def _client(url: str, send: Any, refuse: Any) -> "AsyncOpenAI":
    try:
        import openai  # half a second, and needed by few
    except ImportError:
        raise SettingsError(
            "the package openai is missing, and LMOS_ROUTER_LLM_BASE_URL is set",
            hint="pip install 'lmos-mesh[llm]'",
        ) from None
    for chatty in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        # At DEBUG they would log what users say.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return openai.AsyncOpenAI(
        base_url=url,
        api_key="sent-by-the-hook",
        max_retries=0,  # it is decided by what came back, and within the caller's time
        timeout=None,
        http_client=openai.DefaultAsyncHttpxClient(
            # A redirected message would reach somebody whom the operator did not choose.
            follow_redirects=False,
            event_hooks={"request": [send], "response": [refuse]},
        ),
    )


def _base_url(settings: ModelSettings) -> str:
    url = settings.router_llm_base_url.strip().rstrip("/")
    if not url or not settings.router_llm_model:
        missing = "LMOS_ROUTER_LLM_MODEL" if url else "LMOS_ROUTER_LLM_BASE_URL"
        raise SettingsError(f"{missing} is not set", hint="a language model needs both")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise SettingsError(
            f"LMOS_ROUTER_LLM_BASE_URL is no URL: {exc}", hint="e.g. http://127.0.0.1:11434/v1"
        ) from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingsError(
            "LMOS_ROUTER_LLM_BASE_URL holds more than a place",
            hint="put a secret into LMOS_ROUTER_LLM_API_KEY",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            f"LMOS_ROUTER_LLM_BASE_URL={url!r} is no http or https URL",
            hint="e.g. http://127.0.0.1:11434/v1",
        )
    return url.removesuffix("/chat/completions")


def _api_key(settings: ModelSettings) -> str:
    """The key. No error repeats any of it."""
    key, path = settings.router_llm_api_key.get_secret_value(), settings.router_llm_api_key_file
    source = "LMOS_ROUTER_LLM_API_KEY"
    if path:
        if key:
            raise SettingsError(
                "both LMOS_ROUTER_LLM_API_KEY and LMOS_ROUTER_LLM_API_KEY_FILE are set",
                hint="keep one",
            )
        source = f"LMOS_ROUTER_LLM_API_KEY_FILE={path!r}"
        try:
            key = Path(path).read_text("utf-8")
        except OSError as exc:
            raise SettingsError(f"{source} cannot be read: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{source} is no text") from None
        if not key.strip():
            raise SettingsError(f"{source} is empty")
    key = key.strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise SettingsError(
            f"{source} holds what no API key can: spaces, line ends, or letters beyond ASCII"
        )
    return key


def read_prompts(directory: str) -> Prompts:
    """The operator's prompts; none without a directory.

    Raises:
        SettingsError: The directory or a file in it cannot be used.
    """
    if not directory:
        return Prompts()
    where = Path(directory)
    if not where.is_dir():
        raise SettingsError(
            f"LMOS_ROUTER_PROMPTS={directory!r} is no directory",
            hint="it holds files {channel}.{language}.md and {language}.md",
        )
    files: dict[str, str] = {}
    for path in sorted(where.glob("*.md")):
        if path.name.lower() == "readme.md":
            continue
        try:
            content = path.read_bytes()
            files[str(path)] = content.decode("utf-8-sig")
        except OSError as exc:
            raise SettingsError(f"{path} cannot be read: {exc.strerror}") from None
        except UnicodeDecodeError as exc:
            line = exc.object[: exc.start].count(b"\n") + 1
            raise SettingsError(f"{path}:{line}: it is not UTF-8") from None
    return parse_prompts(files)


def _refused_in(exc: BaseException | None) -> Received | None:
    """The refusal that the client wrapped into errors of its own."""
    for _ in range(8):
        if exc is None or isinstance(exc, _Refused):
            break
        exc = exc.__cause__ or exc.__context__
    return exc.received if isinstance(exc, _Refused) else None


def _home(exc: BaseException) -> str:
    return type(exc).__module__.partition(".")[0]


def _cause(exc: BaseException) -> str:
    """What went wrong at the bottom of it, which says more than the client does."""
    for _ in range(8):
        if exc.__cause__ is None:
            break
        exc = exc.__cause__
    return str(exc) or type(exc).__name__


def _wait_of(header: str | None) -> float | None:
    """The seconds of a `Retry-After`, which may be a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < 1e9 else None  # and so not NaN
