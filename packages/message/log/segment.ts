import { appendFile, closeSync, existsSync, fstatSync, ftruncateSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isSound, offsetOf, recordLengthAt, timestampOf } from './record.ts';

/** An entry of the sparse index for every so many bytes. */
const indexEveryBytes = 64 * 1024;
const scanBytes = 1024 * 1024;

/**
 * One file of a partition: records one behind the other, named by the first one's offset. Its index (which offset lies where, every 64 KiB) is a
 * file beside it, written as the segment grows and made anew by reading where it is missing; what it says of the end is not believed.
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

  constructor(folder: string, baseOffset: number) {
    this.baseOffset = baseOffset;
    this.path = join(folder, `${String(baseOffset).padStart(16, '0')}.log`);
    this.fd = openSync(this.path, 'a+', 0o600);
    const { size, mtimeMs } = fstatSync(this.fd);
    this.sizeBytes = size;
    this.lastTimestampMs = size === 0 ? 0 : mtimeMs;
    this.#index = size === 0 ? [] : undefined;
    this.#indexedTo = 0;
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
      appendFile(this.#indexPath, bytesOf([offset, this.sizeBytes]), { mode: 0o600 }, () => {});
    }
    this.sizeBytes += bytes;
    this.lastTimestampMs = timestampMs;
  }

  /**
   * Finds out where a segment that was being written ends: what a crash has left half-written is cut off. Returns the offset of the next record.
   * Only what lies behind the last entry of the index is read.
   */
  recover(): number {
    const index = this.#loadIndex();
    while (index.length > 0 && !this.#hasRecord(index.at(-2)!, index.at(-1)!)) index.length -= 2;
    this.#indexedTo = index.at(-1) ?? 0;
    const next = this.#recoverFrom(index);
    // What it had said wrongly is gone, and what is new stands in order.
    writeFileSync(this.#indexPath, bytesOf(index), { mode: 0o600 });
    return next;
  }

  #recoverFrom(index: number[]): number {
    let position = index.at(-1) ?? 0;
    let next = index.at(-2) ?? this.baseOffset;
    for (;;) {
      const bytes = this.#read(position, scanBytes);
      let at = 0;
      for (;;) {
        const length = recordLengthAt(bytes, at);
        if (length === undefined) break;
        const record = bytes.subarray(at, at + length);
        if (!isSound(record) || offsetOf(record) !== next) {
          ftruncateSync(this.fd, position + at);
          this.sizeBytes = position + at;
          return next;
        }
        this.lastTimestampMs = timestampOf(record);
        if (position + at - this.#indexedTo >= indexEveryBytes || index.length === 0) {
          index.push(next, position + at);
          this.#indexedTo = position + at;
        }
        next++;
        at += length;
      }
      position += at;
      if (bytes.length < scanBytes || at === 0) {
        // A record longer than the window is read whole, if it is there.
        const needed = bytes.length >= 4 && at === 0 ? bytes.readUInt32LE(0) + 4 : 0;
        if (needed > bytes.length && position + needed <= this.sizeBytes && needed <= 32 * scanBytes) {
          const whole = this.#read(position, needed);
          if (recordLengthAt(whole, 0) === needed && isSound(whole) && offsetOf(whole) === next) {
            position += needed;
            next++;
            continue;
          }
        }
        if (position < this.sizeBytes) ftruncateSync(this.fd, position);
        this.sizeBytes = position;
        return next;
      }
    }
  }

  #hasRecord(offset: number, position: number): boolean {
    let bytes = this.#read(position, 64 * 1024);
    if (bytes.length >= 4 && bytes.readUInt32LE(0) + 4 > bytes.length) bytes = this.#read(position, Math.min(bytes.readUInt32LE(0) + 4, 32 * scanBytes));
    const length = recordLengthAt(bytes, 0);
    return length !== undefined && offsetOf(bytes) === offset && isSound(bytes.subarray(0, length));
  }

  /** Takes back what was written behind the last record that counts. */
  cutBack(): void {
    ftruncateSync(this.fd, this.sizeBytes);
  }

  /** Where to begin to read for an offset: at it, or less than 64 KiB before. */
  positionBefore(offset: number): number {
    const index = this.#loadIndex();
    let low = 0;
    let high = index.length / 2 - 1;
    let position = 0;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (index[2 * middle]! <= offset) {
        position = index[2 * middle + 1]!;
        low = middle + 1;
      } else high = middle - 1;
    }
    return position;
  }

  /** The segment is full: nothing is appended any more. */
  seal(): void {
    const index = this.#loadIndex();
    writeFileSync(this.#indexPath, bytesOf(index), { mode: 0o600 });
    this.#index = undefined;
  }

  /** Gives up memory that can be had again from the file. */
  forgetIndex(): void {
    if (existsSync(this.#indexPath)) this.#index = undefined;
  }

  close(): void {
    closeSync(this.fd);
  }

  #loadIndex(): number[] {
    if (this.#index !== undefined) return this.#index;
    const index: number[] = [];
    this.#index = index;
    this.#indexedTo = 0;
    if (existsSync(this.#indexPath)) {
      const bytes = readFileSync(this.#indexPath);
      for (let at = 0; at + 16 <= bytes.length; at += 16) {
        const position = bytes.readDoubleLE(at + 8);
        // An index that says more than the file has was written for another one.
        if (position >= this.sizeBytes) break;
        index.push(bytes.readDoubleLE(at), position);
      }
      this.#indexedTo = index.at(-1) ?? 0;
      return index;
    }
    let position = 0;
    while (position < this.sizeBytes) {
      const bytes = this.#read(position, scanBytes);
      let at = 0;
      for (let length = recordLengthAt(bytes, at); length !== undefined; length = recordLengthAt(bytes, at)) {
        if (index.length === 0 || position + at - this.#indexedTo >= indexEveryBytes) {
          index.push(offsetOf(bytes.subarray(at)), position + at);
          this.#indexedTo = position + at;
        }
        at += length;
      }
      if (at === 0) {
        const needed = bytes.length >= 4 ? bytes.readUInt32LE(0) + 4 : 0;
        if (needed <= bytes.length || position + needed > this.sizeBytes) break;
        at = needed;
      }
      position += at;
    }
    return index;
  }

  #read(position: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(Math.min(length, Math.max(0, this.sizeBytes - position)));
    const read = readSync(this.fd, bytes, 0, bytes.length, position);
    return bytes.subarray(0, read);
  }
}

function bytesOf(index: readonly number[]): Buffer {
  const bytes = Buffer.alloc(index.length * 8);
  for (const [i, value] of index.entries()) bytes.writeDoubleLE(value, i * 8);
  return bytes;
}
