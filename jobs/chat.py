"""Talk to one or two models behind a URL on a page, see the score of every sentence, and say which answer is better.

The server may be any OpenAI-compatible one. The page needs Gradio: pip install 'phf-ray[chat]'. What is said on it is
kept on it alone, but for what --save-comparisons stores.
"""

import argparse
import importlib.util
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from phf_ray.chat.conversation import Control
    from phf_ray.chat.server import ChatServer, ListedModel

log = logging.getLogger("phf_ray.chat")

MOST_ARMS = 2


def main(argv: Sequence[str] | None = None) -> int:
    from phf_ray.chat.judgements import JudgementFiles
    from phf_ray.chat.server import ChatServer
    from phf_ray.http.client import RefusedError, is_on_this_machine
    from phf_ray.http.keys import parse_endpoint

    options = parser().parse_args(argv)
    _check(options)
    plain = options.allow_plain_http
    # A key may be given on the page, too, but a variable that is named must hold one.
    endpoint = parse_endpoint(options.url, option="--url", allow_plain_http=plain, needs_key=",key_env=" in options.url)
    scores = options.scores_url and parse_endpoint(options.scores_url, option="--scores-url", allow_plain_http=plain)
    server = ChatServer(endpoint, scores=scores or None, allow_plain_http=plain)
    try:
        listed = server.list_models()
    except RefusedError as error:
        # The key may be given on the page, and not every server has a list.
        log.warning("the models are not known: %s", error)
        listed = []
    arms = arms_of(options.model, listed)
    scorers = _scorers(server, options.scorer)
    files = options.save_comparisons and JudgementFiles(
        options.save_comparisons, annotator=options.annotator, url=endpoint.url
    )
    if options.dry_run:
        names = [model if control is None else f"{model}:{control}" for model, control in arms]
        print(f"{endpoint.url}: {', '.join(names)}; scorers: {', '.join(scorers) or 'none'}")
        return 0
    _require_gradio()
    _require_free(options.host, options.port)
    from phf_ray.chat.page.app import serve_page
    from phf_ray.chat.page.settings import PageSettings

    page = PageSettings(
        server, listed, arms, scorers, files or None, options.system, options.temperature, options.max_tokens
    )
    shown = f"[{options.host}]" if ":" in options.host else options.host
    if not is_on_this_machine(f"http://{shown}"):
        log.warning("--host %s: the page has no login; whoever reaches it talks with your key", options.host)
    print(f"the page is at http://{shown}:{options.port}; Ctrl+C ends it", flush=True)
    serve_page(page, host=options.host, port=options.port)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "chat",
        __doc__,
        examples=(
            "--url http://localhost:8000",
            "--url http://localhost:8000 --model lm:good --model lm:bad --save-comparisons feedback/mine",
            "--url https://api.openai.com/v1,key_env=MY_KEY --model gpt-4.1-mini",
        ),
    )
    parser.add_argument("--url", required=True, metavar="URL[,key_env=VARIABLE]", help="OpenAI-compatible server")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[:good|bad|none]",
        help="model to talk to; twice for two answers side by side (default: the first that the server lists)",
    )
    parser.add_argument(
        "--scores-url",
        metavar="URL[,key_env=VARIABLE]",
        help="phf-ray server that scores answers (default: that of --url, if it has scorers)",
    )
    parser.add_argument(
        "--scorer", metavar="NAME", help="scorer that colours sentences, or none (default: the first of the server)"
    )
    parser.add_argument(
        "--save-comparisons",
        metavar="DIR",
        help="ask which answer is better, and add what is said to comparisons.jsonl and labels.jsonl in this folder",
    )
    parser.add_argument(
        "--annotator", default="human", metavar="NAME", help="who judges, in the stored rows (default human)"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt that the page begins with")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="default 0.7")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where the page listens (default 127.0.0.1: this machine alone); whoever reaches it talks with your key",
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860")
    parser.add_argument("--allow-plain-http", action="store_true", help="send keys over http:// to other machines")
    parser.add_argument("--dry-run", action="store_true", help="ask the server what it has, print it, and stop")
    return parser


def arms_of(wanted: Sequence[str], listed: Sequence["ListedModel"]) -> list[tuple[str, "Control | None"]]:
    """Return models and controls of the arms. Raises ConfigError if there is no model of a name, or none at all."""
    from phf_ray.chat.server import split_control

    if not wanted and not listed:
        raise ConfigError("the server lists no models; name one with --model")
    return [split_control(name, listed) for name in wanted or (listed[0].id,)]


def _check(options: argparse.Namespace) -> None:
    if len(options.model) > MOST_ARMS:
        raise ConfigError(f"--model was given {len(options.model)} times; the page compares {MOST_ARMS} at most")
    if not 0 <= options.temperature <= 2:
        raise ConfigError(f"--temperature {options.temperature} is not between 0 and 2")
    if options.max_tokens < 1:
        raise ConfigError(f"--max-tokens {options.max_tokens} is below 1")
    if not 0 < options.port < 2**16:
        raise ConfigError(f"--port {options.port} is not between 1 and 65535")


def _scorers(server: "ChatServer", wanted: str | None) -> list[str]:
    """Return the scorers of the server, the wanted one first. Raises ConfigError if it is not there."""
    if wanted == "none":
        return []
    try:
        found = server.list_scorers()
    except ServiceError as error:
        if wanted is not None:
            raise
        log.warning("answers will have no scores: %s", error)
        return []
    if wanted is not None and wanted not in found:
        raise ConfigError(f"--scorer {wanted}: the server has {', '.join(found) or 'no scorers'}")
    return found if wanted is None else [wanted, *(name for name in found if name != wanted)]


def _require_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs Gradio, which is not installed; run: pip install 'phf-ray[chat]'")


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError if the page can't listen there, before Gradio is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: the page can't listen there ({error}); take another") from None


if __name__ == "__main__":
    cli.run(main)
