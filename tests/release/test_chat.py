"""Talking with a model: what is asked of it, and the command in a real terminal."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from caravan.data.records import Message
from caravan.errors import CaravanError
from caravan.inference.chat import Chat
from caravan.inference.loading import load_engine
from caravan.recipe import Sampling
from caravan_command import CARAVAN
from caravan_pipelines.cli.chat import CONTROL

GREEDY = Sampling(temperature=0.0, max_completion_length=8)


def said(chat, text):
    pieces = []
    chat.say(text, pieces.append)
    return "".join(pieces)


@pytest.fixture
def model(finished):
    return finished.store.fetch(finished.output("dpo"))


def test_a_reply_is_that_of_the_engine_to_all_that_was_said(model):
    chat = Chat.open(model, GREEDY, system="Be brief.")
    said(chat, "Salt?")
    second = said(chat, "Camel?")

    system, *before, last = [Message(role="system", content="Be brief."), *chat.history]
    ((reply,),) = load_engine(model).generate([[system, *before]], GREEDY, seed=1)
    assert second == last.content == reply.text
    assert [message.role for message in before] == ["user", "assistant", "user"]


def test_a_chat_begins_anew_and_ends_where_the_model_is_full(model):
    chat = Chat.open(model, GREEDY)
    first = said(chat, "Salt?")
    with pytest.raises(CaravanError, match="have room for 128"):
        said(chat, "The camel carries bags of salt to the town of Orsa. " * 8)
    assert len(chat.history) == 2
    chat.reset()
    assert said(chat, "Salt?") == first
    chat.reset("Be brief.")
    assert (chat.history, chat.system) == ([], "Be brief.")


def test_a_reply_that_is_interrupted_is_kept_as_far_as_it_is(model):
    chat = Chat.open(model, GREEDY)
    whole, pieces = said(chat, "Salt?"), []
    chat.reset()

    def write(piece):
        pieces.append(piece)
        raise KeyboardInterrupt

    assert not chat.say("Salt?", write)
    assert whole.startswith("".join(pieces))
    assert chat.history[1].content == "".join(pieces) != ""


def test_a_model_with_a_template_of_its_own_is_asked_with_it(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(exported)
    (exported / "chat_template.jinja").write_text(tokenizer.chat_template)
    chat = Chat.open(exported, GREEDY, system="camel")
    prompt = chat._encoded([Message(role="user", content="salt")])
    assert tokenizer.decode(prompt) == "[camel][salt]"


def test_scripts_get_the_reply_alone(caravan, finished, model, exported):
    expected = said(Chat.open(model, GREEDY), "Salt?") + "\n"
    options = ["--temperature", "0", "--max-tokens", "8"]
    assert caravan("chat", "latest:dpo/model", "--prompt", "Salt?", *options).endswith(expected)
    done = subprocess.run(
        [*CARAVAN, "chat", str(exported), *options], input="Salt?\n",
        env=os.environ | finished.settings.environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == expected


def test_a_terminal_talks_until_ctrl_d(finished, model):
    drawn = Sampling(temperature=1.0, max_completion_length=12)
    expected = said(Chat.open(model, drawn, seed=2), "Salt?")
    ours, theirs = pty.openpty()
    command = [*CARAVAN, "chat", "latest:dpo/model", "--temperature=1", "--max-tokens=12"]
    process = subprocess.Popen(
        [*command, "--seed=2"], env=os.environ | finished.settings.environment(),
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    for line in ("Salt?\n", "/reset\n", "/help\n", "half a line", "\x04"):
        shown += _until(ours, "> ")
        os.write(ours, line.encode())
        if line == "half a line":
            _until(ours, line)
            while _state(process.pid) != "S":  # until it waits for the next key
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=240) == 0
    os.close(ours)
    assert CONTROL.sub(lambda one: f"\\x{ord(one[0]):02x}", expected) in shown
    assert shown.count("/reset begins anew") == 3  # Ctrl-C leaves the line, not the chat


def test_pasted_lines_are_one_turn_and_replies_are_no_commands_to_the_terminal():
    script = """
        from caravan_pipelines.cli import chat
        class Echo:
            def say(self, text, write): write(text); return True
        chat.Chat.open, chat.model_path = lambda *_, **__: Echo(), lambda name: name
        chat.chat("m", "", system="", temperature=0.0, max_tokens=1, seed=0)
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=os.environ | {"TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    _until(ours, "> ")
    os.write(ours, b"\x1b[200~one\ntwo \xe2\x80\xa6 \x07\x1b[201~\n")
    assert "one\ntwo … \\x07" in _until(ours, "> ")
    os.write(ours, b"\x04")
    assert process.wait(timeout=240) == 0
    os.close(ours)


def _state(pid: int) -> str:
    """Of a process's main thread: R, it works or waits for a core; S, it waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(terminal: int, end: str) -> str:
    shown = b""
    while not shown.endswith(end.encode()):
        shown += os.read(terminal, 4096)
    return shown.decode().replace("\r\n", "\n")


def test_what_is_no_model_is_refused(caravan, finished):
    report = finished.output("mix", "report")
    assert "is a report, not a model" in caravan("chat", report, "--prompt", "x", code=2)
    assert "is a report, not a model" in caravan("serve", report, code=2)


def test_serve_takes_what_export_takes_and_says_what_to_do_without_a_cluster(caravan, finished):
    assert finished.output("dpo") in caravan("serve", "latest:dpo/model", "--dry-run")
    environment = os.environ | finished.settings.environment() | {"KUBECONFIG": "/nowhere"}
    done = subprocess.run(
        [*CARAVAN, "serve", "latest:dpo/model"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "caravan chat latest:dpo/model, or caravan model export latest:dpo" in done.stderr
