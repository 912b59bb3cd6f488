import { appendFileSync, closeSync, fstatSync, ftruncateSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { messageOf } from '@mizzen/common';
import { isSound, offsetOf, recordLengthAt, recordOverheadBytes, timestampOf } from './record.ts';

/** An entry of the sparse index for every so many bytes. */
const indexEveryBytes = 64 * 1024;
const scanBytes = 1024 * 1024;
/** Bytes whose checksum is computed to find the next sound record behind damage. */
const maxMendBytes = 256 * 1024 * 1024;

/** Bytes of a segment that are not what was written. Offsets from `from` to before `to` are lost; none when they are equal. */
export interface Damage {
  readonly file: string;
  readonly position: number;
  readonly bytes: number;
  readonly from: number;
  readonly to: number;
  readonly reason: string;
}

/** What is known of the bytes at a place where no sound record begins. */
interface Mended {
  /** The record, when its length was all that was damaged. */
  readonly record: Buffer | undefined;
  /** Where the next sound record begins, or the end of the file. */
  readonly next: number;
  readonly nextOffset: number;
}

/**
 * One file of a partition: records one behind the other, named by the offset of the first one. Its index (which offset lies where, every 64 KiB) is a
 * file beside it, written as the segment grows and made again by reading where it is missing or wrong.
 */
export class Segment {
  readonly baseOffset: number;
  readonly path: string;
  readonly fd: number;
  sizeBytes: number;
  /** Of the newest record; 0 for an empty one. */
  lastTimestampMs: number;
  /** Pairs of offset and position. undefined: not read yet. */
  #index: number[] | undefined;
  #indexedTo: number;
  readonly #mended: Map<number, Mended>;
  readonly #onDamage: (damage: Damage) => void;

  /** Throws the error of the file system when the file cannot be opened. */
  constructor(folder: string, baseOffset: number, onDamage: (damage: Damage) => void) {
    this.baseOffset = baseOffset;
    this.path = join(folder, `${String(baseOffset).padStart(16, '0')}.log`);
    this.fd = openSync(this.path, 'a+', 0o600);
    const { size, mtimeMs } = fstatSync(this.fd);
    this.sizeBytes = size;
    this.lastTimestampMs = size === 0 ? 0 : mtimeMs;
    this.#index = size === 0 ? [] : undefined;
    this.#indexedTo = 0;
    this.#mended = new Map();
    this.#onDamage = onDamage;
  }

  get #indexPath(): string {
    return `${this.path.slice(0, -4)}.index`;
  }

  /** Notes what has been appended, for the index. */
  appended(offset: number, bytes: number, timestampMs: number): void {
    if (this.#index !== undefined && (this.#index.length === 0 || this.sizeBytes - this.#indexedTo >= indexEveryBytes)) {
      this.#index.push(offset, this.sizeBytes);
      this.#indexedTo = this.sizeBytes;
      // Without it the next start reads more.
      try {
        appendFileSync(this.#indexPath, bytesOf([offset, this.sizeBytes]), { mode: 0o600 });
      } catch {
        // It is made again from the file.
      }
    }
    this.sizeBytes += bytes;
    this.lastTimestampMs = timestampMs;
  }

  /**
   * Finds the end of a segment that was being written: what a crash has left half-written, behind the last sound record, is cut off. Damage before a sound
   * record stays where it is and is reported. Returns the offset of the next record. Only what lies behind the last entry of the index is read.
   */
  recover(): number {
    const index = this.#loadIndex();
    const last = this.#walk(index.at(-1) ?? 0, index.at(-2) ?? this.baseOffset, (offset, position, record) => {
      this.lastTimestampMs = timestampOf(record);
      this.#addToIndex(index, offset, position);
    });
    if (last.position < this.sizeBytes) {
      this.#onDamage({
        file: this.path,
        position: last.position,
        bytes: this.sizeBytes - last.position,
        from: last.offset,
        to: last.offset,
        reason: 'the end of the file holds no sound record and was cut off',
      });
      ftruncateSync(this.fd, last.position);
      this.sizeBytes = last.position;
    }
    this.#saveIndex(index);
    return last.offset;
  }

  /** Reads every record and reports all damage, without changing the file. Returns the offset behind the last sound record, and where that ends. */
  verify(): { readonly records: number; readonly offset: number; readonly position: number } {
    let records = 0;
    const { offset, position } = this.#walk(0, this.baseOffset, () => {
      records++;
    });
    return { records, offset, position };
  }

  /** Visits the sound records from a place on. Returns where the last of them ends, and the offset behind it. */
  #walk(
    from: number,
    firstOffset: number,
    visit: (offset: number, position: number, record: Buffer) => void,
  ): { readonly position: number; readonly offset: number } {
    let position = from;
    let offset = firstOffset;
    while (position < this.sizeBytes) {
      const bytes = this.#read(position, scanBytes);
      let at = 0;
      for (let length = recordLengthAt(bytes, at); length !== undefined; length = recordLengthAt(bytes, at)) {
        const record = bytes.subarray(at, at + length);
        if (!isSound(record) || offsetOf(record) !== offset) break;
        visit(offset, position + at, record);
        offset++;
        at += length;
      }
      position += at;
      if (at > 0 || position >= this.sizeBytes) continue;
      // Longer than what is read at once, or damaged.
      const needed = bytes.length >= 4 ? bytes.readUInt32LE(0) + 4 : 0;
      if (needed > bytes.length && needed <= 32 * scanBytes && position + needed <= this.sizeBytes) {
        const whole = this.#read(position, needed);
        if (recordLengthAt(whole, 0) === needed && isSound(whole) && offsetOf(whole) === offset) {
          visit(offset, position, whole);
          offset++;
          position += needed;
          continue;
        }
      }
      const { record, next, nextOffset } = this.mend(position, offset);
      if (record !== undefined) visit(offset, position, record);
      else if (next >= this.sizeBytes) break;
      position = next;
      offset = nextOffset;
    }
    return { position, offset };
  }

  /**
   * What lies at a place where a record of this offset should begin and none is sound. A damaged length is found again by the checksum, a damaged record is
   * passed by its length, and everything else by looking for the next record that is sound.
   */
  mend(position: number, expected: number): Mended {
    const known = this.#mended.get(position);
    if (known !== undefined) return known;
    const bytes = this.#read(position, this.sizeBytes - position);
    const mended = withLengthFound(bytes, position, expected) ?? behindDamage(bytes, position, expected);
    const isTail = mended.record === undefined && mended.next >= this.sizeBytes;
    if (isTail) return mended;
    this.#mended.set(position, mended);
    if (mended.next > position)
      this.#onDamage({
        file: this.path,
        position,
        bytes: mended.next - position,
        from: expected,
        to: mended.record === undefined ? mended.nextOffset : expected,
        reason: mended.record === undefined ? 'the bytes are not what was written' : 'the length of a record was damaged; the record itself is whole',
      });
    return mended;
  }

  /** Takes back what was written behind the last record that counts. */
  cutBack(): void {
    ftruncateSync(this.fd, this.sizeBytes);
  }

  /** Where to begin to read for an offset: at it, or less than 64 KiB before; and the offset of the record that begins there. */
  placeBefore(offset: number): { readonly position: number; readonly offset: number } {
    const place = this.#placeIn(this.#loadIndex(), offset);
    if (place.position === 0 || this.#hasRecord(place.offset, place.position)) return place;
    // The index is not of this file: it is made again.
    this.#index = this.#makeIndex();
    this.#saveIndex(this.#index);
    return this.#placeIn(this.#index, offset);
  }

  #placeIn(index: readonly number[], offset: number): { readonly position: number; readonly offset: number } {
    let low = 0;
    let high = index.length / 2 - 1;
    let place = { position: 0, offset: this.baseOffset };
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (index[2 * middle]! <= offset) {
        place = { position: index[2 * middle + 1]!, offset: index[2 * middle]! };
        low = middle + 1;
      } else high = middle - 1;
    }
    return place;
  }

  /** The segment is full: nothing is appended any more. */
  seal(): void {
    this.#saveIndex(this.#loadIndex());
    this.#index = undefined;
  }

  /** Gives up memory that can be had again from the file. */
  forgetIndex(): void {
    this.#index = undefined;
  }

  close(): void {
    closeSync(this.fd);
  }

  #loadIndex(): number[] {
    this.#index ??= this.#readIndex() ?? this.#makeIndex();
    this.#indexedTo = this.#index.at(-1) ?? 0;
    return this.#index;
  }

  /** undefined: there is none, or none that can be used. */
  #readIndex(): number[] | undefined {
    let bytes: Buffer;
    try {
      bytes = readFileSync(this.#indexPath);
    } catch {
      return undefined;
    }
    const index: number[] = [];
    for (let at = 0; at + 16 <= bytes.length; at += 16) {
      const offset = bytes.readDoubleLE(at);
      const position = bytes.readDoubleLE(at + 8);
      // An index that says more than the file has was written for another one.
      if (position >= this.sizeBytes) break;
      const isNext = Number.isInteger(offset) && Number.isInteger(position) && offset > (index.at(-2) ?? -1) && position > (index.at(-1) ?? -1);
      if (!isNext || offset < this.baseOffset) break;
      index.push(offset, position);
    }
    while (index.length > 0 && !this.#hasRecord(index.at(-2)!, index.at(-1)!)) index.length -= 2;
    return index.length === 0 ? undefined : index;
  }

  #makeIndex(): number[] {
    const index: number[] = [];
    this.#indexedTo = 0;
    this.#walk(0, this.baseOffset, (offset, position) => this.#addToIndex(index, offset, position));
    return index;
  }

  #addToIndex(index: number[], offset: number, position: number): void {
    if (index.length > 0 && position - this.#indexedTo < indexEveryBytes) return;
    if (index.length > 0 && position <= index.at(-1)!) return;
    index.push(offset, position);
    this.#indexedTo = position;
  }

  /** Without an index the next reader reads more: a disk that does not take it is no reason to fail. */
  #saveIndex(index: readonly number[]): void {
    try {
      writeFileSync(this.#indexPath, bytesOf(index), { mode: 0o600 });
    } catch (error) {
      const reason = `the index cannot be written: ${messageOf(error)}`;
      this.#onDamage({ file: this.#indexPath, position: 0, bytes: 0, from: this.baseOffset, to: this.baseOffset, reason });
    }
  }

  #hasRecord(offset: number, position: number): boolean {
    let bytes = this.#read(position, 4 * 1024);
    if (bytes.length >= 4 && bytes.readUInt32LE(0) + 4 > bytes.length) bytes = this.#read(position, Math.min(bytes.readUInt32LE(0) + 4, 32 * scanBytes));
    const length = recordLengthAt(bytes, 0);
    return length !== undefined && offsetOf(bytes) === offset && isSound(bytes.subarray(0, length));
  }

  #read(position: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(Math.min(length, Math.max(0, this.sizeBytes - position)));
    const read = readSync(this.fd, bytes, 0, bytes.length, position);
    return bytes.subarray(0, read);
  }
}

/** The record at the beginning of `bytes`, when all of it but its length is as it was written. */
function withLengthFound(bytes: Buffer, position: number, expected: number): Mended | undefined {
  if (bytes.length < recordOverheadBytes || offsetOf(bytes) !== expected) return undefined;
  const written = bytes.readUInt32LE(4);
  let checksum = 0;
  let from = 8;
  for (let end = recordOverheadBytes; end <= bytes.length; end++) {
    const isBoundary = end === bytes.length || (end + 16 <= bytes.length && bytes.readDoubleLE(end + 8) === expected + 1);
    if (!isBoundary) continue;
    checksum = crc32(bytes.subarray(from, end), checksum);
    from = end;
    if (checksum !== written) continue;
    const record = Buffer.from(bytes.subarray(0, end));
    record.writeUInt32LE(end - 4, 0);
    if (isSound(record)) return { record, next: position + end, nextOffset: expected + 1 };
  }
  return undefined;
}

/** Where the next sound record begins. */
function behindDamage(bytes: Buffer, position: number, expected: number): Mended {
  const soundAt = (at: number): number | undefined => {
    const length = recordLengthAt(bytes, at);
    if (length === undefined) return undefined;
    budget -= length;
    return isSound(bytes.subarray(at, at + length)) ? offsetOf(bytes.subarray(at)) : undefined;
  };
  let budget = maxMendBytes;
  const length = recordLengthAt(bytes, 0);
  // What was lost lies before this place.
  if (length !== undefined && offsetOf(bytes) > expected && soundAt(0) !== undefined) return { record: undefined, next: position, nextOffset: offsetOf(bytes) };
  if (length !== undefined && soundAt(length) === expected + 1) return { record: undefined, next: position + length, nextOffset: expected + 1 };
  for (let at = 1; at + recordOverheadBytes <= bytes.length && budget > 0; at++) {
    const offset = bytes.readDoubleLE(at + 8);
    if (offset <= expected || !Number.isInteger(offset) || offset > expected + 1 + at / recordOverheadBytes) continue;
    if (soundAt(at) === offset) return { record: undefined, next: position + at, nextOffset: offset };
  }
  return { record: undefined, next: position + bytes.length, nextOffset: expected };
}

function bytesOf(index: readonly number[]): Buffer {
  const bytes = Buffer.alloc(index.length * 8);
  for (const [i, value] of index.entries()) bytes.writeDoubleLE(value, i * 8);
  return bytes;
}
