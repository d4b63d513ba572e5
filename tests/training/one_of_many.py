"""A process that does nothing but hold on to the others: one_of_many.py ADDRESS COUNT INDEX WAIT LOST_AFTER END

END: done, or fail:CODE, on its first line of input; hang: never.
"""

import sys

from fcclip_jax.training.lifeline import EXIT_LOST, Lifeline, ProcessesMissing, gather
from fcclip_jax.training.places import Place


def main(address: str, count: str, index: str, wait: str, lost_after: str) -> int:
    place = Place(address, int(count), int(index))
    try:
        lines, hosts = gather(place, float(wait))
    except ProcessesMissing as error:
        print(f"error: {error}", flush=True)
        return EXIT_LOST
    except ValueError as error:
        print(f"error: {error}", flush=True)
        return 2
    lifeline = Lifeline(place, lines, hosts, float(lost_after))
    print(f"all {len(hosts)}", flush=True)
    code = int(sys.stdin.readline() or 1)
    lifeline.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
