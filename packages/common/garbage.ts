import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * V8's collector, for the two moments in which we know better than it does. It weighs the objects of its heap; a buffer is a small object
 * there, however much memory hangs on it.
 */
type Collect = (options: { readonly type: 'minor' | 'major'; readonly execution: 'sync'; readonly flavor?: 'last-resort' }) => void;

let collect: Collect | undefined;

function collector(): Collect {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as Collect;
    setFlagsFromString('--no-expose-gc');
  }
  return collect;
}

/**
 * Gives back what starting up has left behind: reading configuration and its schemas makes several times more garbage than a running
 * proxy does in minutes, and V8 would keep that much memory at hand. Takes some tens of milliseconds; call it when nobody waits.
 */
export function compactHeap(): void {
  collector()({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}

/** Frees everything that is not used any more. Takes a millisecond for each megabyte or so: only to find out whether memory is really short. */
export function collectAll(): void {
  collector()({ type: 'major', execution: 'sync' });
}

/** Frees what died young, buffers that were read and written a moment ago among it. Takes some tenths of a millisecond. */
export function collectYoung(): void {
  collector()({ type: 'minor', execution: 'sync' });
}
