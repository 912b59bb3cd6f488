/** Something with bytes to write. */
export interface Flushable {
  flush(): void;
}

/** In the order in which they were asked to. */
let waiting: Flushable[] = [];

/**
 * Writes what the events of one turn of the event loop have produced, one peer after another. Each write wakes its peer; done at the end
 * of the turn, the peers' processes are woken once for all of them instead of between two requests.
 */
function flushWaiting(): void {
  const flushables = waiting;
  waiting = [];
  for (let i = 0; i < flushables.length; i++) flushables[i]!.flush();
}

/** Flushes at the end of this turn of the event loop. Whoever asks twice is flushed twice. */
export function flushAtTurnEnd(flushable: Flushable): void {
  if (waiting.length === 0) setImmediate(flushWaiting);
  waiting.push(flushable);
}
