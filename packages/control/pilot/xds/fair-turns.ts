import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('xds.turns');

/**
 * Work of many callers on one event loop, taken in turn: one task of each caller, then of the next. A caller that asks without end takes its share and no more; alone
 * it takes all. Between two tasks the event loop serves everything else.
 */
export class FairTurns {
  /** Tasks that wait, by caller, in the order of the next turns. */
  readonly #waiting: Map<string, (() => void)[]>;
  #isRunning: boolean;

  constructor() {
    this.#waiting = new Map();
    this.#isRunning = false;
  }

  get size(): number {
    let size = 0;
    for (const tasks of this.#waiting.values()) size += tasks.length;
    return size;
  }

  /** Resolves when the caller may do one piece of work, synchronously. */
  next(caller: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const tasks = this.#waiting.get(caller);
    if (tasks === undefined) this.#waiting.set(caller, [resolve]);
    else tasks.push(resolve);
    if (!this.#isRunning) this.#run();
    return promise;
  }

  #run(): void {
    this.#isRunning = true;
    boundary.soon(
      () => this.#turn(),
      () => this.#run(),
    );
  }

  #turn(): void {
    const [first] = this.#waiting;
    if (first === undefined) {
      this.#isRunning = false;
      return;
    }
    const [caller, tasks] = first;
    const task = tasks.shift();
    this.#waiting.delete(caller);
    if (tasks.length > 0) this.#waiting.set(caller, tasks);
    this.#run();
    task?.();
  }
}
