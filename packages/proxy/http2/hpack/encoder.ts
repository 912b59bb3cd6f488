import { DynamicTable, entryBytes } from './dynamic-table.ts';
import { encodeHuffman, huffmanLength } from './huffman.ts';
import { staticCount, staticIndexOfName, staticIndexOfPair } from './static-table.ts';

const defaultTableBytes = 4096;
/** A longer field would push too much else out of the table. */
const maxIndexedBytes = 512;

/** Fields whose values rarely repeat: to index them would push out what does. */
const neverRepeats: ReadonlySet<string> = new Set([
  ...[':path', 'age', 'content-length', 'content-range', 'date', 'etag', 'expires', 'if-match', 'if-modified-since', 'if-none-match', 'if-range'],
  ...['if-unmodified-since', 'last-modified', 'location', 'range', 'x-request-id', 'x-envoy-upstream-service-time', 'traceparent'],
]);

/** RFC 7541 section 7.1.3: secrets that could be guessed a try at a time are kept out of every table on the way. */
const secrets: ReadonlySet<string> = new Set(['authorization', 'proxy-authorization', 'set-cookie', 'cookie']);

/**
 * Encodes header blocks (RFC 7541): what repeats on a connection is sent as a number from the second time on. Names are in lower case and
 * text is latin1. Fields are added one by one between `begin` and `end`.
 */
export class HpackEncoder {
  readonly #table: DynamicTable;
  /** `name\nvalue` to the count of insertions when it was added. */
  readonly #pairs: Map<string, number>;
  readonly #names: Map<string, number>;
  /** What the peer lets our table be (its SETTINGS_HEADER_TABLE_SIZE), and what we have use for. */
  #limitBytes: number;
  /** The smallest size since the last block, which the peer must hear of (RFC 7541 section 4.2); -1: none. */
  #smallestUpdate: number;
  #buffer: Buffer;
  #at: number;

  constructor() {
    this.#table = new DynamicTable(defaultTableBytes);
    this.#pairs = new Map();
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
    if (this.#table.count === 0) this.#forgetAll();
  }

  begin(): void {
    this.#at = 0;
    if (this.#smallestUpdate < 0) return;
    if (this.#smallestUpdate < this.#limitBytes) this.#integer(0x20, 5, this.#smallestUpdate);
    this.#integer(0x20, 5, this.#limitBytes);
    this.#smallestUpdate = -1;
  }

  add(name: string, value: string): void {
    const pair = `${name}\n${value}`;
    const known = staticIndexOfPair.get(pair) ?? this.#dynamicIndex(this.#pairs.get(pair));
    if (known !== undefined) return this.#integer(0x80, 7, known);
    const nameIndex = staticIndexOfName.get(name) ?? this.#dynamicIndex(this.#names.get(name)) ?? 0;
    const bytes = entryBytes(name, value);
    if (secrets.has(name)) this.#literal(0x10, 4, nameIndex, name, value);
    else if (neverRepeats.has(name) || bytes > maxIndexedBytes || bytes > this.#limitBytes) this.#literal(0x00, 4, nameIndex, name, value);
    else {
      this.#literal(0x40, 6, nameIndex, name, value);
      this.#table.add(name, value);
      this.#pairs.set(pair, this.#table.inserted);
      this.#names.set(name, this.#table.inserted);
      // Of entries that were evicted the maps still know: they are swept when they have become more than there can be.
      if (this.#pairs.size > 4 * this.#table.count + 64) this.#forgetEvicted();
    }
  }

  /** The block. It is good until the next `begin`. */
  end(): Buffer {
    return this.#buffer.subarray(0, this.#at);
  }

  /** undefined: it was evicted. The newest entry has the index behind the static ones. */
  #dynamicIndex(insertedAt: number | undefined): number | undefined {
    if (insertedAt === undefined) return undefined;
    const number = this.#table.inserted - insertedAt;
    return number < this.#table.count ? staticCount + 1 + number : undefined;
  }

  #forgetEvicted(): void {
    const oldest = this.#table.inserted - this.#table.count;
    for (const map of [this.#pairs, this.#names]) for (const [key, insertedAt] of map) if (insertedAt <= oldest) map.delete(key);
  }

  #forgetAll(): void {
    this.#pairs.clear();
    this.#names.clear();
  }

  #literal(pattern: number, prefixBits: number, nameIndex: number, name: string, value: string): void {
    this.#integer(pattern, prefixBits, nameIndex);
    if (nameIndex === 0) this.#string(name);
    this.#string(value);
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

  #string(text: string): void {
    const length = huffmanLength(text);
    this.#reserve(Math.max(length, text.length) + 8);
    if (length < text.length) {
      this.#integer(0x80, 7, length);
      this.#at = encodeHuffman(text, this.#buffer, this.#at);
    } else {
      this.#integer(0x00, 7, text.length);
      this.#at += this.#buffer.write(text, this.#at, 'latin1');
    }
  }

  #reserve(bytes: number): void {
    if (this.#at + bytes <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at + bytes));
    this.#buffer.copy(larger, 0, 0, this.#at);
    this.#buffer = larger;
  }
}
