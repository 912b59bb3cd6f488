import { ErrorBoundary, logErrorsTo } from './error-boundary.ts';
import type { Logger } from './logger.ts';

/**
 * The last line of defence: what becomes of a process after an exception or rejection outside all error boundaries. It is counted, logged
 * with the place in the code, and the process keeps serving: the state of one connection or object is not shared, so that ending the process
 * would only widen the damage. A process that meets many of them is broken as a whole. It exits, and its supervisor starts another.
 */
export type ProcessKind = 'control' | 'proxy' | 'worker' | 'broker' | 'agent' | 'runner';

interface LastLine {
  /** Unattributed errors within `windowMs` after which the process exits; undefined: it never does. */
  readonly maxUnattributedErrors: number | undefined;
}

/** `runner` is `mizzen up`: nothing restarts it, and its end would end the mesh. */
export const lastLines: Readonly<Record<ProcessKind, LastLine>> = {
  control: { maxUnattributedErrors: 100 },
  proxy: { maxUnattributedErrors: 100 },
  worker: { maxUnattributedErrors: 100 },
  broker: { maxUnattributedErrors: 100 },
  agent: { maxUnattributedErrors: 100 },
  runner: { maxUnattributedErrors: undefined },
};

const windowMs = 60_000;
/** EX_SOFTWARE of sysexits.h: an internal error. */
export const brokenExitCode = 70;

let unattributed = 0;
let isInstalled = false;

/** Errors that no boundary has caught. Each is a defect of ours: a missing boundary. */
export function unattributedErrors(): number {
  return unattributed;
}

/** Counts the errors of the last minute and tells when a process has met too many. */
export class ErrorWindow {
  readonly #max: number | undefined;
  readonly #times: number[];

  constructor(max: number | undefined) {
    this.#max = max;
    this.#times = [];
  }

  /** True when this error was one too many. */
  isExceededBy(nowMs: number): boolean {
    if (this.#max === undefined) return false;
    this.#times.push(nowMs);
    if (this.#times.length > this.#max + 1) this.#times.shift();
    return this.#times.length > this.#max && nowMs - (this.#times[0] ?? nowMs) < windowMs;
  }
}

/** Installs the last line for a process of this kind. Boundaries log to `log` from now on. Only the first call has an effect on the process. */
export function keepServingAfterErrors(log: Logger, kind: ProcessKind): void {
  logErrorsTo(log);
  if (isInstalled) return;
  isInstalled = true;
  const boundary = new ErrorBoundary('unattributed');
  const { maxUnattributedErrors } = lastLines[kind];
  const recent = new ErrorWindow(maxUnattributedErrors);
  const count = (error: unknown) => {
    unattributed++;
    boundary.caught(error);
    if (!recent.isExceededBy(performance.now())) return;
    log.error('the process exits: too many errors outside all boundaries', { kind, errors: unattributed, windowSeconds: windowMs / 1000 });
    process.exit(brokenExitCode);
  };
  process.on('uncaughtException', count);
  process.on('unhandledRejection', count);
}
