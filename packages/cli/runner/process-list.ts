import { readFileSync, rmSync } from 'node:fs';
import { writeDurably } from '@mizzen/common/durable-file';

/**
 * The processes that a runner has started, in a file, so that the next one can end what a killed runner left behind. A process is
 * known by its pid and its start time: a pid that somebody else has by now is left alone. Linux only; elsewhere it does nothing.
 */
export class ProcessList {
  readonly #path: string;
  readonly #ownerPath: string;
  readonly #started: Map<number, string>;

  constructor(path: string) {
    this.#path = path;
    this.#ownerPath = `${path}.owner`;
    this.#started = new Map();
  }

  add(pid: number): void {
    const startTime = startTimeOf(pid);
    if (startTime === undefined) return;
    this.#started.set(pid, startTime);
    // Those that have ended meanwhile are dropped here rather than watched for.
    for (const [known, time] of this.#started) if (startTimeOf(known) !== time) this.#started.delete(known);
    writeDurably(this.#path, JSON.stringify([...this.#started]));
  }

  /** The process that runs what is in the list and is not this one, if it is still there. */
  runningOwner(): number | undefined {
    try {
      const [pid, time] = JSON.parse(readFileSync(this.#ownerPath, 'utf8')) as [number, string];
      return pid !== process.pid && startTimeOf(pid) === time ? pid : undefined;
    } catch {
      return undefined; // nobody has claimed it
    }
  }

  /** This process runs what is in the list from now on. */
  claim(): void {
    writeDurably(this.#ownerPath, JSON.stringify([process.pid, startTimeOf(process.pid) ?? '']));
  }

  release(): void {
    if (this.runningOwner() === undefined) rmSync(this.#ownerPath, { force: true });
  }

  /** Ends what an earlier runner has left running. Returns how many processes that were. */
  endLeftovers(): number {
    let entries: [number, string][];
    try {
      entries = JSON.parse(readFileSync(this.#path, 'utf8')) as [number, string][];
    } catch {
      return 0; // there is no list, or it was cut short: then nothing is known to end
    }
    let ended = 0;
    for (const [pid, time] of entries) {
      if (startTimeOf(pid) !== time) continue;
      try {
        process.kill(-pid, 'SIGTERM');
        ended++;
      } catch {
        // It has ended between the look and the signal.
      }
    }
    return ended;
  }
}

/** proc(5): field 22 of /proc/pid/stat, in clock ticks since the machine started. */
function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}
