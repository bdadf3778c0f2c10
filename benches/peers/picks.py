"""Compares what two runs picked, document by document, from their log-likelihoods."""

import hashlib
import json


def read(paths):
    """Documents of some JSON Lines files by (task, subtask, doc); the harness's names become fireval's."""
    found = {}
    for path in paths:
        task = plain(path.stem)
        with open(path, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                document = json.loads(line)
                key = (plain(document.get("task", task)), plain(document["subtask"]), document["doc"])
                found[key] = document
    return found


def plain(name):
    """truthfulqa_mc2 -> truthfulqa, mmlu_astronomy -> astronomy."""
    return "truthfulqa" if name.startswith("truthfulqa") else name.removeprefix("mmlu_")


def digest(requests):
    """Of a document's requests, as fireval's logs and the reference files have it."""
    made = hashlib.sha256()
    for request in requests:
        made.update(f"{request['context']}\x1e{request.get('continuation', '')}\x1f".encode())
    return made.hexdigest()


def prompt_digests(documents):
    """`documents` hold their texts: the harness's samples or `fireval prompts`."""
    return {key: digest(document.get("requests") or [document]) for key, document in documents.items()}


def first_best(values):
    return max(range(len(values)), key=lambda at: (values[at], -at))


def pick(key, document, lengths):
    """What a document's metric depends on: the best continuation, by its task's rule, or the generated text."""
    if document.get("output") is not None:
        return document["output"]
    scores = [request["ll"] for request in document["requests"]]
    if key[0] in ("arc_challenge", "hellaswag"):
        scores = [score / length for score, length in zip(scores, lengths[key])]
    return first_best(scores)


def continuation_lengths(documents):
    """Characters of each choice (its leading space not counted), from documents that hold their texts."""
    with_texts = {key: document for key, document in documents.items() if "requests" in document}
    return {
        key: [len(request["continuation"]) - 1 or 1 for request in document["requests"]]
        for key, document in with_texts.items()
    }


def differing(one, other, lengths, task):
    """(documents whose picks differ, documents of the task in both); a pair with other requests is an error."""
    keys = [key for key in one if key[0] == task and key in other]
    for key in keys:
        sizes = [len(documents[key].get("requests") or []) for documents in (one, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{key}: {sizes[0]} requests against {sizes[1]}")
    apart = [key for key in keys if pick(key, one[key], lengths) != pick(key, other[key], lengths)]
    return len(apart), len(keys)
