/** What all requests of a server may cost together while they are being read or wait for their response. */
export interface PendingLimits {
  /** Bytes of all requests whose response has not begun. */
  readonly maxPendingBytes: number;
  /** Requests of one peer that are still being read. One more ends the oldest. */
  readonly maxReadingPerPeer: number;
  /** Requests of one peer that were read and wait for their response. Further ones are refused. */
  readonly maxWaitingPerPeer: number;
}

export interface PendingRequest {
  /** Counts bytes that were read; when too many are held, the largest request ends, which may be this one. */
  add(bytes: number): void;
  /** The whole request was read. False: its peer has too many that wait; refuse it. */
  wasRead(): boolean;
  /** Its response has begun, or it has ended. */
  release(): void;
}

interface Entry {
  readonly peer: string;
  readonly abort: () => void;
  bytes: number;
  isReading: boolean;
  isDone: boolean;
}

/**
 * The requests of one server that are not answered yet. Who sends slowly or much pays: the largest request ends when the memory of all is used up, the oldest
 * of a peer when it has too many half-sent ones. Requests of others go on.
 */
export class PendingRequests {
  readonly #limits: PendingLimits;
  readonly #open: Set<Entry>;
  /** Requests that are being read, oldest first, and how many wait; by peer. */
  readonly #reading: Map<string, Set<Entry>>;
  readonly #waiting: Map<string, number>;
  #bytes: number;

  constructor(limits: PendingLimits) {
    this.#limits = limits;
    this.#open = new Set();
    this.#reading = new Map();
    this.#waiting = new Map();
    this.#bytes = 0;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get size(): number {
    return this.#open.size;
  }

  open(peer: string, abort: () => void): PendingRequest {
    const entry: Entry = { peer, abort, bytes: 0, isReading: true, isDone: false };
    const same = this.#reading.get(peer) ?? new Set();
    if (same.size >= this.#limits.maxReadingPerPeer)
      for (const oldest of same) {
        this.#end(oldest);
        break;
      }
    this.#reading.set(peer, same.add(entry));
    this.#open.add(entry);
    return {
      add: (bytes) => this.#add(entry, bytes),
      wasRead: () => this.#wasRead(entry),
      release: () => this.#release(entry),
    };
  }

  #add(entry: Entry, bytes: number): void {
    if (entry.isDone) return;
    entry.bytes += bytes;
    this.#bytes += bytes;
    while (this.#bytes > this.#limits.maxPendingBytes) {
      let largest: Entry | undefined;
      for (const one of this.#open) if (largest === undefined || one.bytes > largest.bytes) largest = one;
      if (largest === undefined) return;
      this.#end(largest);
    }
  }

  #wasRead(entry: Entry): boolean {
    if (entry.isDone || !entry.isReading) return !entry.isDone;
    const waiting = this.#waiting.get(entry.peer) ?? 0;
    if (waiting >= this.#limits.maxWaitingPerPeer) return false;
    this.#stopReading(entry);
    this.#waiting.set(entry.peer, waiting + 1);
    return true;
  }

  #end(entry: Entry): void {
    this.#release(entry);
    entry.abort();
  }

  #release(entry: Entry): void {
    if (entry.isDone) return;
    entry.isDone = true;
    this.#open.delete(entry);
    this.#bytes -= entry.bytes;
    if (entry.isReading) return this.#stopReading(entry);
    const waiting = this.#waiting.get(entry.peer) ?? 0;
    if (waiting > 1) this.#waiting.set(entry.peer, waiting - 1);
    else this.#waiting.delete(entry.peer);
  }

  #stopReading(entry: Entry): void {
    entry.isReading = false;
    const same = this.#reading.get(entry.peer);
    same?.delete(entry);
    if (same?.size === 0) this.#reading.delete(entry.peer);
  }
}
