import { connectionSpecificNames } from '../../message/fields.ts';
import { isHeaderName } from '../../message/header-bytes.ts';
import { DynamicTable } from './dynamic-table.ts';
import { HeaderField } from './header-field.ts';
import { encodeHuffman, huffmanLength } from './huffman.ts';
import { staticCount, staticIndexOfName, staticIndicesOf } from './static-table.ts';

const defaultTableBytes = 4096;
/** A longer field would push too much else out of the table. */
const maxIndexedBytes = 512;

/** Fields whose values do not repeat: to index them would push out what does. Nor are they worth the time that Huffman's code takes. */
const neverRepeats: ReadonlySet<string> = new Set(['x-request-id', 'traceparent', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'grpc-message']);

/** Fields whose values may repeat or not, as what is served is: they enter the table when a value is seen again. */
const mayRepeat: ReadonlySet<string> = new Set([
  ...[':path', 'age', 'content-length', 'content-range', 'date', 'etag', 'expires', 'grpc-timeout', 'if-match', 'if-modified-since', 'if-none-match'],
  ...['if-range', 'if-unmodified-since', 'last-modified', 'location', 'range', 'x-envoy-upstream-service-time'],
]);

/** RFC 7541 section 7.1.3: secrets that could be guessed a try at a time are kept out of every table on the way. */
const secrets: ReadonlySet<string> = new Set(['authorization', 'proxy-authorization', 'set-cookie', 'cookie']);

/** What no header block may hold (RFC 9113 sections 8.2.1 and 8.2.2), however it came to be in a message: the peer would fail the stream, or the connection. */
const isForbidden = (name: string) => connectionSpecificNames.has(name) || !(isHeaderName(name) || /^:[a-z]+$/.test(name));

/** Names remembered for their entries in the table; those beyond are written out each time. */
const maxNames = 512;
/** Values remembered of one name; old ones are forgotten first when they are no longer in the table. */
const maxValues = 64;

/** What is known of one field name on one connection. */
class NameState {
  readonly staticIndex: number;
  /** Values with an entry in the static table. */
  readonly statics: ReadonlyMap<string, number> | undefined;
  /** `twice`: a value enters the table when it is seen again. */
  readonly treatment: 'index' | 'twice' | 'plain' | 'secret' | 'never';
  /** Value to the count of insertions when its entry was added. */
  readonly entries: Map<string, number>;
  lastValue: string;
  /** Values that were written out lately. */
  readonly seen: string[];
  lastInserted: number;
  /** The newest entry with this name, whatever its value. */
  newest: number;

  constructor(name: string) {
    this.staticIndex = staticIndexOfName.get(name) ?? 0;
    this.statics = staticIndicesOf.get(name);
    this.treatment = isForbidden(name) ? 'never' : secrets.has(name) ? 'secret' : neverRepeats.has(name) ? 'plain' : mayRepeat.has(name) ? 'twice' : 'index';
    this.seen = [];
    this.entries = new Map();
    this.lastValue = '';
    this.lastInserted = 0;
    this.newest = 0;
  }
}

function wasSeen({ seen }: NameState, value: string): boolean {
  if (seen.includes(value)) return true;
  if (seen.push(value) > 8) seen.shift();
  return false;
}

/**
 * Encodes header blocks (RFC 7541): what repeats on a connection is sent as a number from the second time on. Names are in lower case and
 * values are byte strings. A field that HTTP/2 forbids is left out. Fields are added one by one between `begin` and `end`.
 */
export class HpackEncoder {
  readonly #table: DynamicTable;
  readonly #names: Map<string, NameState>;
  /** What the peer lets our table be (its SETTINGS_HEADER_TABLE_SIZE), and what we have use for. */
  #limitBytes: number;
  /** The smallest size since the last block, which the peer must hear of (RFC 7541 section 4.2); -1: none. */
  #smallestUpdate: number;
  #buffer: Buffer;
  #at: number;

  constructor() {
    this.#table = new DynamicTable(defaultTableBytes);
    this.#names = new Map();
    this.#limitBytes = defaultTableBytes;
    this.#smallestUpdate = -1;
    this.#buffer = Buffer.allocUnsafe(2048);
    this.#at = 0;
  }

  /** The peer has changed its setting. More than the default is not made use of. */
  setLimit(bytes: number): void {
    const limitBytes = Math.min(bytes, defaultTableBytes);
    if (limitBytes === this.#limitBytes) return;
    this.#limitBytes = limitBytes;
    this.#smallestUpdate = this.#smallestUpdate < 0 ? limitBytes : Math.min(this.#smallestUpdate, limitBytes);
    this.#table.resize(limitBytes);
  }

  begin(): void {
    this.#at = 0;
    if (this.#smallestUpdate < 0) return;
    if (this.#smallestUpdate < this.#limitBytes) this.#integer(0x20, 5, this.#smallestUpdate);
    this.#integer(0x20, 5, this.#limitBytes);
    this.#smallestUpdate = -1;
  }

  add(name: string, value: string): void {
    let state = this.#names.get(name);
    if (state === undefined) {
      state = new NameState(name);
      if (this.#names.size < maxNames) this.#names.set(name, state);
    }
    if (state.treatment === 'index' || state.treatment === 'twice') {
      if (value === state.lastValue) {
        const number = this.#table.inserted - state.lastInserted;
        if (state.lastInserted > 0 && number < this.#table.count) return this.#integer(0x80, 7, staticCount + 1 + number);
      }
      const known = state.statics?.get(value) ?? this.#indexOf(state, value);
      if (known > 0) return this.#integer(0x80, 7, known);
      if (state.treatment === 'twice' && !wasSeen(state, value)) return this.#literal(0x00, 4, state.staticIndex, name, value, false);
      return this.#addToTable(state, name, value);
    }
    if (state.treatment === 'never') return;
    const known = state.statics?.get(value);
    if (known !== undefined) return this.#integer(0x80, 7, known);
    this.#literal(state.treatment === 'secret' ? 0x10 : 0x00, 4, state.staticIndex || this.#index(state.newest), name, value, false);
  }

  /** The block. It is good until the next `begin`. */
  end(): Buffer {
    return this.#buffer.subarray(0, this.#at);
  }

  #indexOf(state: NameState, value: string): number {
    const inserted = state.entries.get(value);
    if (inserted === undefined) return 0;
    const index = this.#index(inserted);
    if (index > 0) {
      state.lastValue = value;
      state.lastInserted = inserted;
    }
    return index;
  }

  #addToTable(state: NameState, name: string, value: string): void {
    const nameIndex = state.staticIndex || this.#index(state.newest);
    const field = new HeaderField(name, value);
    if (field.bytes > maxIndexedBytes || field.bytes > this.#limitBytes || !this.#names.has(name)) return this.#literal(0x00, 4, nameIndex, name, value, true);
    this.#literal(0x40, 6, nameIndex, name, value, true);
    this.#table.add(field);
    const { inserted } = this.#table;
    state.newest = inserted;
    state.lastValue = value;
    state.lastInserted = inserted;
    if (state.entries.size >= maxValues) this.#forgetEvicted(state);
    state.entries.set(value, inserted);
  }

  /** 0: it was evicted. The newest entry has the index behind the static ones. */
  #index(inserted: number): number {
    const number = this.#table.inserted - inserted;
    return inserted > 0 && number < this.#table.count ? staticCount + 1 + number : 0;
  }

  #forgetEvicted(state: NameState): void {
    for (const [value, inserted] of state.entries) if (this.#index(inserted) === 0) state.entries.delete(value);
  }

  #literal(pattern: number, prefixBits: number, nameIndex: number, name: string, value: string, isWorthCoding: boolean): void {
    this.#integer(pattern, prefixBits, nameIndex);
    if (nameIndex === 0) this.#string(name, true);
    this.#string(value, isWorthCoding);
  }

  #integer(pattern: number, prefixBits: number, value: number): void {
    this.#reserve(8);
    const most = (1 << prefixBits) - 1;
    if (value < most) {
      this.#buffer[this.#at++] = pattern | value;
      return;
    }
    this.#buffer[this.#at++] = pattern | most;
    let rest = value - most;
    while (rest >= 128) {
      this.#buffer[this.#at++] = (rest & 0x7f) | 0x80;
      rest >>>= 7;
    }
    this.#buffer[this.#at++] = rest;
  }

  #string(text: string, isWorthCoding: boolean): void {
    const length = isWorthCoding ? huffmanLength(text) : text.length;
    this.#reserve(Math.max(length, text.length) + 8);
    if (length < text.length) {
      this.#integer(0x80, 7, length);
      this.#at = encodeHuffman(text, this.#buffer, this.#at);
    } else {
      this.#integer(0x00, 7, text.length);
      if (text.length < 24) for (let i = 0; i < text.length; i++) this.#buffer[this.#at++] = text.charCodeAt(i);
      else this.#at += this.#buffer.write(text, this.#at, 'latin1');
    }
  }

  #reserve(bytes: number): void {
    if (this.#at + bytes <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at + bytes));
    this.#buffer.copy(larger, 0, 0, this.#at);
    this.#buffer = larger;
  }
}
