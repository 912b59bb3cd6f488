import { timerMs } from './duration.ts';
import { type FailedEvent, guardEvents } from './guarded-events.ts';
import { Logger } from './logger.ts';

/**
 * Error boundaries. Each unit of work (a request, a connection, a datagram, a timer) runs inside the boundary of its place. An exception
 * ends that unit alone, is counted under its place and logged; other units do not notice. What reaches the process without a boundary is
 * counted apart (`last-line.ts`), so that tests can assert that nothing did. `scripts/check-boundaries.ts` verifies that each timer, event
 * handler, socket and promise has a boundary.
 */
const logEveryMs = 10_000;

/** Replaced by the process that owns the log. */
let logger = new Logger('errors', 'error');
const boundaries = new Map<string, ErrorBoundary>();
/** Test hook: the place (`*`: every place) and the entry at which it throws, once. */
const faults = new Map<string, number>();
let hasFaults = false;

export class ErrorBoundary {
  readonly place: string;
  errors: number;
  #entries: number;
  #hasThrown: boolean;
  #loggedAt: number;
  #unlogged: number;

  constructor(place: string) {
    this.place = place;
    this.errors = 0;
    this.#entries = 0;
    this.#hasThrown = false;
    this.#loggedAt = Number.NEGATIVE_INFINITY;
    this.#unlogged = 0;
  }

  /** Called first inside the `try` of a boundary. Does nothing unless a test has asked this place to throw. */
  enter(): void {
    if (hasFaults) this.#throwWhenAsked();
  }

  /** Counts and logs an exception. Never throws. */
  caught(error: unknown): void {
    this.errors++;
    const now = performance.now();
    if (now - this.#loggedAt < logEveryMs) {
      this.#unlogged++;
      return;
    }
    this.#loggedAt = now;
    try {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      logger.error('internal error', { place: this.place, error: text.slice(0, 2_000), suppressed: this.#unlogged });
      this.#unlogged = 0;
    } catch {
      // The error cannot be described, or the log cannot be written: it has been counted.
    }
  }

  /** Counts an error of ours. The failures of others (a refused connection, a closed stream, a refused resource) are handled by the caller. */
  unexpected(error: unknown): void {
    if (!isFailureOfOthers(error)) this.caught(error);
  }

  /** Runs `work`; returns false when it has thrown. For work that happens rarely: hot paths spell out the `try`. */
  run(work: () => void): boolean {
    try {
      this.enter();
      work();
      return true;
    } catch (error) {
      this.caught(error);
      return false;
    }
  }

  /** An event handler whose exception ends its unit by `fail`. Made once per connection, not per event. */
  guard<A, B>(handler: (a: A, b: B) => void, fail: () => void): (a: A, b: B) => void {
    return (a, b) => {
      try {
        this.enter();
        handler(a, b);
      } catch (error) {
        this.caught(error);
        this.run(fail);
      }
    };
  }

  /** A callback that never throws, for those that libraries and the runtime call. */
  wrap<Args extends unknown[]>(callback: (...args: Args) => void, failed?: () => void): (...args: Args) => void {
    return (...args) => {
      this.run(() => callback(...args)) || (failed !== undefined && this.run(failed));
    };
  }

  /** `setTimeout`, for any delay. `failed` runs when `work` has thrown: a chain of timers sets its next one there. */
  after(delayMs: number, work: () => void, failed?: () => void): NodeJS.Timeout {
    return setTimeout(this.wrap(work, failed), timerMs(delayMs));
  }

  /** `setInterval`. A turn that throws does not end the following ones. */
  every(periodMs: number, work: () => void): NodeJS.Timeout {
    return setInterval(this.wrap(work), timerMs(periodMs));
  }

  /** `setImmediate`. */
  soon(work: () => void, failed?: () => void): NodeJS.Immediate {
    return setImmediate(this.wrap(work, failed));
  }

  /** Runs asynchronous work that no caller waits for. `failed` runs when it has thrown or was rejected. */
  start(work: () => unknown, failed?: () => void): void {
    const caught = (error: unknown) => {
      this.caught(error);
      if (failed !== undefined) this.run(failed);
    };
    try {
      this.enter();
      const result = work();
      if (isThenable(result)) result.then(undefined, caught);
    } catch (error) {
      caught(error);
    }
  }

  /**
   * Owns a socket, server, session, stream, process or watcher, and each connection, session, stream and request that it hands over:
   * their `error` events have a listener, and an exception in any of their event handlers ends only what the event was about. `fail` replaces
   * that end: for events that must not be lost, it handles them again.
   */
  own<Emitter extends object>(emitter: Emitter, fail?: FailedEvent): Emitter {
    return guardEvents(this, emitter, fail);
  }

  resetFault(): void {
    this.#entries = 0;
    this.#hasThrown = false;
  }

  #throwWhenAsked(): void {
    const at = faults.get(this.place) ?? faults.get('*');
    if (at === undefined || this.#hasThrown || ++this.#entries < at) return;
    this.#hasThrown = true;
    throw new Error(`injected fault at ${this.place}`);
  }
}

/** The boundary of a place; one object for each place in a process. */
export function errorBoundary(place: string): ErrorBoundary {
  let boundary = boundaries.get(place);
  if (boundary === undefined) {
    boundary = new ErrorBoundary(place);
    boundaries.set(place, boundary);
  }
  return boundary;
}

export function errorPlaces(): string[] {
  return [...boundaries.keys()].sort();
}

/** Errors by place; places without errors are left out. */
export function internalErrors(): ReadonlyMap<string, number> {
  return new Map([...boundaries.values()].filter(({ errors }) => errors > 0).map(({ place, errors }) => [place, errors]));
}

/** Test hook: has this place (`*`: every place) throw once, at its n-th entry from now. */
export function injectFault(place: string, at: number): void {
  faults.set(place, at);
  hasFaults = true;
  for (const boundary of boundaries.values()) if (place === '*' || boundary.place === place) boundary.resetFault();
}

export function clearFaults(): void {
  faults.clear();
  hasFaults = false;
}

/** Where boundaries log what they catch. */
export function logErrorsTo(log: Logger): void {
  logger = log;
}

/** Errors that code here throws on purpose, or that the system or a peer caused: they have a code that is not one of Node.js's own for wrong use. */
function isFailureOfOthers(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const { code } = error as { code?: unknown };
  if (typeof code === 'string' ? !code.startsWith('ERR_') || /^ERR_(?:HTTP2|TLS|SSL|STREAM_PREMATURE)/.test(code) : typeof code === 'number') return true;
  return error.name === 'AbortError' || error.name === 'TimeoutError' || (error.name === 'TypeError' && error.cause !== undefined);
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}
