import { Logger } from './logger.ts';

/**
 * Error boundaries. Each unit of work (a request, a connection, a datagram, a timer) runs inside the boundary of its place. An exception
 * ends that unit alone, is counted under its place and logged; other units do not notice. What reaches the process without a boundary is
 * counted apart (`keepServingAfterErrors`), so that tests can assert that nothing did.
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

let unattributed = 0;
let isInstalled = false;

/** Errors that no boundary has caught. Each is a defect of ours: a missing boundary. */
export function unattributedErrors(): number {
  return unattributed;
}

/**
 * The last line: an exception or rejection outside all boundaries is counted and logged, and the process keeps serving. State that one
 * connection or object owns is not shared, so that ending the process would only widen the damage.
 */
export function keepServingAfterErrors(log: Logger): void {
  logErrorsTo(log);
  if (isInstalled) return;
  isInstalled = true;
  const last = new ErrorBoundary('unattributed');
  const count = (error: unknown) => {
    unattributed++;
    last.caught(error);
  };
  process.on('uncaughtException', count);
  process.on('unhandledRejection', count);
}

for (const fault of (process.env['MIZZEN_TEST_FAULTS'] ?? '').split(',')) {
  const [place, at] = fault.split('=');
  if (place !== undefined && at !== undefined) injectFault(place, Number(at));
}
