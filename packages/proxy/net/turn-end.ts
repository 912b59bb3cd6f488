import { errorBoundary } from '@mizzen/common';

/** Something with bytes to write. */
export interface Flushable {
  flush(): void;
  /** Its flush has thrown: the connection cannot be trusted any more and closes. */
  flushFailed(): void;
}

const boundary = errorBoundary('turn-end');
const closing = errorBoundary('turn-end.close');

/** In the order in which they were asked to. */
let waiting: Flushable[] = [];

/**
 * Writes what the events of one turn of the event loop have produced, one peer after another. Each write wakes its peer; done at the end
 * of the turn, the peers' processes are woken once for all of them instead of between two requests.
 */
function flushWaiting(): void {
  const flushables = waiting;
  waiting = [];
  for (let i = 0; i < flushables.length; i++) {
    const flushable = flushables[i]!;
    try {
      boundary.enter();
      flushable.flush();
    } catch (error) {
      boundary.caught(error);
      // A connection that is not closed would wait for a flush for ever.
      if (!closing.run(() => flushable.flushFailed())) closing.run(() => flushable.flushFailed());
    }
  }
}

/** Flushes at the end of this turn of the event loop. Whoever asks twice is flushed twice. */
export function flushAtTurnEnd(flushable: Flushable): void {
  if (waiting.length === 0) setImmediate(flushWaiting);
  waiting.push(flushable);
}
