import { HeaderField } from './header-field.ts';

const empty = new HeaderField('x', '');

/**
 * The dynamic table of one direction (RFC 7541 section 2.3.2): the newest entry has number 0. A ring, so that entries are added and evicted
 * without moving the others.
 */
export class DynamicTable {
  #fields: HeaderField[];
  /** Where the next entry goes; the ring's length is a power of two. */
  #next: number;
  #count: number;
  #bytes: number;
  #maxBytes: number;
  /** Entries that were ever added: the number of an entry is counted back from here. */
  inserted: number;

  constructor(maxBytes: number) {
    this.#fields = new Array<HeaderField>(16).fill(empty);
    this.#next = 0;
    this.#count = 0;
    this.#bytes = 0;
    this.#maxBytes = maxBytes;
    this.inserted = 0;
  }

  get count(): number {
    return this.#count;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get maxBytes(): number {
    return this.#maxBytes;
  }

  at(number: number): HeaderField {
    const fields = this.#fields;
    return fields[(this.#next - 1 - number) & (fields.length - 1)]!;
  }

  /** An entry that is larger than the table empties it (RFC 7541 section 4.4). Returns whether it is in the table now. */
  add(field: HeaderField): boolean {
    this.#evict(this.#maxBytes - field.bytes);
    if (field.bytes > this.#maxBytes) return false;
    if (this.#count === this.#fields.length) this.#grow();
    this.#fields[this.#next] = field;
    this.#next = (this.#next + 1) & (this.#fields.length - 1);
    this.#count++;
    this.#bytes += field.bytes;
    this.inserted++;
    return true;
  }

  resize(maxBytes: number): void {
    this.#maxBytes = maxBytes;
    this.#evict(maxBytes);
  }

  #evict(untilBytes: number): void {
    while (this.#bytes > untilBytes && this.#count > 0) {
      const at = (this.#next - this.#count) & (this.#fields.length - 1);
      this.#bytes -= this.#fields[at]!.bytes;
      this.#fields[at] = empty;
      this.#count--;
    }
  }

  #grow(): void {
    const fields = new Array<HeaderField>(this.#fields.length * 2).fill(empty);
    for (let i = 0; i < this.#count; i++) fields[i] = this.at(this.#count - 1 - i);
    this.#next = this.#count;
    this.#fields = fields;
  }
}
