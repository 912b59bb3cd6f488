/** What an entry costs beside its octets (RFC 7541 section 4.1). */
const entryOverheadBytes = 32;

export function entryBytes(name: string, value: string): number {
  return name.length + value.length + entryOverheadBytes;
}

/**
 * The dynamic table of one direction (RFC 7541 section 2.3.2): the newest entry has number 0. A ring, so that entries are added and evicted
 * without moving the others.
 */
export class DynamicTable {
  #names: string[];
  #values: string[];
  /** Where the next entry goes. */
  #next: number;
  #count: number;
  #bytes: number;
  #maxBytes: number;
  /** Entries that were ever added: the number of an entry is counted back from here. */
  inserted: number;

  constructor(maxBytes: number) {
    this.#names = new Array<string>(64).fill('');
    this.#values = new Array<string>(64).fill('');
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

  nameAt(number: number): string {
    return this.#names[(this.#next - 1 - number + this.#names.length) % this.#names.length]!;
  }

  valueAt(number: number): string {
    return this.#values[(this.#next - 1 - number + this.#values.length) % this.#values.length]!;
  }

  /** An entry that is larger than the table empties it (RFC 7541 section 4.4). Returns whether it is in the table now. */
  add(name: string, value: string): boolean {
    const bytes = entryBytes(name, value);
    this.#evict(this.#maxBytes - bytes);
    if (bytes > this.#maxBytes) return false;
    if (this.#count === this.#names.length) this.#grow();
    this.#names[this.#next] = name;
    this.#values[this.#next] = value;
    this.#next = (this.#next + 1) % this.#names.length;
    this.#count++;
    this.#bytes += bytes;
    this.inserted++;
    return true;
  }

  resize(maxBytes: number): void {
    this.#maxBytes = maxBytes;
    this.#evict(maxBytes);
  }

  #evict(untilBytes: number): void {
    while (this.#bytes > untilBytes && this.#count > 0) {
      const oldest = this.#count - 1;
      this.#bytes -= entryBytes(this.nameAt(oldest), this.valueAt(oldest));
      const at = (this.#next - this.#count + this.#names.length) % this.#names.length;
      this.#names[at] = '';
      this.#values[at] = '';
      this.#count--;
    }
  }

  #grow(): void {
    const names = new Array<string>(this.#names.length * 2).fill('');
    const values = new Array<string>(names.length).fill('');
    for (let i = 0; i < this.#count; i++) {
      names[i] = this.nameAt(this.#count - 1 - i);
      values[i] = this.valueAt(this.#count - 1 - i);
    }
    this.#next = this.#count;
    this.#names = names;
    this.#values = values;
  }
}
