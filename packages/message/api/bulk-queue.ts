import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('message.bulk');
const failedPauseMs = 1_000;
/** What waits for a bulk. */
export interface BulkItem {
  readonly key: string;
  /** Its place in the order of arrival; 0: it is new. */
  sequence: number;
}

export interface BulkQueueOptions<Item> {
  /** Items of one bulk. */
  readonly maxItems: number;
  /** After so long a bulk goes out that is not full. */
  readonly maxWaitMs: number;
  readonly send: (items: readonly Item[]) => void;
}

/**
 * Collects the items of a bulk subscription. Items of one key go out in their order, also over retries: none is sent while an earlier one of its key, of an
 * earlier bulk, is open. Several of one key may be in one bulk.
 */
export class BulkQueue<Item extends BulkItem> {
  readonly #options: BulkQueueOptions<Item>;
  /** What may be sent, in the order of arrival. */
  #ready: Item[];
  /** Sequences of items that were sent and are not settled, by key. */
  readonly #open: Map<string, Set<number>>;
  #lastSequence: number;
  #timer: NodeJS.Timeout | undefined;
  #isClosed: boolean;

  constructor(options: BulkQueueOptions<Item>) {
    this.#options = options;
    this.#ready = [];
    this.#open = new Map();
    this.#lastSequence = 0;
    this.#timer = undefined;
    this.#isClosed = false;
  }

  /** Takes an item that is new, or one that was sent and is to be sent again. */
  add(item: Item): void {
    if (item.sequence === 0) item.sequence = ++this.#lastSequence;
    else this.#release(item);
    const later = this.#ready.findIndex(({ sequence }) => sequence > item.sequence);
    if (later < 0) this.#ready.push(item);
    else this.#ready.splice(later, 0, item);
    this.#schedule();
  }

  /** An item that was sent is done. */
  settled(item: Item): void {
    this.#release(item);
    if (this.#ready.length > 0) this.#schedule();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #release({ key, sequence }: Item): void {
    const open = this.#open.get(key);
    open?.delete(sequence);
    if (open?.size === 0) this.#open.delete(key);
  }

  #schedule(): void {
    if (this.#isClosed) return;
    if (this.#ready.length >= this.#options.maxItems) return this.#sendBulk();
    this.#timer ??= this.#sendAfter(this.#options.maxWaitMs);
  }

  /** What waits goes out also after an exception. */
  #sendAfter(delayMs: number): NodeJS.Timeout {
    const again = () => {
      if (!this.#isClosed) this.#timer = this.#sendAfter(failedPauseMs);
    };
    return boundary.after(delayMs, () => this.#sendBulk(), again);
  }

  #sendBulk(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const bulk: Item[] = [];
    const left: Item[] = [];
    /** Keys of which an item stays. */
    const blocked = new Set<string>();
    for (const item of this.#ready) {
      const { key, sequence } = item;
      const isBlocked = key !== '' && (blocked.has(key) || [...(this.#open.get(key) ?? [])].some((open) => open < sequence));
      if (isBlocked || bulk.length >= this.#options.maxItems) {
        left.push(item);
        blocked.add(key);
      } else bulk.push(item);
    }
    this.#ready = left;
    for (const { key, sequence } of bulk) {
      if (key === '') continue;
      const open = this.#open.get(key);
      if (open === undefined) this.#open.set(key, new Set([sequence]));
      else open.add(sequence);
    }
    // What is blocked goes out when what it waits for is settled.
    if (bulk.length === 0) return;
    if (left.length > 0) this.#timer = this.#sendAfter(0);
    this.#options.send(bulk);
  }
}
