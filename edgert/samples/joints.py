"""Operations whose inputs have to fit each other in more than one axis: recurrent layers, attention, losses, boxes."""

from __future__ import annotations

from edgert.samples.conflict import check
from edgert.samples.scope import KnownShape, Site


def recurrent(site: Site) -> KnownShape | None:
    """LSTM, GRU, RNN: X is time x batch x features, W directions x gates x features."""
    x, weight, state = site.shape(0), site.shape(1), site.shape(2)
    if x is None or weight is None or len(x) != 3 or len(weight) != 3:
        return None
    hidden = state[2] if state is not None and len(state) == 3 else None
    gates = {"LSTM": 4, "GRU": 3}.get(site.node.op, 1) * site.integer("hidden_size", hidden or 1)
    directions = 2 if site.attribute("direction") in ("bidirectional", b"bidirectional") else 1
    pairs: list[tuple[int | None, int | None]] = [(x[2], weight[2]), (weight[1], gates), (weight[0], directions)]
    if state is not None and len(state) == 3:
        pairs += [(state[0], directions), (state[1], gates), (state[2], site.integer("hidden_size", hidden or 1))]
    pairs += [(axis_size, wanted) for position, wanted_sizes in (
        (3, (directions, 2 * gates)), (4, (x[1],)), (5, (directions, x[1], hidden)), (6, (directions, x[1], hidden)))
        for axis_size, wanted in zip(site.shape(position) or (), wanted_sizes, strict=False)]  # fmt: skip
    if site.integer("layout", 0):
        return None
    check(*pairs)
    return (x[0], weight[0], x[1], hidden)


def attention(site: Site) -> KnownShape | None:
    """Attention, with B x heads x length x width inputs past and mask too."""
    query, key, value, mask = (site.shape(position) for position in range(4))
    if query is None or key is None or value is None or not len(query) == len(key) == len(value):
        return None
    if len(query) == 3:  # heads side by side in the width
        heads, key_heads = site.integer("q_num_heads", 1), site.integer("kv_num_heads", 1)
        widths = ((query[2], heads), (key[2], key_heads), (value[2], key_heads))
        check((query[0], key[0]), (query[0], value[0]), (key[1], value[1]),
               *((width % count, 0) for width, count in widths if width and count),
               *([] if mask is None or len(mask) < 2 else [(mask[-1], key[1]), (mask[-2], query[1])]))  # fmt: skip
        return None
    if len(query) != 4:
        return None
    past = site.shape(4)
    total = _total(key[2], past[2] if past is not None and len(past) == 4 else 0)
    pairs = [(query[0], key[0]), (query[0], value[0]), (key[2], value[2]), (query[3], key[3]), (key[1], value[1])]
    if query[1] is not None and key[1]:
        pairs.append((query[1] % key[1], 0))
    if mask is not None and len(mask) > 1:
        pairs += [(mask[-1], total), (mask[-2], query[2])]
        pairs += [(size, wanted) for size, wanted in zip(mask[-4:-2][::-1], query[1::-1], strict=False) if size != 1]
    for position, like in ((4, key), (5, value)):
        other = site.shape(position)
        if other is not None and len(other) == 4:
            pairs += [(other[0], like[0]), (other[1], like[1]), (other[3], like[3])]
            pairs += [(other[2], past[2])] if past is not None and len(past) == 4 else []
    check(*pairs)
    return (*query[:3], value[3])


def _total(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def classified(site: Site) -> KnownShape | None:
    """Losses: the classes are the scores' shape without axis 1."""
    scores, classes, weights = site.shape(0), site.shape(1), site.shape(2)
    if scores is not None and classes is not None and len(scores) > 1:
        rest = scores[:1] + scores[2:]
        check(*zip(rest, classes, strict=False), *([] if not weights else [(weights[0], scores[1])]))
    return None


def boxes(site: Site) -> KnownShape | None:
    """NonMaxSuppression: boxes B x N x 4, scores B x classes x N."""
    boxes, scores = site.shape(0), site.shape(1)
    if boxes is not None and scores is not None and len(boxes) == len(scores) == 3:
        check((boxes[0], scores[0]), (boxes[1], scores[2]), (boxes[2], 4))
    return None
