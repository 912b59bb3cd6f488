import { fdatasync, mkdirSync, read, readdirSync, rmSync, writev } from 'node:fs';
import { errorBoundary, messageOf } from '@mizzen/common';
import { syncFolder } from '@mizzen/common/durable-file';
import { isSound, maxRecordBytes, offsetOf, recordLengthAt, sealRecord, timestampOf } from './record.ts';
import { type Damage, Segment } from './segment.ts';

const boundary = errorBoundary('broker.log');
const callbacks = errorBoundary('broker.log.callback');
/** Before a read is repeated after an exception. */
const failedPauseMs = 1_000;

export interface LogSettings {
  readonly segmentBytes: number;
  /** 0: records are kept for ever. */
  readonly retentionMs: number;
  readonly retentionBytes: number;
  /** false: an acknowledged message survives the process, not the machine. */
  readonly syncs: boolean;
}

export const defaultLogSettings: LogSettings = { segmentBytes: 64 * 1024 * 1024, retentionMs: 7 * 24 * 3600 * 1000, retentionBytes: 0, syncs: true };

/** The newest records stay in memory, for consumers that keep up. No more than that: what outlives young collections costs old ones, which stop everybody. */
const tailBytes = 128 * 1024;

interface Waiting {
  readonly records: readonly Buffer[];
  readonly done: (firstOffset: number | Error) => void;
}

/**
 * A partition's records: appended in order, on disk before anybody hears that they are (group commit: whatever has come while the disk was
 * busy is written and synced together), read from any offset. A write that fails is answered with an error and taken back.
 */
export class PartitionLog {
  readonly folder: string;
  readonly #settings: LogSettings;
  readonly #segments: Segment[];
  /** The offset that the next record gets. Those below it are on disk. */
  #nextOffset: number;
  #waiting: Waiting[];
  #isWriting: boolean;
  /** The active segment holds bytes behind its end that could not be cut off. */
  #mustRoll: boolean;
  #tail: Buffer[];
  #tailBytes: number;
  /** Base offsets of segments whose missing end has been reported. */
  readonly #reportedGaps: Set<number>;
  #isClosed: boolean;
  #idle: (() => void)[];
  readonly #onAppended: () => void;
  readonly #onDamage: (damage: Damage) => void;
  readonly #now: () => number;

  /**
   * Opens or makes the partition in `folder`. `onAppended`: there is more to read. `onDamage` is called once for each place that does not hold what was
   * written. Throws the error of the file system when a file cannot be opened.
   */
  constructor(folder: string, settings: LogSettings, onAppended: () => void, now: () => number = Date.now, onDamage: (damage: Damage) => void = () => {}) {
    this.folder = folder;
    this.#settings = settings;
    this.#onAppended = onAppended;
    this.#onDamage = onDamage;
    this.#now = now;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const bases = segmentBases(folder);
    this.#segments = [];
    try {
      for (const base of bases.length === 0 ? [0] : bases) this.#segments.push(new Segment(folder, base, onDamage));
      this.#nextOffset = this.#segments.at(-1)!.recover();
      if (bases.length === 0) syncFolder(folder);
    } catch (error) {
      for (const segment of this.#segments) segment.close();
      throw error;
    }
    this.#waiting = [];
    this.#isWriting = false;
    this.#mustRoll = false;
    this.#tail = [];
    this.#tailBytes = 0;
    this.#reportedGaps = new Set();
    this.#isClosed = false;
    this.#idle = [];
  }

  get nextOffset(): number {
    return this.#nextOffset;
  }

  /** The oldest offset that is still there. */
  get firstOffset(): number {
    return this.#segments[0]!.baseOffset;
  }

  get sizeBytes(): number {
    return this.#segments.reduce((sum, segment) => sum + segment.sizeBytes, 0);
  }

  /** Appends records (of `encodeRecord`) behind one another. `done` is told the first one's offset when all are on disk, or why they are not. */
  append(records: readonly Buffer[], done: (firstOffset: number | Error) => void): void {
    if (this.#isClosed) return done(new Error('the log is closed'));
    this.#waiting.push({ records, done });
    // What else comes in this turn of the event loop is written together with it.
    if (!this.#isWriting) {
      this.#isWriting = true;
      boundary.soon(
        () => this.#write(),
        () => this.#brokenOff(),
      );
    }
  }

  #write(): void {
    const batch = this.#waiting;
    if (batch.length === 0 || this.#isClosed) {
      this.#isWriting = false;
      for (const { done } of batch) done(new Error('the log is closed'));
      this.#waiting = [];
      for (const idle of this.#idle.splice(0)) idle();
      return;
    }
    this.#waiting = [];
    let segment: Segment;
    try {
      segment = this.#activeSegment();
    } catch (error) {
      return this.#failed(batch, undefined, error as Error);
    }
    const now = this.#now();
    const buffers: Buffer[] = [];
    let offset = this.#nextOffset;
    for (const { records } of batch)
      for (const record of records) {
        sealRecord(record, offset++, now);
        buffers.push(record);
      }
    const failed = () => this.#failed(batch, segment, new Error('internal error'));
    const synced = (error: Error | null) => (error === null ? this.#written(batch, buffers, segment, now) : this.#failed(batch, segment, error));
    const written = (error: Error | undefined) => {
      if (error !== undefined) return this.#failed(batch, segment, error);
      if (!this.#settings.syncs) return this.#written(batch, buffers, segment, now);
      fdatasync(segment.fd, boundary.wrap(synced, failed));
    };
    writeAll(segment.fd, joinNeighbours(buffers), boundary.wrap(written, failed));
  }

  /** After an exception: what waits is refused, and the next append writes again. */
  #brokenOff(): void {
    this.#isWriting = false;
    for (const { done } of this.#waiting.splice(0)) callbacks.run(() => done(new Error('the message cannot be stored: internal error')));
  }

  #written(batch: readonly Waiting[], buffers: readonly Buffer[], segment: Segment, now: number): void {
    let first = this.#nextOffset;
    for (const record of buffers) {
      segment.appended(this.#nextOffset++, record.length, now);
      this.#tail.push(record);
      this.#tailBytes += record.length;
    }
    while (this.#tailBytes > tailBytes && this.#tail.length > 1) this.#tailBytes -= this.#tail.shift()!.length;
    // An exception in a callback of one publisher, or of a reader, is not one of the log.
    for (const { records, done } of batch) {
      const offset = first;
      callbacks.run(() => done(offset));
      first += records.length;
    }
    callbacks.run(() => this.#onAppended());
    this.#write();
  }

  /** What may have been written in part is taken back, so that nothing is found later that was not acknowledged. */
  #failed(batch: readonly Waiting[], segment: Segment | undefined, error: Error): void {
    if (segment !== undefined) this.#takeBack(segment);
    for (const { done } of batch) callbacks.run(() => done(new Error(`the message cannot be stored: ${messageOf(error)}`)));
    this.#write();
  }

  #takeBack(segment: Segment): void {
    try {
      segment.cutBack();
    } catch {
      // A new segment leaves it behind: what lies in the old one from the new one's first offset on is not read.
      this.#mustRoll = true;
    }
  }

  #activeSegment(): Segment {
    const last = this.#segments.at(-1)!;
    if (last.sizeBytes < this.#settings.segmentBytes && !this.#mustRoll) return last;
    if (last.sizeBytes === 0) {
      // It has the name that a new one would get.
      last.cutBack();
      this.#mustRoll = false;
      return last;
    }
    const next = new Segment(this.folder, this.#nextOffset, this.#onDamage);
    try {
      syncFolder(this.folder);
      last.seal();
    } catch (error) {
      next.close();
      throw error;
    }
    this.#segments.push(next);
    this.#mustRoll = false;
    return next;
  }

  /**
   * Records from an offset on, up to `maxBytes`, at least one if there is any; from memory where they are there. Offsets below the first that is
   * kept begin at the first. `done` may be called before this returns.
   */
  read(from: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const offset = Math.max(from, this.firstOffset);
    if (offset >= this.#nextOffset) return done([]);
    const tailStart = this.#nextOffset - this.#tail.length;
    if (offset >= tailStart) {
      const records: Buffer[] = [];
      let bytes = 0;
      for (let i = offset - tailStart; i < this.#tail.length && (records.length === 0 || bytes + this.#tail[i]!.length <= maxBytes); i++) {
        records.push(this.#tail[i]!);
        bytes += this.#tail[i]!.length;
      }
      return done(records);
    }
    this.#readSegment(
      this.#segments.findLastIndex((candidate) => candidate.baseOffset <= offset),
      offset,
      maxBytes,
      done,
    );
  }

  #readSegment(at: number, offset: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const segment = this.#segments[at];
    if (segment === undefined) return done([]);
    let place: { readonly position: number; readonly offset: number };
    try {
      place = segment.placeBefore(offset);
    } catch (error) {
      return this.#unreadable(segment, 0, error as Error, done);
    }
    this.#readFile(segment, place.position, place.offset, offset, maxBytes, done);
  }

  /** `expected`: the offset of the record at `position`. */
  #readFile(segment: Segment, position: number, expected: number, offset: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const wanted = Math.min(maxBytes + 64 * 1024, segment.sizeBytes - position);
    if (wanted <= 0) return this.#readBehind(segment, expected, offset, maxBytes, done);
    const bytes = Buffer.allocUnsafe(wanted);
    const received = (error: Error | null, count: number) => {
      if (error !== null) return this.#unreadable(segment, position, error, done);
      // Bytes that a failed write has left behind the end belong to no record.
      const end = this.#endOf(segment);
      const records: Buffer[] = [];
      const held = bytes.subarray(0, count);
      let at = 0;
      let taken = 0;
      let next = expected;
      for (let length = recordLengthAt(held, at); length !== undefined; length = recordLengthAt(held, at)) {
        const record = held.subarray(at, at + length);
        if (offsetOf(record) !== next || !isSound(record)) break;
        if (next >= end) return records.length > 0 ? done(records) : this.#readBehind(segment, next, offset, maxBytes, done);
        if (next >= offset) {
          if (records.length > 0 && taken + length > maxBytes) return done(records);
          records.push(record);
          taken += length;
        }
        next++;
        at += length;
      }
      if (records.length > 0) return done(records);
      if (at > 0) return this.#readFile(segment, position + at, next, offset, maxBytes, done);
      // Longer than what was read, or damaged.
      const needed = held.length >= 4 ? held.readUInt32LE(0) + 4 : 0;
      if (needed > held.length && needed <= maxRecordBytes && position + needed <= segment.sizeBytes && needed > maxBytes)
        return this.#readFile(segment, position, next, offset, needed, done);
      this.#readDamaged(segment, position, next, offset, maxBytes, done);
    };
    const again = () =>
      boundary
        .after(
          failedPauseMs,
          () => this.#readFile(segment, position, expected, offset, maxBytes, done),
          () => done([]),
        )
        .unref();
    read(segment.fd, bytes, 0, wanted, position, boundary.wrap(received, again));
  }

  #readDamaged(segment: Segment, position: number, expected: number, offset: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    let mended: ReturnType<Segment['mend']>;
    try {
      mended = segment.mend(position, expected);
    } catch (error) {
      return this.#unreadable(segment, position, error as Error, done);
    }
    if (mended.record !== undefined && expected >= offset) return done([mended.record]);
    this.#readFile(segment, mended.next, mended.nextOffset, offset, maxBytes, done);
  }

  /** The offset that the segment after this one begins with. */
  #endOf(segment: Segment): number {
    return this.#segments[this.#segments.indexOf(segment) + 1]?.baseOffset ?? this.#nextOffset;
  }

  /** The segment holds nothing more: reading continues in the next one. */
  #readBehind(segment: Segment, expected: number, offset: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const at = this.#segments.indexOf(segment) + 1;
    const end = this.#segments[at]?.baseOffset ?? this.#nextOffset;
    if (expected < end && at > 0 && !this.#reportedGaps.has(segment.baseOffset)) {
      this.#reportedGaps.add(segment.baseOffset);
      const reason = 'records are missing at the end of the file';
      this.#onDamage({ file: segment.path, position: segment.sizeBytes, bytes: 0, from: expected, to: end, reason });
    }
    if (at === 0 || at >= this.#segments.length) return done([]);
    this.#readSegment(at, Math.max(offset, end), maxBytes, done);
  }

  #unreadable(segment: Segment, position: number, error: Error, done: (records: readonly Buffer[]) => void): void {
    if (!this.#isClosed)
      this.#onDamage({ file: segment.path, position, bytes: 0, from: segment.baseOffset, to: segment.baseOffset, reason: `cannot be read: ${error.message}` });
    done([]);
  }

  /** The first offset of a record that was appended at this time or later. */
  async offsetAt(timestampMs: number): Promise<number> {
    const segment = this.#segments.find((candidate) => candidate.lastTimestampMs >= timestampMs);
    if (segment === undefined) return this.#nextOffset;
    for (let offset = segment.baseOffset; ; ) {
      const records = await new Promise<readonly Buffer[]>((resolve) => this.read(offset, 256 * 1024, resolve));
      if (records.length === 0) return this.#nextOffset;
      const found = records.find((record) => timestampOf(record) >= timestampMs);
      if (found !== undefined) return offsetOf(found);
      offset = offsetOf(records.at(-1)!) + 1;
    }
  }

  /** Drops whole segments that are too old, or too many bytes; the newest always stays. Returns how many records went. */
  enforceRetention(): number {
    const { retentionMs, retentionBytes } = this.#settings;
    const before = this.firstOffset;
    let bytes = this.sizeBytes;
    while (this.#segments.length > 1) {
      const oldest = this.#segments[0]!;
      const isTooOld = retentionMs > 0 && this.#now() - oldest.lastTimestampMs > retentionMs;
      const isTooMuch = retentionBytes > 0 && bytes > retentionBytes;
      if (!isTooOld && !isTooMuch) break;
      this.#segments.shift();
      bytes -= oldest.sizeBytes;
      oldest.close();
      rmSync(oldest.path, { force: true });
      rmSync(`${oldest.path.slice(0, -4)}.index`, { force: true });
    }
    for (const segment of this.#segments.slice(0, -1)) segment.forgetIndex();
    return this.firstOffset - before;
  }

  /** What is under way is written; what comes later is refused. */
  async close(): Promise<void> {
    if (this.#isWriting) await new Promise<void>((resolve) => this.#idle.push(resolve));
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const segment of this.#segments) segment.close();
  }
}

/** The base offsets of the segments in a partition's folder, in order. */
export function segmentBases(folder: string): number[] {
  return readdirSync(folder)
    .filter((name) => /^\d{16}\.log$/.test(name))
    .map((name) => Number(name.slice(0, 16)))
    .sort((a, b) => a - b);
}

/** Records that lie behind one another in memory, as those of one publication do, are one piece. */
function joinNeighbours(records: readonly Buffer[]): Buffer[] {
  const pieces: Buffer[] = [];
  for (let first = 0; first < records.length; ) {
    const { buffer, byteOffset } = records[first]!;
    let end = byteOffset + records[first]!.length;
    let next = first + 1;
    while (next < records.length && records[next]!.buffer === buffer && records[next]!.byteOffset === end) end += records[next++]!.length;
    pieces.push(next === first + 1 ? records[first]! : Buffer.from(buffer, byteOffset, end - byteOffset));
    first = next;
  }
  return pieces;
}

function writeAll(fd: number, buffers: readonly Buffer[], done: (error: Error | undefined) => void): void {
  // The system takes 1024 pieces at once.
  const part = buffers.length > 1000 ? buffers.slice(0, 1000) : buffers;
  const total = part.reduce((sum, buffer) => sum + buffer.length, 0);
  writev(fd, part as Buffer[], (error, written) => {
    if (error !== null) return done(error);
    if (written === total) return buffers.length > part.length ? writeAll(fd, buffers.slice(part.length), done) : done(undefined);
    // A full disk takes a part before it says so.
    let at = written;
    const rest: Buffer[] = [];
    for (const buffer of buffers) {
      if (at >= buffer.length) at -= buffer.length;
      else {
        rest.push(at > 0 ? buffer.subarray(at) : buffer);
        at = 0;
      }
    }
    writeAll(fd, rest, done);
  });
}
