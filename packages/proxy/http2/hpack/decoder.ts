import { DynamicTable } from './dynamic-table.ts';
import { HeaderField } from './header-field.ts';
import { decodeHuffman } from './huffman.ts';
import { staticCount, staticFields } from './static-table.ts';

/** Who receives the fields of a header block, in their order. */
export interface FieldSink {
  onField(field: HeaderField): void;
}

/** Why a header block cannot be decoded: a connection error of type COMPRESSION_ERROR (RFC 9113 section 4.3). */
export type HpackFailure = 'truncated' | 'integer' | 'index' | 'huffman' | 'size_update' | 'too_many_size_updates';

const defaultTableBytes = 4096;
/** RFC 7541 section 4.2: at most two at the beginning of a block have a purpose. */
const maxSizeUpdates = 2;
/** Longer integers than these are none that a table or a string here could have. */
const maxInteger = 0x0fff_ffff;

const maxMemoBytes = 128;
/** After so many different values the next ones are not kept, but for one now and then. */
const patience = 16;

/**
 * The last literal with a certain name, and what it came to. Servers that do not look into their dynamic table (nginx) say the same in the
 * same bytes with every answer.
 */
class LiteralMemo {
  #bytes: Buffer;
  length: number;
  #field: HeaderField | undefined;
  #misses: number;

  constructor() {
    this.#bytes = noBytes;
    this.length = 0;
    this.#field = undefined;
    this.#misses = 0;
  }

  recall(source: Buffer, start: number, end: number): HeaderField | undefined {
    const { length } = this;
    if (length === 0 || start + length > end) return undefined;
    const bytes = this.#bytes;
    for (let i = 0; i < length; i++) if (source[start + i] !== bytes[i]) return undefined;
    this.#misses = 0;
    return this.#field;
  }

  keep(source: Buffer, start: number, end: number, field: HeaderField): void {
    const length = end - start;
    if (++this.#misses > patience && this.#misses % 64 !== 0) return;
    if (length > maxMemoBytes) return;
    if (this.#bytes.length < length) this.#bytes = Buffer.allocUnsafe(maxMemoBytes);
    source.copy(this.#bytes, 0, start, end);
    this.length = length;
    this.#field = field;
  }
}

const noBytes = Buffer.alloc(0);

/**
 * Decodes header blocks (RFC 7541). A block is given whole; the table carries over to the next. Fields go to the sink as they are found: what
 * they cost is the sink's to limit, and a sink that has had enough still lets the block be read to its end, for the table's sake.
 */
export class HpackDecoder {
  readonly #table: DynamicTable;
  /** By the static index of the name. */
  readonly #memos: (LiteralMemo | undefined)[];
  /** What we have told the peer that its table may be (SETTINGS_HEADER_TABLE_SIZE). */
  #limitBytes: number;
  #at: number;
  #source: Buffer;
  #end: number;
  /** Why the string that was read last is none. */
  #failure: HpackFailure;

  constructor(limitBytes = defaultTableBytes) {
    this.#table = new DynamicTable(limitBytes);
    this.#memos = [];
    this.#limitBytes = limitBytes;
    this.#source = Buffer.alloc(0);
    this.#at = 0;
    this.#end = 0;
    this.#failure = 'truncated';
  }

  get tableBytes(): number {
    return this.#table.bytes;
  }

  /** Our setting has been acknowledged by the peer. */
  setLimit(limitBytes: number): void {
    this.#limitBytes = limitBytes;
    if (limitBytes < this.#table.maxBytes) this.#table.resize(limitBytes);
  }

  /** The block lies in `source` from `start` to `end`. undefined: it was read to its end. */
  decode(source: Buffer, start: number, end: number, sink: FieldSink): HpackFailure | undefined {
    this.#source = source;
    this.#at = start;
    this.#end = end;
    let updates = 0;
    let isBeginning = true;
    while (this.#at < this.#end) {
      const first = source[this.#at]!;
      if ((first & 0x80) !== 0) {
        const index = this.#integer(7);
        if (index < 0) return 'integer';
        const number = index - staticCount - 1;
        if (index === 0 || number >= this.#table.count) return 'index';
        sink.onField(number < 0 ? staticFields[index]! : this.#table.at(number));
      } else if ((first & 0xe0) === 0x20) {
        if (!isBeginning || ++updates > maxSizeUpdates) return 'too_many_size_updates';
        const size = this.#integer(5);
        if (size < 0) return 'integer';
        if (size > this.#limitBytes) return 'size_update';
        this.#table.resize(size);
        continue;
      } else {
        const isIndexed = (first & 0x40) !== 0;
        const index = this.#integer(isIndexed ? 6 : 4);
        if (index < 0) return 'integer';
        let like: HeaderField | undefined;
        let name: string | undefined;
        if (index === 0) name = this.#string();
        else {
          const number = index - staticCount - 1;
          if (number >= this.#table.count) return 'index';
          like = number < 0 ? staticFields[index]! : this.#table.at(number);
          name = like.name;
        }
        if (name === undefined) return this.#failure;
        const start = this.#at;
        const memo = index > 0 && index <= staticCount ? this.#memoOf(index) : undefined;
        let field = memo?.recall(source, start, this.#end);
        if (field !== undefined) this.#at = start + memo!.length;
        else {
          const value = this.#string();
          if (value === undefined) return this.#failure;
          field = new HeaderField(name, value, like);
          memo?.keep(source, start, this.#at, field);
        }
        if (isIndexed) this.#table.add(field);
        sink.onField(field);
      }
      isBeginning = false;
    }
    return undefined;
  }

  #memoOf(index: number): LiteralMemo {
    return (this.#memos[index] ??= new LiteralMemo());
  }

  /** An integer with a prefix of so many bits (RFC 7541 section 5.1); -1 when it is cut short or too large. */
  #integer(prefixBits: number): number {
    const most = (1 << prefixBits) - 1;
    let value = this.#source[this.#at++]! & most;
    if (value < most) return value;
    for (let shift = 0; ; shift += 7) {
      if (this.#at >= this.#end || shift > 21) return -1;
      const byte = this.#source[this.#at++]!;
      value += (byte & 0x7f) << shift;
      if (value > maxInteger) return -1;
      if ((byte & 0x80) === 0) return value;
    }
  }

  /** A string literal (RFC 7541 section 5.2); undefined when there is none, and `#failure` says why. */
  #string(): string | undefined {
    this.#failure = 'truncated';
    if (this.#at >= this.#end) return undefined;
    const isHuffman = (this.#source[this.#at]! & 0x80) !== 0;
    const length = this.#integer(7);
    if (length < 0) {
      this.#failure = 'integer';
      return undefined;
    }
    const start = this.#at;
    const end = start + length;
    if (end > this.#end) return undefined;
    this.#at = end;
    if (!isHuffman) return this.#source.toString('latin1', start, end);
    const text = decodeHuffman(this.#source, start, end);
    if (text === undefined) this.#failure = 'huffman';
    return text;
  }
}
