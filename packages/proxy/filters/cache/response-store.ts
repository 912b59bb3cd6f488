import type { Fields } from '../../message/fields.ts';
import type { HeaderList } from '../../message/header-list.ts';

export interface StoredResponse {
  readonly status: number;
  readonly fields: Fields;
  readonly body: Buffer;
  /** Request fields that the answer depends on, sorted. */
  readonly vary: readonly string[];
  readonly varyKey: string;
  readonly storedAtMs: number;
  /** How old it was when it came. */
  readonly ageMs: number;
  readonly expiresAtMs: number;
}

const maxVariants = 16;
const overheadBytes = 512;

export function varyKey(vary: readonly string[], headers: HeaderList): string {
  return JSON.stringify(vary.map((field) => headers.getJoined(field) ?? null));
}

/** Answers by URI and by what they vary on; the ones that were used least recently go first. */
export class ResponseStore {
  readonly #byUri: Map<string, StoredResponse[]>;
  #bytes: number;

  constructor() {
    this.#byUri = new Map();
    this.#bytes = 0;
  }

  find(uri: string, headers: HeaderList): StoredResponse | undefined {
    const variants = this.#byUri.get(uri);
    if (variants === undefined) return undefined;
    this.#byUri.delete(uri);
    this.#byUri.set(uri, variants);
    return variants.find((variant) => variant.varyKey === varyKey(variant.vary, headers));
  }

  keep(uri: string, response: StoredResponse, maxBytes: number): void {
    const size = sizeOf(uri, response);
    if (size > maxBytes) return;
    const others = (this.#byUri.get(uri) ?? []).filter((variant) => {
      const isReplaced = variant.varyKey === response.varyKey && variant.vary.join() === response.vary.join();
      if (isReplaced) this.#bytes -= sizeOf(uri, variant);
      return !isReplaced;
    });
    while (others.length >= maxVariants) this.#bytes -= sizeOf(uri, others.shift()!);
    this.#byUri.delete(uri);
    this.#byUri.set(uri, [...others, response]);
    this.#bytes += size;
    for (const oldest of this.#byUri.keys()) {
      if (this.#bytes <= maxBytes) break;
      this.forget(oldest);
    }
  }

  forget(uri: string): void {
    for (const variant of this.#byUri.get(uri) ?? []) this.#bytes -= sizeOf(uri, variant);
    this.#byUri.delete(uri);
  }
}

/** All that it holds: what a client chooses of it, such as the fields of its request that the answer varies on, counts too. */
function sizeOf(uri: string, response: StoredResponse): number {
  const vary = response.varyKey.length + response.vary.join().length;
  return overheadBytes + uri.length + vary + response.body.length + response.fields.reduce((sum, [field, value]) => sum + field.length + value.length, 0);
}
