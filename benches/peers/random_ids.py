"""The token ids that every program's prefill computes: sequence s is the numbers (x >> 8) % vocabulary of the generator
x -> (1664525 x + 1013904223) mod 2^32 that starts at x = s + 1 (its first number is already one step on)."""


def sequences(count, tokens, vocabulary):
    return [sequence(start + 1, tokens, vocabulary) for start in range(count)]


def sequence(x, tokens, vocabulary):
    ids = []
    for _ in range(tokens):
        x = (1664525 * x + 1013904223) % (1 << 32)
        ids.append((x >> 8) % vocabulary)
    return ids
